//! One DNS proxy for a state directory. The process that has the file locked is it, and its number is in the file: a lock
//! ends with its process, whatever becomes of it, and is nobody else's.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A process that was asked to end is given this long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Whoever looks who has the lock has it for less than this.
const GLANCE: Duration = Duration::from_millis(200);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(20);

/// Where it is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("dns.lock")
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
}

/// This process is the proxy until it ends, or the file is dropped.
///
/// # Errors
/// Another one is, or the disk.
pub fn take(path: &Path) -> io::Result<File> {
    let mut file = open(path)?;
    let deadline = Instant::now() + GLANCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // Perhaps somebody is only looking.
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => {
                let what = format!("{}: another DNS proxy runs here", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(std::process::id().to_string().as_bytes())?;
    Ok(file)
}

/// The process that is the proxy, if one is.
///
/// # Errors
/// The file can't be read.
pub fn holder(path: &Path) -> io::Result<Option<u32>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            // Not written yet: it has just begun.
            Ok(Some(text.trim().parse().unwrap_or(0)))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Blocks until no process is the proxy.
///
/// # Errors
/// The file can't be opened.
pub fn wait(path: &Path) -> io::Result<()> {
    open(path)?.lock()
}

/// Ends the process that is the proxy. Blocks until it has ended.
///
/// # Errors
/// It does not end, or the file can't be read.
pub fn end(path: &Path) -> io::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let deadline = Instant::now() + PATIENCE;
        let mut is_told = false;
        while Instant::now() < deadline {
            let Some(process) = holder(path)? else { return Ok(()) };
            if !is_told && process != 0 {
                let process = i32::try_from(process).map(Pid::from_raw).map_err(io::Error::other)?;
                match kill(process, signal) {
                    Ok(()) | Err(Errno::ESRCH) => is_told = true,
                    Err(error) => return Err(error.into()),
                }
            }
            std::thread::sleep(LOOK);
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("{}: the DNS proxy does not end", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time_is_the_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        assert_eq!(holder(&path).unwrap(), None);
        let held = take(&path).unwrap();
        assert_eq!(holder(&path).unwrap(), Some(std::process::id()));
        assert_eq!(take(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || wait(&path)
        });
        drop(held);
        waiting.join().unwrap().unwrap();
        assert_eq!(holder(&path).unwrap(), None);
        end(&path).unwrap();
    }
}
