//! Certificates for nodes and for the workloads that run on them.

use std::{sync::Arc, time::SystemTime};

use mesh_model::{
    identity::SpiffeId,
    resource::{Kind, NamespacedName, Object, ObjectKey},
};
use mesh_store::{AuthorityCommand, Command, State};
use mesh_tls::jwt;
use tonic::{Request, Response, Status};
use xds_proto::isthmus::bootstrap::v1::{
    RenewNodeRequest, RenewNodeResponse, ReportTrustRequest, ReportTrustResponse, SignJwtRequest,
    SignJwtResponse, SignWorkloadRequest, SignWorkloadResponse, certificates_server::Certificates,
};

use super::{CaError, jwt::SignError, trust};
use crate::{
    app::{App, read_status, write_status},
    authz::Action,
};

/// The service.
#[derive(Debug, Clone)]
pub struct CertificatesService(pub Arc<App>);

#[tonic::async_trait]
impl Certificates for CertificatesService {
    async fn sign_workload(
        &self,
        request: Request<SignWorkloadRequest>,
    ) -> Result<Response<SignWorkloadResponse>, Status> {
        let node = self.0.admit_node(request.extensions(), Action::SignWorkload)?;
        let request_registration = shown_registration(request.extensions());
        let request = request.into_inner();
        let workload = NamespacedName::new(request.namespace, request.workload);
        // Linearizable: the binding may have been written by another replica a moment ago.
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        let id = identity_on(&state, &workload, &node)?;
        still_registered(&state, request_registration, &node)?;
        let life = self.0.config.workload_certificate_life;
        let registration = state.nodes.get(&node).map_or(0, |node| node.registration);
        let chain =
            self.0.ca.sign(&request.csr, &id, registration, life, SystemTime::now()).map_err(ca_status)?;
        self.0.gate.has_signed("workload");
        tracing::info!(%workload, %node, %id, "signed a workload certificate");
        Ok(Response::new(SignWorkloadResponse { chain }))
    }

    async fn sign_jwt(&self, request: Request<SignJwtRequest>) -> Result<Response<SignJwtResponse>, Status> {
        let app = &self.0;
        let node = app.admit_node(request.extensions(), Action::SignWorkload)?;
        let registration = shown_registration(request.extensions());
        let request = request.into_inner();
        jwt::check_audiences(&request.audiences).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let workload = NamespacedName::new(request.namespace, request.workload);
        // As for a certificate.
        let state = app.replica.linearizable().await.map_err(read_status)?;
        let id = identity_on(&state, &workload, &node)?;
        still_registered(&state, registration, &node)?;
        let (replica, now) = (app.ca.replica().id, app.now_unix());
        let sign = |state: &State| {
            let (keys, seconds) = (app.ca.jwt(), request.ttl_seconds.into());
            keys.sign(&state.authority, replica, &id, &request.audiences, seconds, now)
        };
        let mut signed = sign(&state);
        if matches!(signed, Err(SignError::NoKey)) {
            // The first of this process: whoever verifies is told of it before there is a token of it.
            let due = app.ca.jwt().due(&state.authority, replica, now, true);
            if let Some(point) = due.map_err(|error| ca_status(error.into()))? {
                let command = Command::Authority(AuthorityCommand::JwtKey { replica, point });
                app.replica.write(command).await.map_err(write_status)?;
            }
            signed = sign(&*app.replica.linearizable().await.map_err(read_status)?);
        }
        let (token, expires_unix) = signed.map_err(|error| match error {
            SignError::NoKey => Status::unavailable(error.to_string()),
            SignError::Token(error) => Status::invalid_argument(error.to_string()),
        })?;
        app.gate.has_signed("jwt");
        tracing::debug!(%workload, %node, %id, audiences = ?request.audiences, "signed a token");
        Ok(Response::new(SignJwtResponse { token, spiffe_id: id.to_string(), expires_unix }))
    }

    async fn renew_node(
        &self,
        request: Request<RenewNodeRequest>,
    ) -> Result<Response<RenewNodeResponse>, Status> {
        let node = self.0.admit_node(request.extensions(), Action::RenewNode)?;
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        let record = state.nodes.get(&node).ok_or_else(|| {
            Status::permission_denied(format!("node {node} was removed: it must register again"))
        })?;
        still_registered(&state, shown_registration(request.extensions()), &node)?;
        let cluster =
            state.cluster.as_ref().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
        let csr = &request.get_ref().csr;
        let chain = self.0.ca.sign_node(csr, record, cluster, SystemTime::now()).map_err(ca_status)?;
        self.0.gate.has_signed("node");
        Ok(Response::new(RenewNodeResponse { chain }))
    }

    async fn report_trust(
        &self,
        request: Request<ReportTrustRequest>,
    ) -> Result<Response<ReportTrustResponse>, Status> {
        let node = self.0.admit_node(request.extensions(), Action::ReportTrust)?;
        trust::node_reports(&self.0, node, request.into_inner()).await?;
        Ok(Response::new(ReportTrustResponse {}))
    }
}

/// The registration in the caller's certificate.
fn shown_registration(extensions: &tonic::Extensions) -> Option<u64> {
    extensions.get::<mesh_tls::grpc::PeerInfo>().and_then(|peer| peer.registration)
}

/// What is signed outlives the request: so it is looked at once more, in a state that holds every revocation.
fn still_registered(state: &State, shown: Option<u64>, node: &str) -> Result<(), Status> {
    let current = state.nodes.get(node).map(|node| node.registration);
    if shown.is_some() && shown == current {
        return Ok(());
    }
    Err(Status::permission_denied(format!("node {node} must register again: its registration has ended")))
}

/// The identity of a workload that runs on a node, from the objects and never from the request.
///
/// # Errors
/// The workload is not declared, or does not run there. Which of the two is not told to a node that has no
/// business with it.
pub fn identity_on(state: &State, workload: &NamespacedName, node: &str) -> Result<SpiffeId, Status> {
    let elsewhere = || Status::permission_denied(format!("workload {workload} is not bound to node {node}"));
    state.bindings.get(workload).filter(|binding| binding.node == node).ok_or_else(elsewhere)?;
    let key = ObjectKey { kind: Kind::Workload, name: workload.clone() };
    let cluster =
        state.cluster.as_ref().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
    match state.objects.get(&key).map(AsRef::as_ref) {
        Some(Object::Workload(declared)) => {
            Ok(SpiffeId::workload(&cluster.trust_domain, &workload.namespace, &declared.service_account))
        }
        _ => Err(Status::failed_precondition(format!("workload {workload} is not declared any more"))),
    }
}

/// A refusal of the authority, as its caller gets to read it.
pub(super) fn ca_status(error: CaError) -> Status {
    match error {
        CaError::Tls(mesh_tls::Error::Csr(_)) => Status::invalid_argument(format!("csr: {error}")),
        CaError::NoRoot { .. } => Status::failed_precondition(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}
