//! `make demo`: tells the story on this machine and shows what proved each step.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Parser;
use comfy_table::{Cell, Color, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use integration::{
    story::{self, Narrator, Outcome, Step, Told, World},
    testbed,
};
use owo_colors::{OwoColorize, Stream};

#[derive(Parser)]
#[command(about = "Two clusters on one machine, joined, serving real traffic")]
struct Demo {
    /// Leaves everything running and prints what to try by hand.
    #[arg(long)]
    keep: bool,
    /// Only removes what an earlier run left.
    #[arg(long)]
    clean: bool,
}

fn main() -> ExitCode {
    match run(&Demo::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Did every step prove itself?
fn run(demo: &Demo) -> Result<bool> {
    if demo.clean {
        testbed::clean_up()?;
        return Ok(true);
    }
    let console = Console::new();
    let lacking = testbed::lacking();
    if !lacking.is_empty() {
        return without_privileges(&lacking, &console);
    }
    remove_on_interrupt();
    let mut world = World::new()?;
    let told = tell(&story::full(), &mut world, &console);
    if demo.keep {
        println!("{}", by_hand(&world)?);
        world.keep();
    }
    Ok(told)
}

fn without_privileges(lacking: &[String], console: &Console) -> Result<bool> {
    for what in lacking {
        println!("{} {what}", warn("missing:"));
    }
    println!(
        "{}",
        warn("PARTIAL: without it there are no nodes, pods or proxies. Only the control planes are shown.")
    );
    let folder = std::env::temp_dir().join(format!("isthmus-demo-{}", std::process::id()));
    let mut world = story::Loopback::new(&folder)?;
    let told = tell(&story::control_plane_only(), &mut world, console);
    drop(world);
    std::fs::remove_dir_all(&folder)?;
    println!("{}", warn("PARTIAL: what the demo is about (kernel, proxies, failover) was not run."));
    Ok(told)
}

fn tell<W>(steps: &[Step<W>], world: &mut W, console: &Console) -> bool {
    let told = story::tell(steps, world, console);
    println!("\n{}", summary(&told));
    told.iter().all(Told::proved)
}

fn summary(told: &[Told]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_header(["", "STEP", "TIME"]);
    for one in told {
        let (mark, colour) = match one.outcome {
            Outcome::Proved(_) => ("✔ proved", Color::Green),
            Outcome::Failed(_) => ("✘ failed", Color::Red),
            Outcome::NotRun => ("– not run", Color::Yellow),
        };
        let took = format!("{:.1} s", one.took.as_secs_f64());
        table.add_row([Cell::new(mark).fg(colour), Cell::new(one.title), Cell::new(took)]);
    }
    table
}

fn by_hand(world: &World) -> Result<String> {
    let (west, bed) = (world.west()?, &world.bed);
    let clustermesh = bed.binary("clustermesh");
    let clustermesh = format!("{} --socket {}", clustermesh.display(), west.admin_socket(1).display());
    let pay = west.virtual_ip("shop", "pay")?;
    Ok(format!(
        "It is still running. Try:\n  {clustermesh} status\n  {clustermesh} get all -n shop\n  \
         {clustermesh} describe service pay -n shop\n  {clustermesh} observe --follow\n  \
         nsenter --net=/run/netns/{} -- ip address\n  \
         sh -c 'echo $$ >{}/cgroup.procs; exec nsenter --net=/run/netns/{} -- {} call --to {pay}:8080 --host pay.shop -n 10'\n\
         Logs are in {}. To end it: make clean-testbed",
        west.plan.pod_namespace("web"),
        west.pod_place("web", 1).cgroup.unwrap_or_default().display(),
        west.plan.pod_namespace("web"),
        bed.binary("shop").display(),
        bed.folder().display(),
    ))
}

/// Ctrl-C removes the testbed before the process ends.
fn remove_on_interrupt() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        if runtime.block_on(tokio::signal::ctrl_c()).is_ok() {
            let removed = testbed::clean_up();
            eprintln!(
                "demo: interrupted; {}",
                removed.map_or_else(|e| format!("{e:#}"), |()| "all removed".into())
            );
            std::process::exit(130);
        }
    });
}

fn warn(text: &str) -> String {
    text.if_supports_color(Stream::Stdout, |t| t.yellow()).to_string()
}

/// Tells the story on the terminal; without one, a line at a time.
struct Console {
    spinner: ProgressBar,
}

impl Console {
    fn new() -> Self {
        let spinner =
            if std::io::stdout().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
            spinner.set_style(style);
        }
        Self { spinner }
    }
}

impl Narrator for Console {
    fn begins(&self, number: usize, of: usize, title: &str) {
        let number = format!("[{number}/{of}]");
        println!(
            "{} {}",
            number.if_supports_color(Stream::Stdout, |t| t.cyan()),
            title.if_supports_color(Stream::Stdout, |t| t.bold())
        );
        self.spinner.reset();
        self.spinner.enable_steady_tick(Duration::from_millis(100));
    }

    fn progress(&self, doing: &str) {
        self.spinner.set_message(doing.to_owned());
    }

    fn ended(&self, told: &Told) {
        self.spinner.disable_steady_tick();
        self.spinner.set_message("");
        self.spinner.finish_and_clear();
        let took = format!("({:.1} s)", told.took.as_secs_f64());
        match &told.outcome {
            Outcome::Proved(proof) => {
                for line in proof {
                    println!("  {} {line}", "✔".if_supports_color(Stream::Stdout, |t| t.green()));
                }
                println!("  {}", took.if_supports_color(Stream::Stdout, |t| t.dimmed()));
            }
            Outcome::Failed(why) => {
                println!("  {} {why} {took}", "✘".if_supports_color(Stream::Stdout, |t| t.red()))
            }
            Outcome::NotRun => println!("  {}", warn("not run: a step that it builds on failed")),
        }
    }
}
