//! Rulesets: functions from (protocol, port) to what is said of it, as the entries of a trie. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use aya::maps::lpm_trie::Key;
use ebpf_shared::{RuleKey, RuleRef, RuleValue};

use super::table::Prefix;

/// Part of all traffic: so many leading bits of protocol and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficPrefix {
    pub protocol: u8,
    pub port: u16,
    /// 0: everything; 8: the protocol; up to 24: a port.
    pub bits: u8,
}

impl TrafficPrefix {
    /// Everything.
    pub const ALL: Self = Self { protocol: 0, port: 0, bits: 0 };

    /// All ports of a protocol.
    pub fn protocol(protocol: u8) -> Self {
        Self { protocol, port: 0, bits: 8 }
    }

    /// The ports that begin with the same `bits` as this one.
    pub fn ports(protocol: u8, port: u16, bits: u8) -> Self {
        Self { protocol, port, bits: 8 + bits }
    }

    fn holds(&self, protocol: u8, port: u16) -> bool {
        match self.bits.checked_sub(8) {
            None => true,
            Some(bits) => self.protocol == protocol && port & mask(bits) == self.port,
        }
    }
}

fn mask(bits: u8) -> u16 {
    (0xffff_u32 << (16 - u32::from(bits.min(16)))) as u16
}

/// What is said of all traffic. There is always an entry for [`TrafficPrefix::ALL`]; where entries overlap, the narrower
/// one holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleSet(Vec<(TrafficPrefix, RuleValue)>);

impl RuleSet {
    /// Puts entries in order, widest last, which is the order in which they are written: a ruleset whose widest entry is there
    /// is complete.
    pub fn new(entries: impl IntoIterator<Item = (TrafficPrefix, RuleValue)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_unstable_by_key(|(prefix, _)| (std::cmp::Reverse(prefix.bits), *prefix));
        Self(entries)
    }

    /// The entries, widest last.
    pub fn entries(&self) -> &[(TrafficPrefix, RuleValue)] {
        &self.0
    }

    /// What is said of some traffic.
    pub fn find(&self, protocol: u8, port: u16) -> Option<RuleValue> {
        self.0.iter().find(|(prefix, _)| prefix.holds(protocol, port)).map(|(_, value)| *value)
    }

    /// Whether nothing of it is missing.
    pub fn is_complete(&self) -> bool {
        self.0.last().is_some_and(|(prefix, _)| *prefix == TrafficPrefix::ALL)
    }
}

/// The key of an entry in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RulePrefix {
    pub set: u32,
    pub traffic: TrafficPrefix,
}

impl Prefix for RulePrefix {
    type Data = RuleKey;

    fn to_key(&self) -> Key<RuleKey> {
        let TrafficPrefix { protocol, port, bits } = self.traffic;
        Key::new(RuleKey::SET_BITS + u32::from(bits), RuleKey::new(self.set, protocol, port))
    }

    fn from_key(key: &Key<RuleKey>) -> Option<Self> {
        let bits = key.prefix_len().checked_sub(RuleKey::SET_BITS)?;
        let data = key.data();
        let (protocol, port) = (data.protocol, u16::from_be_bytes(data.port));
        let bits = u8::try_from(bits).ok().filter(|bits| *bits == 0 || (8..=24).contains(bits))?;
        Some(Self { set: data.ruleset, traffic: TrafficPrefix { protocol, port, bits } })
    }
}

/// Numbers of rulesets: equal ones have one.
#[derive(Clone, Debug, Default)]
pub struct RuleSets {
    numbers: HashMap<Arc<RuleSet>, u32>,
    sets: BTreeMap<u32, Arc<RuleSet>>,
    last: u32,
}

impl RuleSets {
    /// Goes on with what the kernel holds. What is not complete was never referred to, but its number is taken.
    pub fn recover<'a>(held: impl IntoIterator<Item = (&'a u32, &'a Arc<RuleSet>)>) -> Self {
        let mut all = Self::default();
        for (number, set) in held {
            all.last = all.last.max(*number);
            all.sets.insert(*number, set.clone());
            if set.is_complete() {
                all.numbers.insert(set.clone(), *number);
            }
        }
        all
    }

    /// A reference to a ruleset.
    pub fn refer(&mut self, set: RuleSet) -> RuleRef {
        if let Some(number) = self.numbers.get(&set) {
            return RuleRef::ruleset(*number);
        }
        // Numbers come round after two billion rulesets; there are never as many at once.
        loop {
            self.last = (self.last + 1) % RuleRef::UNIFORM;
            if self.last != 0 && !self.sets.contains_key(&self.last) {
                break;
            }
        }
        let set = Arc::new(set);
        self.numbers.insert(set.clone(), self.last);
        self.sets.insert(self.last, set);
        RuleRef::ruleset(self.last)
    }

    /// What a reference refers to, if it is not uniform.
    pub fn get(&self, by: RuleRef) -> Option<&Arc<RuleSet>> {
        self.sets.get(&by.set)
    }

    /// Forgets the others.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.sets.retain(|number, _| keep(*number));
        let sets = &self.sets;
        self.numbers.retain(|_, number| sets.contains_key(number));
    }
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
                let holds = prefixes
                    .iter()
                    .filter(|(base, bits)| TrafficPrefix::ports(6, *base, *bits).holds(6, port));
                assert_eq!(
                    holds.count(),
                    usize::from((low..=high).contains(&port)),
                    "{port} in {low}..={high}"
                );
            }
        }
    }

    #[test]
    fn keys_come_back_as_they_went_in_and_others_are_not_ours() {
        for traffic in [TrafficPrefix::ALL, TrafficPrefix::protocol(6), TrafficPrefix::ports(17, 8080, 14)] {
            let prefix = RulePrefix { set: 7, traffic };
            assert_eq!(RulePrefix::from_key(&prefix.to_key()), Some(prefix));
        }
        for bits in [0, 31, 33, 39, 57] {
            assert_eq!(RulePrefix::from_key(&Key::new(bits, RuleKey::new(7, 6, 0))), None, "{bits}");
        }
    }

    #[test]
    fn equal_rulesets_have_one_number_also_after_a_restart() {
        let set =
            |policy_id| RuleSet::new([(TrafficPrefix::ALL, RuleValue::new(RuleValue::ALLOW, policy_id))]);
        let mut before = RuleSets::default();
        let (one, other) = (before.refer(set(1)), before.refer(set(2)));
        assert_ne!(one, other);
        assert_eq!(before.refer(set(1)), one);
        let half = Arc::new(RuleSet::new([(TrafficPrefix::protocol(6), RuleValue::default())]));
        let held = BTreeMap::from([(one.set, Arc::new(set(1))), (9, half.clone())]);
        let mut after = RuleSets::recover(&held);
        assert_eq!(after.refer(set(1)), one);
        assert_ne!(after.refer((*half).clone()).set, 9, "what is not complete is written anew");
        after.retain(|_| false);
        assert!(after.get(one).is_none());
    }
}
