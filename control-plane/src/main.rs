//! The control plane of one cluster: parse, build, run, drain.

use std::{io::Write, path::Path, process::ExitCode};

use control_plane::{
    config::{self, Command, Config, EXIT_REMOVED, EXIT_USAGE, LogFormat, Usage},
    notify::{self, Notifier},
    recover, restore,
    start::{self, Removed, Running},
    telemetry::log,
};
use tokio::signal::unix::{SignalKind, signal};

/// glibc's keeps what thousands of streams needed for their first, large responses: four times the memory of an idle
/// stream that this one is measured to leave (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let command = match config::parse_command(std::env::args_os()) {
        Ok(command) => command,
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
    log::to_stderr(match &command {
        Command::Run(config) => config.log_format,
        Command::Recover(_) | Command::Restore(_) => LogFormat::Text,
    });
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        // A task like the others: woken on the runtime's own threads, not on this one.
        .and_then(|runtime| runtime.block_on(runtime.spawn(execute(command)))?);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control-plane: {error:#}");
            if error.is::<Removed>() { ExitCode::from(EXIT_REMOVED) } else { ExitCode::FAILURE }
        }
    }
}

async fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(config) => run(*config).await,
        Command::Recover(args) => {
            let report = recover::run(&args).await?;
            Ok(std::io::stdout().write_all(report.as_bytes())?)
        }
        Command::Restore(args) => {
            let report = restore::run(&args).await?;
            Ok(std::io::stdout().write_all(report.as_bytes())?)
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
    let notifier = Notifier::from_environment();
    // A replica whose disk is damaged may take its time.
    let started = tokio::select! {
        started = start::start_telling(config, &notifier) => Some(started?),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let Some(mut running) = started else {
        notifier.say(notify::STOPPING);
        return Ok(());
    };
    let failure = tokio::select! {
        error = serve(&mut running, ready_file.as_deref(), &notifier) => Some(error),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    if let Some(path) = &ready_file {
        let _ = std::fs::remove_file(path);
    }
    notifier.say(notify::STOPPING);
    tracing::info!("draining");
    running.drain(deadline).await;
    failure.map_or(Ok(()), Err)
}

/// Says when the replica is ready, and while no majority answers; resolves only if it fails.
async fn serve(running: &mut Running, ready_file: Option<&Path>, notifier: &Notifier) -> anyhow::Error {
    tokio::select! {
        () = running.ready() => {}
        error = running.ended() => return error,
    }
    let announce = |line: &str| ready_file.map_or(Ok(()), |path| std::fs::write(path, format!("{line}\n")));
    let mut quorum = running.app.replica.quorum();
    let mut told = false;
    loop {
        let lost = quorum.borrow_and_update().clone();
        let line = lost.map_or_else(|| "ready".to_owned(), |lost| lost.to_string());
        if let Err(error) = announce(&line) {
            return anyhow::anyhow!("--ready-file: {error}");
        }
        notifier.ready(&line);
        if !std::mem::replace(&mut told, true) {
            eprintln!("ready");
        }
        tokio::select! {
            error = running.failed() => return error,
            Ok(()) = quorum.changed() => {}
        }
    }
}
