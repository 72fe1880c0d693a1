//! `Status`: this replica's knowledge, and that of all replicas put together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::join_all;
use tonic::{Request, Status};
use xds_proto::isthmus::admin::v1::{
    CertificateStatus, DataPlaneStatus, Departure, NoQuorum, PeerStatus, StatusRequest, StatusResponse,
    admin_client::AdminClient,
};

use super::{absent, replicas};
use crate::{app::App, ca::unix, federation::liveness::Heard, xds::session::Protocol};

/// Metadata by which a replica asks another for its own part only, so that asking does not go in circles.
pub const LOCAL_ONLY: &str = "x-isthmus-local-only";
/// How long another replica may take to tell its part.
const ASK: Duration = Duration::from_secs(2);

/// What this replica knows by itself.
pub fn local(app: &App) -> StatusResponse {
    let state = app.replica.applied();
    let own = app.ca.replica();
    let view = app.replica.metrics();
    let now_ms = millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let mut objects: BTreeMap<String, u32> = BTreeMap::new();
    for key in state.objects.keys() {
        *objects.entry(key.kind.as_str().to_owned()).or_default() += 1;
    }
    let peers = state
        .peers
        .values()
        .map(|peer| {
            let heard = app.liveness.of(&peer.cluster, now_ms);
            PeerStatus {
                cluster: peer.cluster.clone(),
                trust_domain: peer.trust_domain.to_string(),
                state: heard.as_ref().map_or("stale", |h| h.state(now_ms)).to_owned(),
                origin_revision: peer.origin_revision,
                last_heard_unix_ms: heard.as_ref().map_or(0, |h| h.last_unix_ms),
                imported_services: u32::try_from(peer.imports.len()).unwrap_or(u32::MAX),
                peer_revision: heard.as_ref().map_or(0, |h| h.revision),
                lag_revisions: heard.as_ref().map_or(0, Heard::lag_revisions),
                lag_ms: heard.as_ref().map_or(0, |h| h.lag_ms(now_ms)),
                error: heard.map(|h| h.error).unwrap_or_default(),
            }
        })
        .collect();
    StatusResponse {
        cluster: own.cluster.clone(),
        trust_domain: own.trust_domain.to_string(),
        mesh_domain: state.cluster.as_ref().map(|c| c.mesh_domain.clone()).unwrap_or_default(),
        revision: state.revision,
        leader: view.leader.unwrap_or(0),
        answered_by: own.id,
        replicas: replicas::known(&state, &view),
        peers,
        data_planes: data_planes(app),
        certificates: certificates(app),
        objects: objects.into_iter().collect(),
        no_quorum: view.no_quorum.as_ref().map(no_quorum),
        raft_group: view.group.clone(),
        failure: view.failure.unwrap_or_default(),
        departures: departures(app),
        overflow: crate::overflow::in_effect(&state),
        oversized: app.views.model().map(|model| super::sizes::sentences(&model)).unwrap_or_default(),
    }
}

fn no_quorum(lost: &crate::raft::NoQuorum) -> NoQuorum {
    NoQuorum {
        reachable: u32::try_from(lost.reachable).unwrap_or(u32::MAX),
        voters: u32::try_from(lost.voters).unwrap_or(u32::MAX),
        since_unix_ms: unix(lost.since) * 1000,
        sentence: lost.to_string(),
    }
}

fn data_planes(app: &App) -> Vec<DataPlaneStatus> {
    let own = app.ca.replica().id;
    app.subscribers
        .list()
        .into_iter()
        .map(|subscriber| DataPlaneStatus {
            id: subscriber.id,
            kind: subscriber.kind.to_owned(),
            replica: own,
            sent_revision: subscriber.sent_revision,
            acked_revision: subscriber.acked_revision,
            nacked: subscriber.nacks,
            last_error: subscriber.last_error.unwrap_or_default(),
            connected_unix_ms: unix(subscriber.connected_at) * 1000,
            state: subscriber.health.as_str().to_owned(),
            lag_revisions: subscriber.lag_revisions,
            lag_ms: millis(subscriber.lag),
            silent_ms: millis(subscriber.silent),
            protocol: match subscriber.protocol {
                Protocol::Sotw => "sotw".to_owned(),
                Protocol::Delta => "delta".to_owned(),
            },
            since_unix_ms: 0,
        })
        .collect()
}

fn departures(app: &App) -> Vec<Departure> {
    let of = |(id, at): (Arc<str>, SystemTime)| Departure { id: id.to_string(), unix_ms: unix(at) * 1000 };
    app.subscribers.departures().into_iter().map(of).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn certificates(app: &App) -> Vec<CertificateStatus> {
    app.ca
        .certificates()
        .iter()
        .filter_map(|certificate| mesh_tls::certificate_info(certificate).ok())
        .map(|info| CertificateStatus {
            subject: info.subject,
            issuer: info.issuer,
            not_after_unix: info.not_after_unix,
        })
        .collect()
}

/// All replicas' knowledge. Linearizable if there is a quorum; otherwise `leader` is 0 and what follows is what
/// this replica had last.
pub async fn everywhere(app: &App) -> StatusResponse {
    let confirmed =
        tokio::time::timeout(ASK, app.replica.linearizable()).await.is_ok_and(|read| read.is_ok());
    let mut answer = local(app);
    if !confirmed {
        answer.leader = 0;
    }
    let mut unreachable = BTreeSet::new();
    for (id, other) in ask_others(app).await {
        match other {
            Ok(other) => merge(&mut answer, other),
            Err(error) => {
                tracing::debug!(replica = id, %error, "does not tell its status");
                unreachable.insert(id);
            }
        }
    }
    replicas::mark_reachable(&mut answer.replicas, answer.answered_by, &unreachable);
    let state = app.replica.applied();
    let nodes = state.nodes.keys().map(String::as_str);
    let departures = std::mem::take(&mut answer.departures);
    let absent = absent::agents(nodes, &answer.data_planes, &departures, &unreachable);
    answer.data_planes.extend(absent);
    answer.data_planes.sort_by(|a, b| (&a.id, a.replica).cmp(&(&b.id, b.replica)));
    // Every replica has the root.
    answer.certificates.sort_by(|a, b| {
        (&a.subject, &a.issuer, a.not_after_unix).cmp(&(&b.subject, &b.issuer, b.not_after_unix))
    });
    answer.certificates.dedup();
    answer
}

async fn ask_others(app: &App) -> Vec<(u64, Result<StatusResponse, Status>)> {
    let own = app.ca.replica().id;
    let state: Arc<_> = app.replica.applied();
    let others = state.replicas.values().filter(|replica| replica.id != own);
    join_all(others.map(|replica| async move { (replica.id, ask(app, &replica.address).await) })).await
}

async fn ask(app: &App, address: &str) -> Result<StatusResponse, Status> {
    let channel = app.replicas.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
    let mut request = Request::new(StatusRequest {});
    request.metadata_mut().insert(LOCAL_ONLY, tonic::metadata::MetadataValue::from_static("1"));
    let mut client = AdminClient::new(channel);
    match tokio::time::timeout(ASK, client.status(request)).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Status::deadline_exceeded(format!("{address} did not answer within {ASK:?}"))),
    }
}

/// Adds what only the other replica knows: its data planes, its certificates, when it heard a peer, and, if it
/// leads, how far the others are.
fn merge(answer: &mut StatusResponse, other: StatusResponse) {
    replicas::merge(&mut answer.replicas, &other);
    answer.data_planes.extend(other.data_planes);
    answer.certificates.extend(other.certificates);
    answer.departures.extend(other.departures);
    for theirs in other.peers {
        let ours = answer.peers.iter_mut().find(|peer| peer.cluster == theirs.cluster);
        if let Some(ours) = ours.filter(|ours| ours.last_heard_unix_ms < theirs.last_heard_unix_ms) {
            *ours = theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(state: &str, heard: u64) -> PeerStatus {
        PeerStatus {
            cluster: "east".to_owned(),
            state: state.to_owned(),
            last_heard_unix_ms: heard,
            ..Default::default()
        }
    }

    #[test]
    fn a_peer_is_as_alive_as_the_replica_that_heard_it_last_says() {
        let mut answer = StatusResponse { peers: vec![peer("disconnected", 0)], ..Default::default() };
        merge(&mut answer, StatusResponse { peers: vec![peer("connected", 9)], ..Default::default() });
        assert_eq!(answer.peers[0].state, "connected");
        merge(&mut answer, StatusResponse { peers: vec![peer("stale", 5)], ..Default::default() });
        assert_eq!(answer.peers[0].state, "connected");
    }
}
