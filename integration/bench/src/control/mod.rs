//! The control plane: writes and the loss of a leader against etcd, three members each, on the same disk.

mod client;
mod etcd;
mod loss;
mod ours;
mod writes;

use std::path::Path;

use anyhow::Result;

pub use client::Client;
pub use etcd::{EtcdTimings, etcd};
pub use loss::{Loss, leader_loss};
pub use ours::ours;
pub use writes::{Writes, syncs, writes};

use crate::process::Process;

/// Members of each group.
pub const MEMBERS: usize = 3;

/// Three members of one store.
#[derive(Debug)]
pub struct Group {
    /// `isthmus`, or the other's name and version.
    pub name: String,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    process: Process,
    client: Client,
    restart: Restart,
}

/// How a member was started, to be started again.
#[derive(Debug)]
struct Restart {
    program: std::path::PathBuf,
    arguments: Vec<String>,
    log: std::path::PathBuf,
}

impl Member {
    async fn start(name: &str, restart: Restart, door: client::Door) -> Result<Self> {
        let process = Process::start(name, &restart.program, &restart.arguments, &restart.log)?;
        Ok(Self { process, client: Client::connect(door).await?, restart })
    }
}

impl Group {
    /// The member that leads now; waits until there is one.
    pub async fn leader(&self) -> Result<usize> {
        let found = async {
            loop {
                for (index, member) in self.members.iter().enumerate() {
                    if member.client.leads().await.unwrap_or(false) {
                        return index;
                    }
                }
                tokio::time::sleep(client::AGAIN).await;
            }
        };
        Ok(tokio::time::timeout(client::PATIENCE, found).await?)
    }

    /// Connections to one member.
    pub fn client(&self, member: usize) -> Client {
        self.members[member].client.clone()
    }

    /// The process of one member.
    pub fn process(&self, member: usize) -> &Process {
        &self.members[member].process
    }

    /// SIGKILL.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.members[member].process.kill()
    }

    /// Starts a killed member again and waits until it takes writes.
    pub async fn revive(&mut self, member: usize) -> Result<()> {
        let member = &mut self.members[member];
        let Restart { program, arguments, log } = &member.restart;
        member.process = Process::start(&self.name, program, arguments, log)?;
        let client = member.client.clone();
        let back = async {
            while client.put(0).await.is_err() {
                tokio::time::sleep(client::AGAIN).await;
            }
        };
        Ok(tokio::time::timeout(client::PATIENCE, back).await?)
    }

    /// Processor time of all members so far.
    pub fn cpu(&self) -> Result<std::time::Duration> {
        self.members.iter().map(|member| member.process.cpu()).sum()
    }

    /// Resident memory of all members, in bytes.
    pub fn resident(&self) -> Result<u64> {
        self.members.iter().map(|member| member.process.resident()).sum()
    }

    /// Fails if a member has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(|member| member.process.check())
    }
}

/// Where a program of this workspace is: beside this one.
pub(crate) fn beside(name: &str) -> Result<std::path::PathBuf> {
    let myself = std::env::current_exe()?;
    let path = myself.parent().unwrap_or(Path::new(".")).join(name);
    anyhow::ensure!(path.exists(), "{} is missing: build the workspace in the same profile", path.display());
    Ok(path)
}
