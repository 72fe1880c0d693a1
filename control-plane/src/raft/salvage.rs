//! A new group of one survivor's disk, when a majority is lost for good.
//!
//! Two entries are appended to the survivor's log, in a term of its own: a membership of itself alone, and a command
//! that forgets the other replicas. When it starts, it is the only voter, elects itself, and commits all that its
//! log holds: what a majority had, and what it alone had been sent. What it was not sent is lost.

use std::{collections::BTreeMap, path::Path, time::SystemTime};

use mesh_store::{Bytes16, Command, Envelope};
use openraft::{
    BasicNode, CommittedLeaderId, EntryPayload, Membership, RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
};
use thiserror::Error;

use super::{
    DiskError,
    disk::{self, LogStore},
    machine::Machine,
    types::{Batch, Entry, LogId, StorageError, StoredMembership, Vote},
};

/// Entries that are read at once.
const CHUNK: u64 = 256;

/// Why a disk can't be made a new group.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum SalvageError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{0}")]
    Storage(String),
    #[error("there is no log to make a group of: this replica never was a member of one")]
    Empty,
    #[error("the records on this disk do not name replica {0}: it was removed, or never added")]
    Unknown(u64),
}

impl From<StorageError> for SalvageError {
    fn from(error: StorageError) -> Self {
        SalvageError::Storage(error.to_string())
    }
}

/// What a survivor's disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    #[allow(missing_docs)]
    pub id: u64,
    /// Its own address.
    pub address: String,
    /// Of the last log entry.
    pub last_log_index: u64,
    /// The term of the last log entry.
    pub last_log_term: u64,
    /// Entries up to here are known to be committed; those after it may be, or not.
    pub committed_index: u64,
    /// Of the state with all of them.
    pub revision: u64,
    /// The other members, by id, with whether they vote.
    pub others: BTreeMap<u64, (String, bool)>,
}

struct Opened {
    log: LogStore,
    last: LogId,
    survivor: Survivor,
}

/// Reads a stopped replica's folder and changes nothing.
///
/// # Errors
/// See [`SalvageError`]; [`DiskError::InUse`] if the replica runs.
pub async fn survey(dir: &Path, id: u64) -> Result<Survivor, SalvageError> {
    let opened = open(dir, id).await?;
    let survivor = opened.survivor.clone();
    close(opened.log).await;
    Ok(survivor)
}

/// Makes a new group of a stopped replica's folder. Repeating it is harmless.
///
/// # Errors
/// As [`survey`].
pub async fn make_group(dir: &Path, id: u64) -> Result<Survivor, SalvageError> {
    let Opened { mut log, last, survivor } = open(dir, id).await?;
    let vote = log.read_vote().await?.unwrap_or_default();
    let term = vote.leader_id.term.max(last.leader_id.term) + 1;
    log.save_vote(&Vote::new(term, id)).await?;
    let log_id = |n: u64| LogId::new(CommittedLeaderId::new(term, id), last.index + n);
    let alone = Membership::new(vec![[id].into()], BTreeMap::from([(id, BasicNode::new(&survivor.address))]));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
    let forget = Envelope {
        key: Bytes16(rand::random()),
        now_unix_ms: u64::try_from(now).unwrap_or(u64::MAX),
        first_unix_ms: None,
        random: Bytes16(rand::random()),
        command: Command::KeepOnlyReplica { id },
    };
    let entries = [
        Entry { log_id: log_id(1), payload: EntryPayload::Membership(alone) },
        Entry { log_id: log_id(2), payload: EntryPayload::Normal(Batch(vec![forget].into())) },
    ];
    log.blocking_append(entries).await?;
    close(log).await;
    Ok(survivor)
}

async fn open(dir: &Path, id: u64) -> Result<Opened, SalvageError> {
    let (mut log, snapshots) = disk::open(dir, disk::Options::default())?;
    let (mut machine, published) = Machine::open(id, snapshots, Default::default())?;
    let (applied, _) = machine.applied_state().await?;
    let last = log.get_log_state().await?.last_log_id.max(applied);
    let Some(last) = last else {
        close(log).await;
        return Err(SalvageError::Empty);
    };
    let committed = log.read_committed().await?.max(applied);
    let mut next = applied.map_or(0, |applied| applied.index + 1);
    // In memory only: nothing is written.
    while next <= last.index {
        let entries = log.try_get_log_entries(next..(next + CHUNK).min(last.index + 1)).await?;
        let Some(end) = entries.last().map(|entry| entry.log_id.index) else { break };
        next = end + 1;
        machine.apply(entries).await?;
    }
    let (_, membership) = machine.applied_state().await?;
    let state = published.state();
    let Some(own) = state.replicas.get(&id) else {
        close(log).await;
        return Err(SalvageError::Unknown(id));
    };
    let survivor = Survivor {
        id,
        address: own.address.clone(),
        last_log_index: last.index,
        last_log_term: last.leader_id.term,
        committed_index: committed.map_or(0, |committed| committed.index),
        revision: state.revision,
        others: others(&membership, id),
    };
    Ok(Opened { log, last, survivor })
}

fn others(membership: &StoredMembership, id: u64) -> BTreeMap<u64, (String, bool)> {
    let votes = |of: u64| membership.voter_ids().any(|voter| voter == of);
    let others = membership.nodes().filter(|(other, _)| **other != id);
    others.map(|(other, node)| (*other, (node.addr.clone(), votes(*other)))).collect()
}

/// The folder can be opened again when this returns.
async fn close(log: LogStore) {
    let in_use = log.in_use();
    drop(log);
    // Whoever opens it next is told if it still is.
    super::disk::closed(in_use).await;
}
