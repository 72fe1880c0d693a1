//! What the maps hold that the agent writes: by an agent's handles, or by the pins of one that need not run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use aya::Pod;
use aya::maps::{HashMap, LpmTrie, Map, MapData};
use ebpf_shared::{Endpoint, Proxy, ServiceKey, limits};
use ipnet::IpNet;

use super::classes::{classes_of, rulesets_of};
use super::identities::{Cidr, identities_of, lingering_of};
use super::mapped::Mapped;
use super::pins::Pins;
use super::rules::ClassEntry;
use super::ruleset::{RulePrefix, RuleSet};
use super::services::{Astray, ServicesSeen, Source};
use super::sidecars::{Port, sidecars_of};
use super::table::Prefix;
use super::{HashTable, Kernel, KernelError, TrieTable, dump, sys};
use crate::desired::ServiceEntry;

/// The contents of the maps, as the kernel has them.
pub struct Held {
    pub identities: BTreeMap<IpNet, u32>,
    pub lingering: BTreeMap<IpAddr, u32>,
    pub rulesets: BTreeMap<u32, Arc<RuleSet>>,
    pub classes: BTreeMap<u32, ClassEntry>,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub services: BTreeMap<ServiceKey, ServiceEntry>,
    pub proxies: BTreeMap<u32, Proxy>,
    pub sidecars: BTreeMap<u64, BTreeSet<Port>>,
}

impl Kernel {
    /// All of it.
    pub fn held(&self) -> Result<Held, KernelError> {
        Ok(Held {
            identities: self.identities.dump()?,
            lingering: self.identities.dump_lingering()?,
            rulesets: self.rulesets()?,
            classes: self.policy_classes()?,
            endpoints: self.endpoints.dump()?,
            services: self.services.entries(),
            proxies: self.proxies.dump()?,
            sidecars: self.sidecars()?,
        })
    }
}

/// Reads it without an agent, and changes nothing.
///
/// # Errors
/// No agent has pinned maps there, or another release has.
pub fn look(bpffs_dir: &Path) -> Result<Held, KernelError> {
    let pins = Pins::at(bpffs_dir);
    Ok(Held {
        identities: identities_of(hash(&pins, "HOSTS")?, trie::<Cidr, _>(&pins, "CIDRS")?),
        lingering: lingering_of(hash(&pins, "LINGERING")?),
        rulesets: rulesets_of(trie::<RulePrefix, _>(&pins, "RULES")?),
        classes: classes_of(hash(&pins, "CLASSES")?, hash(&pins, "PEERS")?),
        endpoints: hash(&pins, "ENDPOINTS")?,
        services: services(&pins)?.entries(),
        proxies: hash(&pins, "PROXIES")?,
        sidecars: sidecars_of(hash(&pins, "NETNS")?, hash(&pins, "CAPTURED")?),
    })
}

/// What is wrong with one of the arrays that services have in common.
pub(crate) struct Strayed {
    pub(crate) map: &'static str,
    /// Slots or words that services need.
    pub(crate) entries: usize,
    pub(crate) astray: Vec<Astray>,
}

/// Compares `MAGLEV` and `SERVED` with what the services in the kernel need of them.
pub(crate) fn strayed(bpffs_dir: &Path) -> Result<[Strayed; 2], KernelError> {
    let pins = Pins::at(bpffs_dir);
    let services = services(&pins)?;
    let size = 2 * dump::capacity(bpffs_dir, "MAGLEV")?;
    let slots = services.slots(&Mapped::look("MAGLEV", &pins.map("MAGLEV"), size)?)?;
    let words = services.words(&Mapped::look("SERVED", &pins.map("SERVED"), limits::SERVED_BITS / 32)?)?;
    Ok([("MAGLEV", slots), ("SERVED", words)].map(|(map, (entries, astray))| Strayed {
        map,
        entries,
        astray,
    }))
}

pub(super) fn services(pins: &Pins) -> Result<ServicesSeen, KernelError> {
    let (backends, sources) = (hash(pins, "BACKENDS")?, trie::<Source, _>(pins, "SOURCES")?);
    Ok(ServicesSeen::new(hash(pins, "SERVICES")?, &backends, &sources))
}

fn open(pins: &Pins, name: &'static str) -> Result<MapData, KernelError> {
    let path = pins.map(name);
    let fd = sys::open_read_only(&path).map_err(|source| KernelError::path("pinned map", &path, source))?;
    MapData::from_fd(fd).map_err(|source| KernelError::Map { name, source })
}

fn hash<K: Pod + Ord, V: Pod>(pins: &Pins, name: &'static str) -> Result<BTreeMap<K, V>, KernelError> {
    let map: Result<HashMap<MapData, K, V>, _> = Map::HashMap(open(pins, name)?).try_into();
    HashTable::new(name, map.map_err(|source| KernelError::Map { name, source })?).dump()
}

fn trie<P: Prefix, V: Pod>(pins: &Pins, name: &'static str) -> Result<BTreeMap<P, V>, KernelError> {
    let map: Result<LpmTrie<MapData, P::Data, V>, _> = Map::LpmTrie(open(pins, name)?).try_into();
    TrieTable::new(name, map.map_err(|source| KernelError::Map { name, source })?).dump()
}
