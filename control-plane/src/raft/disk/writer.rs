//! The one thread that writes the log. Whatever waits when it comes round shares one flush (group commit).

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::Receiver,
    },
};

use super::{
    batch::{Done, Write},
    layout::{self, COMMITTED_KEY, PURGED_KEY, VOTE_KEY},
    watermark::{Mark, Watermark},
};
use crate::raft::{DiskError, types::TypeConfig};

/// Bytes of entries that share one flush, at most.
const MAX_GROUP_BYTES: usize = 16 * 1024 * 1024;

/// What the disk was asked to do so far.
#[derive(Debug, Default)]
pub(crate) struct DiskStats {
    /// Log entries appended.
    pub(crate) entries: AtomicU64,
    /// Groups made durable; each costs one data sync of the log and one of the watermark.
    pub(crate) groups: AtomicU64,
    /// Microseconds that the last group took.
    pub(crate) last_group_micros: AtomicU64,
}

/// What the thread owns.
pub(super) struct Writer {
    pub(super) db: sled::Db,
    pub(super) dir: PathBuf,
    /// The database's file. Held open, because a new handle would not learn of an earlier failure.
    pub(super) file: File,
    pub(super) watermark: Watermark,
    pub(super) mark: Mark,
    pub(super) stats: Arc<DiskStats>,
    /// The last entry that is durable; older ones may leave the cache.
    pub(super) durable: Arc<AtomicU64>,
    /// Dropped after the database: see [`super::LogStore::in_use`].
    #[allow(dead_code)]
    pub(super) token: Arc<()>,
}

/// Who waits for a group.
enum Waiter {
    Append(openraft::storage::LogFlushed<TypeConfig>),
    Other(Done),
}

impl Writer {
    /// Works until nobody can ask any more. After a failure nothing is written again: what a failed sync has
    /// left on the disk is unknown, and a later successful one would not tell.
    pub(super) fn run(mut self, requests: &Receiver<Write>) {
        let mut failed: Option<String> = None;
        let mut next = None;
        loop {
            let Some(first) = next.take().or_else(|| requests.recv().ok()) else { return };
            let (group, rest) = gather(first, requests);
            next = rest;
            let started = std::time::Instant::now();
            let (result, waiters) = match &failed {
                Some(reason) => (Err(reason.clone()), group.into_iter().filter_map(waiter).collect()),
                None => self.write(group),
            };
            if !waiters.is_empty() {
                self.stats.groups.fetch_add(1, Ordering::Relaxed);
                let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.stats.last_group_micros.store(micros, Ordering::Relaxed);
            }
            if let Err(reason) = &result
                && failed.is_none()
            {
                tracing::error!(dir = %self.dir.display(), reason, "the log can't be written: this replica stops");
                failed = Some(reason.clone());
            }
            for waiter in waiters {
                match waiter {
                    Waiter::Append(done) => {
                        done.log_io_completed(result.clone().map_err(std::io::Error::other))
                    }
                    Waiter::Other(done) => drop(done.send(result.clone())),
                }
            }
        }
    }

    fn write(&mut self, group: Vec<Write>) -> (Result<(), String>, Vec<Waiter>) {
        let mut waiters = Vec::with_capacity(group.len());
        let mut batch = sled::Batch::default();
        let mut mark = self.mark.clone();
        let mut lowered = false;
        let mut removals = Vec::new();
        for write in group {
            match write {
                Write::Append { entries, last, done } => {
                    self.stats.entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
                    for (index, json) in entries {
                        layout::chunks(index, &json).for_each(|(key, chunk)| batch.insert(&key, chunk));
                    }
                    mark.last = Some(last);
                    waiters.push(Waiter::Append(done));
                }
                Write::Vote { vote, done } => {
                    batch.insert(VOTE_KEY, to_json(&vote));
                    mark.vote = Some(vote);
                    waiters.push(Waiter::Other(done));
                }
                Write::Committed(committed) => batch.insert(COMMITTED_KEY, to_json(&committed)),
                Write::Truncate { since, last, done } => {
                    removals.push(since..=u64::MAX);
                    lowered |= mark.last > last;
                    mark.last = last;
                    waiters.push(Waiter::Other(done));
                }
                Write::Purge { upto, done } => {
                    removals.push(0..=upto.index);
                    batch.insert(PURGED_KEY, to_json(&upto));
                    mark.last = mark.last.max(Some(upto));
                    waiters.push(Waiter::Other(done));
                }
            }
        }
        // sled panics on some I/O errors.
        let result = catch_unwind(AssertUnwindSafe(|| -> Result<(), DiskError> {
            // The watermark may never be ahead of the log: it goes down before the log does, and up after.
            if lowered {
                self.watermark.write(&mark)?;
            }
            let failed =
                |reason: sled::Error| DiskError::Log { file: self.dir.clone(), reason: reason.to_string() };
            for range in removals {
                for key in self.db.range(layout::keys(range)).keys() {
                    batch.remove(key.map_err(failed)?);
                }
            }
            self.db.apply_batch(batch).map_err(failed)?;
            if waiters.is_empty() {
                return Ok(());
            }
            self.db.flush().map_err(failed)?;
            self.file.sync_data().map_err(DiskError::io(self.dir.join("db")))?;
            sync_blobs(&self.dir)?;
            if mark != self.mark {
                self.watermark.write(&mark)?;
            }
            Ok(())
        }));
        let result = match result {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(panic) => Err(format!("{}: {}", self.dir.display(), panic_text(panic.as_ref()))),
        };
        if result.is_ok() {
            self.durable.store(mark.last.map_or(0, |last| last.index), Ordering::Release);
            self.mark = mark;
        }
        (result, waiters)
    }
}

/// Takes what waits. A truncation ends a group, and so begins the next one: entries that it removes and
/// entries that come in their place must not meet in one batch.
fn gather(first: Write, requests: &Receiver<Write>) -> (Vec<Write>, Option<Write>) {
    let size = |write: &Write| match write {
        Write::Append { entries, .. } => entries.iter().map(|(_, json)| json.len()).sum(),
        _ => 0,
    };
    let mut bytes: usize = size(&first);
    let mut alone = matches!(first, Write::Truncate { .. } | Write::Purge { .. });
    let mut group = vec![first];
    while !alone && bytes < MAX_GROUP_BYTES {
        let Ok(next) = requests.try_recv() else { break };
        alone = matches!(next, Write::Truncate { .. } | Write::Purge { .. });
        if alone {
            return (group, Some(next));
        }
        bytes += size(&next);
        group.push(next);
    }
    (group, None)
}

fn waiter(write: Write) -> Option<Waiter> {
    match write {
        Write::Append { done, .. } => Some(Waiter::Append(done)),
        Write::Vote { done, .. } | Write::Truncate { done, .. } | Write::Purge { done, .. } => {
            Some(Waiter::Other(done))
        }
        Write::Committed(_) => None,
    }
}

/// sled's second kind of file: empty unless a page outgrew a segment, which the chunks are there to prevent.
fn sync_blobs(dir: &Path) -> Result<(), DiskError> {
    let blobs = dir.join("blobs");
    let entries = std::fs::read_dir(&blobs).map_err(DiskError::io(&blobs))?;
    for entry in entries {
        let path = entry.map_err(DiskError::io(&blobs))?.path();
        match File::open(&path).and_then(|blob| blob.sync_data()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiskError::io(path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The types here have no value without a JSON form.
fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("log ids and votes are plain numbers")
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}
