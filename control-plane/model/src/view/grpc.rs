//! The view of a process that is its own proxy: gRPC's xDS client, which reads configuration by itself.

use super::{
    Reach, Scope, names,
    sidecar::{OutboundCluster, outbound_cluster, tcp_ports},
};
use crate::{
    compile::{MeshModel, MeshRoute, MeshService},
    resource::{NamespacedName, ProxyMode},
};

/// Borrowed from the model, in the order of names. It asks for everything by name, so that a Sidecar object keeps
/// nothing from it that its namespace may know of.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct GrpcView<'a> {
    pub targets: Vec<GrpcTarget<'a>>,
    /// With endpoints of this cluster only: a gateway forwards by a server name that carries the port, and gRPC
    /// can't be relied on to send one that it is told.
    pub clusters: Vec<OutboundCluster<'a>>,
}

/// A service port as an application names it: `xds:///<service>.<namespace>:<port>`.
#[derive(Debug, Clone, PartialEq)]
pub struct GrpcTarget<'a> {
    /// `<service>.<namespace>:<port>` and `<service>.<namespace>.svc.<mesh-domain>:<port>`: a listener for each.
    pub listeners: [String; 2],
    /// Name of the route configuration and of the cluster.
    pub name: String,
    #[allow(missing_docs)]
    pub port: u16,
    /// In order of precedence. Empty: everything goes to the cluster of the same name.
    pub routes: &'a [MeshRoute],
}

/// What the gRPC clients of a workload are to have, beside a sidecar or without one. None: there is no such
/// workload, or it is a gateway.
pub fn for_grpc<'a>(model: &'a MeshModel, workload: &NamespacedName) -> Option<GrpcView<'a>> {
    if !has_grpc(model, workload) {
        return None;
    }
    let scope = Scope::of(model, model.workloads.get(workload)?);
    let services = model.services.values().filter(|service| scope.reach(model, service) > Reach::Hidden);
    let (targets, clusters) = services.flat_map(|s| targets_of(&model.cluster.mesh_domain, s)).unzip();
    Some(GrpcView { targets, clusters })
}

/// Whether there is such a workload, and it is no gateway.
pub fn has_grpc(model: &MeshModel, workload: &NamespacedName) -> bool {
    model.workloads.get(workload).is_some_and(|found| found.proxy != ProxyMode::Gateway)
}

/// One service as gRPC's clients have it, port by port.
pub fn targets_of<'a>(
    mesh_domain: &str,
    service: &'a MeshService,
) -> impl Iterator<Item = (GrpcTarget<'a>, OutboundCluster<'a>)> {
    tcp_ports(service).map(move |port| {
        let name = names::outbound(&service.name, port.port);
        let mut cluster = outbound_cluster(name.clone(), port);
        cluster.endpoints.retain(|endpoint| !endpoint.place.by_gateway);
        let listeners = names::grpc(&service.name, port.port, mesh_domain);
        (GrpcTarget { listeners, name, port: port.port, routes: &port.routes }, cluster)
    })
}
