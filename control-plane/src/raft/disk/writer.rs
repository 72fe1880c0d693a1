//! The one thread that writes the log. Whatever waits when it comes round shares one write and one sync of the
//! journal (group commit); then it is acknowledged. It goes to the database later, with all that came meanwhile:
//! sled writes its file at every batch, and would compete with the journal for the disk.
//!
//! What if power is cut? Acknowledged groups are in the journal, synced, each in blocks of its own, so that no
//! later write touches them; what the database lacks is done again from there. The database itself is synced every
//! half second ([`Options`]), before the journal begins again at its start. The watermark is synced with it:
//! were a disk to lose a group that it had said was durable, within half a second of a power cut, the log would
//! end a group early and the watermark might not tell. Every other loss it tells: that of a process at once, any
//! damage to files at rest always.

use std::{
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use super::{
    batch::{Committed, Done, Write},
    journal::{Journal, Room},
    ops::{self, Op, Single},
    recover, room,
    watermark::{Mark, Watermark},
};
use crate::raft::{DiskError, types::TypeConfig};

/// Bytes of entries that share one group, unless a single append has more.
const MAX_GROUP_BYTES: usize = 4 * 1024 * 1024;

/// What the disk was asked to do so far.
#[derive(Debug, Default)]
pub(crate) struct DiskStats {
    /// Log entries appended.
    pub(crate) entries: AtomicU64,
    /// Groups made durable.
    pub(crate) groups: AtomicU64,
    /// Data syncs that an acknowledgement waited for.
    pub(crate) waited_syncs: AtomicU64,
    /// Data syncs that nobody waited for: of the database and the watermark, behind the journal.
    pub(crate) idle_syncs: AtomicU64,
    /// Bytes of log entries, as JSON.
    pub(crate) bytes: AtomicU64,
    /// Microseconds that the last group took until it was acknowledged, and all of them together.
    pub(crate) last_group_micros: AtomicU64,
    pub(crate) group_micros: AtomicU64,
}

/// How the disk is used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Of the journal, when it is made.
    pub(crate) journal_bytes: u64,
    /// How long database and watermark may stay behind the journal while there is work,
    pub(crate) tidy_every: Duration,
    /// and while there is none.
    pub(crate) tidy_when_idle: Duration,
}

/// The journal has room for two of the largest commands, or for half a second of small ones.
impl Default for Options {
    fn default() -> Self {
        Self {
            journal_bytes: 16 * 1024 * 1024,
            tidy_every: Duration::from_millis(500),
            tidy_when_idle: Duration::from_millis(50),
        }
    }
}

/// What the thread owns.
pub(super) struct Writer {
    pub(super) options: Options,
    pub(super) db: sled::Db,
    pub(super) dir: PathBuf,
    /// The database's file. Held open, because a new handle would not learn of an earlier failure.
    pub(super) file: File,
    pub(super) journal: Journal,
    /// Of the last journal record.
    pub(super) sequence: u64,
    pub(super) watermark: Watermark,
    pub(super) mark: Mark,
    /// What the database lacks yet: not much more than fits the journal.
    pub(super) pending: Vec<Op>,
    /// Something is in the journal that is not synced elsewhere.
    pub(super) untidy: bool,
    pub(super) committed: Arc<Committed>,
    pub(super) stats: Arc<DiskStats>,
    /// The last entry that is in the database; older ones may leave the cache.
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

/// What a group comes to.
struct Group {
    ops: Vec<Op>,
    mark: Mark,
    /// The log ends earlier than before.
    lowered: bool,
    entries: u64,
    waiters: Vec<Waiter>,
}

impl Writer {
    /// Works until nobody can ask any more. After a failure nothing is written again: what a failed sync has
    /// left on the disk is unknown, and a later successful one would not tell.
    pub(super) fn run(mut self, requests: &Receiver<Write>) {
        let mut failed: Option<String> = None;
        let mut next = None;
        let mut tidied = Instant::now();
        loop {
            let first = match next.take() {
                Some(first) => first,
                None if self.untidy && failed.is_none() => {
                    match requests.recv_timeout(self.options.tidy_when_idle) {
                        Ok(first) => first,
                        Err(RecvTimeoutError::Timeout) => {
                            self.attempt(&mut failed, Self::tidy);
                            tidied = Instant::now();
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => break,
                    }
                }
                None => match requests.recv() {
                    Ok(first) => first,
                    Err(_) => break,
                },
            };
            let (writes, rest) = gather(first, requests);
            next = rest;
            let mut group = self.plan(writes);
            let waiters = std::mem::take(&mut group.waiters);
            if failed.is_none() {
                let started = Instant::now();
                let bytes = group.entry_bytes();
                self.attempt(&mut failed, |writer| writer.make_durable(&mut group));
                self.count(group.entries, bytes, started.elapsed());
            }
            if failed.is_none() {
                self.mark = group.mark;
                self.pending.append(&mut group.ops);
            }
            if failed.is_none() && group.lowered {
                // Nobody may take an entry that was replaced for one that is in the database.
                self.attempt(&mut failed, Self::drain);
            }
            let result = failed.clone().map_or(Ok(()), Err);
            for waiter in waiters {
                match waiter {
                    Waiter::Append(done) => {
                        done.log_io_completed(result.clone().map_err(std::io::Error::other))
                    }
                    Waiter::Other(done) => drop(done.send(result.clone())),
                }
            }
            if failed.is_none() && self.untidy && tidied.elapsed() >= self.options.tidy_every {
                self.attempt(&mut failed, Self::tidy);
                tidied = Instant::now();
            }
        }
        if failed.is_none() && (self.untidy || !self.pending.is_empty()) {
            self.attempt(&mut failed, Self::tidy);
        }
    }

    /// sled panics on some I/O errors.
    fn attempt(
        &mut self,
        failed: &mut Option<String>,
        work: impl FnOnce(&mut Self) -> Result<(), DiskError>,
    ) {
        let reason = match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("{}: {}", self.dir.display(), panic_text(panic.as_ref())),
        };
        tracing::error!(dir = %self.dir.display(), reason, "the log can't be written: this replica stops");
        *failed = Some(reason);
    }

    fn plan(&self, writes: Vec<Write>) -> Group {
        let mark = self.mark.clone();
        let mut group = Group { ops: Vec::new(), mark, lowered: false, entries: 0, waiters: Vec::new() };
        for write in writes {
            match write {
                Write::Append { entries, last, done } => {
                    group.entries += entries.len() as u64;
                    group.ops.extend(entries.into_iter().map(|(index, json)| Op::Put { index, json }));
                    group.mark.last = Some(last);
                    group.waiters.push(Waiter::Append(done));
                }
                Write::Vote { vote, done } => {
                    group.ops.push(Op::Set { key: Single::Vote, json: to_json(&vote) });
                    group.mark.vote = Some(vote);
                    group.waiters.push(Waiter::Other(done));
                }
                Write::Truncate { since, last, done } => {
                    group.ops.push(Op::Remove { from: since, to: u64::MAX });
                    group.lowered |= group.mark.last > last;
                    group.mark.last = last;
                    group.waiters.push(Waiter::Other(done));
                }
                Write::Purge { upto, done } => {
                    group.ops.push(Op::Remove { from: 0, to: upto.index });
                    group.ops.push(Op::Set { key: Single::Purged, json: to_json(&upto) });
                    group.mark.last = group.mark.last.max(Some(upto));
                    group.waiters.push(Waiter::Other(done));
                }
            }
        }
        group.ops.extend(self.newly_committed());
        group
    }

    fn newly_committed(&self) -> Option<Op> {
        let committed = self.committed.take()?;
        Some(Op::Set { key: Single::Committed, json: to_json(&Some(committed)) })
    }

    /// Everything that must be on the disk before anybody is told so.
    fn make_durable(&mut self, group: &mut Group) -> Result<(), DiskError> {
        // The watermark may never be ahead of the log: it goes down before the log does, and up after.
        if group.lowered {
            self.watermark.write(&group.mark)?;
            self.stats.waited_syncs.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = ops::encode(&group.ops);
        let sequence = self.sequence + 1;
        match self.journal.has_room(bytes.len()) {
            Room::Here => self.journal.append(sequence, &bytes)?,
            Room::AtStart => {
                self.sync_store()?;
                self.journal.append(sequence, &bytes)?;
            }
            // Larger than the whole journal: the database must do by itself.
            Room::Nowhere => {
                self.sequence = sequence;
                self.pending.append(&mut group.ops);
                self.sync_store()?;
            }
        }
        self.stats.waited_syncs.fetch_add(1, Ordering::Relaxed);
        self.sequence = sequence;
        self.untidy = true;
        if group.mark != self.mark {
            self.watermark.note(&group.mark)?;
        }
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), DiskError> {
        self.pending.extend(self.newly_committed());
        self.sync_store()?;
        self.watermark.write(&self.mark)?;
        self.stats.idle_syncs.fetch_add(2, Ordering::Relaxed);
        self.untidy = false;
        Ok(())
    }

    /// Brings the database up to what was acknowledged.
    fn drain(&mut self) -> Result<(), DiskError> {
        room::for_writing(&self.dir, self.options)?;
        ops::apply(&self.db, &self.pending, Some(self.sequence)).map_err(|error| self.failed(error))?;
        self.pending.clear();
        self.durable.store(self.mark.last.map_or(0, |last| last.index), Ordering::Release);
        Ok(())
    }

    /// Brings the database up to what was acknowledged and makes that durable, after which the journal begins again.
    fn sync_store(&mut self) -> Result<(), DiskError> {
        self.drain()?;
        self.db.flush().map_err(|error| self.failed(error))?;
        self.file.sync_data().map_err(DiskError::io(self.dir.join("db")))?;
        sync_blobs(&self.dir)?;
        self.journal.restart();
        Ok(())
    }

    fn failed(&self, error: sled::Error) -> DiskError {
        recover::store_error(&self.dir, error)
    }

    fn count(&self, entries: u64, bytes: u64, took: Duration) {
        let stats = &self.stats;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        stats.entries.fetch_add(entries, Ordering::Relaxed);
        stats.groups.fetch_add(1, Ordering::Relaxed);
        stats.bytes.fetch_add(bytes, Ordering::Relaxed);
        stats.last_group_micros.store(micros, Ordering::Relaxed);
        stats.group_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Group {
    /// Of its log entries, as JSON.
    fn entry_bytes(&self) -> u64 {
        let bytes = |op: &Op| if let Op::Put { json, .. } = op { json.len() as u64 } else { 0 };
        self.ops.iter().map(bytes).sum()
    }
}

/// Takes what waits. A truncation is a group of its own, after which the database is brought up at once.
fn gather(first: Write, requests: &Receiver<Write>) -> (Vec<Write>, Option<Write>) {
    let size = |write: &Write| match write {
        Write::Append { entries, .. } => entries.iter().map(|(_, json)| json.len()).sum(),
        _ => 0,
    };
    let alone = |write: &Write| matches!(write, Write::Truncate { .. } | Write::Purge { .. });
    let mut bytes: usize = size(&first);
    if alone(&first) {
        return (vec![first], None);
    }
    let mut group = vec![first];
    while bytes < MAX_GROUP_BYTES {
        let Ok(next) = requests.try_recv() else { break };
        if alone(&next) {
            return (group, Some(next));
        }
        bytes += size(&next);
        group.push(next);
    }
    (group, None)
}

/// sled's second kind of file: empty unless a page outgrew a segment, which the chunks are there to prevent.
pub(super) fn sync_blobs(dir: &Path) -> Result<(), DiskError> {
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
