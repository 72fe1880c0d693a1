//! Linearizable reads on any replica (ReadIndex, Raft dissertation section 6.4).

use std::{sync::Arc, time::Duration};

use mesh_store::State;
use openraft::error::RaftError;
use tokio::time::Instant;

use super::{
    ReadError,
    config::READ_DEADLINE,
    contact::Contact,
    machine::Published,
    network::{LeaderError, Peers, read_index},
    types::Raft,
};

/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);
/// For one attempt: a leader that has vanished without a word is not waited for.
const ATTEMPT: Duration = Duration::from_secs(1);

/// Reads of one replica.
#[derive(Clone)]
pub(crate) struct Reads {
    pub(crate) id: u64,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) published: Arc<Published>,
    pub(crate) contact: Arc<Contact>,
}

impl Reads {
    /// A state that holds every write that was acknowledged before this was called.
    pub(crate) async fn linearizable(&self) -> Result<Arc<State>, ReadError> {
        let deadline = Instant::now() + READ_DEADLINE;
        let mut reason = "there is no leader".to_owned();
        let read = async {
            loop {
                let attempt = tokio::time::timeout(ATTEMPT, self.read_index()).await;
                match attempt.unwrap_or_else(|_| Err(Failure::Again("the leader does not answer".to_owned())))
                {
                    Ok(index) => {
                        // Fails only when the state machine is gone, and then the replica has stopped.
                        let _ = self.published.applied().wait_for(|applied| *applied >= index).await;
                        return Ok(self.published.state());
                    }
                    Err(Failure::Stopped(why)) => return Err(ReadError::Stopped(why)),
                    Err(Failure::Again(why)) => reason = why,
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            biased;
            lost = self.contact.quorum_lost() => Err(ReadError::NoQuorum(lost)),
            read = tokio::time::timeout_at(deadline, read) => read.unwrap_or_else(|_| {
                Err(ReadError::TimedOut { seconds: READ_DEADLINE.as_secs(), reason })
            }),
        }
    }

    async fn read_index(&self) -> Result<u64, Failure> {
        let leader = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            if let Err(fatal) = &metrics.running_state {
                return Err(Failure::Stopped(fatal.to_string()));
            }
            metrics.current_leader.map(|id| {
                let node = metrics.membership_config.membership().get_node(&id);
                (id, node.map(|node| node.addr.clone()).unwrap_or_default())
            })
        };
        match leader {
            None => Err(Failure::Again("there is no leader".to_owned())),
            Some((id, _)) if id == self.id => self.local_read_index().await,
            Some((id, address)) => read_index(&self.peers, (id, &address)).await.map_err(|error| {
                Failure::Again(match error {
                    LeaderError::NotLeader => format!("replica {id} is not the leader any more"),
                    LeaderError::Unknown(reason) => format!("leader {id}: {reason}"),
                })
            }),
        }
    }

    /// How many entries must have been applied for a read to be linearizable, if this replica is the leader: a
    /// majority has confirmed that it is since this was called.
    pub(crate) async fn local_read_index(&self) -> Result<u64, Failure> {
        match self.raft.get_read_log_id().await {
            Ok((read, _)) => Ok(read.map_or(0, |read| read.index + 1)),
            Err(RaftError::APIError(error)) => Err(Failure::Again(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(Failure::Stopped(fatal.to_string())),
        }
    }
}

/// Why there is no read index now.
pub(crate) enum Failure {
    Again(String),
    Stopped(String),
}
