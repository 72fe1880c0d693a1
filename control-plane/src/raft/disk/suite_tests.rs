//! openraft's own tests of a storage.

use openraft::testing::{StoreBuilder, Suite};

use super::{LogStore, Options, open};
use crate::raft::{
    machine::Machine,
    types::{StorageError, TypeConfig},
};

struct Folder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Folder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().expect("a folder");
        let (log, snapshots) =
            open(dir.path(), Options { journal_bytes: 1 << 20, ..Options::default() }).expect("a new folder");
        let (machine, _) = Machine::open(1, snapshots, Default::default()).expect("a new folder");
        Ok((dir, log, machine))
    }
}

#[test]
fn the_disk_passes_openrafts_storage_suite() {
    Suite::test_all(Folder).expect("the suite passes");
}
