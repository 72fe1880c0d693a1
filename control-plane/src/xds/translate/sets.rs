//! From the mesh to what one client is to have: what it shares with all of its kind, and its own part.
//!
//! # Whom a revision concerns
//!
//! The set of a client is the very same `Arc`, with its older [`ResourceSet::revision`], as long as nothing in it is
//! different; a set that differs from the one before has the revision that it was made from. So a revision concerns a
//! client if and only if its set changed between the last revision compiled before it and the first compiled from it on
//! ([`ResourceSet::shares_all`] is false of the two); but for what it may have by name and has not asked for, which only
//! its session can tell ([`Session::is_concerned_by`](crate::xds::session::Session::is_concerned_by)).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use mesh_model::{
    compile::{MeshModel, ModelDiff},
    resource::NamespacedName,
    view::{self, Scope},
};

use super::{
    admitted, agent,
    callers::Callers,
    cluster, listener, node_proxy,
    shared::{Part, Shared, each, served},
};
use crate::xds::{Client, Encoded, ResourceSet, TypeResources, kinds};

/// How many revisions back it is known whom they concerned. A client that has missed more has its own part made anew.
const STEPS: usize = 64;

/// The resources of one revision, made as clients ask for them.
#[derive(Debug, Default)]
pub struct Translation {
    shared: Shared,
    /// Oldest first; each begins where the one before ends.
    steps: VecDeque<Arc<Step>>,
}

/// Whose own part may be another one after a revision.
#[derive(Debug)]
struct Step {
    /// The revision before.
    before: u64,
    revision: u64,
    everybody: bool,
    nodes: BTreeSet<String>,
    /// As `<namespace>/<name>`.
    workloads: BTreeSet<String>,
    classes: BTreeSet<u32>,
    /// Classes that may admit other callers than before, though they say the same.
    admitting: BTreeSet<u32>,
    /// What gateways forward to.
    exported: bool,
    /// What is led to proxies of nodes.
    led: bool,
}

/// What a client has, and what it was made of.
#[derive(Debug, Clone)]
pub struct Made {
    /// What it has.
    pub set: Arc<ResourceSet>,
    /// The newest revision at which that was right.
    pub at: u64,
    /// Which services it is told of, if it calls any.
    scope: Option<Scope>,
    shared: Option<Arc<ResourceSet>>,
    own: Arc<Own>,
}

/// What a client has in common with others.
enum Common {
    Nothing,
    Part(Part),
    /// With those that are told of the same services.
    Scope(Callers, Scope),
}

/// What a client does not share.
#[derive(Debug, Default)]
struct Own {
    resources: Vec<Arc<Encoded>>,
    /// Policy classes of an agent's workloads, of a sidecar's, or of the pods that a node's proxy serves.
    classes: BTreeSet<u32>,
    /// It may read requests by policies.
    reads: bool,
    /// It has no business here, or not any more: it is to have nothing.
    stranger: bool,
}

impl Made {
    /// A set that nothing in is shared by plan.
    pub fn alone(set: ResourceSet) -> Self {
        Self { at: set.revision, set: Arc::new(set), scope: None, shared: None, own: Arc::default() }
    }
}

impl Translation {
    /// Of the revision after one whose model is `old`.
    pub fn after(&self, old: &MeshModel, new: &MeshModel, changes: &ModelDiff) -> Self {
        let mut steps = self.steps.clone();
        if steps.len() == STEPS {
            steps.pop_front();
        }
        steps.push_back(Arc::new(Step::of(old, new, changes)));
        Self { shared: self.shared.after(old, new, changes), steps }
    }

    /// What a client is to have at the revision of `model`, and what of that it had `before` is the same. Peers have
    /// their own: see [`Exports`](super::peer::Exports).
    pub fn view(&self, model: &MeshModel, client: &Client, before: Option<&Made>) -> Made {
        if matches!(client, Client::Peer { .. }) {
            return Made::alone(ResourceSet::new(model.revision));
        }
        let same_own = before.filter(|before| !self.concerns(client, before)).map(|before| &before.own);
        let own = same_own.cloned().unwrap_or_else(|| Arc::new(self.own(model, client)));
        let common = if own.stranger { Common::Nothing } else { Common::of(model, client) };
        let shared = match &common {
            Common::Nothing => None,
            Common::Part(part) => Some(self.shared.part(*part, model).clone()),
            Common::Scope(callers, scope) => Some(self.shared.of_scope(*callers, scope, model)),
        };
        let scope = match common {
            Common::Scope(_, scope) => Some(scope),
            Common::Nothing | Common::Part(_) => None,
        };
        let same_shared = |before: &&Made| match (&before.shared, &shared) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if let Some(before) = before.filter(same_shared)
            && same_own.is_some()
        {
            return Made { at: model.revision, ..before.clone() };
        }
        let mut set = compose(model.revision, shared.as_deref(), &own, before);
        // Maps of another descent: what is equal in them is to be the same as before.
        if let Some(before) = before.filter(|before| before.scope != scope) {
            set.share_with(&before.set);
        }
        let set = match before {
            Some(before) if set.shares_all(&before.set) => before.set.clone(),
            _ => Arc::new(set),
        };
        Made { set, at: model.revision, scope, shared, own }
    }

    /// Whether all that a client shares with others has been made: what everybody of its kind has, or the selection
    /// for its namespace or Sidecar, and for agents the policy classes that theirs are taken from.
    pub fn has_shared(&self, model: &MeshModel, client: &Client) -> bool {
        let has = |part| self.shared.made(part).is_some();
        match Common::of(model, client) {
            Common::Nothing => true,
            Common::Part(part) => has(part) && (part != Part::Agents || has(Part::Classes)),
            Common::Scope(callers, scope) => self.shared.scope_made(callers, &scope).is_some(),
        }
    }

    /// Whether what a client has is right at the revision of `model` too. If so it is noted. What would have to be made
    /// to tell is not: then the client is to look for itself.
    pub fn stands(&self, model: &MeshModel, client: &Client, made: &mut Made) -> bool {
        if matches!(client, Client::Peer { .. }) || self.concerns(client, made) {
            return false;
        }
        let common = if made.own.stranger { Common::Nothing } else { Common::of(model, client) };
        let same = |now: Option<&Arc<ResourceSet>>| {
            made.shared.as_ref().zip(now).is_some_and(|(before, now)| Arc::ptr_eq(before, now))
        };
        let stands = match &common {
            Common::Nothing => made.shared.is_none(),
            Common::Part(part) => same(self.shared.made(*part)),
            Common::Scope(callers, scope) => same(self.shared.scope_made(*callers, scope).as_ref()),
        };
        if stands {
            made.at = model.revision;
        }
        stands
    }

    /// Whether something has changed that the client's own part is made of.
    fn concerns(&self, client: &Client, made: &Made) -> bool {
        for step in self.steps.iter().rev() {
            if step.revision <= made.at {
                return false;
            }
            if step.concerns(client, &made.own) {
                return true;
            }
            if step.before <= made.at {
                return false;
            }
        }
        true
    }

    fn own(&self, model: &MeshModel, client: &Client) -> Own {
        let own = match client {
            Client::Agent { node } => Some(self.agents_own(model, node)),
            Client::Proxy { workload, .. } => {
                NamespacedName::parse(workload).and_then(|name| sidecars_own(model, &name))
            }
            // All of theirs is shared.
            Client::Grpc { workload } => NamespacedName::parse(workload)
                .and_then(|name| view::has_grpc(model, &name).then(Own::default)),
            Client::Gateway { workload } => {
                NamespacedName::parse(workload).and_then(|name| gateways_own(model, &name))
            }
            Client::NodeProxy { node, proxy } => Some(node_proxys_own(model, node, proxy)),
            Client::Peer { .. } => None,
        };
        own.unwrap_or(Own { stranger: true, ..Own::default() })
    }

    fn agents_own(&self, model: &MeshModel, node: &str) -> Own {
        let local = view::local_workloads(model, node);
        let host = model.host_classes.get(node);
        let classes: BTreeSet<u32> =
            local.iter().map(|workload| workload.policy_class).chain(host.copied()).collect();
        let all = self.shared.part(Part::Classes, model);
        let policy = classes.iter().filter_map(|id| all.get(kinds::POLICY_CLASS, &id.to_string()).cloned());
        let record = model.nodes.get(node).map(AsRef::as_ref);
        let endpoints = local.iter().map(|workload| {
            Encoded::new(workload.name.to_string(), &agent::local_endpoint(workload, record)).into()
        });
        let host = host.map(|class| Encoded::new(node, &agent::host_endpoint(node, record, *class)).into());
        let resources = policy.chain(endpoints).chain(host).collect();
        Own { resources, classes, ..Own::default() }
    }
}

impl Common {
    fn of(model: &MeshModel, client: &Client) -> Self {
        let (callers, workload) = match client {
            Client::Agent { .. } => return Self::Part(Part::Agents),
            Client::Gateway { .. } => return Self::Part(Part::Gateways),
            Client::NodeProxy { .. } => return Self::Part(Part::NodeProxies),
            Client::Peer { .. } => return Self::Nothing,
            Client::Proxy { workload, kind } => (Callers::Sidecars(*kind), workload),
            Client::Grpc { workload } => (Callers::Grpc, workload),
        };
        let found = NamespacedName::parse(workload).and_then(|name| model.workloads.get(&name));
        found.map_or(Self::Nothing, |workload| Self::Scope(callers, Scope::of(model, workload)))
    }
}

fn sidecars_own(model: &MeshModel, workload: &NamespacedName) -> Option<Own> {
    let mut resources: Vec<Arc<Encoded>> = Vec::new();
    for inbound in view::inbound_of(model, workload)? {
        let Some((first, also)) = inbound.addresses.split_first() else { continue };
        let (names, access) = (&inbound.server_names, inbound.access.as_ref());
        let listener = listener::inbound(&inbound.name, *first, also, names, inbound.protocol, access);
        resources.push(Encoded::new(inbound.name.as_str(), &listener).into());
        let application = cluster::inbound(&inbound.name, inbound.port, inbound.protocol);
        resources.push(Encoded::new(inbound.name.as_str(), &application).into());
    }
    let classes = model.workloads.get(workload).map(|workload| workload.policy_class).into_iter().collect();
    Some(Own { resources, classes, ..Own::default() })
}

fn gateways_own(model: &MeshModel, workload: &NamespacedName) -> Option<Own> {
    let view = view::for_gateway(model, workload)?;
    let listener = listener::gateway(&view.listener, view.port, &view.passthroughs);
    let resources = listener.map(|message| Encoded::new(view.listener.as_str(), &message).into());
    Some(Own { resources: resources.into_iter().collect(), ..Own::default() })
}

fn node_proxys_own(model: &MeshModel, node: &str, proxy: &str) -> Own {
    let view = view::for_node_proxy(model, node, proxy);
    let classes = view::local_workloads(model, node).iter().map(|workload| workload.policy_class).collect();
    let resources = node_proxy::resources(&view).into_iter().map(Arc::from).collect();
    // Rules that mean nobody today may mean somebody who comes.
    let reads = proxy == mesh_model::policy::NODE_PROXY;
    Own { resources, classes, reads, stranger: false }
}

/// The shared part with the own one put in. Types of which neither is another than before are the very same maps.
fn compose(revision: u64, shared: Option<&ResourceSet>, own: &Own, before: Option<&Made>) -> ResourceSet {
    let mut set = ResourceSet::new(revision);
    let Some(shared) = shared else { return set };
    let old_own = before.map_or(&[][..], |before| &before.own.resources[..]);
    let types = shared.types().map(|(type_url, _)| type_url);
    let types: BTreeSet<&str> =
        types.chain(own.resources.iter().map(|own| own.any.type_url.as_str())).collect();
    for type_url in types {
        let of_type = |resource: &&Arc<Encoded>| resource.any.type_url == type_url;
        let others = shared.of(type_url);
        let kept = before.filter(|before| {
            let old = before.shared.as_deref().and_then(|old| old.of(type_url));
            match (old, others) {
                (Some(old), Some(new)) => old.ptr_eq(new),
                (None, None) => before.shared.is_some(),
                _ => false,
            }
        });
        let names: BTreeSet<&str> = own.resources.iter().filter(of_type).map(|own| &*own.name).collect();
        // A type of which it has nothing of its own any more is the shared map, not that map with what is gone taken out.
        let emptied = names.is_empty() && old_own.iter().any(|old| of_type(&old));
        if let Some(before) = kept.filter(|_| !emptied) {
            set.insert_type(type_url, before.set.of(type_url).cloned().unwrap_or_default());
            for gone in old_own.iter().filter(of_type).filter(|old| !names.contains(&*old.name)) {
                set.remove(type_url, &gone.name);
            }
        } else {
            set.insert_type(type_url, others.cloned().unwrap_or_else(TypeResources::new));
        }
        own.resources.iter().filter(of_type).for_each(|resource| set.put(resource.clone()));
    }
    set.name_same_as(shared);
    set
}

impl Step {
    fn of(old: &MeshModel, new: &MeshModel, changes: &ModelDiff) -> Self {
        let mut step = Self {
            before: old.revision,
            revision: new.revision,
            everybody: changes.cluster,
            nodes: each(&changes.nodes).chain(each(&changes.host_classes)).cloned().collect(),
            workloads: BTreeSet::new(),
            classes: changes
                .policy_classes
                .changed
                .iter()
                .chain(&changes.policy_classes.removed)
                .copied()
                .collect(),
            admitting: BTreeSet::new(),
            exported: false,
            led: false,
        };
        let concerned = admitted::concerned(old, new, changes);
        step.admitting = concerned.classes;
        step.workloads = concerned.workloads;
        for name in changes.workloads.changed.iter().chain(&changes.workloads.removed) {
            step.workloads.insert(name.to_string());
            let both = [old.workloads.get(name), new.workloads.get(name)];
            let bindings = both.into_iter().flatten().filter_map(|workload| workload.binding.as_ref());
            step.nodes.extend(bindings.map(|binding| binding.node.clone()));
        }
        for name in changes.services.changed.iter().chain(&changes.services.removed) {
            let both = [old.services.get(name), new.services.get(name)].map(|found| found.map(Arc::as_ref));
            step.exported |= both.into_iter().flatten().any(|service| service.exported);
            step.led |= [old, new].into_iter().any(|model| view::is_led(model, name));
            let [before, now] = both.map(served);
            step.workloads
                .extend(before.symmetric_difference(&now).map(|(workload, ..)| workload.to_string()));
        }
        step
    }

    fn concerns(&self, client: &Client, own: &Own) -> bool {
        self.everybody
            || match client {
                Client::Agent { node } => {
                    self.nodes.contains(node) || !self.classes.is_disjoint(&own.classes)
                }
                Client::Proxy { workload, .. } => {
                    self.workloads.contains(workload)
                        || [&self.classes, &self.admitting].iter().any(|all| !all.is_disjoint(&own.classes))
                }
                Client::Grpc { workload } => self.workloads.contains(workload),
                Client::Gateway { workload } => self.exported || self.workloads.contains(workload),
                // Where it reads requests, rules are about the addresses of everybody.
                Client::NodeProxy { node, .. } => {
                    self.led
                        || self.nodes.contains(node)
                        || !self.classes.is_disjoint(&own.classes)
                        || own.reads && !(self.workloads.is_empty() && self.nodes.is_empty())
                }
                Client::Peer { .. } => true,
            }
    }
}
