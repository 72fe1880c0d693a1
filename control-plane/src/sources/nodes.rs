//! What nodes report: which workloads run there, at which addresses, and the flows that they saw.

use std::{net::IpAddr, sync::Arc};

use mesh_model::{
    records::{NodeFacts, Tunnel, WorkloadBinding},
    resource::NamespacedName,
};
use mesh_store::{Command, Granted};
use tonic::{Request, Response, Status, Streaming};
use xds_proto::isthmus::bootstrap::v1::{
    FlowBatch, RemoveEndpointRequest, RemoveEndpointResponse, ReportEndpointRequest, ReportEndpointResponse,
    ReportFlowsResponse, ReportNodeRequest, ReportNodeResponse, endpoints_server::Endpoints,
};

use crate::{
    app::{App, read_status, write_status},
    authz::Action,
    ca::certificates::identity_on,
};

/// Addresses of one report; the store has its own limit, this one bounds the parsing.
const MAX_ADDRESSES: usize = 16;

/// The service.
#[derive(Debug, Clone)]
pub struct EndpointsService(pub Arc<App>);

#[tonic::async_trait]
impl Endpoints for EndpointsService {
    async fn report(
        &self,
        request: Request<ReportEndpointRequest>,
    ) -> Result<Response<ReportEndpointResponse>, Status> {
        let node = self.0.admit_node(request.extensions(), Action::ReportEndpoints)?;
        let request = request.into_inner();
        let workload = named(&request.namespace, &request.workload)?;
        let addresses = addresses(&request.addresses)?;
        let binding = WorkloadBinding { node: node.clone(), addresses, ready: request.ready };
        let command = Command::BindWorkload { workload: workload.clone(), binding };
        let applied = self.0.replica.write(command).await.map_err(write_status)?;
        let Granted::Identity(identity) = applied.granted else {
            return Err(Status::internal(format!("no identity was allocated for workload {workload}")));
        };
        let state = self.0.replica.linearizable().await.map_err(read_status)?;
        let spiffe_id = identity_on(&state, &workload, &node)?.to_string();
        Ok(Response::new(ReportEndpointResponse { revision: applied.revision, identity, spiffe_id }))
    }

    async fn remove(
        &self,
        request: Request<RemoveEndpointRequest>,
    ) -> Result<Response<RemoveEndpointResponse>, Status> {
        let node = self.0.admit_node(request.extensions(), Action::ReportEndpoints)?;
        let request = request.into_inner();
        let workload = named(&request.namespace, &request.workload)?;
        let command = Command::UnbindWorkload { workload, node };
        let applied = self.0.replica.write(command).await.map_err(write_status)?;
        Ok(Response::new(RemoveEndpointResponse { revision: applied.revision }))
    }

    async fn report_node(
        &self,
        request: Request<ReportNodeRequest>,
    ) -> Result<Response<ReportNodeResponse>, Status> {
        let name = self.0.admit_node(request.extensions(), Action::ReportEndpoints)?;
        let facts = facts(request.into_inner())?;
        let applied =
            self.0.replica.write(Command::ReportNode { name, facts }).await.map_err(write_status)?;
        Ok(Response::new(ReportNodeResponse { revision: applied.revision }))
    }

    async fn report_flows(
        &self,
        request: Request<Streaming<FlowBatch>>,
    ) -> Result<Response<ReportFlowsResponse>, Status> {
        let node = self.0.admit_node(request.extensions(), Action::ReportEndpoints)?;
        let (_, extensions, mut batches) = request.into_parts();
        let mut changes = self.0.replica.changes();
        loop {
            let next = tokio::select! {
                next = batches.message() => next?,
                // A right lasts as long as its reason: the node may have been revoked.
                changed = changes.changed() => {
                    changed.map_err(|_| Status::unavailable("this replica is shutting down"))?;
                    self.0.admit_node(&extensions, Action::ReportEndpoints)?;
                    continue;
                }
                () = self.0.stop.cancelled() => None,
            };
            let Some(batch) = next else { break };
            if batch.lost > 0 {
                tracing::warn!(%node, lost = batch.lost, "flow events were lost on the node");
            }
            for flow in batch.flows {
                self.0.flows.push(&node, flow);
            }
        }
        Ok(Response::new(ReportFlowsResponse {}))
    }
}

fn named(namespace: &str, name: &str) -> Result<NamespacedName, Status> {
    NamespacedName::parse(&format!("{namespace}/{name}"))
        .ok_or_else(|| Status::invalid_argument(format!("{namespace:?}/{name:?} names no workload")))
}

/// What only has to be written in the right way; the rest is the store's to judge.
fn facts(request: ReportNodeRequest) -> Result<NodeFacts, Status> {
    let bad = |field: &str, value: &str, wanted: &str| {
        Status::invalid_argument(format!("{field}: {value:?} is not {wanted}"))
    };
    let tunnel = match request.tunnel.as_str() {
        "" => None,
        text => Some(Tunnel::from_name(text).ok_or_else(|| bad("tunnel", text, "vxlan or direct"))?),
    };
    let health = match request.health.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| bad("health", text, "an address and a port"))?),
    };
    Ok(NodeFacts {
        addresses: addresses(&request.addresses)?,
        labels: request.labels.into_iter().collect(),
        zone: request.zone,
        region: request.region,
        tunnel,
        health,
    })
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, Status> {
    if texts.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!(
            "addresses: {} are given, {MAX_ADDRESSES} allowed",
            texts.len()
        )));
    }
    let parse = |(index, text): (usize, &String)| {
        let bad = || Status::invalid_argument(format!("addresses[{index}]: {text:?} is no IP address"));
        text.parse().map_err(|_| bad())
    };
    texts.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_address_is_named_with_its_place() {
        let error = addresses(&["10.0.0.1".to_owned(), "ten".to_owned()]).unwrap_err();
        assert_eq!(error.message(), "addresses[1]: \"ten\" is no IP address");
        assert!(addresses(&vec!["10.0.0.1".to_owned(); MAX_ADDRESSES + 1]).is_err());
        let bad = |request| facts(request).unwrap_err().message().to_owned();
        let request = ReportNodeRequest { tunnel: "gre".into(), ..Default::default() };
        assert_eq!(bad(request), "tunnel: \"gre\" is not vxlan or direct");
        let request = ReportNodeRequest { health: "n1:9".into(), ..Default::default() };
        assert_eq!(bad(request), "health: \"n1:9\" is not an address and a port");
        assert!(named("", "web").is_err() && named("shop", "a/b").is_err());
    }
}
