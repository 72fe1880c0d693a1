//! What the writer thread is asked to do.

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;

use super::super::types::{LogId, TypeConfig, Vote};

/// Says whether a write is durable.
pub(super) type Done = oneshot::Sender<Result<(), String>>;

/// One request to the writer thread. They take effect in their order.
pub(super) enum Write {
    /// Adds entries at the end.
    Append { entries: Vec<(u64, Vec<u8>)>, last: LogId, done: openraft::storage::LogFlushed<TypeConfig> },
    /// Replaces the vote.
    Vote { vote: Vote, done: Done },
    /// Removes entries at the end that a new leader does not have; `last` is the last one that stays.
    Truncate { since: u64, last: Option<LogId>, done: Done },
    /// Removes entries at the beginning that a snapshot holds.
    Purge { upto: LogId, done: Done },
}

/// What is committed, for the writer thread to take along with the next write. Nobody relies on it, so it is not worth
/// waking the thread.
#[derive(Debug, Default)]
pub(super) struct Committed(Mutex<Option<LogId>>);

impl Committed {
    pub(super) fn set(&self, committed: Option<LogId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = committed;
    }

    /// What was set since the last call.
    pub(super) fn take(&self) -> Option<LogId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
