//! Typed handles on hash maps and longest-prefix tries.

use std::collections::{BTreeMap, BTreeSet};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData, MapError};

use ebpf_shared::limits;

use super::KernelError;

/// Twice what the greatest map holds. The kernel begins again at the first key where the last one has been
/// removed meanwhile, so that a busy map could be walked for ever.
const MOST_STEPS: usize = 2 * limits::BACKENDS as usize;

/// A hash map.
pub struct HashTable<K, V> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod + Ord, V: Pod> HashTable<K, V> {
    pub(super) fn new(name: &'static str, map: HashMap<MapData, K, V>) -> Self {
        Self { name, map }
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Result<Option<V>, KernelError> {
        found(self.name, self.map.get(key, 0))
    }

    /// Writes an entry, whether or not it was there.
    pub fn upsert(&mut self, key: K, value: V) -> Result<(), KernelError> {
        self.map.insert(key, value, 0).map_err(|source| KernelError::Map { name: self.name, source })
    }

    /// Removes an entry; returns whether it was there.
    pub fn delete(&mut self, key: &K) -> Result<bool, KernelError> {
        removed(self.name, self.map.remove(key))
    }

    /// Everything in the map. Entries that the programs write meanwhile may or may not be there.
    pub fn dump(&self) -> Result<BTreeMap<K, V>, KernelError> {
        let mut entries = BTreeMap::new();
        for entry in self.map.iter().take(MOST_STEPS) {
            let (key, value) = entry.map_err(|source| KernelError::Map { name: self.name, source })?;
            entries.insert(key, value);
        }
        Ok(entries)
    }

    /// Every key, see [`Self::dump`].
    pub fn keys(&self) -> Result<BTreeSet<K>, KernelError> {
        let keys = self.map.keys().take(MOST_STEPS);
        keys.map(|key| key.map_err(|source| KernelError::Map { name: self.name, source })).collect()
    }
}

/// A key of a longest-prefix trie, as the agent speaks of it.
pub trait Prefix: Ord + Sized {
    /// The bytes that are matched bit by bit.
    type Data: Pod;
    fn to_key(&self) -> Key<Self::Data>;
    /// `None` if no such prefix is ever written.
    fn from_key(key: &Key<Self::Data>) -> Option<Self>;
}

/// A longest-prefix trie.
pub struct TrieTable<P: Prefix, V> {
    name: &'static str,
    map: LpmTrie<MapData, P::Data, V>,
}

impl<P: Prefix, V: Pod> TrieTable<P, V> {
    pub(super) fn new(name: &'static str, map: LpmTrie<MapData, P::Data, V>) -> Self {
        Self { name, map }
    }

    /// The value of the longest prefix around (or equal to) this one.
    pub fn lookup(&self, prefix: &P) -> Result<Option<V>, KernelError> {
        found(self.name, self.map.get(&prefix.to_key(), 0))
    }

    /// The value of exactly this prefix. A trie only ever answers with the longest one around a key, so all are
    /// looked through: for starting up, not for traffic.
    pub fn exact(&self, prefix: &P) -> Result<Option<V>, KernelError> {
        Ok(self.dump()?.remove(prefix))
    }

    /// Writes the entry of exactly this prefix.
    pub fn upsert(&mut self, prefix: &P, value: V) -> Result<(), KernelError> {
        self.map
            .insert(&prefix.to_key(), value, 0)
            .map_err(|source| KernelError::Map { name: self.name, source })
    }

    /// Removes the entry of exactly this prefix; returns whether it was there.
    pub fn delete(&mut self, prefix: &P) -> Result<bool, KernelError> {
        removed(self.name, self.map.remove(&prefix.to_key()))
    }

    /// Everything in the trie.
    pub fn dump(&self) -> Result<BTreeMap<P, V>, KernelError> {
        let mut entries = BTreeMap::new();
        for entry in self.map.iter() {
            let (key, value) = entry.map_err(|source| KernelError::Map { name: self.name, source })?;
            if let Some(prefix) = P::from_key(&key) {
                entries.insert(prefix, value);
            }
        }
        Ok(entries)
    }
}

fn found<V>(name: &'static str, result: Result<V, MapError>) -> Result<Option<V>, KernelError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(source) => Err(KernelError::Map { name, source }),
    }
}

fn removed(name: &'static str, result: Result<(), MapError>) -> Result<bool, KernelError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
            Ok(false)
        }
        Err(source) => Err(KernelError::Map { name, source }),
    }
}
