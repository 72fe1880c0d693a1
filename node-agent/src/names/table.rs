//! Names by address, with an end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
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
/// Pairs that one pod's answers have brought.
pub const MAX_OF_A_POD: usize = 10_000;
/// A name holds no longer than this after an answer, whatever the answer says.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// Whose answer brought a pair; `None`: that is not known any more.
pub type Holder = Option<IpAddr>;

/// What an answer changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Learnt {
    /// Addresses whose names changed.
    pub changed: BTreeSet<IpAddr>,
    /// There is no room for all of the answer: nothing of it was noted that was not known before.
    pub is_refused: bool,
}

/// What is known of a pair.
#[derive(Clone, Copy, Debug)]
struct Known {
    until: u64,
    holder: Holder,
}

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
/// any more.
///
/// Each pair counts for the pod whose answer brought it, or, if several were told, for the one that has the fewest. A
/// pod that has its share forgets what ends first of its own; where all is full, the pod that has the most does. What is being
/// told is never what is forgotten.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Unix seconds: what ended until then is lapsed.
    looked_at: u64,
    /// Pairs that were forgotten before their time, as there was no room.
    forgotten: u64,
    by_address: BTreeMap<IpAddr, BTreeMap<Arc<str>, Known>>,
    by_name: HashMap<Arc<str>, BTreeSet<(u64, IpAddr)>>,
    by_end: BTreeSet<Place>,
    by_holder: HashMap<Holder, BTreeSet<Place>>,
}

impl Names {
    /// Notes where a name is, by an answer to a pod. An end that is earlier than the known one changes nothing: the answer that
    /// said it holds longer was told too.
    pub fn learn(
        &mut self,
        holder: Holder,
        name: &str,
        addresses: &[(IpAddr, Duration)],
        now: u64,
        floor: Duration,
    ) -> Learnt {
        let told: BTreeSet<IpAddr> = addresses.iter().map(|(address, _)| *address).collect();
        let is_new = |address: &&IpAddr| self.place(name, **address).is_none();
        let new: Vec<IpAddr> = told.iter().filter(is_new).copied().collect();
        let mut changed = BTreeSet::new();
        for (address, holds) in addresses {
            let until = now.saturating_add((*holds).min(MAX_TTL).max(floor).as_secs());
            if self.put(name, *address, until, holder) {
                changed.insert(*address);
            }
        }
        let is_told = |place: &Place| &*place.name == name && told.contains(&place.address);
        let is_refused = !self.forget_surplus(name, holder, is_told, &mut changed);
        if is_refused {
            for address in new {
                if let Some(place) = self.place(name, address) {
                    self.remove(&place);
                }
            }
        }
        Learnt { changed, is_refused }
    }

    /// Takes in what an earlier agent noted.
    pub fn recall(&mut self, place: &Place, holder: Holder) {
        self.put(&place.name, place.address, place.until, holder);
        self.forget_surplus(&place.name, holder, |_| false, &mut BTreeSet::new());
    }

    /// True: the address did not have the name, or no more.
    fn put(&mut self, name: &str, address: IpAddr, until: u64, holder: Holder) -> bool {
        let known = self.by_address.get(&address).and_then(|names| names.get_key_value(name));
        let Some((name, known)) = known.map(|(name, known)| (name.clone(), *known)) else {
            let shared = self.by_name.get_key_value(name).map(|(name, _)| name.clone());
            let name = shared.unwrap_or_else(|| name.into());
            self.insert(Place { until, address, name }, holder);
            return true;
        };
        let latest = until.max(known.until);
        let fewest = if self.held(known.holder) > self.held(holder) { holder } else { known.holder };
        if latest != known.until || fewest != known.holder {
            self.remove(&Place { until: known.until, address, name: name.clone() });
            self.insert(Place { until: latest, address, name }, fewest);
        }
        known.until <= self.looked_at && latest > self.looked_at
    }

    fn insert(&mut self, place: Place, holder: Holder) {
        let Place { until, address, name } = place.clone();
        self.by_address.entry(address).or_default().insert(name.clone(), Known { until, holder });
        self.by_name.entry(name).or_default().insert((until, address));
        self.by_holder.entry(holder).or_default().insert(place.clone());
        self.by_end.insert(place);
    }

    fn remove(&mut self, place: &Place) {
        self.by_end.remove(place);
        if let Some(names) = self.by_address.get_mut(&place.address) {
            let holder = names.remove(&place.name).and_then(|known| known.holder);
            if names.is_empty() {
                self.by_address.remove(&place.address);
            }
            if let Some(held) = self.by_holder.get_mut(&holder) {
                held.remove(place);
                if held.is_empty() {
                    self.by_holder.remove(&holder);
                }
            }
        }
        if let Some(addresses) = self.by_name.get_mut(&place.name) {
            addresses.remove(&(place.until, place.address));
            if addresses.is_empty() {
                self.by_name.remove(&place.name);
            }
        }
    }

    /// Pairs that count for a pod.
    fn held(&self, holder: Holder) -> usize {
        self.by_holder.get(&holder).map_or(0, BTreeSet::len)
    }

    /// Whose answer brought a pair.
    pub fn holder(&self, place: &Place) -> Holder {
        self.by_address.get(&place.address)?.get(&place.name)?.holder
    }

    /// Makes room, but not of what is being told. False: there is not enough.
    fn forget_surplus(
        &mut self,
        name: &str,
        holder: Holder,
        is_told: impl Fn(&Place) -> bool,
        forgotten: &mut BTreeSet<IpAddr>,
    ) -> bool {
        loop {
            let of_name = || {
                let (name, addresses) = self.by_name.get_key_value(name)?;
                (addresses.len() > MAX_ADDRESSES_OF_A_NAME).then(|| {
                    let places = addresses.iter();
                    let place =
                        |(until, address): &_| Place { until: *until, address: *address, name: name.clone() };
                    places.map(place).find(|place| !is_told(place))
                })
            };
            let first = |held: &BTreeSet<Place>| held.iter().find(|place| !is_told(place)).cloned();
            let of_pod = || {
                let held = self.by_holder.get(&holder).filter(|_| holder.is_some())?;
                (held.len() > MAX_OF_A_POD).then(|| first(held))
            };
            let of_all = || {
                let most = || self.by_holder.values().max_by_key(|held| held.len());
                (self.by_end.len() > MAX_ENTRIES).then(|| most().and_then(first))
            };
            let Some(surplus) = of_name().or_else(of_pod).or_else(of_all) else { return true };
            let Some(place) = surplus else { return false };
            self.forget_early(&place);
            forgotten.insert(place.address);
        }
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
        for place in self.surplus(&ended, MAX_LAPSED) {
            self.forget_early(&place);
            changed.insert(place.address);
        }
        changed
    }

    /// What has to go of these so that no more than `most` are left: of whoever has the most of them.
    fn surplus(&self, ended: &[Place], most: usize) -> Vec<Place> {
        let mut by_holder: BTreeMap<Holder, VecDeque<&Place>> = BTreeMap::new();
        let mut surplus = Vec::new();
        if ended.len() > most {
            for place in ended {
                by_holder.entry(self.holder(place)).or_default().push_back(place);
            }
        }
        while ended.len() - surplus.len() > most {
            let greatest = by_holder.values_mut().max_by_key(|held| held.len());
            let Some(place) = greatest.and_then(VecDeque::pop_front) else { break };
            surplus.push(place.clone());
        }
        surplus
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
                names.get(pattern.as_str()).map(|known| known.until)
            } else {
                names.iter().filter(|(name, _)| pattern.matches(name)).map(|(_, known)| known.until).max()
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
        let (name, known) = self.by_address.get(&address)?.get_key_value(name)?;
        Some(Place { until: known.until, address, name: name.clone() })
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

    /// A pod of the node.
    fn pod(last: u8) -> Holder {
        Some([10, 1, 1, last].into())
    }

    fn learn_of(names: &mut Names, holder: Holder, name: &str, last: u16, holds: u64, now: u64) -> bool {
        let learnt = names.learn(holder, name, &[(at(last), Duration::from_secs(holds))], now, FLOOR);
        assert!(!learnt.is_refused);
        !learnt.changed.is_empty()
    }

    fn learn(names: &mut Names, name: &str, last: u16, holds: u64, now: u64) -> bool {
        learn_of(names, pod(2), name, last, holds, now)
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
        let learnt = names.learn(pod(3), "a.test", &[(at(5000), Duration::from_secs(3600))], 1000, FLOOR);
        assert_eq!(learnt.changed, [at(0), at(5000)].into());
        assert_eq!((names.len(), names.forgotten()), (MAX_ADDRESSES_OF_A_NAME, 1));
    }

    #[test]
    fn what_is_being_told_stays_though_it_ends_first() {
        let mut names = Names::default();
        let many = u16::try_from(MAX_ADDRESSES_OF_A_NAME).unwrap();
        for last in 0..many {
            learn(&mut names, "a.test", last, 3600, 1000);
        }
        assert!(learn(&mut names, "a.test", 5000, 0, 1000));
        assert!(names.place("a.test", at(5000)).is_some() && names.len() == MAX_ADDRESSES_OF_A_NAME);
        // What fits in no way is refused as a whole.
        let all: Vec<_> = (6000..=6000 + many).map(|last| (at(last), FLOOR)).collect();
        assert!(names.learn(pod(2), "b.test", &all, 1000, FLOOR).is_refused);
        assert!(names.addresses().all(|address| names.place("b.test", address).is_none()));
    }

    #[test]
    fn a_name_holds_for_a_day_at_most_after_an_answer() {
        let mut names = Names::default();
        learn(&mut names, "a.test", 1, u64::from(u32::MAX), 1000);
        assert!(names.is_due(1000 + MAX_TTL.as_secs()));
    }

    /// Names of a pod, one address each, some of it shared.
    fn flood(names: &mut Names, holder: Holder, count: usize, holds: u64) {
        for i in 0..count {
            let name = format!("{i}.{holder:?}.test");
            learn_of(names, holder, &name, 1, holds, 1000);
        }
    }

    #[test]
    fn a_pod_with_its_share_forgets_its_own_names_and_nobody_elses() {
        let mut names = Names::default();
        learn_of(&mut names, pod(3), "honest.test", 7, 0, 1000);
        // Asked by the flooder first: it counts for whoever has fewer.
        learn_of(&mut names, pod(2), "first.test", 8, 0, 1000);
        learn_of(&mut names, pod(2), "also.test", 9, 0, 1000);
        learn_of(&mut names, pod(3), "first.test", 8, 0, 1000);
        flood(&mut names, pod(2), 2 * MAX_OF_A_POD, 3600);
        assert_eq!(names.len(), MAX_OF_A_POD + 2);
        let is_known = |name, last| names.place(name, at(last)).is_some();
        assert!(is_known("honest.test", 7) && is_known("first.test", 8) && !is_known("also.test", 9));
        assert_eq!(names.forgotten() as usize, MAX_OF_A_POD + 1);
    }

    #[test]
    fn where_all_is_full_whoever_has_the_most_forgets() {
        let mut names = Names::default();
        let pods = u8::try_from(MAX_ENTRIES / MAX_OF_A_POD).unwrap();
        flood(&mut names, pod(99), MAX_OF_A_POD / 2, 0);
        for last in 1..=pods {
            flood(&mut names, pod(last), MAX_OF_A_POD, 3600);
        }
        assert_eq!((names.len(), names.held(pod(99))), (MAX_ENTRIES, MAX_OF_A_POD / 2));
        flood(&mut names, pod(100), 10, 0);
        assert_eq!((names.len(), names.held(pod(100))), (MAX_ENTRIES, 10));
        // So with names that have lapsed.
        for _ in 0..2 {
            names.lapse(1060);
        }
        assert_eq!((names.held(pod(99)), names.held(pod(100))), (MAX_OF_A_POD / 2, 10));
        names.lapse(4600);
        assert_eq!((names.len(), names.held(pod(100))), (MAX_LAPSED, 10));
    }

    #[test]
    fn what_is_recalled_is_as_it_was() {
        let mut before = Names::default();
        learn(&mut before, "a.test", 1, 60, 1000);
        learn(&mut before, "b.test", 1, 90, 1000);
        let mut after = Names::default();
        before.places().for_each(|place| after.recall(place, before.holder(place)));
        assert!(before.places().eq(after.places()) && after.held(pod(2)) == 2);
    }

    proptest! {
        #[test]
        fn its_orders_agree_whatever_happens(
            steps in prop::collection::vec((0..4u8, 0..5u16, 0..5u16, 0..200u64), 0..80),
        ) {
            let mut names = Names::default();
            let mut now = 1000;
            for (what, name, last, amount) in steps {
                if what < 3 {
                    learn_of(&mut names, pod(what), &format!("{name}.test"), last, amount, now);
                } else {
                    now += amount;
                    names.lapse(now);
                    names.forget(&[at(last)].into());
                    prop_assert!(!names.lapsed().contains(&at(last)));
                }
                let of_addresses: usize = names.by_address.values().map(BTreeMap::len).sum();
                let of_names: usize = names.by_name.values().map(BTreeSet::len).sum();
                let of_pods: usize = names.by_holder.values().map(BTreeSet::len).sum();
                prop_assert_eq!((of_addresses, of_names, of_pods), (names.len(), names.len(), names.len()));
                for place in names.places() {
                    let known = names.by_address[&place.address][&place.name];
                    prop_assert_eq!(known.until, place.until);
                    prop_assert!(names.by_holder[&known.holder].contains(place));
                    prop_assert!(names.by_name[&place.name].contains(&(place.until, place.address)));
                }
            }
        }
    }
}
