//! The control plane of one cluster: parse, build, run, drain.

use std::{io::IsTerminal, path::Path, process::ExitCode};

use control_plane::{
    config::{self, Config, EXIT_USAGE, LogFormat, Usage},
    start::{self, Running},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = match config::parse(std::env::args_os()) {
        Ok(config) => config,
        Err(Usage::Help(help)) => {
            // A closed stdout is not worth an error.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
        Err(Usage::Wrong(sentence)) => {
            eprintln!("control-plane: {sentence}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    log_to_stderr(config.log_format);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(config)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ready_file = config.ready_file.clone();
    let deadline = config.drain_seconds;
    if let Some(path) = &ready_file {
        // Left by a replica that was killed.
        let _ = std::fs::remove_file(path);
    }
    let mut running = start::start(config).await?;
    let failure = tokio::select! {
        error = serve(&mut running, ready_file.as_deref()) => Some(error),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    if let Some(path) = &ready_file {
        let _ = std::fs::remove_file(path);
    }
    tracing::info!("draining");
    running.drain(deadline).await;
    failure.map_or(Ok(()), Err)
}

/// Says when the replica is ready, and resolves only if it fails.
async fn serve(running: &mut Running, ready_file: Option<&Path>) -> anyhow::Error {
    running.ready().await;
    let announced = ready_file.map_or(Ok(()), |path| std::fs::write(path, b"ready\n"));
    if let Err(error) = announced {
        return anyhow::anyhow!("--ready-file: {error}");
    }
    eprintln!("ready");
    running.failed().await
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,openraft=error,h2=warn,hyper=warn,sled=warn,tower=warn"));
    let colour = std::io::stderr().is_terminal();
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
}
