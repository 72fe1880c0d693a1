//! From a client's view to its resources. What several clients have in common is translated once.

use std::sync::{Arc, OnceLock};

use clustermesh::export::ExportFacts;
use mesh_model::{
    compile::MeshModel,
    resource::NamespacedName,
    view::{self, AgentView, GatewayView, SidecarView},
};
use xds_proto::isthmus::federation::v1::{ClusterDescription, PeerCluster};

use super::{
    agent,
    cluster::{self, Encryption},
    endpoint, listener, route, secret, tls,
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
}

impl Translation {
    /// What the agent of a node is to have.
    pub fn agent(&self, model: &MeshModel, node: &str) -> ResourceSet {
        let view = view::for_agent(model, node);
        let mut set = self.agents.get_or_init(|| all_agents(&view)).clone();
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
        let mut set = shared.get_or_init(|| all_sidecars(&view, model, kind)).clone();
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
}

fn all_agents(view: &AgentView<'_>) -> ResourceSet {
    let mut set = ResourceSet::new(0);
    for workload in &view.workloads {
        if let Some(address) = agent::workload_address(workload) {
            set.insert(Encoded::new(address.name.as_str(), &address));
        }
    }
    for service in &view.services {
        set.insert(Encoded::new(service.name.to_string(), &agent::service(service)));
    }
    for node in &view.nodes {
        set.insert(Encoded::new(node.name.as_str(), &agent::node(node)));
    }
    for (domain, roots) in &view.trust_bundles {
        set.insert(Encoded::new(domain.as_str(), &agent::trust_bundle(domain, roots)));
    }
    set
}

fn all_sidecars(view: &SidecarView<'_>, model: &MeshModel, kind: ProxyKind) -> ResourceSet {
    let mut set = ResourceSet::new(0);
    for outbound in &view.outbound {
        let name = outbound.name.as_str();
        set.insert(Encoded::new(name, &listener::outbound(name, outbound.proxy_port, outbound.protocol)));
        if listener::is_http(outbound.protocol) {
            set.insert(Encoded::new(name, &route::outbound(name, outbound.routes)));
        }
    }
    for c in &view.clusters {
        let (encryption, endpoints) = match (kind, Encryption::of(&c.endpoints)) {
            // Our proxy has one transport per cluster; Envoy chooses by endpoint.
            (ProxyKind::Proxy, Encryption::Mixed) => Encryption::decide(&c.endpoints),
            (ProxyKind::Proxy | ProxyKind::Envoy, encryption) => (encryption, c.endpoints.clone()),
        };
        let message = cluster::outbound(&c.name, c.sni, c.spiffe_ids, c.protocol, encryption);
        set.insert(Encoded::new(c.name.as_str(), &message));
        set.insert(Encoded::new(c.name.as_str(), &endpoint::assignment(&c.name, &endpoints)));
    }
    let bundles = view::trust_bundles(model);
    let secret = secret::trust_bundles(bundles.iter().map(|(domain, roots)| (domain, roots.as_slice())));
    set.insert(Encoded::new(tls::TRUST_BUNDLES, &secret));
    set
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
    let same_types = new.types().count() == before.types().count();
    let same = |(type_url, resources): (&str, &Arc<crate::xds::TypeResources>)| {
        before.of(type_url).is_some_and(|old| Arc::ptr_eq(old, resources))
    };
    if same_types && new.types().all(same) { before.clone() } else { Arc::new(new) }
}
