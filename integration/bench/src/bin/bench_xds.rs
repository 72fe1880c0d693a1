//! One endpoint changes: how long until thousands of clients have ACKed it, and what that costs.

use std::path::PathBuf;

use anyhow::Result;
use bench::{
    machine,
    report::{self, Goal, Row},
    stats::quantile,
    xds::{Shape, Size, Swarm, World},
};
use clap::Parser;

/// Measures propagation with simulated clients over real TLS.
#[derive(Debug, Parser)]
struct Arguments {
    /// Streams; measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    streams: Vec<usize>,
    /// Services of the mesh.
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Nodes of the mesh, each with 49 workloads.
    #[arg(long, default_value_t = 200)]
    nodes: usize,
    /// Changes that are followed.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// A connection for every stream, where agents share theirs with the proxies of their node.
    #[arg(long)]
    alone: bool,
    /// Where the store lives.
    #[arg(long, default_value = "target/bench")]
    folder: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    mesh_tls::install_provider();
    println!("{}", machine::describe());
    std::fs::create_dir_all(&arguments.folder)?;
    let mut rows = Vec::new();
    for streams in &arguments.streams {
        rows.extend(measure(&arguments, *streams).await?);
        // What was measured is kept, whatever becomes of the rest.
        report::write(&arguments.folder.join("xds.json"), &rows)?;
    }
    println!("{}", report::table(&rows));
    Ok(())
}

async fn measure(arguments: &Arguments, streams: usize) -> Result<Vec<Row>> {
    // Absolute: sockets and logs are named in flags.
    let folder =
        tempfile::Builder::new().prefix("run-").tempdir_in(std::path::absolute(&arguments.folder)?)?;
    let size = Size { nodes: arguments.nodes, services: arguments.services };
    let world = World::start(folder.path(), size).await?;
    let shape = if arguments.alone { Shape::Alone } else { Shape::Relayed };
    // One client of each kind, so that what all share is not counted as the streams'.
    let first = Swarm::connect(&world, 2 * arguments.nodes, Shape::Relayed).await?;
    drop(first);
    let empty = world.process.resident()?;
    let mut swarm = Swarm::connect(&world, streams, shape).await?;
    let full = world.process.resident()?;
    let channel = world.nodes[0].connect().await?;
    for warm in 0..4 {
        swarm.round(&world, channel.clone(), warm).await?;
    }
    let (mut p50, mut p99, mut last, mut write, mut bytes) = (vec![], vec![], vec![], vec![], vec![]);
    let before = world.process.cpu()?;
    for number in 4..4 + arguments.rounds {
        let round = swarm.round(&world, channel.clone(), number).await?;
        p50.push(quantile(&round.to_ack_ms, 0.5));
        p99.push(quantile(&round.to_ack_ms, 0.99));
        last.push(quantile(&round.to_ack_ms, 1.0));
        write.push(round.write.as_secs_f64() * 1e3);
        bytes.push(round.bytes as f64 / swarm.streams() as f64);
    }
    let cpu = (world.process.cpu()? - before).as_secs_f64() * 1e3 / arguments.rounds as f64;
    let after = world.process.resident()?;
    let each = |bytes: u64| bytes.saturating_sub(empty) as f64 / 1024.0 / swarm.streams() as f64;
    let connections = if arguments.alone { "a connection each" } else { "50 to a connection" };
    let label = |what: &str| format!("{what}, {} streams, {connections}", swarm.streams());
    let goal = Goal::AtMost(10.0 + quantile(&write, 0.5));
    Ok(vec![
        Row::alone(label("write, durable"), "ms", &write, None),
        Row::alone(label("write to ACK, p50"), "ms", &p50, None),
        Row::alone(label("write to ACK, p99"), "ms", &p99, (streams <= 1_000).then_some(goal)),
        Row::alone(label("write to ACK, last"), "ms", &last, None),
        Row::alone(label("CPU of a change, all told"), "ms", &[cpu], None),
        Row::alone(label("bytes of a change to each"), "B", &bytes, None),
        Row::alone(label("memory of an idle stream"), "KiB", &[each(full)], Some(Goal::AtMost(50.0))),
        Row::alone(label("memory after the changes"), "KiB", &[each(after)], None),
    ])
}
