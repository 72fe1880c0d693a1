//! The file that makes a group of writes durable with one data sync.
//!
//! Its length never changes and its blocks are written once when it is made, so a group costs one write in place
//! and one fdatasync, without any change of the file's own data: less than half of what syncing the growing
//! store and the watermark costs. The store follows, and now and then is synced itself ([`super::writer`]); then
//! the journal begins again at its start.
//!
//! Each record starts at a block of its own: while the next one is being written, power can be cut without harm
//! to this one. Records are numbered without a gap. Reading goes on from the start as long as the numbers do, and
//! ends at the first record that is older (from the last time round) or that is not whole: either it was never
//! acknowledged, or the watermark, which is in another file, knows better.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::ops::{self, Op};
use crate::raft::DiskError;

const FORMAT: u32 = 1;
const MAGIC: &[u8; 8] = b"isthjrnl";
const RECORD_MAGIC: &[u8; 4] = b"grp\0";
/// Of the largest sector that disks have.
const BLOCK_BYTES: u64 = 4096;
/// Magic, length, number, checksum of all but the magic and itself.
const RECORD_HEADER_BYTES: usize = 4 + 4 + 8 + 4;
/// Larger files are nobody's journal.
const MAX_BYTES: u64 = 1 << 30;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    capacity: u64,
    /// Where the next record goes.
    at: u64,
}

/// What one group did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) ops: Vec<Op>,
}

impl Journal {
    /// The file and its records; None if there is none. Writing starts at the beginning: what was read must be
    /// durable elsewhere before.
    pub(super) fn open(path: &Path) -> Result<Option<(Self, Vec<Record>)>, DiskError> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DiskError::io(path)(error)),
        };
        let damaged = |reason: String| DiskError::Damaged { file: path.to_owned(), reason };
        let length = file.metadata().map_err(DiskError::io(path))?.len();
        let mut header = [0; 24];
        if length < BLOCK_BYTES {
            return Err(damaged(format!("it was cut to {length} bytes")));
        }
        file.read_exact_at(&mut header, 0).map_err(DiskError::io(path))?;
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if header[..8] != MAGIC[..] {
            return Err(damaged("it is no journal".to_owned()));
        }
        if word(20) != crc32c::crc32c(&header[..20]) {
            return Err(damaged("its header's checksum is wrong".to_owned()));
        }
        if word(8) > FORMAT {
            return Err(DiskError::Newer { file: path.to_owned(), found: word(8), supported: FORMAT });
        }
        let capacity = u64::from(word(12)) | u64::from(word(16)) << 32;
        if capacity != length || capacity > MAX_BYTES {
            return Err(damaged(format!("it has {length} bytes, but was made with {capacity}")));
        }
        let mut bytes = vec![0; usize::try_from(capacity - BLOCK_BYTES).unwrap_or(0)];
        file.read_exact_at(&mut bytes, BLOCK_BYTES).map_err(DiskError::io(path))?;
        let journal = Self { path: path.to_owned(), file, capacity, at: BLOCK_BYTES };
        Ok(Some((journal, records(&bytes))))
    }

    /// A new file of that many bytes. It replaces an unfinished one.
    pub(super) fn create(path: &Path, capacity: u64) -> Result<Self, DiskError> {
        let capacity = capacity.clamp(16 * BLOCK_BYTES, MAX_BYTES) / BLOCK_BYTES * BLOCK_BYTES;
        let temporary = path.with_extension("new");
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC);
        header.extend(FORMAT.to_le_bytes());
        header.extend(capacity.to_le_bytes());
        header.extend(crc32c::crc32c(&header).to_le_bytes());
        let make = || {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&temporary)?;
            // Written, not reserved: a block that is reserved only costs a change of the file's data later.
            let zeros = vec![0; 1 << 20];
            let mut at = 0;
            while at < capacity {
                let part = zeros.len().min(usize::try_from(capacity - at).unwrap_or(usize::MAX));
                file.write_all_at(&zeros[..part], at)?;
                at += part as u64;
            }
            file.write_all_at(&header, 0)?;
            file.sync_all()?;
            std::fs::rename(&temporary, path)?;
            Ok(file)
        };
        let file = make().map_err(DiskError::io(&temporary))?;
        Ok(Self { path: path.to_owned(), file, capacity, at: BLOCK_BYTES })
    }

    /// Whether a record of so many bytes has room. If not, the journal must begin again, or it never will.
    pub(super) fn has_room(&self, ops: usize) -> Room {
        let size = padded(ops);
        match () {
            () if self.at + size <= self.capacity => Room::Here,
            () if BLOCK_BYTES + size <= self.capacity => Room::AtStart,
            () => Room::Nowhere,
        }
    }

    /// Everything in it is durable elsewhere: it begins again.
    pub(super) fn restart(&mut self) {
        self.at = BLOCK_BYTES;
    }

    /// Durable when this returns.
    pub(super) fn append(&mut self, sequence: u64, ops: &[u8]) -> Result<(), DiskError> {
        let size = padded(ops.len());
        let mut record = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        record.extend(RECORD_MAGIC);
        record.extend((ops.len() as u32).to_le_bytes());
        record.extend(sequence.to_le_bytes());
        record.extend(checksum(sequence, ops).to_le_bytes());
        record.extend(ops);
        record.resize(usize::try_from(size).unwrap_or(0), 0);
        self.file.write_all_at(&record, self.at).map_err(DiskError::io(&self.path))?;
        self.file.sync_data().map_err(DiskError::io(&self.path))?;
        self.at += size;
        Ok(())
    }
}

/// Where the next record has room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    Here,
    AtStart,
    Nowhere,
}

fn padded(ops: usize) -> u64 {
    ((RECORD_HEADER_BYTES + ops) as u64).next_multiple_of(BLOCK_BYTES)
}

fn checksum(sequence: u64, ops: &[u8]) -> u32 {
    let numbers =
        crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), &(ops.len() as u64).to_le_bytes());
    crc32c::crc32c_append(numbers, ops)
}

/// The records at the beginning, numbered without a gap.
fn records(mut bytes: &[u8]) -> Vec<Record> {
    let mut found: Vec<Record> = Vec::new();
    while let Some(record) = record(bytes) {
        if found.last().is_some_and(|last| record.sequence != last.sequence + 1) {
            break;
        }
        let (record, length) = (Record { sequence: record.sequence, ops: record.ops }, record.length);
        found.push(record);
        let size = usize::try_from(padded(length)).unwrap_or(usize::MAX);
        bytes = bytes.get(size..).unwrap_or_default();
    }
    found
}

struct Whole {
    sequence: u64,
    ops: Vec<Op>,
    length: usize,
}

fn record(bytes: &[u8]) -> Option<Whole> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
    let header = header.strip_prefix(RECORD_MAGIC)?;
    let (length, header) = header.split_first_chunk::<4>()?;
    let (sequence, header) = header.split_first_chunk::<8>()?;
    let (expected, _) = header.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length) as usize;
    let sequence = u64::from_le_bytes(*sequence);
    let ops = rest.get(..length)?;
    if checksum(sequence, ops) != u32::from_le_bytes(*expected) {
        return None;
    }
    Some(Whole { sequence, ops: ops::decode(ops)?, length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u64, bytes: usize) -> Vec<Op> {
        vec![Op::Put { index: n, json: vec![b'x'; bytes] }, Op::Remove { from: 0, to: n }]
    }

    fn write(journal: &mut Journal, sequence: u64, bytes: usize) {
        let ops = ops::encode(&group(sequence, bytes));
        if journal.has_room(ops.len()) == Room::AtStart {
            journal.restart();
        }
        journal.append(sequence, &ops).expect("written");
    }

    fn found(path: &Path) -> Vec<u64> {
        let (_, records) = Journal::open(path).expect("readable").expect("there");
        records.iter().for_each(|record| assert_eq!(record.ops, group(record.sequence, record_size(record))));
        records.iter().map(|record| record.sequence).collect()
    }

    fn record_size(record: &Record) -> usize {
        match &record.ops[0] {
            Op::Put { json, .. } => json.len(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn records_are_read_back_in_order_and_the_older_ones_behind_them_are_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("journal");
        assert!(Journal::open(&path).expect("no file is no error").is_none());
        let mut journal = Journal::create(&path, 16 * BLOCK_BYTES).expect("created");
        assert!(found(&path).is_empty());
        for n in 1..=5 {
            write(&mut journal, n, 5000);
        }
        assert_eq!(found(&path), [1, 2, 3, 4, 5]);
        // Three go round the end and start again.
        for n in 6..=9 {
            write(&mut journal, n, 5000);
        }
        assert_eq!(found(&path), [8, 9]);
        assert_eq!(journal.has_room(16 * 4096), Room::Nowhere);
    }

    #[test]
    fn a_torn_last_record_ends_the_journal_wherever_it_was_torn() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("journal");
        let mut journal = Journal::create(&path, 16 * BLOCK_BYTES).expect("created");
        (1..=2).for_each(|n| write(&mut journal, n, 100));
        let before = std::fs::read(&path).expect("readable");
        write(&mut journal, 3, 6000);
        let after = std::fs::read(&path).expect("readable");
        let start = 3 * BLOCK_BYTES as usize;
        for at in (start..start + 6000).step_by(97) {
            let torn: Vec<u8> = after[..at].iter().chain(&before[at..]).copied().collect();
            std::fs::write(&path, torn).expect("written");
            assert_eq!(found(&path), [1, 2], "torn at {at}");
        }
    }

    #[test]
    fn a_cut_file_another_file_and_a_newer_format_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("journal");
        drop(Journal::create(&path, 16 * BLOCK_BYTES).expect("created"));
        let good = std::fs::read(&path).expect("readable");
        for cut in [0, 10, 4096, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).expect("written");
            assert!(matches!(Journal::open(&path), Err(DiskError::Damaged { .. })), "cut at {cut}");
        }
        for at in 0..24 {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, bad).expect("written");
            assert!(Journal::open(&path).is_err(), "byte {at}");
        }
        let mut newer = good;
        newer[8] = 2;
        let sum = crc32c::crc32c(&newer[..20]).to_le_bytes();
        newer[20..24].copy_from_slice(&sum);
        std::fs::write(&path, newer).expect("written");
        assert!(matches!(Journal::open(&path), Err(DiskError::Newer { found: 2, .. })));
    }
}
