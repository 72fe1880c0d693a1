//! What this node's agents have made outside of their state directory, written down before it is made, so that
//! [cleanup](crate::cleanup) can remove it by its exact name. Pods have files of their own, see [`crate::cni::Registry`].

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::persist;

const FILE: &str = "made.json";

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// Empty again, once what is in it has been removed.
    Directory(PathBuf),
    /// A bpffs.
    Mount(PathBuf),
    /// Programs, maps and links below a directory.
    Pins(PathBuf),
    /// A socket, or a file that says that the agent serves.
    File(PathBuf),
    /// The DNS proxy, by the file that it has locked.
    DnsProxy(PathBuf),
    /// Every route of the agent's protocol number.
    Routes,
    /// The nftables tables.
    Tables,
}

/// Why the ledger is of no use.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum LedgerError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error(
        "{path} is damaged ({error}); name what is to be removed with --bpffs and --socket, and remove it"
    )]
    Damaged { path: String, error: serde_json::Error },
}

/// All of it, in the order in which it was made.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    entries: Vec<Made>,
}

impl Ledger {
    /// Reads what earlier agents with this state directory have made.
    ///
    /// # Errors
    /// The file is there and can't be used.
    pub fn open(state_dir: &Path) -> Result<Self, LedgerError> {
        let path = state_dir.join(FILE);
        let shown = || path.display().to_string();
        let bytes =
            persist::read_optional(&path).map_err(|error| LedgerError::Io { path: shown(), error })?;
        let entries = match bytes {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| LedgerError::Damaged { path: shown(), error })?,
            None => Vec::new(),
        };
        Ok(Self { path, entries })
    }

    /// Writes down what is about to be made. It is on disk when the call returns.
    ///
    /// # Errors
    /// The disk can't be written: then it must not be made.
    pub fn note(&mut self, made: Made) -> Result<(), LedgerError> {
        if self.entries.contains(&made) {
            return Ok(());
        }
        self.entries.push(made);
        self.save().inspect_err(|_| drop(self.entries.pop()))
    }

    /// What was made, the last first: the order in which it is removed.
    pub fn newest_first(&self) -> Vec<Made> {
        self.entries.iter().rev().cloned().collect()
    }

    /// It is removed.
    ///
    /// # Errors
    /// The disk can't be written.
    pub fn forget(&mut self, made: &Made) -> Result<(), LedgerError> {
        self.entries.retain(|known| known != made);
        if self.entries.is_empty() {
            let error = |error| LedgerError::Io { path: self.path.display().to_string(), error };
            return persist::remove(&self.path).map_err(error);
        }
        self.save()
    }

    fn save(&self) -> Result<(), LedgerError> {
        let path = || self.path.display().to_string();
        let bytes = serde_json::to_vec_pretty(&self.entries)
            .map_err(|error| LedgerError::Damaged { path: path(), error })?;
        persist::write_private(&self.path, &bytes).map_err(|error| LedgerError::Io { path: path(), error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_removed_in_reverse_and_an_empty_ledger_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(dir.path()).unwrap();
        let pins = Made::Pins("/sys/fs/bpf/isthmus".into());
        for made in [Made::Routes, pins.clone(), Made::Routes] {
            ledger.note(made).unwrap();
        }
        let mut again = Ledger::open(dir.path()).unwrap();
        assert_eq!(again.newest_first(), [pins.clone(), Made::Routes]);
        again.forget(&pins).unwrap();
        assert_eq!(Ledger::open(dir.path()).unwrap().newest_first(), [Made::Routes]);
        again.forget(&Made::Routes).unwrap();
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_damaged_ledger_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "[{").unwrap();
        let error = Ledger::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--bpffs"), "{error}");
    }
}
