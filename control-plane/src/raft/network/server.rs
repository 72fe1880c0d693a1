//! The raft door of a replica.

use std::{sync::Arc, time::Duration};

use openraft::raft::InstallSnapshotRequest;
use tonic::{Extensions, Request, Response, Status};
use xds_proto::isthmus::raft::v1::{
    Payload,
    raft_server::{Raft, RaftServer},
};

use super::wire::{self, Chunk, Forward, Forwarded, NotLeader, RaftResult, ReadIndex};
use crate::raft::{
    WriteError,
    blocking::{blocking, is_long},
    config::{MAX_BATCH_COMMANDS, MAX_MESSAGE_BYTES, MAX_SNAPSHOT_BYTES, WRITE_DEADLINE},
    queue::Queue,
    reads::Reads,
    types,
};

/// Says whether the sender of a request is a replica of this cluster, from what the connection left in the
/// request's extensions. The error is the answer.
pub type Authorize = Arc<dyn Fn(&Extensions) -> Result<(), Status> + Send + Sync>;

/// The raft door of a replica, for replicas only.
pub struct RaftService {
    pub(crate) raft: types::Raft,
    pub(crate) queue: Queue,
    pub(crate) reads: Reads,
    pub(crate) authorize: Authorize,
}

impl std::fmt::Debug for RaftService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftService").finish_non_exhaustive()
    }
}

impl RaftService {
    /// With the limits that the other replicas keep to.
    pub(crate) fn into_server(self) -> RaftServer<RaftService> {
        RaftServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn open<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        request: &Request<Payload>,
    ) -> Result<T, Status> {
        (self.authorize)(request.extensions())?;
        let long = is_long(&request.get_ref().json);
        blocking(long, || wire::unpack(what, request.get_ref()))
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

fn answer<T: serde::Serialize>(what: &'static str, value: &T) -> Result<Response<Payload>, Status> {
    wire::pack(what, value).map(Response::new).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append_entries(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let append = self.open("append request", &request)?;
        let result: RaftResult<_> = self.raft.append_entries(append).await;
        answer("append response", &result)
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let vote = self.open("vote request", &request)?;
        let result: RaftResult<_> = self.raft.vote(vote).await;
        answer("vote response", &result)
    }

    async fn install_snapshot(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let chunk: Chunk = self.open("piece of a snapshot", &request)?;
        let piece = InstallSnapshotRequest::try_from(chunk);
        let piece = piece.map_err(|error| Status::invalid_argument(error.to_string()))?;
        if piece.offset.saturating_add(piece.data.len() as u64) > MAX_SNAPSHOT_BYTES {
            return Err(Status::out_of_range(format!(
                "the snapshot has more than {MAX_SNAPSHOT_BYTES} bytes"
            )));
        }
        let result: RaftResult<_, _> = self.raft.install_snapshot(piece).await;
        answer("snapshot response", &result)
    }

    async fn forward(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let Forward { envelopes, patience_ms } = self.open("forwarded write", &request)?;
        if envelopes.len() > MAX_BATCH_COMMANDS {
            let message = format!("{} commands are more than {MAX_BATCH_COMMANDS}", envelopes.len());
            return Err(Status::out_of_range(message));
        }
        let patience = Duration::from_millis(patience_ms).min(WRITE_DEADLINE);
        let forwarded: Forwarded = match self.queue.take_forwarded(envelopes, patience).await {
            Ok(outcomes) => Ok(outcomes),
            Err(WriteError::NotLeader) => Err(NotLeader),
            Err(error) => return Err(Status::unavailable(error.to_string())),
        };
        answer("answer to a forwarded write", &forwarded)
    }

    async fn read_index(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        (self.authorize)(request.extensions())?;
        let index: ReadIndex = self.reads.local_read_index().await.map_err(|_| NotLeader);
        answer("read index", &index)
    }
}
