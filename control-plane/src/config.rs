//! The command line, parsed into what the rest is built from. Nothing else reads flags or the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use clustermesh::token_source::TOKEN_VARIABLE;
use ipnet::{IpNet, Ipv6Net};
use mesh_model::identity::TrustDomain;

use crate::doors::limits::Setting;

/// `EX_USAGE` of sysexits.h: what the process exits with when a flag is wrong.
pub const EXIT_USAGE: u8 = 64;

/// `EX_NOPERM` of sysexits.h: this replica was removed from the cluster. Starting it again changes nothing.
pub const EXIT_REMOVED: u8 = 77;

/// The control plane of one cluster: keeps its objects, serves its data planes.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "control-plane",
    version,
    after_help = "Exit codes: 0 stopped by a signal; 1 failed; 64 usage; 77 this replica was removed from the cluster."
)]
pub struct Cli {
    #[allow(missing_docs)]
    #[command(subcommand)]
    pub command: Command,
}

#[allow(missing_docs)]
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run one replica.
    Run(Box<Config>),
    /// Make a new raft group of a stopped replica's disk, without the others. Says what would happen unless
    /// --cluster confirms it.
    Recover(RecoverArgs),
    /// Make a new cluster of one replica from a backup.
    Restore(RestoreArgs),
}

/// Which disk.
#[derive(Debug, Clone, Args)]
pub struct RecoverArgs {
    /// The survivor's folder.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// The cluster's name: yes, the other replicas are lost for good.
    #[arg(long)]
    pub cluster: Option<String>,
}

/// From what, and where to.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The new replica's folder: without a store, and with the keys of one of the cluster's replicas.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// The backup.
    #[arg(long)]
    pub from: PathBuf,
    /// host:port under which others will reach the new replica.
    #[arg(long, value_parser = host_port)]
    pub advertise: String,
    /// The keys of the cluster are lost: make a new root.
    #[arg(long)]
    pub new_authority: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LogFormat {
    Text,
    Json,
}

/// One replica.
#[derive(Debug, Clone, Args)]
pub struct Config {
    /// Where the log, the state and the keys are kept; private to this replica.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// Name of the cluster, for a first start: a DNS label.
    #[arg(long, value_parser = dns_label)]
    pub name: Option<String>,
    /// Trust domain of the cluster's identities, for a first start: for instance west.example.
    #[arg(long)]
    pub trust_domain: Option<TrustDomain>,
    /// Suffix of service names, shared by all clusters of a mesh.
    #[arg(long, default_value = "mesh.local", value_parser = domain)]
    pub mesh_domain: String,
    /// Address of the mesh door (mTLS).
    #[arg(long, default_value = "0.0.0.0:9443")]
    pub listen: SocketAddr,
    /// host:port under which others reach the mesh door; the listen address unless given.
    #[arg(long, value_parser = host_port)]
    pub advertise: Option<String>,
    /// The administrators' unix socket, for root and this process's user.
    #[arg(long, default_value = "/run/isthmus/admin.sock")]
    pub admin_socket: PathBuf,
    /// Addresses of pods, for a first start.
    #[arg(long, default_value = "10.1.0.0/16")]
    pub pod_cidr: IpNet,
    /// IPv6 addresses of pods, for a first start: as large as --pod-cidr (/112 beside a /16) or larger. Pods of nodes
    /// with an IPv6 address (`node-agent run --address6`) then have both.
    #[arg(long)]
    pub pod_cidr6: Option<Ipv6Net>,
    /// Virtual addresses of services, for a first start.
    #[arg(long, default_value = "10.101.0.0/16")]
    pub service_cidr: IpNet,
    /// Virtual IPv6 addresses of services, for a first start. Services that ask for both families
    /// (`ipFamilyPolicy: PreferDualStack`) then have one of each.
    #[arg(long)]
    pub service_cidr6: Option<Ipv6Net>,
    /// Token of `clustermesh replica add`: join that cluster instead of making one. Arguments are in the process list
    /// for everybody to see: better use --join-file or the environment. Needed at the first start only.
    #[arg(long, value_name = "TOKEN", env = TOKEN_VARIABLE, hide_env_values = true)]
    pub join: Option<String>,
    /// A file with that token; '-' is stdin. Read at the first start only.
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,
    /// host:port of an east-west gateway of this cluster, told to peers; repeatable.
    #[arg(long = "gateway", value_parser = host_port)]
    pub gateways: Vec<String>,
    /// From one heartbeat of a leading replica to the next, 50ms to 1s. A leader that is not heard for 5.5 to 7 of them
    /// is replaced: longer for replicas that are far apart. The same on all replicas.
    #[arg(long, default_value = "200ms", value_parser = heartbeat, value_name = "DURATION")]
    pub heartbeat: Duration,
    /// How long a workload's certificate is valid, 10m to 720h; it is renewed at half of that.
    #[arg(long, default_value = "24h", value_parser = certificate_life)]
    pub workload_certificate_life: Duration,
    /// Also take objects from the Kubernetes API (in-cluster service account or kubeconfig).
    #[arg(long)]
    pub kubernetes: bool,
    /// Serve metrics for Prometheus here, by plain HTTP: read-only, and open to whoever reaches it; a loopback address.
    /// Off unless given.
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// --metrics may be an address that others reach: in clear, to anybody on that network.
    #[arg(long, requires = "metrics")]
    pub metrics_plain: bool,
    /// Created when the replica serves.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    #[allow(missing_docs)]
    #[arg(long, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Change a limit, for instance --limit xds-streams=50000; repeatable. A wrong name lists them all.
    #[arg(long = "limit", value_name = "NAME=NUMBER")]
    pub limits: Vec<Setting>,
    /// Time that open streams get to end on SIGTERM.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub drain_seconds: Duration,
}

impl Config {
    /// host:port under which others reach this replica.
    pub fn advertised(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }
}

/// Why the process can't start from its command line.
#[derive(Debug)]
pub enum Usage {
    /// `--help` or `--version`: not an error.
    Help(clap::Error),
    /// One sentence.
    Wrong(String),
}

/// Parses a command line of `run`.
///
/// # Errors
/// One sentence that names the flag and the value, also for another command.
pub fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Config, Usage> {
    match parse_command(arguments)? {
        Command::Run(config) => Ok(*config),
        other => Err(Usage::Wrong(format!("{other:?} does not run a replica"))),
    }
}

/// Parses a command line.
///
/// # Errors
/// One sentence that names the flag and the value.
pub fn parse_command(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Command, Usage> {
    let cli = Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Usage::Help(error),
        // Its text is the help.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Usage::Wrong("a command is missing: run, restore or recover; see --help".to_owned())
        }
        _ => {
            let text = error.to_string();
            let sentence: Vec<&str> =
                text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
            Usage::Wrong(sentence.join(" ").trim_start_matches("error: ").to_owned())
        }
    })?;
    if let Command::Run(config) = &cli.command {
        check(config)?;
    }
    Ok(cli.command)
}

fn check(config: &Config) -> Result<(), Usage> {
    if let Some(at) = config.metrics {
        mesh_telemetry::check_address(at, config.metrics_plain).map_err(Usage::Wrong)?;
    }
    let width = |net: &IpNet| net.max_prefix_len() - net.prefix_len();
    if width(&config.service_cidr) < 8 {
        return Err(Usage::Wrong(format!(
            "--service-cidr {} has room for fewer than 254 services; give a /24 or wider",
            config.service_cidr
        )));
    }
    if config.advertise.is_none() && config.listen.ip().is_unspecified() {
        return Err(Usage::Wrong(format!(
            "--listen {} is no address that others can reach; add --advertise <host:port>",
            config.listen
        )));
    }
    if config.pod_cidr.contains(&config.service_cidr) || config.service_cidr.contains(&config.pod_cidr) {
        return Err(Usage::Wrong(format!(
            "--pod-cidr {} and --service-cidr {} overlap",
            config.pod_cidr, config.service_cidr
        )));
    }
    Ok(())
}

fn dns_label(text: &str) -> Result<String, String> {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let ends = |b: Option<&u8>| b.is_some_and(|b| *b != b'-');
    let bytes = text.as_bytes();
    if bytes.len() <= 63 && bytes.iter().all(|b| fine(*b)) && ends(bytes.first()) && ends(bytes.last()) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending with '-'".to_owned())
}

fn domain(text: &str) -> Result<String, String> {
    for label in text.split('.') {
        dns_label(label).map_err(|e| format!("label {label:?} {e}"))?;
    }
    Ok(text.to_owned())
}

fn host_port(text: &str) -> Result<String, String> {
    let fits = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0));
    if fits && text.len() <= 261 { Ok(text.to_owned()) } else { Err("is not host:port".to_owned()) }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    let time = mesh_model::resource::milliseconds(text).map(Duration::from_millis);
    // Beyond that an election takes longer than a write waits for its leader.
    let allowed = Duration::from_millis(50)..=Duration::from_secs(1);
    time.filter(|time| allowed.contains(time)).ok_or_else(|| "must be 50ms to 1s".to_owned())
}

fn certificate_life(text: &str) -> Result<Duration, String> {
    let life = mesh_model::resource::milliseconds(text).map(Duration::from_millis);
    let allowed = Duration::from_secs(600)..=mesh_tls::issue::MAX_LEAF_TTL;
    life.filter(|life| allowed.contains(life)).ok_or_else(|| "must be 10m to 720h".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds)),
        _ => Err("must be 0 to 3600 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(extra: &[&str]) -> Result<Config, String> {
        let all = ["control-plane", "run", "--data-dir", "/d"].iter().chain(extra).map(Into::into);
        parse(all).map_err(|usage| match usage {
            Usage::Wrong(sentence) => sentence,
            Usage::Help(help) => help.to_string(),
        })
    }

    #[test]
    fn a_first_start_needs_few_words() {
        let config =
            run(&["--name", "west", "--trust-domain", "west.example", "--listen", "10.0.0.1:9443"]).unwrap();
        assert_eq!(config.advertised(), "10.0.0.1:9443");
        assert_eq!(config.mesh_domain, "mesh.local");
    }

    #[test]
    fn a_bad_value_is_named_in_one_sentence() {
        for (flags, words) in [
            (&["--listen", "x"][..], "--listen"),
            (&["--name", "West"], "West"),
            (&["--trust-domain", "a/b"], "a/b"),
            (&["--pod-cidr", "10.0.0.0/40"], "10.0.0.0/40"),
            (&["--listen", "1.2.3.4:1", "--gateway", "nowhere"], "nowhere"),
            (&["--listen", "1.2.3.4:1", "--service-cidr", "10.1.2.0/25"], "--service-cidr"),
            (&["--listen", "1.2.3.4:1", "--service-cidr", "10.1.2.0/24"], "overlap"),
            (&[], "--advertise"),
            (&["--lisen", "x"], "--lisen"),
            (&["--heartbeat", "49ms"], "50ms to 1s"),
            (&["--heartbeat", "2s"], "50ms to 1s"),
            (&["--workload-certificate-life", "1s"], "10m to 720h"),
            (&["--workload-certificate-life", "721h"], "720h"),
            (&["--listen", "1.2.3.4:1", "--limit", "waits"], "waits"),
            (&["--listen", "1.2.3.4:1", "--metrics", "0.0.0.0:9464"], "--metrics-plain"),
            (&["--listen", "1.2.3.4:1", "--metrics-plain"], "--metrics"),
        ] {
            let sentence = run(flags).unwrap_err();
            assert!(sentence.contains(words), "{flags:?}: {sentence}");
            assert!(!sentence.contains('\n'), "{sentence}");
        }
    }
}
