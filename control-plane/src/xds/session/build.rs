//! Makes responses out of what is due.

use std::sync::Arc;

use super::{
    Protocol, Response, Session, WILDCARD,
    known::Known,
    order::Gates,
    type_state::{Covers, InFlight, TypeState},
};
use crate::xds::{Encoded, TypeResources};

/// Removed names in one delta response; the rest follow its ACK.
const MAX_REMOVED: usize = 10_000;

type Set<'a> = Option<&'a TypeResources>;

#[derive(Default)]
struct Parts {
    resources: Vec<Arc<Encoded>>,
    /// Sent only because a full state must have them still.
    kept: Vec<Arc<Encoded>>,
    removed: Vec<Arc<str>>,
}

impl Session {
    /// The next response of one type.
    pub(super) fn respond(&mut self, index: usize) -> Option<Response> {
        if self.types[index].in_flight.is_some() || !self.types[index].unsent(true) {
            return None;
        }
        let gates = self.gates(index);
        let now = self.now;
        let state = &mut self.types[index];
        let view = state.view.clone();
        let of_type = Some(&view);
        let bytes = self.limits.response_bytes;
        let parts = match self.protocol {
            Protocol::Delta => state.delta_parts(of_type, gates, bytes)?,
            Protocol::Sotw if state.is_full() => state.full_parts(of_type, gates)?,
            Protocol::Sotw => state.partial_parts(of_type, gates, bytes)?,
        };
        self.nonces += 1;
        let nonce = format!("{:x}-{}", self.stream, self.nonces);
        let sent: Vec<_> = parts.resources.iter().map(|r| (r.clone(), state.mark_sent(r, now))).collect();
        let removed: Vec<_> =
            parts.removed.iter().map(|name| (name.clone(), state.mark_absent(name))).collect();
        let errors = state.errors(&parts.removed);
        let aliases = state.asked_for(parts.resources.iter().map(|resource| &resource.name));
        let (gone, unresolved) = removed.iter().cloned().partition::<Vec<_>, _>(|(_, before)| {
            !state.kind.aliases || before.as_ref().is_some_and(Known::may_hold)
        });
        let wrapped = state.times;
        state.last_nonce.clone_from(&nonce);
        state.sent_revision = self.revision;
        let type_url = state.type_url.clone();
        self.warm(index, &sent);
        let covers = self.covers(index);
        self.types[index].in_flight =
            Some(InFlight { nonce: nonce.clone(), revision: self.revision, covers, sent, removed });
        self.types[index].rebase(Some(&view));
        Some(Response {
            type_url,
            nonce,
            revision: self.revision,
            resources: parts.resources.into_iter().chain(parts.kept).collect(),
            removed: gone.into_iter().map(|(name, _)| name).collect(),
            unresolved: unresolved.into_iter().map(|(name, _)| name).collect(),
            aliases,
            wrapped,
            errors,
            ..Response::default()
        })
    }

    /// What the client is up to date with once it has answered what is being sent.
    pub(super) fn covers(&self, index: usize) -> Covers {
        let state = &self.types[index];
        let unless = |unsent: bool| (!unsent).then_some(self.revision);
        Covers {
            but_removals: unless(state.unsent(false)),
            all: unless(state.unsent(!self.removals_held(index))),
        }
    }

    /// What the client will wait for because of what it is being sent: see
    /// [`Kind::warms`](crate::xds::kinds::Kind::warms).
    fn warm(&mut self, index: usize, sent: &[(Arc<Encoded>, Option<Known>)]) {
        let Some(other) = self.types[index].kind.warms.and_then(|type_url| self.find(type_url)) else {
            return;
        };
        let other = &mut self.types[other];
        for (resource, before) in sent {
            if before.as_ref().and_then(Known::version) == Some(&resource.version) {
                continue;
            }
            for name in &resource.references {
                // What has changed itself follows anyway, in its turn.
                if other.wants(name) && !other.adds.contains(name) && other.view.contains_key(name) {
                    other.owed.insert(name.clone());
                }
            }
        }
    }
}

impl TypeState {
    /// What is to be said of names that can't be served because nobody serves their type.
    fn errors(&self, names: &[Arc<str>]) -> Vec<(Arc<str>, String)> {
        if self.kind.is_known() {
            return Vec::new();
        }
        let all = names.is_empty().then(|| Arc::from(WILDCARD));
        let reason = || format!("this control plane does not serve {}", self.type_url);
        names.iter().cloned().chain(all).map(|name| (name, reason())).collect()
    }

    fn delta_parts(&mut self, set: Set<'_>, gates: Gates, max_bytes: usize) -> Option<Parts> {
        let resources = self.next_isolated(set);
        if !resources.is_empty() {
            return Some(Parts { resources, ..Parts::default() });
        }
        let (mut parts, complete) = self.due(set, gates, max_bytes);
        if gates.removes && complete {
            parts.removed.extend(self.removes.iter().take(MAX_REMOVED).cloned());
        }
        let first = self.first_answer && gates.adds;
        self.first_answer &= !gates.adds;
        (first || !(parts.resources.is_empty() && parts.removed.is_empty())).then_some(parts)
    }

    /// SotW where a response says only what is new: there are no words for what is gone, the client learns that from
    /// the listeners and clusters.
    fn partial_parts(&mut self, set: Set<'_>, gates: Gates, max_bytes: usize) -> Option<Parts> {
        let resources = self.next_isolated(set);
        if !resources.is_empty() {
            return Some(Parts { resources, ..Parts::default() });
        }
        let (mut parts, _) = self.due(set, gates, max_bytes);
        if !self.kind.is_known() && (std::mem::take(&mut self.first_answer) || !parts.removed.is_empty()) {
            return Some(parts);
        }
        parts.removed.extend(std::mem::take(&mut self.removes));
        for name in parts.removed.drain(..) {
            self.mark_absent(&name);
        }
        self.rebase(set);
        (!parts.resources.is_empty()).then_some(parts)
    }

    /// SotW where a response is all there is. What no longer exists stays in it until nothing refers to it any more.
    /// Changes that should wait go along with an answer that must not: a full state can't be had without them.
    fn full_parts(&mut self, set: Set<'_>, gates: Gates) -> Option<Parts> {
        let due = !self.owed.is_empty()
            || (gates.adds && (self.first_answer || !self.adds.is_empty()))
            || (gates.removes && !self.removes.is_empty());
        if !due {
            return None;
        }
        self.first_answer = false;
        let exists = |name: &Arc<str>| set.is_some_and(|map| map.contains_key(name));
        let mut parts = Parts::default();
        if self.wildcard {
            parts.resources.extend(set.into_iter().flat_map(|map| map.values().cloned()));
        } else {
            parts.resources.extend(self.names.iter().filter_map(|name| set?.get(name)).cloned());
        }
        parts.removed.extend(self.owed.iter().filter(|name| !exists(name)).cloned());
        if gates.removes {
            parts.removed.extend(self.removes.iter().cloned());
        } else {
            let kept = self.removes.iter().filter_map(|name| self.known(name)?.contents().cloned());
            parts.kept.extend(kept);
        }
        Some(parts)
    }

    /// What is owed and what has changed, up to a size, and the owed names that don't exist. Whether that is all.
    fn due(&self, set: Set<'_>, gates: Gates, max_bytes: usize) -> (Parts, bool) {
        let mut parts = Parts::default();
        let mut bytes = 0;
        let changed = self.adds.iter().filter(|name| gates.adds && !self.owed.contains(*name));
        for name in self.owed.iter().chain(changed) {
            match set.and_then(|map| map.get(name)) {
                Some(resource) => {
                    bytes += resource.wire_size();
                    if bytes > max_bytes && !parts.resources.is_empty() {
                        return (parts, false);
                    }
                    parts.resources.push(resource.clone());
                }
                None => parts.removed.push(name.clone()),
            }
        }
        (parts, true)
    }
}
