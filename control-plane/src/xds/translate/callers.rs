//! How programs call services: what each kind of them is sent for one service.

use std::collections::BTreeSet;

use mesh_model::{compile::MeshService, view};

use super::{
    cluster::{self, Encryption},
    endpoint, grpc, listener, route,
};
use crate::xds::{Encoded, ProxyKind, ResourceSet, kinds};

/// Programs that call services, each with its own way to be told of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Callers {
    /// Sidecars of this kind.
    Sidecars(ProxyKind),
    /// gRPC's own clients.
    Grpc,
}

/// The types that services make resources of.
pub(super) const SERVICE_TYPES: [&str; 4] = [kinds::LISTENER, kinds::ROUTE, kinds::CLUSTER, kinds::ENDPOINT];

impl Callers {
    /// Makes one service in a set what it is now. The domains are the mesh's, before and now.
    pub(super) fn put(
        self,
        set: &mut ResourceSet,
        domains: [&str; 2],
        before: Option<&MeshService>,
        now: Option<&MeshService>,
    ) {
        match self {
            Self::Sidecars(kind) => way_out(set, kind, before, now),
            Self::Grpc => named_target(set, domains, before, now),
        }
    }

    /// Names that resources of a service may have, by type.
    pub(super) fn names(self, domain: &str, service: &MeshService) -> BTreeSet<(&'static str, String)> {
        let mut names = BTreeSet::new();
        for port in view::tcp_ports(service) {
            let name = view::names::outbound(&service.name, port.port);
            names.extend([kinds::ROUTE, kinds::CLUSTER, kinds::ENDPOINT].map(|kind| (kind, name.clone())));
            match self {
                Self::Sidecars(_) => drop(names.insert((kinds::LISTENER, name))),
                Self::Grpc => {
                    let listeners = view::names::grpc(&service.name, port.port, domain);
                    names.extend(listeners.map(|listener| (kinds::LISTENER, listener)));
                }
            }
        }
        names
    }
}

/// One service, as its callers reach it.
fn way_out(set: &mut ResourceSet, kind: ProxyKind, before: Option<&MeshService>, now: Option<&MeshService>) {
    let mut gone: BTreeSet<String> =
        before.into_iter().flat_map(view::outbound_of).map(|(_, cluster)| cluster.name).collect();
    let ports = now.into_iter().flat_map(view::tcp_ports);
    for ((listener, cluster), port) in now.into_iter().flat_map(view::outbound_of).zip(ports) {
        gone.remove(&cluster.name);
        let old = before.and_then(|before| view::tcp_ports(before).find(|old| old.port == port.port));
        if old == Some(port) {
            continue;
        }
        let name = cluster.name.as_str();
        // Endpoints change all the time, and what leads to them does not.
        let same_way = old.is_some_and(|old| {
            (old.proxy_port, old.app_protocol) == (port.proxy_port, port.app_protocol)
                && old.routes == port.routes
        });
        match listener {
            _ if same_way => {}
            None => {
                set.remove(kinds::LISTENER, name);
                set.remove(kinds::ROUTE, name);
            }
            Some(way) => {
                set.put(Encoded::new(name, &listener::outbound(name, way.proxy_port, way.protocol)));
                if listener::is_http(way.protocol) {
                    set.put(Encoded::new(name, &route::outbound(name, way.routes)));
                } else {
                    set.remove(kinds::ROUTE, name);
                }
            }
        }
        let (encryption, endpoints) = match (kind, Encryption::of(&cluster.endpoints)) {
            // Our proxy has one transport per cluster; Envoy chooses by endpoint.
            (ProxyKind::Proxy, Encryption::Mixed) => Encryption::decide(&cluster.endpoints),
            (ProxyKind::Proxy | ProxyKind::Envoy, encryption) => (encryption, cluster.endpoints.clone()),
        };
        let message = cluster::outbound(name, cluster.sni, cluster.spiffe_ids, cluster.protocol, encryption);
        set.put(Encoded::new(name, &message));
        set.put(Encoded::new(name, &endpoint::assignment(name, &endpoints, cluster.overflow)));
    }
    for name in gone {
        for type_url in [kinds::LISTENER, kinds::ROUTE, kinds::CLUSTER, kinds::ENDPOINT] {
            set.remove(type_url, &name);
        }
    }
}

/// One service, as gRPC's own clients reach it.
fn named_target(
    set: &mut ResourceSet,
    [old_domain, domain]: [&str; 2],
    before: Option<&MeshService>,
    now: Option<&MeshService>,
) {
    let mut gone = BTreeSet::new();
    for (target, _) in before.into_iter().flat_map(|service| view::targets_of(old_domain, service)) {
        gone.extend(target.listeners.map(|listener| (kinds::LISTENER, listener)));
        gone.extend([kinds::ROUTE, kinds::CLUSTER, kinds::ENDPOINT].map(|kind| (kind, target.name.clone())));
    }
    for (target, c) in now.into_iter().flat_map(|service| view::targets_of(domain, service)) {
        let name = target.name.as_str();
        let (encryption, endpoints) = Encryption::decide(&c.endpoints);
        for listener in &target.listeners {
            set.put(Encoded::new(listener.as_str(), &grpc::listener(listener, name)));
            gone.remove(&(kinds::LISTENER, listener.clone()));
        }
        set.put(Encoded::new(name, &grpc::routes(name, target.port, target.routes)));
        set.put(Encoded::new(name, &grpc::cluster(name, c.sni, c.spiffe_ids, encryption)));
        set.put(Encoded::new(name, &endpoint::assignment(name, &endpoints, 0)));
        for kind in [kinds::ROUTE, kinds::CLUSTER, kinds::ENDPOINT] {
            gone.remove(&(kind, target.name.clone()));
        }
    }
    for (type_url, name) in gone {
        set.remove(type_url, &name);
    }
}
