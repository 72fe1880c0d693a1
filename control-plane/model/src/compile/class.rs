//! One policy class: its number, and its rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Action, Direction, PolicyClass, PolicyRule, RulePeer};
use crate::{
    identity::{IdentityNumber, is_policy_label},
    policy::{NamespaceMatch, NormalPolicy, NormalSide, PeerMatch, PortMatch, cover},
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
}

/// Turns selectors and port names into numbers.
pub(super) fn class(id: u32, content: &Content, identities: &dyn Identities) -> PolicyClass {
    let mut own: BTreeMap<(Protocol, &str), BTreeSet<u16>> = BTreeMap::new();
    for (protocol, name, port) in &content.own_ports {
        own.entry((*protocol, name)).or_default().insert(*port);
    }
    let mut rules = Rules { identities, own, seen: BTreeMap::new() };
    for side in content.ingress() {
        rules.side(Direction::Ingress, side);
    }
    for side in content.egress() {
        rules.side(Direction::Egress, side);
    }
    PolicyClass {
        id,
        ingress_default_deny: content.ingress().find_map(|side| side.default_deny.clone()),
        egress_default_deny: content.egress().find_map(|side| side.default_deny.clone()),
        rules: rules.finish(),
    }
}

/// Rules without duplicates: of several that say the same, the first policy's provenance stays.
struct Rules<'a> {
    identities: &'a dyn Identities,
    own: BTreeMap<(Protocol, &'a str), BTreeSet<u16>>,
    seen: BTreeMap<RuleKey, Arc<str>>,
}

type RuleKey = (Direction, Action, RulePeer, Option<Protocol>, Option<(u16, u16)>);

impl<'a> Rules<'a> {
    fn side(&mut self, direction: Direction, side: &NormalSide) {
        for rule in &side.rules {
            let head = (direction, rule.action, &rule.provenance);
            for peer in &rule.peers {
                for port in &rule.ports {
                    self.expand(head, peer, port);
                }
            }
        }
    }

    fn expand(&mut self, head: (Direction, Action, &Arc<str>), peer: &PeerMatch, port: &PortMatch) {
        let (protocol, name) = match port {
            PortMatch::Any => return self.peer(head, peer, None, None),
            PortMatch::Range { protocol, ports } => return self.peer(head, peer, Some(*protocol), *ports),
            PortMatch::Named { protocol, name } => (*protocol, name.as_str()),
        };
        if head.0 == Direction::Ingress {
            for number in self.own.get(&(protocol, name)).cloned().unwrap_or_default() {
                self.peer(head, peer, Some(protocol), Some((number, number)));
            }
            return;
        }
        let candidates = match peer {
            PeerMatch::Any => self.identities.all(),
            PeerMatch::Workloads { namespaces, pods } => self.identities.select(namespaces, pods),
            // Nothing outside the mesh names its ports.
            PeerMatch::Outside(_) | PeerMatch::World(_) | PeerMatch::Nodes => Vec::new(),
        };
        for identity in candidates {
            for number in self.identities.ports(identity, protocol, name) {
                self.add(head, RulePeer::Identity(identity), Some(protocol), Some((number, number)));
            }
        }
    }

    fn peer(
        &mut self,
        head: (Direction, Action, &Arc<str>),
        peer: &PeerMatch,
        protocol: Option<Protocol>,
        ports: Option<(u16, u16)>,
    ) {
        match peer {
            PeerMatch::Any => self.add(head, RulePeer::Any, protocol, ports),
            PeerMatch::Workloads { namespaces, pods } => {
                for identity in self.identities.select(namespaces, pods) {
                    self.add(head, RulePeer::Identity(identity), protocol, ports);
                }
            }
            PeerMatch::Outside(blocks) => {
                for block in blocks {
                    self.add(head, RulePeer::Cidr(*block), protocol, ports);
                }
            }
            PeerMatch::World(blocks) => {
                let nodes = self.nodes();
                for block in blocks.iter().flat_map(|block| cover(*block, &nodes)) {
                    self.add(head, RulePeer::Cidr(block), protocol, ports);
                }
            }
            PeerMatch::Nodes => {
                for block in self.nodes() {
                    self.add(head, RulePeer::Cidr(block), protocol, ports);
                }
            }
        }
    }

    /// The fewest blocks that the nodes' addresses fill.
    fn nodes(&self) -> Vec<IpNet> {
        IpNet::aggregate(&self.identities.nodes().into_iter().map(IpNet::from).collect())
    }

    fn add(
        &mut self,
        (direction, action, provenance): (Direction, Action, &Arc<str>),
        peer: RulePeer,
        protocol: Option<Protocol>,
        ports: Option<(u16, u16)>,
    ) {
        let key = (direction, action, peer, protocol, ports);
        self.seen.entry(key).or_insert_with(|| provenance.clone());
    }

    fn finish(self) -> Vec<PolicyRule> {
        let rule = |((direction, action, peer, protocol, ports), provenance)| PolicyRule {
            direction,
            action,
            peer,
            protocol,
            ports,
            provenance,
        };
        self.seen.into_iter().map(rule).collect()
    }
}
