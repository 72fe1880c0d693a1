//! The command line, parsed into what the parts need.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};
use clustermesh::token_source::TOKEN_VARIABLE;
use mesh_model::resource::NamespacedName;

use crate::{bootstrap::NodeFactsArgs, dns::ClusterDnsArgs, kernel::ShortCut};

/// Programs the kernel of one node, creates pods and serves their identity.
#[derive(Debug, Parser)]
#[command(name = "node-agent", version)]
#[allow(missing_docs)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node.
    Run(Box<RunArgs>),
    /// Run the DNS proxy of this node, for policies that allow names. It is a process of its own, so that names which
    /// are allowed already go on while the agent is away. The agent starts it.
    #[command(hide = true)]
    Dns(crate::dns::DnsArgs),
    /// Ask the running agent what it does.
    Status(StatusArgs),
    /// End the running agent, and say what stays enforced.
    Stop(StopArgs),
    /// Look at what the kernel holds.
    #[command(subcommand)]
    Maps(MapsCommand),
    /// Write what gRPC's own xDS clients of this pod need (GRPC_XDS_BOOTSTRAP), and keep its certificate fresh.
    GrpcBootstrap(crate::grpc::GrpcArgs),
    /// Run a proxy that policies and services may name, and tell the agent of it for as long as it runs.
    Redirect(crate::redirect::RedirectArgs),
    /// Remove everything that agents with these directories made in this network namespace.
    Cleanup(CleanupArgs),
}

/// Where things are, and who this node is.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Name of this node: unique in its cluster, a DNS name.
    #[arg(long, value_parser = dns_name)]
    pub node: String,
    /// Underlay address of this node, by which the other nodes reach its pods.
    #[arg(long)]
    pub address: Ipv4Addr,
    /// The same for IPv6. With it, pods of this node have IPv6 addresses too, if the cluster has a range for them
    /// (`--pod-cidr6` of the control plane). Told at the first start only.
    #[arg(long)]
    pub address6: Option<Ipv6Addr>,
    #[command(flatten)]
    pub facts: NodeFactsArgs,
    /// Token of `clustermesh token create --for node`. Arguments are in the process list for everybody to see: better
    /// use --join-file or the environment. Needed at the first start only.
    #[arg(long, value_name = "TOKEN", env = TOKEN_VARIABLE, hide_env_values = true)]
    pub join: Option<String>,
    /// A file with that token; '-' is stdin. Read at the first start only.
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,
    /// Keeps the node's key and certificate, its pods and the last configuration.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Unix socket for the CNI plugin, proxies and operators.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
    /// Directory of cgroup 2 below which the processes of all pods of this node live.
    #[arg(long)]
    pub cgroup: PathBuf,
    /// Directory for pinned programs and maps; a BPF file system is mounted there if it is none.
    #[arg(long)]
    pub bpffs: PathBuf,
    /// Interface by which clients outside the mesh reach this node; repeatable. What comes in there is served at node ports
    /// and host ports, and at the external and load balancers' addresses of services. None: they are for the node's own
    /// pods only. By the first, other nodes are reached.
    #[arg(long = "net-interface", value_name = "NAME", value_parser = interface)]
    pub net_interfaces: Vec<String>,
    /// Sends packets between clients outside and backends of other nodes on before this node's stack has seen them: in the
    /// driver of the interfaces (which has to support XDP), generically, which is slower, or by the first of the two that an
    /// interface takes (`auto`; `node-agent status` says which).
    #[arg(long, requires = "net_interfaces")]
    pub net_xdp: Option<XdpMode>,
    /// Ports of this node's address that their packets have on the way to backends of other nodes: none that sockets of
    /// the host are given (net.ipv4.ip_local_port_range) or listen at.
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535", value_parser = port_range)]
    pub snat_ports: PortRange,
    /// Replicas to use instead of those learnt at registration; repeat it in order of preference.
    #[arg(long = "replica", value_name = "HOST:PORT")]
    pub replicas: Vec<String>,
    /// Serves metrics for Prometheus at http://IP:PORT/metrics, in plain text and to whoever reaches it: a loopback
    /// address.
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// --metrics may be an address that others reach: in clear, to anybody on that network.
    #[arg(long, requires = "metrics")]
    pub metrics_plain: bool,
    /// Unix socket on which `hubble` reads the flows of this node, for root; beside the agent's if it is not given.
    #[arg(long, value_name = "PATH")]
    pub hubble_socket: Option<PathBuf>,
    /// Serves the flows of this node to `hubble` over mTLS as well, for administrators and replicas.
    #[arg(long, value_name = "IP:PORT")]
    pub hubble: Option<SocketAddr>,
    /// How packets get to pods of other nodes; the same on all nodes of a cluster. In a tunnel pods have 50 bytes less in a
    /// frame than the underlay, 70 over IPv6.
    #[arg(long, value_enum, default_value = "direct")]
    pub tunnel: crate::tunnel::Mode,
    /// Bytes of the longest packet that every way to the other nodes takes, where routers between them take less than this
    /// node's own interface, whose MTU it is otherwise. What leaves the mesh is as long as pods' MTU, too.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1350..=65_535))]
    pub underlay_mtu: Option<u32>,
    /// Addresses outside the mesh that pods reach with their own address, not the node's; repeatable. The network there
    /// has to know the way back.
    #[arg(long = "masquerade-exclude", value_name = "CIDR")]
    pub masquerade_exclude: Vec<ipnet::IpNet>,
    /// Names that policies allow hold for this long at least, whatever DNS says: programs use addresses for a while.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub dns_min_ttl: u32,
    #[command(flatten)]
    pub cluster_dns: ClusterDnsArgs,
    /// Asks the kernel to be quick while a pod's programs are attached and while its interface goes
    /// (/sys/kernel/rcu_expedited, for about a millisecond): CPUs are interrupted, as they are by other changes of
    /// interfaces. Without, each pod takes some 50 ms longer to come, and to go.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub expedite_rcu: bool,
    /// Created once the agent serves, with its process id in it.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
    /// A Workload with `proxy: gateway` that runs in this node's own network namespace; repeatable.
    #[arg(long = "gateway-workload", value_name = "NAMESPACE/NAME", value_parser = namespaced)]
    pub gateway_workloads: Vec<NamespacedName>,
    /// The cgroup that the processes of such a Workload live in, a directory below --cgroup or an absolute path: nobody
    /// outside of it is given its certificate, and inside it the SPIFFE Workload API gives it. Repeatable.
    #[arg(long = "gateway-cgroup", value_name = "NAMESPACE/NAME=DIR", value_parser = named_dir)]
    pub gateway_cgroups: Vec<(NamespacedName, PathBuf)>,
    /// Serves the SPIFFE Workload API on this unix socket, to every pod that the file is mounted into.
    #[arg(long, value_name = "PATH")]
    pub spiffe_socket: Option<PathBuf>,
}

impl RunArgs {
    /// Where flows are read.
    pub fn hubble_socket(&self) -> PathBuf {
        self.hubble_socket.clone().unwrap_or_else(|| beside(&self.socket))
    }
}

/// Hubble's socket of an agent that was not told another place: `hubble.sock` beside `agent.sock`, and `n1-hubble.sock`
/// beside `n1.sock`, as several agents may have theirs in one directory.
pub fn beside(socket: &Path) -> PathBuf {
    match socket.file_stem().and_then(|stem| stem.to_str()) {
        None | Some("agent") => socket.with_file_name("hubble.sock"),
        Some(stem) => socket.with_file_name(format!("{stem}-hubble.sock")),
    }
}

/// Which agent to ask.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The agent's socket.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
}

/// Which agent to end.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// The agent's socket.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
    /// The agent's directory of pins.
    #[arg(long)]
    pub bpffs: Option<PathBuf>,
    /// Take the programs out of the kernel as well: from then on nothing is enforced, and pods are open.
    #[arg(long, requires = "bpffs")]
    pub open: bool,
}

/// What to do with the kernel's maps.
#[derive(Debug, Clone, Subcommand)]
pub enum MapsCommand {
    /// Print the entries of a map, or of all; with an agent or without.
    Dump(DumpArgs),
    /// Compare the kernel with what it is to hold; exits with 1 and says what differs if it is not the same.
    Verify(VerifyArgs),
}

/// What to print.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// The map's name, as `bpftool map` shows it; all if there is none.
    pub map: Option<String>,
    /// The agent's directory of pins.
    #[arg(long)]
    pub bpffs: PathBuf,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    pub output: Output,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Output {
    Table,
    Json,
}

/// Which agent to ask.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The agent's socket.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
    /// Without an agent: its state directory, from whose last configuration and pods the maps are computed.
    #[arg(long, requires = "bpffs")]
    pub state_dir: Option<PathBuf>,
    /// With it: its directory of pins.
    #[arg(long, requires = "state_dir")]
    pub bpffs: Option<PathBuf>,
}

/// What to remove.
#[derive(Debug, Clone, Args)]
pub struct CleanupArgs {
    /// The agent's state directory: names its pods, and what else it made. The key and the certificate in it stay.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// A directory of pins to be emptied beside what the state directory names.
    #[arg(long)]
    pub bpffs: Option<PathBuf>,
    /// A socket to be removed beside what the state directory names.
    #[arg(long)]
    pub socket: Option<PathBuf>,
}

/// Where packets are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum XdpMode {
    Auto,
    Driver,
    Generic,
}

impl From<XdpMode> for ShortCut {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Auto => Self::Best,
            XdpMode::Driver => Self::Driver,
            XdpMode::Generic => Self::Generic,
        }
    }
}

/// Ports from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let parsed = text.split_once('-').and_then(|(first, last)| {
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (1024 <= first && first <= last).then_some(PortRange { first, last })
    });
    parsed.ok_or_else(|| format!("{text:?} is not FIRST-LAST, two ports from 1024 to 65535"))
}

/// As the kernel has it (`dev_valid_name`).
fn interface(text: &str) -> Result<String, String> {
    let fine = (1..16).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
        && text != "."
        && text != "..";
    if fine { Ok(text.to_owned()) } else { Err(format!("{text:?} is not the name of an interface")) }
}

pub(crate) fn namespaced(text: &str) -> Result<NamespacedName, String> {
    let name = NamespacedName::parse(text).ok_or_else(|| format!("{text:?} is not <namespace>/<name>"))?;
    dns_label(&name.namespace)?;
    dns_label(&name.name)?;
    Ok(name)
}

fn named_dir(text: &str) -> Result<(NamespacedName, PathBuf), String> {
    let (name, dir) =
        text.split_once('=').ok_or_else(|| format!("{text:?} is not <namespace>/<name>=<dir>"))?;
    if dir.is_empty() {
        return Err(format!("{text:?} names no directory"));
    }
    Ok((namespaced(name)?, PathBuf::from(dir)))
}

/// RFC 1123 label: what Kubernetes allows as the name of a namespace or pod's first part.
pub(crate) fn dns_label(text: &str) -> Result<String, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fine {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} must be 1 to 63 characters of a-z, 0-9 and '-', not beginning or ending in '-'"
        ))
    }
}

/// Labels with dots between them: what Kubernetes allows as the name of a node.
pub(crate) fn dns_name(text: &str) -> Result<String, String> {
    if text.len() > 253 {
        return Err(format!("{text:?} is longer than 253 characters"));
    }
    text.split('.').try_for_each(|label| dns_label(label).map(drop))?;
    Ok(text.to_owned())
}

impl Cli {
    /// Parses a command line, and refuses flags that do not go together.
    ///
    /// # Errors
    /// What is wrong, or what was asked for by `--help` and `--version`.
    pub fn parse_checked<T: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let cli = Self::try_parse_from(words)?;
        if let Command::Run(run) = &cli.command
            && let Some(at) = run.metrics
        {
            mesh_telemetry::check_address(at, run.metrics_plain)
                .map_err(|sentence| Self::command().error(ErrorKind::ValueValidation, sentence))?;
        }
        if let Command::Run(run) = &cli.command
            && let Some((stranger, _)) =
                run.gateway_cgroups.iter().find(|(name, _)| !run.gateway_workloads.contains(name))
        {
            let sentence =
                format!("--gateway-cgroup {stranger}=…: there is no --gateway-workload {stranger}");
            return Err(Self::command().error(ErrorKind::ValueValidation, sentence));
        }
        Ok(cli)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Cli, clap::Error> {
        let base = ["node-agent", "run", "--node", "n1", "--address", "192.0.2.1", "--state-dir", "/s"];
        let rest = ["--cgroup", "/c", "--bpffs", "/b"];
        Cli::parse_checked(base.iter().chain(&rest).chain(more))
    }

    #[test]
    fn metrics_are_for_this_machine_unless_it_is_said() {
        assert!(parse(&["--metrics", "127.0.0.1:9464"]).is_ok());
        assert!(parse(&["--metrics", "192.0.2.1:9464", "--metrics-plain"]).is_ok());
        let refused = parse(&["--metrics", "192.0.2.1:9464"]).unwrap_err();
        assert!(refused.to_string().contains("--metrics-plain"), "{refused}");
    }

    #[test]
    fn agents_whose_sockets_are_in_one_directory_have_a_socket_for_hubble_each() {
        assert_eq!(beside(Path::new("/run/isthmus/agent.sock")), Path::new("/run/isthmus/hubble.sock"));
        assert_eq!(beside(Path::new("/run/west/n1.sock")), Path::new("/run/west/n1-hubble.sock"));
    }

    #[test]
    fn replicas_and_gateways_may_be_repeated() {
        let cli = parse(&["--replica", "a:1", "--replica", "b:2", "--gateway-workload", "mesh/gw"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.replicas, ["a:1", "b:2"]);
        assert_eq!(run.gateway_workloads, [NamespacedName::new("mesh", "gw")]);
    }

    #[test]
    fn interfaces_and_ports_are_checked_before_anything_is_done() {
        let cli =
            parse(&["--net-interface", "eth0", "--net-interface", "eth1", "--snat-ports", "50000-50001"]);
        let Command::Run(run) = cli.unwrap().command else { panic!("not run") };
        assert_eq!(run.net_interfaces, ["eth0", "eth1"]);
        assert_eq!(run.snat_ports, PortRange { first: 50_000, last: 50_001 });
        for ports in ["50001-50000", "80-90", "50000", "a-b", "50000-70000"] {
            assert!(parse(&["--snat-ports", ports]).is_err(), "{ports}");
        }
        for name in ["", "a/b", "0123456789abcdef", "a b"] {
            assert!(parse(&["--net-interface", name]).is_err(), "{name}");
        }
    }

    #[test]
    fn a_cgroup_is_of_a_gateway_that_is_named() {
        let with = |cgroup: &str| parse(&["--gateway-workload", "mesh/gw", "--gateway-cgroup", cgroup]);
        let Command::Run(run) = with("mesh/gw=gw.service").unwrap().command else { panic!("not run") };
        assert_eq!(run.gateway_cgroups, [(NamespacedName::new("mesh", "gw"), "gw.service".into())]);
        for wrong in ["mesh/other=x", "mesh/gw", "mesh/gw=", "gw=x"] {
            assert!(with(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_of_services_are_answered_where_it_is_said() {
        let cli = parse(&["--cluster-dns", "169.254.20.10", "--cluster-dns", "fd69::10"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!((run.cluster_dns.addresses.len(), run.cluster_dns.domain.as_str()), (2, "cluster.local"));
        let words = run.cluster_dns.words();
        let again = Cli::parse_checked(
            ["node-agent", "dns", "--bpffs", "/b", "--state-dir", "/s/dns", "--agent-state", "/s"]
                .map(std::ffi::OsString::from)
                .into_iter()
                .chain(words),
        );
        let Command::Dns(args) = again.unwrap().command else { panic!("not dns") };
        assert_eq!(args.names, run.cluster_dns, "the process is told the same");
        for wrong in [
            &["--cluster-dns", "127.0.0.1"][..],
            &["--cluster-dns-upstream", "192.0.2.1"],
            &["--cluster-domain", "Cluster.local"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_that_could_leave_the_state_directory_are_refused() {
        assert!(parse(&["--gateway-workload", "../etc"]).is_err());
        assert!(parse(&["--gateway-workload", "mesh/Gw"]).is_err());
        assert!(parse(&["--gateway-workload", "mesh"]).is_err());
        assert!(dns_label("a/b").is_err());
        assert!(dns_label("").is_err());
    }
}
