//! From the rules of a class to what the kernel has of it. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use ebpf_shared::{Direction, RuleRef, Sides, identity};

pub use super::flatten::DefaultDeny;
use super::flatten::{Function, Said, flatten};
use super::ruleset::RuleSets;

/// One L3/L4 rule: who may (or may not) talk to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub direction: Direction,
    pub allow: bool,
    /// Of an audited policy: see [`super::flatten`].
    pub audit: bool,
    /// Of a rule that allows: only through the proxy in this place of `PROXIES`.
    pub redirect: Option<u16>,
    /// The peer's; [`identity::ANY`]: whoever.
    pub identity: u32,
    /// IANA number; [`ebpf_shared::packet::protocol::ANY`]: whichever.
    pub protocol: u8,
    /// Destination ports (ICMP: `type << 8 | code`); `None`: all, and protocols without ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// The number by which flow events name the rule; 0: none.
    pub policy_id: u32,
}

impl Rule {
    fn said(&self) -> Said {
        Said {
            allow: self.allow,
            audit: self.audit,
            redirect: self.redirect,
            protocol: self.protocol,
            ports: self.ports.as_ref().map(|ports| (*ports.start(), *ports.end())),
            policy_id: self.policy_id,
        }
    }
}

/// What denies by default, for each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Defaults {
    pub ingress: DefaultDeny,
    pub egress: DefaultDeny,
}

impl Defaults {
    fn of(&self, direction: Direction) -> DefaultDeny {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// A class as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassEntry {
    /// For whoever is not among `peers`.
    pub own: Sides,
    /// By identity; none is equal to `own`.
    pub peers: BTreeMap<u32, Sides>,
}

impl ClassEntry {
    /// What holds for an identity.
    pub fn sides(&self, identity: u32) -> Sides {
        self.peers.get(&identity).copied().unwrap_or(self.own)
    }

    /// All references to rulesets.
    pub fn rulesets(&self) -> impl Iterator<Item = RuleRef> {
        let all = [&self.own].into_iter().chain(self.peers.values());
        all.flat_map(|sides| [sides.ingress, sides.egress]).filter(|by| !by.is_uniform() && by.set != 0)
    }
}

/// Compiles a class: the rules that name an identity come before those about whoever, else in their order.
pub fn compile(defaults: &Defaults, rules: &[Rule], sets: &mut RuleSets) -> ClassEntry {
    let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|direction| {
        let of_it = rules.iter().filter(|rule| rule.direction == direction);
        one_way(of_it, defaults.of(direction), sets)
    });
    let own = Sides { ingress: ingress.own, egress: egress.own };
    let mut peers: Vec<(u32, Sides)> = Vec::with_capacity(ingress.named.len() + egress.named.len());
    let (mut ingress, mut egress) =
        (ingress.named.into_iter().peekable(), egress.named.into_iter().peekable());
    loop {
        let next = |way: Option<&(u32, RuleRef)>| way.map(|(identity, _)| *identity);
        let Some(identity) = [next(ingress.peek()), next(egress.peek())].into_iter().flatten().min() else {
            break;
        };
        let mut sides = own;
        if let Some((_, by)) = ingress.next_if(|(named, _)| *named == identity) {
            sides.ingress = by;
        }
        if let Some((_, by)) = egress.next_if(|(named, _)| *named == identity) {
            sides.egress = by;
        }
        if sides != own {
            peers.push((identity, sides));
        }
    }
    ClassEntry { own, peers: peers.into_iter().collect() }
}

struct OneWay {
    own: RuleRef,
    /// Ascending.
    named: Vec<(u32, RuleRef)>,
}

fn one_way<'a>(rules: impl Iterator<Item = &'a Rule>, default: DefaultDeny, sets: &mut RuleSets) -> OneWay {
    let mut whoever: Vec<Said> = Vec::new();
    let mut named: Vec<(u32, Said)> = Vec::new();
    for rule in rules {
        match rule.identity {
            identity::ANY => whoever.push(rule.said()),
            identity => named.push((identity, rule.said())),
        }
    }
    // Stable: the rules of an identity keep their order.
    named.sort_by_key(|(identity, _)| *identity);
    let said: Vec<Said> = named.iter().map(|(_, said)| *said).collect();
    let mut refer = |rules: &[Said]| match flatten(rules, default) {
        Function::Uniform(by) => by,
        Function::Set(set) => sets.refer(set),
    };
    let own = refer(&whoever);
    // Many identities with few kinds of rules are the rule.
    let mut known: HashMap<&[Said], RuleRef> = HashMap::new();
    let mut refs = Vec::new();
    let mut begin = 0;
    for of_one in named.chunk_by(|(a, _), (b, _)| a == b) {
        let own_rules = &said[begin..begin + of_one.len()];
        begin += of_one.len();
        let by = *known.entry(own_rules).or_insert_with(|| refer(&[own_rules, &whoever[..]].concat()));
        refs.extend(of_one.first().map(|(identity, _)| (*identity, by)));
    }
    OneWay { own, named: refs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_shared::packet::protocol;

    fn rule(identity: u32, allow: bool, ports: Option<RangeInclusive<u16>>, policy_id: u32) -> Rule {
        Rule {
            direction: Direction::Ingress,
            allow,
            audit: false,
            redirect: None,
            identity,
            protocol: protocol::TCP,
            ports,
            policy_id,
        }
    }

    fn denying() -> Defaults {
        Defaults { ingress: DefaultDeny { enforced: Some(9), audited: None }, ..Defaults::default() }
    }

    #[test]
    fn ten_thousand_identities_with_three_kinds_of_rules_are_as_many_peers_and_three_rulesets() {
        let mut sets = RuleSets::default();
        let rules: Vec<_> =
            (0..10_000).map(|n| rule(300 + n, true, Some(80..=80 + (n % 3) as u16), 1)).collect();
        let entry = compile(&denying(), &rules, &mut sets);
        assert_eq!(entry.peers.len(), 10_000);
        let used: std::collections::BTreeSet<_> = entry.rulesets().map(|by| by.set).collect();
        assert_eq!(used.len(), 3);
    }

    #[test]
    fn whom_the_rules_treat_like_anybody_has_no_entry() {
        let mut sets = RuleSets::default();
        let rules = [rule(0, true, Some(80..=80), 1), rule(300, true, Some(80..=80), 1)];
        assert!(compile(&denying(), &rules, &mut sets).peers.is_empty());
    }

    #[test]
    fn a_rule_for_whoever_holds_for_whom_others_name_as_well() {
        let mut sets = RuleSets::default();
        let rules = [rule(0, false, Some(22..=22), 1), rule(300, true, None, 2)];
        let entry = compile(&denying(), &rules, &mut sets);
        let set = sets.get(entry.sides(300).ingress).unwrap();
        assert!(!set.find(protocol::TCP, 22).unwrap().ruling().passes());
        assert!(set.find(protocol::TCP, 80).unwrap().ruling().passes());
        assert!(entry.sides(300).egress.is_uniform());
    }
}
