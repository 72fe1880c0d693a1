//! Numbers that this node gives out: for addresses outside the mesh, classes, rulesets and policies. They outlive a
//! computation, so that what did not change keeps its number.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use ebpf_shared::identity::LOCAL;
use ipnet::IpNet;
use mesh_model::policy::NamePattern;

use super::{Desired, proxy::Slots};
use crate::kernel::ruleset::RuleSets;

/// Most policy names that are remembered. The oldest are of rules long gone; a flow of theirs loses its name.
const MAX_POLICIES: usize = 262_144;

/// Addresses that have an identity of this node's making.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What policies say of a CIDR concerns these alone: nothing narrower that they name is around them.
    Outside(IpNet),
    /// The same for the nodes of the cluster that are there.
    Node(IpNet),
    /// Addresses outside the mesh whose names in DNS just these patterns of policies hold for, and the narrowest CIDR that
    /// policies name around them.
    Named(Arc<BTreeSet<NamePattern>>, Option<IpNet>),
}

/// The numbers given out so far.
#[derive(Debug, Clone, Default)]
pub struct Dictionary {
    places: BTreeMap<Place, u32>,
    /// Numbers of `places`.
    taken: HashSet<u32>,
    last_place: u32,
    /// The numbers that the kernel has for addresses with names are not taken over yet.
    begins: bool,
    /// The kernel's number of each of the control plane's classes.
    pub(super) classes: BTreeMap<u32, u32>,
    pub(super) rulesets: RuleSets,
    policies: BTreeMap<u32, String>,
    pub(super) proxies: Slots,
}

impl Dictionary {
    /// Continues where the agent before this one stopped: `current` is what the kernel holds.
    pub fn recover(current: &Desired) -> Self {
        let local = current.identities.iter().filter(|(_, n)| **n & LOCAL != 0);
        // A number that several have is that of nodes: it is given out anew.
        let places: BTreeMap<_, _> = local
            .filter(|(_, n)| current.identities.count(**n) == 1)
            .map(|(net, n)| (Place::Outside(*net), *n))
            .collect();
        // Classes may still speak of numbers that nobody has any more, or yet.
        let spoken_of = current.classes.values().flat_map(|entry| entry.peers.keys());
        let in_use = current.identities.values().chain(current.lingering.values()).chain(spoken_of);
        let in_use = in_use.filter(|n| **n & LOCAL != 0);
        Self {
            last_place: in_use.map(|n| n & !LOCAL).max().unwrap_or(0),
            begins: true,
            taken: places.values().copied().collect(),
            places,
            classes: BTreeMap::new(),
            rulesets: RuleSets::recover(&current.rulesets),
            policies: BTreeMap::new(),
            proxies: Slots::recover(&current.proxies),
        }
    }

    /// The number of a place, the same for as long as it is [kept](Self::keep_places).
    pub(super) fn place(&mut self, place: Place) -> u32 {
        if let Some(number) = self.places.get(&place) {
            return *number;
        }
        let number = self.passing();
        self.taken.insert(number);
        self.places.insert(place, number);
        number
    }

    /// A number that nothing has, for the time of a change.
    pub(super) fn passing(&mut self) -> u32 {
        // Numbers come round after 16 million; one that is in use is passed over.
        loop {
            self.last_place = (self.last_place + 1) % LOCAL;
            let number = LOCAL | self.last_place;
            if self.last_place != 0 && !self.taken.contains(&number) {
                return number;
            }
        }
    }

    /// The same, and `number` if the place has none yet and nothing else has that: it is what the kernel has for its addresses.
    pub(super) fn place_with(&mut self, place: &Place, number: Option<u32>) -> u32 {
        if let Some(number) = number.filter(|number| number & LOCAL != 0)
            && !self.places.contains_key(place)
            && self.taken.insert(number)
        {
            self.places.insert(place.clone(), number);
            return number;
        }
        self.place(place.clone())
    }

    /// Whether this is the first look at what the kernel holds.
    pub(super) fn begins(&mut self) -> bool {
        std::mem::take(&mut self.begins)
    }

    /// The number of a place that has one.
    pub(super) fn known_place(&self, place: &Place) -> Option<u32> {
        self.places.get(place).copied()
    }

    /// Those of addresses with names.
    pub(super) fn named(&self) -> impl Iterator<Item = (&BTreeSet<NamePattern>, u32)> {
        self.places.iter().filter_map(|(place, number)| match place {
            Place::Named(names, _) => Some((&**names, *number)),
            Place::Outside(_) | Place::Node(_) => None,
        })
    }

    /// Forgets the others.
    pub(super) fn keep_places(&mut self, keep: impl Fn(&Place) -> bool) {
        self.places.retain(|place, _| keep(place));
        self.taken = self.places.values().copied().collect();
    }

    /// Forgets rulesets that the kernel does not have.
    pub fn keep_rulesets(&mut self, current: &Desired) {
        self.rulesets.retain(|number| current.rulesets.contains_key(&number));
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

    /// The slot of a proxy, by the name that it registers by. It need not be there: then what is to go by it is refused.
    pub fn proxy_slot(&mut self, name: &str) -> u16 {
        self.proxies.slot(name)
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
        let outside = |text: &str| Place::Outside(text.parse().unwrap());
        let mut before = Dictionary::default();
        before.place(outside("198.51.100.0/24"));
        let number = before.place(outside("192.0.2.0/24"));
        let mut kernel = Desired::default();
        kernel.identities.insert("192.0.2.0/24".parse().unwrap(), number);
        let mut after = Dictionary::recover(&kernel);
        assert_eq!(after.place(outside("192.0.2.0/24")), number);
        assert_ne!(after.place(outside("203.0.113.0/24")), number);
    }

    #[test]
    fn a_number_that_two_nodes_had_is_none_of_either_address() {
        let mut kernel = Desired::default();
        kernel.identities.insert("192.0.2.1/32".parse().unwrap(), LOCAL | 5);
        kernel.identities.insert("192.0.2.2/32".parse().unwrap(), LOCAL | 5);
        let mut after = Dictionary::recover(&kernel);
        assert_ne!(after.place(Place::Outside("192.0.2.1/32".parse().unwrap())), LOCAL | 5);
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
