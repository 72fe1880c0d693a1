//! Policy classes: what the kernel's maps are keyed by.
//!
//! A class's number is a hash of what its policies *say*, not of the identities that their selectors find at the
//! moment. So a new identity adds rules to a class that stays, and an edited policy makes another class, to
//! which endpoints move in one step: the verdict is the old one or the new one, never a mixture.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Action, Direction, Input, MeshWorkload, PolicyClass, PolicyRule, RulePeer, workloads::declared};
use crate::{
    identity::{IdentityKey, IdentityNumber, is_policy_label},
    policy::{NamespaceMatch, NormalPolicy, NormalSide, PeerMatch, PortMatch},
    resource::{LabelSelector, Labels, NAMESPACE_NAME_LABEL, NamespacedName, Object, Protocol, Workload},
};

/// Ports by protocol and name, as one workload or all workloads of one identity give them.
type NamedPorts<'a> = BTreeMap<(Protocol, &'a str), BTreeSet<u16>>;

/// What endpoints of one class have in common. Serialized, it is what the class's number is made of.
#[derive(Serialize)]
struct Spec<'a> {
    ingress: Vec<&'a NormalSide>,
    egress: Vec<&'a NormalSide>,
    /// The named ports of the ingress rules mean what the endpoint itself calls so.
    own_ports: Vec<(Protocol, &'a str, u16)>,
}

/// Sets each workload's class, and returns the classes in use.
pub(super) fn compile(
    input: &Input,
    workloads: &mut BTreeMap<NamespacedName, MeshWorkload>,
) -> BTreeMap<u32, PolicyClass> {
    let mut policies: BTreeMap<&str, Vec<NormalPolicy>> = BTreeMap::new();
    for object in input.objects.values() {
        if let Object::NetworkPolicy(policy) = object.as_ref() {
            policies.entry(&policy.meta.name.namespace).or_default().push(policy.into());
        }
    }
    // By what selects them first: writing down the content once per group is cheaper than once per workload.
    let mut groups: BTreeMap<Group<'_>, Vec<&NamespacedName>> = BTreeMap::new();
    for workload in declared(input) {
        let namespace = workload.meta.name.namespace.as_str();
        let own = policies.get(namespace).map_or(&[][..], Vec::as_slice);
        groups.entry(group_of(workload, own)).or_default().push(&workload.meta.name);
    }
    let mut members: BTreeMap<Vec<u8>, (Spec<'_>, Vec<&NamespacedName>)> = BTreeMap::new();
    for (group, names) in groups {
        let spec = spec_of(group, &policies);
        let key = serde_json::to_vec(&spec).expect("plain structs and string keys always serialize");
        members.entry(key).or_insert_with(|| (spec, Vec::new())).1.extend(names);
    }
    let mut resolver = Resolver::new(input);
    let mut classes = BTreeMap::new();
    for (key, (spec, names)) in &members {
        let unrestricted = spec.ingress.is_empty() && spec.egress.is_empty();
        let id = if unrestricted { 0 } else { free_number(key, &classes) };
        classes.insert(id, resolver.class(id, spec));
        for name in names {
            if let Some(workload) = workloads.get_mut(*name) {
                workload.policy_class = id;
            }
        }
    }
    classes
}

/// What a class depends on: the policies of the namespace that select a workload, by their place, and the
/// workload's own meaning of the port names that they use.
type Group<'a> = (&'a str, Vec<usize>, Vec<(Protocol, &'a str, u16)>);

fn group_of<'a>(workload: &'a Workload, policies: &[NormalPolicy]) -> Group<'a> {
    let labels: Labels = workload
        .meta
        .labels
        .iter()
        .filter(|(key, _)| is_policy_label(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let selecting: Vec<usize> =
        (0..policies.len()).filter(|i| policies[*i].subject.matches(&labels)).collect();
    let used = |protocol: Protocol, wanted: &str| {
        let sides = selecting.iter().filter_map(|i| policies[*i].ingress.as_ref());
        sides.flat_map(|side| &side.rules).flat_map(|rule| &rule.ports).any(|port| match port {
            PortMatch::Named { protocol: p, name } => *p == protocol && name == wanted,
            PortMatch::Any | PortMatch::Range { .. } => false,
        })
    };
    let own_ports: BTreeSet<(Protocol, &str, u16)> = workload
        .ports
        .iter()
        .filter_map(|port| Some((port.protocol, port.name.as_deref()?, port.port)))
        .filter(|(protocol, name, _)| used(*protocol, name))
        .collect();
    (workload.meta.name.namespace.as_str(), selecting, own_ports.into_iter().collect())
}

fn spec_of<'a>(
    (namespace, selecting, own_ports): Group<'a>,
    policies: &'a BTreeMap<&str, Vec<NormalPolicy>>,
) -> Spec<'a> {
    let of_namespace = policies.get(namespace).map_or(&[][..], Vec::as_slice);
    let selecting = || selecting.iter().filter_map(|i| of_namespace.get(*i));
    Spec {
        ingress: selecting().filter_map(|p| p.ingress.as_ref()).collect(),
        egress: selecting().filter_map(|p| p.egress.as_ref()).collect(),
        own_ports,
    }
}

/// A number that depends on the content alone, unless two contents collide: then the one that sorts later takes
/// the next hash.
fn free_number(content: &[u8], taken: &BTreeMap<u32, PolicyClass>) -> u32 {
    let mut attempt = 0_u32;
    loop {
        let hash = Sha256::new().chain_update(attempt.to_be_bytes()).chain_update(content).finalize();
        let id = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
        if id != 0 && !taken.contains_key(&id) {
            return id;
        }
        attempt += 1;
    }
}

/// Turns selectors and port names into numbers.
struct Resolver<'a> {
    /// Of declared workloads: the table also has those of workloads that are gone, which would only fill the
    /// kernel's maps.
    identities: BTreeMap<IdentityNumber, IdentityKey>,
    ports: BTreeMap<IdentityNumber, NamedPorts<'a>>,
    /// The same selectors come again in every class that a policy is part of.
    found: BTreeMap<Vec<u8>, Vec<IdentityNumber>>,
}

impl<'a> Resolver<'a> {
    fn new(input: &'a Input) -> Self {
        let trust_domain = &input.cluster.trust_domain;
        let mut identities = BTreeMap::new();
        let mut ports: BTreeMap<IdentityNumber, NamedPorts<'a>> = BTreeMap::new();
        for workload in declared(input) {
            let key = IdentityKey::of(trust_domain, workload);
            let Some(number) = input.identities.lookup(&key) else { continue };
            identities.insert(number, key);
            for port in &workload.ports {
                if let Some(name) = &port.name {
                    let named = ports.entry(number).or_default();
                    named.entry((port.protocol, name)).or_default().insert(port.port);
                }
            }
        }
        Self { identities, ports, found: BTreeMap::new() }
    }

    fn class(&mut self, id: u32, spec: &Spec<'_>) -> PolicyClass {
        let mut own: NamedPorts<'_> = BTreeMap::new();
        for (protocol, name, port) in &spec.own_ports {
            own.entry((*protocol, name)).or_default().insert(*port);
        }
        let mut rules = Rules::default();
        for (direction, sides) in [(Direction::Ingress, &spec.ingress), (Direction::Egress, &spec.egress)] {
            for rule in sides.iter().flat_map(|side| &side.rules) {
                for peer in &rule.peers {
                    for port in &rule.ports {
                        rules.head = (direction, rule.action);
                        rules.provenance = Some(&rule.provenance);
                        self.expand(peer, port, direction, &own, &mut rules);
                    }
                }
            }
        }
        PolicyClass {
            id,
            ingress_default_deny: spec.ingress.first().map(|side| side.default_deny.clone()),
            egress_default_deny: spec.egress.first().map(|side| side.default_deny.clone()),
            rules: rules.finish(),
        }
    }

    fn expand(
        &mut self,
        peer: &PeerMatch,
        port: &PortMatch,
        direction: Direction,
        own: &NamedPorts<'_>,
        rules: &mut Rules<'_>,
    ) {
        let (protocol, name) = match port {
            PortMatch::Any => return self.add(peer, None, None, rules),
            PortMatch::Range { protocol, ports } => return self.add(peer, Some(*protocol), *ports, rules),
            PortMatch::Named { protocol, name } => (*protocol, name.as_str()),
        };
        if direction == Direction::Ingress {
            for number in own.get(&(protocol, name)).into_iter().flatten() {
                self.add(peer, Some(protocol), Some((*number, *number)), rules);
            }
            return;
        }
        let candidates: Vec<IdentityNumber> = match peer {
            PeerMatch::Any => self.identities.keys().copied().collect(),
            PeerMatch::Workloads { namespaces, pods } => self.select(namespaces, pods),
            // Nothing outside the mesh names its ports.
            PeerMatch::Outside(_) => Vec::new(),
        };
        for identity in candidates {
            let numbers = self.ports.get(&identity).and_then(|named| named.get(&(protocol, name)));
            for number in numbers.into_iter().flatten() {
                rules.add(RulePeer::Identity(identity), Some(protocol), Some((*number, *number)));
            }
        }
    }

    fn add(
        &mut self,
        peer: &PeerMatch,
        protocol: Option<Protocol>,
        ports: Option<(u16, u16)>,
        rules: &mut Rules<'_>,
    ) {
        match peer {
            PeerMatch::Any => rules.add(RulePeer::Any, protocol, ports),
            PeerMatch::Workloads { namespaces, pods } => {
                for identity in self.select(namespaces, pods) {
                    rules.add(RulePeer::Identity(identity), protocol, ports);
                }
            }
            PeerMatch::Outside(blocks) => {
                for block in blocks {
                    rules.add(RulePeer::Cidr(*block), protocol, ports);
                }
            }
        }
    }

    fn select(&mut self, namespaces: &NamespaceMatch, pods: &LabelSelector) -> Vec<IdentityNumber> {
        let key = serde_json::to_vec(&(namespaces, pods)).expect("plain structs always serialize");
        if let Some(found) = self.found.get(&key) {
            return found.clone();
        }
        let namespace_matches = |namespace: &String| match namespaces {
            NamespaceMatch::Named(name) => name == namespace,
            NamespaceMatch::Selected(selector) => {
                selector.matches(&Labels::from([(NAMESPACE_NAME_LABEL.to_owned(), namespace.clone())]))
            }
        };
        let found: Vec<IdentityNumber> = self
            .identities
            .iter()
            .filter(|(_, key)| namespace_matches(&key.namespace) && pods.matches(&key.labels))
            .map(|(number, _)| *number)
            .collect();
        self.found.insert(key, found.clone());
        found
    }
}

/// Rules without duplicates: of several that say the same, the first policy's provenance stays.
struct Rules<'a> {
    head: (Direction, Action),
    provenance: Option<&'a Arc<str>>,
    seen: BTreeMap<RuleKey, Arc<str>>,
}

type RuleKey = (Direction, Action, RulePeer, Option<Protocol>, Option<(u16, u16)>);

impl Default for Rules<'_> {
    fn default() -> Self {
        Self { head: (Direction::Ingress, Action::Allow), provenance: None, seen: BTreeMap::new() }
    }
}

impl Rules<'_> {
    fn add(&mut self, peer: RulePeer, protocol: Option<Protocol>, ports: Option<(u16, u16)>) {
        let (direction, action) = self.head;
        self.seen
            .entry((direction, action, peer, protocol, ports))
            .or_insert_with(|| self.provenance.cloned().unwrap_or_else(|| "".into()));
    }

    fn finish(self) -> Vec<PolicyRule> {
        self.seen
            .into_iter()
            .map(|((direction, action, peer, protocol, ports), provenance)| PolicyRule {
                direction,
                action,
                peer,
                protocol,
                ports,
                provenance,
            })
            .collect()
    }
}
