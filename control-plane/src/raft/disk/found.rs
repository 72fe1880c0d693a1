//! A folder whose log begins with a given state: what a restored cluster starts from.

use std::{collections::BTreeMap, path::Path};

use mesh_store::State;
use openraft::{BasicNode, CommittedLeaderId, Membership, storage::RaftLogStorage};

use super::{LogStore, Options, Snapshots};
use crate::raft::{
    DiskError,
    types::{LogId, SnapshotMeta, StorageError, StoredMembership, Vote},
};

/// Makes a group of one replica in a folder that is not there yet. Durable when this returns.
pub(crate) async fn found(dir: &Path, id: u64, address: &str, state: &State) -> Result<(), FoundError> {
    std::fs::create_dir_all(dir).map_err(DiskError::io(dir))?;
    let last = LogId::new(CommittedLeaderId::new(1, id), 1);
    let alone = Membership::new(vec![[id].into()], BTreeMap::from([(id, BasicNode::new(address))]));
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), alone),
        snapshot_id: last.to_string(),
    };
    Snapshots::open(dir)?.save(&meta, state)?;
    let mut log = LogStore::open(dir, Options::default())?;
    log.save_vote(&Vote::new(1, id)).await?;
    log.purge(last).await?;
    let in_use = log.in_use();
    drop(log);
    // Whoever opens it next is told if it still is.
    super::closed(in_use).await;
    super::sync_dir(dir)?;
    Ok(())
}

/// Why there is no group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FoundError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}
