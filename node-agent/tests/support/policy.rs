//! Policy for a kernel without an agent.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::{Direction, RuleRef};
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::{ClassEntry, DefaultDeny, Defaults, Rule, compile};
use node_agent::kernel::ruleset::RuleSets;

pub const DENY_INGRESS: u32 = 1;
pub const DENY_EGRESS: u32 = 2;

/// Default denies by flags, with what they are named by.
pub fn defaults(flags: u32, ingress: u32, egress: u32) -> Defaults {
    let deny = |flag, name| DefaultDeny { enforced: (flags & flag != 0).then_some(name), audited: None };
    Defaults { ingress: deny(DENY_INGRESS, ingress), egress: deny(DENY_EGRESS, egress) }
}

/// Lets (or does not let) an identity through one way; 0: anybody.
pub fn rule(
    allow: bool,
    direction: Direction,
    identity: u32,
    protocol: u8,
    ports: Option<(u16, u16)>,
    policy_id: u32,
) -> Rule {
    let ports = ports.map(|(low, high)| low..=high);
    Rule { direction, allow, audit: false, redirect: None, identity, protocol, ports, policy_id }
}

/// Writes classes as the agent does.
#[derive(Default)]
pub struct Writer {
    pub sets: RuleSets,
    written: BTreeSet<u32>,
    classes: BTreeMap<u32, ClassEntry>,
}

impl Writer {
    /// Makes a class what it is to be: in place, where that is how the agent would do it.
    pub fn put(
        &mut self,
        kernel: &mut Kernel,
        number: u32,
        defaults: &Defaults,
        rules: &[Rule],
    ) -> ClassEntry {
        let entry = compile(defaults, rules, &mut self.sets);
        for by in entry.rulesets() {
            if self.written.insert(by.set) {
                let set = self.sets.get(by).expect("interned").clone();
                kernel.put_ruleset(by.set, &set).expect("writable");
            }
        }
        match self.classes.insert(number, entry.clone()) {
            Some(before) if before.own == entry.own => {
                for (identity, sides) in &entry.peers {
                    if before.peers.get(identity) != Some(sides) {
                        kernel.put_peer(number, *identity, *sides).expect("writable");
                    }
                }
                for identity in before.peers.keys().filter(|identity| !entry.peers.contains_key(identity)) {
                    kernel.remove_peer(number, *identity).expect("removable");
                }
            }
            before => {
                assert!(before.is_none(), "class {number}: what holds for whoever is not named has changed");
                kernel.put_class(number, &entry).expect("writable");
            }
        }
        entry
    }

    /// Whether a class can become this without another number.
    pub fn fits(&mut self, number: u32, defaults: &Defaults, rules: &[Rule]) -> bool {
        let own = compile(defaults, rules, &mut self.sets).own;
        self.classes.get(&number).is_some_and(|entry| entry.own == own)
    }

    /// Removes a class, and the rulesets that no other needs.
    pub fn remove(&mut self, kernel: &mut Kernel, number: u32) {
        let Some(entry) = self.classes.remove(&number) else { return };
        kernel.remove_class(number, entry.peers.into_keys()).expect("removable");
        let used: BTreeSet<u32> =
            self.classes.values().flat_map(|entry| entry.rulesets()).map(|by| by.set).collect();
        for set in std::mem::take(&mut self.written) {
            if used.contains(&set) {
                self.written.insert(set);
            } else if let Some(content) = self.sets.get(RuleRef::ruleset(set)) {
                kernel.remove_ruleset(set, content).expect("removable");
            }
        }
    }
}
