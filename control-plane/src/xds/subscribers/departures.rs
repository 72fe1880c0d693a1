//! Agents that were connected to this replica and are not any more. The time is an argument.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use super::Opening;

/// Agents that are remembered: more than a cluster has nodes. The one that left first is forgotten first.
const MAX: usize = 10_000;

/// Who left, and when.
#[derive(Debug, Default)]
pub struct Departures(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Streams of the agents that are here.
    open: BTreeMap<Arc<str>, usize>,
    left: BTreeMap<Arc<str>, SystemTime>,
}

impl Departures {
    /// A stream has opened.
    pub fn arrived(&self, opening: &Opening) {
        if opening.kind != "agent" {
            return;
        }
        let mut inner = self.lock();
        inner.left.remove(&opening.id);
        *inner.open.entry(opening.id.clone()).or_default() += 1;
    }

    /// A stream ends.
    pub fn left(&self, opening: &Opening, now: SystemTime) {
        let mut inner = self.lock();
        let Some(open) = inner.open.get_mut(&opening.id) else { return };
        *open -= 1;
        if *open > 0 {
            return;
        }
        inner.open.remove(&opening.id);
        inner.left.insert(opening.id.clone(), now);
        if inner.left.len() > MAX
            && let Some((first, _)) = inner.left.iter().min_by_key(|(_, at)| **at)
        {
            let first = first.clone();
            inner.left.remove(&first);
        }
    }

    /// All of them.
    pub fn list(&self) -> Vec<(Arc<str>, SystemTime)> {
        self.lock().left.iter().map(|(id, at)| (id.clone(), *at)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
