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

use super::{
    LogStore, Options, Snapshots,
    watermark::{Mark, Watermark},
};
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
    let envelope = Envelope { key: bytes, now_unix_ms: index, first_unix_ms: None, random: bytes, command };
    Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Normal(Batch(Arc::new(vec![envelope]))) }
}

/// With a journal that begins again every few groups, and nothing that is done by the clock.
fn open(dir: &Path) -> Result<(LogStore, Snapshots), DiskError> {
    let never = std::time::Duration::from_secs(3600);
    let options = Options { journal_bytes: 256 * 1024, tidy_every: never, tidy_when_idle: never };
    super::open(dir, options)
}

/// A folder with entries, still open.
async fn filled(dir: &Path) -> LogStore {
    let (mut log, _) = open(dir).expect("a new folder");
    log.save_vote(&Vote::new_committed(1, 1)).await.expect("saved");
    for start in (0..ENTRIES).step_by(10) {
        log.blocking_append((start..start + 10).map(entry)).await.expect("appended");
    }
    log
}

async fn fill(dir: &Path) {
    close(filled(dir).await).await;
}

async fn close(log: LogStore) {
    let in_use = log.in_use();
    drop(log);
    while in_use() {
        tokio::task::yield_now().await;
    }
}

/// Changes the database behind the log's back.
fn alter(folder: &Path, change: impl FnOnce(&sled::Db)) {
    let dir = folder.join("log");
    let db = super::recover::open(&dir).expect("it opens");
    change(&db);
    db.flush().expect("flushed");
    drop(db);
    while super::recover::is_locked(&dir) {
        std::thread::yield_now();
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
async fn a_cut_log_is_made_whole_from_the_journal_or_refused_by_name() {
    let template = Template::filled().await;
    let (mut whole, mut refused) = (0, 0);
    for cut in [1, 100, 4_096, 20_000, 100_000, 600_000, usize::MAX] {
        let dir = template.damaged(&format!("cut-{cut}"), |dir| {
            edit(&dir.join("log/db"), |bytes| bytes.truncate(content(bytes).saturating_sub(cut)));
        });
        match verdict(&dir).await {
            Ok(()) => whole += 1,
            Err(error) => {
                assert!(error.to_string().contains(&format!("cut-{cut}/log")), "the file is named: {error}");
                assert!(error.is_damage(), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");
}

/// What SIGKILL leaves: the files as they are while the log is open. The database lacks what the journal has.
async fn killed(name: &str, folder: &tempfile::TempDir) -> PathBuf {
    let (live, dir) = (folder.path().join(format!("{name}-live")), folder.path().join(name));
    let log = filled(&live).await;
    copy(&live, &dir);
    close(log).await;
    dir
}

/// Where the last record of the journal is.
fn last_record(journal: &[u8]) -> usize {
    let number = |at: usize| u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|i| journal[at + i]));
    let starts = (4096..journal.len()).step_by(4096).filter(|at| journal[*at..].starts_with(b"grp\0"));
    starts.max_by_key(|at| number(*at)).expect("there is one")
}

#[tokio::test]
async fn what_a_kill_leaves_in_the_journal_is_found_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = killed("killed", &folder).await;
    verdict(&dir).await.expect("nothing is lost");
    verdict(&dir).await.expect("nor at the next start");
}

#[tokio::test]
async fn a_torn_last_record_that_nobody_was_told_of_is_dropped() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = killed("torn", &folder).await;
    edit(&dir.join("journal"), |bytes| {
        let last = last_record(bytes);
        let length = 20 + u32::from_le_bytes([4, 5, 6, 7].map(|i| bytes[last + i])) as usize;
        // The beginning of the group after the last one.
        let next = last + length.next_multiple_of(4096);
        let mut begun = bytes[last..last + 4096].to_vec();
        begun[8..16].copy_from_slice(
            &(1 + u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|i| bytes[last + i]))).to_le_bytes(),
        );
        bytes[next..next + 4096].copy_from_slice(&begun);
    });
    verdict(&dir).await.expect("all that was acknowledged is there");
}

#[tokio::test]
async fn a_damaged_last_record_that_was_acknowledged_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = killed("flipped", &folder).await;
    for (at, name) in [(5, "length"), (12, "number"), (17, "checksum"), (3000, "entry")] {
        let bad = folder.path().join(name);
        copy(&dir, &bad);
        edit(&bad.join("journal"), |bytes| {
            let last = last_record(bytes);
            bytes[last + at] ^= 0x10;
        });
        let error = verdict(&bad).await.expect_err("acknowledged entries are gone");
        assert!(error.to_string().contains(&format!("{name}/journal")), "the file is named: {error}");
        assert!(
            matches!(&error, DiskError::RolledBack { recovered, acknowledged, .. } if recovered < acknowledged),
            "{error}"
        );
    }
    for cut in [0, 4096, 100_000] {
        let bad = folder.path().join(format!("cut-{cut}"));
        copy(&dir, &bad);
        edit(&bad.join("journal"), |bytes| bytes.truncate(cut));
        let error = verdict(&bad).await.expect_err("it was cut");
        assert!(error.to_string().contains(&format!("cut-{cut}/journal")) && error.is_damage(), "{error}");
    }
    std::fs::remove_file(dir.join("journal")).expect("removed");
    let error = verdict(&dir).await.expect_err("it is missing");
    assert!(matches!(error, DiskError::JournalMissing { .. }), "{error}");
}

#[tokio::test]
async fn a_newer_format_of_any_file_is_refused_and_is_no_damage() {
    let template = Template::filled().await;
    let newer = template.damaged("journal", |dir| {
        edit(&dir.join("journal"), |bytes| {
            bytes[8] = 9;
            let sum = crc32c::crc32c(&bytes[..20]).to_le_bytes();
            bytes[20..24].copy_from_slice(&sum);
        });
    });
    let error = verdict(&newer).await.expect_err("newer");
    assert!(matches!(error, DiskError::Newer { found: 9, .. }) && !error.is_damage(), "{error}");
    let newer = template.damaged("log", |dir| {
        alter(dir, |db| {
            db.insert(super::layout::FORMAT_KEY, b"7").expect("inserted");
        });
    });
    let error = verdict(&newer).await.expect_err("newer");
    assert!(error.to_string().contains("has format 7, this release reads up to 2"), "{error}");
    assert!(!error.is_damage());
}

#[tokio::test]
async fn a_folder_of_the_first_format_which_had_no_journal_is_taken_over() {
    let template = Template::filled().await;
    let old = template.damaged("old", |dir| {
        std::fs::remove_file(dir.join("journal")).expect("removed");
        alter(dir, |db| {
            db.insert(super::layout::FORMAT_KEY, b"1").expect("inserted");
            db.remove(super::layout::JOURNAL_KEY).expect("removed");
        });
    });
    verdict(&old).await.expect("it is whole");
    assert!(old.join("journal").exists());
    verdict(&old).await.expect("it still is");
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
    let error = verdict(&gone).await.expect_err("the journal does not reach back to the beginning");
    assert!(matches!(error, DiskError::StoreBehind { has: 0, .. }) && error.is_damage(), "{error}");
    let gone =
        template.damaged("no-mark", |dir| std::fs::remove_file(dir.join("watermark")).expect("removed"));
    assert!(matches!(verdict(&gone).await, Err(DiskError::WatermarkMissing { .. })));
}

#[tokio::test]
async fn an_entry_that_the_watermark_knows_with_another_term_is_refused() {
    let template = Template::filled().await;
    let dir = template.damaged("term", |dir| {
        let (mut watermark, _) = Watermark::open(&dir.join("watermark")).expect("readable").expect("there");
        let mark = Mark { last: Some(log_id(4, 1, ENTRIES - 1)), vote: None };
        watermark.write(&mark).expect("written");
    });
    let error = verdict(&dir).await.expect_err("it is another entry");
    assert!(matches!(error, DiskError::OtherTerm { acknowledged: 4, found: 1, .. }), "{error}");
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
    for term in [5, 6] {
        let (mut log, _) = open(&dir).expect("nothing is wrong");
        log.save_vote(&Vote::new(term, 2)).await.expect("saved");
        close(log).await;
    }
    std::fs::remove_dir_all(dir.join("log")).expect("removed");
    copy(&older.join("log"), &dir.join("log"));
    let error = verdict(&dir).await.expect_err("the vote of term 5 is gone");
    assert!(matches!(&error, DiskError::StoreBehind { .. }), "{error}");
}

#[tokio::test]
async fn a_vote_that_the_watermark_knows_and_the_log_does_not_is_refused() {
    let template = Template::filled().await;
    let dir = template.damaged("vote", |dir| {
        alter(dir, |db| {
            db.remove(super::layout::VOTE_KEY).expect("removed");
        });
    });
    let error = verdict(&dir).await.expect_err("the vote is gone");
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
    snapshots.save(&meta, &mesh_store::State::default()).expect("saved");
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

/// A follower far behind gets a snapshot, and openraft purges what that has while it is being installed.
#[tokio::test]
async fn entries_stay_until_a_durable_snapshot_has_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, snapshots) = open(dir.path()).expect("a new folder");
    let mut log = log.behind(snapshots.clone());
    log.blocking_append((0..10).map(entry)).await.expect("appended");
    {
        let mut purge = std::pin::pin!(log.purge(log_id(1, 1, 6)));
        assert!(futures::poll!(purge.as_mut()).is_pending(), "only the log has them");
        let meta =
            crate::raft::types::SnapshotMeta { last_log_id: Some(log_id(1, 1, 6)), ..Default::default() };
        snapshots.save(&meta, &mesh_store::State::default()).expect("saved");
        purge.await.expect("purged");
    }
    let mut purge = std::pin::pin!(log.purge(log_id(1, 1, 9)));
    assert!(futures::poll!(purge.as_mut()).is_pending());
    let meta = crate::raft::types::SnapshotMeta { last_log_id: Some(log_id(1, 1, 9)), ..Default::default() };
    let cut = snapshots.arriving().expect("a file");
    assert!(snapshots.install(&meta, cut).is_err(), "it is empty");
    assert!(purge.await.is_err(), "what did not arrive is not waited for");
}
