//! What the views look up: who runs where, who has which address, who serves what. Kept with the model, so that
//! one client's own part of it costs its own things and not a walk over the mesh.

use std::{collections::BTreeSet, net::IpAddr, ops::Bound, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use super::{Action, Direction, MeshService, MeshWorkload, PolicyClass, RulePeer};
use crate::{
    identity::{IdentityNumber, SpiffeId},
    policy::Entity,
    resource::{NamespacedName, Protocol, ProxyMode},
};

/// Derived from the workloads and services of a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ModelIndex {
    by_node: OrdMap<Arc<str>, OrdSet<NamespacedName>>,
    by_address: OrdMap<IpAddr, OrdSet<NamespacedName>>,
    serves: OrdMap<NamespacedName, Arc<Vec<Serves>>>,
    gateways: OrdSet<NamespacedName>,
    exported: OrdSet<NamespacedName>,
    /// Services that are not visible everywhere, by the namespaces in which they are.
    restricted: OrdMap<Arc<str>, OrdSet<NamespacedName>>,
    /// Services whose routes lead to a service.
    routed: OrdMap<NamespacedName, OrdSet<NamespacedName>>,
    accounts: OrdMap<SpiffeId, Account>,
    account_of: OrdMap<IdentityNumber, SpiffeId>,
    admits: OrdMap<IdentityNumber, OrdSet<u32>>,
    admits_outsiders: OrdSet<u32>,
    /// Classes with an ingress rule about every workload.
    admits_workloads: OrdSet<u32>,
    /// Those of them that deny.
    denies_workloads: OrdSet<u32>,
    /// Identities that ingress rules deny, and the classes that do.
    denies: OrdMap<IdentityNumber, OrdSet<u32>>,
}

/// Workloads of one SPIFFE ID, by the identity that their labels make of it. 0 are those without a number.
pub type Account = OrdMap<IdentityNumber, OrdSet<NamespacedName>>;

/// A service port that has a workload among its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Serves {
    /// Port of the endpoint.
    pub target: u16,
    #[allow(missing_docs)]
    pub service: NamespacedName,
    /// Port of the service.
    pub port: u16,
    #[allow(missing_docs)]
    pub protocol: Protocol,
}

impl ModelIndex {
    /// Workloads that are bound to a node, in the order of their names.
    pub fn on_node(&self, node: &str) -> impl Iterator<Item = &NamespacedName> {
        self.by_node.get(node).into_iter().flatten()
    }

    /// Workloads that have an address, in the order of their names. Several do if they share their node's.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = &NamespacedName> {
        self.by_address.get(&address).into_iter().flatten()
    }

    /// Addresses of workloads that do not lie in a block, in order: in ours, of those that are no pods.
    pub fn addresses_outside(&self, blocks: &[IpNet]) -> impl Iterator<Item = IpAddr> {
        // Between the blocks, and before and behind all of them.
        let mut blocks = blocks.to_vec();
        blocks.sort_by_key(IpNet::network);
        let mut from = Bound::Unbounded;
        let mut gaps = Vec::with_capacity(blocks.len() + 1);
        for block in blocks {
            gaps.push((from, Bound::Excluded(block.network())));
            from = Bound::Excluded(block.broadcast());
        }
        gaps.push((from, Bound::Unbounded));
        gaps.into_iter().flat_map(|gap| self.by_address.range(gap)).map(|(address, _)| *address)
    }

    /// The SPIFFE ID that goes with an identity, if a workload has it.
    pub fn account_of(&self, identity: IdentityNumber) -> Option<&SpiffeId> {
        self.account_of.get(&identity)
    }

    /// The workloads of a SPIFFE ID.
    pub fn account(&self, id: &SpiffeId) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// Every identity that a workload has.
    pub fn identities(&self) -> impl Iterator<Item = IdentityNumber> {
        self.account_of.keys().copied()
    }

    /// Policy classes with an ingress rule that names an identity, or every one.
    pub fn admitting(&self, identity: IdentityNumber) -> impl Iterator<Item = u32> {
        let named = self.admits.get(&identity).into_iter().flatten();
        named.chain(&self.admits_workloads).copied()
    }

    /// Whether an ingress rule denies an identity. Denials go by address as well, so that they change with each of its pods.
    pub fn is_denied(&self, identity: IdentityNumber) -> bool {
        self.denies.contains_key(&identity) || !self.denies_workloads.is_empty()
    }

    /// Policy classes with an ingress rule for addresses outside of the mesh.
    pub fn admitting_outsiders(&self) -> impl Iterator<Item = u32> {
        self.admits_outsiders.iter().copied()
    }

    /// What a workload is an endpoint of, in order.
    pub fn served_by(&self, workload: &NamespacedName) -> &[Serves] {
        self.serves.get(workload).map_or(&[][..], |list| list.as_slice())
    }

    /// Workloads that are gateways.
    pub fn gateways(&self) -> impl Iterator<Item = &NamespacedName> {
        self.gateways.iter()
    }

    /// Services that are offered to peers.
    pub fn exported(&self) -> impl Iterator<Item = &NamespacedName> {
        self.exported.iter()
    }

    /// Services that a namespace is told of and not every other one is.
    pub fn restricted_to(&self, namespace: &str) -> impl Iterator<Item = &NamespacedName> {
        self.restricted.get(namespace).into_iter().flatten()
    }

    /// Services whose routes lead to this one.
    pub fn routed_to(&self, service: &NamespacedName) -> impl Iterator<Item = &NamespacedName> {
        self.routed.get(service).into_iter().flatten()
    }

    /// A workload is new, different or gone.
    pub(super) fn workload(&mut self, old: Option<&MeshWorkload>, new: Option<&MeshWorkload>) {
        self.enlist(old, new);
        if let (Some(old), Some(new)) = (old, new)
            && old.binding == new.binding
            && old.proxy == new.proxy
        {
            return;
        }
        if let Some(old) = old {
            if let Some(binding) = &old.binding {
                remove(&mut self.by_node, binding.node.as_str(), &old.name);
                for address in &binding.addresses {
                    remove(&mut self.by_address, address, &old.name);
                }
            }
            self.gateways.remove(&old.name);
        }
        if let Some(new) = new {
            if let Some(binding) = &new.binding {
                self.by_node.entry(binding.node.as_str().into()).or_default().insert(new.name.clone());
                for address in &binding.addresses {
                    self.by_address.entry(*address).or_default().insert(new.name.clone());
                }
            }
            if new.proxy == ProxyMode::Gateway {
                self.gateways.insert(new.name.clone());
            }
        }
    }

    fn enlist(&mut self, old: Option<&MeshWorkload>, new: Option<&MeshWorkload>) {
        if let (Some(old), Some(new)) = (old, new)
            && (old.identity, &old.spiffe_id) == (new.identity, &new.spiffe_id)
        {
            return;
        }
        if let Some(old) = old
            && let Some(account) = self.accounts.get_mut(&old.spiffe_id)
        {
            remove(account, &old.identity, &old.name);
            // Where identities swap numbers, the number may be another account's by now.
            if !account.contains_key(&old.identity)
                && self.account_of.get(&old.identity) == Some(&old.spiffe_id)
            {
                self.account_of.remove(&old.identity);
            }
            if account.is_empty() {
                self.accounts.remove(&old.spiffe_id);
            }
        }
        if let Some(new) = new {
            let account = self.accounts.entry(new.spiffe_id.clone()).or_default();
            account.entry(new.identity).or_default().insert(new.name.clone());
            if new.identity != 0 {
                self.account_of.insert(new.identity, new.spiffe_id.clone());
            }
        }
    }

    /// A policy class is new, different or gone.
    pub(super) fn class(&mut self, id: u32, old: Option<&PolicyClass>, new: Option<&PolicyClass>) {
        for (set, wanted) in [
            (&mut self.admits_workloads, [Action::Allow, Action::Deny].as_slice()),
            (&mut self.denies_workloads, [Action::Deny].as_slice()),
        ] {
            if names_workloads(new, wanted) {
                set.insert(id);
            } else {
                set.remove(&id);
            }
        }
        let ((before, outsiders_before), (after, outsiders)) = (admitted(old), admitted(new));
        for identity in before.difference(&after) {
            remove(&mut self.admits, identity, &id);
        }
        for identity in after.difference(&before) {
            self.admits.entry(*identity).or_default().insert(id);
        }
        match (outsiders_before, outsiders) {
            (false, true) => drop(self.admits_outsiders.insert(id)),
            (true, false) => drop(self.admits_outsiders.remove(&id)),
            _ => {}
        }
        let (before, after) = (denied(old), denied(new));
        for identity in before.difference(&after) {
            remove(&mut self.denies, identity, &id);
        }
        for identity in after.difference(&before) {
            self.denies.entry(*identity).or_default().insert(id);
        }
    }

    /// A service is new, different or gone.
    pub(super) fn service(&mut self, old: Option<&MeshService>, new: Option<&MeshService>) {
        let (before, after) = (served(old), served(new));
        for (workload, serves) in before.difference(&after) {
            let Some(list) = self.serves.get_mut(*workload) else { continue };
            let list = Arc::make_mut(list);
            list.retain(|other| other != serves);
            if list.is_empty() {
                self.serves.remove(*workload);
            }
        }
        for (workload, serves) in after.difference(&before) {
            let list = Arc::make_mut(self.serves.entry((*workload).clone()).or_default());
            if let Err(place) = list.binary_search(serves) {
                list.insert(place, serves.clone());
            }
        }
        self.restrict(old, new);
        self.route(old, new);
        match (old, new) {
            (_, Some(new)) if new.exported => drop(self.exported.insert(new.name.clone())),
            (Some(gone), _) | (_, Some(gone)) => drop(self.exported.remove(&gone.name)),
            (None, None) => {}
        }
    }
}

impl ModelIndex {
    fn restrict(&mut self, old: Option<&MeshService>, new: Option<&MeshService>) {
        if let (Some(old), Some(new)) = (old, new)
            && old.visibility == new.visibility
        {
            return;
        }
        if let Some(old) = old {
            old.visibility.only().for_each(|namespace| remove(&mut self.restricted, namespace, &old.name));
        }
        if let Some(new) = new {
            for namespace in new.visibility.only() {
                self.restricted.entry(namespace.into()).or_default().insert(new.name.clone());
            }
        }
    }

    fn route(&mut self, old: Option<&MeshService>, new: Option<&MeshService>) {
        let backends = |service: Option<&'_ MeshService>| -> BTreeSet<NamespacedName> {
            service.into_iter().flat_map(MeshService::backends).cloned().collect()
        };
        let (before, after) = (backends(old), backends(new));
        let Some(parent) = new.or(old).map(|service| &service.name) else { return };
        for backend in before.difference(&after) {
            remove(&mut self.routed, backend, parent);
        }
        for backend in after.difference(&before) {
            self.routed.entry(backend.clone()).or_default().insert(parent.clone());
        }
    }
}

fn served(service: Option<&MeshService>) -> BTreeSet<(&NamespacedName, Serves)> {
    let ports = service.into_iter().flat_map(|s| s.ports.iter().map(move |p| (&s.name, p)));
    ports
        .flat_map(|(name, port)| {
            port.endpoints.iter().filter_map(move |endpoint| {
                let serves = Serves {
                    target: endpoint.address.port(),
                    service: name.clone(),
                    port: port.port,
                    protocol: port.protocol,
                };
                Some((endpoint.workload.as_ref()?, serves))
            })
        })
        .collect()
}

/// Whom the ingress rules of a class name, and whether they name addresses.
fn admitted(class: Option<&PolicyClass>) -> (BTreeSet<IdentityNumber>, bool) {
    let rules = class.into_iter().flat_map(|class| &class.rules);
    let (mut identities, mut outsiders) = (BTreeSet::new(), false);
    for rule in rules.filter(|rule| rule.direction == Direction::Ingress) {
        match &rule.peer {
            RulePeer::Any | RulePeer::Entity(Entity::Workloads) => {}
            RulePeer::Identity(identity) => drop(identities.insert(*identity)),
            RulePeer::Cidr(_) | RulePeer::Entity(_) | RulePeer::Name(_) => outsiders = true,
        }
    }
    (identities, outsiders)
}

/// Whether the ingress rules of a class that do one of these are about every workload.
fn names_workloads(class: Option<&PolicyClass>, actions: &[Action]) -> bool {
    let mut rules = class.into_iter().flat_map(|class| &class.rules);
    rules.any(|rule| {
        rule.direction == Direction::Ingress
            && rule.peer == RulePeer::Entity(Entity::Workloads)
            && actions.contains(&rule.action)
    })
}

/// Whom the ingress rules of a class deny by identity.
fn denied(class: Option<&PolicyClass>) -> BTreeSet<IdentityNumber> {
    let rules = class.into_iter().flat_map(|class| &class.rules);
    let denials = rules.filter(|rule| rule.direction == Direction::Ingress && rule.action == Action::Deny);
    denials
        .filter_map(|rule| if let RulePeer::Identity(identity) = rule.peer { Some(identity) } else { None })
        .collect()
}

fn remove<K, Q, T>(map: &mut OrdMap<K, OrdSet<T>>, key: &Q, name: &T)
where
    K: Ord + Clone + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
    T: Ord + Clone,
{
    if let Some(set) = map.get_mut(key) {
        set.remove(name);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::PolicyRule;

    #[test]
    fn a_rule_about_every_workload_concerns_each_of_them() {
        let class = |action| PolicyClass {
            rules: vec![PolicyRule {
                audit: false,
                l7: None,
                direction: Direction::Ingress,
                peer: RulePeer::Entity(Entity::Workloads),
                protocol: None,
                ports: None,
                action,
                provenance: "ciliumnetworkpolicy/shop/x".into(),
            }],
            ..PolicyClass::default()
        };
        let mut index = ModelIndex::default();
        index.class(1, None, Some(&class(Action::Allow)));
        assert!(index.admitting(300).eq([1]) && !index.is_denied(300));
        index.class(1, Some(&class(Action::Allow)), Some(&class(Action::Deny)));
        assert!(index.admitting(300).eq([1]) && index.is_denied(300));
        index.class(1, Some(&class(Action::Deny)), None);
        assert!(index.admitting(300).next().is_none() && !index.is_denied(300));
    }

    #[test]
    fn who_is_denied_is_known_for_as_long_as_a_class_denies() {
        let class = |action, direction| PolicyClass {
            rules: vec![PolicyRule {
                audit: false,
                l7: None,
                direction,
                peer: RulePeer::Identity(300),
                protocol: None,
                ports: None,
                action,
                provenance: "networkpolicy/shop/x".into(),
            }],
            ..PolicyClass::default()
        };
        let mut index = ModelIndex::default();
        index.class(1, None, Some(&class(Action::Allow, Direction::Ingress)));
        index.class(2, None, Some(&class(Action::Deny, Direction::Egress)));
        assert!(!index.is_denied(300));
        let deny = class(Action::Deny, Direction::Ingress);
        index.class(3, None, Some(&deny));
        index.class(4, None, Some(&deny));
        assert!(index.is_denied(300) && !index.is_denied(301));
        assert!(index.admitting(300).eq([1, 3, 4]), "whoever asks whom it concerns finds the denial as well");
        index.class(3, Some(&deny), None);
        assert!(index.is_denied(300));
        index.class(4, Some(&deny), Some(&class(Action::Allow, Direction::Ingress)));
        assert!(!index.is_denied(300));
    }
}
