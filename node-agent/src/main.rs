//! The node agent's binary: parses, runs, says why it could not.

use std::{io::IsTerminal, process::ExitCode};

use node_agent::{
    agent, cleanup,
    config::{Cli, Command, MapsCommand},
    dns, grpc, maps_cli, redirect, status, stop,
};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::parse_checked(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // EX_USAGE of sysexits.h; help and version are no errors.
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    let filter = EnvFilter::try_from_env("ISTHMUS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    // What can't be written is not written: the DNS proxy outlives the reader of its agent's errors.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).log_internal_errors(false);
    log.with_writer(std::io::stderr).init();
    let result = match cli.command {
        Command::Run(args) => agent::run(*args).await,
        Command::Dns(args) => dns::run(args).await,
        Command::Status(args) => status::print(&args.socket, std::io::stdout().lock()).await,
        Command::Stop(args) => stop::stop(&args, std::io::stdout().lock()).await,
        Command::Maps(MapsCommand::Dump(args)) => maps_cli::print(&args, std::io::stdout().lock()),
        Command::Maps(MapsCommand::Verify(args)) => maps_cli::verify(&args, std::io::stdout().lock()).await,
        Command::GrpcBootstrap(args) => grpc::keep(args).await,
        Command::Redirect(args) => redirect::run(args).await,
        Command::Cleanup(args) => cleanup::cleanup(&args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("node-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
