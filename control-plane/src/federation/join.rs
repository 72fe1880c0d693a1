//! The side that shows the token.

use std::time::Duration;

use clustermesh::{
    token::{JoinToken, Purpose},
    trust,
};
use mesh_model::records::PeerRecord;
use mesh_store::Command;
use mesh_tls::{ALPN_H2, CertificateDer, client_config_pinned, fingerprint, grpc};
use tonic::Status;
use xds_proto::isthmus::{
    admin::v1::JoinResponse,
    federation::v1::{ClusterDescription, JoinRequest, federation_client::FederationClient},
};

use super::{DOOR_NAME, describe, own};
use crate::app::{App, read_status, write_status};

/// How long an answer waits for the peer's services to arrive.
const FIRST_IMPORT: Duration = Duration::from_secs(10);
/// How often it is looked at, besides when the state changes.
const LOOK: Duration = Duration::from_millis(100);
/// How long the other cluster may take for its part.
const ANSWER: Duration = Duration::from_secs(20);

/// Makes this cluster join the one that issued the token.
///
/// # Errors
/// The token, the connection, the other side's refusal, or a description that can't be accepted. Nothing has
/// changed here then.
pub async fn join(app: &App, text: &str) -> Result<JoinResponse, Status> {
    let token = JoinToken::decode(text).map_err(|e| Status::invalid_argument(format!("token: {e}")))?;
    token
        .check(Purpose::Peer, app.now_unix())
        .map_err(|e| Status::invalid_argument(format!("token: {e}")))?;
    let state = app.replica.linearizable().await.map_err(read_status)?;
    let cluster =
        state.cluster.as_ref().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
    if token.cluster == cluster.name {
        let sentence =
            format!("token: it is one of this cluster, {:?}, which cannot join itself", cluster.name);
        return Err(Status::invalid_argument(sentence));
    }
    let joined = ask(&token, text, describe(app)?).await?;
    let peer =
        trust::validate(Some(&joined), own(cluster), state.peers.values().map(AsRef::as_ref), app.now_unix())
            .map_err(|e| {
                Status::failed_precondition(format!("the cluster {:?} answers: {e}", token.cluster))
            })?;
    promised(&token, &peer)?;
    let name = peer.cluster.clone();
    let trust_domain = peer.trust_domain.to_string();
    let applied = app.replica.write(Command::PutPeer(peer)).await.map_err(write_status)?;
    let imported_services = first_import(app, &name).await;
    Ok(JoinResponse {
        peer_cluster: name,
        peer_trust_domain: trust_domain,
        revision: applied.revision,
        imported_services,
    })
}

/// Tries the doors of the token until one answers. A refusal is an answer: the token may be used up.
async fn ask(
    token: &JoinToken,
    text: &str,
    joining: ClusterDescription,
) -> Result<ClusterDescription, Status> {
    let internal = |e: mesh_tls::Error| Status::internal(e.to_string());
    let tls = client_config_pinned(token.root_sha256, &[ALPN_H2]).map_err(internal)?;
    let request = JoinRequest { token: text.trim().to_owned(), joining: Some(joining) };
    let mut reasons = Vec::new();
    for door in &token.doors {
        let channel = match grpc::connect(door, tls.clone(), DOOR_NAME).await {
            Ok(channel) => channel,
            Err(error) => {
                reasons.push(error.to_string());
                continue;
            }
        };
        let asking = async { FederationClient::new(channel).join(request.clone()).await };
        return match tokio::time::timeout(ANSWER, asking).await {
            Err(_) => Err(Status::deadline_exceeded(format!("{door} did not answer within {ANSWER:?}"))),
            Ok(Err(status)) => Err(Status::new(
                status.code(),
                format!("the cluster {:?} refuses: {}", token.cluster, status.message()),
            )),
            Ok(Ok(answer)) => answer
                .into_inner()
                .joined
                .ok_or_else(|| Status::failed_precondition(format!("{door} did not describe its cluster"))),
        };
    }
    Err(Status::unavailable(format!(
        "no door of the cluster {:?} can be reached: {}",
        token.cluster,
        reasons.join("; ")
    )))
}

/// The answer must be of the cluster that the token names, with the root that it pins.
fn promised(token: &JoinToken, peer: &PeerRecord) -> Result<(), Status> {
    let pinned = peer
        .roots
        .iter()
        .any(|root| fingerprint(&CertificateDer::from(root.as_slice())) == token.root_sha256);
    if peer.cluster == token.cluster && pinned {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the answer is of cluster {:?}, not of {:?} with the token's root",
        peer.cluster, token.cluster
    )))
}

/// The names of the peer's services, once its first offer is committed, or as many as there are in time.
async fn first_import(app: &App, peer: &str) -> Vec<String> {
    let mut changes = app.replica.changes();
    let arrived = async {
        loop {
            if app.replica.applied().peers.get(peer).is_some_and(|p| p.origin_revision > 0) {
                return;
            }
            // A peer that offers nothing changes nothing when it is heard first.
            let _ = tokio::time::timeout(LOOK, changes.changed()).await;
        }
    };
    // Late is fine: the services are imported when they come.
    let _ = tokio::time::timeout(FIRST_IMPORT, arrived).await;
    let state = app.replica.applied();
    state.peers.get(peer).map(|p| p.imports.keys().map(ToString::to_string).collect()).unwrap_or_default()
}
