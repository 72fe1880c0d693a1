//! From maps of an older format to this one's, while the old programs go on.
//!
//! The new maps are filled beside the old ones, in `maps-next`; nothing leads there yet. Then `FORMAT` is written, and from
//! there on each link is swapped in one step: a packet meets the old program with the old maps, or the new one with the
//! new. When all are swapped, the directories change their names, and the old maps go. An agent that dies on the way leaves
//! either maps without `FORMAT`, which are begun again, or maps that are whole, with which the next one goes on.
//!
//! Connections are copied before a pod's links are swapped and once more after, for those that began in between. They are
//! judged anew with their next packet: what they rest on is this format's policy.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use ebpf_shared::service::ReverseValue;
use ebpf_shared::{Addr, ConnEntry, ConnKey, ReverseKey, SockAddr};

use super::pins::Cgroup;
use super::{HashTable, Kernel, KernelError, links};

/// What was copied lately is good enough before a swap: the rest follows after.
const FRESH: Duration = Duration::from_secs(1);
/// Longer than either map of any format: a map that is written meanwhile could be walked for ever.
const MOST: usize = 1 << 19;

/// A change of format that is under way.
pub(super) struct Migration {
    pub(super) from: u32,
    /// To be hooked at the end.
    pub(super) cgroup: Cgroup,
    /// Pods whose links have been swapped: their connections are the new programs' to change.
    swapped: BTreeSet<u32>,
    copied: Option<Instant>,
}

impl Migration {
    pub(super) fn new(from: u32, cgroup: Cgroup) -> Self {
        Self { from, cgroup, swapped: BTreeSet::new(), copied: None }
    }
}

impl Kernel {
    /// The older format whose programs still guard pods; `None`: there is none, or no more.
    pub fn migrates_from(&self) -> Option<u32> {
        self.migration.as_ref().map(|migration| migration.from)
    }

    /// Swaps the doors of a pod whose policy is in the new maps.
    pub(super) fn migrate_pod(&mut self, ifname: &str) -> Result<u32, KernelError> {
        // Whoever finds the new maps from here on goes on with them.
        self.write_format()?;
        if self.migration.as_ref().and_then(|all| all.copied).is_none_or(|at| at.elapsed() > FRESH) {
            self.copy_connections()?;
        }
        let ifindex = links::attach_pod(&mut self.programs, &self.pins, ifname)?;
        if let Some(migration) = &mut self.migration {
            migration.swapped.insert(ifindex);
        }
        Ok(ifindex)
    }

    /// Swaps what is left: the hooks at sockets, and the doors of interfaces that are nobody's, which are closed from then
    /// on. The old maps are gone afterwards. If there is nothing to migrate, nothing is done.
    ///
    /// # Errors
    /// The kernel refused; the same once more goes on from there.
    pub fn finish_migration(&mut self) -> Result<(), KernelError> {
        let Some(from) = self.migrates_from() else { return Ok(()) };
        self.write_format()?;
        self.copy_sockets(from)?;
        links::take_over(&self.programs, &self.pins)?;
        if let Some(migration) = &self.migration {
            links::hook_sockets(&mut self.programs, &self.pins, &migration.cgroup)?;
        }
        self.copy_connections()?;
        self.copy_sockets(from)?;
        self.pins.replace_old()?;
        self.migration = None;
        Ok(())
    }

    fn copy_connections(&mut self) -> Result<(), KernelError> {
        let Some(migration) = &mut self.migration else { return Ok(()) };
        let path = self.pins.old_map("CONNTRACK");
        let all = match migration.from {
            2 => connections_2(&path),
            3 => connections_3(&path),
            // Too old: connections begin anew.
            _ => Ok(Vec::new()),
        };
        let all = all.map_err(|source| KernelError::Map { name: "CONNTRACK", source })?;
        for (key, entry) in all {
            // After the swap the new programs know better.
            let known_better = migration.swapped.contains(&key.ifindex);
            if !(known_better && self.conntrack.get(&key)?.is_some()) {
                self.conntrack.upsert(key, entry)?;
            }
        }
        migration.copied = Some(Instant::now());
        Ok(())
    }

    /// Whom sockets believe to talk to.
    fn copy_sockets(&mut self, from: u32) -> Result<(), KernelError> {
        let path = self.pins.old_map("REVERSE");
        let all = match from {
            2 => sockets_2(&path),
            3 => sockets_3(&path),
            _ => Ok(Vec::new()),
        };
        let error = |source| KernelError::Map { name: "REVERSE", source };
        let map = MapData::from_pin(self.pins.map("REVERSE")).map_err(error)?;
        let map: HashMap<MapData, ReverseKey, ReverseValue> =
            Map::LruHashMap(map).try_into().map_err(error)?;
        let mut table = HashTable::new("REVERSE", map);
        for (key, believed) in all.map_err(error)? {
            if table.get(&key)?.is_none() {
                table.upsert(key, believed)?;
            }
        }
        Ok(())
    }
}

/// A key and its value.
type Raw<const K: usize, const V: usize> = ([u8; K], [u8; V]);

/// All entries of a map as bytes; none if the map is not there.
fn raw<const K: usize, const V: usize>(path: &Path) -> Result<Vec<Raw<K, V>>, MapError> {
    typed(path)
}

/// The same of a map that is as it is now.
fn typed<K: Pod, V: Pod>(path: &Path) -> Result<Vec<(K, V)>, MapError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let map: HashMap<MapData, K, V> = Map::LruHashMap(MapData::from_pin(path)?).try_into()?;
    let mut entries = Vec::new();
    for entry in map.iter().take(MOST) {
        match entry {
            Ok(entry) => entries.push(entry),
            // Forgotten between finding and reading it.
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(entries)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn addr_at(bytes: &[u8], at: usize) -> Addr {
    Addr::from_words([0, 4, 8, 12].map(|word| u32_at(bytes, at + word)))
}

/// Format 2.
fn connections_2(path: &Path) -> Result<Vec<(ConnKey, ConnEntry)>, MapError> {
    let all = raw::<28, 32>(path)?.into_iter().map(|(key, value)| {
        let key = ConnKey {
            ifindex: u32_at(&key, 0),
            peer: addr_at(&key, 4),
            own_port: u16_at(&key, 20),
            peer_port: u16_at(&key, 22),
            protocol: key[24],
            began: key[25],
            incarnation: u16_at(&key, 26),
        };
        (key, connection(&value))
    });
    Ok(all.collect())
}

/// What format 2 says of a connection.
fn connection(value: &[u8; 32]) -> ConnEntry {
    ConnEntry {
        seen: u64_at(value, 0),
        // Never the one that holds: it is judged at its next packet.
        stamp: u64::MAX,
        policy_id: u32_at(value, 16),
        cut: value[20],
        answered: value[21],
        closed_forward: value[22],
        closed_reply: value[23],
        midstream: value[24],
        ..ConnEntry::default()
    }
}

fn sockets_2(path: &Path) -> Result<Vec<(ReverseKey, ReverseValue)>, MapError> {
    let at = |bytes: &[u8], at: usize| SockAddr::new(addr_at(bytes, at), u16_at(bytes, at + 16));
    let all = raw::<32, 20>(path)?.into_iter();
    // Which backend it is, is not known: its removal does not end the connection.
    let value = |value: &[u8; 20]| ReverseValue { believed: at(value, 0), ..ReverseValue::default() };
    Ok(all.map(|(key, told)| (ReverseKey::new(u64_at(&key, 0), at(&key, 8)), value(&told))).collect())
}

/// Format 3: what connections and sockets are known by has not changed since.
fn connections_3(path: &Path) -> Result<Vec<(ConnKey, ConnEntry)>, MapError> {
    // Never the stamp that holds: it is judged at its next packet.
    let anew = |entry| ConnEntry { stamp: u64::MAX, ..entry };
    Ok(typed(path)?.into_iter().map(|(key, entry)| (key, anew(entry))).collect())
}

fn sockets_3(path: &Path) -> Result<Vec<(ReverseKey, ReverseValue)>, MapError> {
    // Numbers of backends are given out anew: its removal does not end the connection.
    let unnumbered = |value| ReverseValue { backend: 0, ..value };
    Ok(typed(path)?.into_iter().map(|(key, value)| (key, unnumbered(value))).collect())
}
