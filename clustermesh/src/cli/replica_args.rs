//! What can be typed after `clustermesh replica`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};

use super::{args::ListArgs, duration::parse_duration};

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicaCommand {
    /// Show the replicas: role, reach, log and lag.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Make a token for a new replica. It votes once it has caught up, unless told otherwise.
    Add(AddArgs),
    /// Take a replica out of the group, the records and the doors. A leader hands over first.
    #[command(visible_alias = "rm")]
    Remove(ChangeArgs),
    /// Let a learner vote, once it has caught up.
    Promote(PromoteArgs),
    /// When a majority is lost for good: make a new group of one survivor's disk. The replica must be stopped.
    Recover(RecoverArgs),
    /// On a replica that refuses to take part because of its disk: keep the damaged store aside, and come back from
    /// the others with another number and an empty log.
    Rejoin,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// It is given the log and does not vote until it is promoted.
    #[arg(long)]
    pub(crate) learner: bool,
    /// For how long the token works.
    #[arg(long, default_value = "1h", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) ttl: Duration,
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: AddOutput,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AddOutput {
    Text,
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ChangeArgs {
    /// The replica's number: see 'clustermesh replica list'.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: u64,
    /// How long to wait until the group has followed.
    #[arg(long, default_value = "60s", value_parser = parse_duration, value_name = "DURATION")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    /// The other way: make a voter a learner.
    #[arg(long)]
    pub(crate) demote: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// The survivor's folder.
    #[arg(long, default_value = "/var/lib/isthmus", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The other replicas are lost for good, and with them what only they had.
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// The control plane's binary [default: beside this one, else on the PATH]
    #[arg(long, value_name = "PATH")]
    pub(crate) control_plane: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::args::Cli;

    #[test]
    fn kubectls_habits_are_understood_and_contradictions_are_not() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for line in [
            "clustermesh replica list -o yaml",
            "clustermesh replica ls --no-headers",
            "clustermesh replica add --learner --ttl 10m -o json",
            "clustermesh replica remove 3 --timeout 5s",
            "clustermesh replica promote 4",
            "clustermesh replica promote 4 --demote",
            "clustermesh replica recover --data-dir /d --force --yes",
            "clustermesh replica rejoin",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in [
            "clustermesh replica",
            "clustermesh replica remove",
            "clustermesh replica remove 0",
            "clustermesh replica remove three",
            "clustermesh replica list -o wide",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
