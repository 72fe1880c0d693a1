//! The view of a workload's own proxy.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Access, Reach, Scope, access::access, names};
use crate::{
    compile::{MeshEndpoint, MeshModel, MeshRoute, MeshService, MeshServicePort, MeshWorkload},
    identity::SpiffeId,
    resource::{AppProtocol, NamespacedName, Protocol, ProxyMode},
};

/// Borrowed from the model, in the order of names.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct SidecarView<'a> {
    pub workload: &'a MeshWorkload,
    /// Of the services in its scope: of others it has to ask by name.
    pub outbound: Vec<OutboundListener<'a>>,
    pub clusters: Vec<OutboundCluster<'a>>,
    pub inbound: Vec<InboundListener>,
}

/// A service port as its callers reach it: on a loopback port, to which the kernel redirects them.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct OutboundListener<'a> {
    /// Also the name of its route configuration and of its cluster.
    pub name: String,
    pub proxy_port: u16,
    /// `Tcp`: no routes, everything goes to the cluster of the same name.
    pub protocol: AppProtocol,
    /// In order of precedence. Empty: everything goes to the cluster of the same name; otherwise a request
    /// that none matches is refused (GEP-1294).
    pub routes: &'a [MeshRoute],
}

/// The endpoints of a service port, local and remote.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct OutboundCluster<'a> {
    pub name: String,
    pub sni: &'a str,
    pub protocol: AppProtocol,
    /// Who may answer behind mTLS. Empty: nobody, and no mTLS endpoint is listed.
    pub spiffe_ids: &'a [SpiffeId],
    /// Percent of the calls that go to endpoints of the next priority.
    pub overflow: u8,
    /// Ready or not, by priority and address.
    pub endpoints: Vec<&'a MeshEndpoint>,
}

/// A captured port as the proxy serves it in its workload's stead.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundListener {
    /// Also the name of the cluster that is the program itself, at 127.0.0.1 and the same port.
    pub name: String,
    /// The workload's addresses with the port.
    pub addresses: Vec<SocketAddr>,
    #[allow(missing_docs)]
    pub port: u16,
    /// The SNIs of the services that have this port as an endpoint, and the names by which gRPC's own clients ask
    /// for them; never empty.
    pub server_names: Vec<String>,
    /// What the workload says, else what the services say, else opaque (they disagree).
    pub protocol: AppProtocol,
    /// Who may connect. None: anybody.
    pub access: Option<Access>,
}

/// What a workload's sidecar is to have. None: there is no such workload, or it has no sidecar.
pub fn for_sidecar<'a>(model: &'a MeshModel, workload: &NamespacedName) -> Option<SidecarView<'a>> {
    let workload = model.workloads.get(workload).filter(|w| w.proxy == ProxyMode::Sidecar)?;
    let scope = Scope::of(model, workload);
    let (mut outbound, mut clusters) = (Vec::new(), Vec::new());
    for service in model.services.values() {
        let reach = scope.reach(model, service);
        for (listener, cluster) in outbound_of(service).filter(|_| reach >= Reach::Backend) {
            outbound.extend(listener.filter(|_| reach == Reach::Whole));
            clusters.push(cluster);
        }
    }
    Some(SidecarView { workload, outbound, clusters, inbound: inbound(model, workload) })
}

/// One service as its callers have it, port by port: where they reach it, and its endpoints.
pub fn outbound_of(
    service: &MeshService,
) -> impl Iterator<Item = (Option<OutboundListener<'_>>, OutboundCluster<'_>)> {
    tcp_ports(service).map(|port| {
        let name = names::outbound(&service.name, port.port);
        let listener = (port.proxy_port != 0).then(|| OutboundListener {
            name: name.clone(),
            proxy_port: port.proxy_port,
            protocol: port.app_protocol,
            routes: &port.routes,
        });
        (listener, outbound_cluster(name, port))
    })
}

/// The ports of a service that proxies speak of.
pub fn tcp_ports(service: &MeshService) -> impl Iterator<Item = &MeshServicePort> {
    service.ports.iter().filter(|port| port.protocol == Protocol::Tcp)
}

/// What a workload's sidecar serves in its stead. None: there is no such workload, or it has no sidecar.
pub fn inbound_of(model: &MeshModel, workload: &NamespacedName) -> Option<Vec<InboundListener>> {
    let workload = model.workloads.get(workload).filter(|w| w.proxy == ProxyMode::Sidecar)?;
    Some(inbound(model, workload))
}

pub(super) fn outbound_cluster(name: String, port: &MeshServicePort) -> OutboundCluster<'_> {
    // Without an identity to expect, an mTLS endpoint could be anybody.
    let usable = |e: &&MeshEndpoint| !e.mtls || !port.spiffe_ids.is_empty();
    OutboundCluster {
        name,
        sni: &port.sni,
        protocol: port.app_protocol,
        spiffe_ids: &port.spiffe_ids,
        overflow: port.overflow,
        endpoints: port.endpoints.iter().filter(usable).collect(),
    }
}

fn inbound(model: &MeshModel, workload: &MeshWorkload) -> Vec<InboundListener> {
    let Some(binding) = &workload.binding else { return Vec::new() };
    let listener = |port: u16| {
        let serving = model.index.served_by(&workload.name).iter().filter(|s| s.target == port);
        let services: Vec<(&NamespacedName, &MeshServicePort)> = serving
            .filter(|s| s.protocol == Protocol::Tcp)
            .filter_map(|s| {
                let ports = &model.services.get(&s.service)?.ports;
                let port = ports.iter().find(|p| (p.port, p.protocol) == (s.port, s.protocol))?;
                Some((&s.service, port))
            })
            .collect();
        let (_, first) = services.first()?;
        let agreed = services.iter().all(|(_, p)| p.app_protocol == first.app_protocol);
        let implied = if agreed { first.app_protocol } else { AppProtocol::Tcp };
        Some(InboundListener {
            name: names::inbound(port),
            addresses: binding.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect(),
            port,
            server_names: services
                .iter()
                .flat_map(|(name, p)| {
                    let [short, full] = names::hosts(name, &model.cluster.mesh_domain);
                    [p.sni.clone(), short, full]
                })
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            protocol: workload.port_protocols.get(&port).copied().unwrap_or(implied),
            access: access(model, workload, port),
        })
    };
    workload.captured_ports.iter().filter_map(|port| listener(*port)).collect()
}
