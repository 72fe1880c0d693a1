//! Whatever happens to the files: nothing that was acknowledged is lost in silence.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_store::{Bytes16, Envelope};
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{RaftLogStorage, RaftLogStorageExt},
    testing::log_id,
};

use super::{LogStore, open};
use crate::raft::{
    DiskError,
    testing::put,
    types::{Batch, Entry, Vote},
};

const ENTRIES: u64 = 120;

fn entry(index: u64) -> Entry {
    let bytes = Bytes16(u128::from(index).to_be_bytes());
    // Some are larger than a chunk.
    let command = put(&"w".repeat(50 + (index as usize % 7) * 3000));
    let envelope = Envelope { key: bytes, now_unix_ms: index, random: bytes, command };
    Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Normal(Batch(Arc::new(vec![envelope]))) }
}

async fn fill(dir: &Path) {
    let (mut log, _) = open(dir).expect("a new folder");
    log.save_vote(&Vote::new_committed(1, 1)).await.expect("saved");
    for start in (0..ENTRIES).step_by(10) {
        log.blocking_append((start..start + 10).map(entry)).await.expect("appended");
    }
    close(log).await;
}

async fn close(log: LogStore) {
    let in_use = log.in_use();
    drop(log);
    while in_use() {
        tokio::task::yield_now().await;
    }
}

/// Whether the folder opens with all that was acknowledged, or else why not. Anything else is a failed test.
async fn verdict(dir: &Path) -> Result<(), DiskError> {
    let opened = catch_unwind(AssertUnwindSafe(|| open(dir))).expect("damage is an error, never a panic");
    let (mut log, _) = opened?;
    let entries = log.try_get_log_entries(0..).await.expect("what opens can be read");
    assert_eq!(entries.len() as u64, ENTRIES, "acknowledged entries were lost in silence");
    for (index, found) in entries.iter().enumerate() {
        assert_eq!(serde_json::to_value(found).ok(), serde_json::to_value(entry(index as u64)).ok());
    }
    assert_eq!(
        log.read_vote().await.expect("readable"),
        Some(Vote::new_committed(1, 1)),
        "the vote was lost in silence"
    );
    close(log).await;
    Ok(())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for item in std::fs::read_dir(from).expect("a folder") {
        let item = item.expect("readable");
        let target = to.join(item.file_name());
        if item.file_type().expect("known").is_dir() {
            copy(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).expect("copied");
        }
    }
}

struct Template(tempfile::TempDir);

impl Template {
    async fn filled() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fill(&dir.path().join("good")).await;
        Self(dir)
    }

    fn damaged(&self, name: &str, damage: impl FnOnce(&Path)) -> PathBuf {
        let dir = self.0.path().join(name);
        copy(&self.0.path().join("good"), &dir);
        damage(&dir);
        dir
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("readable");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

#[tokio::test]
async fn an_untouched_folder_opens_with_everything() {
    let template = Template::filled().await;
    verdict(&template.damaged("same", |_| {})).await.expect("nothing is wrong");
}

#[tokio::test]
async fn a_cut_log_is_refused_by_name_with_both_indexes() {
    let template = Template::filled().await;
    let mut rolled_back = 0;
    for cut in [1, 100, 4_096, 20_000, 100_000, 600_000, usize::MAX] {
        let dir = template.damaged(&format!("cut-{cut}"), |dir| {
            edit(&dir.join("log/db"), |bytes| bytes.truncate(content(bytes).saturating_sub(cut)));
        });
        let error = verdict(&dir).await.expect_err("acknowledged bytes are gone");
        assert!(error.to_string().contains("cut-"), "the file is named: {error}");
        if let DiskError::RolledBack { recovered, acknowledged, .. } = error {
            assert!(recovered < acknowledged && acknowledged == ENTRIES - 1);
            rolled_back += 1;
        }
    }
    assert!(rolled_back > 0, "sled rolls back in silence, the watermark tells");
}

/// The length without the unwritten rest of the last segment.
fn content(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_refused_or_without_effect() {
    let template = Template::filled().await;
    let length = content(&std::fs::read(template.0.path().join("good/log/db")).expect("readable"));
    let mut refused = 0;
    for n in 0..24 {
        let at = length * (2 * n + 1) / 48;
        let dir = template
            .damaged(&format!("flip-{n}"), |dir| edit(&dir.join("log/db"), |bytes| bytes[at] ^= 0x20));
        // Some bytes are of pages that were written anew since: those may be as they like.
        if verdict(&dir).await.is_err() {
            refused += 1;
        }
    }
    assert!(refused > 0, "none of the flips hit anything");
}

#[tokio::test]
async fn a_missing_file_is_refused() {
    let template = Template::filled().await;
    let gone = template.damaged("no-log", |dir| std::fs::remove_dir_all(dir.join("log")).expect("removed"));
    assert!(matches!(verdict(&gone).await, Err(DiskError::RolledBack { recovered: 0, .. })));
    let gone =
        template.damaged("no-mark", |dir| std::fs::remove_file(dir.join("watermark")).expect("removed"));
    assert!(matches!(verdict(&gone).await, Err(DiskError::WatermarkMissing { .. })));
}

#[tokio::test]
async fn a_folder_that_is_in_use_is_not_called_damaged() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path()).expect("a new folder");
    assert!(matches!(open(dir.path()).map(drop), Err(DiskError::InUse { .. })));
    close(log).await;
    open(dir.path()).map(drop).expect("free again");
}

#[tokio::test]
async fn an_older_copy_of_the_log_is_refused() {
    let template = Template::filled().await;
    let dir = template.damaged("older", |_| {});
    let older = template.damaged("copy", |_| {});
    {
        let (mut log, _) = open(&dir).expect("nothing is wrong");
        log.save_vote(&Vote::new(5, 2)).await.expect("saved");
        close(log).await;
    }
    std::fs::remove_dir_all(dir.join("log")).expect("removed");
    copy(&older.join("log"), &dir.join("log"));
    let error = verdict(&dir).await.expect_err("the vote of term 5 is gone");
    assert!(matches!(&error, DiskError::VoteRolledBack { .. }), "{error}");
}

#[tokio::test]
async fn a_truncated_log_and_its_replacement_survive() {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut log, _) = open(dir.path()).expect("a new folder");
    log.blocking_append((0..10).map(entry)).await.expect("appended");
    log.truncate(log_id(1, 1, 5)).await.expect("truncated");
    let replacement = Entry { log_id: log_id(2, 2, 5), payload: EntryPayload::Blank };
    log.blocking_append([replacement]).await.expect("appended");
    close(log).await;
    let (mut log, _) = open(dir.path()).expect("nothing is wrong");
    let found: Vec<_> =
        log.try_get_log_entries(0..).await.expect("readable").iter().map(|e| e.log_id).collect();
    let expected: Vec<_> = (0..5).map(|index| log_id(1, 1, index)).chain([log_id(2, 2, 5)]).collect();
    assert_eq!(found, expected);
    log.truncate(log_id(1, 1, 0)).await.expect("all of it");
    close(log).await;
    let (mut log, _) = open(dir.path()).expect("an empty log is no damage");
    assert_eq!(log.get_log_state().await.expect("known").last_log_id, None);
}

#[tokio::test]
async fn a_purged_log_needs_its_snapshot() {
    let dir = tempfile::tempdir().expect("a folder");
    let (mut log, snapshots) = open(dir.path()).expect("a new folder");
    log.blocking_append((0..10).map(entry)).await.expect("appended");
    let meta = crate::raft::types::SnapshotMeta { last_log_id: Some(log_id(1, 1, 6)), ..Default::default() };
    snapshots.save(&meta, b"{}").expect("saved");
    log.purge(log_id(1, 1, 6)).await.expect("purged");
    close(log).await;
    let (mut log, _) = open(dir.path()).expect("nothing is wrong");
    let found: Vec<_> =
        log.try_get_log_entries(0..).await.expect("readable").iter().map(|e| e.log_id.index).collect();
    assert_eq!(found, [7, 8, 9]);
    close(log).await;
    std::fs::remove_file(dir.path().join("snapshot")).expect("removed");
    assert!(matches!(open(dir.path()).map(drop), Err(DiskError::SnapshotBehind { purged: 6, .. })));
}
