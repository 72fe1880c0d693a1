//! What all clients of a kind have in common: translated once for all of them, and then kept up to date by what
//! changed in the mesh, so that a change costs its own size and not the mesh's.

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use mesh_model::{
    compile::{Changes, MeshModel, MeshService, ModelDiff, diff},
    identity::TrustDomain,
    records::DomainTrust,
    resource::NamespacedName,
    view::{self, Scope},
};

use super::{agent, callers::Callers, cluster, endpoint, scoped::ScopedSets, secret, service, tls};
use crate::xds::{Encoded, ProxyKind, ResourceSet, kinds};

/// What there is to have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What every agent has.
    Agents,
    /// Every policy class, of which each agent has those of its own workloads.
    Classes,
    /// The services that are visible everywhere, as these call them.
    Public(Callers),
    /// The others. Nobody has all of these: see [`scoped`](super::scoped).
    Restricted(Callers),
    /// What every gateway forwards to.
    Gateways,
    /// Nothing: what they have is their own.
    NodeProxies,
}

const PROXIES: Callers = Callers::Sidecars(ProxyKind::Proxy);
const ENVOYS: Callers = Callers::Sidecars(ProxyKind::Envoy);
const PARTS: [Part; 10] = [
    Part::Agents,
    Part::Classes,
    Part::Public(PROXIES),
    Part::Public(ENVOYS),
    Part::Public(Callers::Grpc),
    Part::Restricted(PROXIES),
    Part::Restricted(ENVOYS),
    Part::Restricted(Callers::Grpc),
    Part::Gateways,
    Part::NodeProxies,
];

/// The parts of one revision, each made when it is first asked for.
#[derive(Debug, Default)]
pub(super) struct Shared {
    parts: [OnceLock<Arc<ResourceSet>>; PARTS.len()],
    /// Selections from them, for those who are not told of everything.
    scoped: ScopedSets,
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
        self.scoped.carry_over(&next, old, new, changes);
        next
    }

    /// What clients of a scope have, at this revision, whose model it is.
    pub(super) fn of_scope(&self, callers: Callers, scope: &Scope, model: &MeshModel) -> Arc<ResourceSet> {
        match scope {
            Scope::Public => self.part(Part::Public(callers), model).clone(),
            Scope::Namespace(_) | Scope::Egress { .. } => self.scoped.get(self, callers, scope, model),
        }
    }

    pub(super) fn scoped(&self) -> &ScopedSets {
        &self.scoped
    }

    /// The same, if it is there already.
    pub(super) fn scope_made(&self, callers: Callers, scope: &Scope) -> Option<Arc<ResourceSet>> {
        match scope {
            Scope::Public => self.made(Part::Public(callers)).cloned(),
            Scope::Namespace(_) | Scope::Egress { .. } => self.scoped.made(callers, scope),
        }
    }

    /// A part, if it is there already.
    pub(super) fn made(&self, part: Part) -> Option<&Arc<ResourceSet>> {
        self.place(part).get()
    }

    fn place(&self, part: Part) -> &OnceLock<Arc<ResourceSet>> {
        let index = PARTS.iter().position(|other| *other == part).unwrap_or_default();
        &self.parts[index]
    }

    /// A part of this revision, whose model it is.
    pub(super) fn part(&self, part: Part, model: &MeshModel) -> &Arc<ResourceSet> {
        self.place(part).get_or_init(|| {
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
            Part::Public(callers) | Part::Restricted(callers) => {
                let public = matches!(self, Part::Public(_));
                let domains = [old.unwrap_or(new), new].map(|model| model.cluster.mesh_domain.as_str());
                // The domain of the mesh is in every name that gRPC asks for.
                let all = changes.cluster && callers == Callers::Grpc;
                let all = all.then(|| new.services.keys()).into_iter().flatten();
                for name in each(&changes.services).chain(all) {
                    let found = |model: &'_ MeshModel| model.services.get(name).cloned();
                    let both = [old.and_then(found), found(new)];
                    let both = both.map(|found| found.filter(|s| s.visibility.is_everywhere() == public));
                    callers.put(set, domains, both[0].as_deref(), both[1].as_deref());
                }
                if public && callers != Callers::Grpc && bundles_changed(changes) {
                    let bundles = view::trust_bundles(new);
                    let roots = bundles.iter().map(|(domain, roots)| (domain, roots.as_slice()));
                    set.put(Encoded::new(tls::TRUST_BUNDLES, &secret::trust_bundles(roots)));
                }
            }
            Part::NodeProxies => {}
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
pub(super) fn each<K>(changes: &Changes<K>) -> impl Iterator<Item = &K> {
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
            Some(found) => set.put(Encoded::new(name.to_string(), &service::service(found))),
            None => drop(set.remove(kinds::SERVICE, &name.to_string())),
        }
    }
    for name in each(&changes.nodes) {
        match new.nodes.get(name) {
            Some(node) => set.put(Encoded::new(name.as_str(), &agent::node(node, &new.cluster))),
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
            let message = agent::trust_bundle(domain, roots, trust_of(new, domain));
            set.put(Encoded::new(domain.as_str(), &message));
        }
    }
}

/// What belongs to the roots of a trust domain.
fn trust_of<'a>(model: &'a MeshModel, domain: &TrustDomain) -> Option<&'a DomainTrust> {
    if &model.cluster.trust_domain == domain {
        return Some(&model.cluster.trust);
    }
    model.peers.values().find(|peer| &peer.trust_domain == domain).map(|peer| &peer.trust)
}

fn classes(set: &mut ResourceSet, new: &MeshModel, changes: &ModelDiff) {
    for id in each(&changes.policy_classes) {
        match new.policy_classes.get(id).filter(|class| class.too_large().is_none()) {
            Some(class) => set.put(Encoded::new(id.to_string(), &agent::policy_class(class))),
            // Of what is too large, agents keep what they have, and give it to no further pod.
            None => drop(set.remove(kinds::POLICY_CLASS, &id.to_string())),
        }
    }
}

/// One service, as gateways forward to it.
fn way_in(set: &mut ResourceSet, before: Option<&MeshService>, now: Option<&MeshService>) {
    let mut gone: BTreeSet<String> =
        before.into_iter().flat_map(view::passthroughs_of).map(|way| way.cluster).collect();
    for way in now.into_iter().flat_map(view::passthroughs_of) {
        gone.remove(&way.cluster);
        set.put(Encoded::new(way.cluster.as_str(), &cluster::gateway(&way.cluster)));
        set.put(Encoded::new(way.cluster.as_str(), &endpoint::assignment(&way.cluster, &way.endpoints, 0)));
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
