//! Short waits for the kernel's readers while programs are attached.
//!
//! For each program that is attached to an interface the kernel waits for an RCU grace period, with the lock of all
//! network configuration held (`tcx_entry_sync` in `net/core` of Linux 6.18): 50 to 60 ms for the four of a pod, and one pod
//! after the other. What else it waits for under that lock it has expedited (`synchronize_net`). So for the moment of
//! attaching this asks for the same by the kernel's switch, `/sys/kernel/rcu_expedited`: half a millisecond for the four.
//!
//! The switch is the machine's. It is left alone if somebody else has set it, and is never on for longer than the attaching:
//! should the process die meanwhile, a mark on disk tells the next one.

use std::path::{Path, PathBuf};
use std::{fs, io};

const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// Changes whenever the machine starts, and with that the switch is as it was.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// In the state directory, while the switch is on because of this.
const MARK: &str = "rcu-expedited";

/// Whether and how waits are shortened.
#[derive(Debug, Clone)]
pub struct Grace {
    switch: PathBuf,
    /// `None`: never.
    mark: Option<PathBuf>,
}

impl Grace {
    /// Waits are as long as they are.
    pub fn off() -> Self {
        Self { switch: SWITCH.into(), mark: None }
    }

    /// Waits are shortened; the mark is in this directory. What a process that died has left on is switched off.
    ///
    /// # Errors
    /// It can't be switched off.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        Self::with(SWITCH.into(), state_dir)
    }

    fn with(switch: PathBuf, state_dir: &Path) -> io::Result<Self> {
        let mark = state_dir.join(MARK);
        if let Ok(left) = fs::read(&mark) {
            if left == boot()? {
                fs::write(&switch, "0")?;
            }
            fs::remove_file(&mark)?;
        }
        Ok(Self { switch, mark: Some(mark) })
    }

    /// Until what is returned is dropped, waits are short, where the machine allows it.
    pub(super) fn shorten(&self) -> Option<Short<'_>> {
        let mark = self.mark.as_deref()?;
        let is_off = fs::read_to_string(&self.switch).is_ok_and(|value| value.trim() == "0");
        if !is_off {
            return None;
        }
        // It need outlive this process only, not the machine.
        fs::write(mark, boot().ok()?).ok()?;
        let short = Short { switch: &self.switch, mark };
        fs::write(&self.switch, "1").ok()?;
        Some(short)
    }
}

/// While this is there, waits are short.
#[derive(Debug)]
pub(super) struct Short<'a> {
    switch: &'a Path,
    mark: &'a Path,
}

impl Drop for Short<'_> {
    fn drop(&mut self) {
        match fs::write(self.switch, "0") {
            Ok(()) => drop(fs::remove_file(self.mark)),
            Err(error) => tracing::error!(%error, path = %self.switch.display(), "cannot be switched off again"),
        }
    }
}

fn boot() -> io::Result<Vec<u8>> {
    fs::read(BOOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_is_on_for_as_long_as_it_is_needed_and_somebody_elses_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let switch = dir.path().join("switch");
        let read = || fs::read_to_string(&switch).unwrap();
        fs::write(&switch, "0\n").unwrap();
        let grace = Grace::with(switch.clone(), dir.path()).unwrap();
        let short = grace.shorten().unwrap();
        assert_eq!(read(), "1");
        assert!(grace.shorten().is_none(), "it is on already");
        drop(short);
        assert_eq!((read().as_str(), dir.path().join(MARK).exists()), ("0", false));
        fs::write(&switch, "1\n").unwrap();
        assert!(grace.shorten().is_none());
        assert_eq!(read(), "1\n");
        assert!(Grace::off().shorten().is_none());
        fs::remove_file(&switch).unwrap();
        assert!(grace.shorten().is_none(), "a kernel without it");
    }

    #[test]
    fn what_a_process_that_died_has_left_on_is_switched_off_unless_the_machine_has_started_since() {
        let dir = tempfile::tempdir().unwrap();
        let switch = dir.path().join("switch");
        fs::write(&switch, "0").unwrap();
        let grace = Grace::with(switch.clone(), dir.path()).unwrap();
        std::mem::forget(grace.shorten().unwrap());
        assert_eq!(fs::read_to_string(&switch).unwrap(), "1");
        drop(Grace::with(switch.clone(), dir.path()).unwrap());
        assert_eq!(fs::read_to_string(&switch).unwrap(), "0");
        fs::write(&switch, "1").unwrap();
        fs::write(dir.path().join(MARK), "another start").unwrap();
        drop(Grace::with(switch.clone(), dir.path()).unwrap());
        assert_eq!(fs::read_to_string(&switch).unwrap(), "1");
        assert!(!dir.path().join(MARK).exists());
    }
}
