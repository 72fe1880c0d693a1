//! From rules to trie entries. Pure.
//!
//! The kernel finds the *narrowest* port prefix for an identity and protocol (see [`ebpf_shared::policy`]).
//! That deny beats allow, whichever is narrower, is arranged here: an allow inside a deny is left out, so
//! that the lookup falls back on the deny around it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use aya::maps::lpm_trie::Key;
use ebpf_shared::{Class, Direction, PolicyKey, PolicyValue};

use super::table::Prefix;

/// One L3/L4 rule: who may (or may not) talk to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub direction: Direction,
    pub allow: bool,
    /// The peer's; [`ebpf_shared::identity::ANY`]: whoever.
    pub identity: u32,
    /// IANA number; [`ebpf_shared::packet::protocol::ANY`]: whichever.
    pub protocol: u8,
    /// Destination ports; `None`: all, and protocols without ports.
    pub ports: Option<RangeInclusive<u16>>,
    /// The number by which flow events name the rule; 0: none.
    pub policy_id: u32,
}

/// The policy of a class, ready to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledClass {
    pub class: Class,
    /// The class number in the prefixes is 0: it is chosen when they are written.
    pub rules: BTreeMap<RulePrefix, PolicyValue>,
}

/// Key of a trie entry: all of `key` but the port, and so many leading bits of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RulePrefix {
    pub key: PolicyKey,
    /// 0: all ports; 16: one.
    pub port_bits: u8,
}

impl RulePrefix {
    /// The same in another class.
    #[must_use]
    pub fn of_class(self, class: u32) -> Self {
        Self { key: PolicyKey { class, ..self.key }, ..self }
    }

    /// The prefix one bit shorter; `None` for all ports.
    fn parent(self) -> Option<Self> {
        let port_bits = self.port_bits.checked_sub(1)?;
        let mask = (0xffff_u32 << (16 - u32::from(port_bits))) as u16;
        let port = u16::from_be_bytes(self.key.port) & mask;
        Some(Self { key: PolicyKey { port: port.to_be_bytes(), ..self.key }, port_bits })
    }

    /// Itself and all wider ones, narrowest first: the order in which a lookup prefers them.
    pub fn with_parents(self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |prefix| prefix.parent())
    }
}

impl Prefix for RulePrefix {
    type Data = PolicyKey;

    fn to_key(&self) -> Key<PolicyKey> {
        Key::new(PolicyKey::FIXED_BITS + u32::from(self.port_bits), self.key)
    }

    fn from_key(key: &Key<PolicyKey>) -> Option<Self> {
        let port_bits = u8::try_from(key.prefix_len().checked_sub(PolicyKey::FIXED_BITS)?).ok()?;
        Some(Self { key: key.data(), port_bits })
    }
}

/// Compiles a class. Of rules that say the same of the same traffic, the first is the one that is named.
pub fn compile(class: Class, rules: &[Rule]) -> CompiledClass {
    let mut entries: BTreeMap<RulePrefix, PolicyValue> = BTreeMap::new();
    for rule in rules {
        let action = if rule.allow { PolicyValue::ALLOW } else { PolicyValue::DENY };
        let value = PolicyValue { policy_id: rule.policy_id, action };
        for (port, port_bits) in port_prefixes(rule.ports.clone().unwrap_or(0..=u16::MAX)) {
            let key = PolicyKey::new(0, rule.identity, rule.direction, rule.protocol, port);
            entries
                .entry(RulePrefix { key, port_bits })
                .and_modify(|present| {
                    if present.allows() && !value.allows() {
                        *present = value;
                    }
                })
                .or_insert(value);
        }
    }
    let denied = |prefix: RulePrefix| {
        prefix.with_parents().skip(1).any(|wider| entries.get(&wider).is_some_and(|value| !value.allows()))
    };
    let shadowed: Vec<RulePrefix> = entries
        .iter()
        .filter(|(prefix, value)| value.allows() && denied(**prefix))
        .map(|(prefix, _)| *prefix)
        .collect();
    for prefix in shadowed {
        entries.remove(&prefix);
    }
    CompiledClass { class, rules: entries }
}

/// The fewest (base, bits) prefixes that make up a range, ascending; none if it is empty.
pub fn port_prefixes(range: RangeInclusive<u16>) -> Vec<(u16, u8)> {
    let (mut low, high) = (u32::from(*range.start()), u32::from(*range.end()));
    let mut prefixes = Vec::new();
    while low <= high {
        // The widest block that begins at `low`, halved until it ends within the range.
        let mut size = if low == 0 { 1 << 16 } else { 1 << low.trailing_zeros() };
        while low + size - 1 > high {
            size >>= 1;
        }
        let free_bits = size.trailing_zeros() as u8;
        prefixes.push((low as u16, 16 - free_bits));
        low += size;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_shared::packet::protocol;

    fn rule(allow: bool, ports: Option<RangeInclusive<u16>>, policy_id: u32) -> Rule {
        Rule {
            direction: Direction::Ingress,
            allow,
            identity: 300,
            protocol: protocol::TCP,
            ports,
            policy_id,
        }
    }

    #[test]
    fn a_range_is_made_of_the_fewest_prefixes() {
        assert_eq!(port_prefixes(0..=65535), [(0, 0)]);
        assert_eq!(port_prefixes(80..=80), [(80, 16)]);
        assert_eq!(port_prefixes(8080..=8083), [(8080, 14)]);
        assert_eq!(port_prefixes(1..=4), [(1, 16), (2, 15), (4, 16)]);
        assert_eq!(port_prefixes(65535..=65535), [(65535, 16)]);
        assert_eq!(port_prefixes(1..=65534).len(), 30);
        assert!(port_prefixes(RangeInclusive::new(5, 4)).is_empty());
    }

    #[test]
    fn the_prefixes_of_a_range_hold_exactly_its_ports() {
        for (low, high) in [(0, 0), (1, 65535), (1000, 2000), (32768, 60999), (443, 8443)] {
            let prefixes = port_prefixes(low..=high);
            for port in 0..=u16::MAX {
                let holds = prefixes.iter().filter(|(base, bits)| {
                    let mask = (0xffff_u32 << (16 - u32::from(*bits))) as u16;
                    port & mask == *base
                });
                assert_eq!(
                    holds.count(),
                    usize::from((low..=high).contains(&port)),
                    "{port} in {low}..={high}"
                );
            }
        }
    }

    #[test]
    fn an_allow_inside_a_deny_is_left_out() {
        let compiled =
            compile(Class::default(), &[rule(true, Some(80..=80), 1), rule(false, Some(0..=1023), 2)]);
        let values: Vec<_> = compiled.rules.values().copied().collect();
        assert_eq!(values, [PolicyValue { policy_id: 2, action: PolicyValue::DENY }]);
    }

    #[test]
    fn a_deny_inside_an_allow_stays() {
        let compiled = compile(Class::default(), &[rule(true, None, 1), rule(false, Some(22..=22), 2)]);
        assert_eq!(compiled.rules.len(), 2);
    }

    #[test]
    fn of_equal_rules_a_deny_wins_and_else_the_first_is_named() {
        let compiled =
            compile(Class::default(), &[rule(true, None, 1), rule(true, None, 2), rule(false, None, 3)]);
        assert_eq!(compiled.rules.values().map(|value| value.policy_id).collect::<Vec<_>>(), [3]);
        let compiled = compile(Class::default(), &[rule(true, None, 1), rule(true, None, 2)]);
        assert_eq!(compiled.rules.values().map(|value| value.policy_id).collect::<Vec<_>>(), [1]);
    }
}
