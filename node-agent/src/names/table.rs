//! Names by address, with an end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use mesh_model::policy::NamePattern;

/// Pairs of a name and an address, of all names together.
pub const MAX_ENTRIES: usize = 100_000;
/// Addresses of one name.
pub const MAX_ADDRESSES_OF_A_NAME: usize = 1000;

/// A name, at an address, until a time (Unix seconds).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Place {
    pub until: u64,
    pub address: IpAddr,
    pub name: Arc<str>,
}

/// Which names an address has. Many names may share one, and a name may have many.
///
/// Full, it forgets what would end first: that was told the longest ago, as DNS counts.
#[derive(Clone, Debug, Default)]
pub struct Names {
    by_address: BTreeMap<IpAddr, BTreeMap<Arc<str>, u64>>,
    by_name: HashMap<Arc<str>, BTreeSet<(u64, IpAddr)>>,
    by_end: BTreeSet<Place>,
}

impl Names {
    /// Notes where a name is. An end that is earlier than the known one changes nothing: the answer that said it
    /// holds longer was told too.
    ///
    /// Answers with the addresses whose names changed.
    pub fn learn(
        &mut self,
        name: &str,
        addresses: &[(IpAddr, Duration)],
        now: u64,
        floor: Duration,
    ) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        for (address, holds) in addresses {
            let until = now.saturating_add((*holds).max(floor).as_secs());
            if self.put(name, *address, until) {
                changed.insert(*address);
            }
        }
        changed.extend(self.forget_surplus(name));
        changed
    }

    /// Takes in what an earlier agent noted.
    pub fn recall(&mut self, place: &Place) {
        self.put(&place.name, place.address, place.until);
        self.forget_surplus(&place.name);
    }

    /// True: the address did not have the name.
    fn put(&mut self, name: &str, address: IpAddr, until: u64) -> bool {
        let known = self.by_address.get(&address).and_then(|names| names.get_key_value(name));
        let known = known.map(|(name, end)| (name.clone(), *end));
        match known {
            Some((_, end)) if end >= until => false,
            Some((name, end)) => {
                self.remove(&Place { until: end, address, name: name.clone() });
                self.insert(Place { until, address, name });
                false
            }
            None => {
                let shared = self.by_name.get_key_value(name).map(|(name, _)| name.clone());
                let name = shared.unwrap_or_else(|| name.into());
                self.insert(Place { until, address, name });
                true
            }
        }
    }

    fn insert(&mut self, place: Place) {
        let Place { until, address, name } = place.clone();
        self.by_address.entry(address).or_default().insert(name.clone(), until);
        self.by_name.entry(name).or_default().insert((until, address));
        self.by_end.insert(place);
    }

    fn remove(&mut self, place: &Place) {
        self.by_end.remove(place);
        if let Some(names) = self.by_address.get_mut(&place.address) {
            names.remove(&place.name);
            if names.is_empty() {
                self.by_address.remove(&place.address);
            }
        }
        if let Some(addresses) = self.by_name.get_mut(&place.name) {
            addresses.remove(&(place.until, place.address));
            if addresses.is_empty() {
                self.by_name.remove(&place.name);
            }
        }
    }

    fn forget_surplus(&mut self, name: &str) -> BTreeSet<IpAddr> {
        let mut forgotten = BTreeSet::new();
        while let Some((name, addresses)) = self.by_name.get_key_value(name)
            && addresses.len() > MAX_ADDRESSES_OF_A_NAME
            && let Some((until, address)) = addresses.first().copied()
        {
            let place = Place { until, address, name: name.clone() };
            self.remove(&place);
            forgotten.insert(address);
        }
        while self.by_end.len() > MAX_ENTRIES
            && let Some(place) = self.by_end.first().cloned()
        {
            self.remove(&place);
            forgotten.insert(place.address);
        }
        forgotten
    }

    /// Addresses that have a name whose end has come.
    pub fn due(&self, now: u64) -> BTreeSet<IpAddr> {
        self.by_end.iter().take_while(|place| place.until <= now).map(|place| place.address).collect()
    }

    /// Forgets names whose end has come, but those of addresses to which somebody is still connected: these are looked
    /// at again after a while. So a connection outlives the answer that it was made by.
    ///
    /// Answers with the addresses whose names changed.
    pub fn expire(&mut self, now: u64, connected: &BTreeSet<IpAddr>, again: Duration) -> BTreeSet<IpAddr> {
        let mut changed = BTreeSet::new();
        let ended: Vec<Place> = self.by_end.iter().take_while(|place| place.until <= now).cloned().collect();
        for place in ended {
            self.remove(&place);
            if connected.contains(&place.address) {
                self.insert(Place { until: now.saturating_add(again.as_secs().max(1)), ..place });
            } else {
                changed.insert(place.address);
            }
        }
        changed
    }

    /// Those of these patterns that hold for a name of the address.
    pub fn patterns_of<'a>(
        &self,
        address: IpAddr,
        patterns: impl IntoIterator<Item = &'a NamePattern>,
    ) -> BTreeSet<&'a NamePattern> {
        let Some(names) = self.by_address.get(&address) else { return BTreeSet::new() };
        let holds = |pattern: &&NamePattern| {
            if pattern.is_exact() {
                names.contains_key(pattern.as_str())
            } else {
                names.keys().any(|name| pattern.matches(name))
            }
        };
        patterns.into_iter().filter(holds).collect()
    }

    /// Names of an address, in order.
    pub fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.by_address.get(&address).into_iter().flat_map(|names| names.keys().map(|name| &**name))
    }

    /// Every address that has a name.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// Everything, what ends first first.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.by_end.iter()
    }

    /// Pairs of a name and an address.
    pub fn len(&self) -> usize {
        self.by_end.len()
    }

    /// Nothing was told yet, or all of it has ended.
    pub fn is_empty(&self) -> bool {
        self.by_end.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const FLOOR: Duration = Duration::from_secs(60);

    fn at(last: u16) -> IpAddr {
        let [high, low] = last.to_be_bytes();
        IpAddr::from([198, 51, high, low])
    }

    fn learn(names: &mut Names, name: &str, last: u16, holds: u64, now: u64) -> bool {
        !names.learn(name, &[(at(last), Duration::from_secs(holds))], now, FLOOR).is_empty()
    }

    fn patterns(texts: &[&str]) -> Vec<NamePattern> {
        texts.iter().map(|text| NamePattern::parse(text).unwrap()).collect()
    }

    #[test]
    fn an_address_has_all_names_that_were_told_of_it() {
        let mut names = Names::default();
        assert!(learn(&mut names, "a.example.com", 1, 30, 1000));
        assert!(learn(&mut names, "b.example.com", 1, 30, 1000));
        assert!(!learn(&mut names, "b.example.com", 1, 30, 1000), "nothing new");
        let known = patterns(&["a.example.com", "c.example.com", "*.example.com", "*.example.net"]);
        let found = names.patterns_of(at(1), &known);
        assert_eq!(found, [&known[0], &known[2]].into());
        assert!(names.patterns_of(at(2), &known).is_empty());
    }

    #[test]
    fn a_name_holds_for_the_floor_at_least_and_for_the_longest_time_that_was_told() {
        let mut names = Names::default();
        learn(&mut names, "short.test", 1, 0, 1000);
        assert!(names.due(1059).is_empty());
        assert_eq!(names.due(1060), [at(1)].into());
        learn(&mut names, "short.test", 1, 300, 1000);
        learn(&mut names, "short.test", 1, 100, 1000);
        assert!(names.due(1299).is_empty());
        assert_eq!(names.due(1300), [at(1)].into());
    }

    #[test]
    fn a_name_outlives_its_end_while_somebody_is_connected() {
        let mut names = Names::default();
        learn(&mut names, "a.test", 1, 60, 1000);
        learn(&mut names, "a.test", 2, 60, 1000);
        let again = Duration::from_secs(10);
        assert_eq!(names.expire(1060, &[at(1)].into(), again), [at(2)].into());
        assert_eq!(names.addresses().collect::<Vec<_>>(), [at(1)]);
        assert!(names.due(1069).is_empty());
        assert_eq!(names.expire(1070, &BTreeSet::new(), again), [at(1)].into());
        assert!(names.is_empty() && names.by_name.is_empty() && names.by_address.is_empty());
    }

    #[test]
    fn an_address_keeps_the_names_that_have_not_ended() {
        let mut names = Names::default();
        learn(&mut names, "a.test", 1, 60, 1000);
        learn(&mut names, "b.test", 1, 90, 1000);
        assert_eq!(names.expire(1060, &BTreeSet::new(), FLOOR), [at(1)].into());
        assert_eq!(names.names_of(at(1)).collect::<Vec<_>>(), ["b.test"]);
    }

    #[test]
    fn of_too_many_addresses_of_a_name_those_go_that_end_first() {
        let mut names = Names::default();
        let many = u16::try_from(MAX_ADDRESSES_OF_A_NAME).unwrap();
        for last in 0..many {
            learn(&mut names, "a.test", last, 60 + u64::from(last), 1000);
        }
        let changed = names.learn("a.test", &[(at(5000), Duration::from_secs(3600))], 1000, FLOOR);
        assert_eq!(changed, [at(0), at(5000)].into());
        assert_eq!(names.len(), MAX_ADDRESSES_OF_A_NAME);
    }

    #[test]
    fn of_too_many_names_those_go_that_end_first() {
        let mut names = Names::default();
        for i in 0..MAX_ENTRIES {
            learn(&mut names, &format!("{i}.test"), 1, 100 + i as u64, 1000);
        }
        learn(&mut names, "new.test", 2, 3600, 1000);
        assert_eq!(names.len(), MAX_ENTRIES);
        assert!(names.names_of(at(1)).all(|name| name != "0.test"));
        assert_eq!(names.names_of(at(2)).collect::<Vec<_>>(), ["new.test"]);
    }

    #[test]
    fn what_is_recalled_is_as_it_was() {
        let mut before = Names::default();
        learn(&mut before, "a.test", 1, 60, 1000);
        learn(&mut before, "b.test", 1, 90, 1000);
        let mut after = Names::default();
        before.places().for_each(|place| after.recall(place));
        assert!(before.places().eq(after.places()));
    }

    proptest! {
        #[test]
        fn its_three_orders_agree_whatever_happens(
            steps in prop::collection::vec((0..4u8, 0..5u16, 0..5u16, 0..200u64), 0..80),
        ) {
            let mut names = Names::default();
            let mut now = 1000;
            for (what, name, last, amount) in steps {
                if what < 3 {
                    learn(&mut names, &format!("{name}.test"), last, amount, now);
                } else {
                    now += amount;
                    names.expire(now, &[at(last)].into(), FLOOR);
                    prop_assert!(names.due(now).is_empty());
                }
                let of_addresses: usize = names.by_address.values().map(BTreeMap::len).sum();
                let of_names: usize = names.by_name.values().map(BTreeSet::len).sum();
                prop_assert_eq!((of_addresses, of_names), (names.len(), names.len()));
                for place in names.places() {
                    prop_assert_eq!(names.by_address[&place.address].get(&place.name), Some(&place.until));
                    prop_assert!(names.by_name[&place.name].contains(&(place.until, place.address)));
                }
            }
        }
    }
}
