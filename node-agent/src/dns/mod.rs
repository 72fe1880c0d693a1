//! `node-agent dns`: the DNS proxy of a node, beside the agent.
//!
//! Where it is asked to, it answers names of services as well ([`args::ClusterDnsArgs`]).
//!
//! It asks the agent who may ask for what, and has the agent write addresses to the kernel before a pod is told of them
//! ([`dns_proxy`] decides and carries). It is the one that connects, so it may outlive the agent and come before it.

mod args;
mod cluster;
mod follow;
mod gate;
pub mod lock;
pub mod named;
mod sight;
mod supervise;
mod wire;

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;
use clap::Args;
use dns_proxy::serve::{Listeners, Proxy};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

pub use args::ClusterDnsArgs;
pub use supervise::Supervisor;

use crate::persist;
use cluster::Start;
use follow::Follower;
use gate::AgentGate;
use sight::KernelSight;

/// Notes for flow logs that wait for the agent. More are dropped: they are no part of any answer.
const NOTES: usize = 8192;

/// Where the agent is, and what it has made.
#[derive(Debug, Clone, Args)]
pub struct DnsArgs {
    /// The agent's socket.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
    /// The agent's directory of pins.
    #[arg(long)]
    pub bpffs: PathBuf,
    /// Keeps the rules that the agent last told, for a start while the agent is away.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// The agent's state directory, in which it remembers services.
    #[arg(long, requires = "cluster_dns")]
    pub agent_state: Option<PathBuf>,
    /// The mesh's domain.
    #[arg(long, default_value = "")]
    pub mesh_domain: String,
    /// The cluster's name.
    #[arg(long, default_value = "")]
    pub cluster: String,
    #[command(flatten)]
    pub names: ClusterDnsArgs,
}

/// Runs the proxy until SIGTERM or SIGINT. Pods that may only ask through it get no answer then.
///
/// # Errors
/// It can't start, or a socket failed.
pub async fn run(args: DnsArgs) -> anyhow::Result<()> {
    persist::private_dir(&args.state_dir)
        .with_context(|| format!("--state-dir {}", args.state_dir.display()))?;
    let _lock = lock::take(&lock::path(&args.state_dir))?;
    let listeners = Listeners::bind().context("transparent sockets (CAP_NET_ADMIN)")?;
    let sight = KernelSight::new(args.bpffs.clone());
    let saved = args.state_dir.join("dns-rules");
    let (tell, rules) = watch::channel(Arc::new(follow::recall(&saved)));
    let (connected, agent) = watch::channel(None);
    let (note, notes) = mpsc::channel(NOTES);
    let naming = args.agent_state.clone().filter(|_| !args.names.addresses.is_empty()).map(|agent_state| {
        let args = args.clone();
        tokio::spawn(async move {
            let start = Start {
                args: &args.names,
                mesh_domain: &args.mesh_domain,
                cluster: &args.cluster,
                socket: args.socket.clone(),
                agent_state: &agent_state,
            };
            cluster::serve_for_ever(start).await;
        })
    });
    let follower = Follower { socket: args.socket, port: listeners.port, saved, sight: sight.clone() };
    let following = tokio::spawn(follower.follow_for_ever(tell, connected, notes));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tracing::info!(port = listeners.port, "ready");
    let proxy = Proxy::new(AgentGate::new(agent, note), sight, rules);
    let served = proxy.serve(listeners, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    let result = served.await;
    following.abort();
    if let Some(naming) = naming {
        naming.abort();
    }
    result.context("serving DNS")
}
