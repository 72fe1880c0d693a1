//! Short waits for the kernel's readers while programs are attached.
//!
//! For each program that is attached to an interface, and again when an interface with programs goes, the kernel waits for
//! an RCU grace period, with the lock of all network configuration held (`tcx_entry_sync` of Linux 6.18): 50 to 60 ms for
//! the four programs of a pod, and one pod after the other. What else it waits for under that lock it has expedited
//! (`synchronize_net`). So for that moment this asks for the same by the kernel's switch, `/sys/kernel/rcu_expedited`: half a
//! millisecond for the four.
//!
//! The switch is the machine's. It is left alone if somebody else has set it, and is never on for longer than such a call:
//! should the process die meanwhile, a mark on disk tells the next one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// Changes whenever the machine starts, and with that the switch is as it was.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// In the state directory, while the switch is on because of this.
const MARK: &str = "rcu-expedited";

/// Whether and how waits are shortened. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Grace {
    switch: PathBuf,
    /// `None`: never.
    mark: Option<PathBuf>,
    /// Calls that have the switch on: the last one switches it off.
    users: Arc<Mutex<u32>>,
}

impl Grace {
    /// Waits are as long as they are.
    pub fn off() -> Self {
        Self { switch: SWITCH.into(), mark: None, users: Arc::default() }
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
        Ok(Self { switch, mark: Some(mark), users: Arc::default() })
    }

    /// Until what is returned is dropped, waits are short, where the machine allows it.
    pub(crate) fn shorten(&self) -> Option<Short> {
        let mark = self.mark.as_deref()?;
        let mut users = lock(&self.users);
        if *users == 0 {
            let is_off = fs::read_to_string(&self.switch).is_ok_and(|value| value.trim() == "0");
            if !is_off {
                return None;
            }
            // It need outlive this process only, not the machine.
            fs::write(mark, boot().ok()?).ok()?;
            if fs::write(&self.switch, "1").is_err() {
                let _ = fs::remove_file(mark);
                return None;
            }
        }
        *users += 1;
        Some(Short(self.clone()))
    }
}

/// While this is there, waits are short.
#[derive(Debug)]
pub(crate) struct Short(Grace);

impl Drop for Short {
    fn drop(&mut self) {
        let Grace { switch, mark, users } = &self.0;
        let mut users = lock(users);
        *users = users.saturating_sub(1);
        if *users > 0 {
            return;
        }
        match (fs::write(switch, "0"), mark) {
            (Ok(()), Some(mark)) => drop(fs::remove_file(mark)),
            (Ok(()), None) => {}
            (Err(error), _) => {
                tracing::error!(%error, path = %switch.display(), "cannot be switched off again");
            }
        }
    }
}

fn lock(users: &Mutex<u32>) -> MutexGuard<'_, u32> {
    users.lock().unwrap_or_else(PoisonError::into_inner)
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
        let second = grace.clone().shorten().unwrap();
        drop(short);
        assert_eq!(read(), "1", "for the second");
        drop(second);
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
