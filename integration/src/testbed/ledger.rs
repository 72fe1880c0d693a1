//! What a testbed made, written down before it is made: whoever comes next can remove it after a crash.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One thing on the machine, by its exact name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// A network namespace. Links inside it go with it.
    Namespace(String),
    /// A process, with its start time so that a reused pid is left alone.
    Process {
        /// Process id.
        pid: i32,
        /// Field 22 of `/proc/<pid>/stat`.
        started: u64,
    },
    /// A mount point.
    Mount(PathBuf),
    /// A cgroup folder.
    Cgroup(PathBuf),
    /// A folder with all that is in it.
    Folder(PathBuf),
}

/// The list, one JSON document a line.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The ledger at this path, which need not exist yet.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Writes an entry down; call it before making the thing (processes: right after).
    pub fn note(&self, made: &Made) -> Result<()> {
        let mut line = serde_json::to_vec(made)?;
        line.push(b'\n');
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
        file.write_all(&line).with_context(|| format!("writing {}", self.path.display()))
    }

    /// All entries, oldest first. A torn last line, left by a crash, is passed over.
    pub fn entries(&self) -> Vec<Made> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Removes everything that the ledger names, newest first, then the ledger.
    ///
    /// Returns what could not be removed.
    pub fn undo(&self) -> Vec<String> {
        let mut left = Vec::new();
        let entries = self.entries();
        let processes: Vec<_> = entries.iter().filter(|e| matches!(e, Made::Process { .. })).collect();
        for made in &processes {
            if let Made::Process { pid, started } = made {
                kill(*pid, *started);
            }
        }
        for made in entries.iter().rev() {
            if let Err(error) = remove(made) {
                left.push(format!("{made:?}: {error:#}"));
            }
        }
        if left.is_empty() {
            let _ = fs::remove_file(&self.path);
        }
        left
    }
}

/// Start time of a process in clock ticks since boot, if it runs (proc(5), stat field 22).
pub fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; what follows the last one is regular.
    let rest = stat.rsplit_once(')')?.1;
    let mut fields = rest.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Ends a process for good, if it still is the one that was started then.
pub fn kill(pid: i32, start: u64) {
    if started(pid) != Some(start) {
        return;
    }
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(5);
    while started(pid) == Some(start) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn remove(made: &Made) -> Result<()> {
    match made {
        Made::Process { pid, started } => kill(*pid, *started),
        Made::Namespace(name) => {
            if Path::new("/run/netns").join(name).exists() {
                run(Command::new("ip").args(["netns", "delete", name]))?;
            }
        }
        Made::Mount(path) => {
            if mounted(path) {
                run(Command::new("umount").arg(path))?;
            }
        }
        Made::Cgroup(path) => remove_cgroup(path)?,
        Made::Folder(path) => match fs::remove_dir_all(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        },
    }
    Ok(())
}

/// A cgroup can be removed only once its last process has been reaped, which the kernel does in its own time.
fn remove_cgroup(path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Is something mounted at exactly this path?
pub fn mounted(path: &Path) -> bool {
    let wanted = path.to_string_lossy();
    fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(wanted.as_ref()))
}

/// Runs a command to its end; its error output is the error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        anyhow::bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_hides_none_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path().join("ledger"));
        ledger.note(&Made::Namespace("ism-a".into())).unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(dir.path().join("ledger")).unwrap();
        file.write_all(b"{\"namesp").unwrap();
        assert_eq!(ledger.entries(), [Made::Namespace("ism-a".into())]);
    }

    #[test]
    fn undo_ends_only_the_process_that_was_noted_and_removes_folders() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::at(dir.path().join("ledger"));
        let folder = dir.path().join("made");
        fs::create_dir(&folder).unwrap();
        let mut noted = Command::new("sleep").arg("60").spawn().unwrap();
        let mut reused = Command::new("sleep").arg("60").spawn().unwrap();
        let (pid, other) = (noted.id() as i32, reused.id() as i32);
        ledger.note(&Made::Folder(folder.clone())).unwrap();
        ledger.note(&Made::Process { pid, started: started(pid).unwrap() }).unwrap();
        ledger.note(&Made::Process { pid: other, started: started(other).unwrap() + 1 }).unwrap();
        assert_eq!(ledger.undo(), Vec::<String>::new());
        assert!(!folder.exists());
        assert!(noted.wait().unwrap().code().is_none(), "ended by a signal");
        assert_eq!(reused.try_wait().unwrap(), None, "another start time: another process");
        reused.kill().unwrap();
        reused.wait().unwrap();
    }
}
