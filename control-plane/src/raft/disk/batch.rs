//! What the writer thread is asked to do.

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
    /// Remembers what is committed. Nobody relies on it, so it is made durable along with the next write.
    Committed(Option<LogId>),
    /// Removes entries at the end that a new leader does not have; `last` is the last one that stays.
    Truncate { since: u64, last: Option<LogId>, done: Done },
    /// Removes entries at the beginning that a snapshot holds.
    Purge { upto: LogId, done: Done },
}
