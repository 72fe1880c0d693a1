//! Resource names. A listener's route configuration bears the listener's name, a cluster's endpoints the
//! cluster's.

use crate::resource::NamespacedName;

/// Listener, route configuration and cluster of a service port, at a caller.
pub fn outbound(service: &NamespacedName, port: u16) -> String {
    format!("outbound|{port}|{}.{}", service.name, service.namespace)
}

/// What a service is called without its port: within the mesh, and in full. gRPC's clients send it as the TLS
/// server name.
pub fn hosts(service: &NamespacedName, mesh_domain: &str) -> [String; 2] {
    let short = format!("{}.{}", service.name, service.namespace);
    [short.clone(), format!("{short}.svc.{mesh_domain}")]
}

/// Listeners of a service port, at gRPC's clients: what stands behind `xds:///`.
pub fn grpc(service: &NamespacedName, port: u16, mesh_domain: &str) -> [String; 2] {
    hosts(service, mesh_domain).map(|host| format!("{host}:{port}"))
}

/// Listener and cluster of a captured port, at the workload that serves it.
pub fn inbound(port: u16) -> String {
    format!("inbound|{port}")
}

/// A gateway's listener.
pub fn gateway_listener(port: u16) -> String {
    format!("gateway|{port}")
}

/// Cluster of an exported service port, at a gateway.
pub fn gateway_cluster(service: &NamespacedName, port: u16) -> String {
    format!("gateway|{port}|{}.{}", service.name, service.namespace)
}
