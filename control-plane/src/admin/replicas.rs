//! The replicas of this cluster: who they are, how far each is, and changes of the group.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_store::State;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::admin::v1::{
    ChangeReplicaResponse, RemoveReplicaRequest, ReplicaStatus, SetReplicaRoleRequest, StatusResponse,
    replicas_server::Replicas,
};

use super::status;
use crate::{
    app::{App, read_status, write_status},
    authz::Action,
    raft::{ReplicaView, Role},
};

/// The service.
#[derive(Debug, Clone)]
pub struct ReplicasService(pub Arc<App>);

#[tonic::async_trait]
impl Replicas for ReplicasService {
    async fn remove(
        &self,
        request: Request<RemoveReplicaRequest>,
    ) -> Result<Response<ChangeReplicaResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::ManageReplicas)?;
        let id = request.get_ref().id;
        exists(&*app.replica.linearizable().await.map_err(read_status)?, id)?;
        let all = status::everywhere(app).await.replicas;
        if let Some(refusal) = would_lose_quorum(&all, id) {
            return Err(Status::failed_precondition(refusal));
        }
        let applied = app.replica.remove_replica(id).await.map_err(write_status)?;
        tracing::info!(%caller, replica = id, revision = applied.revision, "a replica is to be removed");
        Ok(Response::new(ChangeReplicaResponse { revision: applied.revision }))
    }

    async fn set_role(
        &self,
        request: Request<SetReplicaRoleRequest>,
    ) -> Result<Response<ChangeReplicaResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::ManageReplicas)?;
        let SetReplicaRoleRequest { id, learner } = *request.get_ref();
        exists(&*app.replica.linearizable().await.map_err(read_status)?, id)?;
        let all = status::everywhere(app).await.replicas;
        if learner && let Some(refusal) = would_lose_quorum(&all, id) {
            return Err(Status::failed_precondition(refusal));
        }
        if let Some(down) = all.iter().find(|replica| replica.id == id && !replica.reachable && !learner) {
            return Err(Status::failed_precondition(format!(
                "replica {id} at {} does not answer: start it, then promote it",
                down.address
            )));
        }
        let applied = app.replica.set_role(id, learner).await.map_err(write_status)?;
        tracing::info!(%caller, replica = id, learner, revision = applied.revision, "a replica's role was changed");
        Ok(Response::new(ChangeReplicaResponse { revision: applied.revision }))
    }
}

fn exists(state: &State, id: u64) -> Result<(), Status> {
    match state.replicas.contains_key(&id) {
        true => Ok(()),
        false if id <= state.cursors.replica => Err(Status::not_found(format!("replica {id} was removed"))),
        false => Err(Status::not_found(format!("there is no replica {id}"))),
    }
}

/// Whether the voters that are left without one would be no majority that answers.
fn would_lose_quorum(all: &[ReplicaStatus], gone: u64) -> Option<String> {
    let left: Vec<&ReplicaStatus> =
        all.iter().filter(|replica| replica.voter && replica.id != gone).collect();
    let silent: Vec<String> =
        left.iter().filter(|replica| !replica.reachable).map(|replica| replica.id.to_string()).collect();
    let votes = all.iter().any(|replica| replica.id == gone && replica.voter);
    if !votes || left.is_empty() || (left.len() - silent.len()) * 2 > left.len() {
        return None;
    }
    Some(format!(
        "without replica {gone} there would be no quorum: of the {} voters that are left, {} does not answer; start \
         it or remove it first",
        left.len(),
        silent.join(", ")
    ))
}

/// The replicas as this one knows them: the group's members, and whoever the records name.
pub(super) fn known(state: &State, view: &ReplicaView) -> Vec<ReplicaStatus> {
    let mut all: BTreeMap<u64, ReplicaStatus> = view
        .members
        .iter()
        .map(|member| {
            let status = ReplicaStatus {
                id: member.id,
                address: member.address.clone(),
                role: member.role.as_str().to_owned(),
                matched: member.matched.unwrap_or(0),
                lag: member.lag.unwrap_or(0),
                lag_known: view.role == Role::Leader && member.lag.is_some(),
                reachable: member.reachable.unwrap_or(false),
                voter: member.voter,
                leaving: !state.replicas.contains_key(&member.id),
                ..ReplicaStatus::default()
            };
            (member.id, status)
        })
        .collect();
    for (id, record) in &state.replicas {
        all.entry(*id).or_insert_with(|| ReplicaStatus {
            id: *id,
            address: record.address.clone(),
            role: "new".to_owned(),
            ..ReplicaStatus::default()
        });
    }
    if let Some(own) = all.get_mut(&view.id) {
        own.reachable = true;
        own.matched = view.last_log_index.unwrap_or(0);
        own.applied = view.applied_index.unwrap_or(0);
        own.revision = state.revision;
        env!("CARGO_PKG_VERSION").clone_into(&mut own.version);
    }
    all.into_values().collect()
}

/// Adds what another replica knows: of itself, and of all, if it leads.
pub(super) fn merge(ours: &mut Vec<ReplicaStatus>, other: &StatusResponse) {
    if other.leader == other.answered_by && other.no_quorum.is_none() {
        let before: BTreeMap<u64, ReplicaStatus> =
            ours.drain(..).map(|replica| (replica.id, replica)).collect();
        *ours = other.replicas.clone();
        for replica in ours.iter_mut() {
            let Some(known) = before.get(&replica.id) else { continue };
            replica.reachable = known.reachable;
            if known.applied > 0 && replica.applied == 0 {
                replica.applied = known.applied;
                replica.revision = known.revision;
                replica.version.clone_from(&known.version);
            }
        }
    }
    let own = other.replicas.iter().find(|replica| replica.id == other.answered_by);
    let entry = ours.iter_mut().find(|replica| replica.id == other.answered_by);
    let (Some(own), Some(entry)) = (own, entry) else { return };
    entry.reachable = true;
    entry.applied = own.applied;
    entry.revision = own.revision;
    entry.version.clone_from(&own.version);
    if !entry.lag_known {
        entry.matched = own.matched;
    }
}

/// Sets who answered, once all were asked.
pub(super) fn mark_reachable(replicas: &mut [ReplicaStatus], own: u64, silent: &BTreeSet<u64>) {
    for replica in replicas {
        replica.reachable = replica.id == own || (replica.reachable && !silent.contains(&replica.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(id: u64, voter: bool, reachable: bool) -> ReplicaStatus {
        ReplicaStatus { id, voter, reachable, address: format!("h{id}:1"), ..Default::default() }
    }

    #[test]
    fn a_live_voter_is_not_removed_while_the_others_are_down() {
        let one_down = [replica(1, true, true), replica(2, true, true), replica(3, true, false)];
        let refusal = would_lose_quorum(&one_down, 2).unwrap();
        assert!(refusal.contains("without replica 2") && refusal.contains("3 does not answer"), "{refusal}");
        assert_eq!(would_lose_quorum(&one_down, 3), None, "the one that is down may go");
        let learner = [replica(1, true, true), replica(2, true, false), replica(4, false, true)];
        assert_eq!(would_lose_quorum(&learner, 4), None, "a learner is no loss");
        assert_eq!(would_lose_quorum(&one_down, 9), None, "whoever is unknown is refused elsewhere");
    }

    #[test]
    fn the_leader_tells_how_far_all_are_and_each_what_it_has_applied() {
        let with_lag = |id, lag| ReplicaStatus { lag, lag_known: true, ..replica(id, true, false) };
        let applied = |id, applied| ReplicaStatus { applied, revision: applied, ..replica(id, true, true) };
        let mut ours = vec![replica(1, true, false), applied(2, 70), replica(3, true, false)];
        let leader = StatusResponse {
            leader: 1,
            answered_by: 1,
            replicas: vec![ReplicaStatus { applied: 75, ..with_lag(1, 0) }, with_lag(2, 5), with_lag(3, 40)],
            ..Default::default()
        };
        merge(&mut ours, &leader);
        let seen: Vec<_> = ours.iter().map(|r| (r.lag, r.applied, r.reachable)).collect();
        assert_eq!(seen, [(0, 75, true), (5, 70, true), (40, 0, false)]);
        let follower = StatusResponse {
            leader: 1,
            answered_by: 3,
            replicas: vec![applied(3, 35)],
            ..Default::default()
        };
        merge(&mut ours, &follower);
        assert_eq!((ours[2].lag, ours[2].applied, ours[2].reachable), (40, 35, true));
        mark_reachable(&mut ours, 2, &[1].into());
        assert_eq!(ours.iter().map(|r| r.reachable).collect::<Vec<_>>(), [false, true, true]);
    }
}
