//! Which addresses pods of this node are connected to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use ebpf_shared::{Addr, ConnEntry, ConnKey, Reason, limits};

use super::KernelError;
use super::pins::Pins;

/// Entries that are looked at in one go.
const BATCH: usize = 4_096;
/// Between two goes, so that a look through a full table takes some eight seconds and a hundredth of a core.
const PAUSE: Duration = Duration::from_millis(250);
/// The kernel begins again at the first entry where the last one is gone, so that a look could take for ever.
const MOST: usize = 2 * limits::CONNTRACK as usize;

/// The connections, as the programs remember them.
pub struct Connections(HashMap<MapData, ConnKey, ConnEntry>);

impl Connections {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let error = |source| KernelError::Map { name: "CONNTRACK", source };
        let map = MapData::from_pin(pins.map("CONNTRACK")).map_err(error)?;
        Ok(Self(Map::LruHashMap(map).try_into().map_err(error)?))
    }

    /// Those of these addresses that somebody is connected to at `now` (`CLOCK_MONOTONIC`, nanoseconds). Blocks, for
    /// seconds where there are many connections.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn with(&self, addresses: &BTreeSet<IpAddr>, now: u64) -> Result<BTreeSet<IpAddr>, KernelError> {
        let error = |source| KernelError::Map { name: "CONNTRACK", source };
        let wanted: BTreeSet<Addr> = addresses.iter().map(|address| (*address).into()).collect();
        let mut found = BTreeSet::new();
        for (count, key) in self.0.keys().take(MOST).enumerate() {
            if count % BATCH == BATCH - 1 {
                std::thread::sleep(PAUSE);
            }
            let key = key.map_err(error)?;
            if !wanted.contains(&key.peer) || found.contains(&IpAddr::from(key.peer)) {
                continue;
            }
            match self.0.get(&key, 0) {
                Ok(entry) => {
                    if entry.is_alive(now, key.protocol) && Reason::from_entry(entry.cut).passes() {
                        found.insert(key.peer.into());
                    }
                }
                Err(aya::maps::MapError::KeyNotFound) => {}
                Err(source) => return Err(error(source)),
            }
        }
        Ok(found)
    }
}
