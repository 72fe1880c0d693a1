//! Processes of a testbed: in a namespace, in a cgroup, with a log file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};

use super::ledger::{self, Ledger, Made};

/// Where and how a process is to run.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Network namespace, by name.
    pub namespace: Option<String>,
    /// The cgroup folder that it is to live in.
    pub cgroup: Option<PathBuf>,
}

impl Place {
    /// In a network namespace.
    pub fn namespace(name: impl Into<String>) -> Self {
        Self { namespace: Some(name.into()), cgroup: None }
    }

    /// A command that enters the place and then becomes `program`: the pid is the program's own.
    pub fn command(&self, program: &Path, args: &[String]) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["nsenter".into(), format!("--net=/run/netns/{namespace}"), "--".into()]);
        }
        words.push(program.display().to_string());
        words.extend(args.iter().cloned());
        let mut command = Command::new("sh");
        match &self.cgroup {
            Some(cgroup) => {
                let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
                command.arg("-c").arg(enter).arg(cgroup).args(&words);
            }
            None => {
                command.arg("-c").arg(r#"exec "$@""#).arg("sh").args(&words);
            }
        }
        command
    }
}

/// A running process. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    started: u64,
    /// What it prints.
    pub log: PathBuf,
    what: String,
}

impl Process {
    /// Starts `program` in `place`; output goes to `log` (appended).
    pub fn spawn(
        ledger: &Ledger,
        what: &str,
        place: &Place,
        program: &Path,
        args: &[String],
        log: PathBuf,
    ) -> Result<Self> {
        let out = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let err = out.try_clone()?;
        let child = place
            .command(program, args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        let pid = child.id() as i32;
        let started = ledger::started(pid).unwrap_or_default();
        ledger.note(&Made::Process { pid, started })?;
        Ok(Self { child, started, log, what: what.to_owned() })
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Still there?
    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and SIGKILL when it has not ended in time.
    pub fn stop(&mut self, patience: Duration) {
        let _ = kill(nix::unistd::Pid::from_raw(self.pid()), Signal::SIGTERM);
        let deadline = Instant::now() + patience;
        while self.running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }

    /// Waits for a file that the process makes when it serves; fails with the end of its log if it ends first.
    pub fn wait_for_file(&mut self, file: &Path, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !file.exists() {
            if !self.running() {
                bail!("{} ended before it was ready. Its last words:\n{}", self.what, self.last_words());
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} was not ready after {patience:?}. Its last words:\n{}",
                    self.what,
                    self.last_words()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The last lines of the log.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        ledger::kill(self.pid(), self.started);
        let _ = self.child.wait();
    }
}

/// Asks until it gets an answer: `Ok(Some)` ends the wait, `Ok(None)` and `Err` go on until the deadline.
pub fn wait_until<T>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            let why = last.map_or(String::new(), |e| format!(" ({e:#})"));
            bail!("waited {patience:?} in vain for {what}{why}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
