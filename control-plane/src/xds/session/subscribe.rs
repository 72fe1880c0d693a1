//! What a request does to the subscription of its type.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{WILDCARD, known::Known, type_state::TypeState};
use crate::xds::TypeResources;

type Set<'a> = Option<&'a TypeResources>;

impl TypeState {
    /// SotW: this is the whole list. An empty one is a wildcard for the types that have it, as long as the client
    /// has named nothing on this stream; after that it means that the client wants nothing.
    pub(super) fn set_interest(&mut self, names: &[String], set: Set<'_>) {
        let explicit: BTreeSet<Arc<str>> =
            names.iter().filter(|name| is_name(name)).map(|name| name.as_str().into()).collect();
        let star = names.iter().any(|name| name == WILDCARD);
        self.named |= star || !explicit.is_empty();
        let wildcard = star || (self.kind.legacy_wildcard && !self.named);

        let gone: Vec<_> = self.names.difference(&explicit).cloned().collect();
        let new: Vec<_> = explicit.difference(&self.names).cloned().collect();
        new.iter().for_each(|name| self.held.note_wanted(name, self.wildcard));
        if wildcard && !self.wildcard {
            self.held.restrict(self.names.iter().chain(&new));
        }
        self.names = explicit;
        match (self.wildcard, wildcard) {
            (false, true) => self.begin_wildcard(true, set),
            (true, false) => self.end_wildcard(),
            _ => {}
        }
        for name in gone {
            if !self.wildcard {
                self.forget(&name);
            } else if matches!(self.known(&name), Some(Known::Absent)) {
                self.held.set_nothing(&name);
            } else {
                // It may have been there by its name only.
                self.evaluate(&name, set.and_then(|map| map.get(&name)));
            }
        }
        for name in new {
            self.owe(&name, set);
        }
    }

    /// Delta: this is new, that is over. `first` is the type's first message on the stream.
    pub(super) fn change_interest(
        &mut self,
        subscribe: &[String],
        unsubscribe: &[String],
        first: bool,
        set: Set<'_>,
    ) {
        for name in unsubscribe {
            if name == WILDCARD {
                self.end_wildcard();
            } else if self.names.remove(name.as_str()) {
                if self.wildcard {
                    // The client can't know whether the wildcard covers it: it must be told, either way.
                    self.owe(&Arc::from(name.as_str()), set);
                } else {
                    self.forget(name);
                }
            }
        }
        // What is held is known by now, so what is subscribed to with it is compared and not sent blindly.
        let reconnect = first && !self.held.is_empty();
        if first && subscribe.is_empty() && self.kind.legacy_wildcard {
            self.begin_wildcard(!reconnect, set);
        }
        for name in subscribe {
            if name == WILDCARD {
                if self.wildcard && !first {
                    self.owed.extend(set.into_iter().flat_map(|map| map.keys().cloned()));
                }
                if !self.wildcard && !first {
                    self.held.restrict(self.names.iter());
                }
                self.begin_wildcard(!reconnect, set);
            } else if is_name(name) {
                self.subscribe(name, first, set);
            }
        }
        if first {
            // The rest of what the client said it holds: wanted or not, gone or not.
            let held: Vec<_> = self.held.exceptions().cloned().collect();
            for name in held {
                self.evaluate(&name, set.and_then(|map| map.get(&name)));
            }
        }
    }

    /// Notes what a reconnecting client says it holds, before its subscription is looked at.
    pub(super) fn hold(&mut self, versions: BTreeMap<String, String>, set: Set<'_>) {
        if !versions.is_empty() {
            self.held.hold(versions, set.unwrap_or(&TypeResources::new()));
        }
    }

    /// Delta: a name is asked for.
    fn subscribe(&mut self, name: &str, first: bool, set: Set<'_>) {
        // The string of the resource, if there is one: thousands of clients ask for the same.
        let shared = set.and_then(|map| map.get_key_value(name));
        let name = shared.map_or_else(|| Arc::from(name), |(name, _)| name.clone());
        self.held.note_wanted(&name, first || self.wants(&name));
        self.named = true;
        self.names.insert(name.clone());
        if first && self.known(&name).is_some() {
            self.evaluate(&name, set.and_then(|map| map.get(&name)));
        } else {
            self.owe(&name, set);
        }
    }

    fn begin_wildcard(&mut self, answer: bool, set: Set<'_>) {
        self.wildcard = true;
        self.first_answer |= answer;
        for (name, resource) in set.into_iter().flat_map(|map| map.iter()) {
            self.evaluate(name, Some(resource));
        }
    }

    fn end_wildcard(&mut self) {
        self.wildcard = false;
        self.first_answer = false;
        self.held.restrict(self.names.iter());
        let left: Vec<_> = [&self.adds, &self.owed, &self.removes]
            .into_iter()
            .flatten()
            .chain(self.rejected.keys())
            .filter(|name| !self.names.contains(*name))
            .cloned()
            .collect();
        for name in left {
            self.forget(&name);
        }
    }

    /// The client must get an answer about this name, whatever it has.
    fn owe(&mut self, name: &Arc<str>, set: Set<'_>) {
        self.owed.insert(name.clone());
        self.evaluate(name, set.and_then(|map| map.get(name)));
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name != WILDCARD
}
