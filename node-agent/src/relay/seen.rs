//! The newest revision that each workload's proxy was sent.
//!
//! A client is never served an older one, and must say what it has seen when its stream goes to another replica. Our
//! own clients do; an Envoy's second stream in a row looks like its first, so the agent, which carries both, says it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_model::resource::NamespacedName;

/// No more entries than workloads that ran here when a stream was opened last.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<BTreeMap<NamespacedName, u64>>);

impl Seen {
    /// A response with this version was passed on. Versions of responses are revisions; of anything else nothing is
    /// remembered.
    pub(super) fn note(&self, workload: &NamespacedName, version: &str) {
        let Ok(revision) = version.parse::<u64>() else { return };
        let mut known = self.lock();
        match known.get_mut(workload) {
            Some(seen) => *seen = revision.max(*seen),
            None => drop(known.insert(workload.clone(), revision)),
        }
    }

    pub(super) fn of(&self, workload: &NamespacedName) -> Option<u64> {
        self.lock().get(workload).copied()
    }

    /// Forgets the others: one of the same name has seen nothing.
    pub(super) fn retain(&self, is_here: impl Fn(&NamespacedName) -> bool) {
        self.lock().retain(|workload, _| is_here(workload));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NamespacedName, u64>> {
        // The map is whole between any two statements.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_revision_counts_whatever_the_order_until_the_workload_has_gone() {
        let (seen, web) = (Seen::default(), NamespacedName::new("shop", "web"));
        assert_eq!(seen.of(&web), None);
        for version in ["7", "90", "8", "", "not a number"] {
            seen.note(&web, version);
        }
        assert_eq!(seen.of(&web), Some(90));
        assert_eq!(seen.of(&NamespacedName::new("shop", "pay")), None);
        seen.retain(|here| *here == web);
        assert_eq!(seen.of(&web), Some(90));
        seen.retain(|_| false);
        assert_eq!(seen.of(&web), None);
    }
}
