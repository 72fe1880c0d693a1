//! How newcomers of this cluster get their first certificate: nodes, and further replicas.
//!
//! Everything that can be refused is refused before the token is used, so that a slip costs no token.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::SystemTime,
};

use clustermesh::token::Purpose;
use mesh_model::identity::SpiffeId;
use mesh_store::{AuthorityCommand, Command, Granted, TokenPurpose};
use tonic::{Request, Response, Status};
use xds_proto::isthmus::bootstrap::v1::{
    RegisterNodeRequest, RegisterNodeResponse, RegisterReplicaRequest, RegisterReplicaResponse,
    bootstrap_server::Bootstrap,
};

use super::{NODE_TTL, admission, certificates::ca_status};
use crate::{
    app::{App, read_status, write_status},
    authz::Action,
};

/// The service.
#[derive(Debug, Clone)]
pub struct BootstrapService(pub Arc<App>);

#[tonic::async_trait]
impl Bootstrap for BootstrapService {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let app = &self.0;
        app.admit(request.extensions(), Action::Bootstrap)?;
        let request = request.into_inner();
        let token = admission::read(app, &request.token, Purpose::Node)?;
        if !is_dns_label(&request.node) {
            let sentence = format!("node: {:?} is not 1 to 63 characters of a-z, 0-9 and '-'", request.node);
            return Err(Status::invalid_argument(sentence));
        }
        let address: IpAddr = request.address.parse().map_err(|_| {
            Status::invalid_argument(format!("address: {:?} is no IP address", request.address))
        })?;
        let address6: Option<Ipv6Addr> =
            match request.address6.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    Status::invalid_argument(format!("address6: {text:?} is no IPv6 address"))
                })?),
            };
        let id = SpiffeId::node(app.trust_domain(), &request.node);
        // Signed before the token is used: a bad request must not cost it.
        app.ca.sign(&request.csr, &id, 0, NODE_TTL, SystemTime::now()).map_err(ca_status)?;
        app.gate.has_signed("node");
        let known = app.replica.linearizable().await.map_err(read_status)?;
        if let Some(holder) = known.nodes.values().find(|n| n.address == address && n.name != request.node) {
            let sentence = format!("address: {address} is that of node {} already", holder.name);
            return Err(Status::failed_precondition(sentence));
        }
        drop(known);
        let purpose = TokenPurpose::Node(Some(request.node.clone()));
        admission::redeem(app, &token, purpose, format!("node {}", request.node)).await?;
        let command = Command::RegisterNode { name: request.node.clone(), address, address6 };
        let applied = app.replica.write(command).await.map_err(write_status)?;
        let Granted::Node(record) = applied.granted else {
            return Err(Status::internal(format!("node {} was given no pod CIDR", request.node)));
        };
        let state = app.replica.linearizable().await.map_err(read_status)?;
        let cluster =
            state.cluster.as_ref().ok_or_else(|| Status::unavailable("the cluster is not initialised"))?;
        let chain = app.ca.sign_node(&request.csr, &record, cluster, SystemTime::now()).map_err(ca_status)?;
        tracing::info!(
            node = %record.name, %address, pod_cidr = %record.pod_cidr, revision = state.revision, "registered a node"
        );
        Ok(Response::new(RegisterNodeResponse {
            chain,
            roots: cluster.roots.clone(),
            cluster: cluster.name.clone(),
            trust_domain: cluster.trust_domain.to_string(),
            pod_cidr: record.pod_cidr.to_string(),
            pod_cidr6: cluster.slices(&record).nth(1).map(|slice| slice.to_string()).unwrap_or_default(),
            service_cidr: cluster.service_cidr.to_string(),
            replicas: admission::doors(app, &state),
            mesh_domain: cluster.mesh_domain.clone(),
            service_cidr6: cluster.service_cidr6.map(|cidr| cidr.to_string()).unwrap_or_default(),
        }))
    }

    async fn register_replica(
        &self,
        request: Request<RegisterReplicaRequest>,
    ) -> Result<Response<RegisterReplicaResponse>, Status> {
        let app = &self.0;
        app.admit(request.extensions(), Action::Bootstrap)?;
        let request = request.into_inner();
        let token = admission::read(app, &request.token, Purpose::Replica)?;
        let now = SystemTime::now();
        let state = app.replica.linearizable().await.map_err(read_status)?;
        let issuer = app.ca.sign_issuer(&state, &request.issuer_csr, now).map_err(ca_status)?;
        drop(state);
        let public = request.sealing_key.clone();
        if public.len() != 32 {
            return Err(Status::invalid_argument(format!("sealing_key: {} bytes are not 32", public.len())));
        }
        // The number is not known yet; this finds out whether the request can be signed at all.
        let trial = SpiffeId::replica(app.trust_domain(), 0);
        app.ca.sign(&request.csr, &trial, 0, NODE_TTL, now).map_err(ca_status)?;
        let applied = admission::admit_replica(app, &token, &request.address).await?;
        let Granted::Replica(replica_id) = applied.granted else {
            return Err(Status::internal("the new replica was given no number"));
        };
        // Whoever leads seals the root's key to it.
        let key = AuthorityCommand::SealingKey { replica: replica_id, public };
        let applied = app.replica.write(Command::Authority(key)).await.map_err(write_status)?;
        let id = SpiffeId::replica(app.trust_domain(), replica_id);
        let mut chain = app.ca.sign(&request.csr, &id, 0, NODE_TTL, now).map_err(ca_status)?;
        app.gate.has_signed("replica");
        let roots: Vec<Vec<u8>> = app.ca.roots().iter().map(|root| root.to_vec()).collect();
        chain.extend(roots.iter().cloned());
        tracing::info!(
            replica = replica_id, address = %request.address, revision = applied.revision, "admitted a replica"
        );
        Ok(Response::new(RegisterReplicaResponse {
            replica_id,
            chain,
            issuer_chain: vec![issuer.to_vec()],
            roots,
            cluster: app.ca.replica().cluster.clone(),
            trust_domain: app.trust_domain().to_string(),
            mesh_domain: app.config.mesh_domain.clone(),
            raft_group: app.replica.group().to_owned(),
        }))
    }
}

fn is_dns_label(text: &str) -> bool {
    let fine = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| fine(&b))
        && !text.starts_with('-')
        && !text.ends_with('-')
}
