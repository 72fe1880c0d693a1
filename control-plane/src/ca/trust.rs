//! Who trusts and shows what by now: nodes report it, peers confirm it, and this cluster confirms it to its peers. A
//! rotation of a root waits for these.

use std::{collections::BTreeMap, time::Duration};

use mesh_model::{identity::TrustDomain, records::PeerRecord};
use mesh_store::{AuthorityCommand, Command, Confirmation, Member, State, fingerprint_of};
use mesh_tls::{ALPN_H2, PeerPolicy, client_config, grpc};
use tonic::Status;
use xds_proto::isthmus::{
    bootstrap::v1::ReportTrustRequest,
    federation::v1::{ConfirmTrustRequest, federation_client::FederationClient},
};

use crate::{
    app::{App, read_status, write_status},
    federation::DOOR_NAME,
};

/// How long a peer may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A node tells what it and the data planes on it trust and show.
///
/// # Errors
/// It claims what there is not, or no quorum.
pub async fn node_reports(app: &App, node: String, report: ReportTrustRequest) -> Result<(), Status> {
    let state = app.replica.applied();
    if report.generation > state.authority.generation {
        // It was told by a replica that is ahead of this one.
        return Err(Status::unavailable(format!(
            "generation: {} is not known here yet, {} is",
            report.generation, state.authority.generation
        )));
    }
    if !report.root_sha256.is_empty() && !state.authority.roots.contains_key(&report.root_sha256) {
        let shown: String = report.root_sha256.chars().take(64).collect();
        return Err(Status::invalid_argument(format!("root_sha256: {shown:?} is no root of this cluster")));
    }
    let confirmation = Confirmation { generation: report.generation, under: report.root_sha256 };
    confirm(app, &state, Member::Node(node), confirmation).await
}

/// A peer tells that all its data planes trust these roots of ours.
///
/// # Errors
/// No peer of this trust domain, or no quorum.
pub async fn peer_confirms(app: &App, domain: &TrustDomain, roots: &[String]) -> Result<(), Status> {
    let state = app.replica.linearizable().await.map_err(read_status)?;
    let peer = state.peers.values().find(|peer| &peer.trust_domain == domain);
    let peer = peer.ok_or_else(|| Status::permission_denied(format!("{domain} is no peer")))?;
    let Some(cluster) = &state.cluster else { return Ok(()) };
    if !cluster.roots.iter().all(|der| roots.contains(&fingerprint_of(der))) {
        return Ok(());
    }
    let confirmation = Confirmation { generation: cluster.trust.generation, under: String::new() };
    confirm(app, &state, Member::Peer(peer.cluster.clone()), confirmation).await
}

async fn confirm(app: &App, state: &State, member: Member, confirmation: Confirmation) -> Result<(), Status> {
    if state.authority.confirmation(&member) == Some(&confirmation) {
        return Ok(());
    }
    let command = AuthorityCommand::Confirm { member, confirmation };
    app.replica.write(Command::Authority(command)).await.map(drop).map_err(write_status)
}

/// Peers whose roots everybody here trusts by now, and that were not told so yet. PURE.
pub fn to_confirm<'a>(state: &'a State, told: &BTreeMap<String, u64>) -> Vec<&'a PeerRecord> {
    let authority = &state.authority;
    let oldest = |mut generations: Box<dyn Iterator<Item = Option<u64>> + '_>| {
        generations.try_fold(u64::MAX, |least, generation| Some(least.min(generation?)))
    };
    let of = |confirmation: Option<&Confirmation>| confirmation.map(|c| c.generation);
    let replicas = oldest(Box::new(state.replicas.keys().map(|id| of(authority.confirmed_replicas.get(id)))));
    let nodes = oldest(Box::new(state.nodes.keys().map(|name| of(authority.confirmed_nodes.get(name)))));
    let (Some(replicas), Some(nodes)) = (replicas, nodes) else { return Vec::new() };
    let everybody = replicas.min(nodes);
    let due = |peer: &&'a PeerRecord| {
        let generation = peer.trust.generation;
        generation <= everybody && told.get(&peer.cluster) != Some(&generation)
    };
    state.peers.values().map(AsRef::as_ref).filter(due).collect()
}

/// Tells a peer at the first of its doors that answers.
///
/// # Errors
/// No door answers, or the peer refuses.
pub async fn tell(app: &App, peer: &PeerRecord) -> Result<(), String> {
    let policy = PeerPolicy::Replicas(peer.trust_domain.clone());
    let tls = client_config(Some(app.ca.own().clone()), app.bundles.clone(), policy, &[ALPN_H2])
        .map_err(|error| error.to_string())?;
    let request =
        ConfirmTrustRequest { roots_sha256: peer.roots.iter().map(|der| fingerprint_of(der)).collect() };
    let mut last = "it has no door".to_owned();
    for door in &peer.doors {
        let asking = async {
            let channel = grpc::connect(door, tls.clone(), DOOR_NAME).await.map_err(|e| e.to_string())?;
            let answer = FederationClient::new(channel).confirm_trust(request.clone()).await;
            answer.map(drop).map_err(|status| status.message().to_owned())
        };
        match tokio::time::timeout(ANSWER, asking).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => last = reason,
            Err(_) => last = format!("{door} did not answer within {ANSWER:?}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::records::{DomainTrust, NodeRecord, ReplicaRecord};

    #[test]
    fn a_peer_is_told_once_and_only_when_every_replica_and_node_trusts_its_roots() {
        let mut state = State::default();
        let peer = PeerRecord {
            cluster: "east".into(),
            trust_domain: TrustDomain::parse("east.example").unwrap(),
            mesh_domain: "mesh.local".into(),
            roots: vec![],
            trust: DomainTrust { generation: 5, ..Default::default() },
            doors: vec![],
            gateways: vec![],
            origin_revision: 0,
            imports: Default::default(),
        };
        state.peers.insert("east".into(), peer.into());
        state.replicas.insert(1, ReplicaRecord { id: 1, address: "10.0.0.1:1".into(), learner: false });
        let node = NodeRecord {
            name: "n1".into(),
            address: [10, 0, 0, 2].into(),
            address6: None,
            pod_cidr: "10.1.0.0/24".parse().unwrap(),
            registration: 1,
            facts: Default::default(),
        };
        state.nodes.insert("n1".into(), node.into());
        let at = |generation| Confirmation { generation, under: String::new() };
        let mut told = BTreeMap::new();
        let due = |state: &State, told: &BTreeMap<String, u64>| to_confirm(state, told).len();
        assert_eq!(due(&state, &told), 0);
        state.authority.confirmed_replicas.insert(1, at(9));
        assert_eq!(due(&state, &told), 0, "the node has told nothing");
        state.authority.confirmed_nodes.insert("n1".into(), at(4));
        assert_eq!(due(&state, &told), 0, "the node is behind");
        state.authority.confirmed_nodes.insert("n1".into(), at(5));
        assert_eq!(due(&state, &told), 1);
        told.insert("east".into(), 5);
        assert_eq!(due(&state, &told), 0);
    }
}
