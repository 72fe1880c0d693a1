//! What the messages of `isthmus.raft.v1` carry: JSON of openraft's types, and of these.

use mesh_store::{Envelope, Outcome};
use openraft::{error::RaftError, raft::InstallSnapshotRequest};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use xds_proto::isthmus::raft::v1::Payload;

use crate::raft::types::{LogId, SnapshotMeta, TypeConfig, Vote};

/// A message can't be read.
#[derive(Debug, Error)]
#[error("the message is no {what}: {reason}")]
pub(crate) struct Malformed {
    what: &'static str,
    reason: String,
}

/// Packs a message.
pub(crate) fn pack<T: Serialize>(what: &'static str, value: &T) -> Result<Payload, Malformed> {
    let json = serde_json::to_vec(value).map_err(|error| Malformed { what, reason: error.to_string() })?;
    Ok(Payload { json, ..Payload::default() })
}

/// Unpacks a message.
pub(crate) fn unpack<T: DeserializeOwned>(what: &'static str, payload: &Payload) -> Result<T, Malformed> {
    serde_json::from_slice(&payload.json).map_err(|error| Malformed { what, reason: error.to_string() })
}

/// What a raft call is answered.
pub(crate) type RaftResult<T, E = openraft::error::Infallible> = Result<T, RaftError<u64, E>>;

/// Commands that another replica accepted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forward {
    pub(crate) envelopes: Vec<Envelope>,
    /// How long the other replica waits yet.
    pub(crate) patience_ms: u64,
}

/// The replica that was asked is not the leader, or stopped being it on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NotLeader;

/// The answer to [`Forward`], in the order of its envelopes.
pub(crate) type Forwarded = Result<Vec<Outcome>, NotLeader>;

/// The answer to a request for the leader's read index: how many entries must have been applied.
pub(crate) type ReadIndex = Result<u64, NotLeader>;

/// Would the sender be elected? Asked of every voter before it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PreVote {
    /// Its last log entry.
    pub(crate) last: Option<LogId>,
}

/// The answer to [`PreVote`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreVoted {
    /// The sender's log is as long as this one, and no leader is heard.
    pub(crate) granted: bool,
    /// The leader that is heard.
    pub(crate) leader: Option<u64>,
}

/// The leader asks the receiver to lead in its place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TakeOver {
    /// The term in which the sender leads.
    pub(crate) term: u64,
}

/// A piece of a snapshot, without its bytes: JSON would spell them as a list of numbers, so they go beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Chunk {
    vote: Vote,
    meta: SnapshotMeta,
    offset: u64,
    done: bool,
}

/// Takes a piece of a snapshot apart.
pub(crate) fn cut(request: InstallSnapshotRequest<TypeConfig>) -> (Chunk, Vec<u8>) {
    let InstallSnapshotRequest { vote, meta, offset, data, done } = request;
    (Chunk { vote, meta, offset, done }, data)
}

/// Puts it together again.
pub(crate) fn join(chunk: Chunk, data: Vec<u8>) -> InstallSnapshotRequest<TypeConfig> {
    let Chunk { vote, meta, offset, done } = chunk;
    InstallSnapshotRequest { vote, meta, offset, data, done }
}
