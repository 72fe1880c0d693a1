//! What a replica keeps on its disk, in its folder:
//!
//! | file | holds | made durable by |
//! | --- | --- | --- |
//! | `log/` | log entries, vote: a sled database | flush, then fdatasync of its file, before each acknowledgement |
//! | `watermark` | what was acknowledged last | fdatasync after the log's, before the acknowledgement |
//! | `snapshot` | the state at one log entry | a new file, fsync, rename |
//!
//! sled rolls a damaged file back to the last state that it can read, without an error. The watermark is what
//! tells: a log that ends before it has lost what others rely on, and the replica must not vote.

mod batch;
mod layout;
mod log_store;
mod recover;
mod snapshots;
mod watermark;
mod writer;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod suite_tests;

use std::path::Path;

pub(crate) use log_store::LogStore;
pub(crate) use snapshots::Snapshots;
pub(crate) use writer::DiskStats;

use super::DiskError;

/// Opens a replica's folder, or makes one.
///
/// # Errors
/// Anything that makes the log doubtful: see [`DiskError`].
pub(crate) fn open(dir: &Path) -> Result<(LogStore, Snapshots), DiskError> {
    std::fs::create_dir_all(dir).map_err(DiskError::io(dir))?;
    let snapshots = Snapshots::open(dir)?;
    let log = LogStore::open(dir)?;
    let (purged, snapshot) = (log.purged_index(), snapshots.last_index()?);
    if purged > snapshot {
        return Err(DiskError::SnapshotBehind { file: snapshots.path().to_owned(), snapshot, purged });
    }
    sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok((log, snapshots))
}

/// Makes the names in a folder durable.
fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    std::fs::File::open(dir).and_then(|file| file.sync_all()).map_err(DiskError::io(dir))
}
