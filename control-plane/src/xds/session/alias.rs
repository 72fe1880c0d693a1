//! Names that stand for others: see [`Kind::aliases`](crate::xds::kinds::Kind::aliases).
//!
//! A client asks for authorities; what is subscribed to are the virtual hosts that serve them. An authority that nothing
//! serves is subscribed to as it is, until something does.

use std::sync::Arc;

use super::type_state::TypeState;
use crate::xds::{ResourceSet, kinds};

impl TypeState {
    /// Puts the names of resources in the place of the names that are asked for, and remembers which.
    pub(super) fn resolve(
        &mut self,
        set: &ResourceSet,
        subscribe: &mut [String],
        unsubscribe: &mut Vec<String>,
    ) {
        for name in unsubscribe.iter_mut() {
            if let Some(resource) = self.asked.remove(name.as_str()) {
                *name = resource.to_string();
            }
        }
        // Somebody else may stand for the same.
        unsubscribe.retain(|name| !self.asked.values().any(|resource| **resource == **name));
        for name in subscribe {
            match set.resolve(name) {
                Some(resource) if **resource != **name => {
                    self.asked.insert(name.as_str().into(), resource.clone());
                    *name = resource.to_string();
                }
                _ => {}
            }
        }
    }

    /// Authorities may be served by another virtual host now.
    pub(super) fn resolve_again(&mut self, old: &ResourceSet, new: &ResourceSet) {
        let same = |of: fn(&'_ ResourceSet) -> Option<&'_ crate::xds::TypeResources>| match (of(old), of(new))
        {
            (Some(old), Some(new)) => old.ptr_eq(new),
            (None, None) => true,
            _ => false,
        };
        if !self.kind.aliases
            || (same(|set| set.of(kinds::VIRTUAL_HOST)) && same(|set| set.named(kinds::VIRTUAL_HOST)))
        {
            return;
        }
        let own = self.names.iter().filter(|name| !self.asked.values().any(|resource| resource == *name));
        let asked: Vec<Arc<str>> = self.asked.keys().chain(own).cloned().collect();
        for name in asked {
            let before = self.asked.get(&name).unwrap_or(&name).clone();
            let Some(resource) = new.resolve(&name).filter(|resource| **resource != before) else { continue };
            if before == name {
                self.names.remove(&name);
                self.forget(&name);
            }
            self.asked.insert(name, resource.clone());
            if self.names.insert(resource.clone()) {
                self.held.note_wanted(resource, self.wildcard);
            }
            // Whoever waits for the name is told, though the resource may be known.
            self.owed.insert(resource.clone());
            self.extras.insert(resource.clone());
        }
    }

    /// The names by which the client has asked for resources.
    pub(super) fn asked_for<'a>(
        &'a self,
        resources: impl Iterator<Item = &'a Arc<str>>,
    ) -> Vec<(Arc<str>, Arc<str>)> {
        if self.asked.is_empty() {
            return Vec::new();
        }
        let names: std::collections::BTreeSet<_> = resources.collect();
        let asked = self.asked.iter().filter(|(_, resource)| names.contains(resource));
        asked.map(|(alias, resource)| (resource.clone(), alias.clone())).collect()
    }
}
