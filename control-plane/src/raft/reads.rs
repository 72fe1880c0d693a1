//! Linearizable reads on any replica (ReadIndex, Raft dissertation section 6.4).
//!
//! Reads that wait share one round: whoever comes while a round is under way takes the next one, because a round
//! answers only for what was acknowledged before it began.

use std::{sync::Arc, time::Duration};

use mesh_store::State;
use openraft::error::RaftError;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    ReadError,
    config::READ_DEADLINE,
    contact::Contact,
    machine::Published,
    network::{LeaderError, Peers, read_index},
    types::{LogId, Raft, Vote},
    view::{Counting, add},
};

/// Between attempts.
const RETRY: Duration = Duration::from_millis(50);
/// For one attempt: a leader that has vanished without a word is not waited for.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Reads that wait for the next round; further ones wait before they enter.
const MAX_WAITING: usize = 1024;

/// What is in the log of a leader that was restarted and leads on, in the term in which it led.
///
/// How far the log is committed is written down without haste, so such a leader has acknowledged more than it knows to
/// be committed, and openraft takes the first entry of its term for the least that a read must see. All of its log will
/// be committed if it goes on leading, so reads wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resumed {
    term: u64,
    entries: u64,
}

impl Resumed {
    /// By what was on the disk when replica `id` opened it; None if it did not lead.
    pub(crate) fn of(id: u64, vote: Option<Vote>, last: Option<LogId>) -> Option<Self> {
        let vote = vote.filter(|vote| vote.is_committed() && vote.leader_id.voted_for() == Some(id))?;
        Some(Self { term: vote.leader_id.term, entries: entries(last) })
    }
}

/// From the first one on.
fn entries(last: Option<LogId>) -> u64 {
    last.map_or(0, |last| last.index + 1)
}

/// How many entries a read waits for, of a leader for which openraft has named the last one.
fn awaited(read: Option<LogId>, resumed: Option<Resumed>) -> u64 {
    let of_term = |resumed: &Resumed| read.is_some_and(|read| read.leader_id.term == resumed.term);
    entries(read).max(resumed.filter(of_term).map_or(0, |resumed| resumed.entries))
}

type Answer = oneshot::Sender<Result<u64, Failure>>;

/// Reads of one replica.
#[derive(Clone)]
pub(crate) struct Reads {
    published: Arc<Published>,
    contact: Arc<Contact>,
    counting: Arc<Counting>,
    /// Rounds wherever the leader is, for readers of this replica.
    anywhere: mpsc::Sender<Answer>,
    /// Rounds of this replica as the leader, for others and itself.
    here: mpsc::Sender<Answer>,
}

/// What a round needs.
struct Rounds {
    id: u64,
    raft: Raft,
    peers: Arc<Peers>,
    here: mpsc::Sender<Answer>,
}

impl Reads {
    /// Starts the tasks of the rounds, which end with the last handle.
    pub(crate) fn start(
        id: u64,
        raft: Raft,
        resumed: Option<Resumed>,
        peers: Arc<Peers>,
        published: Arc<Published>,
        contact: Arc<Contact>,
        counting: Arc<Counting>,
    ) -> Self {
        let (anywhere, asking_anywhere) = mpsc::channel(MAX_WAITING);
        let (here, asking_here) = mpsc::channel(MAX_WAITING);
        let rounds = Rounds { id, raft: raft.clone(), peers, here: here.clone() };
        let counted = counting.clone();
        tokio::spawn(share(asking_anywhere, async move || rounds.anywhere().await));
        tokio::spawn(share(asking_here, async move || {
            add(&counted.read_rounds, 1);
            confirm(&raft, resumed).await
        }));
        Self { published, contact, counting, anywhere, here }
    }

    /// A state that holds every write that was acknowledged before this was called.
    pub(crate) async fn linearizable(&self) -> Result<Arc<State>, ReadError> {
        add(&self.counting.reads, 1);
        let deadline = Instant::now() + READ_DEADLINE;
        let mut reason = "there is no leader".to_owned();
        let read = async {
            loop {
                let attempt = tokio::time::timeout(ATTEMPT, ask(&self.anywhere)).await;
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

    /// How many entries must have been applied for a read to be linearizable, if this replica is the leader: a
    /// majority has confirmed that it is since this was called.
    pub(crate) async fn local_read_index(&self) -> Result<u64, Failure> {
        ask(&self.here).await
    }
}

impl Rounds {
    async fn anywhere(&self) -> Result<u64, Failure> {
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
            Some((id, _)) if id == self.id => ask(&self.here).await,
            Some((id, address)) => read_index(&self.peers, (id, &address)).await.map_err(|error| {
                Failure::Again(match error {
                    LeaderError::NotLeader => format!("replica {id} is not the leader any more"),
                    LeaderError::Unknown(reason) => format!("leader {id}: {reason}"),
                })
            }),
        }
    }
}

async fn confirm(raft: &Raft, resumed: Option<Resumed>) -> Result<u64, Failure> {
    match raft.get_read_log_id().await {
        Ok((read, _)) => Ok(awaited(read, resumed)),
        Err(RaftError::APIError(error)) => Err(Failure::Again(error.to_string())),
        Err(RaftError::Fatal(fatal)) => Err(Failure::Stopped(fatal.to_string())),
    }
}

async fn ask(rounds: &mpsc::Sender<Answer>) -> Result<u64, Failure> {
    let gone = || Failure::Stopped("it is shutting down".to_owned());
    let (answer, answered) = oneshot::channel();
    rounds.send(answer).await.map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

/// One round after the other, each for all that wait when it begins.
async fn share(mut asking: mpsc::Receiver<Answer>, round: impl AsyncFn() -> Result<u64, Failure>) {
    let mut waiting = Vec::new();
    while asking.recv_many(&mut waiting, MAX_WAITING).await > 0 {
        // A leader that has vanished must not keep the next round from asking its successor.
        let late = |_| Err(Failure::Again("the leader does not answer".to_owned()));
        let result = tokio::time::timeout(ATTEMPT, round()).await.unwrap_or_else(late);
        for answer in waiting.drain(..) {
            // Whoever has gone away does not want the answer.
            let _ = answer.send(result.clone());
        }
    }
}

/// Why there is no read index now.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    Again(String),
    Stopped(String),
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use openraft::testing::log_id;

    use super::*;

    #[test]
    fn a_leader_that_was_restarted_reads_behind_all_of_its_log_for_as_long_as_it_leads_on() {
        let led = Resumed::of(1, Some(Vote::new_committed(4, 1)), Some(log_id(4, 1, 70)));
        // The first entry of the term, and what was known to be committed before.
        assert_eq!(awaited(Some(log_id(4, 1, 60)), led), 71);
        assert_eq!(awaited(Some(log_id(4, 1, 75)), led), 76, "it has gone on since");
        assert_eq!(awaited(Some(log_id(6, 1, 65)), led), 66, "elected anew: what followed may be gone");
        assert_eq!(awaited(Some(log_id(4, 1, 60)), None), 61);
        assert_eq!(awaited(None, led), 0);
        for vote in [Vote::new_committed(4, 2), Vote::new(4, 1)] {
            assert_eq!(Resumed::of(1, Some(vote), Some(log_id(4, 1, 70))), None, "it did not lead: {vote}");
        }
    }

    #[tokio::test]
    async fn readers_that_wait_share_a_round_and_nobody_joins_one_that_has_begun() {
        let (asking, requests) = mpsc::channel(MAX_WAITING);
        let (let_go, held) = tokio::sync::watch::channel(0);
        let rounds = Arc::new(AtomicU64::new(0));
        let (counted, begun) = (rounds.clone(), tokio::sync::watch::Sender::new(0));
        let mut beginning = begun.subscribe();
        tokio::spawn(share(requests, async move || {
            let n = counted.fetch_add(1, Ordering::Relaxed) + 1;
            begun.send_replace(n);
            // Each round ends when it is let go.
            let _ = held.clone().wait_for(|round| *round >= n).await;
            Ok(n)
        }));
        let reader = |asking: mpsc::Sender<Answer>| tokio::spawn(async move { ask(&asking).await });
        let first = reader(asking.clone());
        beginning.wait_for(|n| *n == 1).await.expect("it runs");
        let others: Vec<_> = (0..50).map(|_| reader(asking.clone())).collect();
        // All of them wait before the first round ends.
        while asking.capacity() > MAX_WAITING - 50 {
            tokio::task::yield_now().await;
        }
        let_go.send_replace(9);
        assert!(matches!(first.await.expect("no panic"), Ok(1)));
        for other in others {
            assert!(matches!(other.await.expect("no panic"), Ok(2)), "the round began after it had asked");
        }
        assert_eq!(rounds.load(Ordering::Relaxed), 2);
    }
}
