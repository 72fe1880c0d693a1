//! What all clients of a kind have in common: translated once for all of them, and then kept up to date by what
//! changed in the mesh, so that a change costs its own size and not the mesh's.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use mesh_model::{
    compile::{Changes, MeshModel, MeshService, ModelDiff, diff},
    resource::NamespacedName,
    view,
};

use super::{
    agent,
    cluster::{self, Encryption},
    endpoint, grpc, listener, route, secret, tls,
};
use crate::xds::{Encoded, ProxyKind, ResourceSet, kinds};

/// What there is to have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What every agent has.
    Agents,
    /// Every policy class, of which each agent has those of its own workloads.
    Classes,
    /// The way out of every sidecar of this kind.
    Sidecars(ProxyKind),
    /// What gRPC's own clients have.
    Grpc,
    /// What every gateway forwards to.
    Gateways,
}

const PARTS: [Part; 6] = [
    Part::Agents,
    Part::Classes,
    Part::Sidecars(ProxyKind::Proxy),
    Part::Sidecars(ProxyKind::Envoy),
    Part::Grpc,
    Part::Gateways,
];

/// The parts of one revision, each made when it is first asked for.
#[derive(Debug, Default)]
pub(super) struct Shared {
    parts: [OnceLock<Arc<ResourceSet>>; PARTS.len()],
}

impl Shared {
    /// The parts of the revision after: those that somebody had asked for, with what changed. A part that nothing
    /// changed in is the very same.
    pub(super) fn after(&self, old: &MeshModel, new: &MeshModel, changes: &ModelDiff) -> Self {
        let next = Self::default();
        for (part, (before, after)) in PARTS.iter().zip(self.parts.iter().zip(&next.parts)) {
            let Some(before) = before.get() else { continue };
            let mut set = (**before).clone();
            part.update(&mut set, Some(old), new, changes);
            let set = if set.shares_all(before) { before.clone() } else { Arc::new(set) };
            // Nobody else has the new parts yet.
            let _ = after.set(set);
        }
        next
    }

    /// A part of this revision, whose model it is.
    pub(super) fn part(&self, part: Part, model: &MeshModel) -> &Arc<ResourceSet> {
        let index = PARTS.iter().position(|other| *other == part).unwrap_or_default();
        self.parts[index].get_or_init(|| {
            let nothing = MeshModel::empty(model.cluster.clone());
            let everything = ModelDiff { cluster: true, ..diff(&nothing, model) };
            let mut set = ResourceSet::new(0);
            part.update(&mut set, None, model, &everything);
            Arc::new(set)
        })
    }
}

impl Part {
    fn update(self, set: &mut ResourceSet, old: Option<&MeshModel>, new: &MeshModel, changes: &ModelDiff) {
        match self {
            Part::Agents => agents(set, new, changes),
            Part::Classes => classes(set, new, changes),
            Part::Sidecars(kind) => {
                for name in each(&changes.services) {
                    let before = old.and_then(|old| old.services.get(name)).map(Arc::as_ref);
                    way_out(set, kind, before, new.services.get(name).map(Arc::as_ref));
                }
                if bundles_changed(changes) {
                    let bundles = view::trust_bundles(new);
                    let roots = bundles.iter().map(|(domain, roots)| (domain, roots.as_slice()));
                    set.put(Encoded::new(tls::TRUST_BUNDLES, &secret::trust_bundles(roots)));
                }
            }
            Part::Grpc => {
                let domains = [old, Some(new)].map(|model| Some(model?.cluster.mesh_domain.as_str()));
                // The domain of the mesh is in every name.
                let all = changes.cluster.then(|| new.services.keys()).into_iter().flatten();
                for name in each(&changes.services).chain(all) {
                    let before = old.and_then(|old| old.services.get(name)).map(Arc::as_ref);
                    named_target(set, domains, before, new.services.get(name).map(Arc::as_ref));
                }
            }
            Part::Gateways => {
                for name in each(&changes.services) {
                    let before = old.and_then(|old| old.services.get(name)).map(Arc::as_ref);
                    way_in(set, before, new.services.get(name).map(Arc::as_ref));
                }
            }
        }
    }
}

/// Names of what is different and of what is gone.
fn each<K>(changes: &Changes<K>) -> impl Iterator<Item = &K> {
    changes.changed.iter().chain(&changes.removed)
}

fn bundles_changed(changes: &ModelDiff) -> bool {
    changes.cluster || !changes.peers.is_empty()
}

fn agents(set: &mut ResourceSet, new: &MeshModel, changes: &ModelDiff) {
    for name in each(&changes.workloads) {
        let found = new.workloads.get(name).filter(|w| view::has_address(w));
        match found.and_then(|workload| agent::workload_address(workload)) {
            Some(message) => set.put(Encoded::new(name.to_string(), &message)),
            None => drop(set.remove(kinds::WORKLOAD_ADDRESS, &name.to_string())),
        }
    }
    for name in each(&changes.services) {
        match new.services.get(name) {
            Some(service) => set.put(Encoded::new(name.to_string(), &agent::service(service))),
            None => drop(set.remove(kinds::SERVICE, &name.to_string())),
        }
    }
    for name in each(&changes.nodes) {
        match new.nodes.get(name) {
            Some(node) => set.put(Encoded::new(name.as_str(), &agent::node(node))),
            None => drop(set.remove(kinds::NODE, name)),
        }
    }
    if bundles_changed(changes) {
        let bundles = view::trust_bundles(new);
        let names: BTreeSet<&str> = bundles.keys().map(|domain| domain.as_str()).collect();
        let before = set.of(kinds::TRUST_BUNDLE).cloned().unwrap_or_default();
        for gone in before.keys().filter(|name| !names.contains(&***name)) {
            set.remove(kinds::TRUST_BUNDLE, gone);
        }
        for (domain, roots) in &bundles {
            set.put(Encoded::new(domain.as_str(), &agent::trust_bundle(domain, roots)));
        }
    }
}

fn classes(set: &mut ResourceSet, new: &MeshModel, changes: &ModelDiff) {
    for id in each(&changes.policy_classes) {
        match new.policy_classes.get(id) {
            Some(class) => set.put(Encoded::new(id.to_string(), &agent::policy_class(class))),
            None => drop(set.remove(kinds::POLICY_CLASS, &id.to_string())),
        }
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
        set.put(Encoded::new(name, &endpoint::assignment(name, &endpoints)));
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
    domains: [Option<&str>; 2],
    before: Option<&MeshService>,
    now: Option<&MeshService>,
) {
    let [old_domain, domain] = domains.map(|domain| domain.unwrap_or_default());
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
        set.put(Encoded::new(name, &endpoint::assignment(name, &endpoints)));
        for kind in [kinds::ROUTE, kinds::CLUSTER, kinds::ENDPOINT] {
            gone.remove(&(kind, target.name.clone()));
        }
    }
    for (type_url, name) in gone {
        set.remove(type_url, &name);
    }
}

/// One service, as gateways forward to it.
fn way_in(set: &mut ResourceSet, before: Option<&MeshService>, now: Option<&MeshService>) {
    let mut gone: BTreeSet<String> =
        before.into_iter().flat_map(view::passthroughs_of).map(|way| way.cluster).collect();
    for way in now.into_iter().flat_map(view::passthroughs_of) {
        gone.remove(&way.cluster);
        set.put(Encoded::new(way.cluster.as_str(), &cluster::gateway(&way.cluster)));
        set.put(Encoded::new(way.cluster.as_str(), &endpoint::assignment(&way.cluster, &way.endpoints)));
    }
    for name in gone {
        set.remove(kinds::CLUSTER, &name);
        set.remove(kinds::ENDPOINT, &name);
    }
}

/// Workloads of which a service's change tells them something about themselves: that they have become an endpoint
/// or are none any more, or another protocol or name by which they are called.
pub(super) fn served(service: Option<&MeshService>) -> BTreeSet<(&NamespacedName, u16, u16, &str, u8)> {
    let ports = service.into_iter().flat_map(view::tcp_ports);
    ports
        .flat_map(|port| {
            port.endpoints.iter().filter_map(move |endpoint| {
                let workload = endpoint.workload.as_ref()?;
                Some((
                    workload,
                    endpoint.address.port(),
                    port.port,
                    port.sni.as_str(),
                    port.app_protocol as u8,
                ))
            })
        })
        .collect()
}
