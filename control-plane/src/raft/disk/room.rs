//! How much room the disk must have.
//!
//! sled may be unreadable after a write that found no room, and then the replica would have to come back from the
//! others, by way of a disk that is full. So it stops while there is some room left: everything that was acknowledged is
//! in the journal, whose size never changes, and the start after somebody made room goes on from there.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::Options;
use crate::raft::DiskError;

impl Options {
    /// Bytes that stay free while it runs: the database may write as much again as the journal holds, twice, before
    /// the next look.
    fn reserve(self) -> u64 {
        2 * self.journal_bytes
    }

    /// Bytes that must be free at start: more than in the run, so that a start is of some use.
    fn at_start(self, has_journal: bool) -> u64 {
        let journal = if has_journal { 0 } else { self.journal_bytes };
        self.reserve() + self.reserve() / 4 + journal
    }
}

/// Whether a store may be opened, or made, in a folder.
///
/// # Errors
/// [`DiskError::NoRoom`]; the folder's file system can't be asked.
pub(super) fn for_start(folder: &Path, options: Options, has_journal: bool) -> Result<(), DiskError> {
    check(folder, options.at_start(has_journal))
}

/// Whether a new store has room beside what is there.
///
/// # Errors
/// As [`for_start`].
pub(crate) fn for_another(folder: &Path) -> Result<(), DiskError> {
    for_start(folder, Options::default(), false)
}

/// Whether the database may be written.
///
/// # Errors
/// As [`for_start`].
pub(super) fn for_writing(folder: &Path, options: Options) -> Result<(), DiskError> {
    check(folder, options.reserve())
}

fn check(folder: &Path, needs: u64) -> Result<(), DiskError> {
    let found = statvfs(folder).map_err(|errno| DiskError::io(folder)(errno.into()))?;
    // These are of other widths on other systems.
    #[allow(clippy::useless_conversion)]
    let free = u64::from(found.blocks_available()).saturating_mul(u64::from(found.fragment_size()));
    if free < needs {
        return Err(DiskError::NoRoom { folder: folder.to_owned(), free, needs });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_named_with_both_figures_and_is_no_damage() {
        let dir = tempfile::tempdir().expect("a folder");
        check(dir.path(), 1).expect("a byte is free");
        let error = check(dir.path(), u64::MAX).expect_err("no disk has that");
        assert!(!error.is_damage(), "{error}");
        let said = error.to_string();
        assert!(said.starts_with(&dir.path().display().to_string()), "{said}");
        assert!(said.contains("No space left") && said.contains("17592186044416 MiB"), "{said}");
    }

    #[test]
    fn a_start_asks_for_more_than_the_run_and_for_a_journal_if_there_is_none() {
        let options = Options::default();
        assert!(options.at_start(true) > options.reserve());
        assert_eq!(options.at_start(false), options.at_start(true) + options.journal_bytes);
    }
}
