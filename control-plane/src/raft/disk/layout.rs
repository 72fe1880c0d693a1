//! How log entries lie in sled.
//!
//! An entry is cut into chunks, so that no page of sled's tree grows beyond what it keeps inside its one file:
//! larger ones become files of their own, which it does not sync.

use std::ops::RangeInclusive;

/// See the module's comment: 17 chunks, the most that one leaf holds, stay below a quarter of [`SEGMENT_BYTES`].
pub(super) const CHUNK_BYTES: usize = 8 * 1024;
/// sled's segment size.
pub(super) const SEGMENT_BYTES: usize = 1024 * 1024;
/// Written into the database when it is made. Format 1 had no journal.
pub(super) const FORMAT: u32 = 2;

pub(super) const FORMAT_KEY: &[u8] = b"m/format";
pub(super) const VOTE_KEY: &[u8] = b"m/vote";
pub(super) const PURGED_KEY: &[u8] = b"m/purged";
pub(super) const COMMITTED_KEY: &[u8] = b"m/committed";
/// The number of the last journal record that is in the database.
pub(super) const JOURNAL_KEY: &[u8] = b"m/journal";

/// Length and checksum, at the beginning of an entry's first chunk.
const HEADER_BYTES: usize = 8;

/// The key of one chunk. Keys sort by index, then by chunk.
pub(super) fn key(index: u64, chunk: u16) -> [u8; 11] {
    let mut key = [b'l'; 11];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// The index of the entry that a chunk is of.
pub(super) fn index_of(key: &[u8]) -> Option<u64> {
    let bytes: [u8; 11] = key.try_into().ok()?;
    (bytes[0] == b'l').then(|| u64::from_be_bytes([1, 2, 3, 4, 5, 6, 7, 8].map(|i| bytes[i])))
}

/// The keys of all chunks of these entries.
pub(super) fn keys(entries: RangeInclusive<u64>) -> RangeInclusive<[u8; 11]> {
    key(*entries.start(), 0)..=key(*entries.end(), u16::MAX)
}

/// Cuts an entry into chunks.
pub(super) fn chunks(index: u64, json: &[u8]) -> impl Iterator<Item = ([u8; 11], Vec<u8>)> {
    let mut record = Vec::with_capacity(HEADER_BYTES + json.len());
    record.extend((json.len() as u32).to_le_bytes());
    record.extend(crc32c::crc32c(json).to_le_bytes());
    record.extend(json);
    let chunks: Vec<Vec<u8>> = record.chunks(CHUNK_BYTES).map(<[u8]>::to_vec).collect();
    chunks.into_iter().zip(0u16..).map(move |(chunk, n)| (key(index, n), chunk))
}

/// Puts the chunks of one entry together again.
pub(super) fn join(record: &[u8]) -> Result<&[u8], String> {
    let Some((header, json)) = record.split_at_checked(HEADER_BYTES) else {
        return Err("its header is cut".to_owned());
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if json.len() != word(0) as usize {
        return Err(format!("{} of {} bytes are there", json.len(), word(0)));
    }
    if crc32c::crc32c(json) != word(4) {
        return Err("its checksum is wrong".to_owned());
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_any_size_is_put_together_again() {
        for size in [0, 1, CHUNK_BYTES - HEADER_BYTES, CHUNK_BYTES, 3 * CHUNK_BYTES + 1] {
            let json: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let mut record = Vec::new();
            for (n, (chunk_key, chunk)) in chunks(7, &json).enumerate() {
                assert_eq!((index_of(&chunk_key), chunk_key), (Some(7), key(7, n as u16)));
                record.extend(chunk);
            }
            assert_eq!(join(&record), Ok(&json[..]));
            record.push(0);
            assert!(join(&record).is_err(), "one byte too many");
        }
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let mut record: Vec<u8> = chunks(1, b"some entry").flat_map(|(_, chunk)| chunk).collect();
        for at in 0..record.len() {
            record[at] ^= 1;
            assert!(join(&record).is_err(), "byte {at}");
            record[at] ^= 1;
        }
    }

    #[test]
    fn entries_sort_by_index_and_apart_from_the_rest() {
        assert!(key(1, u16::MAX) < key(2, 0) && key(255, 0) < key(256, 0));
        assert_eq!(index_of(VOTE_KEY), None);
    }
}
