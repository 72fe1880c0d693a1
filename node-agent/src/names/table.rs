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
    /// Those that did not have the name before.
    pub new: BTreeSet<IpAddr>,
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
        let mut new: BTreeSet<IpAddr> = told.iter().filter(is_new).copied().collect();
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
            self.withdraw(name, &std::mem::take(&mut new));
        }
        Learnt { changed, new, is_refused }
    }

    /// Takes back that a name is at these addresses: nobody was told.
    pub fn withdraw(&mut self, name: &str, addresses: &BTreeSet<IpAddr>) {
        for address in addresses {
            if let Some(place) = self.place(name, *address) {
                self.remove(&place);
            }
        }
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
#[path = "table_tests.rs"]
mod tests;
