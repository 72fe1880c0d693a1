//! The last configuration that was enforced, on disk: a node whose control plane is gone restarts from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use xds_client::{Resource, Update};
use xds_proto::{
    Message,
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource},
};

use super::TYPES;
use crate::persist;

/// Updates that come within this time are written together.
const QUIET: Duration = Duration::from_millis(100);

/// What is remembered of one type: name to resource.
type Held = BTreeMap<String, Resource>;

/// Remembers accepted resources. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    dir: Arc<PathBuf>,
    inner: Arc<Mutex<Inner>>,
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    types: BTreeMap<String, Held>,
    dirty: BTreeSet<String>,
}

impl Cache {
    /// A cache in a directory below the state directory; nothing is read yet.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn new(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("resources");
        persist::private_dir(&dir)?;
        Ok(Self { dir: Arc::new(dir), inner: Arc::default(), changed: Arc::default() })
    }

    /// Reads what an earlier agent wrote, as one update for each type. A damaged file is like none: the control
    /// plane sends everything again.
    pub fn load(&self) -> Vec<Update> {
        TYPES.iter().filter_map(|type_url| self.load_type(type_url)).collect()
    }

    fn load_type(&self, type_url: &str) -> Option<Update> {
        let path = self.path(type_url);
        let response = match persist::read_optional(&path) {
            Ok(None) => return None,
            Ok(Some(bytes)) => DeltaDiscoveryResponse::decode(bytes.as_slice()).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let response = match response {
            Ok(response) if response.type_url == type_url => response,
            Ok(response) => {
                tracing::warn!(path = %path.display(), found = response.type_url, "cached resources are of another type");
                return None;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "cached resources are damaged");
                return None;
            }
        };
        let added = response.resources.into_iter().filter_map(|resource| {
            let (name, version) = (resource.name, resource.version);
            resource.resource.map(|resource| Resource { name, version, resource })
        });
        Some(Update {
            type_url: type_url.to_owned(),
            added: added.collect(),
            removed: Vec::new(),
            nonce: String::new(),
            system_version: response.system_version_info,
        })
    }

    /// Remembers an update that was accepted. It is on disk a moment later.
    pub fn remember(&self, update: &Update) {
        let mut inner = self.lock();
        let held = inner.types.entry(update.type_url.clone()).or_default();
        for resource in &update.added {
            held.insert(resource.name.clone(), resource.clone());
        }
        for name in &update.removed {
            held.remove(name);
        }
        inner.dirty.insert(update.type_url.clone());
        drop(inner);
        self.changed.notify_one();
    }

    /// Type URL, name and version of everything that is remembered.
    pub fn held(&self) -> Vec<(String, String, String)> {
        let inner = self.lock();
        let all = inner.types.iter().flat_map(|(type_url, held)| {
            held.values().map(|resource| (type_url.clone(), resource.name.clone(), resource.version.clone()))
        });
        all.collect()
    }

    /// Writes what changed, for ever. Stop it by dropping the future, and call [`Cache::flush`] once more.
    pub async fn write_for_ever(&self) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(QUIET).await;
            self.flush();
        }
    }

    /// Writes what changed. A disk that can't be written is logged: enforcement does not depend on it.
    pub fn flush(&self) {
        let mut inner = self.lock();
        let dirty = std::mem::take(&mut inner.dirty);
        let encoded: Vec<_> = dirty
            .into_iter()
            .filter_map(|type_url| Some((encode(&type_url, inner.types.get(&type_url)?), type_url)))
            .collect();
        drop(inner);
        for (bytes, type_url) in encoded {
            if let Err(error) = persist::write_private(&self.path(&type_url), &bytes) {
                tracing::error!(%error, type_url, "the configuration cannot be remembered");
            }
        }
    }

    fn path(&self, type_url: &str) -> PathBuf {
        // The types are ours, so their last part is a plain identifier.
        let name = type_url.rsplit('.').next().unwrap_or("unknown");
        self.dir.join(format!("{name}.pb"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(type_url: &str, held: &Held) -> Vec<u8> {
    let resources = held.values().map(|resource| WireResource {
        name: resource.name.clone(),
        version: resource.version.clone(),
        resource: Some(resource.resource.clone()),
        ..Default::default()
    });
    DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        resources: resources.collect(),
        ..Default::default()
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscribe::resources::tests::{local, update};
    use xds_proto::isthmus::agent::v1 as wire;

    #[test]
    fn what_was_accepted_is_there_after_a_restart_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path()).unwrap();
        cache.remember(&update(&[("a/b", local(1)), ("a/c", local(2))], &[]));
        cache.remember(&update::<wire::LocalEndpoint>(&[], &["a/b"]));
        cache.flush();

        let again = Cache::new(dir.path()).unwrap();
        let updates = again.load();
        assert_eq!(updates.len(), 1);
        assert_eq!(updates[0].added.len(), 1);
        assert_eq!(updates[0].added[0].name, "a/c");
        assert_eq!(updates[0].added[0].version, "1");
    }

    #[test]
    fn a_damaged_file_is_like_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path()).unwrap();
        std::fs::write(dir.path().join("resources/LocalEndpoint.pb"), b"\xff\xff").unwrap();
        assert!(cache.load().is_empty());
    }
}
