//! Who an address is, read from the pinned maps by another process than the agent.

use std::net::IpAddr;
use std::path::Path;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError};
use ebpf_shared::{Addr, identity};

use super::KernelError;
use super::pins::Pins;

/// The identities of addresses, as the programs see them. It follows what the agent writes, as long as the agent
/// uses these maps.
pub struct IdentitySight {
    hosts: HashMap<MapData, Addr, u32>,
    cidrs: LpmTrie<MapData, Addr, u32>,
}

impl IdentitySight {
    /// Opens the maps below a bpffs directory.
    ///
    /// # Errors
    /// No agent has made them yet.
    pub fn open(bpffs_dir: &Path) -> Result<Self, KernelError> {
        let pins = Pins::at(bpffs_dir);
        let open = |name: &'static str, kind: fn(MapData) -> Map| {
            let error = move |source| KernelError::Map { name, source };
            MapData::from_pin(pins.map(name)).map(kind).map_err(error)
        };
        let (hosts, cidrs) = (open("HOSTS", Map::HashMap)?, open("CIDRS", Map::LpmTrie)?);
        let error = |name| move |source| KernelError::Map { name, source };
        Ok(Self {
            hosts: hosts.try_into().map_err(error("HOSTS"))?,
            cidrs: cidrs.try_into().map_err(error("CIDRS"))?,
        })
    }

    /// The identity behind an address; [`identity::WORLD`] if there is no entry.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn identity(&self, address: IpAddr) -> Result<u32, KernelError> {
        if let Some(known) = self.host(address)? {
            return Ok(known);
        }
        let key = Key::new(Addr::BITS, address.into());
        match self.cidrs.get(&key, 0) {
            Ok(identity::ANY) | Err(MapError::KeyNotFound) => Ok(identity::WORLD),
            Ok(known) => Ok(known),
            Err(source) => Err(KernelError::Map { name: "CIDRS", source }),
        }
    }

    /// That of an entry for just this address.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn host(&self, address: IpAddr) -> Result<Option<u32>, KernelError> {
        match self.hosts.get(&address.into(), 0) {
            Ok(known) => Ok(Some(known)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(KernelError::Map { name: "HOSTS", source }),
        }
    }
}
