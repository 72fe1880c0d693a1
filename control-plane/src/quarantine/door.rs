//! The local socket of a replica in quarantine: `status` is answered, `rejoin` is taken, everything else is refused
//! with the reason.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_tls::grpc;
use tokio::net::UnixListener;
use tonic::{
    Extensions, Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};
use xds_proto::isthmus::admin::v1::{
    BackupChunk, BackupRequest, RejoinRequest, RejoinResponse, ReplaceRequest, ReplaceResponse,
    ReplicaStatus, StatusRequest, StatusResponse,
    recovery_server::{Recovery, RecoveryServer},
};

use super::Quarantined;
use crate::{
    authz::{self, Action},
    doors,
};

/// How long `rejoin` waits for the others.
const PATIENCE: Duration = Duration::from_secs(25);

/// Serves until `stop` resolves and every answer is given.
pub(super) async fn serve(
    shared: Arc<Quarantined>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(AdminDoor(shared.clone()))
        .add_service(RecoveryServer::new(RecoveryDoor(shared)))
        .serve_with_incoming_shutdown(grpc::incoming_unix(listener), stop)
        .await
}

fn admit(shared: &Quarantined, extensions: &Extensions, action: Action) -> Result<(), Status> {
    authz::check(&doors::caller(extensions, &shared.trust_domain, |_| false), action)
}

/// `isthmus.admin.v1.Admin`, by the path of the request: whatever methods it will have, all but one are refused.
#[derive(Clone)]
struct AdminDoor(Arc<Quarantined>);

impl NamedService for AdminDoor {
    const NAME: &'static str = "isthmus.admin.v1.Admin";
}

impl Service<http::Request<Body>> for AdminDoor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != "/isthmus.admin.v1.Admin/Status" {
                return Ok(Status::failed_precondition(shared.sentence()).into_http());
            }
            let mut grpc = Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.unary(StatusMethod(shared), request).await)
        })
    }
}

struct StatusMethod(Arc<Quarantined>);

impl UnaryService<StatusRequest> for StatusMethod {
    type Response = StatusResponse;
    type Future = BoxFuture<Response<StatusResponse>, Status>;

    fn call(&mut self, request: Request<StatusRequest>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            admit(&shared, request.extensions(), Action::Status)?;
            let own = ReplicaStatus {
                id: shared.id,
                address: shared.address.clone(),
                role: "damaged".to_owned(),
                ..Default::default()
            };
            Ok(Response::new(StatusResponse {
                cluster: shared.cluster.clone(),
                trust_domain: shared.trust_domain.to_string(),
                answered_by: shared.id,
                replicas: vec![own],
                failure: shared.sentence(),
                ..Default::default()
            }))
        })
    }
}

struct RecoveryDoor(Arc<Quarantined>);

#[tonic::async_trait]
impl Recovery for RecoveryDoor {
    type BackupStream = Pin<Box<dyn futures::Stream<Item = Result<BackupChunk, Status>> + Send + 'static>>;

    async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        Err(Status::failed_precondition(self.0.sentence()))
    }

    async fn replace(&self, _: Request<ReplaceRequest>) -> Result<Response<ReplaceResponse>, Status> {
        Err(Status::failed_precondition(self.0.sentence()))
    }

    async fn rejoin(&self, request: Request<RejoinRequest>) -> Result<Response<RejoinResponse>, Status> {
        let shared = &self.0;
        admit(shared, request.extensions(), Action::Backup)?;
        let mut left = shared.left.subscribe();
        shared.asked.notify_one();
        match tokio::time::timeout(PATIENCE, left.wait_for(Option::is_some)).await {
            Ok(Ok(left)) => Ok(Response::new(left.clone().unwrap_or_default())),
            _ => Err(Status::failed_precondition(shared.sentence())),
        }
    }
}
