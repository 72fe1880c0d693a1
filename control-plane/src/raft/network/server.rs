//! The raft door of a replica.

use std::{sync::Arc, time::Duration};

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tonic::{Extensions, Request, Response, Status, metadata::MetadataValue};
use xds_proto::isthmus::raft::v1::{
    Payload,
    raft_server::{Raft, RaftServer},
};

use super::{
    limits::Limits,
    peers::REMOVED,
    wire::{self, Chunk, Forward, Forwarded, NotLeader, PreVote, RaftResult, ReadIndex, TakeOver},
};
use crate::raft::{
    WriteError,
    blocking::{blocking, is_long},
    config::{MAX_BATCH_COMMANDS, MAX_MESSAGE_BYTES, MAX_SNAPSHOT_BYTES, WRITE_DEADLINE},
    election::Elections,
    membership::removed_sentence,
    queue::Queue,
    reads::Reads,
    types::TypeConfig,
};
use crate::shown;

/// Says which replica of this cluster has sent a request, from what the connection left in the request's
/// extensions; None where connections prove nothing (plain text, in tests). The error is the answer.
pub type Authorize = Arc<dyn Fn(&Extensions) -> Result<Option<u64>, Status> + Send + Sync>;

/// The raft door of a replica, for replicas only.
pub struct RaftService {
    pub(crate) elections: Elections,
    pub(crate) queue: Queue,
    pub(crate) reads: Reads,
    pub(crate) authorize: Authorize,
    pub(super) limits: Limits,
}

/// Who sent a request. Its place among the sender's calls is free again when this is dropped.
struct Sender {
    id: u64,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for RaftService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftService").finish_non_exhaustive()
    }
}

impl RaftService {
    /// With the limits that the other replicas keep to.
    pub(crate) fn server(
        elections: Elections,
        queue: Queue,
        reads: Reads,
        authorize: Authorize,
    ) -> RaftServer<RaftService> {
        RaftServer::new(Self { elections, queue, reads, authorize, limits: Limits::default() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Who has sent a request, if it may.
    fn sender(&self, request: &Request<Payload>, vote: bool) -> Result<Sender, Status> {
        let proven = (self.authorize)(request.extensions())?;
        let Payload { from, group, .. } = request.get_ref();
        if let Some(proven) = proven.filter(|proven| proven != from) {
            let sentence =
                format!("the message says that it is replica {from}'s, the certificate is {proven}'s");
            return Err(Status::permission_denied(sentence));
        }
        self.same_group(*from, group)?;
        if self.elections.contact.has_removed(*from) {
            let mut refusal = Status::permission_denied(removed_sentence(*from));
            refusal.metadata_mut().insert(REMOVED, MetadataValue::from_static("1"));
            return Err(refusal);
        }
        match self.limits.call(*from, vote, std::time::Instant::now()) {
            Some(place) => Ok(Sender { id: *from, _place: place }),
            None => Err(Status::resource_exhausted(format!("replica {from} has too many calls under way"))),
        }
    }

    /// Two groups with the same replicas come to be when one is made anew of a survivor's disk. Their logs must
    /// never meet.
    fn same_group(&self, from: u64, theirs: &str) -> Result<(), Status> {
        let ours = self.elections.peers.group();
        if theirs == ours {
            return Ok(());
        }
        let theirs = shown::word(theirs);
        tracing::warn!(replica = from, ours, %theirs, "refused a replica of another raft group");
        Err(Status::failed_precondition(format!(
            "replica {from} is of the raft group {theirs:?}, this one of {ours:?}: the group was made anew; empty \
             the old replica's data directory and join it with a new token"
        )))
    }

    fn open<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        request: &Request<Payload>,
    ) -> Result<(T, Sender), Status> {
        let sender = self.sender(request, false)?;
        Ok((decode(what, request.get_ref())?, sender))
    }
}

fn decode<T: serde::de::DeserializeOwned>(what: &'static str, payload: &Payload) -> Result<T, Status> {
    let long = is_long(&payload.json);
    blocking(long, || wire::unpack(what, payload))
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

fn answer<T: serde::Serialize>(what: &'static str, value: &T) -> Result<Response<Payload>, Status> {
    wire::pack(what, value).map(Response::new).map_err(|error| Status::internal(error.to_string()))
}

#[tonic::async_trait]
impl Raft for RaftService {
    async fn append_entries(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let (append, _sender) = self.open::<AppendEntriesRequest<TypeConfig>>("append request", &request)?;
        let result: RaftResult<_> = self.elections.raft.append_entries(append).await;
        if result.as_ref().is_ok_and(|answer| !matches!(answer, AppendEntriesResponse::HigherVote(_))) {
            self.elections.contact.heard(Instant::now());
        }
        answer("append response", &result)
    }

    async fn vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let sender = self.sender(&request, true)?;
        let vote: VoteRequest<u64> = decode("vote request", request.get_ref())?;
        let Elections { raft, .. } = &self.elections;
        // openraft's own lease is short, and the leader has none: nobody is elected while a leader is heard, unless
        // that leader wants it so.
        let heard = self.elections.leader(Instant::now()).filter(|_| !request.get_ref().transfer);
        let result: RaftResult<_> = match heard {
            Some(leader) if leader != sender.id => {
                let last_log_id = raft.data_metrics().borrow().last_log;
                let vote = raft.metrics().borrow().vote;
                Ok(VoteResponse { vote, vote_granted: false, last_log_id })
            }
            _ => raft.vote(vote).await,
        };
        answer("vote response", &result)
    }

    async fn install_snapshot(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let (chunk, _sender) = self.open::<Chunk>("piece of a snapshot", &request)?;
        let piece = wire::join(chunk, request.into_inner().attachment);
        if piece.offset.saturating_add(piece.data.len() as u64) > MAX_SNAPSHOT_BYTES {
            return Err(Status::out_of_range(format!(
                "the snapshot has more than {MAX_SNAPSHOT_BYTES} bytes"
            )));
        }
        let theirs = piece.vote;
        let result: RaftResult<_, _> = self.elections.raft.install_snapshot(piece).await;
        if result.as_ref().is_ok_and(|answer| answer.vote == theirs) {
            self.elections.contact.heard(Instant::now());
        }
        answer("snapshot response", &result)
    }

    async fn forward(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let (Forward { envelopes, patience_ms }, _sender) = self.open("forwarded write", &request)?;
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
        let _sender = self.sender(&request, false)?;
        let index: ReadIndex = self.reads.local_read_index().await.map_err(|_| NotLeader);
        answer("read index", &index)
    }

    async fn pre_vote(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let _sender = self.sender(&request, true)?;
        let ask: PreVote = decode("question", request.get_ref())?;
        answer("answer to a question", &self.elections.consider(&ask, Instant::now()))
    }

    async fn take_over(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        let sender = self.sender(&request, true)?;
        let TakeOver { term } = decode("hand-over", request.get_ref())?;
        let follows = {
            let metrics = self.elections.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_term, metrics.current_leader)
        };
        if follows != (term, Some(sender.id)) {
            let sentence = format!("replica {} does not lead this one in term {term}", sender.id);
            return Err(Status::failed_precondition(sentence));
        }
        let elections = self.elections.clone();
        tokio::spawn(async move { elections.take_over().await });
        Ok(Response::new(Payload::default()))
    }
}
