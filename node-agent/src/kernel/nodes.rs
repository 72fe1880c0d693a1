//! Which node has which pods: `NODES`, and the tunnel's device.

use std::collections::BTreeMap;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{MapData, MapError};
use ebpf_shared::overlay::Hop;
use ebpf_shared::{Addr, limits};
use ipnet::IpNet;

use super::KernelError;

/// Ranges of pods and addresses of nodes.
pub struct Nodes {
    map: LpmTrie<MapData, Addr, Hop>,
}

impl Nodes {
    pub(super) fn new(map: LpmTrie<MapData, Addr, Hop>) -> Self {
        Self { map }
    }

    /// Everything in the map.
    ///
    /// # Errors
    /// It can't be read.
    pub fn dump(&self) -> Result<BTreeMap<IpNet, Hop>, KernelError> {
        let mut all = BTreeMap::new();
        // The kernel begins again at the first key where the last one has been removed.
        for entry in self.map.iter().take(2 * limits::NODES as usize) {
            let (key, hop) = entry.map_err(error)?;
            let bits = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
            let addr = key.data();
            let v4 = addr.is_v4() && u32::from(bits) >= Addr::V4_BITS;
            let length = if v4 { bits - Addr::V4_BITS as u8 } else { bits };
            if let Ok(net) = IpNet::new(addr.into(), length) {
                all.insert(net, hop);
            }
        }
        Ok(all)
    }

    /// Makes the map hold these and nothing else: what is new first, and what found no room once more when the rest is gone.
    ///
    /// # Errors
    /// The kernel refused: all that it did not refuse is written.
    pub fn set(&mut self, wanted: &BTreeMap<IpNet, Hop>) -> Result<(), KernelError> {
        let held = self.dump()?;
        let mut new: Vec<_> = wanted.iter().filter(|(net, hop)| held.get(net) != Some(hop)).collect();
        new.retain(|(net, hop)| self.map.insert(&key(net), *hop, 0).is_err());
        for net in held.keys().filter(|net| !wanted.contains_key(net)) {
            match self.map.remove(&key(net)) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(error(source)),
            }
        }
        let again = new.into_iter().map(|(net, hop)| self.map.insert(&key(net), hop, 0).map_err(error));
        again.fold(Ok(()), Result::and)
    }
}

fn key(net: &IpNet) -> Key<Addr> {
    let before = if net.addr().is_ipv4() { Addr::V4_BITS } else { 0 };
    Key::new(before + u32::from(net.prefix_len()), net.network().into())
}

fn error(source: MapError) -> KernelError {
    KernelError::Map { name: "NODES", source }
}
