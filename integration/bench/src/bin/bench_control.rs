//! `make bench-control`: the control plane against etcd, and its own promises.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use bench::{
    compile,
    control::{EtcdTimings, Group, etcd, leader_loss, ours, syncs, writes},
    machine,
    report::{self, Goal, Row},
    xds,
};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

/// Measures the control plane, beside etcd where there is something to compare.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; everything unless named.
    areas: Vec<Area>,
    /// An etcd 3.4 or newer: the program itself, no script around it.
    #[arg(long, default_value = "target/tools/bin/etcd")]
    etcd: PathBuf,
    /// Where the stores live. The folder must be on the disk to be measured, not in memory.
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// Pairs of runs.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Seconds of one run.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Times that a leader is killed.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Measures nothing: prints what was measured last as a table for docs/performance.md.
    #[arg(long)]
    markdown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Area {
    /// Writes per second and latency, 1 and 64 clients.
    Writes,
    /// SIGKILL of the leader to the next acknowledged write.
    Loss,
    /// The mesh from the state: whole, and after one change.
    Compile,
    /// One endpoint changes: until 1,000 and 10,000 clients and an Envoy have ACKed it.
    Propagation,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let results = arguments.folder.join("control.json");
    if arguments.markdown {
        print!("{}", report::markdown(&results)?);
        return Ok(());
    }
    mesh_tls::install_provider();
    println!("{}", machine::describe());
    let all = [Area::Writes, Area::Loss, Area::Compile, Area::Propagation];
    let areas: &[Area] = if arguments.areas.is_empty() { &all } else { &arguments.areas };
    let mut rows = Vec::new();
    for area in areas {
        rows.extend(match area {
            Area::Writes => measure_writes(&arguments).await?,
            Area::Loss => measure_loss(&arguments).await?,
            Area::Compile => measure_compile(),
            Area::Propagation => measure_propagation(&arguments).await?,
        });
        // What was measured is kept, whatever becomes of the rest.
        report::write(&results, &rows)?;
    }
    println!("{}", report::table(&rows));
    Ok(())
}

/// A folder on the measured disk that goes away in the end.
fn scratch(arguments: &Arguments) -> Result<tempfile::TempDir> {
    std::fs::create_dir_all(&arguments.folder)?;
    // Absolute: sockets and logs are named in flags.
    let folder = std::path::absolute(&arguments.folder)?;
    Ok(tempfile::Builder::new().prefix("run-").tempdir_in(folder)?)
}

fn etcd_program(arguments: &Arguments) -> Result<PathBuf> {
    let path = std::path::absolute(&arguments.etcd)?;
    anyhow::ensure!(path.exists(), "{} is missing: `make bench-control` installs it", path.display());
    Ok(path)
}

async fn both(arguments: &Arguments, folder: &Path, timings: EtcdTimings) -> Result<(Group, Group)> {
    let (mine, theirs) = (folder.join("ours"), folder.join("etcd"));
    std::fs::create_dir_all(&mine)?;
    std::fs::create_dir_all(&theirs)?;
    let mine = ours(&mine).await.context("starting three replicas")?;
    let theirs = etcd(&etcd_program(arguments)?, &theirs, timings).await.context("starting etcd")?;
    Ok((mine, theirs))
}

fn bar(what: &str, steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

async fn measure_writes(arguments: &Arguments) -> Result<Vec<Row>> {
    let folder = scratch(arguments)?;
    let (mut mine, mut theirs) = both(arguments, folder.path(), EtcdTimings::DEFAULT).await?;
    let name = theirs.name.clone();
    let each = Duration::from_secs(arguments.seconds);
    let mut rows = Vec::new();
    for clients in [1, 64] {
        let progress = bar(&format!("writes, {clients} clients"), arguments.pairs * 2);
        // Warm, and not counted.
        writes(&mut mine, &mut theirs, clients, 1, each, || ()).await?;
        let found =
            writes(&mut mine, &mut theirs, clients, arguments.pairs, each, || progress.inc(1)).await?;
        progress.finish_and_clear();
        // Half of our own runs against the other half: what the machine itself makes of equal things.
        let (first, second): (Vec<_>, Vec<_>) =
            found.rate[0].chunks_exact(2).map(|two| (two[0], two[1])).unzip();
        let label = |what: &str| format!("{what}, {clients} client{}", if clients == 1 { "" } else { "s" });
        let row = |what: &str, unit: &str, series: &[Vec<f64>; 2], goal| {
            Row::compared(label(what), unit, &series[0], &series[1], &name, goal)
        };
        rows.push(Row::compared(label("A/A writes"), "1/s", &first, &second, "itself", None));
        rows.push(row("writes", "1/s", &found.rate, (clients > 1).then_some(Goal::RatioAtLeast(3.0))));
        rows.push(row("write p50", "ms", &found.p50_ms, (clients == 1).then_some(Goal::RatioAtMost(0.5))));
        rows.push(row("write p99", "ms", &found.p99_ms, None));
        rows.push(row("CPU per 1,000 writes, three members", "s", &found.cpu_s, None));
        let mut per_write = [0.0; 2];
        for (group, found) in [&mut mine, &mut theirs].into_iter().zip(&mut per_write) {
            let (written, synced) = syncs(group, clients, each).await?;
            *found = synced as f64 / written as f64;
        }
        rows.push(Row::compared(
            label("syncs per write at the leader"),
            "1",
            &per_write[..1],
            &per_write[1..],
            &name,
            None,
        ));
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    rows.push(Row::compared(
        "resident memory after it, three members",
        "MiB",
        &[mib(mine.resident()?)],
        &[mib(theirs.resident()?)],
        &name,
        None,
    ));
    Ok(rows)
}

async fn measure_loss(arguments: &Arguments) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (label, timings) in [("defaults", EtcdTimings::DEFAULT), ("equal timeouts", EtcdTimings::LIKE_OURS)] {
        let folder = scratch(arguments)?;
        let (mut mine, mut theirs) = both(arguments, folder.path(), timings).await?;
        let progress = bar(&format!("leader loss, {label}"), arguments.kills * 2);
        let found = leader_loss(&mut mine, &mut theirs, arguments.kills, || progress.inc(1)).await?;
        progress.finish_and_clear();
        let name = format!("leader SIGKILL to next write, {label}");
        rows.push(Row::compared(name, "ms", &found.gap_ms[0], &found.gap_ms[1], &theirs.name, None));
    }
    Ok(rows)
}

async fn measure_propagation(arguments: &Arguments) -> Result<Vec<Row>> {
    let (folder, plan) = (scratch(arguments)?, xds::Plan::default());
    let progress = bar("propagation", plan.steps());
    progress.tick();
    let found = xds::measure(&plan, folder.path(), || progress.inc(1)).await;
    progress.finish_and_clear();
    found
}

/// At two sizes, because one change is to cost the same in both.
fn measure_compile() -> Vec<Row> {
    let mut rows = Vec::new();
    for services in [1_000, 10_000] {
        let found = compile::measure(services, 300);
        let size = format!("{services} services, {} endpoints", services * compile::ENDPOINTS);
        rows.push(Row::alone(format!("compile all, {size}"), "ms", &found.full, None));
        let changes = [("endpoint", found.endpoint), ("policy", found.policy), ("label", found.label)];
        for (what, series) in changes {
            let name = format!("compile after one {what}, {size}");
            rows.push(Row::alone(name, "ms", &series, Some(Goal::AtMost(1.0))));
        }
    }
    rows
}
