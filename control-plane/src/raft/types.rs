//! openraft's type parameters, filled in.

use std::sync::Arc;

use mesh_store::{Envelope, Outcome};
use serde::{Deserialize, Serialize};

/// The commands of one log entry. Shared, because an entry is cached, sent, written and applied.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Batch(pub(crate) Arc<Vec<Envelope>>);

/// One per command of the entry; none for entries of openraft's own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Answers(pub(crate) Vec<Outcome>);

openraft::declare_raft_types!(
    /// See the types that it names.
    pub(crate) TypeConfig:
        D = Batch,
        R = Answers,
        NodeId = u64,
        Node = openraft::BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = super::disk::SnapshotFile,
        Responder = openraft::impls::OneshotResponder<TypeConfig>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// Whether entries take long to encode, to decode or to apply.
pub(crate) fn are_long(entries: &[Entry]) -> bool {
    super::blocking::are_long(entries.iter().flat_map(|entry| match &entry.payload {
        openraft::EntryPayload::Normal(batch) => batch.0.as_slice(),
        _ => &[],
    }))
}

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type StorageIOError = openraft::StorageIOError<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, openraft::BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::BasicNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type Metrics = openraft::RaftMetrics<u64, openraft::BasicNode>;

/// An error with its text, in the form that openraft takes.
pub(crate) fn any_error(error: impl std::fmt::Display) -> openraft::AnyError {
    openraft::AnyError::error(error)
}
