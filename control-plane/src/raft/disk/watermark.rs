//! The file that says what was acknowledged last.
//!
//! Two slots, written in turn: a torn write damages the one that is being written, and the other still says
//! what was acknowledged before. Each write is in place in a file of fixed size, so it costs one data sync.

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

const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"isthmus\0";
/// A slot begins at a sector and a page of its own.
const SLOT_BYTES: usize = 4096;
const HEADER_BYTES: usize = 16;

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
    sequence: u64,
}

impl Watermark {
    /// The file and what it says; None if there is none yet.
    pub(super) fn open(path: &Path) -> Result<Option<(Self, Mark)>, DiskError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::io(path)(error)),
        };
        let slots = [read_slot(path, &file, 0), read_slot(path, &file, 1)];
        let mut newest: Option<Slot> = None;
        let mut reasons = Vec::new();
        for slot in slots {
            match slot {
                Ok(slot) if newest.as_ref().is_none_or(|other| slot.sequence > other.sequence) => {
                    newest = Some(slot)
                }
                Ok(_) => {}
                Err(SlotError::Damaged(reason)) => reasons.push(reason),
                Err(SlotError::Fatal(error)) => return Err(error),
            }
        }
        match newest {
            Some(slot) => {
                Ok(Some((Self { path: path.to_owned(), file, sequence: slot.sequence }, slot.mark)))
            }
            None => Err(DiskError::Damaged { file: path.to_owned(), reason: reasons.join("; ") }),
        }
    }

    /// A new file that says that nothing was acknowledged. It replaces an unfinished one.
    pub(super) fn create(path: &Path) -> Result<Self, DiskError> {
        let temporary = path.with_extension("new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(DiskError::io(&temporary))?;
        file.set_len(2 * SLOT_BYTES as u64).map_err(DiskError::io(&temporary))?;
        let mut watermark = Self { path: path.to_owned(), file, sequence: 0 };
        watermark.write(&Mark::default())?;
        watermark.write(&Mark::default())?;
        watermark.file.sync_all().map_err(DiskError::io(path))?;
        std::fs::rename(&temporary, path).map_err(DiskError::io(path))?;
        Ok(watermark)
    }

    /// Durable when this returns.
    pub(super) fn write(&mut self, mark: &Mark) -> Result<(), DiskError> {
        let sequence = self.sequence + 1;
        let json = serde_json::to_vec(&Slot { format: FORMAT, sequence, mark: mark.clone() })
            .map_err(|error| DiskError::Damaged { file: self.path.clone(), reason: error.to_string() })?;
        let mut slot = Vec::with_capacity(HEADER_BYTES + json.len());
        slot.extend(MAGIC);
        slot.extend((json.len() as u32).to_le_bytes());
        slot.extend(crc32c::crc32c(&json).to_le_bytes());
        slot.extend(&json);
        let at = (sequence % 2) * SLOT_BYTES as u64;
        self.file.write_all_at(&slot, at).map_err(DiskError::io(&self.path))?;
        self.file.sync_data().map_err(DiskError::io(&self.path))?;
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
    fn a_torn_write_leaves_what_was_before_and_two_damaged_slots_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("watermark");
        let mut watermark = Watermark::create(&path).expect("created");
        watermark.write(&mark(1)).expect("written");
        watermark.write(&mark(2)).expect("written");
        let mut bytes = std::fs::read(&path).expect("readable");
        let newest = (watermark.sequence % 2) as usize * SLOT_BYTES;
        bytes[newest + 40] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(reopen(&path).expect("the other slot"), mark(1));
        bytes[(SLOT_BYTES - newest) + 40] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let error = reopen(&path).expect_err("nothing left");
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}
