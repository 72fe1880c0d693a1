//! Why a replica does not start, write or read.

use std::{io, path::PathBuf};

use mesh_store::Refusal;
use thiserror::Error;

use super::contact::NoQuorum;

/// What to do about a replica whose disk can't be believed.
const REJOIN: &str = "it must not vote; the way back is from the other replicas";

/// What is wrong with a replica's files. Where it matters, both sides of the contradiction are named.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum DiskError {
    #[error("{}: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    /// Both in bytes.
    #[error(
        "{}: No space left on device: {} MiB are free, and {} MiB must be: make room, then start it again",
        folder.display(), free >> 20, needs.div_ceil(1 << 20)
    )]
    NoRoom { folder: PathBuf, free: u64, needs: u64 },
    #[error("{}: another process uses it: is this replica running already?", file.display())]
    InUse { file: PathBuf },
    #[error("{}: the log store can't be opened: {reason}; {REJOIN}", file.display())]
    Log { file: PathBuf, reason: String },
    #[error(
        "{}: log entry {acknowledged} was acknowledged (says {}), but the file ends at {recovered}: it was cut or rolled back; {REJOIN}",
        file.display(), watermark.display()
    )]
    RolledBack { file: PathBuf, watermark: PathBuf, recovered: u64, acknowledged: u64 },
    #[error(
        "{}: log entry {index} is of term {found}, but term {acknowledged} was acknowledged (says {}); {REJOIN}",
        file.display(), watermark.display()
    )]
    OtherTerm { file: PathBuf, watermark: PathBuf, index: u64, found: u64, acknowledged: u64 },
    #[error(
        "{}: the vote {acknowledged} was given (says {}), but the file holds {recovered}; {REJOIN}",
        file.display(), watermark.display()
    )]
    VoteRolledBack { file: PathBuf, watermark: PathBuf, recovered: String, acknowledged: String },
    #[error("{}: log entry {expected} is missing: the next one there is {found}; {REJOIN}", file.display())]
    Hole { file: PathBuf, expected: u64, found: u64 },
    #[error("{}: log entry {index} is damaged: {reason}; {REJOIN}", file.display())]
    Entry { file: PathBuf, index: u64, reason: String },
    #[error("{}: is missing although {} holds a log; {REJOIN}", file.display(), log.display())]
    WatermarkMissing { file: PathBuf, log: PathBuf },
    #[error("{}: is missing although {} holds a log; {REJOIN}", file.display(), log.display())]
    JournalMissing { file: PathBuf, log: PathBuf },
    #[error(
        "{}: holds the log up to group {has}, but {} begins with group {first}: it was cut or rolled back; {REJOIN}",
        file.display(), journal.display()
    )]
    StoreBehind { file: PathBuf, journal: PathBuf, has: u64, first: u64 },
    #[error("{}: is damaged: {reason}; {REJOIN}", file.display())]
    Damaged { file: PathBuf, reason: String },
    #[error(
        "{}: the snapshot ends at log entry {snapshot}, but the log before entry {purged} is gone; {REJOIN}",
        file.display()
    )]
    SnapshotBehind { file: PathBuf, snapshot: u64, purged: u64 },
    #[error("{}: has format {found}, this release reads up to {supported}: run the release that wrote it, or a later one", file.display())]
    Newer { file: PathBuf, found: u32, supported: u32 },
}

impl DiskError {
    /// Whether what is on the disk can't be believed: waiting, freeing space or another release won't help.
    pub fn is_damage(&self) -> bool {
        match self {
            // Unreadable sectors.
            DiskError::Io { source, .. } => source.raw_os_error() == Some(nix::libc::EIO),
            DiskError::NoRoom { .. } | DiskError::InUse { .. } | DiskError::Newer { .. } => false,
            _ => true,
        }
    }

    pub(crate) fn io(file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DiskError {
        let file = file.into();
        |source| DiskError::Io { file, source }
    }
}

/// Why a replica does not start.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum OpenError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the raft settings can't work: {0}")]
    Config(String),
    #[error("the replica did not start: {0}")]
    Raft(String),
}

/// Why a write has no answer.
#[derive(Debug, Clone, Error)]
#[allow(missing_docs)]
pub enum WriteError {
    /// Nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the request has {bytes} bytes, more than the {limit} that are allowed: split it")]
    TooLarge { bytes: usize, limit: usize },
    /// It may or may not take effect later.
    #[error(
        "no majority of replicas confirmed the write within {seconds} s ({reason}): it may take effect yet, repeat it"
    )]
    TimedOut { seconds: u64, reason: String },
    /// Nobody was asked: nothing has changed.
    #[error(transparent)]
    NoQuorum(NoQuorum),
    /// The majority went while the write was under way: it may or may not take effect later.
    #[error("{0}; this one was under way and may take effect yet, repeat it")]
    Interrupted(NoQuorum),
    /// This replica was asked by another one that took it for the leader.
    #[error("this replica is not the leader")]
    NotLeader,
    #[error("this replica has stopped: {0}")]
    Stopped(String),
}

/// Why there is no linearizable answer.
#[derive(Debug, Clone, Error)]
#[allow(missing_docs)]
pub enum ReadError {
    #[error("no leader confirmed the state within {seconds} s ({reason}): repeat the request")]
    TimedOut { seconds: u64, reason: String },
    #[error("{0}, and so are reads that must be up to date")]
    NoQuorum(NoQuorum),
    #[error("this replica has stopped: {0}")]
    Stopped(String),
}
