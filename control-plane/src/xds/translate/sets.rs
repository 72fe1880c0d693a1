//! From a client's view to its resources. What several clients have in common is translated once, and what has
//! not changed since the revision before is not translated again.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

use clustermesh::export::ExportFacts;
use mesh_model::{
    compile::MeshModel,
    identity::TrustDomain,
    records::DomainTrust,
    resource::NamespacedName,
    view::{self, AgentView, GatewayView, GrpcView, SidecarView, names},
};
use xds_proto::{
    Name,
    isthmus::federation::v1::{ClusterDescription, PeerCluster},
};

use super::{
    agent,
    cluster::{self, Encryption},
    endpoint, grpc, listener, route, secret, tls,
};
use crate::xds::{Encoded, ProxyKind, ResourceSet};

/// The resources of one revision, made as clients ask for them.
#[derive(Debug, Default)]
pub struct Translation {
    /// What every agent has.
    agents: OnceLock<ResourceSet>,
    /// What every sidecar of ours has: the way out.
    proxies: OnceLock<ResourceSet>,
    /// The same for Envoys.
    envoys: OnceLock<ResourceSet>,
    /// What every gRPC client has.
    grpc: OnceLock<ResourceSet>,
    before: Option<Before>,
}

/// The revision before, as far as somebody had asked for it.
#[derive(Debug)]
struct Before {
    model: Arc<MeshModel>,
    agents: Option<ResourceSet>,
    proxies: Option<ResourceSet>,
    envoys: Option<ResourceSet>,
    grpc: Option<ResourceSet>,
}

impl Translation {
    /// Of the revision after one whose model and translation these are.
    pub fn after(model: Arc<MeshModel>, before: &Translation) -> Self {
        let before = Before {
            model,
            agents: before.agents.get().cloned(),
            proxies: before.proxies.get().cloned(),
            envoys: before.envoys.get().cloned(),
            grpc: before.grpc.get().cloned(),
        };
        Self { before: Some(before), ..Self::default() }
    }

    /// What the agent of a node is to have.
    pub fn agent(&self, model: &MeshModel, node: &str) -> ResourceSet {
        let view = view::for_agent(model, node);
        let mut set = self.agents.get_or_init(|| all_agents(&view, model, self.before.as_ref())).clone();
        set.revision = model.revision;
        for workload in &view.local {
            set.insert(Encoded::new(workload.name.to_string(), &agent::local_endpoint(workload)));
        }
        for class in &view.policy_classes {
            set.insert(Encoded::new(class.id.to_string(), &agent::policy_class(class)));
        }
        set
    }

    /// What the proxy of a workload is to have: nothing if it has no business having one.
    pub fn sidecar(&self, model: &MeshModel, workload: &NamespacedName, kind: ProxyKind) -> ResourceSet {
        let Some(view) = view::for_sidecar(model, workload) else { return ResourceSet::new(model.revision) };
        let shared = match kind {
            ProxyKind::Proxy => &self.proxies,
            ProxyKind::Envoy => &self.envoys,
        };
        let mut set = shared.get_or_init(|| all_sidecars(&view, model, kind, self.before.as_ref())).clone();
        set.revision = model.revision;
        for inbound in &view.inbound {
            let Some((first, also)) = inbound.addresses.split_first() else { continue };
            let listener =
                listener::inbound(&inbound.name, *first, also, &inbound.server_names, inbound.protocol);
            set.insert(Encoded::new(inbound.name.as_str(), &listener));
            let application = cluster::inbound(&inbound.name, inbound.port, inbound.protocol);
            set.insert(Encoded::new(inbound.name.as_str(), &application));
        }
        set
    }

    /// What a workload's own gRPC clients are to have: nothing if it is none.
    pub fn grpc(&self, model: &MeshModel, workload: &NamespacedName) -> ResourceSet {
        let Some(view) = view::for_grpc(model, workload) else { return ResourceSet::new(model.revision) };
        let mut set = self.grpc.get_or_init(|| all_grpc(&view, model, self.before.as_ref())).clone();
        set.revision = model.revision;
        set
    }
}

/// What was made of equal data before, or made now.
fn kept<M: Name>(
    before: Option<&ResourceSet>,
    same: bool,
    name: &str,
    make: impl FnOnce() -> M,
) -> Arc<Encoded> {
    let old = before.filter(|_| same).and_then(|set| set.get(&M::type_url(), name));
    old.cloned().unwrap_or_else(|| Arc::new(Encoded::new(name, &make())))
}

fn all_agents(view: &AgentView<'_>, model: &MeshModel, before: Option<&Before>) -> ResourceSet {
    let mut set = ResourceSet::new(0);
    let old = before.and_then(|b| b.agents.as_ref());
    for workload in view.workloads.iter().filter(|w| w.binding.is_some()) {
        let same =
            before.is_some_and(|b| b.model.workloads.get(&workload.name).map(Arc::as_ref) == Some(*workload));
        let make = || agent::workload_address(workload).unwrap_or_default();
        set.insert(kept(old, same, &workload.name.to_string(), make));
    }
    for service in &view.services {
        let same =
            before.is_some_and(|b| b.model.services.get(&service.name).map(Arc::as_ref) == Some(*service));
        set.insert(kept(old, same, &service.name.to_string(), || agent::service(service)));
    }
    for node in &view.nodes {
        set.insert(Encoded::new(node.name.as_str(), &agent::node(node)));
    }
    for (domain, roots) in &view.trust_bundles {
        set.insert(Encoded::new(
            domain.as_str(),
            &agent::trust_bundle(domain, roots, trust_of(model, domain)),
        ));
    }
    // Whole types that are equal are then the same in memory, and cost each client one comparison.
    if let Some(old) = old {
        set.share_with(old);
    }
    set
}

fn all_sidecars(
    view: &SidecarView<'_>,
    model: &MeshModel,
    kind: ProxyKind,
    before: Option<&Before>,
) -> ResourceSet {
    let mut set = ResourceSet::new(0);
    let old = before.and_then(|b| match kind {
        ProxyKind::Proxy => b.proxies.as_ref(),
        ProxyKind::Envoy => b.envoys.as_ref(),
    });
    let unchanged = before.map(|b| unchanged_ports(model, &b.model)).unwrap_or_default();
    for outbound in &view.outbound {
        let (name, same) = (outbound.name.as_str(), unchanged.contains(&outbound.name));
        let make = || listener::outbound(name, outbound.proxy_port, outbound.protocol);
        set.insert(kept(old, same, name, make));
        if listener::is_http(outbound.protocol) {
            set.insert(kept(old, same, name, || route::outbound(name, outbound.routes)));
        }
    }
    for c in &view.clusters {
        let (name, same) = (c.name.as_str(), unchanged.contains(&c.name));
        let (encryption, endpoints) = match (kind, Encryption::of(&c.endpoints)) {
            // Our proxy has one transport per cluster; Envoy chooses by endpoint.
            (ProxyKind::Proxy, Encryption::Mixed) => Encryption::decide(&c.endpoints),
            (ProxyKind::Proxy | ProxyKind::Envoy, encryption) => (encryption, c.endpoints.clone()),
        };
        let make = || cluster::outbound(name, c.sni, c.spiffe_ids, c.protocol, encryption);
        set.insert(kept(old, same, name, make));
        set.insert(kept(old, same, name, || endpoint::assignment(name, &endpoints)));
    }
    let bundles = view::trust_bundles(model);
    let secret = secret::trust_bundles(bundles.iter().map(|(domain, roots)| (domain, roots.as_slice())));
    set.insert(Encoded::new(tls::TRUST_BUNDLES, &secret));
    if let Some(old) = old {
        set.share_with(old);
    }
    set
}

fn all_grpc(view: &GrpcView<'_>, model: &MeshModel, before: Option<&Before>) -> ResourceSet {
    let mut set = ResourceSet::new(0);
    let old = before.and_then(|b| b.grpc.as_ref());
    let unchanged = before.map(|b| unchanged_ports(model, &b.model)).unwrap_or_default();
    for target in &view.targets {
        let (name, same) = (target.name.as_str(), unchanged.contains(&target.name));
        for listener in &target.listeners {
            set.insert(kept(old, same, listener, || grpc::listener(listener, name)));
        }
        set.insert(kept(old, same, name, || grpc::routes(name, target.port, target.routes)));
    }
    for c in &view.clusters {
        let (name, same) = (c.name.as_str(), unchanged.contains(&c.name));
        let (encryption, endpoints) = Encryption::decide(&c.endpoints);
        set.insert(kept(old, same, name, || grpc::cluster(name, c.sni, c.spiffe_ids, encryption)));
        set.insert(kept(old, same, name, || endpoint::assignment(name, &endpoints)));
    }
    if let Some(old) = old {
        set.share_with(old);
    }
    set
}

/// What belongs to the roots of a trust domain.
fn trust_of<'a>(model: &'a MeshModel, domain: &TrustDomain) -> Option<&'a DomainTrust> {
    if &model.cluster.trust_domain == domain {
        return Some(&model.cluster.trust);
    }
    model.peers.values().find(|peer| &peer.trust_domain == domain).map(|peer| &peer.trust)
}

/// Names of the outbound resources whose service is what it was.
fn unchanged_ports(model: &MeshModel, before: &MeshModel) -> HashSet<String> {
    let same = model.services.values().filter(|service| before.services.get(&service.name) == Some(*service));
    same.flat_map(|service| service.ports.iter().map(|port| names::outbound(&service.name, port.port)))
        .collect()
}

/// What a gateway is to have.
pub fn gateway(model: &MeshModel, workload: &NamespacedName) -> ResourceSet {
    let mut set = ResourceSet::new(model.revision);
    let Some(GatewayView { listener: name, port, passthroughs, .. }) = view::for_gateway(model, workload)
    else {
        return set;
    };
    if let Some(message) = listener::gateway(&name, port, &passthroughs) {
        set.insert(Encoded::new(name.as_str(), &message));
    }
    for p in &passthroughs {
        set.insert(Encoded::new(p.cluster.as_str(), &cluster::gateway(&p.cluster)));
        set.insert(Encoded::new(p.cluster.as_str(), &endpoint::assignment(&p.cluster, &p.endpoints)));
    }
    set
}

/// What another cluster is to have: nothing until it has joined.
pub fn peer(
    model: &MeshModel,
    cluster: &str,
    description: ClusterDescription,
    facts: impl Fn(&NamespacedName) -> ExportFacts,
) -> ResourceSet {
    let mut set = ResourceSet::new(model.revision);
    if !model.peers.contains_key(cluster) {
        return set;
    }
    let exported = clustermesh::export::exported_services(model, facts);
    // Changes with what is exported and not with the whole state: a peer is not to be woken for nothing.
    let revision = exported.values().map(|service| service.origin_revision).max().unwrap_or(0);
    let name = description.cluster.clone();
    set.insert(Encoded::new(name, &PeerCluster { description: Some(description), revision }));
    for (name, service) in exported {
        set.insert(Encoded::new(name, &service));
    }
    set
}

/// Shares what is equal to a client's resources before; the very same set if all of it is.
pub fn keep_equal(mut new: ResourceSet, before: &Arc<ResourceSet>) -> Arc<ResourceSet> {
    new.share_with(before);
    if new.shares_all(before) { before.clone() } else { Arc::new(new) }
}
