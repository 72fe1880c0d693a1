//! openraft's log storage on sled.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    ops::{Bound, RangeBounds},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    batch::{Committed, Done, Write},
    journal::Journal,
    layout, recover, room,
    snapshots::Snapshots,
    watermark::{Mark, Watermark},
    writer::{DiskStats, Options, Writer, panic_text},
};
use crate::raft::{
    DiskError,
    blocking::blocking,
    config::MAX_APPEND_BYTES,
    types::{Entry, LogId, StorageError, StorageIOError, TypeConfig, Vote, any_error, are_long},
};

/// Entries that are kept in memory once they are durable. Followers and the state machine want the newest ones.
const MAX_CACHED_ENTRIES: usize = 4_096;
/// Their bytes of JSON.
const MAX_CACHED_BYTES: usize = 32 * 1024 * 1024;

/// The log of one replica.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Write>,
    /// Entries are removed once a snapshot has them. None: whoever asks for it has seen to that.
    snapshots: Option<Snapshots>,
}

#[derive(Debug)]
struct Shared {
    db: sled::Db,
    dir: PathBuf,
    log: Mutex<Log>,
    durable: Arc<AtomicU64>,
    committed: Arc<Committed>,
    stats: Arc<DiskStats>,
    token: Arc<()>,
}

/// What is known of the log without reading it.
#[derive(Debug)]
struct Log {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// The newest entries with the size of their JSON.
    cache: BTreeMap<u64, (Entry, usize)>,
    cached_bytes: usize,
}

impl LogStore {
    /// Opens the log in a replica's folder and starts its writer thread.
    pub(crate) fn open(folder: &Path, options: Options) -> Result<Self, DiskError> {
        let (dir, path, journal_path) =
            (folder.join("log"), folder.join("watermark"), folder.join("journal"));
        room::for_start(folder, options, journal_path.exists())?;
        let watermark = Watermark::open(&path)?;
        let journal = Journal::open(&journal_path)?;
        let db = recover::open(&dir)?;
        let (journal, records) =
            journal.map_or((None, Vec::new()), |(journal, records)| (Some(journal), records));
        let sequence = recover::replay(&dir, &journal_path, &db, &records)?;
        let recovered = recover::read_all(&dir, &db)?;
        if journal.is_none() && recovered.format.is_some_and(|format| format > 1) {
            return Err(DiskError::JournalMissing { file: journal_path, log: dir });
        }
        let (watermark, mark) = match watermark {
            Some((watermark, mark)) => {
                // If the database is short of what the journal begins with, it was named above.
                let short = if journal.is_some() { &journal_path } else { &dir };
                recovered.check(short, &path, &mark)?;
                (watermark, mark)
            }
            None if recovered.is_empty() => (Watermark::create(&path)?, Mark::default()),
            None => return Err(DiskError::WatermarkMissing { file: path, log: dir }),
        };
        let journal = match journal {
            Some(journal) => journal,
            None => Journal::create(&journal_path, options.journal_bytes)?,
        };
        super::sync_dir(folder)?;
        if recovered.format != Some(layout::FORMAT) {
            recover::mark_format(&dir, &db)?;
        }
        super::sync_dir(&dir)?;
        let file = dir.join("db");
        let file = std::fs::File::open(&file).map_err(DiskError::io(file))?;
        // From here on the journal begins anew, so what was in it must be safe in the database.
        file.sync_data().map_err(DiskError::io(dir.join("db")))?;
        super::writer::sync_blobs(&dir)?;
        let last = recovered.last();
        let durable = Arc::new(AtomicU64::new(last.map_or(0, |last| last.index)));
        let (stats, committed) = (Arc::new(DiskStats::default()), Arc::new(Committed::default()));
        let token = Arc::new(());
        let writer = Writer {
            options,
            db: db.clone(),
            dir: dir.clone(),
            file,
            journal,
            sequence,
            watermark,
            mark,
            pending: Vec::new(),
            untidy: false,
            committed: committed.clone(),
            stats: stats.clone(),
            durable: durable.clone(),
            token: token.clone(),
        };
        let (requests, receiver) = mpsc::channel();
        std::thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(DiskError::io(&dir))?;
        let log = Log {
            vote: recovered.vote,
            committed: recovered.committed,
            purged: recovered.purged,
            last,
            cache: BTreeMap::new(),
            cached_bytes: 0,
        };
        let shared = Arc::new(Shared { db, dir, log: Mutex::new(log), durable, committed, stats, token });
        Ok(Self { shared, requests, snapshots: None })
    }

    /// Entries are to stay until a durable snapshot has them.
    ///
    /// openraft removes those that an arriving snapshot has while that is being installed: a replica that was killed
    /// in between would have neither.
    pub(crate) fn behind(self, snapshots: Snapshots) -> Self {
        Self { snapshots: Some(snapshots), ..self }
    }

    /// The last entry that only a snapshot holds; 0 if there is none.
    pub(crate) fn purged_index(&self) -> u64 {
        self.log().purged.map_or(0, |purged| purged.index)
    }

    pub(crate) fn stats(&self) -> Arc<DiskStats> {
        self.shared.stats.clone()
    }

    /// Tells whether anything uses the database still: until then it can't be opened again.
    pub(crate) fn in_use(&self) -> impl Fn() -> bool + Send + 'static {
        let (token, dir) = (Arc::downgrade(&self.shared.token), self.shared.dir.clone());
        move || token.strong_count() > 0 || recover::is_locked(&dir)
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        // What is behind the lock is whole between any two statements, so a panic elsewhere does not spoil it.
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, write: impl FnOnce(Done) -> Write) -> Result<(), String> {
        let (done, durable) = oneshot::channel();
        let gone = || "the log's writer has ended".to_owned();
        self.requests.send(write(done)).map_err(|_| gone())?;
        durable.await.map_err(|_| gone())?
    }

    /// Entries of `start..end` that are there, at least one and then up to `max_bytes`.
    fn entries(&self, start: u64, end: u64, max_bytes: usize) -> Result<Vec<Entry>, StorageError> {
        let (start, end) = {
            let log = self.log();
            let first = log.purged.map_or(0, |purged| purged.index + 1);
            (start.max(first), end.min(log.last.map_or(0, |last| last.index + 1)))
        };
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in start..end {
            let cached = self.log().cache.get(&index).cloned();
            let (entry, size) = match cached {
                Some(cached) => cached,
                None => match blocking(true, || self.read(index))? {
                    Some(read) => read,
                    // The first of all need not have the index 0.
                    None if found.is_empty() => continue,
                    None => break,
                },
            };
            bytes += size;
            if !found.is_empty() && bytes > max_bytes {
                break;
            }
            found.push(entry);
        }
        Ok(found)
    }

    /// One entry from the database. sled panics on some damage; that is an error here.
    fn read(&self, index: u64) -> Result<Option<(Entry, usize)>, StorageError> {
        let read = catch_unwind(AssertUnwindSafe(|| {
            let mut record = Vec::new();
            for item in self.shared.db.range(layout::keys(index..=index)) {
                record.extend_from_slice(&item.map_err(|error| error.to_string())?.1);
            }
            if record.is_empty() {
                return Ok(None);
            }
            let json = layout::join(&record)?;
            let entry = serde_json::from_slice(json).map_err(|error| error.to_string())?;
            Ok(Some((entry, json.len())))
        }));
        read.unwrap_or_else(|panic| Err(panic_text(panic.as_ref())))
            .map_err(|reason: String| StorageIOError::read_log_at_index(index, any_error(reason)).into())
    }
}

impl Log {
    fn insert(&mut self, entry: Entry, size: usize) {
        self.last = Some(entry.log_id);
        self.cached_bytes += size;
        self.cache.insert(entry.log_id.index, (entry, size));
    }

    /// Forgets the oldest entries that the database has.
    fn trim(&mut self, durable: u64) {
        while self.cache.len() > MAX_CACHED_ENTRIES || self.cached_bytes > MAX_CACHED_BYTES {
            match self.cache.first_entry() {
                Some(oldest) if *oldest.key() <= durable => self.cached_bytes -= oldest.remove().1,
                _ => return,
            }
        }
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let bytes = &mut self.cached_bytes;
        self.cache.retain(|index, (_, size)| {
            let keep = keep(*index);
            *bytes -= if keep { 0 } else { *size };
            keep
        });
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(start, end, usize::MAX)
    }

    /// What is sent to a follower at once is limited by bytes as well as by count.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start, end, MAX_APPEND_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = self.log();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.request(|done| Write::Vote { vote, done })
            .await
            .map_err(|reason| StorageIOError::write_vote(any_error(reason)))?;
        self.log().vote = Some(vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.log().committed = committed;
        self.shared.committed.set(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        // It was made durable with some later write; the log may have been truncated meanwhile in theory only.
        let log = self.log();
        Ok(log.committed.min(log.last))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = VecDeque::new();
        let entries: Vec<Entry> = entries.into_iter().collect();
        blocking(are_long(&entries), || {
            for entry in entries {
                let json = serde_json::to_vec(&entry)
                    .map_err(|error| StorageIOError::write_log_entry(entry.log_id, any_error(error)))?;
                encoded.push_back((entry, json));
            }
            Ok::<_, StorageError>(())
        })?;
        let Some(last) = encoded.back().map(|(entry, _)| entry.log_id) else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let mut records = Vec::with_capacity(encoded.len());
        {
            let mut log = self.log();
            for (entry, json) in encoded {
                log.insert(entry.clone(), json.len());
                records.push((entry.log_id.index, json));
            }
            log.trim(self.shared.durable.load(Ordering::Acquire));
        }
        let write = Write::Append { entries: records, last, done: callback };
        if let Err(mpsc::SendError(Write::Append { done, .. })) = self.requests.send(write) {
            done.log_io_completed(Err(std::io::Error::other("the log's writer has ended")));
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let failed = |reason: String| StorageIOError::write_logs(any_error(reason));
        let purged = self.log().purged;
        let before = log_id.index.checked_sub(1);
        let last = match before {
            Some(before) if purged.is_none_or(|purged| purged.index < before) => {
                self.entries(before, before + 1, usize::MAX)?.first().map(|entry| entry.log_id)
            }
            _ => purged,
        };
        {
            let mut log = self.log();
            log.retain(|index| index < log_id.index);
            log.last = last;
        }
        self.request(|done| Write::Truncate { since: log_id.index, last, done }).await.map_err(failed)?;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let failed = |reason: String| StorageIOError::write_logs(any_error(reason));
        if let Some(snapshots) = &self.snapshots {
            snapshots.reaches(log_id.index).await.map_err(failed)?;
        }
        {
            let mut log = self.log();
            log.retain(|index| index > log_id.index);
            log.purged = log.purged.max(Some(log_id));
            log.last = log.last.max(Some(log_id));
        }
        self.request(|done| Write::Purge { upto: log_id, done }).await.map_err(failed)?;
        Ok(())
    }
}
