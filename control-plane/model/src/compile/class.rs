//! One policy class: its number, and its rules.

use std::{
    cell::Cell,
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
    limits::MAX_CLASS_RULES,
    policy::{
        Entity, Layer, NamespaceMatch, NormalPolicy, NormalRule, NormalSide, PeerMatch, PortMatch,
        RuleAction, ServiceMatch, cover, icmp,
    },
    resource::{EndpointSlice, LabelSelector, Labels, Protocol, Service, Workload},
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

/// Every peer that rules name, in either direction.
pub(super) fn peers(content: &Content) -> impl Iterator<Item = &PeerMatch> {
    let rules = content.ingress().chain(content.egress()).flat_map(|side| &side.rules);
    rules.flat_map(|rule| &rule.peers)
}

/// Whether classes of these policies depend on which nodes there are.
pub(super) fn names_nodes(content: &Content) -> bool {
    let tiered = content.ingress().chain(content.egress()).any(|side| side.layer != Layer::Normal);
    peers(content).any(|peer| match peer {
        PeerMatch::World(_) => true,
        // Where tiers have a say, they are written down as addresses.
        PeerMatch::Entity(Entity::World | Entity::RemoteNode) => tiered,
        _ => false,
    })
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
            PortMatch::Any | PortMatch::Range { .. } | PortMatch::Icmp { .. } => false,
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
    /// The ranges of all pods, of every family.
    fn pods(&self) -> Vec<IpNet>;
    /// Those whose workloads all are gateways, in ascending order.
    fn gateways(&self) -> Vec<IdentityNumber>;
    /// Services that match, with their endpoints where these are no workloads that a selector finds.
    fn services(&self, wanted: &ServiceMatch) -> Vec<Target>;
}

/// Where a service leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// To workloads.
    Selected(NamespaceMatch, LabelSelector),
    /// To an address that an EndpointSlice lists.
    Address(IpAddr),
}

/// Where one service leads, by its object and its slices.
pub(super) fn targets<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Vec<Target> {
    if !service.selector.is_empty() {
        let namespace = NamespaceMatch::Named(service.meta.name.namespace.clone());
        let labels = LabelSelector { match_labels: service.selector.clone(), match_expressions: Vec::new() };
        return vec![Target::Selected(namespace, labels)];
    }
    let listed = slices.into_iter().flat_map(|slice| &slice.endpoints).flat_map(|e| &e.addresses);
    listed.copied().map(Target::Address).collect()
}

/// Turns selectors and port names into numbers.
pub(super) fn class(id: u32, content: &Content, identities: &dyn Identities) -> PolicyClass {
    let mut own: BTreeMap<(Protocol, &str), BTreeSet<u16>> = BTreeMap::new();
    for (protocol, name, port) in &content.own_ports {
        own.entry((*protocol, name)).or_default().insert(*port);
    }
    let expand = Expand { identities, own, count: Cell::new(0) };
    let (ingress, egress): (Vec<_>, Vec<_>) = (content.ingress().collect(), content.egress().collect());
    let (ingress, egress) =
        (expand.direction(Direction::Ingress, &ingress), expand.direction(Direction::Egress, &egress));
    if expand.is_over() {
        let denied = || Some(TOO_LARGE.to_owned());
        return PolicyClass {
            id,
            ingress_default_deny: denied(),
            egress_default_deny: denied(),
            unexpanded: Some(expand.count.get()),
            ..PolicyClass::default()
        };
    }
    PolicyClass {
        id,
        unexpanded: None,
        ingress_default_deny: ingress.default_deny,
        egress_default_deny: egress.default_deny,
        ingress_audit_default: ingress.audit_default,
        egress_audit_default: egress.audit_default,
        rules: ingress.rules.into_iter().chain(egress.rules).collect(),
    }
}

/// Names the denial of everything by a class that is too large to be worked out.
const TOO_LARGE: &str = "builtin/too-large";
/// Rules that are worked out at most, of one class: more than agents take, so that it can be said by how much it is too large.
const MAX_EXPANDED: usize = 4 * MAX_CLASS_RULES;

/// What one direction comes to.
struct Side {
    default_deny: Option<String>,
    audit_default: Option<String>,
    rules: Vec<PolicyRule>,
}

struct Expand<'a> {
    identities: &'a dyn Identities,
    own: BTreeMap<(Protocol, &'a str), BTreeSet<u16>>,
    /// Rules so far.
    count: Cell<usize>,
}

impl Expand<'_> {
    fn is_over(&self) -> bool {
        self.count.get() > MAX_EXPANDED
    }

    /// The default denials of one direction, and its rules in ascending order.
    fn direction(&self, direction: Direction, sides: &[&NormalSide]) -> Side {
        let tiered = sides.iter().any(|side| side.layer != Layer::Normal);
        let (audited, enforced): (Vec<&NormalSide>, Vec<&NormalSide>) =
            sides.iter().copied().partition(|side| side.audit);
        let default_of = |sides: &[&NormalSide]| sides.iter().find_map(|side| side.default_deny.clone());
        let (default_deny, audit_default) = (default_of(&enforced), default_of(&audited));
        if tiered {
            let flat = flatten(direction, self.layered(direction, &enforced, tiered), default_deny);
            let mut side = Side {
                default_deny: flat.default_deny,
                audit_default: None,
                rules: flat.rules.iter().cloned().collect(),
            };
            if !audited.is_empty() {
                // What all of them together would come to, as far as that is another thing.
                let all = flatten(direction, self.layered(direction, sides, tiered), default_of(sides));
                let other = all.rules.into_iter().filter(|rule| !flat.rules.contains(rule));
                side.rules.extend(other.map(|rule| PolicyRule { audit: true, ..rule }));
                side.audit_default = all.default_deny.filter(|_| side.default_deny.is_none());
            }
            return side;
        }
        // Without duplicates: of several that say the same, the first policy's provenance stays.
        let mut seen: BTreeMap<_, Arc<str>> = BTreeMap::new();
        for (audit, sides) in [(false, &enforced), (true, &audited)] {
            for layered in self.layered(direction, sides, tiered) {
                let Layered { action, peer, protocol, ports, l7, provenance, .. } = layered;
                let action = if action == RuleAction::Allow { Action::Allow } else { Action::Deny };
                seen.entry((audit, action, peer, protocol, ports, l7)).or_insert(provenance);
            }
        }
        let rule = |((audit, action, peer, protocol, ports, l7), provenance)| PolicyRule {
            direction,
            action,
            peer,
            protocol,
            ports,
            audit,
            l7,
            provenance,
        };
        Side { default_deny, audit_default, rules: seen.into_iter().map(rule).collect() }
    }

    fn layered(&self, direction: Direction, sides: &[&NormalSide], tiered: bool) -> Vec<Layered> {
        let mut all = Vec::new();
        for side in sides {
            for rule in &side.rules {
                self.rule(direction, side.layer, tiered, rule, &mut all);
            }
        }
        all
    }

    fn rule(
        &self,
        direction: Direction,
        layer: Layer,
        tiered: bool,
        rule: &NormalRule,
        out: &mut Vec<Layered>,
    ) {
        let mut add = |peer, protocol: Option<FlowProtocol>, ports| {
            self.count.set(self.count.get() + 1);
            if self.is_over() {
                return;
            }
            out.push(Layered {
                layer,
                action: rule.action,
                peer,
                protocol,
                ports,
                l7: rule.l7.clone(),
                provenance: rule.provenance.clone(),
            });
        };
        for peer in &rule.peers {
            let peers = || self.peers(peer, rule.action, tiered).into_iter();
            for port in &rule.ports {
                let (protocol, name) = match port {
                    PortMatch::Any => {
                        peers().for_each(|peer| add(peer, None, None));
                        continue;
                    }
                    PortMatch::Range { protocol, ports } => {
                        peers().for_each(|peer| add(peer, Some((*protocol).into()), *ports));
                        continue;
                    }
                    PortMatch::Icmp { v6, kind } => {
                        let (protocol, codes) = icmp(*v6, *kind);
                        peers().for_each(|peer| add(peer, Some(protocol), Some(codes)));
                        continue;
                    }
                    PortMatch::Named { protocol, name } => (*protocol, name.as_str()),
                };
                let spoken = Some(protocol.into());
                if direction == Direction::Ingress {
                    for number in self.own.get(&(protocol, name)).into_iter().flatten() {
                        peers().for_each(|peer| add(peer, spoken, Some((*number, *number))));
                    }
                    continue;
                }
                for identity in self.naming(peer) {
                    for number in self.identities.ports(identity, protocol, name) {
                        add(RulePeer::Identity(identity), spoken, Some((number, number)));
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
            PeerMatch::Gateways => self.identities.gateways(),
            // Nothing outside the mesh names its ports; and services have their own, so that no rule has both.
            PeerMatch::Outside(_)
            | PeerMatch::World(_)
            | PeerMatch::Entity(_)
            | PeerMatch::Networks(_)
            | PeerMatch::Names(_)
            | PeerMatch::Services(_) => Vec::new(),
        }
    }

    /// `tiered`: with what can be told apart without knowing where an address is.
    fn peers(&self, peer: &PeerMatch, action: RuleAction, tiered: bool) -> Vec<RulePeer> {
        let identities = |numbers: Vec<IdentityNumber>| numbers.into_iter().map(RulePeer::Identity);
        match peer {
            PeerMatch::Any => vec![RulePeer::Any],
            // The kernel knows them without a list. Tiers tell each of them apart from all others.
            PeerMatch::Workloads { namespaces, pods } if !tiered && is_everybody(namespaces, pods) => {
                vec![RulePeer::Entity(Entity::Workloads)]
            }
            PeerMatch::Workloads { namespaces, pods } => {
                identities(self.identities.select(namespaces, pods)).collect()
            }
            PeerMatch::Gateways => identities(self.identities.gateways()).collect(),
            PeerMatch::Outside(blocks) => blocks.iter().copied().map(RulePeer::Cidr).collect(),
            PeerMatch::World(blocks) => self.world(blocks),
            PeerMatch::Entity(Entity::World) if tiered => {
                let everything = ["0.0.0.0/0", "::/0"].iter().filter_map(|text| text.parse().ok());
                self.world(&everything.collect::<Vec<IpNet>>())
            }
            PeerMatch::Entity(Entity::RemoteNode) if tiered => {
                self.nodes().into_iter().map(RulePeer::Cidr).collect()
            }
            // Its own node is admitted then, whatever is said of it.
            PeerMatch::Entity(Entity::Host | Entity::Health) if tiered => Vec::new(),
            PeerMatch::Entity(entity) => vec![RulePeer::Entity(*entity)],
            PeerMatch::Names(names) => names.iter().cloned().map(RulePeer::Name).collect(),
            PeerMatch::Services(wanted) => {
                let targets = self.identities.services(wanted);
                let rules = targets.into_iter().flat_map(|target| match target {
                    Target::Selected(namespaces, pods) => {
                        identities(self.identities.select(&namespaces, &pods)).collect()
                    }
                    Target::Address(address) => vec![RulePeer::Cidr(address.into())],
                });
                rules.collect()
            }
            PeerMatch::Networks(blocks) => {
                let held = |pods: &IpNet| blocks.iter().any(|block| block.contains(pods));
                let pods = self.identities.pods();
                // A workload is known without its address, so whoever is denied by one family is by all, and whoever is
                // let through has to be by all of them.
                let every = match action {
                    RuleAction::Deny => pods.iter().any(held),
                    RuleAction::Allow | RuleAction::Pass => pods.iter().all(held),
                };
                let (namespaces, all) = everybody();
                let workloads = if every { self.identities.select(&namespaces, &all) } else { Vec::new() };
                blocks.iter().copied().map(RulePeer::Cidr).chain(identities(workloads)).collect()
            }
        }
    }

    fn world(&self, blocks: &[IpNet]) -> Vec<RulePeer> {
        let nodes = self.nodes();
        blocks.iter().flat_map(|block| cover(*block, &nodes)).map(RulePeer::Cidr).collect()
    }

    /// The fewest blocks that the nodes' addresses fill.
    fn nodes(&self) -> Vec<IpNet> {
        IpNet::aggregate(&self.identities.nodes().into_iter().map(IpNet::from).collect())
    }
}

/// Whether a selector finds every workload, whatever there is.
fn is_everybody(namespaces: &NamespaceMatch, pods: &LabelSelector) -> bool {
    let is_empty = |selector: &LabelSelector| *selector == LabelSelector::default();
    matches!(namespaces, NamespaceMatch::Selected(selector) if is_empty(selector)) && is_empty(pods)
}

/// The selector of every workload.
pub(super) fn everybody() -> (NamespaceMatch, LabelSelector) {
    (NamespaceMatch::Selected(LabelSelector::default()), LabelSelector::default())
}
