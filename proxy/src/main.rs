//! Parses, builds, runs, drains.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy::{Options, Proxy, overload::Ceilings, shared::Home};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The Isthmus data-plane proxy: mTLS and L7 routing, driven by Envoy's xDS types.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Subscribes at the node agent's socket and serves what it is told to, until SIGTERM or SIGINT.
    Run(Run),
}

#[derive(Debug, Parser)]
struct Run {
    /// Unix socket of the node agent.
    #[arg(long, value_name = "PATH", env = "ISTHMUS_AGENT_SOCKET")]
    agent_socket: PathBuf,
    /// Node id of xDS, for instance proxy~shop/web-1. A label only: the agent finds out itself who is calling.
    #[arg(long, value_name = "ID")]
    node_id: String,
    /// Node cluster of xDS.
    #[arg(long, value_name = "NAME", default_value = "")]
    cluster: String,
    /// Serve /ready, /stats/prometheus, /config_dump and /clusters here; a loopback address.
    #[arg(long, value_name = "IP:PORT", value_parser = loopback)]
    admin: Option<SocketAddr>,
    /// Create this file when ready.
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Log every request.
    #[arg(long)]
    access_log: bool,
    /// Shed load before the process has so much resident memory, in bytes.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    max_memory_bytes: Option<u64>,
    /// Connections of clients, of all listeners together. Further ones are closed at once.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,
    /// Where this proxy is, as region/zone/sub_zone: endpoints of the same place go first where clusters ask for that.
    #[arg(long, value_name = "LOCALITY", default_value = "")]
    locality: String,
    /// The cluster whose endpoints are the proxies of the mesh: for zone-aware routing.
    #[arg(long, value_name = "NAME", default_value = "")]
    local_cluster: String,
    /// How long requests may go on after SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    drain_seconds: u64,
    /// Form of the log on standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// What the admin endpoint tells is for this machine only, and in clear.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "is not IP:PORT".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("is no loopback address".to_owned()) }
}

fn main() -> ExitCode {
    let Cli { command: Command::Run(run) } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing can only fail if nobody reads it.
            let _ = error.print();
            // EX_USAGE of sysexits.h; help and version are no errors.
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    init_log(run.log_format);
    raise_file_limit();
    match serve(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// Every connection is a file, and the soft limit is for programs that use `select`.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(files) => tracing::debug!(files, "limit on open files"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit on open files"),
    }
}

fn serve(run: Run) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let ceilings = Ceilings { memory: run.max_memory_bytes, connections: run.max_connections };
        let home = Home { locality: run.locality, cluster: run.local_cluster };
        let options = Options {
            agent_socket: run.agent_socket,
            node_id: run.node_id,
            cluster: run.cluster,
            admin: run.admin,
            ready_file: run.ready_file,
            access_log: run.access_log,
        };
        let proxy = Proxy::start_within(options, ceilings, home).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(seconds = run.drain_seconds, "draining");
        let drained = proxy.drain(Duration::from_secs(run.drain_seconds));
        tokio::select! {
            () = drained => {}
            // Asked twice: at once.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
