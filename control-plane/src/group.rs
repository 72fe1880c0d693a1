//! The raft group that this replica belongs to, in a file beside its keys.
//!
//! Two things depend on it. Replicas of another group are refused, so that those of a group that was made anew of
//! one survivor's disk can't come back to it. And a replica whose log has vanished is told from one that is new: the
//! former has forgotten its votes, and must not vote again under its old number.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ca::files;

/// The file's name, in the folder of the keys.
const FILE: &str = "group.json";

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The group's name: 32 hexadecimal digits, drawn when it was made.
    pub id: String,
    /// This replica has had a log of it.
    pub member: bool,
}

impl Group {
    /// A group that nobody has a log of yet.
    pub fn new() -> Self {
        Self::named(format!("{:032x}", rand::random::<u128>()))
    }

    /// A group that others have made.
    pub fn named(id: String) -> Self {
        Self { id, member: false }
    }

    /// Reads the file; None if there is none.
    ///
    /// # Errors
    /// One sentence that names it.
    pub fn open(keys: &Path) -> anyhow::Result<Option<Self>> {
        let path = path(keys);
        let failed = |reason: String| anyhow::anyhow!("{}: {reason}", path.display());
        let Some(text) = files::read_private(&path).map_err(|e| failed(e.to_string()))? else {
            return Ok(None);
        };
        let group: Self = serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?;
        if group.id.len() > 64 || !group.id.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(failed("id is not up to 64 letters and digits".to_owned()));
        }
        Ok(Some(group))
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// One sentence that names it.
    pub fn keep(&self, keys: &Path) -> anyhow::Result<()> {
        let path = path(keys);
        let failed = |e: std::io::Error| anyhow::anyhow!("{}: {e}", path.display());
        files::private_folder(keys).map_err(failed)?;
        files::write_private(&path, serde_json::to_string(self)?.as_bytes()).map_err(failed)
    }
}

impl Default for Group {
    fn default() -> Self {
        Self::new()
    }
}

fn path(keys: &Path) -> PathBuf {
    keys.join(FILE)
}

/// Whether a replica with these keys may start on this log, and with which group afterwards.
///
/// # Errors
/// Its log is gone. `which` says which replica of which cluster it is.
pub fn check(group: Option<Group>, has_log: bool, which: &str, raft: &Path) -> Result<Group, String> {
    match group {
        Some(group) if has_log || !group.member => Ok(Group { member: has_log, ..group }),
        // Made by a release that had no such file.
        None if has_log => Ok(Group { id: String::new(), member: true }),
        _ => Err(format!(
            "{}: is empty, but the keys beside it are those of {which}: its log is gone, and it must not vote again \
             under its old number. If the other replicas are well, run 'clustermesh replica remove' for it there, \
             and start here with an empty data directory and a token of 'clustermesh replica add'. If this was the \
             only one, put its data directory back, or restore a backup",
            raft.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_back_and_two_groups_differ() {
        let keys = tempfile::tempdir().unwrap();
        assert_eq!(Group::open(keys.path()).unwrap(), None);
        let group = Group::new();
        group.keep(keys.path()).unwrap();
        assert_eq!(Group::open(keys.path()).unwrap(), Some(group.clone()));
        assert_ne!(group, Group::new());
        std::fs::write(keys.path().join(FILE), "{\"id\": \"a b\", \"member\": true}").unwrap();
        assert!(Group::open(keys.path()).unwrap_err().to_string().contains("group.json"));
    }

    #[test]
    fn keys_without_the_log_that_they_had_are_refused_and_the_way_is_named() {
        let raft = Path::new("/d/raft");
        let of = |group, has_log| check(group, has_log, "replica 1 of west", raft);
        let known = |member| Some(Group { id: "g".to_owned(), member });
        assert_eq!(of(known(false), false).unwrap(), known(false).unwrap(), "a crash in between is harmless");
        assert_eq!(of(known(false), true).unwrap(), known(true).unwrap());
        assert_eq!(of(known(true), true).unwrap(), known(true).unwrap());
        assert_eq!(of(None, true).unwrap(), Group { id: String::new(), member: true });
        for group in [None, known(true)] {
            let refusal = of(group, false).unwrap_err();
            assert!(refusal.contains("/d/raft") && refusal.contains("replica remove"), "{refusal}");
        }
    }
}
