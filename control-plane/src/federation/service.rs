//! The side that issued the token.

use std::sync::Arc;

use clustermesh::{token::Purpose, trust};
use mesh_store::{Command, TokenPurpose};
use tonic::{Request, Response, Status};
use xds_proto::isthmus::federation::v1::{
    ConfirmTrustRequest, ConfirmTrustResponse, JoinRequest, JoinResponse, federation_server::Federation,
};

use super::{describe, own};
use crate::{
    app::{App, read_status, write_status},
    authz::{Action, Caller},
    ca::{admission, trust as confirmations},
};

/// The service.
#[derive(Debug, Clone)]
pub struct FederationService(pub Arc<App>);

#[tonic::async_trait]
impl Federation for FederationService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let app = &self.0;
        app.admit(request.extensions(), Action::AcceptPeer)?;
        let request = request.into_inner();
        let token = admission::read(app, &request.token, Purpose::Peer)?;
        let state = app.replica.linearizable().await.map_err(read_status)?;
        let cluster =
            state.cluster.as_ref().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
        // Everything that can be wrong with the newcomer is found before the token is used.
        let peer = trust::validate(
            request.joining.as_ref(),
            own(cluster),
            state.peers.values().map(AsRef::as_ref),
            app.now_unix(),
        )
        .map_err(|e| Status::invalid_argument(format!("joining: {e}")))?;
        let bearer = format!("cluster {}", peer.cluster);
        admission::redeem(app, &token, TokenPurpose::Peer, bearer).await?;
        let (name, trust_domain) = (peer.cluster.clone(), peer.trust_domain.clone());
        let applied = app.replica.write(Command::PutPeer(peer)).await.map_err(write_status)?;
        tracing::info!(peer = name, %trust_domain, revision = applied.revision, "a cluster has joined");
        Ok(Response::new(JoinResponse { joined: Some(describe(app)?) }))
    }

    async fn confirm_trust(
        &self,
        request: Request<ConfirmTrustRequest>,
    ) -> Result<Response<ConfirmTrustResponse>, Status> {
        let caller = self.0.admit(request.extensions(), Action::ConfirmTrust)?;
        let Caller::Peer(domain) = caller else {
            return Err(Status::permission_denied(format!("{caller} is no peer")));
        };
        confirmations::peer_confirms(&self.0, &domain, &request.get_ref().roots_sha256).await?;
        Ok(Response::new(ConfirmTrustResponse {}))
    }
}
