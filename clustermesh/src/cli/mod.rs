//! One file a command; what they print is made by the pure functions in `render`.

mod apply;
pub(crate) mod args;
mod backup;
mod backup_args;
pub(crate) mod ca;
mod client;
mod delete;
mod describe;
mod duration;
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
mod status;
mod token;
pub(crate) mod tokens;
mod wait;
mod watch;

use args::{Cli, Command};
use failure::Failure;

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> Result<(), Failure> {
    let socket = cli.socket.as_path();
    match cli.command {
        Command::Init(args) => init::run(socket, &args).await,
        Command::Token { command } => token::run(socket, &command).await,
        Command::Join(args) => join::run(socket, &args).await,
        Command::Replica { command } => replica::run(socket, &command).await,
        Command::Status(args) => status::run(socket, &args).await,
        Command::Apply(args) => apply::run(socket, &args).await,
        Command::Get(args) => get::run(socket, &args).await,
        Command::Describe(args) => describe::run(socket, &args).await,
        Command::Delete(args) => delete::run(socket, &args).await,
        Command::Observe(args) => observe::run(socket, &args).await,
        Command::ProxyStatus(args) => proxy_status::run(socket, &args).await,
        Command::Ca { command } => ca::run(socket, &command).await,
        Command::Node { command } => node::run(socket, &command).await,
        Command::Backup(args) => backup::run(socket, &args).await,
        Command::Restore(args) => backup::restore(&args),
        Command::Completions { shell } => completions(shell),
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
