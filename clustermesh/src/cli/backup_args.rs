//! What can be typed after `clustermesh backup` and `clustermesh restore`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Where the backup goes. A file that is there is replaced once the new one is whole.
    pub(crate) file: PathBuf,
    /// Make none: check the one that is there.
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The backup.
    pub(crate) file: PathBuf,
    /// Check the backup and change nothing.
    #[arg(long)]
    pub(crate) check: bool,
    /// The folder of the new replica. Its keys are used if it has any of this cluster; it must hold no store.
    #[arg(long, default_value = "/var/lib/isthmus", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// host:port by which others will reach the new replica.
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "check")]
    pub(crate) advertise: Option<String>,
    /// The keys of the cluster are lost: make a new root. Nodes, replicas and peers must join again.
    #[arg(long)]
    pub(crate) new_authority: bool,
    /// The control plane's binary [default: beside this one, else on the PATH]
    #[arg(long, value_name = "PATH")]
    pub(crate) control_plane: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::args::Cli;

    #[test]
    fn restoring_needs_an_address_and_checking_does_not() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for line in [
            "clustermesh backup west.backup",
            "clustermesh backup --verify west.backup",
            "clustermesh restore west.backup --check",
            "clustermesh restore west.backup --data-dir /d --advertise 192.0.2.1:9443 --new-authority",
        ] {
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        for line in ["clustermesh backup", "clustermesh restore west.backup", "clustermesh restore --check"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
