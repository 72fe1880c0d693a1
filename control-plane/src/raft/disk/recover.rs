//! What is found at start, and whether it can be believed.

use std::{
    fs::TryLockError,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    journal::Record,
    layout::{self, COMMITTED_KEY, FORMAT, FORMAT_KEY, JOURNAL_KEY, PURGED_KEY, SEGMENT_BYTES, VOTE_KEY},
    ops,
    watermark::Mark,
    writer::panic_text,
};
use crate::raft::{
    DiskError,
    types::{LogId, Vote},
};

/// Bytes of pages that sled keeps in memory.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// What the log holds.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// None in a new database.
    pub(super) format: Option<u32>,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// Of every entry that is there, in order and without a gap.
    pub(super) entries: Vec<LogId>,
}

impl Recovered {
    /// The last entry, be it there or in a snapshot.
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.last().copied().max(self.purged)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.vote.is_none() && self.last().is_none()
    }

    /// Whether all that was acknowledged is there. `file` is named if not.
    pub(super) fn check(&self, file: &Path, watermark: &Path, mark: &Mark) -> Result<(), DiskError> {
        let (file, watermark) = (file.to_owned(), watermark.to_owned());
        if let Some(acknowledged) = mark.last {
            let recovered = self.last().map_or(0, |last| last.index);
            if self.last().is_none() || recovered < acknowledged.index {
                return Err(DiskError::RolledBack {
                    file,
                    watermark,
                    recovered,
                    acknowledged: acknowledged.index,
                });
            }
            let same_index =
                self.entries.iter().chain(&self.purged).find(|id| id.index == acknowledged.index);
            if let Some(found) = same_index.filter(|found| **found != acknowledged) {
                return Err(DiskError::OtherTerm {
                    file,
                    watermark,
                    index: found.index,
                    found: found.leader_id.term,
                    acknowledged: acknowledged.leader_id.term,
                });
            }
        }
        // Votes are ordered in part only; one that is not at least the acknowledged one is not its successor.
        match mark.vote {
            Some(acknowledged) if !self.vote.is_some_and(|vote| vote >= acknowledged) => {
                let recovered = self.vote.map_or("none".to_owned(), |vote| vote.to_string());
                Err(DiskError::VoteRolledBack {
                    file,
                    watermark,
                    recovered,
                    acknowledged: acknowledged.to_string(),
                })
            }
            _ => Ok(()),
        }
    }
}

/// Opens the database. sled panics on some damage; that is an error here, as in what follows.
pub(super) fn open(dir: &Path) -> Result<sled::Db, DiskError> {
    caught(dir, || {
        let db = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None)
            .open()
            .map_err(|error| store_error(dir, error))?;
        Ok(db)
    })
}

/// Whether somebody has the database open. sled's pool threads hold it, with its lock (flock(2)), for a moment after the
/// last handle was dropped: a write that all of it waited for is still on its way out of their hands.
pub(super) fn is_locked(dir: &Path) -> bool {
    let file = std::fs::File::open(dir.join("db"));
    file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Does what the journal has and the database lacks. Durable when this returns.
pub(super) fn replay(
    dir: &Path,
    journal: &Path,
    db: &sled::Db,
    records: &[Record],
) -> Result<u64, DiskError> {
    caught(dir, || {
        let failed = |error: sled::Error| store_error(dir, error);
        let has: u64 = value(dir, db, JOURNAL_KEY)?.unwrap_or(0);
        let Some(first) = records.first() else { return Ok(has) };
        if first.sequence > has + 1 {
            return Err(DiskError::StoreBehind {
                file: dir.to_owned(),
                journal: journal.to_owned(),
                has,
                first: first.sequence,
            });
        }
        for record in records.iter().filter(|record| record.sequence > has) {
            ops::apply(db, &record.ops, Some(record.sequence)).map_err(failed)?;
        }
        db.flush().map_err(failed)?;
        Ok(has.max(records.last().map_or(0, |last| last.sequence)))
    })
}

/// Reads all of the database once.
pub(super) fn read_all(dir: &Path, db: &sled::Db) -> Result<Recovered, DiskError> {
    caught(dir, || read(dir, db))
}

/// Remembers that the journal goes with the database from now on.
pub(super) fn mark_format(dir: &Path, db: &sled::Db) -> Result<(), DiskError> {
    caught(dir, || {
        let failed = |error: sled::Error| store_error(dir, error);
        db.insert(FORMAT_KEY, FORMAT.to_string().as_bytes()).map_err(failed)?;
        db.flush().map_err(failed).map(drop)
    })
}

fn caught<T>(dir: &Path, work: impl FnOnce() -> Result<T, DiskError>) -> Result<T, DiskError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(DiskError::Log { file: dir.to_owned(), reason: panic_text(panic.as_ref()) })
    })
}

/// Who is told to empty a folder must have been told the truth: not all that fails here is damage.
pub(super) fn store_error(dir: &Path, error: sled::Error) -> DiskError {
    let file = dir.to_owned();
    match error {
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            DiskError::InUse { file }
        }
        sled::Error::Io(source) if source.raw_os_error().is_some() => DiskError::Io { file, source },
        other => DiskError::Log { file, reason: other.to_string() },
    }
}

fn read(dir: &Path, db: &sled::Db) -> Result<Recovered, DiskError> {
    let failed = |error: sled::Error| store_error(dir, error);
    let format: Option<u32> = value(dir, db, FORMAT_KEY)?;
    if let Some(found) = format.filter(|found| *found > FORMAT) {
        return Err(DiskError::Newer { file: dir.to_owned(), found, supported: FORMAT });
    }
    let mut recovered = Recovered {
        format,
        vote: value(dir, db, VOTE_KEY)?,
        committed: value::<Option<LogId>>(dir, db, COMMITTED_KEY)?.flatten(),
        purged: value(dir, db, PURGED_KEY)?,
        entries: Vec::new(),
    };
    let mut current: Option<(u64, Vec<u8>)> = None;
    for item in db.range(layout::keys(0..=u64::MAX)) {
        let (key, chunk) = item.map_err(failed)?;
        let Some(index) = layout::index_of(&key) else { continue };
        match &mut current {
            Some((same, record)) if *same == index => record.extend_from_slice(&chunk),
            _ => {
                if let Some((index, record)) = current.take() {
                    recovered.entries.push(log_id(dir, index, &record)?);
                }
                current = Some((index, chunk.to_vec()));
            }
        }
    }
    if let Some((index, record)) = current {
        recovered.entries.push(log_id(dir, index, &record)?);
    }
    check_order(dir, &recovered)?;
    Ok(recovered)
}

fn check_order(dir: &Path, recovered: &Recovered) -> Result<(), DiskError> {
    let mut expected = recovered.purged.map(|purged| purged.index + 1);
    for id in &recovered.entries {
        match expected {
            Some(expected) if expected != id.index => {
                return Err(DiskError::Hole { file: dir.to_owned(), expected, found: id.index });
            }
            // The first entry of all has index 0.
            None if id.index != 0 => {
                return Err(DiskError::Hole { file: dir.to_owned(), expected: 0, found: id.index });
            }
            _ => expected = Some(id.index + 1),
        }
    }
    Ok(())
}

fn value<T: DeserializeOwned>(dir: &Path, db: &sled::Db, key: &[u8]) -> Result<Option<T>, DiskError> {
    let damaged = |reason: String| DiskError::Damaged { file: dir.to_owned(), reason };
    let name = String::from_utf8_lossy(key);
    let bytes = db.get(key).map_err(|error| damaged(format!("{name}: {error}")))?;
    bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose().map_err(|e| damaged(format!("{name}: {e}")))
}

#[derive(Deserialize)]
struct Head {
    log_id: LogId,
}

fn log_id(dir: &Path, index: u64, record: &[u8]) -> Result<LogId, DiskError> {
    let damaged = |reason: String| DiskError::Entry { file: dir.to_owned(), index, reason };
    let Head { log_id } =
        serde_json::from_slice(layout::join(record).map_err(damaged)?).map_err(|e| damaged(e.to_string()))?;
    if log_id.index != index {
        return Err(damaged(format!("it says that it is entry {}", log_id.index)));
    }
    Ok(log_id)
}
