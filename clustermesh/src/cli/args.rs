//! What can be typed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{
    backup_args::{BackupArgs, RestoreArgs},
    duration::{parse_duration, parse_wait},
    server::ServerArgs,
};

/// Where the control plane's administrators' socket is unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/isthmus/admin.sock";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 refused or failed; 3 not found; 4 a wait timed out; \
    5 no quorum (a change was refused, or what is shown was known last); 6 stored, but a data plane refused it; 64 usage; \
    69 the control plane is unreachable.";

/// Run and connect Isthmus clusters.
#[derive(Debug, Parser)]
#[command(name = "clustermesh", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the first replica of a new cluster.
    Init(Box<InitArgs>),
    /// Invite a peer cluster, a node or a replica; list and withdraw invitations.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// List, add, remove and promote the replicas of this cluster's control plane.
    Replica {
        #[command(subcommand)]
        command: super::replica_args::ReplicaCommand,
    },
    /// Join this cluster to the one that made the token.
    Join(JoinArgs),
    /// Show replicas, peers, data planes and certificates.
    Status(StatusArgs),
    /// Create or change objects from YAML or JSON.
    Apply(ApplyArgs),
    /// List objects.
    Get(GetArgs),
    /// Show one object in full.
    Describe(DescribeArgs),
    /// Delete objects.
    Delete(DeleteArgs),
    /// Say what policy does to a connection, and which rules decide.
    Explain(super::explain::ExplainArgs),
    /// Show traffic with verdicts, and the policies behind them.
    Observe(ObserveArgs),
    /// Show what each data plane was sent, and what it has accepted or refused.
    #[command(visible_alias = "ps")]
    ProxyStatus(ProxyStatusArgs),
    /// Show the certificate authority, or rotate its root.
    Ca {
        #[command(subcommand)]
        command: super::ca::CaCommand,
    },
    /// Give administrators certificates for use from other machines; list and withdraw them.
    Admin {
        #[command(subcommand)]
        command: super::admin::AdminCommand,
    },
    /// List, revoke or remove nodes.
    Node {
        #[command(subcommand)]
        command: super::node::NodeCommand,
    },
    /// Write one revision of the cluster to a file, and check it.
    Backup(BackupArgs),
    /// Make a new cluster of one replica from a backup.
    Restore(RestoreArgs),
    /// Print a completion script, for instance for: source <(clustermesh completions bash)
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Name of the cluster: a DNS label that no other cluster of the mesh has.
    #[arg(long)]
    pub(crate) name: String,
    /// Trust domain of its identities [default: <name>.<mesh domain>]
    #[arg(long)]
    pub(crate) trust_domain: Option<String>,
    /// Suffix of service names, the same in all clusters of a mesh.
    #[arg(long, default_value = "mesh.local")]
    pub(crate) mesh_domain: String,
    /// Address of the mesh door. Others must be able to reach it.
    #[arg(long, default_value = "127.0.0.1:9443")]
    pub(crate) listen: SocketAddr,
    /// host:port by which others reach the mesh door [default: the listen address]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Keys, log and state of this replica.
    #[arg(long, default_value = "/var/lib/isthmus", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Addresses of pods [default: the control plane's]
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr: Option<String>,
    /// IPv6 addresses of pods, as large as that range or larger [default: none]
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr6: Option<String>,
    /// Virtual addresses of services [default: the control plane's]
    #[arg(long, value_name = "CIDR")]
    pub(crate) service_cidr: Option<String>,
    /// Virtual IPv6 addresses of services [default: none]
    #[arg(long, value_name = "CIDR")]
    pub(crate) service_cidr6: Option<String>,
    /// An east-west gateway of this cluster, told to peers; repeatable.
    #[arg(long = "gateway", value_name = "IP:PORT")]
    pub(crate) gateways: Vec<SocketAddr>,
    /// Become the control plane instead of starting it in the background.
    #[arg(long)]
    pub(crate) foreground: bool,
    /// How long to wait until it serves.
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
    /// The control plane's binary [default: beside this one, else on the PATH]
    #[arg(long, value_name = "PATH")]
    pub(crate) control_plane: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token. It is printed once, works once, and is as good as a password until then.
    Create(TokenCreateArgs),
    /// List the tokens that were made, without their secrets.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Withdraw a token that nobody has used yet.
    #[command(visible_alias = "rm")]
    Revoke(super::tokens::RevokeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TokenCreateArgs {
    /// Who may join with it.
    #[arg(long = "for", value_enum, value_name = "WHO")]
    pub(crate) purpose: TokenPurpose,
    /// For how long.
    #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) ttl: Duration,
    /// The only node that may use it.
    #[arg(long)]
    pub(crate) node: Option<String>,
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: TokenOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenPurpose {
    /// Another cluster.
    Peer,
    /// A node agent.
    Node,
    /// Another replica of this cluster's control plane.
    Replica,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenOutput {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What 'clustermesh token create --for peer' printed on the other cluster; '-' reads it from stdin.
    pub(crate) token: String,
    /// How long the two clusters may take.
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyStatusArgs {
    /// One data plane, resource by resource: its name as it is listed, or the workload or node behind it.
    #[arg(value_name = "CLIENT")]
    pub(crate) client: Option<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: StatusOutput,
}

/// Of lists that are no objects.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: StatusOutput,
    /// Leave out the headings.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: StatusOutput,
    /// Show it again every two seconds.
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusOutput {
    Table,
    Json,
    Yaml,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A file, a folder (its *.yaml, *.yml and *.json, by name) or '-' for stdin; repeatable.
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub(crate) filenames: Vec<String>,
    /// Namespace of objects that name none [default: default]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Return when every data plane concerned has acknowledged the change.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait, at most 10m.
    #[arg(long, default_value = "30s", value_parser = parse_wait, value_name = "DURATION")]
    pub(crate) timeout: Duration,
    /// Check everything and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: ApplyOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ApplyOutput {
    Text,
    Name,
    Json,
}

/// Which namespaces a command looks into.
#[derive(Debug, Args)]
pub(crate) struct Scope {
    /// The namespace to look into [default: default]
    #[arg(short, long, conflicts_with = "all_namespaces")]
    pub(crate) namespace: Option<String>,
    /// Look into all namespaces.
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
}

impl Scope {
    /// As the wire wants it: empty means all.
    pub(crate) fn wire(&self) -> String {
        if self.all_namespaces {
            String::new()
        } else {
            self.namespace.clone().unwrap_or_else(|| "default".to_owned())
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// KIND [NAME...], KIND/NAME..., KIND,KIND or 'all'. Kinds: workload (wl, po), service (svc),
    /// endpointslice (eps), networkpolicy (netpol), httproute, serviceexport (svcexport), sidecar.
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub(crate) what: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Only objects with these labels, for instance app=pay,tier!=front
    #[arg(short = 'l', long, default_value = "", value_name = "LABELS")]
    pub(crate) selector: String,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: GetOutput,
    /// Then go on with every change.
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Leave out the headings.
    #[arg(long)]
    pub(crate) no_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GetOutput {
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

#[derive(Debug, Args)]
pub(crate) struct DescribeArgs {
    /// KIND [NAME...] or KIND/NAME...
    #[arg(required = true, value_name = "KIND [NAME]")]
    pub(crate) what: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Only objects with these labels.
    #[arg(short = 'l', long, default_value = "", value_name = "LABELS")]
    pub(crate) selector: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// KIND NAME... or KIND/NAME...
    #[arg(required_unless_present = "filenames", conflicts_with = "filenames", value_name = "KIND NAME")]
    pub(crate) what: Vec<String>,
    /// Delete what a file, a folder or stdin ('-') names; repeatable.
    #[arg(short, long = "filename", value_name = "FILE")]
    pub(crate) filenames: Vec<String>,
    /// Namespace of objects that name none [default: default]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Objects that are gone already are no error.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
    /// Return when every data plane concerned has acknowledged the change.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait, at most 10m.
    #[arg(long, default_value = "30s", value_parser = parse_wait, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct ObserveArgs {
    /// Go on as flows happen.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// So many past flows first.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) last: u32,
    /// Only flows with this verdict.
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) verdict: Option<Verdict>,
    /// Only flows from or to this namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Only flows from or to this workload (NAME or NAMESPACE/NAME).
    #[arg(short, long)]
    pub(crate) workload: Option<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: ObserveOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum Verdict {
    Forwarded,
    Dropped,
    /// Forwarded, although a policy in audit mode would have dropped it.
    Audit,
    /// Handed to a proxy of the node.
    Redirected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObserveOutput {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Shell {
    pub(crate) fn generator(self) -> clap_complete::Shell {
        match self {
            Self::Bash => clap_complete::Shell::Bash,
            Self::Zsh => clap_complete::Shell::Zsh,
            Self::Fish => clap_complete::Shell::Fish,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn kubectls_habits_are_understood() {
        for line in [
            "clustermesh get svc",
            "clustermesh get svc,netpol -A -o wide",
            "clustermesh get svc/pay -n shop -o yaml",
            "clustermesh get all -n shop",
            "clustermesh get wl -l app=pay -w --no-headers",
            "clustermesh apply -f a.yaml -f dir -f - --wait --timeout 1m30s",
            "clustermesh delete svc pay cards -n shop",
            "clustermesh delete -f shop.yaml --ignore-not-found",
            "clustermesh describe netpol pay-callers -n shop",
            "clustermesh observe -f --verdict dropped -n shop --workload web",
            "clustermesh token create --for node --ttl 10m --node west-n1",
            "clustermesh token list -o json",
            "clustermesh token revoke abc def",
            "clustermesh status --watch -o json",
            "clustermesh proxy-status",
            "clustermesh proxy-status envoy~shop/web -o yaml",
            "clustermesh completions zsh",
            "clustermesh --socket /tmp/x.sock status",
            "clustermesh status --socket /tmp/x.sock",
            "clustermesh init --name west --listen 192.0.2.1:9443 --gateway 192.0.2.2:15443",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "clustermesh",
            "clustermesh get",
            "clustermesh get svc -A -n shop",
            "clustermesh apply",
            "clustermesh apply -f x --timeout soon",
            "clustermesh apply -f x --timeout 601s",
            "clustermesh delete",
            "clustermesh delete svc pay -f x.yaml",
            "clustermesh observe --verdict MAYBE",
            "clustermesh token create",
            "clustermesh token revoke",
            "clustermesh token create --for friend",
            "clustermesh completions tcsh",
            "clustermesh init --name west --listen nowhere",
        ] {
            assert!(parse(line).unwrap_err().use_stderr(), "{line}");
        }
    }

    #[test]
    fn the_namespace_is_default_unless_told_otherwise() {
        let scope = |line: &str| match parse(line).unwrap().command {
            Command::Get(args) => args.scope.wire(),
            other => panic!("{other:?}"),
        };
        assert_eq!(scope("clustermesh get svc"), "default");
        assert_eq!(scope("clustermesh get svc -n shop"), "shop");
        assert_eq!(scope("clustermesh get svc -A"), "");
    }
}
