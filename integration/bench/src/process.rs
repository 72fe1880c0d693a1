//! Programs that end with the benchmark, and what they cost.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{sys::signal::Signal, unistd::Pid};

/// A child that dies with its parent, whatever becomes of that.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a program; what it prints goes to a file.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
        log: &Path,
    ) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let output = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        // SAFETY: prctl is one system call, and async-signal-safe.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from));
        }
        let child = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and the wait for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.name),
        }
    }

    /// Processor time so far.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // proc(5): utime and stime are fields 14 and 15; the second, in parentheses, may hold anything.
        let rest = stat.rsplit_once(')').context("/proc/<pid>/stat has no name")?.1;
        let ticks: u64 =
            rest.split_whitespace().skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum();
        // USER_HZ is 100 on every Linux that Rust runs on.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).context("VmRSS")?;
        Ok(kib << 10)
    }

    /// Counts the calls that make data durable while `work` runs. Slows the process down: not for a timed run.
    pub async fn syncs_during<T>(&self, work: impl Future<Output = T>) -> Result<(T, u64)> {
        let report = tempfile::NamedTempFile::new()?;
        let mut tracer = Command::new("strace")
            .args(["-f", "-qq", "-c", "-e", "trace=fsync,fdatasync,sync_file_range,msync", "-o"])
            .arg(report.path())
            .args(["-p", &self.id().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("strace is missing: apt-get install strace")?;
        let done = work.await;
        let tracer_id = i32::try_from(tracer.id()).context("a process number")?;
        nix::sys::signal::kill(Pid::from_raw(tracer_id), Signal::SIGINT)?;
        tracer.wait()?;
        Ok((done, count_syncs(&fs::read_to_string(report.path())?)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls of `fsync` and `fdatasync` in what `strace -c` prints. `sync_file_range` does not count: it makes nothing
/// durable.
fn count_syncs(report: &str) -> u64 {
    let calls = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let counts = matches!(words.last(), Some(&("fsync" | "fdatasync" | "msync")));
        // % time, seconds, usecs/call, calls, [errors,] syscall
        if counts { words.get(3)?.parse::<u64>().ok() } else { None }
    };
    report.lines().filter_map(calls).sum()
}

/// Ports that were free a moment ago.
pub fn free_ports<const N: usize>() -> io::Result<[u16; N]> {
    let listeners: Vec<_> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_data_durable_is_counted() {
        let report = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
             99.00    0.010000         100       100           fdatasync\n\
              0.50    0.000100          10        10         2 fsync\n\
              0.50    0.000100           1        99           sync_file_range\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.010200                   209         2 total\n";
        assert_eq!(count_syncs(report), 110);
    }
}
