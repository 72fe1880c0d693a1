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
/// Pairs that have ended and are kept for connections that are there: no more than the kernel's `LINGERING` takes.
pub const MAX_LAPSED: usize = ebpf_shared::limits::LINGERING as usize;
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
/// A name that has ended is *lapsed*: nothing new is allowed by it, and it stays until nobody is connected to the address
/// any more. Full, it forgets what would end first: that was told the longest ago, as DNS counts.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Unix seconds: what ended until then is lapsed.
    looked_at: u64,
    /// Pairs that were forgotten before their time, as there was no room.
    forgotten: u64,
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

    /// True: the address did not have the name, or no more.
    fn put(&mut self, name: &str, address: IpAddr, until: u64) -> bool {
        let known = self.by_address.get(&address).and_then(|names| names.get_key_value(name));
        let known = known.map(|(name, end)| (name.clone(), *end));
        match known {
            Some((_, end)) if end >= until => false,
            Some((name, end)) => {
                self.remove(&Place { until: end, address, name: name.clone() });
                self.insert(Place { until, address, name });
                end <= self.looked_at && until > self.looked_at
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
            self.forget_early(&place);
            forgotten.insert(address);
        }
        while self.by_end.len() > MAX_ENTRIES
            && let Some(place) = self.by_end.first().cloned()
        {
            self.forget_early(&place);
            forgotten.insert(place.address);
        }
        forgotten
    }

    fn forget_early(&mut self, place: &Place) {
        self.remove(place);
        self.forgotten += 1;
    }

    /// Pairs that were forgotten before their time, ever.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Whether there is anything that [`Names::lapse`] and [`Names::forget`] are about.
    pub fn is_due(&self, now: u64) -> bool {
        self.by_end.first().is_some_and(|place| place.until <= now)
    }

    /// Has names lapse whose end has come: from now on they are of use only to connections that are there.
    ///
    /// Answers with the addresses whose names changed.
    pub fn lapse(&mut self, now: u64) -> BTreeSet<IpAddr> {
        let before = self.looked_at;
        self.looked_at = before.max(now);
        let ended: Vec<Place> = self.ended().cloned().collect();
        let news = ended.iter().filter(|place| place.until > before).map(|place| place.address);
        let mut changed: BTreeSet<IpAddr> = news.collect();
        for place in ended.iter().take(ended.len().saturating_sub(MAX_LAPSED)) {
            self.forget_early(place);
            changed.insert(place.address);
        }
        changed
    }

    /// Addresses with names that have lapsed.
    pub fn lapsed(&self) -> BTreeSet<IpAddr> {
        self.ended().map(|place| place.address).collect()
    }

    /// Forgets the lapsed names of addresses to which nobody is connected.
    ///
    /// Answers with the addresses whose names changed.
    pub fn forget(&mut self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        let gone: Vec<Place> =
            self.ended().filter(|place| addresses.contains(&place.address)).cloned().collect();
        gone.iter().for_each(|place| self.remove(place));
        gone.into_iter().map(|place| place.address).collect()
    }

    /// Goes on with what was recalled: what ended meanwhile has lapsed, and is kept only where the kernel knows the address.
    pub fn resume(&mut self, now: u64, is_held: impl Fn(IpAddr) -> bool) {
        self.lapse(now);
        let gone = self.lapsed().into_iter().filter(|address| !is_held(*address)).collect();
        self.forget(&gone);
    }

    fn ended(&self) -> impl Iterator<Item = &Place> {
        self.by_end.iter().take_while(|place| place.until <= self.looked_at)
    }

    /// Those of these patterns that hold for a name of the address: for what begins now, and for what is there already.
    pub fn patterns_of<'a>(
        &self,
        address: IpAddr,
        patterns: impl IntoIterator<Item = &'a NamePattern>,
    ) -> (BTreeSet<&'a NamePattern>, BTreeSet<&'a NamePattern>) {
        let (mut live, mut lasting) = (BTreeSet::new(), BTreeSet::new());
        let Some(names) = self.by_address.get(&address) else { return (live, lasting) };
        for pattern in patterns {
            let end = if pattern.is_exact() {
                names.get(pattern.as_str()).copied()
            } else {
                names.iter().filter(|(name, _)| pattern.matches(name)).map(|(_, end)| *end).max()
            };
            let Some(end) = end else { continue };
            lasting.insert(pattern);
            if end > self.looked_at {
                live.insert(pattern);
            }
        }
        (live, lasting)
    }

    /// Names of an address, in order.
    pub fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.by_address.get(&address).into_iter().flat_map(|names| names.keys().map(|name| &**name))
    }

    /// A name at an address.
    pub fn place(&self, name: &str, address: IpAddr) -> Option<Place> {
        let (name, until) = self.by_address.get(&address)?.get_key_value(name)?;
        Some(Place { until: *until, address, name: name.clone() })
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
        let found = [&known[0], &known[2]].into();
        assert_eq!(names.patterns_of(at(1), &known), (found, [&known[0], &known[2]].into()));
        assert!(names.patterns_of(at(2), &known).1.is_empty());
    }

    #[test]
    fn a_name_holds_for_the_floor_at_least_and_for_the_longest_time_that_was_told() {
        let mut names = Names::default();
        learn(&mut names, "short.test", 1, 0, 1000);
        assert!(!names.is_due(1059) && names.lapse(1059).is_empty());
        assert!(names.is_due(1060));
        learn(&mut names, "short.test", 1, 300, 1000);
        learn(&mut names, "short.test", 1, 100, 1000);
        assert!(names.lapse(1299).is_empty());
        assert_eq!(names.lapse(1300), [at(1)].into());
        assert!(learn(&mut names, "short.test", 1, 60, 1300), "it is there once more");
    }

    #[test]
    fn a_name_outlives_its_end_for_what_is_there_and_allows_nothing_new() {
        let mut names = Names::default();
        learn(&mut names, "a.test", 1, 60, 1000);
        learn(&mut names, "b.test", 1, 90, 1000);
        learn(&mut names, "a.test", 2, 60, 1000);
        assert_eq!(names.lapse(1060), [at(1), at(2)].into());
        let known = patterns(&["a.test", "b.test"]);
        let (live, lasting) = names.patterns_of(at(1), &known);
        assert_eq!((live, lasting), ([&known[1]].into(), [&known[0], &known[1]].into()));
        assert_eq!(names.lapsed(), [at(1), at(2)].into());
        assert!(names.lapse(1061).is_empty(), "that was said already");
        assert_eq!(names.forget(&[at(2), at(3)].into()), [at(2)].into());
        assert_eq!(names.addresses().collect::<Vec<_>>(), [at(1)]);
        assert_eq!(names.forget(&[at(1)].into()), [at(1)].into());
        assert_eq!(names.names_of(at(1)).collect::<Vec<_>>(), ["b.test"]);
        names.lapse(2000);
        names.forget(&[at(1)].into());
        assert!(names.is_empty() && names.by_name.is_empty() && names.by_address.is_empty());
    }

    #[test]
    fn what_ended_while_no_agent_was_there_is_kept_only_where_the_kernel_knows_it() {
        let mut names = Names::default();
        for last in 1..=3 {
            learn(&mut names, "a.test", last, 60 * u64::from(last), 1000);
        }
        names.resume(1130, |address| address == at(1));
        assert_eq!(names.addresses().collect::<Vec<_>>(), [at(1), at(3)]);
        assert_eq!((names.lapsed(), names.forgotten()), ([at(1)].into(), 0));
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
        assert_eq!((names.len(), names.forgotten()), (MAX_ADDRESSES_OF_A_NAME, 1));
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
                    names.lapse(now);
                    names.forget(&[at(last)].into());
                    prop_assert!(!names.lapsed().contains(&at(last)));
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
