//! What was learnt, on disk: a line for each name at each address, written before the kernel is.
//!
//! Lines are appended, because an answer waits for them; the file is written anew once it is mostly of the past. It is
//! not synced: after a crash of the node there are no pods that were told anything.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Holder, Names, Place};
use crate::persist;

/// Lines beyond twice the entries, after which the file is written anew.
const SLACK: usize = 1024;
/// A file that is longer is not of this agent's making.
const MAX_BYTES: usize = 256 << 20;

/// Why names can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system.
    #[error("{path}: {error}")]
    Io {
        /// Of the file.
        path: String,
        /// What it says.
        error: io::Error,
    },
    /// More bytes than this agent writes.
    #[error("{path}: {bytes} bytes; at most {MAX_BYTES} are read. Remove it: pods then ask again")]
    TooLong {
        /// Of the file.
        path: String,
        /// How long it is.
        bytes: usize,
    },
}

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    address: IpAddr,
    until: u64,
    /// For which pod it counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Holder,
}

/// The file `names.jsonl` in the agent's state directory.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Log {
    /// Opens the file, and reads what an earlier agent noted. A line that can't be read is passed over: its agent was
    /// killed while it wrote, or the disk is damaged; the pod asks again.
    ///
    /// # Errors
    /// The file can't be read or written.
    pub fn open(state_dir: &Path) -> Result<(Self, Names), LogError> {
        let path = state_dir.join("names.jsonl");
        let bytes = persist::read_optional(&path).map_err(|error| failed(&path, error))?.unwrap_or_default();
        if bytes.len() > MAX_BYTES {
            return Err(LogError::TooLong { path: path.display().to_string(), bytes: bytes.len() });
        }
        let mut names = Names::default();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Line>(line) {
                Ok(Line { name, address, until, pod }) => {
                    names.recall(&Place { until, address, name: name.into() }, pod);
                }
                Err(error) => tracing::warn!(%error, file = %path.display(), "a line is passed over"),
            }
        }
        let file = rewrite(&path, &names).map_err(|error| failed(&path, error))?;
        let lines = names.len();
        Ok((Self { path, file, lines }, names))
    }

    /// Notes what was learnt. `names` holds it already.
    ///
    /// # Errors
    /// It is not on disk; then a restart would forget it, so nobody may be told.
    pub fn note(&mut self, learnt: &[Place], names: &Names) -> Result<(), LogError> {
        let text: String = learnt.iter().map(|place| line(place, names)).collect();
        self.file.write_all(text.as_bytes()).map_err(|error| failed(&self.path, error))?;
        self.lines += learnt.len();
        if self.lines > 2 * names.len() + SLACK { self.rewrite(names) } else { Ok(()) }
    }

    /// Writes down what `names` holds, and nothing else.
    ///
    /// # Errors
    /// It is not on disk.
    pub fn rewrite(&mut self, names: &Names) -> Result<(), LogError> {
        self.file = rewrite(&self.path, names).map_err(|error| failed(&self.path, error))?;
        self.lines = names.len();
        Ok(())
    }
}

fn line(place: &Place, names: &Names) -> String {
    let Place { until, address, name } = place;
    let line = Line { name: name.to_string(), address: *address, until: *until, pod: names.holder(place) };
    // (A name, addresses and a number: nothing in it can fail.)
    serde_json::to_string(&line).map(|text| text + "\n").unwrap_or_default()
}

fn rewrite(path: &Path, names: &Names) -> io::Result<File> {
    let text: String = names.places().map(|place| line(place, names)).collect();
    persist::write_private(path, text.as_bytes())?;
    OpenOptions::new().append(true).mode(0o600).open(path)
}

fn failed(path: &Path, error: io::Error) -> LogError {
    LogError::Io { path: path.display().to_string(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::{fs, time::Duration};

    fn learn(log: &mut Log, names: &mut Names, name: &str, now: u64) {
        let addresses = [([198, 51, 100, 1].into(), Duration::from_secs(60))];
        names.learn(Some([10, 1, 1, 2].into()), name, &addresses, now, Duration::ZERO);
        let learnt: Vec<Place> = names.places().filter(|place| &*place.name == name).cloned().collect();
        log.note(&learnt, names).unwrap();
    }

    #[test]
    fn names_are_there_after_a_restart_with_their_latest_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut names) = Log::open(dir.path()).unwrap();
        learn(&mut log, &mut names, "a.test", 1000);
        learn(&mut log, &mut names, "b.test", 1000);
        learn(&mut log, &mut names, "a.test", 2000);
        drop(log);
        let (_, recalled) = Log::open(dir.path()).unwrap();
        assert!(recalled.places().eq(names.places()));
        assert!(recalled.places().all(|place| recalled.holder(place) == Some([10, 1, 1, 2].into())));
        assert!(recalled.is_due(1060) && !recalled.is_due(1059));
    }

    #[test]
    fn a_line_that_was_cut_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut names) = Log::open(dir.path()).unwrap();
        learn(&mut log, &mut names, "a.test", 1000);
        learn(&mut log, &mut names, "b.test", 1000);
        drop(log);
        let path = dir.path().join("names.jsonl");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let (mut log, mut recalled) = Log::open(dir.path()).unwrap();
        assert_eq!(recalled.len(), 1);
        // What is written next stands on a line of its own.
        learn(&mut log, &mut recalled, "c.test", 1000);
        assert_eq!(Log::open(dir.path()).unwrap().1.len(), 2);
    }

    #[test]
    fn the_file_is_written_anew_once_it_is_mostly_of_the_past() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, mut names) = Log::open(dir.path()).unwrap();
        for now in 0..=(SLACK as u64 + 2) {
            learn(&mut log, &mut names, "a.test", now);
        }
        let text = fs::read_to_string(dir.path().join("names.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(Log::open(dir.path()).unwrap().1.places().eq(names.places()));
    }
}
