//! The last configuration that was enforced, on disk: a node whose control plane is gone restarts from it.
//!
//! A log for each type ([`log`]): an update costs what it says, not what the type holds, and nothing of it stays in
//! memory. Logs are not synced. Whatever a crash of the node cuts off, the control plane sends again, since the agent
//! names the versions that it has.

mod log;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use xds_client::Update;

use self::log::Log;
use super::TYPES;
use crate::persist;

/// Updates that come within this time are written together.
const QUIET: Duration = Duration::from_millis(100);

/// Remembers accepted resources. Cheap to clone.
#[derive(Clone)]
pub struct Cache {
    dir: Arc<PathBuf>,
    /// Told, and not on disk yet: frames for each type.
    pending: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Taken by whoever writes.
    logs: Arc<Mutex<BTreeMap<String, Log>>>,
    changed: Arc<Notify>,
}

impl Cache {
    /// A cache in a directory below the state directory; nothing is read yet.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn new(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("resources");
        persist::private_dir(&dir)?;
        Ok(Self {
            dir: Arc::new(dir),
            pending: Arc::default(),
            logs: Arc::default(),
            changed: Arc::default(),
        })
    }

    /// Reads what an earlier agent wrote, as one update for each type, and writes nothing. What is damaged ends a log:
    /// the control plane sends the rest again.
    pub fn load(&self) -> Vec<Update> {
        TYPES.iter().filter_map(|type_url| self.load_type(type_url)).collect()
    }

    /// The services among it.
    pub fn services(&self) -> Option<Update> {
        self.load_type(&xds_proto::type_url::<xds_proto::isthmus::agent::v1::Service>())
    }

    fn load_type(&self, type_url: &str) -> Option<Update> {
        let path = self.path(type_url);
        let held = match log::read(&path, type_url) {
            Ok(held) => held,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "cached resources are not used");
                return None;
            }
        };
        (!held.is_empty()).then(|| Update {
            type_url: type_url.to_owned(),
            added: held.into_values().collect(),
            removed: Vec::new(),
            nonce: String::new(),
            system_version: String::new(),
        })
    }

    /// Has `take` take what an earlier agent wrote. What it refuses is dropped. Returns type URL, name and version of
    /// the rest.
    ///
    /// # Errors
    /// What was refused can't be dropped.
    pub fn adopt(
        &self,
        mut take: impl FnMut(&Update) -> Result<(), String>,
    ) -> io::Result<Vec<(String, String, String)>> {
        let mut held = Vec::new();
        for update in self.load() {
            let type_url = &update.type_url;
            if let Err(reason) = take(&update) {
                tracing::warn!(reason, type_url, "cached resources are not used");
                self.forget(type_url)?;
                continue;
            }
            let added = update.added.into_iter();
            held.extend(added.map(|resource| (type_url.clone(), resource.name, resource.version)));
        }
        Ok(held)
    }

    /// Drops what an earlier agent wrote of a type.
    ///
    /// # Errors
    /// The file is there and can't be removed.
    fn forget(&self, type_url: &str) -> io::Result<()> {
        self.logs().remove(type_url);
        persist::remove(&self.path(type_url))
    }

    /// Remembers an update that was accepted. It is on disk a moment later.
    pub fn remember(&self, update: &Update) {
        let mut pending = self.pending();
        let frames = pending.entry(update.type_url.clone()).or_default();
        for resource in &update.added {
            log::push(frames, log::held(resource));
        }
        for name in &update.removed {
            log::push(frames, log::gone(name));
        }
        drop(pending);
        self.changed.notify_one();
    }

    /// Writes what changed, for ever. Stop it by dropping the future, and call [`Cache::flush`] once more.
    pub async fn write_for_ever(&self) {
        loop {
            self.changed.notified().await;
            tokio::time::sleep(QUIET).await;
            let cache = self.clone();
            // (It fails only if it panicked, which has been told then.)
            let _ = tokio::task::spawn_blocking(move || cache.flush()).await;
        }
    }

    /// Writes what changed. A disk that can't be written is logged: enforcement does not depend on it.
    pub fn flush(&self) {
        // In this order: what was told first is written first, whoever writes it.
        let mut logs = self.logs();
        let pending = std::mem::take(&mut *self.pending());
        for (type_url, frames) in pending {
            if let Err(error) = self.append(&mut logs, &type_url, &frames) {
                tracing::error!(%error, type_url, "the configuration cannot be remembered");
                // It is opened anew then, without half a frame. That it lacks an update does no harm: by the versions
                // that the agent names, the control plane sees which resources are old or gone.
                logs.remove(&type_url);
            }
        }
    }

    fn append(&self, logs: &mut BTreeMap<String, Log>, type_url: &str, frames: &[u8]) -> io::Result<()> {
        let log = match logs.remove(type_url) {
            Some(log) => log,
            None => Log::open(&self.path(type_url), type_url)?,
        };
        logs.entry(type_url.to_owned()).or_insert(log).append(frames)
    }

    fn path(&self, type_url: &str) -> PathBuf {
        // The types are ours, so their last part is a plain identifier.
        let name = type_url.rsplit('.').next().unwrap_or("unknown");
        self.dir.join(format!("{name}.log"))
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logs(&self) -> MutexGuard<'_, BTreeMap<String, Log>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscribe::resources::tests::{local, update};
    use xds_proto::isthmus::agent::v1 as wire;

    /// Name and version of every local endpoint that a new agent reads.
    fn read(state_dir: &Path) -> Vec<(String, String)> {
        let updates = Cache::new(state_dir).unwrap().load();
        let added = updates.into_iter().flat_map(|update| update.added);
        added.map(|resource| (resource.name, resource.version)).collect()
    }

    fn pairs(names: &[&str]) -> Vec<(String, String)> {
        names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect()
    }

    #[test]
    fn what_was_accepted_is_there_after_a_restart_and_what_was_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path()).unwrap();
        cache.remember(&update(&[("a/b", local(1)), ("a/c", local(2))], &[]));
        cache.flush();
        cache.remember(&update::<wire::LocalEndpoint>(&[], &["a/b"]));
        cache.remember(&update(&[("a/d", local(3))], &[]));
        cache.flush();
        assert_eq!(read(dir.path()), pairs(&["a/c", "a/d"]));

        // A new agent goes on where that one ended.
        let again = Cache::new(dir.path()).unwrap();
        again.remember(&update::<wire::LocalEndpoint>(&[], &["a/c"]));
        again.flush();
        assert_eq!(read(dir.path()), pairs(&["a/d"]));
    }

    #[test]
    fn wherever_a_log_was_cut_what_is_before_it_is_there_and_what_follows_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path()).unwrap();
        cache.remember(&update(&[("a/b", local(1))], &[]));
        cache.flush();
        let path = dir.path().join("resources/LocalEndpoint.log");
        let whole = std::fs::metadata(&path).unwrap().len();
        cache.remember(&update(&[("a/c", local(2))], &[]));
        cache.flush();
        let bytes = std::fs::read(&path).unwrap();
        for length in usize::try_from(whole).unwrap()..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(read(dir.path()), pairs(&["a/b"]), "cut at {length}");
            let again = Cache::new(dir.path()).unwrap();
            again.remember(&update(&[("a/d", local(3))], &[]));
            again.flush();
            assert_eq!(read(dir.path()), pairs(&["a/b", "a/d"]), "cut at {length}");
        }
    }

    #[test]
    fn a_damaged_file_is_like_none_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path()).unwrap();
        std::fs::write(dir.path().join("resources/LocalEndpoint.log"), b"\xff\xff").unwrap();
        assert!(cache.load().is_empty());
        cache.remember(&update(&[("a/b", local(1))], &[]));
        cache.flush();
        assert_eq!(read(dir.path()), pairs(&["a/b"]));
    }

    #[test]
    fn what_is_refused_is_dropped_and_the_rest_is_named_as_held() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path()).unwrap();
        let first = update(&[("a/b", local(1))], &[]);
        cache.remember(&first);
        cache.flush();

        let again = Cache::new(dir.path()).unwrap();
        let held = again.adopt(|_| Ok(())).unwrap();
        assert_eq!(held, [(first.type_url.clone(), "a/b".to_owned(), "1".to_owned())]);
        let again = Cache::new(dir.path()).unwrap();
        assert!(again.adopt(|_| Err("no".to_owned())).unwrap().is_empty());
        assert!(read(dir.path()).is_empty());
        let cache = again;
        cache.remember(&update(&[("a/c", local(2))], &[]));
        cache.flush();
        assert_eq!(read(dir.path()), pairs(&["a/c"]));
    }
}
