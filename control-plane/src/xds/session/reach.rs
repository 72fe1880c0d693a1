//! What of a type is in a client's reach: its view, and what else it may have and has asked for by name.
//!
//! The view of a type is a persistent map, so a client's own costs the few entries by which it differs from the one
//! that all its equals share.

use std::{collections::BTreeSet, sync::Arc};

use super::{Session, type_state::TypeState};
use crate::xds::{ResourceSet, resource::changed_names};

impl Session {
    /// Whether another view is anything to the client: what it gets unasked is different, or what it asked for by name.
    /// To be asked before the session is told of the view.
    pub fn is_concerned_by(&self, new: &ResourceSet) -> bool {
        !new.shares_unasked(&self.set) || self.types.iter().any(|state| state.asked_for_other(&self.set, new))
    }
}

impl TypeState {
    fn asked_for_other(&self, old: &ResourceSet, new: &ResourceSet) -> bool {
        let changed = changed_names(old.named(&self.type_url), new.named(&self.type_url));
        // What an authority stands for is found by more than its name.
        changed.iter().any(|name| self.kind.aliases || self.names.contains(name))
    }

    /// Sees a set for the first time.
    pub(super) fn see(&mut self, set: &ResourceSet) {
        self.view = set.of(&self.type_url).cloned().unwrap_or_default();
    }

    /// The client asks for names and drops others, which is not noted yet.
    pub(super) fn reach_for<'a>(
        &mut self,
        set: &ResourceSet,
        asked: impl Iterator<Item = &'a str>,
        dropped: impl Fn(&str) -> bool,
    ) {
        let Some(named) = set.named(&self.type_url) else { return };
        self.extras.retain(|name| {
            let stays = !dropped(name);
            if !stays {
                self.view.remove(name);
            }
            stays
        });
        for name in asked {
            if !self.view.contains_key(name)
                && let Some((name, resource)) = named.get_key_value(name)
            {
                self.extras.insert(name.clone());
                self.view.insert(name.clone(), resource.clone());
            }
        }
    }

    /// The set has become another one. Names that changed are looked at again.
    pub(super) fn on_change(&mut self, old: &ResourceSet, new: &ResourceSet, revision: u64) {
        let before = self.view.clone();
        self.resolve_again(old, new);
        let main = new.of(&self.type_url).cloned().unwrap_or_default();
        let named = new.named(&self.type_url);
        let mut candidates = std::mem::take(&mut self.extras);
        if named.is_some() || old.named(&self.type_url).is_some() {
            let changed = changed_names(old.named(&self.type_url), named).into_iter();
            let moved = changed_names(old.of(&self.type_url), Some(&main)).into_iter();
            candidates.extend(changed.chain(moved).filter(|name| self.names.contains(name)));
        }
        self.view = main;
        self.put_extras(candidates, new);
        self.on_view_change(&before, revision);
    }

    pub(super) fn put_extras(&mut self, candidates: BTreeSet<Arc<str>>, set: &ResourceSet) {
        let Some(named) = set.named(&self.type_url) else { return };
        for name in candidates.into_iter().filter(|name| self.names.contains(name)) {
            if !self.view.contains_key(&name)
                && let Some(resource) = named.get(&name)
            {
                self.view.insert(name.clone(), resource.clone());
                self.extras.insert(name);
            }
        }
    }
}
