//! The view of a node's proxy: the services that are led to it by name, for all pods of its node.
//!
//! It asks endpoints in the pods' names, from their addresses, so what it is given is by family: a pod's IPv4 address is no
//! name to ask an IPv6 one in. It has no certificate of theirs: endpoints behind mesh mTLS are not among those it may ask.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    names,
    reader::{Reader, readers},
    sidecar::tcp_ports,
};
use crate::{
    compile::{MeshEndpoint, MeshModel, MeshRoute, MeshService, MeshServicePort},
    policy::NODE_PROXY,
    resource::{AppProtocol, IpFamily, NamespacedName},
};

/// Borrowed from the model, in the order of names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeProxyView<'a> {
    /// Service ports that are led to it, once for each family that the service has.
    pub ports: Vec<LedPort<'a>>,
    /// They and what their routes lead to.
    pub clusters: Vec<LedCluster<'a>>,
    /// Whose requests it lets through by policy.
    pub readers: Vec<Reader<'a>>,
}

/// A service port that pods reach through the node's proxy.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct LedPort<'a> {
    /// Also the name of its cluster.
    pub name: String,
    pub family: IpFamily,
    /// The virtual IP that pods ask for.
    pub address: IpAddr,
    pub port: u16,
    pub protocol: AppProtocol,
    /// As of [`OutboundListener::routes`](super::OutboundListener::routes).
    pub routes: &'a [MeshRoute],
}

/// The endpoints of a service port, of one family and in plain text.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct LedCluster<'a> {
    pub name: String,
    pub protocol: AppProtocol,
    pub overflow: u8,
    pub endpoints: Vec<&'a MeshEndpoint>,
}

/// What a proxy of a node is to have, by what it is called.
pub fn for_node_proxy<'a>(model: &'a MeshModel, node: &str, proxy: &str) -> NodeProxyView<'a> {
    let mut ports = Vec::new();
    let mut clusters = BTreeMap::new();
    let led = model.services.values().filter(|service| leads_to(service, proxy));
    for (service, port) in led.flat_map(|service| tcp_ports(service).map(move |port| (service, port))) {
        for address in service.virtual_ip.into_iter().chain(service.second_ip) {
            let family = IpFamily::of(address);
            let name = name(&service.name, port.port, family);
            clusters.entry(name.clone()).or_insert_with(|| cluster(&name, port, family));
            for backend in port.routes.iter().flat_map(|route| &route.rule.backends) {
                let name = self::name(&backend.service, backend.port, family);
                let found = model.services.get(&backend.service).into_iter().flat_map(|s| tcp_ports(s));
                if let Some(port) = found.into_iter().find(|port| port.port == backend.port) {
                    clusters.entry(name.clone()).or_insert_with(|| cluster(&name, port, family));
                }
            }
            let routes = port.routes.as_slice();
            let (port, protocol) = (port.port, port.app_protocol);
            ports.push(LedPort { name, family, address, port, protocol, routes });
        }
    }
    let readers = if proxy == NODE_PROXY { readers(model, node) } else { Vec::new() };
    NodeProxyView { ports, clusters: clusters.into_values().collect(), readers }
}

/// Whether a change of a service concerns proxies of nodes, whatever they are called: it is led to one, or routes of one
/// that is lead to it.
pub fn is_led(model: &MeshModel, service: &NamespacedName) -> bool {
    let led = |name| model.services.get(name).is_some_and(|s| s.delivery.exposure.redirect.is_some());
    led(service) || model.index.routed_to(service).any(led)
}

fn leads_to(service: &MeshService, proxy: &str) -> bool {
    service.delivery.exposure.redirect.as_deref() == Some(proxy)
}

/// Of a service port at the proxy of a node, by what it is called at sidecars.
pub fn of_family(outbound: &str, family: IpFamily) -> String {
    match family {
        IpFamily::V4 => format!("{outbound}|v4"),
        IpFamily::V6 => format!("{outbound}|v6"),
    }
}

fn name(service: &NamespacedName, port: u16, family: IpFamily) -> String {
    of_family(&names::outbound(service, port), family)
}

fn cluster<'a>(name: &str, port: &'a MeshServicePort, family: IpFamily) -> LedCluster<'a> {
    let usable = |e: &&MeshEndpoint| !e.mtls && IpFamily::of(e.address.ip()) == family;
    LedCluster {
        name: name.to_owned(),
        protocol: port.app_protocol,
        overflow: port.overflow,
        endpoints: port.reachable().filter(usable).collect(),
    }
}
