//! `CertificateAuthority`: the authority and the nodes, for administrators.

use std::{sync::Arc, time::SystemTime};

use mesh_store::{AuthorityCommand, Command, RootRecord, State, fingerprint_of, missing};
use mesh_tls::{CertificateDer, Life, issue};
use tonic::{Request, Response, Status};
use xds_proto::isthmus::ca::v1::{
    CreateAdministratorRequest, CreateAdministratorResponse, Issuer, ListAdministratorsRequest,
    ListAdministratorsResponse, ListNodesRequest, ListNodesResponse, Node, NodeRequest, NodeResponse,
    RevokeAdministratorRequest, RevokeAdministratorResponse, Root, RotateRequest, Rotation, StatusRequest,
    StatusResponse, certificate_authority_server::CertificateAuthority,
};

use super::{administrators, certificates::ca_status, seal_to_all, unix};
use crate::{
    app::{App, read_status, write_status},
    authz::Action,
};

/// Members that are named in an answer.
const MAX_NAMED: usize = 100;
/// A root that ends within this time should be replaced: a year, in seconds.
const ROOT_SOON: u64 = 365 * 24 * 3600;

/// The service.
#[derive(Debug, Clone)]
pub struct AuthorityService(pub Arc<App>);

#[tonic::async_trait]
impl CertificateAuthority for AuthorityService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.admit(request.extensions(), Action::InspectAuthority)?;
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        Ok(Response::new(describe(&state, unix(SystemTime::now()))))
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Result<Response<StatusResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::RotateRoot)?;
        let RotateRequest { skip_unconfirmed, retire_now } = request.into_inner();
        let state = app.replica.linearizable().await.map_err(read_status)?;
        if state.authority.rotation.is_none() {
            let now = SystemTime::now();
            let root = issue::Root::generate(app.trust_domain().clone(), now)
                .map_err(|error| Status::internal(error.to_string()))?;
            let command = AuthorityCommand::BeginRotation {
                certificate: root.certificate().to_vec(),
                sealed: seal_to_all(&root, &state.authority).map_err(ca_status)?,
            };
            drop(state);
            let applied = app.replica.write(Command::Authority(command)).await.map_err(write_status)?;
            let to = fingerprint_of(root.certificate());
            tracing::info!(%caller, to, revision = applied.revision, "a rotation of the root begins");
        }
        let state = app.replica.linearizable().await.map_err(read_status)?;
        let number = state.authority.rotation.as_ref().map(|rotation| rotation.number);
        drop(state);
        if let Some(number) = number.filter(|_| skip_unconfirmed || retire_now) {
            let command = AuthorityCommand::Hurry { number, skip_unconfirmed, retire_now };
            let applied = app.replica.write(Command::Authority(command)).await.map_err(write_status)?;
            let revision = applied.revision;
            tracing::warn!(%caller, number, skip_unconfirmed, retire_now, revision, "a rotation is hurried");
        }
        let state = app.replica.linearizable().await.map_err(read_status)?;
        Ok(Response::new(describe(&state, unix(SystemTime::now()))))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        self.0.admit(request.extensions(), Action::InspectAuthority)?;
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        Ok(Response::new(ListNodesResponse { nodes: nodes(&state) }))
    }

    async fn revoke_node(&self, request: Request<NodeRequest>) -> Result<Response<NodeResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::EndRegistration)?;
        let name = request.into_inner().name;
        let state = app.replica.linearizable().await.map_err(read_status)?;
        exists(&state, &name)?;
        let unbound = bound(&state, &name);
        drop(state);
        let command = AuthorityCommand::RevokeNode { name: name.clone() };
        let applied = app.replica.write(Command::Authority(command)).await.map_err(write_status)?;
        tracing::warn!(%caller, node = name, revision = applied.revision, "revoked a node");
        Ok(Response::new(NodeResponse { revision: applied.revision, unbound }))
    }

    async fn remove_node(&self, request: Request<NodeRequest>) -> Result<Response<NodeResponse>, Status> {
        let app = &self.0;
        let caller = app.admit(request.extensions(), Action::EndRegistration)?;
        let name = request.into_inner().name;
        let state = app.replica.linearizable().await.map_err(read_status)?;
        exists(&state, &name)?;
        if let Some(refusal) = still_runs(&name, &bound(&state, &name)) {
            return Err(Status::failed_precondition(refusal));
        }
        drop(state);
        let command = Command::RemoveNode { name: name.clone() };
        let applied = app.replica.write(command).await.map_err(write_status)?;
        tracing::info!(%caller, node = name, revision = applied.revision, "removed a node");
        Ok(Response::new(NodeResponse { revision: applied.revision, unbound: Vec::new() }))
    }

    async fn create_administrator(
        &self,
        request: Request<CreateAdministratorRequest>,
    ) -> Result<Response<CreateAdministratorResponse>, Status> {
        let caller = self.0.admit(request.extensions(), Action::ManageAdministrators)?;
        administrators::create(&self.0, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_administrators(
        &self,
        request: Request<ListAdministratorsRequest>,
    ) -> Result<Response<ListAdministratorsResponse>, Status> {
        self.0.admit(request.extensions(), Action::ManageAdministrators)?;
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        Ok(Response::new(ListAdministratorsResponse { certificates: administrators::list(&state) }))
    }

    async fn revoke_administrator(
        &self,
        request: Request<RevokeAdministratorRequest>,
    ) -> Result<Response<RevokeAdministratorResponse>, Status> {
        let caller = self.0.admit(request.extensions(), Action::ManageAdministrators)?;
        administrators::revoke(&self.0, &caller, request.into_inner().name).await.map(Response::new)
    }
}

fn exists(state: &State, node: &str) -> Result<(), Status> {
    if state.nodes.contains_key(node) {
        return Ok(());
    }
    let shown: String = node.chars().take(80).collect();
    Err(Status::not_found(format!("there is no node {shown:?}: `clustermesh node list` shows them")))
}

fn still_runs(node: &str, workloads: &[String]) -> Option<String> {
    let what = match workloads {
        [] => return None,
        [one] => one.clone(),
        [first, others @ ..] => format!("{first} and {} more", others.len()),
    };
    Some(format!("node {node} runs {what}: end that first, or use `clustermesh node revoke {node}`"))
}

fn bound(state: &State, node: &str) -> Vec<String> {
    let here = state.bindings.iter().filter(|(_, binding)| binding.node == node);
    here.map(|(workload, _)| workload.to_string()).collect()
}

fn nodes(state: &State) -> Vec<Node> {
    let mut workloads = std::collections::BTreeMap::<&str, u32>::new();
    for binding in state.bindings.values() {
        *workloads.entry(&binding.node).or_default() += 1;
    }
    let told = |name: &str| state.authority.confirmed_nodes.get(name).map(|told| told.under.clone());
    state
        .nodes
        .values()
        .map(|node| Node {
            name: node.name.clone(),
            address: node.address.to_string(),
            pod_cidr: node.pod_cidr.to_string(),
            registration: node.registration,
            workloads: workloads.get(node.name.as_str()).copied().unwrap_or(0),
            root_sha256: told(&node.name).unwrap_or_default(),
        })
        .collect()
}

/// The authority as an administrator sees it. PURE.
pub fn describe(state: &State, now_unix: u64) -> StatusResponse {
    let authority = &state.authority;
    let empty = RootRecord::default();
    let roots: Vec<Root> = state
        .cluster
        .iter()
        .flat_map(|cluster| &cluster.roots)
        .map(|der| {
            let sha256 = fingerprint_of(der);
            let life = Life::of(&CertificateDer::from(der.as_slice()));
            let record = authority.roots.get(&sha256).unwrap_or(&empty);
            Root {
                not_before_unix: life.as_ref().map_or(0, |life| life.not_before_unix),
                not_after_unix: life.as_ref().map_or(0, |life| life.not_after_unix),
                active: sha256 == authority.active,
                sealed_to: record.sealed.keys().copied().collect(),
                left_with: record.left_with.iter().copied().collect(),
                sha256,
            }
        })
        .collect();
    let issuers = authority.issuers.iter().map(|(replica, issuer)| Issuer {
        replica: *replica,
        serial: issuer.serial.clone(),
        root_sha256: issuer.root.clone(),
        not_before_unix: issuer.not_before_unix,
        not_after_unix: issuer.not_after_unix,
        leaf_seconds: issuer.leaf_seconds,
    });
    let rotation = authority.rotation.as_ref().map(|rotation| {
        let waiting = missing(state, rotation);
        Rotation {
            number: rotation.number,
            phase: rotation.phase.as_str().to_owned(),
            to_sha256: rotation.to.clone(),
            since_unix: rotation.since_unix,
            waiting_for: waiting.iter().take(MAX_NAMED).map(ToString::to_string).collect(),
            waiting: u32::try_from(waiting.len()).unwrap_or(u32::MAX),
            skip_unconfirmed: rotation.skip_unconfirmed,
            retire_now: rotation.retire_now,
        }
    });
    StatusResponse {
        advice: advice(state, &roots, now_unix),
        roots,
        issuers: issuers.collect(),
        rotation,
        rotations: authority.rotations,
        revoked_registrations: u32::try_from(authority.revoked.len()).unwrap_or(u32::MAX),
    }
}

fn advice(state: &State, roots: &[Root], now_unix: u64) -> Vec<String> {
    let mut advice = Vec::new();
    for root in roots.iter().filter(|root| root.active) {
        if let Some(gone) = root.left_with.first() {
            advice.push(format!(
                "replica {gone} was removed, and its disk can still open the root's key: rotate the root with `clustermesh ca rotate`"
            ));
        }
        if root.not_after_unix < now_unix.saturating_add(ROOT_SOON) {
            advice.push("the root ends within a year: rotate it with `clustermesh ca rotate`".to_owned());
        }
        if let Some(without) = state.replicas.keys().find(|id| !root.sealed_to.contains(id)) {
            advice.push(format!(
                "replica {without} has no copy of the root's key yet: it can't renew its issuer nor admit replicas"
            ));
        }
    }
    advice
}
