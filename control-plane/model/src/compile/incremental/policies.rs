//! Policies to classes: who is selected by what, and which classes that makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    super::{
        Input, PolicyClass,
        class::{Content, Fingerprint, Numbering, OwnPort, class, own_ports, policy_labels},
    },
    identities::{Counted, Shift},
    labels::{Labelled, Selectors},
    peers::{Peers, Resolved},
    services::Services,
};
use crate::{
    policy::NormalPolicy,
    resource::{LabelSelector, Labels, NamespacedName, ObjectKey, Service, Workload},
};

/// One policy: an object, and the place of its rule there. In the order in which [`compile`](super::super::compile)
/// meets them.
type PolicyId = (ObjectKey, usize);

/// The policies that select a workload, and the workload's meaning of the port names that they use.
type Group = (Vec<PolicyId>, Vec<OwnPort>);

#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    numbering: Numbering,
    policies: BTreeMap<PolicyId, Arc<NormalPolicy>>,
    subjects: Selectors<PolicyId>,
    group_of: BTreeMap<NamespacedName, Arc<Group>>,
    groups: BTreeMap<Arc<Group>, Members>,
    groups_of_policy: BTreeMap<PolicyId, BTreeSet<Arc<Group>>>,
    contents: BTreeMap<Fingerprint, Known>,
    /// Contents by the number that each has unless others have it too.
    firsts: BTreeMap<u32, BTreeSet<Fingerprint>>,
    /// How many of these numbers can't be given: two contents want one, or it is 0.
    collisions: usize,
    peers: Peers,
    /// Objects whose selectors read labels of namespaces.
    by_namespace_labels: BTreeSet<ObjectKey>,
    /// Policies that select nodes.
    of_hosts: BTreeSet<PolicyId>,
}

/// Who may have a class.
pub(super) enum Member<'a> {
    Workload(&'a Workload),
    /// By its labels. A node that no policy selects has no class.
    Node(&'a Labels),
}

/// What stands for a node among the names of workloads, which all have a namespace.
pub(super) fn host(node: &str) -> NamespacedName {
    NamespacedName::new("", node)
}

#[derive(Debug, Clone)]
struct Members {
    content: Fingerprint,
    names: BTreeSet<NamespacedName>,
}

#[derive(Debug, Clone)]
struct Known {
    content: Content,
    groups: BTreeSet<Arc<Group>>,
    /// None until numbers are given out.
    id: Option<u32>,
}

/// What a round of changes has come to.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Workloads whose class may have another number.
    pub(super) moved: BTreeSet<NamespacedName>,
    /// Classes that may be different; None: gone.
    pub(super) classes: BTreeMap<u32, Option<PolicyClass>>,
    /// A policy that selects nodes is new, different or gone.
    pub(super) hosts: bool,
    dirty: BTreeSet<Fingerprint>,
    stale: BTreeSet<Arc<Group>>,
    renumber: bool,
}

/// What else classes depend on: the addresses of nodes, with the nodes that have them, and services.
#[derive(Debug)]
pub(super) struct Ground<'a> {
    pub(super) addresses: &'a BTreeMap<IpAddr, BTreeSet<String>>,
    pub(super) input: &'a Input,
    pub(super) services: &'a Services,
    /// Services that are new, different or gone, or whose slices are: as they were and as they are.
    pub(super) changed_services: Vec<&'a Service>,
    /// They are others than in the round before.
    pub(super) moved: bool,
}

impl Policies {
    pub(super) fn numbered(numbering: Numbering) -> Self {
        Self { numbering, ..Self::default() }
    }

    /// Objects with a selector that says something else of a namespace than before: these are the labels that it had and
    /// has.
    pub(super) fn reading(&self, relabelled: &[(Labels, Labels)]) -> Vec<ObjectKey> {
        let turns = |selector: &LabelSelector| {
            relabelled.iter().any(|(before, after)| selector.matches(before) != selector.matches(after))
        };
        let reads = |object: &&ObjectKey| {
            let all = ((*object).clone(), 0)..=((*object).clone(), usize::MAX);
            let mut policies = self.policies.range(all).map(|(_, policy)| policy);
            policies.any(|policy| policy.namespace_selectors().any(turns))
        };
        self.by_namespace_labels.iter().filter(reads).cloned().collect()
    }

    /// An object is new, different or gone: these are its policies now. Returns the workloads that they select, or the
    /// ones before selected.
    pub(super) fn replace(
        &mut self,
        object: &ObjectKey,
        new: Vec<NormalPolicy>,
        declared: &Labelled<NamespacedName>,
        labels_of: impl Fn(&NamespacedName) -> Option<Labels>,
        round: &mut Round,
    ) -> BTreeSet<NamespacedName> {
        let mut selected = BTreeSet::new();
        let mut select = |policy: &NormalPolicy| {
            let namespace = policy.subject.namespaces.only();
            let anchor = declared.anchor(namespace, &policy.subject.pods);
            for candidate in declared.candidates(namespace, &anchor) {
                let labels = labels_of(candidate);
                if labels.is_some_and(|labels| policy.subject.matches(&candidate.namespace, &labels)) {
                    selected.insert(candidate.clone());
                }
            }
            anchor
        };
        let all = (object.clone(), 0)..=(object.clone(), usize::MAX);
        let before: Vec<PolicyId> = self.policies.range(all).map(|(id, _)| id.clone()).collect();
        for id in before {
            if let Some(old) = self.policies.remove(&id).filter(|old| old.subject.nodes.is_none()) {
                select(&old);
            }
            self.subjects.remove(&id);
            round.hosts |= self.of_hosts.remove(&id);
            round.stale.extend(self.groups_of_policy.get(&id).into_iter().flatten().cloned());
        }
        if new.iter().any(|policy| policy.namespace_selectors().next().is_some()) {
            self.by_namespace_labels.insert(object.clone());
        } else {
            self.by_namespace_labels.remove(object);
        }
        for (place, new) in new.into_iter().enumerate() {
            let id = (object.clone(), place);
            if new.subject.nodes.is_some() {
                self.of_hosts.insert(id.clone());
                self.policies.insert(id, Arc::new(new));
                round.hosts = true;
                continue;
            }
            let anchor = select(&new);
            self.subjects.insert(&id, new.subject.namespaces.only(), anchor);
            self.policies.insert(id, Arc::new(new));
        }
        selected
    }

    /// Puts a workload in the group that it belongs to now; None: it is gone.
    pub(super) fn regroup(
        &mut self,
        name: &NamespacedName,
        member: Option<Member<'_>>,
        identities: &Counted,
        round: &mut Round,
    ) {
        let group = match member {
            Some(Member::Workload(workload)) => Some(Arc::new(self.group(workload))),
            Some(Member::Node(labels)) => self.host_group(labels).map(Arc::new),
            None => None,
        };
        if self.group_of.get(name) == group.as_ref() {
            return;
        }
        if let Some(old) = self.group_of.remove(name) {
            self.leave(name, &old, round);
        }
        if let Some(group) = group {
            let group = self.join(name, group, identities, round);
            self.group_of.insert(name.clone(), group);
        }
        round.moved.insert(name.clone());
    }

    fn group(&self, workload: &Workload) -> Group {
        let labels = policy_labels(workload);
        let namespace = &workload.meta.name.namespace;
        let candidates = self.subjects.candidates(namespace, &labels);
        let selects = |id: &&PolicyId| {
            self.policies.get(*id).is_some_and(|policy| policy.subject.matches(namespace, &labels))
        };
        let selecting: Vec<&PolicyId> = candidates.into_iter().filter(selects).collect();
        let policies: Vec<Arc<NormalPolicy>> =
            selecting.iter().filter_map(|id| self.policies.get(*id).cloned()).collect();
        (selecting.into_iter().cloned().collect(), own_ports(workload, &policies))
    }

    fn host_group(&self, labels: &Labels) -> Option<Group> {
        let selects =
            |id: &&PolicyId| self.policies.get(*id).is_some_and(|policy| policy.subject.selects_node(labels));
        let selecting: Vec<PolicyId> = self.of_hosts.iter().filter(selects).cloned().collect();
        (!selecting.is_empty()).then_some((selecting, Vec::new()))
    }

    fn leave(&mut self, name: &NamespacedName, group: &Arc<Group>, round: &mut Round) {
        let Some(members) = self.groups.get_mut(group) else { return };
        members.names.remove(name);
        if !members.names.is_empty() {
            return;
        }
        let content = members.content;
        self.groups.remove(group);
        for policy in &group.0 {
            super::labels::remove_from(&mut self.groups_of_policy, policy, group);
        }
        self.unuse(&content, group, round);
    }

    fn join(
        &mut self,
        name: &NamespacedName,
        group: Arc<Group>,
        identities: &Counted,
        round: &mut Round,
    ) -> Arc<Group> {
        if let Some((known, _)) = self.groups.get_key_value(&group) {
            let known = known.clone();
            if let Some(members) = self.groups.get_mut(&known) {
                members.names.insert(name.clone());
            }
            return known;
        }
        let content = self.use_content(&group, identities, round);
        for policy in &group.0 {
            self.groups_of_policy.entry(policy.clone()).or_default().insert(group.clone());
        }
        self.groups.insert(group.clone(), Members { content, names: BTreeSet::from([name.clone()]) });
        group
    }

    fn use_content(&mut self, group: &Arc<Group>, identities: &Counted, round: &mut Round) -> Fingerprint {
        let policies = group.0.iter().filter_map(|name| self.policies.get(name).cloned()).collect();
        let content = Content { policies, own_ports: group.1.clone() };
        let fingerprint = content.fingerprint();
        if let Some(known) = self.contents.get_mut(&fingerprint) {
            known.groups.insert(group.clone());
            return fingerprint;
        }
        self.peers.add(&fingerprint, &content, identities);
        if !content.unrestricted() {
            let first = self.numbering.first(&fingerprint);
            let wanting = self.firsts.entry(first).or_default();
            let before = first == 0 && !wanting.is_empty() || wanting.len() > 1;
            wanting.insert(fingerprint);
            let after = first == 0 || wanting.len() > 1;
            self.collisions += usize::from(after) - usize::from(before);
            round.renumber |= self.collisions > 0;
        }
        let groups = BTreeSet::from([group.clone()]);
        self.contents.insert(fingerprint, Known { content, groups, id: None });
        round.dirty.insert(fingerprint);
        fingerprint
    }

    fn unuse(&mut self, fingerprint: &Fingerprint, group: &Arc<Group>, round: &mut Round) {
        let Some(known) = self.contents.get_mut(fingerprint) else { return };
        known.groups.remove(group);
        if !known.groups.is_empty() {
            return;
        }
        let Some(gone) = self.contents.remove(fingerprint) else { return };
        // Its number, or the one that it stood in the way of, may be another's now.
        round.renumber |= self.collisions > 0;
        self.peers.remove(fingerprint, &gone.content);
        round.dirty.remove(fingerprint);
        if let Some(id) = gone.id {
            round.classes.insert(id, None);
        }
        let first = self.numbering.first(fingerprint);
        if let Some(wanting) = self.firsts.get_mut(&first).filter(|wanting| wanting.contains(fingerprint)) {
            let before = first == 0 || wanting.len() > 1;
            wanting.remove(fingerprint);
            let after = first == 0 && !wanting.is_empty() || wanting.len() > 1;
            if wanting.is_empty() {
                self.firsts.remove(&first);
            }
            self.collisions -= usize::from(before) - usize::from(after);
        }
    }

    /// Completes a round: contents of edited policies, numbers, rules.
    pub(super) fn settle(
        &mut self,
        shifts: &[Shift],
        identities: &Counted,
        nodes: &Ground<'_>,
        mut round: Round,
    ) -> Round {
        for group in std::mem::take(&mut round.stale) {
            let Some(old) = self.groups.get(&group).map(|members| members.content) else { continue };
            let new = self.use_content(&group, identities, &mut round);
            if new == old {
                continue;
            }
            self.unuse(&old, &group, &mut round);
            if let Some(members) = self.groups.get_mut(&group) {
                members.content = new;
                round.moved.extend(members.names.iter().cloned());
            }
        }
        self.peers.shift(shifts, &mut round.dirty);
        if nodes.moved {
            round.dirty.extend(&self.peers.on_nodes);
        }
        if !nodes.changed_services.is_empty() && self.peers.names_services() {
            round.dirty.extend(self.peers.naming_services(&nodes.changed_services));
        }
        self.number(&mut round);
        let resolved = Resolved {
            peers: &self.peers,
            identities,
            nodes: nodes.addresses,
            input: nodes.input,
            services: nodes.services,
        };
        for fingerprint in std::mem::take(&mut round.dirty) {
            let Some(known) = self.contents.get(&fingerprint) else { continue };
            let Some(id) = known.id else { continue };
            round.classes.insert(id, Some(class(id, &known.content, &resolved)));
        }
        round
    }

    /// Gives numbers to contents that have none; to all contents where some of them collide.
    fn number(&mut self, round: &mut Round) {
        if round.renumber {
            let restricted = self.contents.iter().filter(|(_, known)| !known.content.unrestricted());
            let numbers = self.numbering.assign(restricted.map(|(fingerprint, _)| fingerprint));
            let assigned: BTreeMap<Fingerprint, u32> = numbers.into_iter().map(|(id, f)| (f, id)).collect();
            for (fingerprint, id) in &assigned {
                let Some(known) = self.contents.get_mut(fingerprint) else { continue };
                let Some(old) = known.id.replace(*id).filter(|old| old != id) else { continue };
                round.classes.entry(old).or_insert(None);
                round.dirty.insert(*fingerprint);
                let members = known.groups.iter().filter_map(|group| self.groups.get(group));
                round.moved.extend(members.flat_map(|members| members.names.iter().cloned()));
            }
        }
        for fingerprint in &round.dirty {
            let Some(known) = self.contents.get_mut(fingerprint).filter(|known| known.id.is_none()) else {
                continue;
            };
            let unrestricted = known.content.unrestricted();
            known.id = Some(if unrestricted { 0 } else { self.numbering.first(fingerprint) });
        }
    }

    /// The class of a workload; None if it is not declared.
    pub(super) fn class_of(&self, workload: &NamespacedName) -> Option<u32> {
        let members = self.groups.get(self.group_of.get(workload)?)?;
        self.contents.get(&members.content)?.id
    }
}
