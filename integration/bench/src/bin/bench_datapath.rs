//! `make bench-datapath`: what the kernel data plane adds, beside plain links and routes, nftables and iptables.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bench::{
    datapath::{Area, Scale, client, measure},
    machine,
    report::{self, Row},
};
use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

/// Measures the kernel data plane in network namespaces of its own. Needs root.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// What to measure; everything unless named.
    areas: Vec<Area>,
    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
    /// Interleaved rounds; the default is meant for a quiet machine.
    #[arg(long)]
    rounds: Option<usize>,
    /// A little of everything, which proves that it runs and measures nothing.
    #[arg(long)]
    tiny: bool,
    /// Measures nothing: prints what was measured last as a table for docs/performance.md.
    #[arg(long)]
    markdown: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A client in a pod, which this program starts itself.
    #[command(hide = true)]
    Client(client::Client),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Client(client)) = &arguments.command {
        return client::run(client);
    }
    let results = arguments.folder.join("datapath.json");
    if arguments.markdown {
        print!("{}", report::markdown(&results)?);
        return Ok(());
    }
    println!("{}", machine::describe());
    let mut scale = if arguments.tiny { Scale::TINY } else { Scale::WHOLE };
    scale.rounds = arguments.rounds.unwrap_or(scale.rounds);
    ensure!(scale.rounds > 0, "--rounds: at least one");
    let areas = if arguments.areas.is_empty() { Area::value_variants() } else { &arguments.areas };
    let mut rows: Vec<Row> = Vec::new();
    let start = Instant::now();
    for area in areas {
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(500));
        let shown = spinner.clone();
        let found = measure(*area, &scale, move |what| {
            // Nobody sees a spinner in a log.
            if shown.is_hidden() {
                eprintln!("{:4} s  {what}", start.elapsed().as_secs());
            }
            shown.set_message(what);
        });
        spinner.finish_and_clear();
        rows.extend(found);
        // What was measured is kept, whatever becomes of the rest.
        report::write(&results, &rows)?;
    }
    println!("{}", report::table(&rows));
    let (met, all) = rows
        .iter()
        .filter_map(|row| row.met)
        .fold((0, 0), |(met, all), this| (met + usize::from(this), all + 1));
    println!("{met} of {all} goals met");
    Ok(())
}
