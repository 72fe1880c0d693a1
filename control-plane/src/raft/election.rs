//! When this replica stands for election, and when it stops leading.
//!
//! openraft 0.9 has neither pre-vote nor CheckQuorum, and the leader itself has no lease against vote requests: a
//! replica that comes back from a partition with a higher term deposes a leader that everybody else hears. So its
//! own elections are switched off, and this decides instead:
//!
//! * a follower that hears no leader *asks* first whether it would be elected (Raft dissertation, section 9.6); its
//!   term goes up only once a majority has said yes, which nobody does who hears a leader;
//! * a leader that no majority answers for an election timeout steps down (section 6.2);
//! * whoever finds no majority at all says so, and writes and linearizable reads fail at once.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use openraft::{CommittedLeaderId, ServerState, raft::VoteRequest};
use tokio::time::Instant;

use super::{
    Timings,
    contact::{Contact, NoQuorum},
    network::{Peers, PreVote, PreVoted, pre_vote},
    types::{LogId, Metrics, Raft, Vote},
};

/// Nobody's id: a vote for it is a promise to nobody.
const NOBODY: u64 = 0;

/// What to do about leadership now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Nothing,
    /// The only voter needs nobody's word.
    Stand,
    /// Ask the others.
    Ask,
    /// No majority has answered for too long.
    StepDown,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
struct Look {
    state: ServerState,
    voter: bool,
    voters: usize,
    /// Since a leader was heard; on a leader, since a majority has answered.
    silence: Duration,
    /// For how long the leader's silence has been beyond the limit.
    silent_for: Duration,
}

fn next(look: Look, timings: &Timings, draw: Duration) -> Next {
    match look.state {
        ServerState::Shutdown => Next::Nothing,
        ServerState::Leader if look.voters < 2 => Next::Nothing,
        // Looked at twice: after a stall the first figure is as old as the stall.
        ServerState::Leader if look.silent_for > timings.heartbeat * 2 => Next::StepDown,
        ServerState::Leader => Next::Nothing,
        ServerState::Candidate | ServerState::Follower | ServerState::Learner => match look.voters {
            0 => Next::Nothing,
            1 if look.voter => Next::Stand,
            _ if look.silence > timings.election_max + draw => Next::Ask,
            _ => Next::Nothing,
        },
    }
}

/// How long a leader may go without a majority's answer: as long as the least patient follower waits for it.
fn leader_patience(timings: &Timings) -> Duration {
    timings.election_max + timings.election_min
}

/// Whether these are a majority of each configuration: during a change of the group there are two.
pub(super) fn is_majority(configurations: &[BTreeSet<u64>], ids: &BTreeSet<u64>) -> bool {
    !configurations.is_empty()
        && configurations.iter().all(|voters| voters.intersection(ids).count() * 2 > voters.len())
}

/// Everything that takes part in elections on one replica.
#[derive(Clone)]
pub(crate) struct Elections {
    pub(crate) id: u64,
    pub(crate) raft: Raft,
    pub(crate) peers: Arc<Peers>,
    pub(crate) contact: Arc<Contact>,
    pub(crate) timings: Timings,
}

impl Elections {
    /// Answers another replica that asks whether it would be elected.
    pub(crate) fn consider(&self, ask: &PreVote, now: Instant) -> PreVoted {
        let leader = self.leader(now);
        let last = self.raft.data_metrics().borrow().last_log;
        PreVoted { granted: leader.is_none() && ask.last >= last, leader }
    }

    /// The leader that this replica hears, or is.
    pub(crate) fn leader(&self, now: Instant) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.state == ServerState::Leader {
            return self.contact.no_quorum().is_none().then_some(self.id);
        }
        metrics.current_leader.filter(|_| self.contact.hears_leader(now, self.timings.election_max))
    }

    /// Gives leadership up at once, by a vote for nobody in the next term.
    pub(crate) async fn step_down(&self) -> Result<(), String> {
        let term = self.raft.metrics().borrow().current_term;
        // openraft compares it and keeps nothing of it.
        let newest = LogId::new(CommittedLeaderId::new(u64::MAX, NOBODY), u64::MAX);
        let request = VoteRequest { vote: Vote::new(term + 1, NOBODY), last_log_id: Some(newest) };
        match self.raft.vote(request).await {
            Ok(answer) if answer.vote_granted => Ok(()),
            Ok(_) => Err("it was elected a moment ago".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Asked by the leader to lead in its place: stands as soon as the others' lease for the old leader is over.
    pub(crate) async fn take_over(&self) {
        self.peers.stand_for_transfer(Instant::now() + self.timings.election_max);
        tokio::time::sleep(self.timings.lease() + self.timings.heartbeat / 4).await;
        if let Err(error) = self.raft.trigger().elect().await {
            tracing::warn!(%error, "can't stand for election");
        }
    }

    /// Keeps an eye on leadership for as long as the replica runs.
    pub(crate) async fn run(self) {
        let poll = (self.timings.heartbeat / 2).max(Duration::from_millis(5));
        let mut draw = self.draw();
        let mut not_before = Instant::now();
        let mut silent_since: Option<Instant> = None;
        let mut leading_since: Option<Instant> = None;
        loop {
            tokio::time::sleep(poll).await;
            let metrics = self.raft.metrics().borrow().clone();
            if metrics.running_state.is_err() {
                return;
            }
            let now = Instant::now();
            let leads = metrics.state == ServerState::Leader;
            leading_since = leads.then(|| leading_since.unwrap_or(now));
            if let Some(since) = leading_since {
                let answered = metrics.millis_since_quorum_ack.map(Duration::from_millis);
                let silence = answered.unwrap_or_else(|| now.saturating_duration_since(since));
                if silence <= leader_patience(&self.timings) || voters(&metrics).len() < 2 {
                    silent_since = None;
                    self.contact.heard(now.checked_sub(silence).unwrap_or(now));
                } else {
                    silent_since.get_or_insert(now);
                }
            } else {
                silent_since = None;
                if self.contact.hears_leader(now, self.timings.election_max) {
                    self.contact.set_quorum(None);
                }
            }
            let look = Look {
                state: metrics.state,
                voter: voters(&metrics).contains(&self.id),
                voters: voters(&metrics).len(),
                silence: self.contact.silence(now),
                silent_for: silent_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            };
            match next(look, &self.timings, draw) {
                Next::Nothing => {}
                Next::StepDown => {
                    tracing::warn!(
                        term = metrics.current_term,
                        "no majority answers: this replica leads no more"
                    );
                    self.contact.set_quorum(Some(self.lost(&metrics, &self.reachable(&metrics), now)));
                    if let Err(reason) = self.step_down().await {
                        tracing::warn!(reason, "could not step down");
                    }
                }
                Next::Stand if metrics.state != ServerState::Candidate => self.stand().await,
                Next::Ask if now >= not_before => {
                    let stood = self.ask(&metrics).await;
                    draw = self.draw();
                    let pause = if stood { draw } else { self.timings.heartbeat + draw / 4 };
                    not_before = Instant::now() + pause;
                }
                Next::Stand | Next::Ask => {}
            }
        }
    }

    /// One round of questions; whether this replica stood for election then.
    async fn ask(&self, metrics: &Metrics) -> bool {
        let last = self.raft.data_metrics().borrow().last_log;
        let question = PreVote { last };
        let membership = metrics.membership_config.membership();
        let others = membership.nodes().filter(|(id, _)| **id != self.id);
        let answers = others.map(|(id, node)| {
            let question = &question;
            async move {
                let asked = pre_vote(&self.peers, (*id, &node.addr), question);
                let answer = tokio::time::timeout(self.timings.election_min, asked).await;
                (*id, answer.ok().and_then(Result::ok))
            }
        });
        let mut reached = BTreeSet::from([self.id]);
        let mut granted = BTreeSet::from([self.id]);
        for (id, answer) in join_all(answers).await {
            let Some(answer) = answer else { continue };
            reached.insert(id);
            if answer.granted {
                granted.insert(id);
            }
        }
        let now = Instant::now();
        if self.contact.hears_leader(now, self.timings.election_max) {
            return false;
        }
        let configurations = membership.get_joint_config();
        let lost = !is_majority(configurations, &reached);
        self.contact.set_quorum(lost.then(|| self.lost(metrics, &reached, now)));
        let stand = voters(metrics).contains(&self.id) && is_majority(configurations, &granted);
        if stand {
            self.stand().await;
        }
        stand
    }

    async fn stand(&self) {
        tracing::info!("standing for election");
        // Fails only if raft has stopped, which ends this too.
        let _ = self.raft.trigger().elect().await;
    }

    fn lost(&self, metrics: &Metrics, reached: &BTreeSet<u64>, now: Instant) -> NoQuorum {
        let voters = voters(metrics);
        NoQuorum {
            reachable: voters.intersection(reached).count(),
            voters: voters.len(),
            since: SystemTime::now().checked_sub(self.contact.silence(now)).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    /// On a leader that no majority answers any more: who has answered since.
    fn reachable(&self, metrics: &Metrics) -> BTreeSet<u64> {
        let patience = leader_patience(&self.timings);
        let answers = |id: &u64| self.peers.answered_within(*id, patience);
        let others = voters(metrics).into_iter().filter(|id| *id != self.id && answers(id));
        // An answer to what was asked before may have come since; a majority of them is none.
        let most = voters(metrics).len().saturating_sub(1) / 2;
        std::iter::once(self.id).chain(others.take(most.saturating_sub(1))).collect()
    }

    fn draw(&self) -> Duration {
        let spread = self.timings.election_max.saturating_sub(self.timings.election_min);
        self.timings.election_min + spread.mul_f64(rand::random::<f64>())
    }
}

fn voters(metrics: &Metrics) -> BTreeSet<u64> {
    metrics.membership_config.membership().voter_ids().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(state: ServerState, voter: bool, voters: usize, silence_ms: u64, silent_for_ms: u64) -> Look {
        Look {
            state,
            voter,
            voters,
            silence: Duration::from_millis(silence_ms),
            silent_for: Duration::from_millis(silent_for_ms),
        }
    }

    #[test]
    fn a_follower_asks_only_after_the_lease_and_its_own_draw() {
        let (timings, draw) = (Timings::default(), Duration::from_millis(500));
        let follower = |silence| next(look(ServerState::Follower, true, 3, silence, 0), &timings, draw);
        assert_eq!((follower(1_200), follower(1_201)), (Next::Nothing, Next::Ask));
        let candidate = look(ServerState::Candidate, true, 3, 9_000, 0);
        assert_eq!(next(candidate, &timings, draw), Next::Ask, "a failed election is repeated");
        let learner = look(ServerState::Learner, false, 3, 9_000, 0);
        assert_eq!(next(learner, &timings, draw), Next::Ask, "a learner wants to know what is wrong");
        let stranger = look(ServerState::Learner, false, 0, 9_000, 0);
        assert_eq!(next(stranger, &timings, draw), Next::Nothing, "whoever knows no group waits");
    }

    #[test]
    fn the_only_voter_stands_at_once_and_never_steps_down() {
        let timings = Timings::default();
        let alone = look(ServerState::Follower, true, 1, 0, 0);
        assert_eq!(next(alone, &timings, Duration::ZERO), Next::Stand);
        let leader = look(ServerState::Leader, true, 1, 9_000, 9_000);
        assert_eq!(next(leader, &timings, Duration::ZERO), Next::Nothing);
        let beside = look(ServerState::Learner, false, 1, 0, 0);
        assert_eq!(next(beside, &timings, Duration::ZERO), Next::Nothing, "a learner never stands");
    }

    #[test]
    fn a_leader_that_nobody_answers_steps_down_once_it_has_looked_twice() {
        let timings = Timings::default();
        let leader = |silent_for| {
            next(look(ServerState::Leader, true, 3, 9_000, silent_for), &timings, Duration::ZERO)
        };
        assert_eq!((leader(0), leader(400), leader(401)), (Next::Nothing, Next::Nothing, Next::StepDown));
    }

    #[test]
    fn a_majority_is_one_of_every_configuration() {
        let of = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        assert!(is_majority(&[of(&[1, 2, 3])], &of(&[1, 3, 9])));
        assert!(!is_majority(&[of(&[1, 2, 3, 4])], &of(&[1, 2])));
        assert!(!is_majority(&[of(&[1, 2, 3]), of(&[3, 4, 5])], &of(&[1, 2, 3])));
        assert!(is_majority(&[of(&[1, 2, 3]), of(&[3, 4, 5])], &of(&[1, 3, 4])));
        assert!(!is_majority(&[], &of(&[1])), "no group, no majority");
    }
}
