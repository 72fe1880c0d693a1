//! The file that says what was acknowledged last.
//!
//! Three slots, each in a block of its own. [`Watermark::note`] writes the last one and leaves it to the kernel:
//! that survives the end of the process, whatever its cause. [`Watermark::write`] writes the first two in turn and
//! syncs: a torn write damages the one that is being written, and the other still says what was acknowledged
//! before. The newest slot that is whole counts.
//!
//! So after a power cut the watermark may be as old as the last sync (half a second). It then misses only what
//! was lost *again* within that time from a disk that had said that it was durable: see `writer`.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::super::{
    DiskError,
    types::{LogId, Vote},
};

const FORMAT: u32 = 2;
const MAGIC: &[u8; 8] = b"isthmus\0";
/// A slot begins at a sector and a page of its own.
const SLOT_BYTES: usize = 4096;
const HEADER_BYTES: usize = 16;

/// The slot that is not synced. Files of the first release end before it.
const NOTED: u64 = 2;

/// What was acknowledged last.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Log entries up to here are durable here, and others may rely on it.
    pub(super) last: Option<LogId>,
    /// This vote was given.
    pub(super) vote: Option<Vote>,
}

#[derive(Serialize, Deserialize)]
struct Slot {
    format: u32,
    sequence: u64,
    mark: Mark,
}

/// Read first, so that a newer format is recognised whatever else it holds.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Watermark {
    path: PathBuf,
    file: File,
    /// Of the newest slot.
    sequence: u64,
    /// Which of the two synced slots is written next.
    next: u64,
}

impl Watermark {
    /// The file and what it says; None if there is none yet.
    pub(super) fn open(path: &Path) -> Result<Option<(Self, Mark)>, DiskError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::io(path)(error)),
        };
        let length = file.metadata().map_err(DiskError::io(path))?.len();
        let mut slots = Vec::with_capacity(3);
        let mut reasons = Vec::new();
        for n in 0..=NOTED {
            match read_slot(path, &file, n) {
                Ok(slot) => slots.push((n, slot)),
                Err(SlotError::Damaged(reason)) => reasons.push(reason),
                Err(SlotError::Fatal(error)) => return Err(error),
            }
        }
        let damaged = |reason: String| DiskError::Damaged { file: path.to_owned(), reason };
        let whole = (NOTED + 1) * SLOT_BYTES as u64;
        if length != whole && slots.iter().any(|(_, slot)| slot.format > 1) {
            return Err(damaged(format!("it has {length} of {whole} bytes")));
        }
        let sequence_of = |n: u64| slots.iter().find(|(at, _)| *at == n).map(|(_, slot)| slot.sequence);
        // One that is damaged is replaced first: None is less than any number.
        let next = u64::from(sequence_of(0) > sequence_of(1));
        let Some((_, newest)) = slots.into_iter().max_by_key(|(_, slot)| slot.sequence) else {
            return Err(damaged(reasons.join("; ")));
        };
        if length != whole {
            file.set_len(whole).map_err(DiskError::io(path))?;
        }
        Ok(Some((Self { path: path.to_owned(), file, sequence: newest.sequence, next }, newest.mark)))
    }

    /// A new file that says that nothing was acknowledged. It replaces an unfinished one.
    pub(super) fn create(path: &Path) -> Result<Self, DiskError> {
        let temporary = path.with_extension("new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(DiskError::io(&temporary))?;
        file.set_len((NOTED + 1) * SLOT_BYTES as u64).map_err(DiskError::io(&temporary))?;
        let mut watermark = Self { path: path.to_owned(), file, sequence: 0, next: 0 };
        watermark.write(&Mark::default())?;
        watermark.write(&Mark::default())?;
        watermark.file.sync_all().map_err(DiskError::io(path))?;
        std::fs::rename(&temporary, path).map_err(DiskError::io(path))?;
        Ok(watermark)
    }

    /// Durable when this returns.
    pub(super) fn write(&mut self, mark: &Mark) -> Result<(), DiskError> {
        self.put(mark, self.next)?;
        self.next = 1 - self.next;
        self.file.sync_data().map_err(DiskError::io(&self.path))
    }

    /// Survives the end of the process when this returns, and a power cut some time later.
    pub(super) fn note(&mut self, mark: &Mark) -> Result<(), DiskError> {
        self.put(mark, NOTED)
    }

    fn put(&mut self, mark: &Mark, slot: u64) -> Result<(), DiskError> {
        let sequence = self.sequence + 1;
        let json = serde_json::to_vec(&Slot { format: FORMAT, sequence, mark: mark.clone() })
            .map_err(|error| DiskError::Damaged { file: self.path.clone(), reason: error.to_string() })?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + json.len());
        bytes.extend(MAGIC);
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(&json).to_le_bytes());
        bytes.extend(&json);
        self.file.write_all_at(&bytes, slot * SLOT_BYTES as u64).map_err(DiskError::io(&self.path))?;
        self.sequence = sequence;
        Ok(())
    }
}

enum SlotError {
    Damaged(String),
    Fatal(DiskError),
}

fn read_slot(path: &Path, file: &File, n: u64) -> Result<Slot, SlotError> {
    let damaged = |reason: &str| SlotError::Damaged(format!("slot {n}: {reason}"));
    let mut bytes = [0; SLOT_BYTES];
    file.read_exact_at(&mut bytes, n * SLOT_BYTES as u64).map_err(|error| damaged(&error.to_string()))?;
    let (header, rest) = bytes.split_at(HEADER_BYTES);
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..8] != MAGIC[..] {
        return Err(damaged("it is no watermark"));
    }
    let json = rest.get(..word(8) as usize).ok_or_else(|| damaged("its length is wrong"))?;
    if crc32c::crc32c(json) != word(12) {
        return Err(damaged("its checksum is wrong"));
    }
    let Format { format } = serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
    if format > FORMAT {
        return Err(SlotError::Fatal(DiskError::Newer {
            file: path.to_owned(),
            found: format,
            supported: FORMAT,
        }));
    }
    serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use openraft::testing::log_id;

    use super::*;

    fn mark(index: u64) -> Mark {
        Mark { last: Some(log_id(3, 1, index)), vote: Some(Vote::new_committed(3, 1)) }
    }

    fn reopen(path: &Path) -> Result<Mark, DiskError> {
        Watermark::open(path).map(|opened| opened.expect("it is there").1)
    }

    #[test]
    fn the_last_write_is_read_back() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("watermark");
        assert!(Watermark::open(&path).expect("no file is no error").is_none());
        let mut watermark = Watermark::create(&path).expect("created");
        assert_eq!(reopen(&path).expect("readable"), Mark::default());
        for index in 1..=5 {
            watermark.write(&mark(index)).expect("written");
            assert_eq!(reopen(&path).expect("readable"), mark(index));
        }
    }

    #[test]
    fn a_torn_write_leaves_what_was_before_and_a_file_without_a_whole_slot_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("watermark");
        let mut watermark = Watermark::create(&path).expect("created");
        watermark.write(&mark(1)).expect("written");
        watermark.write(&mark(2)).expect("written");
        let mut bytes = std::fs::read(&path).expect("readable");
        let newest = (1 - watermark.next) as usize * SLOT_BYTES;
        bytes[newest + 40] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(reopen(&path).expect("the other slot"), mark(1));
        bytes[(SLOT_BYTES - newest) + 40] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let error = reopen(&path).expect_err("nothing left");
        assert!(error.to_string().contains("checksum"), "{error}");
    }

    #[test]
    fn what_is_only_noted_counts_until_a_later_write_and_its_loss_leaves_the_last_write() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("watermark");
        let mut watermark = Watermark::create(&path).expect("created");
        watermark.write(&mark(1)).expect("written");
        watermark.note(&mark(2)).expect("written");
        assert_eq!(reopen(&path).expect("readable"), mark(2));
        let noted = std::fs::read(&path).expect("readable");
        let mut torn = noted.clone();
        torn[2 * SLOT_BYTES + 30] ^= 1;
        std::fs::write(&path, &torn).expect("written");
        assert_eq!(reopen(&path).expect("the synced slot"), mark(1));
        std::fs::write(&path, &noted).expect("written");
        watermark.write(&mark(1)).expect("a log that was truncated goes back");
        assert_eq!(reopen(&path).expect("readable"), mark(1));
        std::fs::write(&path, &noted[..2 * SLOT_BYTES]).expect("written");
        assert!(matches!(Watermark::open(&path), Err(DiskError::Damaged { .. })), "it was cut");
    }
}
