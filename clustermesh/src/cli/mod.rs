//! One file a command; what they print is made by the pure functions in `render`.

pub(crate) mod admin;
mod apply;
pub(crate) mod args;
mod backup;
mod backup_args;
pub(crate) mod ca;
mod client;
mod delete;
mod describe;
mod duration;
pub(crate) mod explain;
pub(crate) mod failure;
mod get;
mod init;
mod join;
mod kinds;
mod manifest;
pub(crate) mod node;
mod object;
mod observe;
mod out;
mod proxy_status;
mod rejoin;
mod render;
mod replica;
mod replica_args;
mod selector;
pub(crate) mod server;
mod status;
mod token;
pub(crate) mod tokens;
mod wait;
mod watch;

use args::{Cli, Command};
use failure::Failure;

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    if let Command::Completions { shell } = cli.command {
        return completions(shell);
    }
    let server = &cli.server.resolve()?;
    match cli.command {
        Command::Init(args) => init::run(server, &args).await,
        Command::Token { command } => token::run(server, &command).await,
        Command::Join(args) => join::run(server, &args).await,
        Command::Replica { command } => replica::run(server, &command).await,
        Command::Status(args) => status::run(server, &args).await,
        Command::Apply(args) => apply::run(server, &args).await,
        Command::Get(args) => get::run(server, &args).await,
        Command::Describe(args) => describe::run(server, &args).await,
        Command::Delete(args) => delete::run(server, &args).await,
        Command::Explain(args) => explain::run(server, &args).await,
        Command::Observe(args) => observe::run(server, &args).await,
        Command::ProxyStatus(args) => proxy_status::run(server, &args).await,
        Command::Admin { command } => admin::run(server, &command).await,
        Command::Ca { command } => ca::run(server, &command).await,
        Command::Node { command } => node::run(server, &command).await,
        Command::Backup(args) => backup::run(server, &args).await,
        Command::Restore(args) => backup::restore(&args),
        Command::Completions { .. } => Ok(()),
    }
}

fn completions(shell: args::Shell) -> Result<(), Failure> {
    use clap::CommandFactory;
    let mut script = Vec::new();
    clap_complete::generate(shell.generator(), &mut Cli::command(), "clustermesh", &mut script);
    out::print(&String::from_utf8_lossy(&script))
}

/// Seconds since 1970.
fn now_unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
