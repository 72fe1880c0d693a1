//! etcd, as its packages ship it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};

use super::{Group, MEMBERS, Member, Restart, client::Door};
use crate::process::free_ports;

/// etcd's two timings.
#[derive(Debug, Clone, Copy)]
pub struct EtcdTimings {
    /// `--heartbeat-interval`
    pub heartbeat: Duration,
    /// `--election-timeout`; the time drawn is between this and twice as long.
    pub election: Duration,
}

impl EtcdTimings {
    /// etcd's defaults.
    pub const DEFAULT: Self =
        Self { heartbeat: Duration::from_millis(100), election: Duration::from_millis(1_000) };
    /// A lost leader is noticed as soon as ours is at the earliest: ours takes 1.1 to 1.7 s with its defaults, this
    /// 1.1 to 2.2 s.
    pub const LIKE_OURS: Self =
        Self { heartbeat: Duration::from_millis(200), election: Duration::from_millis(1_100) };
}

/// Starts three members in a folder.
pub async fn etcd(program: &Path, folder: &Path, timings: EtcdTimings) -> Result<Group> {
    let ports: [u16; 2 * MEMBERS] = free_ports()?;
    let (peers, clients) = ports.split_at(MEMBERS);
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let names: Vec<String> = (0..MEMBERS).map(|index| format!("m{index}")).collect();
    let everybody: Vec<String> =
        names.iter().zip(peers).map(|(name, port)| format!("{name}={}", url(*port))).collect();
    let everybody = everybody.join(",");
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let starting = names.iter().zip(peers).zip(clients).map(|((name, peer), client)| {
        let (peer, door) = (url(*peer), url(*client));
        let data = folder.join(name);
        let arguments = vec![
            flag("name", name),
            flag("data-dir", &data.display().to_string()),
            flag("listen-peer-urls", &peer),
            flag("initial-advertise-peer-urls", &peer),
            flag("listen-client-urls", &door),
            flag("advertise-client-urls", &door),
            flag("initial-cluster", &everybody),
            flag("initial-cluster-state", "new"),
            flag("heartbeat-interval", &timings.heartbeat.as_millis().to_string()),
            flag("election-timeout", &timings.election.as_millis().to_string()),
            flag("log-level", "error"),
        ];
        let log = folder.join(format!("{name}.log"));
        let restart = Restart { program: program.to_owned(), arguments, log };
        Member::start("etcd", restart, Door::Etcd(*client))
    });
    // All at once: the first serves nobody before it has a quorum.
    let members = futures::future::try_join_all(starting).await?;
    let group = Group { name: version(program)?, members };
    group.leader().await.context("etcd elects no leader")?;
    Ok(group)
}

/// `etcd 3.5.1`
fn version(program: &Path) -> Result<String> {
    let output = std::process::Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or("unknown");
    Ok(format!("etcd {version}"))
}
