//! Tiers, priorities and Pass, made into what the data plane knows: rules that deny, rules that allow, of which a denial
//! wins, and a default.
//!
//! Only a finite number of peers is told apart by the rules: the identities and blocks that they name, and everybody
//! else. For each of these the whole function from protocol and port to a decision is worked out in the order of the
//! tiers, and then written down as rules that do not overlap. Nobody in particular ("else") is never denied by a rule,
//! which would beat what others are allowed, but by the default.
//!
//! An address that DNS has answered for a name may be in a block as well. Each has its own function, and where one of them
//! denies, both do: that may be more than the tiers say, and never less.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Action, Direction, FlowProtocol, PolicyRule, RulePeer};
use crate::policy::{L7, Layer, NODE_PROXY, RuleAction, cover};

/// Names what no policy decides, where a rule has to say it.
pub const UNDECIDED: &str = "builtin/undecided";

/// One rule of a policy, for one peer and one range of ports.
#[derive(Debug, Clone)]
pub(super) struct Layered {
    pub(super) layer: Layer,
    pub(super) action: RuleAction,
    pub(super) peer: RulePeer,
    pub(super) protocol: Option<FlowProtocol>,
    pub(super) ports: Option<(u16, u16)>,
    pub(super) l7: Option<L7>,
    pub(super) provenance: Arc<str>,
}

/// What one direction comes to.
#[derive(Debug, Default)]
pub(super) struct Flat {
    /// Provenance of what is denied for want of a rule. None: it is allowed.
    pub(super) default_deny: Option<String>,
    pub(super) rules: BTreeSet<PolicyRule>,
}

/// Ports of one protocol with what is decided about them: ascending, without gaps.
type Function = BTreeMap<FlowProtocol, Vec<Segment>>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    first: u16,
    last: u16,
    decision: Decided,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Decided {
    action: Action,
    /// None: no rule, but the default denial of the policies of namespaces, or the want of one.
    by: Option<Arc<str>>,
    /// It is allowed as far as these admit it.
    l7: Option<L7>,
}

/// Makes rules of one direction flat. They are in the order of their policies and of their place there; those of one
/// layer and priority are tried in that order. `default_deny` is that of the policies of namespaces.
pub(super) fn flatten(direction: Direction, mut rules: Vec<Layered>, default_deny: Option<String>) -> Flat {
    rules.sort_by_key(|rule| rule.layer);
    let tiers = Tiers { rules: &rules, default_deny: default_deny.is_some() };
    let mut any: Vec<usize> = Vec::new();
    // None of these is another one, or in a block. (An address may have a name and be in a block: see the head.)
    let mut named: BTreeMap<RulePeer, Vec<usize>> = BTreeMap::new();
    let mut blocks: BTreeMap<IpNet, Vec<usize>> = BTreeMap::new();
    for (i, rule) in rules.iter().enumerate() {
        match &rule.peer {
            RulePeer::Any => any.push(i),
            RulePeer::Identity(_) | RulePeer::Entity(_) | RulePeer::Name(_) => {
                named.entry(rule.peer.clone()).or_default().push(i);
            }
            RulePeer::Cidr(block) => blocks.entry(*block).or_default().push(i),
        }
    }
    let mut known: BTreeMap<Vec<usize>, Arc<Function>> = BTreeMap::new();
    let mut of = |own: &[usize]| -> Arc<Function> {
        let mut all: Vec<usize> = any.iter().chain(own).copied().collect();
        all.sort_unstable();
        all.dedup();
        known.entry(all).or_insert_with_key(|all| Arc::new(tiers.function(all))).clone()
    };
    let everybody = of(&[]);
    let unsaid = default_deny.as_deref().unwrap_or(UNDECIDED).into();
    let mut out = Writer { direction, everybody: everybody.clone(), unsaid, flat: Flat::default() };
    let denied = everybody.values().flatten().find(|segment| segment.decision.action == Action::Deny);
    if let Some(segment) = denied {
        let by = segment.decision.by.as_ref().map(ToString::to_string);
        out.flat.default_deny = default_deny.or(by);
    }
    out.everybody();
    for (peer, own) in &named {
        let function = of(own);
        out.named(peer, &function);
    }
    for Nested { block, around, inside } in nested(&blocks) {
        let own: Vec<usize> = around.iter().filter_map(|net| blocks.get(net)).flatten().copied().collect();
        let function = of(&own);
        // Rules of a block hold for the blocks inside it as well, and these have rules of their own.
        for part in cover(block, &inside) {
            out.named(&RulePeer::Cidr(part), &function);
        }
    }
    out.flat
}

/// A block with itself and those around it, and the widest of those inside it.
struct Nested {
    block: IpNet,
    around: Vec<IpNet>,
    inside: Vec<IpNet>,
}

fn nested(blocks: &BTreeMap<IpNet, Vec<usize>>) -> Vec<Nested> {
    // In the order of addresses, and wider ones first: those around a block are the ones that are open.
    let mut sorted: Vec<IpNet> = blocks.keys().copied().collect();
    sorted.sort_by_key(|net| (net.network(), net.prefix_len()));
    let mut open: Vec<usize> = Vec::new();
    let mut out: Vec<Nested> = Vec::with_capacity(sorted.len());
    for block in sorted {
        while open.last().is_some_and(|outer| !out[*outer].block.contains(&block)) {
            open.pop();
        }
        if let Some(outer) = open.last() {
            out[*outer].inside.push(block);
        }
        open.push(out.len());
        let around =
            open.iter().filter_map(|i| out.get(*i)).map(|outer| outer.block).chain([block]).collect();
        out.push(Nested { block, around, inside: Vec::new() });
    }
    out
}

struct Tiers<'a> {
    rules: &'a [Layered],
    default_deny: bool,
}

impl Tiers<'_> {
    /// What these rules, ascending, come to together.
    fn function(&self, rules: &[usize]) -> Function {
        FlowProtocol::ALL.into_iter().map(|protocol| (protocol, self.segments(protocol, rules))).collect()
    }

    fn segments(&self, protocol: FlowProtocol, rules: &[usize]) -> Vec<Segment> {
        let own: Vec<&Layered> = rules
            .iter()
            .filter_map(|i| self.rules.get(*i))
            .filter(|rule| rule.protocol.is_none_or(|p| p == protocol))
            .collect();
        // Where a decision may begin to be another one. No port is 0; a type of ICMP is.
        let least = u32::from(!matches!(protocol, FlowProtocol::Icmp | FlowProtocol::Icmpv6));
        let mut starts: BTreeSet<u32> = [least].into();
        for (first, last) in own.iter().filter_map(|rule| rule.ports) {
            starts.extend([u32::from(first), u32::from(last) + 1]);
        }
        let starts: Vec<u16> = starts.into_iter().filter_map(|start| u16::try_from(start).ok()).collect();
        let mut out: Vec<Segment> = Vec::with_capacity(starts.len());
        for (i, first) in starts.iter().enumerate() {
            let last = starts.get(i + 1).map_or(u16::MAX, |next| next - 1);
            let holds = |rule: &&&Layered| rule.ports.is_none_or(|(a, b)| a <= *first && last <= b);
            let matching: Vec<&Layered> = own.iter().filter(holds).copied().collect();
            let decision = self.decide(&matching);
            match out.last_mut() {
                Some(before) if before.decision == decision => before.last = last,
                _ => out.push(Segment { first: *first, last, decision }),
            }
        }
        out
    }

    fn decide(&self, matching: &[&Layered]) -> Decided {
        let by = |action, rule: &Layered| Decided { action, by: Some(rule.provenance.clone()), l7: None };
        let tier = |wanted: fn(Layer) -> bool| match matching.iter().find(|rule| wanted(rule.layer)) {
            Some(rule) if rule.action == RuleAction::Deny => Some(by(Action::Deny, rule)),
            Some(rule) if rule.action == RuleAction::Allow => Some(by(Action::Allow, rule)),
            Some(_) | None => None,
        };
        let normal =
            |action| matching.iter().find(|rule| rule.layer == Layer::Normal && rule.action == action);
        if let Some(decided) = tier(|layer| matches!(layer, Layer::Admin(_))) {
            return decided;
        }
        if let Some(rule) = normal(RuleAction::Deny) {
            return by(Action::Deny, rule);
        }
        if let Some(rule) = normal(RuleAction::Allow) {
            let allowing =
                matching.iter().filter(|r| r.layer == Layer::Normal && r.action == RuleAction::Allow);
            return Decided { l7: joined(allowing.map(|rule| rule.l7.as_ref())), ..by(Action::Allow, rule) };
        }
        if self.default_deny {
            return Decided { action: Action::Deny, by: None, l7: None };
        }
        tier(|layer| matches!(layer, Layer::Baseline(_))).unwrap_or(Decided {
            action: Action::Allow,
            by: None,
            l7: None,
        })
    }
}

/// What all that allow admit together: everything, if one of them does. Of several that name proxies, the first name has
/// it, and before those that name DNS names: nobody else knows what a proxy admits.
fn joined<'a>(all: impl Iterator<Item = Option<&'a L7>>) -> Option<L7> {
    let mut names = BTreeSet::new();
    let mut requests = BTreeSet::new();
    let mut proxies = BTreeSet::new();
    for l7 in all {
        match l7? {
            L7::Dns(more) => names.extend(more.iter().cloned()),
            L7::Proxy(name) => {
                proxies.insert(name.as_str());
            }
            L7::Http(more) => {
                proxies.insert(NODE_PROXY);
                requests.extend(more.iter().cloned());
            }
        }
    }
    Some(match proxies.first() {
        // No other rule may name that one.
        Some(&NODE_PROXY) => L7::Http(requests.into_iter().collect()),
        Some(proxy) => L7::Proxy((*proxy).to_owned()),
        None => L7::Dns(names.into_iter().collect()),
    })
}

/// Writes functions down as rules.
struct Writer {
    direction: Direction,
    everybody: Arc<Function>,
    /// Names what no rule decides.
    unsaid: Arc<str>,
    flat: Flat,
}

impl Writer {
    /// What whoever is allowed. What they are denied is left to the default.
    fn everybody(&mut self) {
        let function = self.everybody.clone();
        let by_default = self.flat.default_deny.is_none();
        let needless = |_: FlowProtocol, segment: &Segment| {
            let Decided { action, by, .. } = &segment.decision;
            *action == Action::Deny || by.is_none() && by_default
        };
        let rules = self.rules(&RulePeer::Any, &function, needless);
        self.flat.rules.extend(rules);
    }

    /// What a peer is allowed and denied otherwise than whoever, or by another rule.
    fn named(&mut self, peer: &RulePeer, function: &Function) {
        if *function == *self.everybody {
            return;
        }
        let everybody = self.everybody.clone();
        let needless = |protocol: FlowProtocol, segment: &Segment| {
            let here = |other: &&Segment| other.first <= segment.last && segment.first <= other.last;
            let mut theirs = everybody.get(&protocol).into_iter().flatten().filter(here);
            match (&segment.decision.by, segment.decision.action) {
                // It is told whoever.
                (_, Action::Allow) => theirs.all(|other| other.decision == segment.decision),
                // A denial that no rule says is left to the default, unless whoever is allowed.
                (None, Action::Deny) => theirs.all(|other| other.decision.action == Action::Deny),
                (Some(_), Action::Deny) => false,
            }
        };
        let rules = self.rules(peer, function, needless);
        self.flat.rules.extend(rules);
    }

    fn rules(
        &self,
        peer: &RulePeer,
        function: &Function,
        needless: impl Fn(FlowProtocol, &Segment) -> bool,
    ) -> Vec<PolicyRule> {
        let rule = |protocol, ports, decision: &Decided| PolicyRule {
            direction: self.direction,
            action: decision.action,
            peer: peer.clone(),
            protocol,
            ports,
            audit: false,
            l7: decision.l7.clone(),
            provenance: match (&decision.by, decision.action) {
                (Some(by), _) => by.clone(),
                (None, Action::Deny) => self.unsaid.clone(),
                (None, Action::Allow) => UNDECIDED.into(),
            },
        };
        let all: Vec<(FlowProtocol, &Segment)> =
            function.iter().flat_map(|(p, segments)| segments.iter().map(|s| (*p, s))).collect();
        let Some((_, first)) = all.first() else { return Vec::new() };
        if all.iter().all(|(_, segment)| segment.decision == first.decision) {
            let needed = all.iter().any(|(protocol, segment)| !needless(*protocol, segment));
            return needed.then(|| rule(None, None, &first.decision)).into_iter().collect();
        }
        let of = |protocol: &FlowProtocol| function.get(protocol).map_or(0, Vec::len);
        let needed = all.iter().filter(|(protocol, segment)| !needless(*protocol, segment));
        needed
            .map(|(protocol, segment)| {
                let ports = (of(protocol) > 1).then_some((segment.first, segment.last));
                rule(Some(*protocol), ports, &segment.decision)
            })
            .collect()
    }
}
