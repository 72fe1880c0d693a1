//! The raft group follows the replica records of the state.
//!
//! Adding a replica is a write; what follows from it (learner, then voter once it has caught up) is done by
//! whoever leads, so that a leader that dies on the way leaves nothing half done.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mesh_store::State;
use openraft::{BasicNode, ChangeMembers, ServerState};

use super::{
    config::PROMOTION_LAG,
    contact::Roster,
    election::Elections,
    machine::Published,
    transfer::{Gate, hand_over, successor},
    types::Metrics,
};

/// How often the group is compared with the records, besides when they change.
const PERIOD: Duration = Duration::from_millis(300);
/// For one change of the group; a leader without a majority would wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// One step towards the group that the records describe.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddLearner(u64, String),
    Move(u64, String),
    Promote(u64),
    /// A voter becomes a learner. Learners that are not wanted go one step later.
    Demote(u64),
    RemoveLearner(u64),
    /// Two sets of voters decide together, because whoever began the change lost the lead, or its patience, before the
    /// second half: from now on the newer set decides alone.
    Settle,
    /// This replica is the one that is to stop voting: another one leads first.
    HandOver(u64, String),
}

/// Keeps the group as the records say, for as long as the replica runs.
pub(crate) async fn follow_records(elections: Elections, gate: Gate, published: Arc<Published>) {
    let mut metrics = elections.raft.metrics();
    let mut revisions = published.revisions();
    loop {
        let step = {
            let metrics = metrics.borrow_and_update();
            if metrics.running_state.is_err() {
                return;
            }
            let state = published.state();
            let roster = roster(&metrics, &state);
            let own = metrics.id;
            if roster.has_removed(own) {
                elections.contact.set_removed(&removed_sentence(own));
            }
            elections.contact.set_roster(roster);
            let reachable = |id| id == own || elections.peers.reachable(id);
            next_step(&metrics, &state, reachable)
        };
        if let Some(step) = step {
            tracing::info!(?step, "changing the raft group");
            match tokio::time::timeout(PATIENCE, take(&elections, &gate, &step)).await {
                Ok(Ok(())) => continue,
                Ok(Err(reason)) => tracing::warn!(?step, reason, "the raft group was not changed"),
                Err(_) => tracing::warn!(?step, "the raft group was not changed in time"),
            }
        }
        tokio::select! {
            _ = tokio::time::sleep(PERIOD) => {}
            changed = revisions.changed() => if changed.is_err() { return },
        }
    }
}

/// What a replica says that finds itself removed.
pub(crate) fn removed_sentence(id: u64) -> String {
    format!(
        "replica {id} was removed from the cluster: it takes no part any more; to use this machine again, empty \
         its data directory and join with a new token"
    )
}

/// Who belongs to the group: whoever is to, and whoever still does.
pub(crate) fn roster(metrics: &Metrics, state: &State) -> Roster {
    let members = metrics.membership_config.membership().nodes().map(|(id, _)| *id);
    Roster { members: members.chain(state.replicas.keys().copied()).collect(), last: state.cursors.replica }
}

fn next_step(metrics: &Metrics, state: &State, reachable: impl Fn(u64) -> bool) -> Option<Step> {
    // A leader that has not applied what came before it would follow records of the past.
    let applied_own = metrics.last_applied.is_some_and(|last| last.leader_id.term == metrics.current_term);
    if metrics.state != ServerState::Leader || !applied_own {
        return None;
    }
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    // Nothing else can be changed before that, and openraft does not do it by itself.
    if let [_, .., newer] = membership.get_joint_config().as_slice() {
        return if newer.contains(&metrics.id) {
            Some(Step::Settle)
        } else {
            make_way(metrics, newer.clone(), reachable)
        };
    }
    // Records that name nobody of the group (before the first one is written) are no reason to empty it.
    if !state.replicas.keys().any(|id| voters.contains(id)) {
        return None;
    }
    for (id, record) in &state.replicas {
        match membership.get_node(id) {
            None => return Some(Step::AddLearner(*id, record.address.clone())),
            Some(node) if node.addr != record.address => {
                return Some(Step::Move(*id, record.address.clone()));
            }
            Some(_) => {}
        }
    }
    let votes = |id: &u64| state.replicas.get(id).is_some_and(|record| !record.learner);
    // New voters before old ones go, so that a replacement never makes the group smaller on the way.
    let caught_up = |id: &u64| {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        reachable(*id) && matched.is_some_and(|matched| matched.index + PROMOTION_LAG >= last)
    };
    let ready = state.replicas.keys().find(|id| votes(id) && !voters.contains(id) && caught_up(id));
    if let Some(id) = ready {
        return Some(Step::Promote(*id));
    }
    // The leader last: it is needed for the others.
    let surplus = |id: &&u64| !votes(id) && leaves_quorum(&voters, **id, &reachable);
    if let Some(gone) = voters.iter().filter(|id| **id != metrics.id).find(surplus) {
        return Some(Step::Demote(*gone));
    }
    let gone = membership.nodes().map(|(id, _)| id);
    if let Some(gone) = gone.filter(|id| !voters.contains(id)).find(|id| !state.replicas.contains_key(*id)) {
        return Some(Step::RemoveLearner(*gone));
    }
    if voters.contains(&metrics.id) && !votes(&metrics.id) {
        return make_way(metrics, voters.iter().copied().filter(|id| votes(id)).collect(), reachable);
    }
    None
}

/// This replica leads, and is not to: one of those that stay does.
fn make_way(metrics: &Metrics, stay: BTreeSet<u64>, reachable: impl Fn(u64) -> bool) -> Option<Step> {
    let stay = Roster { members: stay, last: 0 };
    successor(metrics, &stay, reachable).map(|(id, address)| Step::HandOver(id, address))
}

/// Whether the voters that are left without `gone` have a majority that answers.
pub(crate) fn leaves_quorum(voters: &BTreeSet<u64>, gone: u64, reachable: impl Fn(u64) -> bool) -> bool {
    let left: Vec<u64> = voters.iter().copied().filter(|id| *id != gone).collect();
    left.iter().filter(|id| reachable(**id)).count() * 2 > left.len()
}

async fn take(elections: &Elections, gate: &Gate, step: &Step) -> Result<(), String> {
    let raft = &elections.raft;
    let node = |id: u64, address: &String| [(id, BasicNode::new(address))].into();
    let changed = match step {
        Step::AddLearner(id, address) => raft.add_learner(*id, BasicNode::new(address), false).await,
        Step::Move(id, address) => {
            raft.change_membership(ChangeMembers::SetNodes(node(*id, address)), true).await
        }
        Step::Promote(id) => raft.change_membership(ChangeMembers::AddVoterIds([*id].into()), true).await,
        Step::Demote(id) => raft.change_membership(ChangeMembers::RemoveVoters([*id].into()), true).await,
        Step::RemoveLearner(id) => {
            raft.change_membership(ChangeMembers::RemoveNodes([*id].into()), true).await
        }
        // Nobody is added: what is there already is the goal.
        Step::Settle => raft.change_membership(ChangeMembers::AddVoterIds(BTreeSet::new()), true).await,
        Step::HandOver(id, address) => return hand_over(elections, gate, (*id, address)).await,
    };
    changed.map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_model::records::ReplicaRecord;
    use openraft::{Membership, ServerState, StoredMembership, testing::log_id};

    use super::*;

    /// Replica 1 leads; `voters` and `learners` are in the group, all at `matched`.
    fn metrics(voters: &[u64], learners: &[u64], matched: u64) -> Metrics {
        let nodes: BTreeMap<u64, BasicNode> =
            voters.iter().chain(learners).map(|id| (*id, BasicNode::new(format!("h{id}:1")))).collect();
        let membership = Membership::new(vec![voters.iter().copied().collect()], nodes.clone());
        Metrics {
            state: ServerState::Leader,
            current_term: 3,
            last_log_index: Some(1_000),
            last_applied: Some(log_id(3, 1, 1_000)),
            membership_config: StoredMembership::new(Some(log_id(1, 1, 1)), membership).into(),
            replication: Some(nodes.keys().map(|id| (*id, Some(log_id(3, 1, matched)))).collect()),
            ..Metrics::new_initial(1)
        }
    }

    fn records(records: &[(u64, bool)]) -> State {
        let mut state = State::default();
        for (id, learner) in records {
            let record = ReplicaRecord { id: *id, address: format!("h{id}:1"), learner: *learner };
            state.replicas.insert(*id, record);
        }
        state
    }

    #[test]
    fn a_newcomer_learns_and_votes_once_it_has_caught_up_and_answers() {
        let state = records(&[(1, false), (2, false)]);
        assert_eq!(
            next_step(&metrics(&[1], &[], 1_000), &state, |_| true),
            Some(Step::AddLearner(2, "h2:1".to_owned()))
        );
        assert_eq!(next_step(&metrics(&[1], &[2], 900), &state, |_| true), None);
        assert_eq!(next_step(&metrics(&[1], &[2], 990), &state, |_| true), Some(Step::Promote(2)));
        assert_eq!(next_step(&metrics(&[1], &[2], 990), &state, |id| id == 1), None);
    }

    #[test]
    fn a_learner_stays_one_and_a_demoted_voter_becomes_one() {
        let state = records(&[(1, false), (2, true)]);
        assert_eq!(next_step(&metrics(&[1], &[2], 1_000), &state, |_| true), None);
        assert_eq!(next_step(&metrics(&[1, 2], &[], 1_000), &state, |_| true), Some(Step::Demote(2)));
    }

    #[test]
    fn who_is_removed_stops_voting_first_and_the_leader_goes_last() {
        let state = records(&[(2, false), (3, false)]);
        let step =
            |voters: &[u64], learners: &[u64]| next_step(&metrics(voters, learners, 1_000), &state, |_| true);
        assert_eq!(step(&[1, 2, 3, 4], &[]), Some(Step::Demote(4)));
        assert_eq!(step(&[1, 2, 3], &[4]), Some(Step::RemoveLearner(4)));
        assert_eq!(step(&[1, 2, 3], &[]), Some(Step::HandOver(2, "h2:1".to_owned())));
    }

    #[test]
    fn a_change_that_was_left_half_done_is_finished_first_and_by_one_that_stays() {
        // What the records say is no matter until then.
        let state = records(&[(1, false), (2, false), (3, false), (4, false)]);
        let step = |newer: &[u64]| {
            let whole = metrics(&[1, 2, 3], &[], 1_000);
            let before = whole.membership_config.membership();
            let configs = vec![[1, 2, 3].into(), newer.iter().copied().collect()];
            let nodes: BTreeMap<_, _> = before.nodes().map(|(id, node)| (*id, node.clone())).collect();
            let both = StoredMembership::new(Some(log_id(3, 1, 900)), Membership::new(configs, nodes));
            next_step(&Metrics { membership_config: both.into(), ..whole }, &state, |_| true)
        };
        assert_eq!(step(&[1, 2]), Some(Step::Settle));
        assert_eq!(step(&[2, 3]), Some(Step::HandOver(2, "h2:1".to_owned())));
    }

    #[test]
    fn nobody_is_taken_out_if_the_rest_were_no_majority_that_answers() {
        let state = records(&[(1, false), (2, false)]);
        assert_eq!(next_step(&metrics(&[1, 2, 3], &[], 1_000), &state, |id| id != 2), None);
        assert_eq!(
            next_step(&metrics(&[1, 2, 3], &[], 1_000), &state, |id| id != 3),
            Some(Step::Demote(3)),
            "the one that is down is the one that goes"
        );
        let voters: BTreeSet<u64> = [1, 2].into();
        assert!(leaves_quorum(&voters, 2, |id| id == 1) && !leaves_quorum(&voters, 1, |id| id == 1));
    }

    #[test]
    fn a_leader_waits_until_it_has_applied_what_came_before_it() {
        let state = records(&[(1, false), (2, false)]);
        let mut behind = metrics(&[1], &[], 1_000);
        behind.last_applied = Some(log_id(2, 1, 900));
        assert_eq!(next_step(&behind, &state, |_| true), None);
    }

    #[test]
    fn the_roster_has_whoever_is_to_be_a_member_and_whoever_still_is() {
        let mut state = records(&[(1, false), (4, false)]);
        state.cursors.replica = 5;
        let roster = roster(&metrics(&[1, 2], &[], 1_000), &state);
        assert_eq!(roster.members, [1, 2, 4].into());
        assert!(roster.has_removed(3) && !roster.has_removed(2) && !roster.has_removed(6));
    }
}
