//! Numbers that this node gives out: for CIDRs, classes and policies. They outlive a computation, so that what
//! did not change keeps its number.

use std::collections::BTreeMap;

use ebpf_shared::identity::LOCAL;
use ipnet::IpNet;

use super::{ClassRules, Desired};

/// Most policy names that are remembered. The oldest are of rules long gone; a flow of theirs loses its name.
const MAX_POLICIES: usize = 262_144;

/// The numbers given out so far.
#[derive(Debug, Clone, Default)]
pub struct Dictionary {
    cidrs: BTreeMap<IpNet, u32>,
    last_cidr: u32,
    last_class: u32,
    policies: BTreeMap<u32, String>,
}

impl Dictionary {
    /// Continues where the agent before this one stopped: `current` is what the kernel holds.
    pub fn recover(current: &Desired) -> Self {
        let cidrs: BTreeMap<_, _> =
            current.identities.iter().filter(|(_, n)| **n & LOCAL != 0).map(|(c, n)| (*c, *n)).collect();
        let in_use = current.classes.keys().copied().chain(current.endpoints.values().map(|e| e.class));
        Self {
            last_cidr: cidrs.values().map(|n| n & !LOCAL).max().unwrap_or(0),
            cidrs,
            last_class: in_use.max().unwrap_or(0),
            policies: BTreeMap::new(),
        }
    }

    /// The number of a CIDR, the same for as long as it is [kept](Self::keep_cidrs).
    pub(super) fn cidr(&mut self, cidr: IpNet) -> u32 {
        if let Some(number) = self.cidrs.get(&cidr) {
            return *number;
        }
        // Numbers come round after 16 million CIDRs; one that is in use is passed over.
        loop {
            self.last_cidr = (self.last_cidr + 1) % LOCAL;
            let number = LOCAL | self.last_cidr;
            if self.last_cidr != 0 && !self.cidrs.values().any(|used| *used == number) {
                self.cidrs.insert(cidr, number);
                return number;
            }
        }
    }

    /// Forgets every other CIDR.
    pub(super) fn keep_cidrs(&mut self, keep: impl Fn(&IpNet) -> bool) {
        self.cidrs.retain(|cidr, _| keep(cidr));
    }

    /// The number of the class with these rules: that of `current`, or a new one.
    pub(super) fn class(
        &mut self,
        rules: &ClassRules,
        current: &BTreeMap<u32, ClassRules>,
        taken: &BTreeMap<u32, ClassRules>,
    ) -> u32 {
        let same = |classes: &BTreeMap<u32, ClassRules>| {
            classes.iter().find(|(_, known)| *known == rules).map(|(number, _)| *number)
        };
        if let Some(number) = same(taken).or_else(|| same(current)) {
            return number;
        }
        loop {
            self.last_class = self.last_class.wrapping_add(1);
            let free = !current.contains_key(&self.last_class) && !taken.contains_key(&self.last_class);
            if self.last_class != 0 && free {
                return self.last_class;
            }
        }
    }

    /// The number of a policy. The same name has the same number after a restart (but for hash collisions), so
    /// that events of the time in between are named rightly.
    pub(super) fn policy(&mut self, provenance: &str) -> u32 {
        let mut number = fnv1a(provenance);
        loop {
            // 0 means "no policy" in the kernel.
            if number != 0 {
                match self.policies.get(&number) {
                    Some(known) if known == provenance => return number,
                    Some(_) => {}
                    None => {
                        if self.policies.len() >= MAX_POLICIES {
                            self.policies.clear();
                        }
                        self.policies.insert(number, provenance.to_owned());
                        return number;
                    }
                }
            }
            number = number.wrapping_add(1);
        }
    }

    /// The name behind a number that the kernel tells.
    pub fn provenance(&self, policy_id: u32) -> Option<&str> {
        self.policies.get(&policy_id).map(String::as_str)
    }
}

/// 32-bit FNV-1a.
fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cidr_keeps_its_number_over_a_restart() {
        let cidr: IpNet = "192.0.2.0/24".parse().unwrap();
        let mut before = Dictionary::default();
        before.cidr("198.51.100.0/24".parse().unwrap());
        let number = before.cidr(cidr);
        let mut kernel = Desired::default();
        kernel.identities.insert(cidr, number);
        let mut after = Dictionary::recover(&kernel);
        assert_eq!(after.cidr(cidr), number);
        assert_ne!(after.cidr("203.0.113.0/24".parse().unwrap()), number);
    }

    #[test]
    fn policy_numbers_name_their_policy() {
        let mut dictionary = Dictionary::default();
        let one = dictionary.policy("networkpolicy/shop/a#ingress[0]");
        let other = dictionary.policy("networkpolicy/shop/b#ingress[0]");
        assert_ne!(one, other);
        assert_eq!(dictionary.policy("networkpolicy/shop/a#ingress[0]"), one);
        assert_eq!(dictionary.provenance(other), Some("networkpolicy/shop/b#ingress[0]"));
        assert_eq!(dictionary.provenance(0), None);
    }
}
