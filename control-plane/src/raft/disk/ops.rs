//! What a group of writes does to the log store, and how that is spelt in the journal.

use super::layout::{self, COMMITTED_KEY, PURGED_KEY, VOTE_KEY};

/// One change of the store. They take effect in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// One log entry as JSON.
    Put { index: u64, json: Vec<u8> },
    /// One of the single values as JSON.
    Set { key: Single, json: Vec<u8> },
    /// Log entries, both ends included.
    Remove { from: u64, to: u64 },
}

/// The single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Single {
    Vote,
    Purged,
    Committed,
}

impl Single {
    fn key(self) -> &'static [u8] {
        match self {
            Single::Vote => VOTE_KEY,
            Single::Purged => PURGED_KEY,
            Single::Committed => COMMITTED_KEY,
        }
    }
}

const PUT: u8 = 1;
const REMOVE: u8 = 2;
const VOTE: u8 = 16;
const PURGED: u8 = 17;
const COMMITTED: u8 = 18;

/// Spells operations as bytes.
pub(super) fn encode(ops: &[Op]) -> Vec<u8> {
    let size = |op: &Op| match op {
        Op::Put { json, .. } | Op::Set { json, .. } => 13 + json.len(),
        Op::Remove { .. } => 17,
    };
    let mut bytes = Vec::with_capacity(ops.iter().map(size).sum());
    for op in ops {
        match op {
            Op::Put { index, json } => {
                bytes.push(PUT);
                bytes.extend(index.to_le_bytes());
                text(&mut bytes, json);
            }
            Op::Set { key, json } => {
                bytes.push(match key {
                    Single::Vote => VOTE,
                    Single::Purged => PURGED,
                    Single::Committed => COMMITTED,
                });
                text(&mut bytes, json);
            }
            Op::Remove { from, to } => {
                bytes.push(REMOVE);
                bytes.extend(from.to_le_bytes());
                bytes.extend(to.to_le_bytes());
            }
        }
    }
    bytes
}

fn text(bytes: &mut Vec<u8>, json: &[u8]) {
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend(json);
}

/// Reads what [`encode`] wrote; None for anything else.
pub(super) fn decode(mut bytes: &[u8]) -> Option<Vec<Op>> {
    let mut ops = Vec::new();
    while let Some((tag, rest)) = bytes.split_first() {
        bytes = rest;
        ops.push(match *tag {
            PUT => Op::Put { index: number(&mut bytes)?, json: json(&mut bytes)? },
            REMOVE => Op::Remove { from: number(&mut bytes)?, to: number(&mut bytes)? },
            VOTE => Op::Set { key: Single::Vote, json: json(&mut bytes)? },
            PURGED => Op::Set { key: Single::Purged, json: json(&mut bytes)? },
            COMMITTED => Op::Set { key: Single::Committed, json: json(&mut bytes)? },
            _ => return None,
        });
    }
    Some(ops)
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*number))
}

fn json(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (json, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    Some(json.to_vec())
}

/// Does to the store what groups say, in their order. Durable once the store is flushed and synced.
///
/// The number of the last group comes last: if the process ends on the way, the groups that are not numbered yet are
/// done again from the journal, and doing one twice is doing it once.
pub(super) fn apply(db: &sled::Db, ops: &[Op], sequence: Option<u64>) -> sled::Result<()> {
    let mut batch = sled::Batch::default();
    for op in ops {
        match op {
            Op::Put { index, json } => {
                layout::chunks(*index, json).for_each(|(key, chunk)| batch.insert(&key, chunk));
            }
            Op::Set { key, json } => batch.insert(key.key(), json.as_slice()),
            Op::Remove { from, to } => {
                // What is to go must be there to be found.
                db.apply_batch(std::mem::take(&mut batch))?;
                for key in db.range(layout::keys(*from..=*to)).keys() {
                    batch.remove(key?);
                }
            }
        }
    }
    if let Some(sequence) = sequence {
        batch.insert(layout::JOURNAL_KEY, sequence.to_string().as_bytes());
    }
    db.apply_batch(batch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op() -> impl Strategy<Value = Op> {
        let json = proptest::collection::vec(any::<u8>(), 0..40);
        let key = prop_oneof![Just(Single::Vote), Just(Single::Purged), Just(Single::Committed)];
        prop_oneof![
            (any::<u64>(), json.clone()).prop_map(|(index, json)| Op::Put { index, json }),
            (key, json).prop_map(|(key, json)| Op::Set { key, json }),
            (any::<u64>(), any::<u64>()).prop_map(|(from, to)| Op::Remove { from, to }),
        ]
    }

    /// Operations on few entries, so that they meet.
    fn near() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..6, any::<u8>()).prop_map(|(index, byte)| Op::Put { index, json: vec![byte] }),
            (0u64..6, 0u64..6).prop_map(|(from, more)| Op::Remove { from, to: from + more }),
            any::<u8>().prop_map(|byte| Op::Set { key: Single::Vote, json: vec![byte] }),
        ]
    }

    proptest! {
        #[test]
        fn operations_are_read_back(ops in proptest::collection::vec(op(), 0..8)) {
            prop_assert_eq!(decode(&encode(&ops)), Some(ops));
        }

        /// Truncations and what comes in their place may meet in one go.
        #[test]
        fn many_groups_at_once_do_what_they_do_one_by_one(ops in proptest::collection::vec(near(), 1..24)) {
            let contents = |in_one_go: bool| {
                let db = sled::Config::new().temporary(true).flush_every_ms(None).open().expect("a database");
                let groups: Vec<&[Op]> = if in_one_go { vec![&ops] } else { ops.chunks(1).collect() };
                for group in groups {
                    apply(&db, group, Some(7)).expect("it is applied");
                }
                db.iter().map(|item| item.expect("it is read")).collect::<Vec<_>>()
            };
            prop_assert_eq!(contents(true), contents(false));
        }

        #[test]
        fn whatever_the_bytes_are_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
