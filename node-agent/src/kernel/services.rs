//! Services in the kernel.
//!
//! ## Order of writes
//!
//! Everything about a service changes with one write of its `SERVICES` entry. Its new backends, their table and the
//! sources that may ask are there before, beside the old ones; what only the old entry leads to goes after. A program that
//! read the old entry just before notices, and reads again: see `ebpf_shared::balance`. So while it has a backend, nobody
//! is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use aya::maps::lpm_trie::Key;
use ebpf_shared::service::{AnswererKey, SourceKey, address_bit, scope};
use ebpf_shared::{Addr, Backend, ServiceKey, ServiceValue, SockAddr, limits, nat};
use ipnet::IpNet;

use super::identities::Cidr;
use super::mapped::{Counters, Mapped};
use super::slab::Slab;
use super::table::Prefix;
use super::{HashTable, KernelError, TrieTable};
use crate::desired::service::maglev::{self, Turn};
use crate::desired::{ServedBackend, ServiceEntry};

/// A backend that a service has no more: connections to it are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Its number, by which sockets and translations know it.
    pub number: u32,
    pub protocol: u8,
    pub at: SocketAddr,
}

/// All services, and what they are made of.
pub struct Services {
    services: HashTable<ServiceKey, ServiceValue>,
    backends: HashTable<u32, Backend>,
    sources: TrieTable<Source, u8>,
    answerers: HashTable<AnswererKey, u8>,
    maglev: Mapped,
    served: Mapped,
    /// For packets of flows whose backend has not been looked up lately.
    epoch: Counters,
    slots: Slab,
    present: BTreeMap<ServiceKey, Present>,
    ids: BTreeSet<u32>,
    /// Where the search for a number that nobody has begins. At a random place after each start: a number that an
    /// earlier agent gave out and took back may still be in the programs' own maps.
    next_id: u32,
    numbers: BTreeSet<u32>,
    next_number: u32,
}

/// A service as it is in the kernel.
#[derive(Clone, Debug, Default)]
struct Present {
    value: ServiceValue,
    backends: BTreeMap<SocketAddr, (u32, Backend)>,
    sources: BTreeSet<IpNet>,
}

impl Present {
    fn turns(&self) -> Vec<Turn> {
        let chosen = self.backends.iter().filter(|(_, (_, backend))| backend.flags & Backend::CHOSEN != 0);
        maglev::turns(chosen.map(|(at, (number, backend))| (*at, *number, backend.weight)))
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.backends.values().map(|(number, _)| *number)
    }

    /// Those of its backends that go.
    fn gone(&self, key: &ServiceKey, goes: impl Fn(&SocketAddr) -> bool) -> Vec<Gone> {
        let gone = self.backends.iter().filter(|(at, _)| goes(at));
        gone.map(|(at, (number, _))| Gone { number: *number, protocol: key.protocol, at: *at }).collect()
    }

    /// Backends that may answer by its address what another node was asked.
    fn answerers(&self) -> BTreeSet<AnswererKey> {
        let is_direct = self.value.flags & ServiceValue::DIRECT != 0;
        let here = |(_, backend): &&(u32, Backend)| is_direct && backend.flags & Backend::HERE != 0;
        let key = |(_, backend): &(u32, Backend)| AnswererKey { service: self.value.id, at: backend.at };
        self.backends.values().filter(here).map(key).collect()
    }

    /// What says in `SERVED` that packets to it, and to its backends here, are to be looked at.
    fn bits(&self, key: &ServiceKey) -> Vec<u32> {
        let here = self.backends.values().filter(|(_, backend)| backend.flags & Backend::HERE != 0);
        let here = here.flat_map(|(_, backend)| bits_of_backend(backend, key.protocol));
        bits_of(key).into_iter().chain(here).collect()
    }

    fn entry(&self) -> ServiceEntry {
        let is = |flag| self.value.flags & flag != 0;
        let backends = self.backends.iter().map(|(at, (_, backend))| {
            let served = ServedBackend {
                weight: backend.weight,
                chosen: backend.flags & Backend::CHOSEN != 0,
                here: backend.flags & Backend::HERE != 0,
            };
            (*at, served)
        });
        ServiceEntry {
            proxy_port: self.value.proxy_port,
            redirect: self.value.redirect,
            affinity_seconds: self.value.affinity_seconds,
            direct: is(ServiceValue::DIRECT),
            sources: self.sources.clone(),
            backends: backends.collect(),
        }
    }
}

/// The maps that services are in.
pub(super) struct ServiceTables {
    pub(super) services: HashTable<ServiceKey, ServiceValue>,
    pub(super) backends: HashTable<u32, Backend>,
    pub(super) sources: TrieTable<Source, u8>,
    pub(super) answerers: HashTable<AnswererKey, u8>,
    /// As words: a slot each.
    pub(super) maglev: Mapped,
    /// As words: 32 bits each.
    pub(super) served: Mapped,
    /// Two numbers of 64 bits.
    pub(super) epoch: Counters,
}

/// A table's slots where many share them: then shares are within some percent of what they should be.
const FEW_SLOTS_PER_BACKEND: u32 = 32;

impl Services {
    /// Takes over what an earlier agent has left, and removes what it had not finished.
    pub(super) fn recover(tables: ServiceTables) -> Result<Self, KernelError> {
        let ServiceTables { services, mut backends, mut sources, mut answerers, maglev, served, epoch } =
            tables;
        let mut slots = Slab::new(maglev.words());
        let (values, all_backends, all_sources) = (services.dump()?, backends.dump()?, sources.dump()?);
        // Of those that are not taken over as well: they are in the kernel until they are written anew.
        let ids = values.values().map(|value| value.id).collect();
        let claim = |value: &ServiceValue| value.size <= 1 || slots.claim(value.table, value.size);
        let present = gather(values, &all_backends, all_sources.keys(), claim);
        let numbers: BTreeSet<u32> = present.values().flat_map(Present::numbers).collect();
        for number in all_backends.keys().filter(|number| !numbers.contains(number)) {
            backends.delete(number)?;
        }
        let owners: BTreeSet<u32> = present.values().map(|present| present.value.id).collect();
        for source in all_sources.keys().filter(|source| !owners.contains(&source.service)) {
            sources.delete(source)?;
        }
        let held = answerers.keys()?;
        let wanted: BTreeSet<AnswererKey> = present.values().flat_map(Present::answerers).collect();
        for key in wanted.difference(&held) {
            answerers.upsert(*key, 1)?;
        }
        for key in held.difference(&wanted) {
            answerers.delete(key)?;
        }
        // An agent that died between a write and its epoch has left it to this one.
        epoch.increment(0);
        let mut bits = BTreeMap::new();
        for (key, present) in &present {
            note(&mut bits, present.bits(key));
        }
        for is_v4 in [true, false] {
            note(&mut bits, [address_bit(&nat::loopback(is_v4))]);
        }
        for word in 0..limits::SERVED_BITS / 32 {
            let wanted = bits.get(&word).copied().unwrap_or(0);
            if served.get(word)? != wanted {
                served.set(word, wanted)?;
            }
        }
        Ok(Self {
            services,
            backends,
            sources,
            answerers,
            maglev,
            served,
            epoch,
            slots,
            present,
            ids,
            next_id: rand::random(),
            numbers,
            next_number: rand::random(),
        })
    }

    /// Makes an address what it is to be. Connections that exist keep their backend; which backends it has no more, is
    /// returned.
    pub fn put(&mut self, key: ServiceKey, wanted: &ServiceEntry) -> Result<Vec<Gone>, KernelError> {
        let most = limits::BACKENDS_PER_SERVICE;
        if wanted.backends.len() > most as usize {
            let key = SocketAddr::new(key.addr.into(), key.port).to_string();
            return Err(KernelError::TooManyBackends { key, found: wanted.backends.len(), most });
        }
        let before = self.present.get(&key).cloned().unwrap_or_default();
        let id = if before.value.id == 0 { free(&self.ids, &mut self.next_id)? } else { before.value.id };
        let mut after = Present { sources: wanted.sources.clone(), ..Present::default() };
        after.value = ServiceValue {
            id,
            affinity_seconds: wanted.affinity_seconds,
            flags: flags(wanted),
            proxy_port: wanted.proxy_port,
            redirect: wanted.redirect,
            ..ServiceValue::default()
        };
        let prepared = self.prepare(key, wanted, &before, &mut after);
        if let Err(error) = prepared.and_then(|()| self.services.upsert(key, after.value)) {
            // The old entry stays in force, with what it leads to.
            self.forget(&before, &after)?;
            for (at, held) in &before.backends {
                if after.backends.get(at).is_some_and(|now| now != held) {
                    self.backends.upsert(held.0, held.1)?;
                }
            }
            return Err(error);
        }
        self.ids.insert(id);
        self.present.insert(key, after.clone());
        self.forget(&after, &before)?;
        Ok(before.gone(&key, |at| !after.backends.contains_key(at)))
    }

    /// Removes a service: its address is then an address like any other. Returns the backends that it had; `None`: it was not
    /// there.
    pub fn remove(&mut self, key: &ServiceKey) -> Result<Option<Vec<Gone>>, KernelError> {
        let was_there = self.services.delete(key)?;
        let Some(before) = self.present.remove(key) else { return Ok(was_there.then(Vec::new)) };
        self.forget(&Present::default(), &before)?;
        self.ids.remove(&before.value.id);
        Ok(Some(before.gone(key, |_| true)))
    }

    /// All services.
    pub fn entries(&self) -> BTreeMap<ServiceKey, ServiceEntry> {
        self.present.iter().map(|(key, present)| (*key, present.entry())).collect()
    }

    /// Writes everything that the new entry is to lead to.
    fn prepare(
        &mut self,
        key: ServiceKey,
        wanted: &ServiceEntry,
        before: &Present,
        after: &mut Present,
    ) -> Result<(), KernelError> {
        for (at, served) in &wanted.backends {
            let backend = Backend {
                at: SockAddr::new(at.ip().into(), at.port()),
                service: after.value.id,
                weight: served.weight,
                flags: flag(served.chosen, Backend::CHOSEN) | flag(served.here, Backend::HERE),
            };
            let number = match before.backends.get(at) {
                Some((number, _)) => *number,
                None => free(&self.numbers, &mut self.next_number)?,
            };
            if before.backends.get(at) != Some(&(number, backend)) {
                self.backends.upsert(number, backend)?;
            }
            self.numbers.insert(number);
            after.backends.insert(*at, (number, backend));
        }
        let turns = after.turns();
        match turns.as_slice() {
            [] => {}
            [only] => (after.value.size, after.value.only) = (1, only.number),
            turns if before.turns() == turns => {
                (after.value.table, after.value.size) = (before.value.table, before.value.size);
            }
            turns => self.write_table(turns, &mut after.value)?,
        }
        for net in &wanted.sources {
            self.sources.upsert(&Source { service: after.value.id, net: *net }, 1)?;
        }
        for key in after.answerers().difference(&before.answerers()) {
            self.answerers.upsert(*key, 1)?;
        }
        for bit in after.bits(&key) {
            self.mark(bit)?;
        }
        Ok(())
    }

    /// What the counter of removed backends is to be. (The programs have one beside it.)
    pub(super) fn epochs_noted(&self) -> Vec<u64> {
        self.epoch.noted().into_iter().take(1).collect()
    }

    /// Has the programs look at packets to an address of this node: answers to translated packets go there.
    pub(super) fn watch(&self, addr: &Addr) -> Result<(), KernelError> {
        self.mark(address_bit(addr))
    }

    /// Bits are only set, until the next start: a superfluous one costs a lookup.
    fn mark(&self, bit: u32) -> Result<(), KernelError> {
        let word = bit / 32;
        self.served.set(word, self.served.get(word)? | 1 << (bit % 32))
    }

    /// A table as exact as there is room for.
    fn write_table(&mut self, turns: &[Turn], value: &mut ServiceValue) -> Result<(), KernelError> {
        let most = self.most_slots(turns.len());
        for size in maglev::sizes(turns.len()).filter(|size| *size <= most) {
            let Some(start) = self.slots.take(size) else {
                continue;
            };
            (value.table, value.size) = (start, size);
            for (at, number) in (start..).zip(maglev::table(turns, size)) {
                self.maglev.set(at, number)?;
            }
            return Ok(());
        }
        Err(KernelError::Exhausted { what: "MAGLEV" })
    }

    /// Slots that a service may have: all that it should, until a quarter is taken; then less, so that there are some
    /// for a hundred thousand services of two backends, and not great tables for the first 16,000 alone.
    fn most_slots(&self, backends: usize) -> u32 {
        if self.slots.left() > self.maglev.words() / 4 * 3 {
            return u32::MAX;
        }
        let few = u32::try_from(backends).unwrap_or(u32::MAX).saturating_mul(FEW_SLOTS_PER_BACKEND);
        maglev::sizes(backends)
            .filter(|size| *size <= few)
            .max()
            .or(maglev::sizes(backends).min())
            .unwrap_or(0)
    }

    /// Removes what `old` leads to and `kept` does not.
    fn forget(&mut self, kept: &Present, old: &Present) -> Result<(), KernelError> {
        let (new, value) = (kept.value, old.value);
        if value.size > 1 && (new.size <= 1 || new.table != value.table) {
            self.slots.give(value.table, value.size);
        }
        for (at, (number, _)) in &old.backends {
            if !kept.backends.contains_key(at) {
                self.backends.delete(number)?;
                self.epoch.increment(0);
                self.numbers.remove(number);
            }
        }
        for key in old.answerers().difference(&kept.answerers()) {
            self.answerers.delete(key)?;
        }
        for net in old.sources.difference(&kept.sources) {
            self.sources.delete(&Source { service: value.id, net: *net })?;
        }
        Ok(())
    }
}

/// Services with what is theirs. Of two with one number, and of those that are refused, the first is left.
fn gather<'a>(
    services: BTreeMap<ServiceKey, ServiceValue>,
    backends: &BTreeMap<u32, Backend>,
    sources: impl Iterator<Item = &'a Source>,
    mut is_good: impl FnMut(&ServiceValue) -> bool,
) -> BTreeMap<ServiceKey, Present> {
    let mut present = BTreeMap::new();
    let mut ids = BTreeMap::new();
    for (key, value) in services {
        if !ids.contains_key(&value.id) && is_good(&value) {
            ids.insert(value.id, key);
            present.insert(key, Present { value, ..Present::default() });
        }
    }
    for (number, backend) in backends {
        if let Some(owner) = ids.get(&backend.service).and_then(|key| present.get_mut(key)) {
            owner.backends.insert(socket(backend.at), (*number, *backend));
        }
    }
    for source in sources {
        if let Some(owner) = ids.get(&source.service).and_then(|key| present.get_mut(key)) {
            owner.sources.insert(source.net);
        }
    }
    present
}

/// The services of an agent that need not run, read from their maps.
pub(super) struct ServicesSeen(BTreeMap<ServiceKey, Present>);

/// A service, what its entry says, and what it is to say.
pub(crate) type Misshapen = (ServiceKey, String, String);

/// A slot of `MAGLEV` or a bit of `SERVED` that is not what its service needs: its place, what is there, what is to be.
pub(crate) type Astray = (u32, u32, u32);

impl ServicesSeen {
    pub(super) fn new(
        services: BTreeMap<ServiceKey, ServiceValue>,
        backends: &BTreeMap<u32, Backend>,
        sources: &BTreeMap<Source, u8>,
    ) -> Self {
        Self(gather(services, backends, sources.keys(), |_| true))
    }

    pub(super) fn entries(&self) -> BTreeMap<ServiceKey, ServiceEntry> {
        self.0.iter().map(|(key, present)| (*key, present.entry())).collect()
    }

    /// Services whose entry leads elsewhere than to their backends: what its size, its table or its only backend is, and what
    /// is to be.
    pub(super) fn misshapen(&self) -> Vec<Misshapen> {
        let mut slots = Slab::new(limits::MAGLEV);
        let mut wrong = Vec::new();
        for (key, present) in &self.0 {
            let (value, turns) = (present.value, present.turns());
            let wanted = match turns.as_slice() {
                [] => (value.size != 0).then(|| "size 0: it has no backend".to_owned()),
                [only] => ((value.size, value.only) != (1, only.number))
                    .then(|| format!("size 1, only backend {}", only.number)),
                turns if !has_size(turns, value.size) => Some(format!("a size for {} backends", turns.len())),
                _ => (!slots.claim(value.table, value.size)).then(|| "slots of its own".to_owned()),
            };
            let found = format!("size {}, table {}, only backend {}", value.size, value.table, value.only);
            wrong.extend(wanted.map(|wanted| (*key, found, wanted)));
        }
        wrong
    }

    /// How many slots tables have, and those that lead elsewhere than the table of their service says.
    pub(super) fn slots(&self, maglev: &Mapped) -> Result<(usize, Vec<Astray>), KernelError> {
        let (mut count, mut astray) = (0, Vec::new());
        for present in self.0.values() {
            let (value, turns) = (present.value, present.turns());
            // Of another size there is no table at all: see [`Self::misshapen`].
            if !has_size(&turns, value.size) || value.table.checked_add(value.size).is_none() {
                continue;
            }
            count += value.size as usize;
            let wanted = maglev::table(&turns, value.size);
            for (at, wanted) in (value.table..).zip(wanted) {
                let found = maglev.get(at)?;
                if found != wanted {
                    astray.push((at, found, wanted));
                }
            }
        }
        Ok((count, astray))
    }

    /// How many words have bits of services, and those that lack one. More bits than are needed do no harm.
    pub(super) fn words(&self, served: &Mapped) -> Result<(usize, Vec<Astray>), KernelError> {
        let mut words = BTreeMap::new();
        for (key, present) in &self.0 {
            note(&mut words, present.bits(key));
        }
        let mut lacking = Vec::new();
        for (word, wanted) in &words {
            let found = served.get(*word)?;
            if found & wanted != *wanted {
                lacking.push((*word, found, found | wanted));
            }
        }
        Ok((words.len(), lacking))
    }
}

/// Whether a table of these may have so many slots.
fn has_size(turns: &[Turn], size: u32) -> bool {
    turns.len() > 1 && maglev::sizes(turns.len()).any(|known| known == size)
}

/// A number that nobody has. 0 is nobody's.
fn free(taken: &BTreeSet<u32>, next: &mut u32) -> Result<u32, KernelError> {
    for _ in 0..=taken.len() + 1 {
        let number = *next;
        *next = next.wrapping_add(1);
        if number != 0 && !taken.contains(&number) {
            return Ok(number);
        }
    }
    Err(KernelError::Exhausted { what: "services or backends" })
}

fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

pub(crate) fn flags(entry: &ServiceEntry) -> u32 {
    flag(!entry.sources.is_empty(), ServiceValue::SOURCES) | flag(entry.direct, ServiceValue::DIRECT)
}

/// What says in `SERVED` that an address is a service's.
fn bits_of(key: &ServiceKey) -> [u32; 2] {
    [address_bit(&key.addr), key.bit()]
}

/// As [`bits_of`], for what answers from this node.
fn bits_of_backend(backend: &Backend, protocol: u8) -> [u32; 2] {
    bits_of(&ServiceKey::new(backend.at.addr, backend.at.port, protocol, scope::INSIDE))
}

fn note(words: &mut BTreeMap<u32, u32>, bits: impl IntoIterator<Item = u32>) {
    for bit in bits {
        *words.entry(bit / 32).or_insert(0) |= 1 << (bit % 32);
    }
}

fn socket(at: SockAddr) -> SocketAddr {
    SocketAddr::new(at.addr.into(), at.port)
}

/// A key of `SOURCES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    service: u32,
    net: IpNet,
}

impl Source {
    /// Number of the service.
    pub(super) fn service(&self) -> u32 {
        self.service
    }

    /// Who may ask for it.
    pub(super) fn net(&self) -> IpNet {
        self.net
    }
}

impl Prefix for Source {
    type Data = SourceKey;

    fn to_key(&self) -> Key<Self::Data> {
        let net = Cidr::from(self.net).to_key();
        let data = SourceKey { service: self.service, addr: net.data() };
        Key::new(SourceKey::FIXED_BITS + net.prefix_len(), data)
    }

    fn from_key(key: &Key<Self::Data>) -> Option<Self> {
        let bits = key.prefix_len().checked_sub(SourceKey::FIXED_BITS)?;
        let data = key.data();
        let net: Key<Addr> = Key::new(bits, data.addr);
        Some(Self { service: data.service, net: Cidr::from_key(&net)?.into() })
    }
}
