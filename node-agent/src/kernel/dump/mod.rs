//! What the maps hold, for people: by their pins, read-only, with an agent or without.
//!
//! Arrays without entries of their own are left out (`MAGLEV`, `SERVED`): what they say is said of services.
//!
//! A further map is a line in [`all`] and a function in `shown` that names the fields of its key and value.

mod read;
mod shown;

use std::path::Path;

use aya::maps::MapData;
use serde_json::{Map, Value};

pub(crate) use self::shown::{
    captured, cidr, class, config, control, endpoint, guarded, host, netns, node, peer, proxy, rule,
};
use super::{KernelError, pins::Pins, sys};

/// Names and values, in the order in which they are shown.
pub type Fields = Vec<(&'static str, Value)>;

/// One entry of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Fields,
    pub value: Fields,
}

impl Entry {
    /// As JSON: `{"key": {…}, "value": {…}}`.
    pub fn json(&self) -> Value {
        let object = |fields: &Fields| {
            Value::Object(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
        };
        Value::Object(Map::from_iter([
            ("key".to_owned(), object(&self.key)),
            ("value".to_owned(), object(&self.value)),
        ]))
    }

    /// The key in a few words.
    pub fn key_text(&self) -> String {
        text(&self.key)
    }

    /// The value in a few words.
    pub fn value_text(&self) -> String {
        text(&self.value)
    }
}

fn text(fields: &Fields) -> String {
    fields.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect::<Vec<_>>().join(", ")
}

/// Without the quotation marks of JSON.
pub fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// How a map is read.
pub trait Dump: Send + Sync {
    /// Of its pin.
    fn name(&self) -> &'static str;

    /// Everything in it. Entries that are written meanwhile may or may not be there.
    ///
    /// # Errors
    /// It can't be read, or its keys or values are of another size: another release has made it.
    fn entries(&self, map: MapData) -> Result<Vec<Entry>, KernelError>;
}

/// Every map that can be shown.
pub fn all() -> Vec<Box<dyn Dump>> {
    use read::{array, hash, per_cpu, trie};
    vec![
        array("FORMAT", shown::format),
        hash("HOSTS", shown::host),
        hash("LINGERING", shown::host),
        trie("CIDRS", shown::cidr),
        hash("ENDPOINTS", shown::endpoint),
        hash("CLASSES", shown::class),
        hash("PEERS", shown::peer),
        trie("RULES", shown::rule),
        hash("CONNTRACK", shown::connection),
        hash("SERVICES", shown::service),
        hash("BACKENDS", shown::backend),
        trie("SOURCES", shown::source),
        hash("ANSWERERS", shown::answerer),
        hash("AFFINITY", shown::affinity),
        hash("REVERSE", shown::reverse),
        hash("NETNS", shown::netns),
        hash("CAPTURED", shown::captured),
        hash("PROXIES", shown::proxy),
        trie("NODES", shown::node),
        hash("LOCALS", shown::local),
        hash("CONTROL", shown::control),
        array("GUARDED", shown::guarded),
        array("CONFIG", shown::config),
        hash("NAT", shown::translation),
        per_cpu("METRICS", shown::metric),
        per_cpu("SUPPRESSED", shown::metric),
        per_cpu("LOST", shown::lost),
    ]
}

/// The entries of a map below an agent's directory of pins, in the order of their keys' text.
///
/// # Errors
/// There is no such map, or it can't be read.
pub fn dump(bpffs_dir: &Path, how: &dyn Dump) -> Result<Vec<Entry>, KernelError> {
    let path = Pins::at(bpffs_dir).map(how.name());
    let fd = sys::open_read_only(&path).map_err(|source| KernelError::path("pinned map", &path, source))?;
    let map = MapData::from_fd(fd).map_err(|source| KernelError::Map { name: how.name(), source })?;
    let mut entries = how.entries(map)?;
    entries.sort_by_cached_key(Entry::key_text);
    Ok(entries)
}

/// The most entries that a map takes, as the kernel has it.
///
/// # Errors
/// There is no such map.
pub fn capacity(bpffs_dir: &Path, name: &'static str) -> Result<u32, KernelError> {
    let path = Pins::at(bpffs_dir).map(name);
    let fd = sys::open_read_only(&path).map_err(|source| KernelError::path("pinned map", &path, source))?;
    let map = MapData::from_fd(fd).map_err(|source| KernelError::Map { name, source })?;
    let info = map.info().map_err(|source| KernelError::Map { name, source })?;
    Ok(info.max_entries())
}
