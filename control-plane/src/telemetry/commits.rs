//! When each of the last revisions was applied on this replica: what lag and convergence are measured from.

use std::{
    collections::VecDeque,
    sync::{PoisonError, RwLock},
    time::Instant,
};

/// Steps that are remembered: some 100 KB.
pub const REMEMBERED: usize = 4_096;

/// A ring of (revision, moment). A step may bring several revisions at once.
#[derive(Debug, Default)]
pub struct Commits(RwLock<VecDeque<(u64, Instant)>>);

impl Commits {
    /// The state has reached a revision.
    pub fn reached(&self, revision: u64, now: Instant) {
        let mut steps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if steps.back().is_some_and(|(last, _)| *last >= revision) {
            return;
        }
        if steps.len() == REMEMBERED {
            steps.pop_front();
        }
        steps.push_back((revision, now));
    }

    /// When the state reached a revision. For one that is forgotten: the oldest moment that is remembered, so
    /// that what is measured from it is a lower bound. None if it has not been reached.
    pub fn at(&self, revision: u64) -> Option<Instant> {
        let steps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let index = steps.partition_point(|(reached, _)| *reached < revision);
        steps.get(index).map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_revision_was_reached_with_the_first_step_that_holds_it() {
        let (commits, start) = (Commits::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        commits.reached(5, at(1));
        commits.reached(9, at(2));
        commits.reached(9, at(3));
        assert_eq!(commits.at(3), Some(at(1)));
        assert_eq!((commits.at(5), commits.at(6), commits.at(9)), (Some(at(1)), Some(at(2)), Some(at(2))));
        assert_eq!(commits.at(10), None);
    }

    #[test]
    fn the_ring_keeps_a_bounded_number() {
        let (commits, start) = (Commits::default(), Instant::now());
        (1..=REMEMBERED as u64 + 10).for_each(|revision| commits.reached(revision, start));
        assert_eq!(commits.0.read().unwrap().len(), REMEMBERED);
    }
}
