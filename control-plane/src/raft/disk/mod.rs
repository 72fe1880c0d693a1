//! What a replica keeps on its disk, in its folder:
//!
//! | file | holds | made durable by |
//! | --- | --- | --- |
//! | `journal` | the last writes of the log and the vote | one fdatasync before each acknowledgement |
//! | `log/` | log entries, vote: a sled database | flush and fdatasync every half second, and when it is idle |
//! | `watermark` | what was acknowledged last | written before each acknowledgement, synced with `log/` |
//! | `snapshot` | the state at one log entry | a new file, fsync, rename |
//!
//! What the journal has and the database lacks is done again at start. sled rolls a damaged file back to the last
//! state that it can read, without an error, and the end of a damaged journal looks like one that was never
//! acknowledged. The watermark is what tells: a log that ends before it has lost what others rely on, and the
//! replica must not vote.

mod batch;
mod found;
mod journal;
mod layout;
mod log_store;
mod ops;
mod recover;
mod room;
mod snapshots;
mod watermark;
mod writer;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod suite_tests;

use std::{path::Path, time::Duration};

pub(crate) use found::found;
pub(crate) use log_store::LogStore;
pub(crate) use room::for_another as room_for_another;
pub use snapshots::is_snapshot;
pub(crate) use snapshots::{SnapshotFile, Snapshots};
pub(crate) use writer::{DiskStats, Options};

use super::DiskError;

/// Opens a replica's folder, or makes one.
///
/// # Errors
/// Anything that makes the log doubtful: see [`DiskError`].
pub(crate) fn open(dir: &Path, options: Options) -> Result<(LogStore, Snapshots), DiskError> {
    std::fs::create_dir_all(dir).map_err(DiskError::io(dir))?;
    let snapshots = Snapshots::open(dir)?;
    let log = LogStore::open(dir, options)?;
    let (purged, snapshot) = (log.purged_index(), snapshots.last_index());
    if purged > snapshot {
        return Err(DiskError::SnapshotBehind { file: snapshots.path().to_owned(), snapshot, purged });
    }
    sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }
    Ok((log, snapshots))
}

/// Longest wait for a log to be closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Waits until nobody uses a log that was dropped ([`LogStore::in_use`]): its folder can be opened again. False if
/// somebody still does. It is asked again and again because the database's threads end without telling.
pub(crate) async fn closed(in_use: impl Fn() -> bool) -> bool {
    let waiting = async {
        while in_use() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(CLOSE_PATIENCE, waiting).await.is_ok()
}

/// Makes the names in a folder durable.
fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    std::fs::File::open(dir).and_then(|file| file.sync_all()).map_err(DiskError::io(dir))
}
