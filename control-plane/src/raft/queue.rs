//! Writes wait here for their log entry. All that wait share one.

use std::{sync::Arc, time::Duration};

use mesh_store::{Applied, Envelope, Outcome, limits::MAX_COMMAND_BYTES};
use openraft::error::{ClientWriteError, RaftError};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    WriteError,
    blocking::{are_long, blocking},
    config::{
        MAX_BATCH_BYTES, MAX_BATCH_COMMANDS, MAX_ENTRIES_IN_FLIGHT, MAX_QUEUED_COMMANDS, WRITE_DEADLINE,
    },
    contact::{Contact, NoQuorum},
    network::{Forward, LeaderError, Peers, forward},
    transfer::Gate,
    types::{Batch, Metrics, Raft},
    view::{Counting, add},
};

/// Between attempts while nothing tells that there is a new leader.
const RETRY: Duration = Duration::from_millis(100);

/// The way of every write, on any replica.
#[derive(Clone)]
pub(crate) struct Queue {
    entrance: mpsc::Sender<Pending>,
}

struct Pending {
    envelope: Envelope,
    bytes: usize,
    deadline: Instant,
    /// It came from another replica, which knows better where to go next.
    forwarded: bool,
    reply: oneshot::Sender<Result<Outcome, WriteError>>,
}

impl Queue {
    /// Starts the queue's task, which ends with the last handle.
    pub(crate) fn start(
        id: u64,
        raft: Raft,
        peers: Arc<Peers>,
        contact: Arc<Contact>,
        gate: Gate,
        counting: Arc<Counting>,
    ) -> Self {
        let (entrance, waiting) = mpsc::channel(MAX_QUEUED_COMMANDS);
        let metrics = raft.metrics();
        tokio::spawn(run(waiting, Arc::new(Submitter { id, raft, peers, metrics, contact, gate, counting })));
        Self { entrance }
    }

    /// Sees a command through, wherever the leader is. A retry has the same envelope, so it is applied once.
    pub(crate) async fn write(&self, envelope: Envelope) -> Result<Applied, WriteError> {
        let outcome = self.enter(envelope, WRITE_DEADLINE, false).await?.await;
        Ok(outcome.map_err(|_| stopped())???)
    }

    /// Commands that another replica forwarded, to be applied if this one is the leader.
    pub(crate) async fn take_forwarded(
        &self,
        envelopes: Vec<Envelope>,
        patience: Duration,
    ) -> Result<Vec<Outcome>, WriteError> {
        let mut replies = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            replies.push(self.enter(envelope, patience, true).await?);
        }
        let mut outcomes = Vec::with_capacity(replies.len());
        for reply in replies {
            outcomes.push(reply.await.map_err(|_| stopped())??);
        }
        Ok(outcomes)
    }

    async fn enter(
        &self,
        envelope: Envelope,
        patience: Duration,
        forwarded: bool,
    ) -> Result<oneshot::Receiver<Result<Outcome, WriteError>>, WriteError> {
        let long = are_long([&envelope]);
        let bytes = blocking(long, || serde_json::to_vec(&envelope).map_or(usize::MAX, |json| json.len()));
        if bytes > MAX_COMMAND_BYTES {
            return Err(WriteError::TooLarge { bytes, limit: MAX_COMMAND_BYTES });
        }
        let (reply, outcome) = oneshot::channel();
        let pending = Pending { envelope, bytes, deadline: Instant::now() + patience, forwarded, reply };
        self.entrance.send(pending).await.map_err(|_| stopped())?;
        Ok(outcome)
    }
}

fn stopped() -> WriteError {
    WriteError::Stopped("it is shutting down".to_owned())
}

async fn run(mut waiting: mpsc::Receiver<Pending>, submitter: Arc<Submitter>) {
    let slots = Arc::new(Semaphore::new(MAX_ENTRIES_IN_FLIGHT));
    let mut next: Option<Pending> = None;
    loop {
        let first = match next.take() {
            Some(pending) => pending,
            None => match waiting.recv().await {
                Some(pending) => pending,
                None => return,
            },
        };
        // While it waits for a slot, others come to share its entry.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let mut bytes = first.bytes;
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH_COMMANDS {
            let Ok(pending) = waiting.try_recv() else { break };
            // What came from another replica is answered differently, so it goes apart.
            if bytes + pending.bytes > MAX_BATCH_BYTES || pending.forwarded != batch[0].forwarded {
                next = Some(pending);
                break;
            }
            bytes += pending.bytes;
            batch.push(pending);
        }
        let submitter = submitter.clone();
        tokio::spawn(async move {
            submitter.submit(batch).await;
            drop(slot);
        });
    }
}

struct Submitter {
    id: u64,
    raft: Raft,
    peers: Arc<Peers>,
    metrics: watch::Receiver<Metrics>,
    contact: Arc<Contact>,
    gate: Gate,
    counting: Arc<Counting>,
}

enum Attempt {
    Done(Vec<Outcome>),
    /// Another leader, or the same one later, may do it.
    Again(String),
    NotLeader,
    NoQuorum(NoQuorum),
    Fatal(String),
}

impl Submitter {
    /// Tries until every command has its answer.
    async fn submit(&self, mut batch: Vec<Pending>) {
        let forwarded = batch.first().is_some_and(|pending| pending.forwarded);
        let mut reason = "there is no leader".to_owned();
        let mut metrics = self.metrics.clone();
        let mut tried = false;
        let mut again = false;
        loop {
            expire(&mut batch, &reason);
            let Some(patience) = batch.iter().map(|pending| pending.deadline).max() else { return };
            let attempt = batch.iter().map(|Pending { envelope, .. }| Envelope {
                first_unix_ms: envelope.first_unix_ms.or(again.then_some(envelope.now_unix_ms)),
                ..envelope.clone()
            });
            let envelopes = Arc::new(attempt.collect::<Vec<_>>());
            again = true;
            metrics.mark_unchanged();
            let attempt = tokio::time::timeout_at(patience, async {
                tokio::select! {
                    biased;
                    lost = self.contact.quorum_lost() => Attempt::NoQuorum(lost),
                    attempt = self.attempt(&envelopes, patience, forwarded, &mut tried) => attempt,
                }
            });
            let attempt = attempt.await;
            match attempt {
                Ok(Attempt::Done(outcomes)) => {
                    for (pending, outcome) in batch.into_iter().zip(outcomes) {
                        // Whoever has gone away does not want the answer.
                        let _ = pending.reply.send(Ok(outcome));
                    }
                    return;
                }
                Ok(Attempt::NotLeader) => return refuse(batch, &WriteError::NotLeader),
                Ok(Attempt::NoQuorum(lost)) if tried => return refuse(batch, &WriteError::Interrupted(lost)),
                Ok(Attempt::NoQuorum(lost)) => return refuse(batch, &WriteError::NoQuorum(lost)),
                Ok(Attempt::Fatal(reason)) => return refuse(batch, &WriteError::Stopped(reason)),
                Ok(Attempt::Again(why)) => reason = why,
                Err(_) => "the leader reached no majority".clone_into(&mut reason),
            }
            let leader = metrics.borrow_and_update().current_leader;
            let _ = tokio::time::timeout(RETRY, leader_changed(&mut metrics, leader)).await;
        }
    }

    /// Sets `tried` before the commands may have got anywhere.
    async fn attempt(
        &self,
        envelopes: &Arc<Vec<Envelope>>,
        deadline: Instant,
        forwarded: bool,
        tried: &mut bool,
    ) -> Attempt {
        let leader = {
            let metrics = self.metrics.borrow();
            if let Err(fatal) = &metrics.running_state {
                return Attempt::Fatal(fatal.to_string());
            }
            metrics.current_leader.map(|id| {
                let node = metrics.membership_config.membership().get_node(&id);
                (id, node.map(|node| node.addr.clone()).unwrap_or_default())
            })
        };
        match leader {
            Some((id, _)) if id == self.id => {
                *tried = true;
                self.write_here(envelopes, forwarded).await
            }
            _ if forwarded => Attempt::NotLeader,
            Some((id, address)) => {
                *tried = true;
                let patience = deadline.saturating_duration_since(Instant::now()).as_millis();
                let patience_ms = u64::try_from(patience).unwrap_or(u64::MAX);
                let request = Forward { envelopes: envelopes.to_vec(), patience_ms };
                match forward(&self.peers, (id, &address), &request).await {
                    Ok(outcomes) => Attempt::Done(outcomes),
                    Err(LeaderError::NotLeader) => {
                        Attempt::Again(format!("replica {id} is not the leader any more"))
                    }
                    Err(LeaderError::Unknown(reason)) => Attempt::Again(format!("leader {id}: {reason}")),
                }
            }
            None => Attempt::Again("there is no leader".to_owned()),
        }
    }

    async fn write_here(&self, envelopes: &Arc<Vec<Envelope>>, forwarded: bool) -> Attempt {
        // Closed while leadership is handed over.
        let _open = self.gate.read().await;
        match self.raft.client_write(Batch(envelopes.clone())).await {
            Ok(response) => {
                add(&self.counting.entries_proposed, 1);
                add(&self.counting.commands_proposed, envelopes.len() as u64);
                Attempt::Done(response.data.0)
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) if forwarded => Attempt::NotLeader,
            Err(RaftError::APIError(error)) => Attempt::Again(error.to_string()),
            Err(RaftError::Fatal(fatal)) => Attempt::Fatal(fatal.to_string()),
        }
    }
}

/// Returns once another replica leads than `leader`, or none does any more.
async fn leader_changed(metrics: &mut watch::Receiver<Metrics>, leader: Option<u64>) {
    if metrics.wait_for(|now| now.current_leader != leader || now.running_state.is_err()).await.is_err() {
        // raft is gone, and the attempt finds out.
        std::future::pending().await
    }
}

/// Answers the commands that have waited too long.
fn expire(batch: &mut Vec<Pending>, reason: &str) {
    let now = Instant::now();
    let (late, rest): (Vec<_>, Vec<_>) = batch.drain(..).partition(|pending| pending.deadline <= now);
    *batch = rest;
    let seconds = WRITE_DEADLINE.as_secs();
    refuse(late, &WriteError::TimedOut { seconds, reason: reason.to_owned() });
}

fn refuse(batch: Vec<Pending>, error: &WriteError) {
    for pending in batch {
        let _ = pending.reply.send(Err(error.clone()));
    }
}
