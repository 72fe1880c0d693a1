//! The view of an east-west gateway: it forwards by SNI and terminates nothing.

use std::net::SocketAddr;

use super::names;
use crate::{
    compile::{MeshEndpoint, MeshModel, MeshService, MeshServicePort, MeshWorkload},
    resource::{NamespacedName, Protocol, ProxyMode},
};

/// Where a gateway listens unless its workload declares another TCP port (the port that Istio uses as well).
pub const GATEWAY_PORT: u16 = 15443;

/// Borrowed from the model, in the order of names.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct GatewayView<'a> {
    pub workload: &'a MeshWorkload,
    /// Name of its listener, on every address of its host.
    pub listener: String,
    pub port: u16,
    pub passthroughs: Vec<Passthrough<'a>>,
}

/// One exported service port.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Passthrough<'a> {
    pub sni: &'a str,
    pub cluster: String,
    /// Of this cluster and behind mTLS only: a gateway never forwards from one peer to another, and what
    /// arrives is a TLS handshake that a plain-text program could not answer.
    pub endpoints: Vec<&'a MeshEndpoint>,
}

/// What a gateway is to have. None: there is no such workload, or it is no gateway.
pub fn for_gateway<'a>(model: &'a MeshModel, workload: &NamespacedName) -> Option<GatewayView<'a>> {
    let workload = model.workloads.get(workload).filter(|w| w.proxy == ProxyMode::Gateway)?;
    let port = workload.gateway_port;
    let exported = model.index.exported().filter_map(|name| model.services.get(name));
    let passthroughs = exported.flat_map(|service| passthroughs_of(service)).collect();
    Some(GatewayView { workload, listener: names::gateway_listener(port), port, passthroughs })
}

/// What a gateway forwards to one service: nothing if it is not exported.
pub fn passthroughs_of(service: &MeshService) -> impl Iterator<Item = Passthrough<'_>> {
    let ports = service.ports.iter().filter(|_| service.exported);
    ports.filter(|p| p.protocol == Protocol::Tcp && forwardable(p).next().is_some()).map(|p| Passthrough {
        sni: &p.sni,
        cluster: names::gateway_cluster(&service.name, p.port),
        endpoints: forwardable(p).collect(),
    })
}

/// Endpoints that a gateway can forward to, ready or not.
fn forwardable(port: &MeshServicePort) -> impl Iterator<Item = &MeshEndpoint> {
    port.endpoints.iter().filter(|e| !e.place.by_gateway && e.mtls)
}

/// `host:port` of this cluster's gateways, as peers are to reach them.
pub fn gateway_addresses(model: &MeshModel) -> Vec<SocketAddr> {
    let gateways = model.index.gateways().filter_map(|name| model.workloads.get(name));
    gateways
        .flat_map(|w| {
            let addresses = w.binding.iter().filter(|b| b.ready).flat_map(|b| &b.addresses);
            addresses.map(|ip| SocketAddr::new(*ip, w.gateway_port))
        })
        .collect()
}
