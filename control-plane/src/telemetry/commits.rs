//! When each of the last revisions was committed, as far as this replica knows: what lag and convergence are measured
//! from.
//!
//! The leader applies an entry the moment that a majority has it, so there a moment of this ring is that of the commit. A
//! follower applies it when it hears of the commit, a message later. The leader's clock is no help there: the clocks of
//! two machines differ by more than the milliseconds that are to be measured. So each moment says which of the two it is.

use std::{
    collections::VecDeque,
    sync::{PoisonError, RwLock},
    time::Instant,
};

/// Steps that are remembered: some 100 KB.
pub const REMEMBERED: usize = 4_096;

/// When a revision was committed, or when this replica has heard of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By this replica's own monotonic clock.
    pub at: Instant,
    /// This replica led: it is the moment of the commit.
    pub led: bool,
}

/// A ring of (revision, moment). A step may bring several revisions at once.
#[derive(Debug, Default)]
pub struct Commits(RwLock<VecDeque<(u64, Moment)>>);

impl Commits {
    /// The state has reached a revision.
    pub fn reached(&self, revision: u64, moment: Moment) {
        let mut steps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if steps.back().is_some_and(|(last, _)| *last >= revision) {
            return;
        }
        if steps.len() == REMEMBERED {
            steps.pop_front();
        }
        steps.push_back((revision, moment));
    }

    /// When the state reached a revision. For one that is forgotten: the oldest moment that is remembered, so
    /// that what is measured from it is a lower bound. None if it has not been reached.
    pub fn at(&self, revision: u64) -> Option<Moment> {
        let steps = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let index = steps.partition_point(|(reached, _)| *reached < revision);
        steps.get(index).map(|(_, moment)| *moment)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_revision_was_reached_with_the_first_step_that_holds_it() {
        let (commits, start) = (Commits::default(), Instant::now());
        let at = |seconds, led| Moment { at: start + Duration::from_secs(seconds), led };
        commits.reached(5, at(1, false));
        commits.reached(9, at(2, true));
        commits.reached(9, at(3, false));
        assert_eq!(commits.at(3), Some(at(1, false)));
        let seen = (commits.at(5), commits.at(6), commits.at(9));
        assert_eq!(seen, (Some(at(1, false)), Some(at(2, true)), Some(at(2, true))));
        assert_eq!(commits.at(10), None);
    }

    #[test]
    fn the_ring_keeps_a_bounded_number() {
        let (commits, moment) = (Commits::default(), Moment { at: Instant::now(), led: true });
        (1..=REMEMBERED as u64 + 10).for_each(|revision| commits.reached(revision, moment));
        assert_eq!(commits.0.read().unwrap().len(), REMEMBERED);
    }
}
