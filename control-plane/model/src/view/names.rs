//! Resource names. A listener's route configuration bears the listener's name, a cluster's endpoints the
//! cluster's.

use crate::resource::NamespacedName;

/// Listener, route configuration and cluster of a service port, at a caller.
pub fn outbound(service: &NamespacedName, port: u16) -> String {
    format!("outbound|{port}|{}.{}", service.name, service.namespace)
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
