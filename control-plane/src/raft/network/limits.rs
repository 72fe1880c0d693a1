//! What one replica may ask of another at once, so that one that has gone wild can't take the other's memory or
//! make it write votes to its disk without end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use mesh_store::limits::MAX_REPLICAS;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    doors::bucket::Bucket,
    raft::config::{MAX_CALLS_PER_REPLICA, VOTES},
};

#[derive(Debug)]
struct Caller {
    calls: Arc<Semaphore>,
    votes: Bucket,
}

/// The calls that are being answered, by caller.
#[derive(Debug, Default)]
pub(super) struct Limits {
    callers: Mutex<HashMap<u64, Caller>>,
}

impl Limits {
    /// Room for one more call of a replica, until the permit is dropped. None if it has too many.
    pub(super) fn call(&self, from: u64, vote: bool, now: Instant) -> Option<OwnedSemaphorePermit> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if !callers.contains_key(&from) && callers.len() >= 2 * MAX_REPLICAS {
            // Ids are not used again: those of removed replicas make room.
            callers.retain(|_, caller| caller.calls.available_permits() < MAX_CALLS_PER_REPLICA);
        }
        let caller = callers.entry(from).or_insert_with(|| Caller {
            calls: Arc::new(Semaphore::new(MAX_CALLS_PER_REPLICA)),
            votes: Bucket::new(VOTES, now),
        });
        if vote && !caller.votes.take(now) {
            return None;
        }
        caller.calls.clone().try_acquire_owned().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_replica_has_room_for_so_many_calls_and_others_keep_theirs() {
        let (limits, now) = (Limits::default(), Instant::now());
        let held: Vec<_> = (0..MAX_CALLS_PER_REPLICA).map(|_| limits.call(2, false, now)).collect();
        assert!(held.iter().all(Option::is_some) && limits.call(2, false, now).is_none());
        assert!(limits.call(3, false, now).is_some());
        drop(held);
        assert!(limits.call(2, false, now).is_some());
    }

    #[test]
    fn votes_are_rationed_and_the_ration_comes_back() {
        let (limits, now) = (Limits::default(), Instant::now());
        let granted = (0..100).filter(|_| limits.call(2, true, now).is_some()).count();
        assert_eq!(granted, VOTES.burst);
        assert!(limits.call(2, false, now).is_some(), "other calls are not votes");
        assert!(limits.call(2, true, now + Duration::from_secs(1)).is_some());
    }

    #[test]
    fn the_table_of_callers_stays_small() {
        let (limits, now) = (Limits::default(), Instant::now());
        for from in 0..10_000 {
            assert!(limits.call(from, false, now).is_some());
        }
        assert!(limits.callers.lock().unwrap().len() <= 2 * MAX_REPLICAS);
    }
}
