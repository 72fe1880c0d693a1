//! From the rules of a class to what the kernel has of it. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use ebpf_shared::{Direction, RuleRef, Sides, Unnamed, identity};

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
    /// The peer's; [`identity::ANY`]: whoever; [`identity::WORKLOADS`]: every workload of the mesh.
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

/// A rule about several peers at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// One way or the other.
    pub direction: Direction,
    /// As [`Rule::identity`].
    pub identities: Vec<u32>,
    /// What it says.
    pub said: Said,
}

impl From<&Rule> for Group {
    fn from(rule: &Rule) -> Self {
        Self { direction: rule.direction, identities: vec![rule.identity], said: rule.said() }
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
    pub own: Unnamed,
    /// By identity; none is equal to what `own` says of it.
    pub peers: BTreeMap<u32, Sides>,
}

impl ClassEntry {
    /// What holds for an identity.
    pub fn sides(&self, identity: u32) -> Sides {
        self.peers.get(&identity).copied().unwrap_or(*self.own.of(identity))
    }

    /// All references to rulesets.
    pub fn rulesets(&self) -> impl Iterator<Item = RuleRef> {
        let all = [&self.own.others, &self.own.workloads].into_iter().chain(self.peers.values());
        all.flat_map(|sides| [sides.ingress, sides.egress]).filter(|by| !by.is_uniform() && by.set != 0)
    }
}

/// Compiles a class: the rules that name an identity come before those about all workloads, and these before those about
/// whoever, else in their order.
pub fn compile(defaults: &Defaults, rules: &[Rule], sets: &mut RuleSets) -> ClassEntry {
    let groups: Vec<Group> = rules.iter().map(Group::from).collect();
    compile_groups(defaults, &groups, sets)
}

/// The same of rules about several peers: it costs their number once for each rule, and each combination of rules once.
pub fn compile_groups(defaults: &Defaults, rules: &[Group], sets: &mut RuleSets) -> ClassEntry {
    let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|direction| {
        let of_it: Vec<&Group> = rules.iter().filter(|rule| rule.direction == direction).collect();
        one_way(&of_it, defaults.of(direction), sets)
    });
    let own = Unnamed {
        others: Sides { ingress: ingress.others, egress: egress.others },
        workloads: Sides { ingress: ingress.workloads, egress: egress.workloads },
    };
    let mut peers: Vec<(u32, Sides)> = Vec::with_capacity(ingress.named.len() + egress.named.len());
    let (mut ingress, mut egress) =
        (ingress.named.into_iter().peekable(), egress.named.into_iter().peekable());
    loop {
        let next = |way: Option<&(u32, RuleRef)>| way.map(|(identity, _)| *identity);
        let Some(identity) = [next(ingress.peek()), next(egress.peek())].into_iter().flatten().min() else {
            break;
        };
        let unnamed = *own.of(identity);
        let mut sides = unnamed;
        if let Some((_, by)) = ingress.next_if(|(named, _)| *named == identity) {
            sides.ingress = by;
        }
        if let Some((_, by)) = egress.next_if(|(named, _)| *named == identity) {
            sides.egress = by;
        }
        if sides != unnamed {
            peers.push((identity, sides));
        }
    }
    ClassEntry { own, peers: peers.into_iter().collect() }
}

struct OneWay {
    others: RuleRef,
    workloads: RuleRef,
    /// Ascending.
    named: Vec<(u32, RuleRef)>,
}

fn one_way(rules: &[&Group], default: DefaultDeny, sets: &mut RuleSets) -> OneWay {
    let (mut whoever, mut workloads): (Vec<Said>, Vec<Said>) = (Vec::new(), Vec::new());
    // Whom a rule names, and the place of the rule.
    let mut named: Vec<(u32, usize)> = Vec::new();
    for (place, rule) in rules.iter().enumerate() {
        for identity in &rule.identities {
            match *identity {
                identity::ANY => whoever.push(rule.said),
                identity::WORKLOADS => workloads.push(rule.said),
                identity => named.push((identity, place)),
            }
        }
    }
    // The rules of an identity are in their order.
    named.sort_unstable();
    let mut refer = |rules: &[Said]| match flatten(rules, default) {
        Function::Uniform(by) => by,
        Function::Set(set) => sets.refer(set),
    };
    workloads.extend(&whoever);
    let (of_others, of_workloads) = (refer(&whoever), refer(&workloads));
    // Many identities with few kinds of rules are the rule.
    let mut known: HashMap<(bool, Vec<usize>), RuleRef> = HashMap::new();
    let mut refs = Vec::new();
    for of_one in named.chunk_by(|(a, _), (b, _)| a == b) {
        let Some((identity, _)) = of_one.first() else { continue };
        let is_workload = identity::is_workload(*identity);
        let places: Vec<usize> = of_one.iter().map(|(_, place)| *place).collect();
        let by = *known.entry((is_workload, places)).or_insert_with_key(|(is_workload, places)| {
            let own = places.iter().filter_map(|place| Some(rules.get(*place)?.said));
            let unnamed = if *is_workload { &workloads } else { &whoever };
            refer(&own.chain(unnamed.iter().copied()).collect::<Vec<_>>())
        });
        refs.push((*identity, by));
    }
    OneWay { others: of_others, workloads: of_workloads, named: refs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_shared::{RuleValue, packet::protocol};

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
    fn a_rule_about_all_workloads_needs_no_entry_for_any_of_them() {
        let mut sets = RuleSets::default();
        let rules = [rule(identity::WORKLOADS, true, Some(80..=80), 1), rule(300, false, Some(80..=80), 2)];
        let entry = compile(&denying(), &rules, &mut sets);
        assert_eq!(entry.peers.keys().copied().collect::<Vec<_>>(), [300]);
        let passes = |identity: u32| {
            let by = entry.sides(identity).ingress;
            match by.is_uniform() {
                true => RuleValue::new(by.set as u8, by.policy_id),
                false => sets.get(by).unwrap().find(protocol::TCP, 80).unwrap(),
            }
            .ruling()
            .passes()
        };
        assert!(passes(301) && passes(identity::LOCAL - 1));
        assert!(!passes(300), "a denial of one is one");
        for other in [identity::HOST, identity::WORLD, identity::UNMANAGED, identity::LOCAL | 301] {
            assert!(!passes(other), "{other}");
        }
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
