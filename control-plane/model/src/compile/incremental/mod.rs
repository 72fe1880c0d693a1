//! The compiler that remembers: of a new state it compiles what changed.
//!
//! The maps of two states share what neither changed, so that what did is found without looking at the rest. From
//! there, indexes lead to the workloads, classes and services that a change concerns; each of these is compiled
//! whole, by the same functions that [`compile`](super::compile) uses, and kept if it came out as it was.

mod identities;
mod labels;
mod peers;
mod policies;
mod scopes;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::{OrdMap, ordmap::DiffItem};

use super::{
    Changes, Input, MeshModel, ModelDiff, class::Numbering, diff, services as all_services,
    workloads as all_workloads,
};
use crate::{
    identity::IdentityKey,
    policy::{Namespaces, NormalPolicy, undeclared},
    records::{NodeRecord, StoredMeta},
    resource::{Kind, Labels, NamespacedName, Object, ObjectKey, Service, Workload},
};
use identities::{Before, Counted};
use labels::{Labelled, remove_from};
use policies::{Ground, Member, Policies, Round, host};
use services::{Kept, Services};

/// Compiles one state after the other. Equal to [`compile`](super::compile) at every step, whatever came before.
#[derive(Debug, Default)]
pub struct Compiler {
    numbering: Numbering,
    last: Option<Last>,
}

/// The last state with all that is derived from it.
#[derive(Debug)]
struct Last {
    input: Input,
    model: MeshModel,
    declared: Declared,
    identities: Counted,
    policies: Policies,
    services: Services,
}

/// Declared workloads by what else changes them, or what they change.
#[derive(Debug, Default)]
struct Declared {
    labelled: Labelled<NamespacedName>,
    /// By the address that the object itself fixes.
    fixed: BTreeMap<IpAddr, BTreeSet<NamespacedName>>,
    by_identity: BTreeMap<Arc<IdentityKey>, BTreeSet<NamespacedName>>,
    /// Nodes by their address.
    nodes: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// One entry of a map, as it was and as it is.
type Changed<K, V> = Vec<(K, Option<V>, Option<V>)>;
type ChangedObjects = Changed<ObjectKey, Arc<Object>>;
type ChangedNodes = Changed<String, Arc<NodeRecord>>;

impl Compiler {
    /// With numbers for classes that collide soon.
    #[cfg(test)]
    pub(super) fn numbered(numbering: Numbering) -> Self {
        Self { numbering, last: None }
    }

    /// The mesh of this state, and what is different from the state before. The first time everything is.
    pub fn compile(&mut self, input: Input) -> (Arc<MeshModel>, ModelDiff) {
        let numbering = self.numbering;
        let Some(last) = &mut self.last else {
            let mut last = Last::nothing(&input, numbering);
            last.advance(input);
            let model = Arc::new(last.model.clone());
            self.last = Some(last);
            return (model.clone(), diff::all(&model));
        };
        let changes = if last.input.same_names(&input) {
            last.advance(input)
        } else {
            // Every SPIFFE ID and SNI is another one.
            let mut fresh = Last::nothing(&input, numbering);
            fresh.advance(input);
            let changes = diff::diff(&last.model, &fresh.model);
            *last = fresh;
            changes
        };
        (Arc::new(last.model.clone()), changes)
    }
}

impl Last {
    /// A cluster of this name in which nothing is.
    fn nothing(input: &Input, numbering: Numbering) -> Self {
        Self {
            input: Input::empty(input.cluster.clone()),
            model: MeshModel::empty(input.cluster.clone()),
            declared: Declared::default(),
            identities: Counted::default(),
            policies: Policies::numbered(numbering),
            services: Services::default(),
        }
    }

    fn advance(&mut self, new: Input) -> ModelDiff {
        let old = std::mem::replace(&mut self.input, new);
        let objects = changed(&old.objects, &self.input.objects);
        let nodes = changed(&old.nodes, &self.input.nodes);
        let peers = changed(&old.peers, &self.input.peers);

        let (dirty, renumbered) = self.dirty_workloads(&old, &objects, &nodes);
        let mut touched = BTreeSet::new();
        self.touch_services(&old, &objects, &mut touched);
        let round = self.classify(&old, (&objects, &nodes), &dirty, &renumbered);
        let host_classes = self.take_hosts(&round, &nodes);
        let moved = round.moved.union(&self.rescoped(&old, &objects)).cloned().collect();
        let workloads = self.compile_workloads(&old, &dirty, &moved, &mut touched);
        let egress_scopes = self.compile_scopes(&objects);
        let policy_classes = self.take_classes(round);
        self.touch_zones(&nodes, &mut touched);
        for (cluster, old, new) in &peers {
            self.services.peer(cluster, old.as_ref(), new.as_ref(), &mut touched);
        }
        let services = self.compile_services(touched);

        self.model.revision = self.input.revision;
        self.model.nodes = self.input.nodes.clone();
        self.model.peers = self.input.peers.clone();
        self.model.cluster = self.input.cluster.clone();
        ModelDiff {
            cluster: old.cluster != self.input.cluster,
            nodes: names(nodes),
            workloads,
            services,
            policy_classes,
            host_classes,
            peers: names(peers),
            egress_scopes,
        }
    }

    /// Workloads of which something may be different, and of these the ones whose identity may have another
    /// number.
    fn dirty_workloads(
        &mut self,
        old: &Input,
        objects: &ChangedObjects,
        nodes: &ChangedNodes,
    ) -> (BTreeSet<NamespacedName>, BTreeSet<NamespacedName>) {
        let mut dirty = BTreeSet::new();
        for (key, old, new) in objects.iter().filter(|(key, ..)| key.kind == Kind::Workload) {
            let trust_domain = &self.input.cluster.trust_domain;
            if let Some(Object::Workload(workload)) = old.as_deref() {
                self.declared.forget(workload, &IdentityKey::of(trust_domain, workload));
            }
            if let Some(Object::Workload(workload)) = new.as_deref() {
                self.declared.learn(workload, IdentityKey::of(trust_domain, workload));
            }
            dirty.insert(key.name.clone());
        }
        for (_, old, new) in nodes {
            for (node, present) in [(old, false), (new, true)] {
                let Some(node) = node else { continue };
                for address in node.addresses() {
                    if present {
                        self.declared.nodes.entry(address).or_default().insert(node.name.clone());
                    } else {
                        remove_from(&mut self.declared.nodes, &address, &node.name);
                    }
                    dirty.extend(self.declared.fixed.get(&address).into_iter().flatten().cloned());
                }
            }
        }
        for (name, ..) in changed(&old.bindings, &self.input.bindings) {
            if self.input.object(Kind::Workload, &name).is_some() {
                dirty.insert(name);
            }
        }
        let mut renumbered = BTreeSet::new();
        for key in old.identities.renumbered(&self.input.identities) {
            renumbered.extend(self.declared.by_identity.get(&key).into_iter().flatten().cloned());
        }
        dirty.extend(renumbered.iter().cloned());
        (dirty, renumbered)
    }

    /// Counts identities, regroups workloads, and settles what the classes are.
    fn classify(
        &mut self,
        old: &Input,
        (objects, nodes): (&ChangedObjects, &ChangedNodes),
        dirty: &BTreeSet<NamespacedName>,
        renumbered: &BTreeSet<NamespacedName>,
    ) -> Round {
        let mut before = Before::new();
        // A binding alone is nothing to policy.
        let declared = |input: &Input, name: &NamespacedName| -> Option<Arc<Object>> {
            input.objects.get(&ObjectKey { kind: Kind::Workload, name: name.clone() }).cloned()
        };
        let concerned: Vec<(&NamespacedName, Option<Arc<Object>>)> = dirty
            .iter()
            .map(|name| (name, declared(old, name), declared(&self.input, name)))
            .filter(|(name, before, after)| before != after || renumbered.contains(*name))
            .map(|(name, _, after)| (name, after))
            .collect();
        for (name, _) in &concerned {
            self.identities.forget(name, &mut before);
        }
        for (_, object) in &concerned {
            let Some(Object::Workload(workload)) = object.as_deref() else { continue };
            let key = IdentityKey::of(&self.input.cluster.trust_domain, workload);
            let Some((key, _)) = self.declared.by_identity.get_key_value(&key) else { continue };
            if let Some(number) = self.input.identities.lookup(key) {
                self.identities.count(workload, number, key, &mut before);
            }
        }
        let shifts = self.identities.shifts(before);
        let mut round = Round::default();
        let mut regroup: BTreeSet<NamespacedName> =
            concerned.iter().map(|(name, _)| (*name).clone()).collect();
        let edited = objects.iter().map(|(key, ..)| key).filter(|key| key.kind.is_policy()).cloned();
        let policies: BTreeSet<ObjectKey> =
            edited.chain(self.policies.reading(&relabelled(objects))).collect();
        let namespaces = Namespaces::of(&self.input.objects);
        for key in &policies {
            let new = self.input.objects.get(key);
            let new = new.map(|object| NormalPolicy::all_of(object, namespaces)).unwrap_or_default();
            let labels_of = |name: &NamespacedName| match self.input.object(Kind::Workload, name) {
                Some(Object::Workload(workload)) => Some(super::class::policy_labels(workload)),
                _ => None,
            };
            let selected = self.policies.replace(key, new, &self.declared.labelled, labels_of, &mut round);
            regroup.extend(selected);
        }
        for name in &regroup {
            let workload = match self.input.object(Kind::Workload, name) {
                Some(Object::Workload(workload)) => Some(workload),
                _ => None,
            };
            self.policies.regroup(name, workload.map(Member::Workload), &self.identities, &mut round);
        }
        self.regroup_hosts(nodes, &mut round);
        let address =
            |node: &Option<Arc<NodeRecord>>| node.as_ref().map(|node| node.addresses().collect::<Vec<_>>());
        let moved = nodes.iter().any(|(_, before, after)| address(before) != address(after));
        let ground = Ground {
            addresses: &self.declared.nodes,
            input: &self.input,
            services: &self.services,
            changed_services: changed_services(&self.input, objects),
            moved,
        };
        self.policies.settle(&shifts, &self.identities, &ground, round)
    }

    /// All of them after a change of a policy that selects nodes; else those that changed.
    fn regroup_hosts(&mut self, nodes: &ChangedNodes, round: &mut Round) {
        let changed: BTreeMap<&String, Option<&Arc<NodeRecord>>> = match round.hosts {
            true => {
                let gone = nodes.iter().filter(|(_, _, new)| new.is_none()).map(|(name, ..)| (name, None));
                self.input.nodes.iter().map(|(name, node)| (name, Some(node))).chain(gone).collect()
            }
            false => nodes.iter().map(|(name, _, new)| (name, new.as_ref())).collect(),
        };
        for (name, node) in changed {
            let labels = node.map(|node| node.labels());
            let member = labels.as_ref().map(Member::Node);
            self.policies.regroup(&host(name), member, &self.identities, round);
        }
    }

    /// The classes of nodes after a round.
    fn take_hosts(&mut self, round: &Round, nodes: &ChangedNodes) -> Changes<String> {
        let mut changes = Changes::none();
        let moved = round.moved.iter().filter(|name| name.namespace.is_empty()).map(|name| &name.name);
        let names: BTreeSet<&String> = moved.chain(nodes.iter().map(|(name, ..)| name)).collect();
        for name in names {
            let after = self.policies.class_of(&host(name));
            if self.model.host_classes.get(name) != after.as_ref() {
                changes.put(&mut self.model.host_classes, name, after);
            }
        }
        changes
    }

    /// Compiles workloads and finds the services that they concern.
    fn compile_workloads(
        &mut self,
        old: &Input,
        dirty: &BTreeSet<NamespacedName>,
        moved: &BTreeSet<NamespacedName>,
        touched: &mut BTreeSet<NamespacedName>,
    ) -> Changes<NamespacedName> {
        let mut changes = Changes::none();
        for name in dirty.union(moved) {
            let before = self.model.workloads.get(name).cloned();
            let declared = match self.input.object(Kind::Workload, name) {
                Some(Object::Workload(workload)) => Some(workload),
                _ => None,
            };
            let after = declared.map(|workload| {
                let node_at = |address| self.declared.nodes.get(&address)?.first().cloned();
                let mut compiled = all_workloads::one(&self.input, workload, &node_at);
                compiled.policy_class = self.policies.class_of(name).unwrap_or(0);
                Arc::new(compiled)
            });
            if dirty.contains(name) {
                let declared_before = match old.object(Kind::Workload, name) {
                    Some(Object::Workload(workload)) => Some(workload),
                    _ => None,
                };
                self.services.workload(&self.input, declared_before, before.as_deref(), touched);
                self.services.workload(&self.input, declared, after.as_deref(), touched);
            }
            if before == after {
                continue;
            }
            self.model.index.workload(before.as_deref(), after.as_deref());
            changes.put(&mut self.model.workloads, name, after);
        }
        changes
    }

    fn take_classes(&mut self, round: Round) -> Changes<u32> {
        let mut changes = Changes::none();
        for (id, class) in round.classes {
            let before = self.model.policy_classes.get(&id).map(Arc::as_ref);
            if before != class.as_ref() {
                self.model.index.class(id, before, class.as_ref());
                changes.put(&mut self.model.policy_classes, &id, class.map(Arc::new));
            }
        }
        changes
    }

    /// Services that objects other than workloads concern.
    fn touch_services(
        &mut self,
        old: &Input,
        objects: &ChangedObjects,
        touched: &mut BTreeSet<NamespacedName>,
    ) {
        for (key, old, new) in objects {
            let (old, new) = (old.as_deref(), new.as_deref());
            self.services.object(key, old, new, &self.declared.labelled, touched);
        }
        for (key, before, after) in changed(&old.object_meta, &self.input.object_meta) {
            let created = |meta: &Option<Arc<StoredMeta>>| meta.as_ref().map(|m| m.created_unix);
            if key.kind == Kind::HttpRoute && created(&before) != created(&after) {
                self.services.aged(self.input.object(key.kind, &key.name), touched);
            }
        }
        touched.extend(changed(&old.allocations, &self.input.allocations).into_iter().map(|(name, ..)| name));
    }

    /// Services with endpoints on nodes that are in another zone than before.
    fn touch_zones(&self, nodes: &ChangedNodes, touched: &mut BTreeSet<NamespacedName>) {
        let zone = |node: &Option<Arc<NodeRecord>>| {
            node.as_ref().map(|node| node.facts.zone.clone()).filter(|zone| !zone.is_empty())
        };
        for (name, ..) in nodes.iter().filter(|(_, old, new)| zone(old) != zone(new)) {
            for workload in self.model.index.on_node(name) {
                let declared = match self.input.object(Kind::Workload, workload) {
                    Some(Object::Workload(declared)) => Some(declared),
                    _ => None,
                };
                let compiled = self.model.workloads.get(workload).map(Arc::as_ref);
                self.services.workload(&self.input, declared, compiled, touched);
            }
        }
    }

    fn compile_services(&mut self, touched: BTreeSet<NamespacedName>) -> Changes<NamespacedName> {
        let mut changes = Changes::none();
        for name in touched {
            let kept = Kept {
                input: &self.input,
                model: &self.model,
                declared: &self.declared.labelled,
                services: &self.services,
            };
            let after = all_services::one(&self.input, &kept, &name).map(Arc::new);
            let before = self.model.services.get(&name).cloned();
            if before == after {
                continue;
            }
            self.model.index.service(before.as_deref(), after.as_deref());
            changes.put(&mut self.model.services, &name, after);
        }
        changes
    }
}

/// What the namespaces that changed were labelled with, and are.
fn relabelled(objects: &ChangedObjects) -> Vec<(Labels, Labels)> {
    let namespaces = objects.iter().filter(|(key, ..)| key.kind == Kind::Namespace);
    let labels = |key: &ObjectKey, object: &Option<Arc<Object>>| {
        object.as_ref().map_or_else(|| undeclared(&key.name.name), |object| object.meta().labels.clone())
    };
    namespaces.map(|(key, before, after)| (labels(key, before), labels(key, after))).collect()
}

/// Services that changed, or of which a slice did, as they were and as they are.
fn changed_services<'a>(input: &'a Input, objects: &'a ChangedObjects) -> Vec<&'a Service> {
    let both = objects.iter().flat_map(|(_, old, new)| [old, new]).flatten();
    let of = |object: &'a Arc<Object>| match object.as_ref() {
        Object::Service(service) => Some(service),
        Object::EndpointSlice(slice) => {
            let name = NamespacedName::new(&slice.meta.name.namespace, &slice.service);
            match input.object(Kind::Service, &name) {
                Some(Object::Service(service)) => Some(service),
                _ => None,
            }
        }
        _ => None,
    };
    both.filter_map(of).collect()
}

impl Declared {
    fn learn(&mut self, workload: &Workload, key: IdentityKey) {
        let name = &workload.meta.name;
        self.labelled.insert(&name.namespace, &workload.meta.labels, name);
        if let Some(address) = workload.address {
            self.fixed.entry(address).or_default().insert(name.clone());
        }
        match self.by_identity.get_mut(&key) {
            Some(set) => drop(set.insert(name.clone())),
            None => drop(self.by_identity.insert(Arc::new(key), BTreeSet::from([name.clone()]))),
        }
    }

    fn forget(&mut self, workload: &Workload, key: &IdentityKey) {
        let name = &workload.meta.name;
        self.labelled.remove(&name.namespace, &workload.meta.labels, name);
        if let Some(address) = workload.address {
            remove_from(&mut self.fixed, &address, name);
        }
        remove_from(&mut self.by_identity, key, name);
    }
}

impl<K: Ord + Clone> Changes<K> {
    fn none() -> Self {
        Self { changed: Vec::new(), removed: Vec::new() }
    }

    fn put<V: Clone>(&mut self, map: &mut OrdMap<K, V>, key: &K, value: Option<V>) {
        match value {
            Some(value) => {
                map.insert(key.clone(), value);
                self.changed.push(key.clone());
            }
            None => {
                map.remove(key);
                self.removed.push(key.clone());
            }
        }
    }
}

/// What two maps do not share, in the order of keys.
fn changed<K: Ord + Clone, V: PartialEq + Clone>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> Changed<K, V> {
    old.diff(new)
        .map(|item| match item {
            DiffItem::Add(key, value) => (key.clone(), None, Some(value.clone())),
            DiffItem::Remove(key, value) => (key.clone(), Some(value.clone()), None),
            DiffItem::Update { old: (_, old), new: (key, new) } => {
                (key.clone(), Some(old.clone()), Some(new.clone()))
            }
        })
        .collect()
}

fn names<K: Ord + Clone, V>(changed: Changed<K, V>) -> Changes<K> {
    let mut changes = Changes::none();
    for (key, _, new) in changed {
        if new.is_some() { changes.changed.push(key) } else { changes.removed.push(key) }
    }
    changes
}
