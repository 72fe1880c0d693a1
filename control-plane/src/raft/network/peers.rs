//! Connections to the other replicas.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use thiserror::Error;
use tonic::{Status, transport::Channel};
use xds_proto::isthmus::raft::v1::{Payload, raft_client::RaftClient};

use super::wire;
use crate::raft::{config::MAX_MESSAGE_BYTES, contact::Contact};

/// Metadata of a refusal that is final: the caller was removed from the group.
pub(super) const REMOVED: &str = "x-isthmus-removed";

/// No connection to a replica.
#[derive(Debug, Clone, Error)]
#[error("replica {id} at {address}: {reason}")]
pub struct DialError {
    /// The replica's id.
    pub id: u64,
    /// `host:port`.
    pub address: String,
    /// One clause.
    pub reason: String,
}

/// Connects to the replica of that id at that `host:port`, and to no other. The channel reconnects by itself.
pub type Dialer = Arc<dyn Fn(u64, String) -> BoxFuture<'static, Result<Channel, DialError>> + Send + Sync>;

type Dialing = Shared<BoxFuture<'static, Result<Channel, DialError>>>;

/// Whoever has answered within this time is reachable. Followers answer a heartbeat every 150 ms.
const REACHABLE_WITHIN: Duration = Duration::from_secs(2);

/// Connections to the other replicas, made when they are first needed.
pub(crate) struct Peers {
    id: u64,
    group: String,
    dialer: Dialer,
    contact: Arc<Contact>,
    /// Until then votes are asked for in the leader's name.
    transfer: Mutex<Option<tokio::time::Instant>>,
    peers: Mutex<HashMap<u64, Peer>>,
}

struct Peer {
    address: String,
    dialing: Dialing,
    answered: Option<Instant>,
}

impl Peers {
    pub(crate) fn new(id: u64, group: String, dialer: Dialer, contact: Arc<Contact>) -> Self {
        Self { id, group, dialer, contact, transfer: Mutex::default(), peers: Mutex::default() }
    }

    /// The group that this replica belongs to.
    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// A message of this replica.
    pub(super) fn pack<T: serde::Serialize>(
        &self,
        what: &'static str,
        value: &T,
    ) -> Result<Payload, wire::Malformed> {
        Ok(self.sign(wire::pack(what, value)?))
    }

    /// Says who sends a message.
    pub(super) fn sign(&self, payload: Payload) -> Payload {
        Payload { group: self.group.clone(), from: self.id, ..payload }
    }

    /// The leader has asked this replica to lead in its place.
    pub(crate) fn stand_for_transfer(&self, until: tokio::time::Instant) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Whether the leader has asked this replica to stand, lately.
    pub(super) fn stands_for_transfer(&self) -> bool {
        let transfer = self.transfer.lock().unwrap_or_else(PoisonError::into_inner);
        transfer.is_some_and(|until| tokio::time::Instant::now() < until)
    }

    /// Takes note of a refusal: it may be the first that this replica hears of its own removal.
    pub(super) fn refused(&self, status: &Status) {
        if status.metadata().contains_key(REMOVED) {
            self.contact.set_removed(status.message());
        }
    }

    /// A client for one replica.
    ///
    /// The caller may give up at any time: raft's calls time out sooner than a handshake on a busy machine
    /// takes, so a connection is made by a task of its own and serves the next call.
    pub(crate) async fn client(&self, id: u64, address: &str) -> Result<RaftClient<Channel>, DialError> {
        let dialing = self.dialing(id, address);
        let channel = dialing.clone().await;
        if channel.is_err() {
            let mut peers = self.lock();
            if peers.get(&id).is_some_and(|peer| peer.dialing.ptr_eq(&dialing)) {
                peers.remove(&id);
            }
        }
        Ok(RaftClient::new(channel?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    fn dialing(&self, id: u64, address: &str) -> Dialing {
        let mut peers = self.lock();
        if let Some(peer) = peers.get(&id).filter(|peer| peer.address == address) {
            return peer.dialing.clone();
        }
        let dialing = (self.dialer)(id, address.to_owned()).shared();
        tokio::spawn(dialing.clone());
        peers.insert(id, Peer { address: address.to_owned(), dialing: dialing.clone(), answered: None });
        dialing
    }

    /// Remembers that a replica has answered just now.
    pub(crate) fn answered(&self, id: u64) {
        if let Some(peer) = self.lock().get_mut(&id) {
            peer.answered = Some(Instant::now());
        }
    }

    /// Whether a replica has answered lately.
    pub(crate) fn reachable(&self, id: u64) -> bool {
        self.answered_within(id, REACHABLE_WITHIN)
    }

    /// Whether a replica has answered within a time.
    pub(crate) fn answered_within(&self, id: u64, time: Duration) -> bool {
        self.lock().get(&id).and_then(|peer| peer.answered).is_some_and(|at| at.elapsed() < time)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Peer>> {
        // The map is whole between any two statements.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
