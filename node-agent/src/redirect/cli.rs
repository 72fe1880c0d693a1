//! `node-agent redirect`: runs a proxy, and says to the agent for as long as it runs where it listens.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use xds_proto::isthmus::local::v1::{RegisterProxyRequest, redirects_client::RedirectsClient};

use crate::config::dns_label;

/// Between attempts to reach the agent.
const RETRY: Duration = Duration::from_millis(200);

/// A proxy that speaks no protocol of ours.
#[derive(Debug, Clone, Args)]
pub struct RedirectArgs {
    /// The agent's socket.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
    /// What policies and services call it.
    #[arg(long, value_parser = dns_label)]
    pub name: String,
    /// Its port on 127.0.0.1; 0: it takes no IPv4.
    #[arg(long, default_value_t = 0)]
    pub port4: u16,
    /// Its port on ::1; 0: it takes no IPv6.
    #[arg(long, default_value_t = 0)]
    pub port6: u16,
    /// It takes connections.
    #[arg(long)]
    pub tcp: bool,
    /// It takes datagrams.
    #[arg(long)]
    pub udp: bool,
    /// The proxy's program and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Runs the proxy, until it ends or this process is asked to.
///
/// # Errors
/// It does not start, fails, or the agent refuses it.
pub async fn run(args: RedirectArgs) -> anyhow::Result<()> {
    let [program, arguments @ ..] = args.command.as_slice() else { bail!("no program is named") };
    let mut asked = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut command = tokio::process::Command::new(program);
    let mut child =
        command.args(arguments).kill_on_drop(true).spawn().with_context(|| format!("{program:?}"))?;
    let status = tokio::select! {
        status = child.wait() => status?,
        refused = register_for_ever(&args) => return refused,
        _ = asked.recv() => return end(child).await,
        _ = interrupted.recv() => return end(child).await,
    };
    if status.success() { Ok(()) } else { bail!("{program:?}: {status}") }
}

async fn end(mut child: tokio::process::Child) -> anyhow::Result<()> {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        kill(Pid::from_raw(id), Signal::SIGTERM)?;
    }
    child.wait().await?;
    Ok(())
}

/// Anew with each agent. Returns what the agent has against it.
async fn register_for_ever(args: &RedirectArgs) -> anyhow::Result<()> {
    let request = RegisterProxyRequest {
        name: args.name.clone(),
        port4: args.port4.into(),
        port6: args.port6.into(),
        tcp: args.tcp,
        udp: args.udp,
    };
    loop {
        if let Ok(channel) = mesh_tls::grpc::connect_unix(&args.socket).await {
            match RedirectsClient::new(channel).register(request.clone()).await {
                Ok(stream) => {
                    let mut told = stream.into_inner();
                    while let Ok(Some(_)) = told.message().await {
                        tracing::info!(name = args.name, "the agent knows the proxy");
                    }
                    tracing::warn!(name = args.name, "the agent is away: what it told the kernel holds");
                }
                Err(status) if is_final(&status) => bail!("the agent refuses: {}", status.message()),
                Err(status) => tracing::warn!(error = status.message(), "trying again"),
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn is_final(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::PermissionDenied)
}
