//! Calls to other replicas: openraft's, and ours to the leader.

use std::{fmt::Display, sync::Arc, time::Duration};

use openraft::{
    BasicNode, RaftNetwork, RaftNetworkFactory,
    error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
        VoteRequest, VoteResponse,
    },
};
use tonic::{Code, Status, transport::Channel};
use xds_proto::isthmus::raft::v1::{Payload, raft_client::RaftClient};

use super::{
    Peers,
    append::{self, Appending},
    wire::{self, Forward, Forwarded, NotLeader, PreVote, PreVoted, RaftResult, ReadIndex, TakeOver},
};
use crate::raft::{
    blocking::{are_long as are_long_commands, blocking},
    types::{TypeConfig, any_error, are_long},
};

/// Between attempts to reach a replica that can't be reached.
const BACKOFF: Duration = Duration::from_millis(200);

pub(super) type CallError<E = openraft::error::Infallible> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// Makes openraft's clients.
pub(crate) struct Factory(pub(crate) Arc<Peers>);

/// A client for one replica.
pub(crate) struct Client {
    target: Target,
    append: Option<Appending>,
}

/// Whom a client calls.
#[derive(Clone)]
pub(super) struct Target {
    peers: Arc<Peers>,
    id: u64,
    node: BasicNode,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Client {
        let target = Target { peers: self.0.clone(), id: target, node: node.clone() };
        Client { target, append: None }
    }
}

impl Target {
    async fn connect<E: std::error::Error>(&self) -> Result<RaftClient<Channel>, CallError<E>> {
        self.peers.client(self.id, &self.node.addr).await.map_err(|error| Unreachable::new(&error).into())
    }

    fn answer<T, E>(
        &self,
        what: &'static str,
        response: Result<tonic::Response<Payload>, Status>,
    ) -> Result<T, CallError<E>>
    where
        T: serde::de::DeserializeOwned,
        E: std::error::Error + serde::de::DeserializeOwned,
    {
        let payload =
            response.inspect_err(|status| self.peers.refused(status)).map_err(call_error)?.into_inner();
        self.peers.answered(self.id);
        let result: RaftResult<T, E> = wire::unpack(what, &payload).map_err(network_error)?;
        result.map_err(|error| RemoteError::new_with_node(self.id, self.node.clone(), error).into())
    }

    /// One append request, or heartbeat, for as long as it takes.
    pub(super) async fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        let long = are_long(&request.entries);
        let payload =
            blocking(long, || self.peers.pack("append request", &request)).map_err(network_error)?;
        // The other replica may need long for it; the entries need not be held here meanwhile.
        drop(request);
        let response = self.connect().await?.append_entries(payload).await;
        self.answer("append response", response)
    }
}

impl RaftNetwork<TypeConfig> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        if request.entries.is_empty() {
            return self.target.append(request).await;
        }
        append::entries(&self.target, &mut self.append, request, option.hard_ttl() / 2).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<InstallSnapshotError>> {
        let (chunk, piece) = wire::cut(request);
        let payload = self.target.peers.pack("piece of a snapshot", &chunk).map_err(network_error)?;
        let payload = Payload { attachment: piece, ..payload };
        let response = self.target.connect().await?.install_snapshot(payload).await;
        self.target.answer("snapshot response", response)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        let mut payload = self.target.peers.pack("vote request", &request).map_err(network_error)?;
        payload.transfer = self.target.peers.stands_for_transfer();
        let response = self.target.connect().await?.vote(payload).await;
        self.target.answer("vote response", response)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// Why the leader has not answered a call of ours.
pub(crate) enum LeaderError {
    /// It is not the leader; another one is, or will be.
    NotLeader,
    /// Perhaps it did what it was asked.
    Unknown(String),
}

/// Hands commands to the leader.
pub(crate) async fn forward(
    peers: &Peers,
    leader: (u64, &str),
    request: &Forward,
) -> Result<Vec<mesh_store::Outcome>, LeaderError> {
    let long = are_long_commands(&request.envelopes);
    let payload = blocking(long, || peers.pack("forwarded write", request)).map_err(unknown)?;
    let mut client = peers.client(leader.0, leader.1).await.map_err(unknown)?;
    let response = client.forward(payload).await.map_err(|status| refused(peers, &status))?;
    peers.answered(leader.0);
    let answer: Forwarded =
        wire::unpack("answer to a forwarded write", response.get_ref()).map_err(unknown)?;
    let outcomes = answer.map_err(|NotLeader| LeaderError::NotLeader)?;
    if outcomes.len() != request.envelopes.len() {
        return Err(unknown(format!("{} answers to {} commands", outcomes.len(), request.envelopes.len())));
    }
    Ok(outcomes)
}

/// Asks the leader how many entries must have been applied for a read to be linearizable.
pub(crate) async fn read_index(peers: &Peers, leader: (u64, &str)) -> Result<u64, LeaderError> {
    let mut client = peers.client(leader.0, leader.1).await.map_err(unknown)?;
    let response = client.read_index(peers.sign(Payload::default())).await;
    let response = response.map_err(|status| refused(peers, &status))?;
    peers.answered(leader.0);
    let answer: ReadIndex = wire::unpack("read index", response.get_ref()).map_err(unknown)?;
    answer.map_err(|NotLeader| LeaderError::NotLeader)
}

/// Asks a replica whether it would vote for this one.
pub(crate) async fn pre_vote(peers: &Peers, other: (u64, &str), ask: &PreVote) -> Result<PreVoted, String> {
    let text = |error: &dyn Display| error.to_string();
    let payload = peers.pack("question", ask).map_err(|e| text(&e))?;
    let mut client = peers.client(other.0, other.1).await.map_err(|e| text(&e))?;
    let response = client.pre_vote(payload).await;
    let response =
        response.inspect_err(|status| peers.refused(status)).map_err(|status| text(&status.message()))?;
    peers.answered(other.0);
    wire::unpack("answer to a question", response.get_ref()).map_err(|e| text(&e))
}

/// Asks a replica to lead in the place of this one.
pub(crate) async fn take_over(peers: &Peers, other: (u64, &str), ask: &TakeOver) -> Result<(), String> {
    let text = |error: &dyn Display| error.to_string();
    let payload = peers.pack("hand-over", ask).map_err(|e| text(&e))?;
    let mut client = peers.client(other.0, other.1).await.map_err(|e| text(&e))?;
    client.take_over(payload).await.map(drop).map_err(|status| text(&status.message()))
}

fn refused(peers: &Peers, status: &Status) -> LeaderError {
    peers.refused(status);
    unknown(status.message())
}

fn unknown(error: impl Display) -> LeaderError {
    LeaderError::Unknown(error.to_string())
}

/// openraft retries at once after a network error, and waits after "unreachable".
fn call_error<E: std::error::Error>(status: Status) -> CallError<E> {
    let error = any_error(format!("{}: {}", status.code(), status.message()));
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => NetworkError::from(error).into(),
        _ => Unreachable::from(error).into(),
    }
}

fn network_error<E: std::error::Error>(error: wire::Malformed) -> CallError<E> {
    NetworkError::new(&error).into()
}
