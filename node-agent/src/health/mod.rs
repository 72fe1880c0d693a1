//! Whether this node has endpoints of services with `externalTrafficPolicy: Local`, for load balancers in front of it, at the
//! services' `healthCheckNodePort`. The answer is kube-proxy's.

mod serve;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mesh_model::resource::NamespacedName;

use crate::{
    desired::Pod,
    subscribe::{BackendState, Resources, Service},
};

pub use serve::keep_for_ever;

/// Services with such a port at once.
pub const MAX_PORTS: usize = 1_024;

/// What is said of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Health {
    pub service: NamespacedName,
    /// Endpoints of this node that new connections may go to.
    pub endpoints: usize,
}

/// What is said at which port. PURE.
pub fn told(resources: &Resources, pods: &BTreeMap<NamespacedName, Pod>) -> BTreeMap<u16, Health> {
    let here: BTreeSet<IpAddr> = pods.values().flat_map(|pod| pod.addresses.iter()).collect();
    let asked = resources.services.iter().filter(|(_, service)| service.health_port != 0);
    let mut all = BTreeMap::new();
    // (The control plane gives no port twice.)
    for (name, service) in asked.take(MAX_PORTS) {
        let health = Health { service: name.clone(), endpoints: endpoints(service, &here) };
        all.entry(service.health_port).or_insert(health);
    }
    all
}

/// A pod that serves several ports is one, and so is one of two families.
fn endpoints(service: &Service, here: &BTreeSet<IpAddr>) -> usize {
    let families = [true, false].map(|is_v4| {
        let all = service.ports.iter().flat_map(|port| &port.backends);
        let ready = all.filter(|backend| backend.state == BackendState::Active);
        let local = ready.filter(|backend| here.contains(&backend.address));
        local.filter(|backend| backend.address.is_ipv4() == is_v4).map(|backend| backend.address).collect()
    });
    families.iter().map(BTreeSet::len).max().unwrap_or(0)
}

/// Status and body of the answer. PURE.
pub fn answer(health: &Health, is_enforced: bool) -> (u16, String) {
    let status = if health.endpoints > 0 && is_enforced { 200 } else { 503 };
    let body = serde_json::json!({
        "service": { "namespace": health.service.namespace, "name": health.service.name },
        "localEndpoints": health.endpoints,
        "serviceProxyHealthy": is_enforced,
    });
    (status, body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::subscribe::{ServiceBackend, ServicePort};

    fn backend(address: &str, state: BackendState) -> ServiceBackend {
        ServiceBackend { address: address.parse().unwrap(), port: 8080, state, ..ServiceBackend::default() }
    }

    fn pods() -> BTreeMap<NamespacedName, Pod> {
        let pod = |last: u8| {
            let addresses = crate::desired::PodAddresses {
                v4: [10, 1, 1, last].into(),
                v6: Some(std::net::Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last.into())),
            };
            Pod { addresses, ifindex: last.into(), netns_cookie: last.into() }
        };
        [2, 3, 4].map(|last| (NamespacedName::new("shop", format!("pay-{last}")), pod(last))).into()
    }

    #[test]
    fn the_ready_pods_of_this_node_are_counted_once_each() {
        use BackendState::{Active, NotReady, Terminating};
        let backends = vec![
            backend("10.1.1.2", Active),
            backend("fd00:1::2", Active),
            backend("10.1.1.3", NotReady),
            backend("10.1.1.4", Terminating),
            backend("10.1.2.9", Active),
        ];
        let port =
            |port| ServicePort { port, protocol: 6, backends: backends.clone(), ..ServicePort::default() };
        let service = Service { health_port: 32_000, ports: vec![port(80), port(443)], ..Service::default() };
        let mut resources = Resources::default();
        resources.services.insert(NamespacedName::new("shop", "pay"), Arc::new(service));
        resources.services.insert(NamespacedName::new("shop", "plain"), Arc::default());
        let told = told(&resources, &pods());
        assert_eq!(told.keys().copied().collect::<Vec<_>>(), [32_000]);
        assert_eq!(told[&32_000].endpoints, 1);
        assert_eq!(super::told(&resources, &BTreeMap::new())[&32_000].endpoints, 0);
    }

    #[test]
    fn the_answer_is_that_of_kube_proxy() {
        let health = |endpoints| Health { service: NamespacedName::new("shop", "pay"), endpoints };
        let (status, body) = answer(&health(2), true);
        let read: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert_eq!(
            read,
            serde_json::json!({
                "service": { "namespace": "shop", "name": "pay" }, "localEndpoints": 2, "serviceProxyHealthy": true
            })
        );
        assert_eq!(answer(&health(0), true).0, 503);
        assert_eq!(answer(&health(2), false).0, 503);
    }
}
