//! Rules about one peer to one function of protocol and port, by the order that policy has. Pure.
//!
//! 1. A deny denies, whatever allows; of several the first is named.
//! 2. Else an allow allows; of several the first is named.
//! 3. Else one that allows only what a proxy admits redirects to that proxy, which has the rules of all of them.
//! 4. Else the default deny denies, if there is one.
//! 5. Else everything is allowed.
//!
//! Rules of audited policies enforce nothing and grant nothing. Where the others allow, and all of them together would
//! deny, traffic passes and is told of.

use std::collections::BTreeSet;

use ebpf_shared::packet::protocol;
use ebpf_shared::{RuleRef, RuleValue};

use super::ruleset::{RuleSet, TrafficPrefix, port_prefixes};

/// A rule without its peer and direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Said {
    pub allow: bool,
    /// Of an audited policy.
    pub audit: bool,
    /// Of a rule that allows: only through the proxy in this place.
    pub redirect: Option<u16>,
    /// IANA number; [`protocol::ANY`]: whichever.
    pub protocol: u8,
    /// Inclusive; of ICMP, `type << 8 | code`. `None`: all, and protocols without ports. With [`protocol::ANY`]: of the
    /// protocols that have ports.
    pub ports: Option<(u16, u16)>,
    /// The number by which flow events name the rule; 0: none.
    pub policy_id: u32,
}

/// What denies where no rule allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DefaultDeny {
    /// Named by flow events.
    pub enforced: Option<u32>,
    /// Asked for by audited policies.
    pub audited: Option<u32>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// Needs no ruleset.
    Uniform(RuleRef),
    Set(RuleSet),
}

/// Protocols that policy can tell apart, and whether they have ports that a rule for any protocol can mean.
const PROTOCOLS: [(u8, bool); 5] = [
    (protocol::TCP, true),
    (protocol::UDP, true),
    (protocol::SCTP, true),
    (protocol::ICMP, false),
    (protocol::ICMPV6, false),
];

/// The function that rules about one peer in one direction make, in their order.
pub fn flatten(rules: &[Said], default: DefaultDeny) -> Function {
    let others: Vec<_> =
        rules.iter().filter(|rule| rule.protocol == protocol::ANY && rule.ports.is_none()).collect();
    let mut holding = Holding::default();
    for (place, rule) in others.iter().enumerate() {
        holding.begin(place, rule);
    }
    let of_others = holding.value(|place| others[place], default);

    let mut entries = vec![(TrafficPrefix::ALL, of_others)];
    for (number, has_ports) in PROTOCOLS {
        entries.extend(protocol_entries(rules, default, number, has_ports, of_others));
    }
    let is_plain = of_others.flags == 0 && of_others.verdict != RuleValue::REDIRECT;
    if entries.len() == 1 && is_plain {
        return Function::Uniform(RuleRef::uniform(of_others.verdict, of_others.policy_id));
    }
    Function::Set(RuleSet::new(entries))
}

/// The entries of a protocol, where they say anything else than is said of the other protocols.
fn protocol_entries(
    rules: &[Said],
    default: DefaultDeny,
    number: u8,
    has_ports: bool,
    of_others: RuleValue,
) -> Vec<(TrafficPrefix, RuleValue)> {
    let of_it: Vec<&Said> = rules
        .iter()
        .filter(|rule| match rule.protocol {
            protocol::ANY => has_ports || rule.ports.is_none(),
            named => named == number,
        })
        .collect();
    let pieces = pieces(&of_it, default);
    // What is said of most of it is said of all of it, and the rest within.
    let mut costs: Vec<(RuleValue, usize)> = Vec::new();
    for (low, high, value) in &pieces {
        let cost = port_prefixes(*low..=*high).len();
        match costs.iter_mut().find(|(known, _)| known == value) {
            Some((_, sum)) => *sum += cost,
            None => costs.push((*value, cost)),
        }
    }
    // The first of the dearest.
    let dearest = costs.iter().rev().max_by_key(|(_, cost)| *cost).map_or(of_others, |(value, _)| *value);
    let mut entries = Vec::new();
    if dearest != of_others {
        entries.push((TrafficPrefix::protocol(number), dearest));
    }
    for (low, high, value) in pieces {
        if value != dearest {
            let prefixes = port_prefixes(low..=high).into_iter();
            entries.extend(prefixes.map(|(port, bits)| (TrafficPrefix::ports(number, port, bits), value)));
        }
    }
    entries
}

/// All ports, cut where what is said changes.
fn pieces(rules: &[&Said], default: DefaultDeny) -> Vec<(u16, u16, RuleValue)> {
    // Where rules begin, and where they have ended.
    let mut cuts: Vec<(u32, bool, usize)> = Vec::new();
    for (place, rule) in rules.iter().enumerate() {
        let (low, high) = rule.ports.unwrap_or((0, u16::MAX));
        if low <= high {
            cuts.push((u32::from(low), true, place));
            cuts.push((u32::from(high) + 1, false, place));
        }
    }
    cuts.sort_unstable();
    let mut holding = Holding::default();
    let mut pieces: Vec<(u16, u16, RuleValue)> = Vec::new();
    let mut at = 0;
    let mut next = 0;
    while at <= u32::from(u16::MAX) {
        while let Some((port, begins, place)) = cuts.get(next).filter(|(port, ..)| *port <= at) {
            debug_assert!(*port <= at);
            if *begins {
                holding.begin(*place, rules[*place])
            } else {
                holding.end(*place, rules[*place])
            }
            next += 1;
        }
        let end = cuts.get(next).map_or(1 << 16, |(port, ..)| *port);
        let value = holding.value(|place| rules[place], default);
        let high = (end - 1) as u16;
        match pieces.last_mut() {
            Some((_, before, same)) if *same == value => *before = high,
            _ => pieces.push((at as u16, high, value)),
        }
        at = end;
    }
    pieces
}

/// The rules that hold at a port, by their places.
#[derive(Default)]
struct Holding {
    denies: Both,
    allows: Both,
    redirects: Both,
}

/// Those that are enforced, and all of them.
#[derive(Default)]
struct Both {
    enforced: BTreeSet<usize>,
    all: BTreeSet<usize>,
}

impl Holding {
    fn of(&mut self, rule: &Said) -> &mut Both {
        match (rule.allow, rule.redirect) {
            (false, _) => &mut self.denies,
            (true, None) => &mut self.allows,
            (true, Some(_)) => &mut self.redirects,
        }
    }

    fn begin(&mut self, place: usize, rule: &Said) {
        let both = self.of(rule);
        both.all.insert(place);
        if !rule.audit {
            both.enforced.insert(place);
        }
    }

    fn end(&mut self, place: usize, rule: &Said) {
        let both = self.of(rule);
        both.all.remove(&place);
        both.enforced.remove(&place);
    }

    fn value<'a>(&self, rule: impl Fn(usize) -> &'a Said, default: DefaultDeny) -> RuleValue {
        let first = |places: &BTreeSet<usize>| places.first().map(|place| rule(*place));
        let enforced = decide(
            first(&self.denies.enforced),
            first(&self.allows.enforced).or(first(&self.redirects.enforced)),
            default.enforced,
        );
        if enforced.verdict != RuleValue::ALLOW {
            return enforced;
        }
        let default = default.enforced.or(default.audited);
        // Whether a proxy would have admitted it is not known here: it is not told of.
        let all = first(&self.allows.all).or(first(&self.redirects.all));
        let all = decide(first(&self.denies.all), all, default);
        if matches!(all.verdict, RuleValue::ALLOW | RuleValue::REDIRECT) {
            return enforced;
        }
        RuleValue { flags: RuleValue::AUDIT, audit_id: all.policy_id, ..enforced }
    }
}

fn decide(deny: Option<&Said>, allow: Option<&Said>, default: Option<u32>) -> RuleValue {
    match (deny, allow, default) {
        (Some(deny), ..) => RuleValue::new(RuleValue::DENY, deny.policy_id),
        (None, Some(Said { redirect: Some(proxy), policy_id, .. }), _) => {
            RuleValue { proxy: *proxy, ..RuleValue::new(RuleValue::REDIRECT, *policy_id) }
        }
        (None, Some(allow), _) => RuleValue::new(RuleValue::ALLOW, allow.policy_id),
        (None, None, Some(policy_id)) => RuleValue::new(RuleValue::DEFAULT_DENY, policy_id),
        (None, None, None) => RuleValue::new(RuleValue::ALLOW, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DENY: DefaultDeny = DefaultDeny { enforced: Some(100), audited: None };

    fn said(allow: bool, protocol: u8, ports: Option<(u16, u16)>, policy_id: u32) -> Said {
        Said { allow, audit: false, redirect: None, protocol, ports, policy_id }
    }

    fn at(function: &Function, protocol: u8, port: u16) -> RuleValue {
        match function {
            Function::Uniform(by) => RuleValue::new(by.set as u8, by.policy_id),
            Function::Set(set) => set.find(protocol, port).unwrap(),
        }
    }

    fn entries(function: &Function) -> usize {
        match function {
            Function::Uniform(_) => 0,
            Function::Set(set) => set.entries().len(),
        }
    }

    #[test]
    fn what_is_the_same_for_all_traffic_needs_no_ruleset() {
        for (rules, default, verdict) in [
            (vec![], DefaultDeny::default(), RuleValue::ALLOW),
            (vec![], DENY, RuleValue::DEFAULT_DENY),
            (vec![said(true, 0, None, 1)], DENY, RuleValue::ALLOW),
            (vec![said(true, 6, None, 1), said(false, 0, None, 2)], DENY, RuleValue::DENY),
        ] {
            let function = flatten(&rules, default);
            assert!(matches!(function, Function::Uniform(by) if by.set as u8 == verdict), "{function:?}");
        }
    }

    #[test]
    fn a_range_of_one_protocol_is_its_prefixes_and_the_rest() {
        let function = flatten(&[said(true, protocol::TCP, Some((8080, 8083)), 1)], DENY);
        assert_eq!(entries(&function), 2);
        // Nearly all ports: what is left out is cheaper to write.
        let function = flatten(&[said(true, protocol::TCP, Some((1, 65534)), 1)], DENY);
        assert_eq!(entries(&function), 1 + 1 + 2);
        assert_eq!(at(&function, protocol::TCP, 0).verdict, RuleValue::DEFAULT_DENY);
        assert_eq!(at(&function, protocol::TCP, 40_000).verdict, RuleValue::ALLOW);
    }

    #[test]
    fn ports_of_any_protocol_are_no_types_of_icmp() {
        let function = flatten(&[said(true, protocol::ANY, Some((0, 65535)), 1)], DENY);
        assert_eq!(at(&function, protocol::UDP, 5).verdict, RuleValue::ALLOW);
        assert_eq!(at(&function, protocol::ICMP, 8 << 8).verdict, RuleValue::DEFAULT_DENY);
        let echo = flatten(&[said(true, protocol::ICMP, Some((8 << 8, 8 << 8 | 255)), 1)], DENY);
        assert_eq!(entries(&echo), 2, "a type is a prefix");
        assert_eq!(at(&echo, protocol::ICMP, 8 << 8).verdict, RuleValue::ALLOW);
        assert_eq!(at(&echo, protocol::ICMP, 13 << 8).verdict, RuleValue::DEFAULT_DENY);
        assert_eq!(at(&echo, protocol::ICMPV6, 8 << 8).verdict, RuleValue::DEFAULT_DENY);
    }

    #[test]
    fn audited_rules_neither_deny_nor_grant() {
        let audited = |allow, policy_id| Said { audit: true, ..said(allow, 0, None, policy_id) };
        let value = |rules: &[Said], default| at(&flatten(rules, default), 6, 80);
        let plain = value(&[audited(false, 1)], DefaultDeny::default());
        assert_eq!((plain.verdict, plain.flags, plain.audit_id), (RuleValue::ALLOW, RuleValue::AUDIT, 1));
        assert_eq!(value(&[audited(true, 1)], DENY), RuleValue::new(RuleValue::DEFAULT_DENY, 100));
        let both = DefaultDeny { enforced: None, audited: Some(9) };
        assert_eq!(value(&[], both).audit_id, 9);
        assert_eq!(value(&[audited(true, 1)], both), RuleValue::new(RuleValue::ALLOW, 0));
        assert_eq!(value(&[said(true, 0, None, 3)], both), RuleValue::new(RuleValue::ALLOW, 3));
        // A denial is a denial, whoever else would have denied too.
        assert_eq!(value(&[audited(false, 1), said(false, 0, None, 2)], both).policy_id, 2);
    }

    #[test]
    fn many_rules_about_one_peer_take_no_time_to_speak_of() {
        let rules: Vec<_> = (0..16_000).map(|n| said(n % 3 != 0, 0, Some((n * 4, n * 4 + 900)), 1)).collect();
        assert!(entries(&flatten(&rules, DENY)) > 0);
    }

    fn rules() -> impl Strategy<Value = Vec<Said>> {
        let ports = prop_oneof![Just(None), (0u16..20, 0u16..20).prop_map(Some), Just(Some((0, 65535)))];
        let rule = (
            any::<bool>(),
            any::<bool>(),
            prop_oneof![Just(0u8), Just(6), Just(17), Just(1)],
            ports,
            1u32..50,
        );
        let rule = rule.prop_map(|(allow, audit, protocol, ports, policy_id)| Said {
            allow,
            audit: audit && policy_id % 2 == 0,
            redirect: (policy_id % 3 == 0).then_some(7),
            protocol,
            ports,
            policy_id,
        });
        proptest::collection::vec(rule, 0..8)
    }

    proptest! {
        #[test]
        fn a_function_says_of_each_port_what_the_rules_say(
            rules in rules(),
            enforced in proptest::option::of(Just(100u32)),
            audited in proptest::option::of(Just(200u32)),
        ) {
            let function = flatten(&rules, DefaultDeny { enforced, audited });
            for number in [6u8, 17, 132, 1, 58, 77] {
                for port in (0..24).chain([30, 0x0800, 65535]) {
                    let holds = |rule: &&Said| {
                        let any = rule.protocol == 0 && (rule.ports.is_none() || [6, 17, 132].contains(&number));
                        (any || rule.protocol == number)
                            && rule.ports.is_none_or(|(low, high)| (low..=high).contains(&port))
                    };
                    let say = |with_audited: bool, default: Option<u32>| {
                        let counts = |rule: &&Said| holds(rule) && (with_audited || !rule.audit);
                        let first = |wanted: &dyn Fn(&Said) -> bool| {
                            rules.iter().filter(counts).find(|rule| wanted(rule))
                        };
                        let plain = first(&|rule| rule.allow && rule.redirect.is_none());
                        let redirect = first(&|rule| rule.allow && rule.redirect.is_some());
                        match (first(&|rule| !rule.allow), plain, redirect, default) {
                            (Some(rule), ..) => (RuleValue::DENY, rule.policy_id),
                            (None, Some(rule), ..) => (RuleValue::ALLOW, rule.policy_id),
                            (None, None, Some(rule), _) => (RuleValue::REDIRECT, rule.policy_id),
                            (None, None, None, Some(id)) => (RuleValue::DEFAULT_DENY, id),
                            (None, None, None, None) => (RuleValue::ALLOW, 0),
                        }
                    };
                    let (verdict, policy_id) = say(false, enforced);
                    let mut expected = RuleValue::new(verdict, policy_id);
                    let (with, audit_id) = say(true, enforced.or(audited));
                    if verdict == RuleValue::REDIRECT {
                        expected.proxy = 7;
                    }
                    if verdict == RuleValue::ALLOW && !matches!(with, RuleValue::ALLOW | RuleValue::REDIRECT) {
                        expected.flags = RuleValue::AUDIT;
                        expected.audit_id = audit_id;
                    }
                    prop_assert_eq!(at(&function, number, port), expected, "{} {}: {:?}", number, port, rules);
                }
            }
        }
    }
}
