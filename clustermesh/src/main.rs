//! The command line of a cluster. Parses, runs one command, and exits with a code that scripts can use:
//! 0 done, 1 refused or failed, 3 not found, 4 a wait timed out, 5 no quorum, 6 refused by a data plane, 64 usage, 69
//! control plane unreachable.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match cli::args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stream is not worth another error.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(cli::failure::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // One connection and one thing at a time: a second thread would only cost.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return cli::failure::Failure::failed(format!("cannot start: {error}")).report(),
    };
    match runtime.block_on(cli::run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
