//! The kinds of maps.

use aya::Pod;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key};
use ebpf_shared::limits;

use super::{Dump, Entry};
use crate::kernel::{KernelError, table::Prefix};

/// Twice what the greatest map holds: the kernel begins again where the last key was removed meanwhile.
const MOST_STEPS: usize = 2 * limits::BACKENDS as usize;

/// A map whose entries are read by `read`.
struct By<F> {
    name: &'static str,
    read: F,
}

impl<F: Fn(MapData) -> Result<Vec<Entry>, MapError> + Send + Sync> Dump for By<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn entries(&self, map: MapData) -> Result<Vec<Entry>, KernelError> {
        (self.read)(map).map_err(|source| KernelError::Map { name: self.name, source })
    }
}

pub(super) fn hash<K: Pod + 'static, V: Pod + 'static>(
    name: &'static str,
    show: fn(&K, &V) -> Entry,
) -> Box<dyn Dump> {
    let read = move |map: MapData| {
        // Least-recently-used ones are read in the same way.
        let map: HashMap<MapData, K, V> = Map::HashMap(map).try_into()?;
        map.iter().take(MOST_STEPS).map(|entry| entry.map(|(key, value)| show(&key, &value))).collect()
    };
    Box::new(By { name, read })
}

pub(super) fn trie<P: Prefix + 'static, V: Pod + 'static>(
    name: &'static str,
    show: fn(&P, &V) -> Entry,
) -> Box<dyn Dump> {
    let read = move |map: MapData| {
        let map: LpmTrie<MapData, P::Data, V> = Map::LpmTrie(map).try_into()?;
        let shown = |entry: Result<(Key<P::Data>, V), MapError>| match entry {
            Ok((key, value)) => P::from_key(&key).map(|prefix| Ok(show(&prefix, &value))),
            Err(error) => Some(Err(error)),
        };
        map.iter().take(MOST_STEPS).filter_map(shown).collect()
    };
    Box::new(By { name, read })
}

pub(super) fn array<V: Pod + 'static>(name: &'static str, show: fn(u32, &V) -> Entry) -> Box<dyn Dump> {
    let read = move |map: MapData| {
        let map: Array<MapData, V> = Map::Array(map).try_into()?;
        (0..map.len()).map(|index| map.get(&index, 0).map(|value| show(index, &value))).collect()
    };
    Box::new(By { name, read })
}

/// Cells that never counted are left out.
pub(super) fn per_cpu<V: Pod + 'static>(
    name: &'static str,
    show: fn(u32, &[V]) -> Option<Entry>,
) -> Box<dyn Dump> {
    let read = move |map: MapData| {
        let map: PerCpuArray<MapData, V> = Map::PerCpuArray(map).try_into()?;
        let cell = |index: u32| map.get(&index, 0).map(|values| show(index, &values)).transpose();
        (0..map.len()).filter_map(cell).collect()
    };
    Box::new(By { name, read })
}
