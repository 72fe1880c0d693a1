//! The raft group follows the replica records of the state.
//!
//! Adding a replica is a write; what follows from it (learner, then voter once it has caught up) is done by
//! whoever leads, so that a leader that dies on the way leaves nothing half done.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mesh_store::State;
use openraft::{BasicNode, ChangeMembers, ServerState};

use super::{
    config::PROMOTION_LAG,
    machine::Published,
    types::{Metrics, Raft},
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
    /// Voters first: learners that are left over go one step later.
    RemoveVoter(u64),
    RemoveLearner(u64),
}

/// Keeps the group as the records say, for as long as the replica runs.
pub(crate) async fn follow_records(raft: Raft, published: Arc<Published>) {
    let mut metrics = raft.metrics();
    let mut revisions = published.revisions();
    loop {
        let step = {
            let metrics = metrics.borrow_and_update();
            if metrics.running_state.is_err() {
                return;
            }
            next_step(&metrics, &published.state())
        };
        if let Some(step) = step {
            tracing::info!(?step, "changing the raft group");
            match tokio::time::timeout(PATIENCE, take(&raft, &step)).await {
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

fn next_step(metrics: &Metrics, state: &State) -> Option<Step> {
    if metrics.state != ServerState::Leader {
        return None;
    }
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    // Records that name nobody of the group (before the first one is written) are no reason to empty it.
    if membership.get_joint_config().len() > 1 || !state.replicas.keys().any(|id| voters.contains(id)) {
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
    if let Some(gone) = voters.iter().find(|id| !state.replicas.contains_key(*id)) {
        return Some(Step::RemoveVoter(*gone));
    }
    if let Some((gone, _)) = membership.nodes().find(|(id, _)| !state.replicas.contains_key(*id)) {
        return Some(Step::RemoveLearner(*gone));
    }
    let caught_up = |id: &u64| {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        matched.is_some_and(|matched| matched.index + PROMOTION_LAG >= last)
    };
    state.replicas.keys().find(|id| !voters.contains(id) && caught_up(id)).map(|id| Step::Promote(*id))
}

async fn take(raft: &Raft, step: &Step) -> Result<(), String> {
    let node = |id: u64, address: &String| [(id, BasicNode::new(address))].into();
    let changed = match step {
        Step::AddLearner(id, address) => raft.add_learner(*id, BasicNode::new(address), false).await,
        Step::Move(id, address) => {
            raft.change_membership(ChangeMembers::SetNodes(node(*id, address)), true).await
        }
        Step::Promote(id) => raft.change_membership(ChangeMembers::AddVoterIds([*id].into()), true).await,
        Step::RemoveVoter(id) => {
            raft.change_membership(ChangeMembers::RemoveVoters([*id].into()), true).await
        }
        Step::RemoveLearner(id) => {
            raft.change_membership(ChangeMembers::RemoveNodes([*id].into()), true).await
        }
    };
    changed.map(drop).map_err(|error| error.to_string())
}
