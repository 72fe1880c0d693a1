//! Policies to classes: who is selected by what, and which classes that makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    super::{
        PolicyClass,
        class::{Content, Fingerprint, Numbering, OwnPort, class, own_ports, policy_labels},
    },
    identities::{Counted, Shift},
    labels::{Labelled, Selectors},
    peers::{Peers, Resolved},
};
use crate::{
    policy::NormalPolicy,
    resource::{NamespacedName, Workload},
};

/// Names of the policies that select a workload, and the workload's meaning of the port names that they use.
type Group = (Vec<NamespacedName>, Vec<OwnPort>);

#[derive(Debug, Clone, Default)]
pub(super) struct Policies {
    numbering: Numbering,
    policies: BTreeMap<NamespacedName, Arc<NormalPolicy>>,
    subjects: Selectors<NamespacedName>,
    group_of: BTreeMap<NamespacedName, Arc<Group>>,
    groups: BTreeMap<Arc<Group>, Members>,
    groups_of_policy: BTreeMap<NamespacedName, BTreeSet<Arc<Group>>>,
    contents: BTreeMap<Fingerprint, Known>,
    /// Contents by the number that each has unless others have it too.
    firsts: BTreeMap<u32, BTreeSet<Fingerprint>>,
    /// How many of these numbers can't be given: two contents want one, or it is 0.
    collisions: usize,
    peers: Peers,
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
    dirty: BTreeSet<Fingerprint>,
    stale: BTreeSet<Arc<Group>>,
    renumber: bool,
}

impl Policies {
    pub(super) fn numbered(numbering: Numbering) -> Self {
        Self { numbering, ..Self::default() }
    }

    /// A policy is new, different or gone. Returns the workloads that it selects or selected.
    pub(super) fn replace(
        &mut self,
        name: &NamespacedName,
        new: Option<NormalPolicy>,
        declared: &Labelled<NamespacedName>,
        labels_of: impl Fn(&NamespacedName) -> Option<crate::resource::Labels>,
        round: &mut Round,
    ) -> BTreeSet<NamespacedName> {
        let mut selected = BTreeSet::new();
        let mut select = |policy: &NormalPolicy| {
            let namespace = Some(policy.namespace.as_str());
            let anchor = declared.anchor(namespace, &policy.subject);
            for candidate in declared.candidates(namespace, &anchor) {
                if labels_of(candidate).is_some_and(|labels| policy.subject.matches(&labels)) {
                    selected.insert(candidate.clone());
                }
            }
            anchor
        };
        if let Some(old) = self.policies.remove(name) {
            select(&old);
            self.subjects.remove(name);
        }
        if let Some(new) = new {
            let anchor = select(&new);
            self.subjects.insert(name, Some(&new.namespace), anchor);
            self.policies.insert(name.clone(), Arc::new(new));
        }
        round.stale.extend(self.groups_of_policy.get(name).into_iter().flatten().cloned());
        selected
    }

    /// Puts a workload in the group that it belongs to now; None: it is gone.
    pub(super) fn regroup(
        &mut self,
        name: &NamespacedName,
        workload: Option<&Workload>,
        identities: &Counted,
        round: &mut Round,
    ) {
        let group = workload.map(|workload| Arc::new(self.group(workload)));
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
        let candidates = self.subjects.candidates(&workload.meta.name.namespace, &labels);
        let selecting: Vec<&NamespacedName> = candidates
            .into_iter()
            .filter(|name| self.policies.get(*name).is_some_and(|policy| policy.subject.matches(&labels)))
            .collect();
        let policies: Vec<Arc<NormalPolicy>> =
            selecting.iter().filter_map(|name| self.policies.get(*name).cloned()).collect();
        (selecting.into_iter().cloned().collect(), own_ports(workload, &policies))
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
    pub(super) fn settle(&mut self, shifts: &[Shift], identities: &Counted, mut round: Round) -> Round {
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
        self.number(&mut round);
        let resolved = Resolved { peers: &self.peers, identities };
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
