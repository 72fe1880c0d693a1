//! One type on one stream: what the client wants, what it has, and what is therefore to be sent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    Protocol,
    known::{Holdings, Known},
};
use crate::xds::{Encoded, TypeResources, kinds::Kind, resource::changed_names};

/// With a response answered, everything up to these revisions is. None: it was not all that there was to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Covers {
    pub(super) but_removals: Option<u64>,
    pub(super) all: Option<u64>,
}

/// A response that the client has not answered yet.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) nonce: String,
    pub(super) revision: u64,
    pub(super) covers: Covers,
    /// What was sent, and what the client had before.
    pub(super) sent: Vec<(Arc<Encoded>, Option<Known>)>,
    pub(super) removed: Vec<(Arc<str>, Option<Known>)>,
}

/// The newest refusal that still stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nacked {
    /// Revision of the first refused response since the type was last in order.
    pub since: u64,
    /// Revision of the last refused response.
    pub revision: u64,
    /// The client's words.
    pub error: String,
}

/// See the module.
#[derive(Debug)]
pub(super) struct TypeState {
    pub(super) type_url: Arc<str>,
    pub(super) kind: Kind,
    pub(super) protocol: Protocol,
    pub(super) wildcard: bool,
    /// The client has named names on this stream, so that an empty list is no legacy wildcard any more.
    pub(super) named: bool,
    pub(super) names: BTreeSet<Arc<str>>,
    /// What there is for this client: of its view, and of what it has asked for by name.
    pub(super) view: TypeResources,
    /// What of that is not in its view by itself.
    pub(super) extras: BTreeSet<Arc<str>>,
    /// Names that were asked for, with the name of the resource that they stand for.
    pub(super) asked: BTreeMap<Arc<str>, Arc<str>>,
    pub(super) held: Holdings,
    /// Existing resources whose version differs from the client's. May wait for other types.
    pub(super) adds: BTreeSet<Arc<str>>,
    /// Names that must be answered whatever the client has: asked for, or needed for warming. Never wait.
    pub(super) owed: BTreeSet<Arc<str>>,
    /// Names that no longer exist and that the client may hold. May wait for other types.
    pub(super) removes: BTreeSet<Arc<str>>,
    /// A wildcard subscription is to be answered, be it with nothing.
    pub(super) first_answer: bool,
    /// Refused together: to be sent again in smaller groups, until the bad ones are alone.
    pub(super) isolate: VecDeque<Vec<Arc<str>>>,
    /// Refused versions: not to be sent again unchanged.
    pub(super) rejected: BTreeMap<Arc<str>, Arc<str>>,
    pub(super) in_flight: Option<InFlight>,
    pub(super) last_nonce: String,
    /// Up to this revision everything has been answered, by ACK or NACK.
    pub(super) settled: u64,
    /// The same, but for removals.
    pub(super) made: u64,
    /// Revision of the newest content in `adds`.
    pub(super) changed_at: u64,
    /// Revision of the newest name in `removes`.
    pub(super) removed_at: u64,
    /// Revision of the last response.
    pub(super) sent_revision: u64,
    /// Revision of the last response that was accepted.
    pub(super) accepted: u64,
    pub(super) nacked: Option<Nacked>,
    /// The client can be told how long a resource lives.
    pub(super) times: bool,
    /// When a resource that lives for a time is to be prolonged.
    pub(super) beats: BTreeMap<Arc<str>, Duration>,
}

impl TypeState {
    pub(super) fn new(type_url: Arc<str>, kind: Kind, protocol: Protocol, times: bool) -> Self {
        Self {
            type_url,
            kind,
            protocol,
            wildcard: false,
            named: false,
            names: BTreeSet::new(),
            view: TypeResources::new(),
            extras: BTreeSet::new(),
            asked: BTreeMap::new(),
            held: Holdings::default(),
            adds: BTreeSet::new(),
            owed: BTreeSet::new(),
            removes: BTreeSet::new(),
            first_answer: false,
            isolate: VecDeque::new(),
            rejected: BTreeMap::new(),
            in_flight: None,
            last_nonce: String::new(),
            settled: 0,
            made: 0,
            changed_at: 0,
            removed_at: 0,
            sent_revision: 0,
            accepted: 0,
            nacked: None,
            times,
            beats: BTreeMap::new(),
        }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// What the client has of a name that it wants.
    pub(super) fn known(&self, name: &str) -> Option<Known> {
        self.held.get(name, self.names.contains(name))
    }

    /// Something has been sent, answered or changed: what the client has may be simpler to say now.
    pub(super) fn rebase(&mut self, set: Option<&TypeResources>) {
        let pending = self.adds.iter().chain(&self.owed).chain(&self.removes).chain(self.rejected.keys());
        self.held.rebase(set, pending, |name| self.names.contains(name));
    }

    /// A response of this type is all there is: nothing may be left out of it.
    pub(super) fn is_full(&self) -> bool {
        self.protocol == Protocol::Sotw && (self.kind.full_state || self.wildcard)
    }

    /// Something is unsent; removals count only if `removes` says so.
    pub(super) fn unsent(&self, removes: bool) -> bool {
        self.first_answer
            || !(self.adds.is_empty() && self.owed.is_empty() && self.isolate.is_empty())
            || (removes && !self.removes.is_empty())
    }

    /// Finds out what is to be done about one name, after anything about it has changed.
    pub(super) fn evaluate(&mut self, name: &Arc<str>, current: Option<&Arc<Encoded>>) {
        if !self.wants(name) {
            return self.forget(name);
        }
        let (add, remove) = match current {
            Some(resource) => {
                let held = self.held.version(name) == Some(&resource.version);
                let refused = self.rejected.get(name) == Some(&resource.version);
                (!held && !refused, false)
            }
            None => match self.known(name) {
                Some(known) => (false, known.may_hold()),
                None => {
                    if self.names.contains(name) {
                        self.owed.insert(name.clone());
                    }
                    (false, false)
                }
            },
        };
        if remove {
            // The removal is the answer.
            self.owed.remove(name);
        }
        put(&mut self.adds, name, add);
        put(&mut self.removes, name, remove);
    }

    /// The client has no interest in a name any more.
    pub(super) fn forget(&mut self, name: &str) {
        self.held.forget(name);
        self.adds.remove(name);
        self.owed.remove(name);
        self.removes.remove(name);
        if self.rejected.remove(name).is_some() && self.is_full() {
            // The others were refused in its company, and may well be good without it.
            self.owed.extend(std::mem::take(&mut self.rejected).into_keys());
        }
        self.clear_nack();
    }

    /// The view was another one before. Names that changed are looked at again.
    pub(super) fn on_view_change(&mut self, before: &TypeResources, revision: u64) {
        let view = self.view.clone();
        let mut names = changed_names(Some(before), Some(&view));
        if !self.wildcard {
            names.retain(|name| self.names.contains(name));
        }
        for name in &names {
            self.evaluate(name, view.get(name));
        }
        if names.iter().any(|name| self.adds.contains(name)) {
            self.changed_at = revision;
        }
        if names.iter().any(|name| self.removes.contains(name)) {
            self.removed_at = revision;
        }
        self.rebase(Some(&view));
    }

    /// The client accepted what is in flight.
    pub(super) fn on_ack(&mut self, in_flight: InFlight) {
        for (resource, _) in &in_flight.sent {
            self.rejected.remove(&resource.name);
        }
        for (name, _) in &in_flight.removed {
            self.rejected.remove(name);
        }
        self.accepted = in_flight.revision;
        self.settle(in_flight.covers);
        self.clear_nack();
    }

    /// The client refused what is in flight. Returns the names that it concerned.
    ///
    /// What it had accepted before is above suspicion. Of the others, none is sent again unchanged in the same company.
    /// Where a response need not be all there is they are tried in halves, so that one bad resource does not keep the
    /// good ones from a client that refuses responses as a whole.
    pub(super) fn on_nack(
        &mut self,
        in_flight: InFlight,
        error: String,
        set: Option<&TypeResources>,
    ) -> Vec<Arc<str>> {
        let (alone, split) = (in_flight.sent.is_empty(), !self.is_full());
        let mut suspects = Vec::new();
        let mut left = false;
        for (resource, before) in in_flight.sent {
            if before.as_ref().and_then(Known::version) == Some(&resource.version) {
                continue;
            }
            let name = resource.name.clone();
            if !self.wants(&name) {
                left = true;
                continue;
            }
            let accepted = before.as_ref().and_then(Known::contents).cloned();
            self.held.set(&name, Known::Uncertain(accepted));
            self.rejected.insert(name.clone(), resource.version.clone());
            suspects.push(name);
        }
        let mut concerned = suspects.clone();
        for (name, before) in in_flight.removed {
            let Some(before) = before.filter(|before| before.may_hold() && self.wants(&name)) else {
                continue;
            };
            concerned.push(name.clone());
            // A removal refused on its own counts as done: there is nothing else to be said.
            if split && !alone {
                self.held.set(&name, Known::Uncertain(before.contents().cloned()));
                self.evaluate(&name, set.and_then(|map| map.get(&name)));
            }
        }
        for name in &suspects {
            self.evaluate(name, set.and_then(|map| map.get(name)));
        }
        if suspects.len() > 1 && split {
            let second = suspects.split_off(suspects.len() / 2);
            self.isolate.push_front(second);
            self.isolate.push_front(suspects);
        } else if left && split && !suspects.is_empty() {
            // The one that it no longer wants may have been the bad one.
            self.isolate.push_front(suspects);
        } else if left && !split {
            suspects.iter().for_each(|name| drop(self.rejected.remove(name)));
            self.owed.extend(suspects);
        }
        let since = self.nacked.as_ref().map_or(in_flight.revision, |nacked| nacked.since);
        // Refusing what it has accepted before, or what it no longer wants, leaves nothing to be mended.
        if !concerned.is_empty() {
            self.nacked = Some(Nacked { since, revision: in_flight.revision, error });
        }
        if self.isolate.is_empty() {
            self.settle(in_flight.covers);
        }
        concerned
    }

    /// The next group of refused resources to be tried on their own.
    pub(super) fn next_isolated(&mut self, set: Option<&TypeResources>) -> Vec<Arc<Encoded>> {
        while let Some(group) = self.isolate.pop_front() {
            let mut again = Vec::new();
            for name in &group {
                match set.and_then(|map| map.get(name)) {
                    Some(resource) if self.rejected.get(name) == Some(&resource.version) => {
                        again.push(resource.clone());
                    }
                    // It has changed since, or is gone: the old version was never to blame by itself.
                    current => {
                        self.rejected.remove(name);
                        self.evaluate(name, current);
                    }
                }
            }
            if !again.is_empty() {
                return again;
            }
        }
        Vec::new()
    }

    /// Notes what is being sent.
    pub(super) fn mark_sent(&mut self, resource: &Arc<Encoded>, now: Duration) -> Option<Known> {
        self.beat_after(resource, now);
        let name = &resource.name;
        self.adds.remove(name);
        self.owed.remove(name);
        self.removes.remove(name);
        let before = self.known(name);
        self.held.set_sent(resource);
        before
    }

    /// Notes that the client is being told that a name does not exist.
    pub(super) fn mark_absent(&mut self, name: &Arc<str>) -> Option<Known> {
        self.adds.remove(name);
        self.owed.remove(name);
        self.removes.remove(name);
        self.rejected.remove(name);
        self.clear_nack();
        let before = self.known(name);
        if self.names.contains(name) {
            self.held.set(name, Known::Absent);
        } else {
            self.held.set_nothing(name);
        }
        before
    }

    fn settle(&mut self, covers: Covers) {
        self.settled = self.settled.max(covers.all.unwrap_or(0));
        self.made = self.made.max(covers.but_removals.unwrap_or(0));
    }

    fn clear_nack(&mut self) {
        if self.rejected.is_empty() {
            self.nacked = None;
        }
    }
}

fn put(set: &mut BTreeSet<Arc<str>>, name: &Arc<str>, belongs: bool) {
    if belongs {
        set.insert(name.clone());
    } else {
        set.remove(name);
    }
}
