//! How large a class is for those who are told of it, and what is too large for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;

use super::{Action, Direction, FlowProtocol, Input, MeshModel, PolicyClass, PolicyRule, RulePeer};
use crate::{
    compile::class::Numbering,
    identity::IdentityNumber,
    limits::{MAX_CLASS_BYTES, MAX_CLASS_PEERS, MAX_CLASS_RULES, MAX_NODE_PEERS},
    policy::{L7, NODE_PROXY, NormalPolicy, PeerMatch, RuleAction},
    resource::NamespacedName,
};

/// Rules of a class that say the same of several peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleGroup<'a> {
    /// One of them: all that it says but its peer holds for every peer.
    pub rule: &'a PolicyRule,
    /// Whom it is about.
    pub peers: GroupPeers,
}

/// Peers of a [`RuleGroup`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupPeers {
    /// The rule's own.
    One,
    /// In ascending order.
    Identities(Vec<IdentityNumber>),
    /// In ascending order; none is inside another one.
    Cidrs(Vec<IpNet>),
}

/// Where a rule stands among the groups: for each peer, groups are in the order of the rules.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind<'a> {
    Identities,
    Cidrs,
    One(&'a RulePeer),
}

type Key<'a> =
    (Direction, bool, Action, Kind<'a>, Option<FlowProtocol>, Option<(u16, u16)>, Option<&'a L7>, &'a str);

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// The policy that most of it is made of, as provenance names it.
    pub policy: String,
    /// How many of the rules are this policy's.
    pub of_policy: usize,
    /// `rules`, `peers` or `bytes`.
    pub what: &'static str,
    #[allow(missing_docs)]
    pub count: usize,
    #[allow(missing_docs)]
    pub limit: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, of_policy, what, count, limit } = self;
        write!(f, "{policy}: with all policies that select the same workloads it comes to {count} {what}")?;
        write!(f, ", at most {limit} are possible ({of_policy} rules are this policy's)")
    }
}

impl std::error::Error for TooLarge {}

impl PolicyClass {
    /// The rules, with those that differ in their peers alone put together.
    pub fn groups(&self) -> Vec<RuleGroup<'_>> {
        let nested = self.has_nested_cidrs();
        let mut groups: BTreeMap<Key<'_>, (&PolicyRule, Vec<&RulePeer>)> = BTreeMap::new();
        for rule in &self.rules {
            let kind = match &rule.peer {
                RulePeer::Identity(_) => Kind::Identities,
                RulePeer::Cidr(_) if !nested => Kind::Cidrs,
                other => Kind::One(other),
            };
            let PolicyRule { direction, action, protocol, ports, audit, l7, provenance, .. } = rule;
            let key = (*direction, *audit, *action, kind, *protocol, *ports, l7.as_ref(), &**provenance);
            groups.entry(key).or_insert_with(|| (rule, Vec::new())).1.push(&rule.peer);
        }
        let group = |(rule, peers): (&'_ PolicyRule, Vec<&RulePeer>)| {
            let identity = |peer: &&RulePeer| match peer {
                RulePeer::Identity(number) => Some(*number),
                _ => None,
            };
            let cidr = |peer: &&RulePeer| match peer {
                RulePeer::Cidr(net) => Some(*net),
                _ => None,
            };
            match &rule.peer {
                _ if peers.len() == 1 => GroupPeers::One,
                RulePeer::Identity(_) => GroupPeers::Identities(peers.iter().filter_map(identity).collect()),
                RulePeer::Cidr(_) => GroupPeers::Cidrs(peers.iter().filter_map(cidr).collect()),
                RulePeer::Any | RulePeer::Entity(_) | RulePeer::Name(_) => GroupPeers::One,
            }
        };
        groups.into_values().map(|of_one| RuleGroup { rule: of_one.0, peers: group(of_one) }).collect()
    }

    /// Whether an address may be in several of its blocks, so that it matters which rule is first.
    fn has_nested_cidrs(&self) -> bool {
        let mut all: Vec<IpNet> = self
            .rules
            .iter()
            .filter_map(|rule| if let RulePeer::Cidr(net) = rule.peer { Some(net) } else { None })
            .collect();
        all.sort_unstable();
        all.dedup();
        // Blocks are nested or apart, and a wider one comes first.
        all.windows(2).any(|pair| pair[0].contains(&pair[1]))
    }

    /// Different peers.
    pub fn peers(&self) -> usize {
        self.rules.iter().map(|rule| &rule.peer).collect::<BTreeSet<_>>().len()
    }

    /// Why agents are not told of it.
    pub fn too_large(&self) -> Option<TooLarge> {
        let of = |what, count, limit| Some(self.blame(what, count, limit));
        if let Some(count) = self.unexpanded {
            return of("rules", count, MAX_CLASS_RULES);
        }
        // Types of ICMP are told one by one.
        let rules: usize = self.rules.iter().map(types).sum();
        if rules > MAX_CLASS_RULES {
            return of("rules", rules, MAX_CLASS_RULES);
        }
        if rules > MAX_CLASS_PEERS && self.peers() > MAX_CLASS_PEERS {
            return of("peers", self.peers(), MAX_CLASS_PEERS);
        }
        let alone = |rule: &PolicyRule| (BYTES + text(rule)) * types(rule);
        if self.rules.iter().map(alone).sum::<usize>() <= MAX_CLASS_BYTES {
            return None;
        }
        let bytes = self.groups().into_iter().map(|group| match &group.peers {
            GroupPeers::One => alone(group.rule),
            GroupPeers::Identities(all) => alone(group.rule) + all.len() * 4 * types(group.rule),
            GroupPeers::Cidrs(all) => alone(group.rule) + all.len() * 48 * types(group.rule),
        });
        let bytes: usize = bytes.sum();
        if bytes > MAX_CLASS_BYTES { of("bytes", bytes, MAX_CLASS_BYTES) } else { None }
    }

    fn blame(&self, what: &'static str, count: usize, limit: usize) -> TooLarge {
        let mut by_policy: BTreeMap<&str, usize> = BTreeMap::new();
        for rule in &self.rules {
            *by_policy.entry(policy_of(&rule.provenance)).or_default() += 1;
        }
        let most = by_policy.into_iter().rev().max_by_key(|(_, count)| *count);
        let (policy, of_policy) = most.unwrap_or_default();
        TooLarge { policy: policy.to_owned(), of_policy, what, count, limit }
    }

    /// The policies that it is made of, as provenance names them.
    pub fn policies(&self) -> BTreeSet<&str> {
        let defaults = [&self.ingress_default_deny, &self.egress_default_deny];
        let defaults = defaults.into_iter().flatten().map(|named| policy_of(named));
        self.rules.iter().map(|rule| policy_of(&rule.provenance)).chain(defaults).collect()
    }
}

/// What a rule takes besides its text, at most.
const BYTES: usize = 96;

fn text(rule: &PolicyRule) -> usize {
    let l7 = match &rule.l7 {
        Some(L7::Proxy(name)) => name.len(),
        // Agents lead what it says to the proxy; its rules go there.
        Some(L7::Http(_)) => NODE_PROXY.len(),
        Some(L7::Dns(names)) => names.iter().map(|name| name.as_str().len() + 8).sum(),
        None => 0,
    };
    rule.provenance.len() + l7
}

fn types(rule: &PolicyRule) -> usize {
    match (rule.protocol, rule.ports) {
        (_, None | Some((0, u16::MAX))) => 1,
        (Some(FlowProtocol::Icmp | FlowProtocol::Icmpv6), Some((first, last))) => {
            usize::from(last >> 8) - usize::from(first >> 8) + 1
        }
        _ => 1,
    }
}

/// `networkpolicy/shop/x#ingress[0]` is of `networkpolicy/shop/x`.
fn policy_of(provenance: &str) -> &str {
    provenance.split_once('#').map_or(provenance, |(policy, _)| policy)
}

/// At most so many rules come of a policy, where there are so many identities and nodes and it stands beside no tiers.
fn bound(policy: &NormalPolicy, identities: usize, nodes: usize) -> usize {
    let peer = |peer: &PeerMatch| match peer {
        PeerMatch::Any | PeerMatch::Entity(_) => identities,
        PeerMatch::Workloads { .. } | PeerMatch::Gateways => identities,
        PeerMatch::Outside(blocks) => blocks.len(),
        PeerMatch::World(blocks) => blocks.len() + 128 * nodes,
        PeerMatch::Names(names) => names.len(),
        // Unlikely, and looked at in full.
        PeerMatch::Services(_) | PeerMatch::Networks(_) => MAX_CLASS_RULES,
    };
    let sides = policy.ingress.iter().chain(&policy.egress).flat_map(|side| &side.rules);
    sides
        .map(|rule| {
            let peers: usize = rule.peers.iter().map(peer).sum();
            // Of several workloads, a name may be several ports; that is looked at in full as well.
            peers.saturating_mul(rule.ports.len())
        })
        .fold(0, usize::saturating_add)
}

/// Whether a class may become too large when these policies come to those that made `model`. That it may not is cheap to
/// say, and mostly so.
pub fn may_be_too_large(model: &MeshModel, policies: &[NormalPolicy]) -> bool {
    let is_plain = |rule: &crate::policy::NormalRule| {
        rule.action != RuleAction::Pass
            && !rule.ports.iter().any(|port| matches!(port, crate::policy::PortMatch::Named { .. }))
    };
    let sides = policies.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    let plain = sides.flat_map(|side| side.rules.iter().map(move |rule| (side.layer, rule)));
    if !plain.into_iter().all(|(layer, rule)| layer == crate::policy::Layer::Normal && is_plain(rule)) {
        return true;
    }
    let largest = model.policy_classes.values().map(|class| class.rules.len()).max().unwrap_or(0);
    let identities = model.index.identities().count();
    let addresses = model.nodes.values().map(|node| node.addresses().count()).sum();
    let come: usize = policies.iter().map(|policy| bound(policy, identities, addresses)).sum();
    largest.saturating_add(come) > MAX_CLASS_PEERS.min(MAX_CLASS_RULES)
}

/// Every class of this state that is too large, with the policies that it is made of.
pub fn too_large(input: &Input) -> Vec<(TooLarge, BTreeSet<String>)> {
    let (classes, _) = super::policy::compile(input, &mut BTreeMap::new(), Numbering::default());
    let found = classes.values().filter_map(|class| Some((class.too_large()?, class)));
    found.map(|(error, class)| (error, class.policies().into_iter().map(str::to_owned).collect())).collect()
}

/// A node whose kernel has no room for the policies of its workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct FullNode {
    pub node: String,
    /// Of all classes of its workloads.
    pub peers: usize,
    pub limit: usize,
}

impl fmt::Display for FullNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, peers, limit } = self;
        write!(
            f,
            "node {node}: the policies of its workloads name {peers} peers, its kernel has room for {limit}"
        )
    }
}

impl MeshModel {
    /// Classes that agents are not told of, with one workload that has the class.
    pub fn oversized(&self) -> Vec<(TooLarge, Option<&NamespacedName>)> {
        let all = self.policy_classes.iter().filter_map(|(id, class)| Some((*id, class.too_large()?)));
        let of = |id: u32| self.workloads.values().find(|workload| workload.policy_class == id);
        all.map(|(id, error)| (error, of(id).map(|workload| &workload.name))).collect()
    }

    /// Nodes for whose kernels the policies of their workloads are too much together.
    pub fn full_nodes(&self) -> Vec<FullNode> {
        let class = |id: &u32| self.policy_classes.get(id);
        let of = |node: &String| {
            let workloads = self.index.on_node(node).filter_map(|name| self.workloads.get(name));
            let classes: BTreeSet<u32> = workloads
                .map(|workload| workload.policy_class)
                .chain(self.host_classes.get(node).copied())
                .collect();
            let at_most: usize = classes.iter().filter_map(class).map(|class| class.rules.len()).sum();
            if at_most <= MAX_NODE_PEERS {
                return None;
            }
            let peers = classes.iter().filter_map(class).map(|class| class.peers()).sum();
            (peers > MAX_NODE_PEERS).then(|| FullNode { node: node.clone(), peers, limit: MAX_NODE_PEERS })
        };
        self.nodes.keys().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(peer: RulePeer, port: u16, provenance: &str) -> PolicyRule {
        PolicyRule {
            direction: Direction::Ingress,
            action: Action::Allow,
            peer,
            protocol: Some(FlowProtocol::Tcp),
            ports: Some((port, port)),
            audit: false,
            l7: None,
            provenance: provenance.into(),
        }
    }

    fn class(rules: Vec<PolicyRule>) -> PolicyClass {
        PolicyClass { id: 7, rules, ..PolicyClass::default() }
    }

    fn cidr(text: &str) -> RulePeer {
        RulePeer::Cidr(text.parse().unwrap())
    }

    #[test]
    fn many_identities_and_ports_are_as_many_groups_as_ports() {
        let rules =
            (0..10_000).flat_map(|n| [80, 443].map(|port| rule(RulePeer::Identity(300 + n), port, "p#0")));
        let class = class(rules.collect());
        let groups = class.groups();
        assert_eq!(groups.len(), 2);
        for group in groups {
            assert!(matches!(group.peers, GroupPeers::Identities(all) if all.len() == 10_000));
        }
        assert_eq!((class.peers(), class.too_large()), (10_000, None));
    }

    #[test]
    fn blocks_are_put_together_unless_one_is_inside_another() {
        let apart = class(["10.0.0.0/8", "11.0.0.0/8"].map(|net| rule(cidr(net), 80, "p#0")).to_vec());
        assert_eq!(apart.groups().len(), 1);
        let nested = class(["10.0.0.0/8", "10.1.0.0/16"].map(|net| rule(cidr(net), 80, "p#0")).to_vec());
        assert!(nested.groups().iter().all(|group| group.peers == GroupPeers::One));
        assert_eq!(nested.groups().len(), 2);
        // What says something else is another group.
        let mixed =
            class(vec![rule(RulePeer::Identity(300), 80, "p#0"), rule(RulePeer::Identity(301), 80, "p#1")]);
        assert_eq!(mixed.groups().len(), 2);
    }

    #[test]
    fn what_is_too_large_is_told_with_the_policy_and_the_number() {
        let many = |count: u32, policy: &str| -> Vec<PolicyRule> {
            (0..count).map(|n| rule(RulePeer::Identity(300 + n), 80, policy)).collect()
        };
        let fits = class(many(MAX_CLASS_PEERS as u32, "networkpolicy/shop/wide#ingress[0]"));
        assert_eq!(fits.too_large(), None);
        let mut peers = class(many(MAX_CLASS_PEERS as u32 + 1, "networkpolicy/shop/wide#ingress[0]"));
        peers.rules.push(rule(RulePeer::Any, 9, "networkpolicy/shop/other#ingress[0]"));
        let error = peers.too_large().unwrap();
        assert_eq!((error.what, error.count, error.of_policy), ("peers", 262_146, 262_145));
        let text = error.to_string();
        assert!(text.starts_with("networkpolicy/shop/wide: ") && text.contains("at most 262144"), "{text}");
        let ports = (0..=2u16).flat_map(|port| {
            let all = many(MAX_CLASS_PEERS as u32 - 1, "p#0").into_iter();
            all.map(move |rule| PolicyRule { ports: Some((port, port)), ..rule })
        });
        assert_eq!(class(ports.collect()).too_large().unwrap().what, "rules");
        let long = "x".repeat(1 << 20);
        let bytes = (0..13).map(|n| rule(RulePeer::Identity(300 + n), 80 + n as u16, &long)).collect();
        assert_eq!(class(bytes).too_large().unwrap().what, "bytes");
    }
}
