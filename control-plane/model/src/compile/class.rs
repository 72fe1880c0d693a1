//! One policy class: its number, and its rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    Action, Direction, FlowProtocol, PolicyClass, PolicyRule, RulePeer,
    flatten::{Layered, flatten},
};
use crate::{
    identity::{IdentityNumber, is_policy_label},
    policy::{
        Layer, NamespaceMatch, NormalPolicy, NormalRule, NormalSide, PeerMatch, PortMatch, RuleAction, cover,
    },
    resource::{LabelSelector, Labels, Protocol, Workload},
};

/// SHA-256 of what a class says. Equal if and only if the contents are.
pub(super) type Fingerprint = [u8; 32];

/// A port as an endpoint calls it.
pub(super) type OwnPort = (Protocol, String, u16);

/// What endpoints of one class have in common: the policies that select them, in the order of their names, and what
/// the named ports of these policies' ingress rules mean at the endpoints.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) policies: Vec<Arc<NormalPolicy>>,
    pub(super) own_ports: Vec<OwnPort>,
}

/// Serialized, it is what the fingerprint is made of.
#[derive(Serialize)]
struct Spec<'a> {
    ingress: Vec<&'a NormalSide>,
    egress: Vec<&'a NormalSide>,
    own_ports: &'a [OwnPort],
}

impl Content {
    pub(super) fn ingress(&self) -> impl Iterator<Item = &NormalSide> {
        self.policies.iter().filter_map(|policy| policy.ingress.as_ref())
    }

    pub(super) fn egress(&self) -> impl Iterator<Item = &NormalSide> {
        self.policies.iter().filter_map(|policy| policy.egress.as_ref())
    }

    /// Permits everything: class 0.
    pub(super) fn unrestricted(&self) -> bool {
        self.ingress().next().is_none() && self.egress().next().is_none()
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let spec = Spec {
            ingress: self.ingress().collect(),
            egress: self.egress().collect(),
            own_ports: &self.own_ports,
        };
        let bytes = serde_json::to_vec(&spec).expect("plain structs and string keys always serialize");
        Sha256::new().chain_update(0_u32.to_be_bytes()).chain_update(bytes).finalize().into()
    }
}

/// Whether classes of these policies depend on which nodes there are.
pub(super) fn names_nodes(content: &Content) -> bool {
    let rules = content.ingress().chain(content.egress()).flat_map(|side| &side.rules);
    rules.flat_map(|rule| &rule.peers).any(|peer| matches!(peer, PeerMatch::World(_) | PeerMatch::Nodes))
}

/// Labels that policies may select by.
pub(super) fn policy_labels(workload: &Workload) -> Labels {
    let labels = workload.meta.labels.iter().filter(|(key, _)| is_policy_label(key));
    labels.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What a workload calls the ports that its policies' ingress rules name.
pub(super) fn own_ports(workload: &Workload, selecting: &[Arc<NormalPolicy>]) -> Vec<OwnPort> {
    let used = |protocol: Protocol, wanted: &str| {
        let sides = selecting.iter().filter_map(|policy| policy.ingress.as_ref());
        sides.flat_map(|side| &side.rules).flat_map(|rule| &rule.ports).any(|port| match port {
            PortMatch::Named { protocol: p, name } => *p == protocol && name == wanted,
            PortMatch::Any | PortMatch::Range { .. } => false,
        })
    };
    let own: BTreeSet<OwnPort> = workload
        .ports
        .iter()
        .filter_map(|port| Some((port.protocol, port.name.clone()?, port.port)))
        .filter(|(protocol, name, _)| used(*protocol, name))
        .collect();
    own.into_iter().collect()
}

/// How many bits of a fingerprint become the number of a class: all 32 that there are, but fewer in tests, so that
/// they meet collisions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbering {
    pub(super) mask: u32,
}

impl Default for Numbering {
    fn default() -> Self {
        Self { mask: u32::MAX }
    }
}

impl Numbering {
    /// The number that a content has unless another one has it: it depends on the content alone.
    pub(super) fn first(self, fingerprint: &Fingerprint) -> u32 {
        leading(fingerprint) & self.mask
    }

    /// Numbers for all, whatever the order in which they came to be: of two that collide, the one that sorts later
    /// takes the next hash.
    pub(super) fn assign<'a>(
        self,
        sorted: impl Iterator<Item = &'a Fingerprint>,
    ) -> BTreeMap<u32, Fingerprint> {
        let mut taken = BTreeMap::new();
        for fingerprint in sorted {
            let mut id = self.first(fingerprint);
            let mut attempt = 0_u32;
            while id == 0 || taken.contains_key(&id) {
                attempt += 1;
                let hash = Sha256::new().chain_update(attempt.to_be_bytes()).chain_update(fingerprint);
                id = leading(&hash.finalize().into()) & self.mask;
            }
            taken.insert(id, *fingerprint);
        }
        taken
    }
}

fn leading(hash: &Fingerprint) -> u32 {
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// What a class needs to know of the identities of declared workloads, and of the nodes.
pub(super) trait Identities {
    /// All of them, in ascending order.
    fn all(&self) -> Vec<IdentityNumber>;
    /// Those that match, in ascending order.
    fn select(&self, namespaces: &NamespaceMatch, pods: &LabelSelector) -> Vec<IdentityNumber>;
    /// What the workloads of an identity call so, in ascending order.
    fn ports(&self, identity: IdentityNumber, protocol: Protocol, name: &str) -> Vec<u16>;
    /// Addresses of all nodes.
    fn nodes(&self) -> Vec<IpAddr>;
    /// The range of all pods.
    fn pods(&self) -> IpNet;
}

/// Turns selectors and port names into numbers.
pub(super) fn class(id: u32, content: &Content, identities: &dyn Identities) -> PolicyClass {
    let mut own: BTreeMap<(Protocol, &str), BTreeSet<u16>> = BTreeMap::new();
    for (protocol, name, port) in &content.own_ports {
        own.entry((*protocol, name)).or_default().insert(*port);
    }
    let expand = Expand { identities, own };
    let (ingress, egress): (Vec<_>, Vec<_>) = (content.ingress().collect(), content.egress().collect());
    let (ingress_default_deny, mut rules) = expand.direction(Direction::Ingress, &ingress);
    let (egress_default_deny, more) = expand.direction(Direction::Egress, &egress);
    rules.extend(more);
    PolicyClass { id, ingress_default_deny, egress_default_deny, rules }
}

struct Expand<'a> {
    identities: &'a dyn Identities,
    own: BTreeMap<(Protocol, &'a str), BTreeSet<u16>>,
}

impl Expand<'_> {
    /// The default denial of one direction, and its rules in ascending order.
    fn direction(&self, direction: Direction, sides: &[&NormalSide]) -> (Option<String>, Vec<PolicyRule>) {
        let default_deny = sides.iter().find_map(|side| side.default_deny.clone());
        let mut all = Vec::new();
        for side in sides {
            for rule in &side.rules {
                self.rule(direction, side.layer, rule, &mut all);
            }
        }
        if sides.iter().any(|side| side.layer != Layer::Normal) {
            let flat = flatten(direction, all, default_deny);
            return (flat.default_deny, flat.rules.into_iter().collect());
        }
        // Without duplicates: of several that say the same, the first policy's provenance stays.
        let mut seen: BTreeMap<_, Arc<str>> = BTreeMap::new();
        for Layered { action, peer, protocol, ports, provenance, .. } in all {
            let action = if action == RuleAction::Allow { Action::Allow } else { Action::Deny };
            seen.entry((action, peer, protocol, ports)).or_insert(provenance);
        }
        let rule = |((action, peer, protocol, ports), provenance)| PolicyRule {
            direction,
            action,
            peer,
            protocol,
            ports,
            provenance,
        };
        (default_deny, seen.into_iter().map(rule).collect())
    }

    fn rule(&self, direction: Direction, layer: Layer, rule: &NormalRule, out: &mut Vec<Layered>) {
        let mut add = |peer, protocol: Option<Protocol>, ports| {
            out.push(Layered {
                layer,
                action: rule.action,
                peer,
                protocol: protocol.map(FlowProtocol::from),
                ports,
                provenance: rule.provenance.clone(),
            });
        };
        for peer in &rule.peers {
            for port in &rule.ports {
                let (protocol, name) = match port {
                    PortMatch::Any => {
                        self.peers(peer).into_iter().for_each(|peer| add(peer, None, None));
                        continue;
                    }
                    PortMatch::Range { protocol, ports } => {
                        self.peers(peer).into_iter().for_each(|peer| add(peer, Some(*protocol), *ports));
                        continue;
                    }
                    PortMatch::Named { protocol, name } => (*protocol, name.as_str()),
                };
                if direction == Direction::Ingress {
                    let peers = self.peers(peer);
                    for number in self.own.get(&(protocol, name)).into_iter().flatten() {
                        peers.iter().for_each(|p| add(p.clone(), Some(protocol), Some((*number, *number))));
                    }
                    continue;
                }
                for identity in self.naming(peer) {
                    for number in self.identities.ports(identity, protocol, name) {
                        add(RulePeer::Identity(identity), Some(protocol), Some((number, number)));
                    }
                }
            }
        }
    }

    /// Whoever of the peers may name ports.
    fn naming(&self, peer: &PeerMatch) -> Vec<IdentityNumber> {
        match peer {
            PeerMatch::Any => self.identities.all(),
            PeerMatch::Workloads { namespaces, pods } => self.identities.select(namespaces, pods),
            // Nothing outside the mesh names its ports.
            PeerMatch::Outside(_) | PeerMatch::World(_) | PeerMatch::Nodes | PeerMatch::Networks(_) => {
                Vec::new()
            }
        }
    }

    fn peers(&self, peer: &PeerMatch) -> Vec<RulePeer> {
        let identities = |numbers: Vec<IdentityNumber>| numbers.into_iter().map(RulePeer::Identity);
        match peer {
            PeerMatch::Any => vec![RulePeer::Any],
            PeerMatch::Workloads { namespaces, pods } => {
                identities(self.identities.select(namespaces, pods)).collect()
            }
            PeerMatch::Outside(blocks) => blocks.iter().copied().map(RulePeer::Cidr).collect(),
            PeerMatch::World(blocks) => {
                let nodes = self.nodes();
                blocks.iter().flat_map(|block| cover(*block, &nodes)).map(RulePeer::Cidr).collect()
            }
            PeerMatch::Nodes => self.nodes().into_iter().map(RulePeer::Cidr).collect(),
            PeerMatch::Networks(blocks) => {
                let pods = self.identities.pods();
                let every = blocks.iter().any(|block| block.contains(&pods));
                let (namespaces, all) = everybody();
                let workloads = if every { self.identities.select(&namespaces, &all) } else { Vec::new() };
                blocks.iter().copied().map(RulePeer::Cidr).chain(identities(workloads)).collect()
            }
        }
    }

    /// The fewest blocks that the nodes' addresses fill.
    fn nodes(&self) -> Vec<IpNet> {
        IpNet::aggregate(&self.identities.nodes().into_iter().map(IpNet::from).collect())
    }
}

/// The selector of every workload.
pub(super) fn everybody() -> (NamespaceMatch, LabelSelector) {
    (NamespaceMatch::Selected(LabelSelector::default()), LabelSelector::default())
}
