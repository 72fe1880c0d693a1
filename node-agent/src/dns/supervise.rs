//! Sees to it that the DNS proxy runs, once a pod of this node may ask only through it. It is a process of its own, outlives
//! the agent, and is taken over by the next one.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{args::ClusterDnsArgs, lock};
use crate::engine::Engine;

/// This program, also after its file was replaced.
const MYSELF: &str = "/proc/self/exe";
/// A process that ended sooner is started again after [`RETRY`] only.
const LIVES: Duration = Duration::from_secs(1);
/// See there.
const RETRY: Duration = Duration::from_millis(500);
/// A process that was started has begun to be the proxy by then.
const BEGINS: Duration = Duration::from_secs(5);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// What the proxy is started with.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// The agent's socket.
    pub socket: PathBuf,
    /// The agent's directory of pins.
    pub bpffs: PathBuf,
    /// The proxy's own.
    pub state_dir: PathBuf,
    /// The agent's.
    pub agent_state: PathBuf,
    /// The mesh's domain.
    pub mesh_domain: String,
    /// The cluster's name.
    pub cluster: String,
    /// Names of services, if they are to be answered.
    pub names: ClusterDnsArgs,
    /// How often it was started by this agent.
    pub starts: Arc<AtomicU64>,
}

impl Supervisor {
    /// Keeps it running, for ever. Stop it by dropping the future: the proxy goes on.
    pub async fn keep_for_ever(self, engine: Engine) {
        let mut changes = engine.changes();
        loop {
            changes.borrow_and_update();
            if !self.names.addresses.is_empty() || engine.needs_dns_proxy() || self.is_there() {
                break;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
        loop {
            let began = Instant::now();
            if let Err(error) = self.run().await {
                tracing::error!(%error, "the DNS proxy can't be run");
            }
            tracing::warn!(
                "the DNS proxy has ended: pods that may ask only through it get no answer until it is back"
            );
            if began.elapsed() < LIVES {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn is_there(&self) -> bool {
        matches!(lock::holder(&lock::path(&self.state_dir)), Ok(Some(_)))
    }

    /// Takes over what runs, or starts it; returns when it has ended.
    async fn run(&self) -> io::Result<()> {
        let path = lock::path(&self.state_dir);
        if let Some(process) = lock::holder(&path)? {
            if is_same_program(process) && self.is_as_wanted(process) {
                tracing::info!(process, "the DNS proxy of the agent before goes on");
            } else {
                tracing::info!(process, "the DNS proxy is of another release, or is to serve otherwise");
                let ending = path.clone();
                blocking(move || lock::end(&ending)).await?;
                self.start().await?;
            }
        } else {
            self.start().await?;
        }
        blocking(move || lock::wait(&path)).await
    }

    async fn start(&self) -> io::Result<()> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(MYSELF);
        command.arg0("node-agent").args(self.words());
        // A signal to the agent's group is none to it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = tokio::process::Command::from(command).spawn()?;
        tracing::info!(process = child.id(), "the DNS proxy is started");
        let deadline = Instant::now() + BEGINS;
        let path = lock::path(&self.state_dir);
        let number = child.id().map(|id| id.to_string());
        // (Not by looking for the lock, which would keep it from taking it.)
        while fs::read_to_string(&path).ok() != number {
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("it ended at once: {status}")));
            }
            if Instant::now() > deadline {
                child.start_kill()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not begin"));
            }
            tokio::time::sleep(LOOK).await;
        }
        // Reaped when it ends; it is not ended with the agent.
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }
}

impl Supervisor {
    /// Its command line.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["dns".into()];
        for (flag, path) in
            [("--socket", &self.socket), ("--bpffs", &self.bpffs), ("--state-dir", &self.state_dir)]
        {
            words.extend([flag.into(), path.into()]);
        }
        if !self.names.addresses.is_empty() {
            words.extend(["--agent-state".into(), (&self.agent_state).into()]);
            words.extend(["--mesh-domain".into(), (&self.mesh_domain).into()]);
            words.extend(["--cluster".into(), (&self.cluster).into()]);
            words.extend(self.names.words());
        }
        words
    }

    /// Whether a process has been started with the same words.
    fn is_as_wanted(&self, process: u32) -> bool {
        let Ok(line) = fs::read(format!("/proc/{process}/cmdline")) else { return false };
        let wanted: Vec<u8> = self.words().iter().flat_map(|word| [word.as_bytes(), &[0]].concat()).collect();
        let end = line.iter().position(|byte| *byte == 0).map_or(line.len(), |end| end + 1);
        line.get(end..) == Some(&wanted)
    }
}

/// Whether a process runs this very program.
fn is_same_program(process: u32) -> bool {
    let of = |path: &str| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let own = of(MYSELF);
    own.is_some() && own == of(&format!("/proc/{process}/exe"))
}

/// On a thread of its own, which must not keep the agent from ending.
async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("dns-lock".to_owned()).spawn(move || {
        let _ = tell.send(work());
    })?;
    told.await.map_err(io::Error::other)?
}
