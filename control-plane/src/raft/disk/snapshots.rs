//! The one snapshot that a replica keeps: a checksummed file, replaced by renaming a finished one over it.

use std::{
    fs::File,
    io::{Cursor, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::sync_dir;
use crate::raft::{
    DiskError,
    types::{LogId, Snapshot, SnapshotMeta},
};

const MAGIC: &[u8; 8] = b"isthsnap";
const FORMAT: u32 = 1;
/// Magic, format, length of the meta data, length of the state, checksum of both.
const HEADER_BYTES: usize = 8 + 4 + 4 + 8 + 4;

/// The snapshot in a replica's folder.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    path: PathBuf,
    /// The last log entry of the one that is there. Held while it is being replaced.
    current: Arc<Mutex<Option<LogId>>>,
}

impl Snapshots {
    pub(super) fn open(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join("snapshot");
        let unfinished = path.with_extension("new");
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DiskError::io(unfinished)(error));
            }
            _ => {}
        }
        let current = read(&path)?.and_then(|(meta, _)| meta.last_log_id);
        Ok(Self { path, current: Arc::new(Mutex::new(current)) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn last_index(&self) -> Result<u64, DiskError> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(current.map_or(0, |last| last.index))
    }

    /// The snapshot that is there.
    ///
    /// # Errors
    /// It is damaged, or of a later release.
    pub(crate) fn load(&self) -> Result<Option<Snapshot>, DiskError> {
        let read = read(&self.path)?;
        Ok(read.map(|(meta, state)| Snapshot { meta, snapshot: Box::new(Cursor::new(state)) }))
    }

    /// Durable when this returns. An older snapshot never replaces a newer one: one that was being built while
    /// the leader's was installed is dropped.
    pub(crate) fn save(&self, meta: &SnapshotMeta, state: &[u8]) -> Result<(), DiskError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if *current > meta.last_log_id {
            return Ok(());
        }
        let damaged = |error: serde_json::Error| DiskError::Damaged {
            file: self.path.clone(),
            reason: error.to_string(),
        };
        let described = serde_json::to_vec(meta).map_err(damaged)?;
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&described), state);
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(MAGIC);
        header.extend(FORMAT.to_le_bytes());
        header.extend((described.len() as u32).to_le_bytes());
        header.extend((state.len() as u64).to_le_bytes());
        header.extend(checksum.to_le_bytes());
        let unfinished = self.path.with_extension("new");
        let write = || {
            let mut file = File::create(&unfinished)?;
            for part in [&header[..], &described, state] {
                file.write_all(part)?;
            }
            file.sync_all()?;
            std::fs::rename(&unfinished, &self.path)
        };
        write().map_err(DiskError::io(&unfinished))?;
        if let Some(dir) = self.path.parent() {
            sync_dir(dir)?;
        }
        *current = meta.last_log_id;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<(SnapshotMeta, Vec<u8>)>, DiskError> {
    let mut bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::io(path)(error)),
    };
    let damaged = |reason: String| DiskError::Damaged { file: path.to_owned(), reason };
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(damaged("its header is cut".to_owned()));
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..8] != MAGIC[..] {
        return Err(damaged("it is no snapshot".to_owned()));
    }
    if word(8) > FORMAT {
        return Err(DiskError::Newer { file: path.to_owned(), found: word(8), supported: FORMAT });
    }
    let (described, state) = (word(12) as usize, u64::from(word(16)) | u64::from(word(20)) << 32);
    if rest.len() as u64 != state.saturating_add(described as u64) {
        return Err(damaged(format!(
            "{} of {} bytes are there",
            rest.len(),
            state.saturating_add(described as u64)
        )));
    }
    if crc32c::crc32c(rest) != word(24) {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    let meta = serde_json::from_slice(&rest[..described]).map_err(|error| damaged(error.to_string()))?;
    bytes.drain(..HEADER_BYTES + described);
    Ok(Some((meta, bytes)))
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta {
            last_log_id: Some(log_id(1, 1, index)),
            snapshot_id: index.to_string(),
            ..SnapshotMeta::default()
        }
    }

    #[test]
    fn a_snapshot_is_read_back_and_never_replaced_by_an_older_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(dir.path()).expect("empty");
        assert!(snapshots.load().expect("no file is no error").is_none());
        snapshots.save(&meta(5), b"five").expect("saved");
        snapshots.save(&meta(4), b"four").expect("dropped");
        let read = Snapshots::open(dir.path()).expect("readable").load().expect("readable").expect("there");
        assert_eq!((read.meta, read.snapshot.into_inner()), (meta(5), b"five".to_vec()));
    }

    #[test]
    fn damage_anywhere_is_found() {
        let dir = tempfile::tempdir().expect("a folder");
        let snapshots = Snapshots::open(dir.path()).expect("empty");
        snapshots.save(&meta(5), b"some state").expect("saved");
        let good = std::fs::read(snapshots.path()).expect("readable");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(snapshots.path(), &bad).expect("written");
            assert!(snapshots.load().is_err(), "byte {at}");
            std::fs::write(snapshots.path(), &good[..at]).expect("written");
            assert!(snapshots.load().is_err(), "cut at {at}");
        }
    }
}
