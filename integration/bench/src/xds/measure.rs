//! The rows of the area: at which sizes, and what is said of them.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Shape, Size, Swarm, World, envoy};
use crate::{
    report::{Goal, Row},
    stats::quantile,
};

/// Changes that are made before any counts.
const WARM: usize = 4;

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Streams; measured one after the other, each with a replica of its own.
    pub streams: Vec<usize>,
    /// Services of the mesh.
    pub services: usize,
    /// Services of the large mesh, in which a change is to be as small. 0: not measured.
    pub large: usize,
    /// Streams in the large mesh: few, because each is sent all of it first.
    pub large_streams: usize,
    /// Streams with a connection each. 0: not measured.
    pub alone: usize,
    /// Changes that are followed.
    pub rounds: usize,
    /// Without Envoy.
    pub skip_envoy: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            streams: vec![1_000, 10_000],
            services: 100,
            large: 5_000,
            large_streams: 200,
            alone: 1_000,
            rounds: 20,
            skip_envoy: std::env::var("SKIP_ENVOY").is_ok_and(|skip| skip == "1"),
        }
    }
}

impl Plan {
    /// Steps for a progress bar.
    pub fn steps(&self) -> usize {
        self.streams.len() + usize::from(self.large > 0) + usize::from(self.alone > 0)
    }
}

/// Everything that is planned. `folder` is on the disk to be measured; `step` is called after each part.
///
/// # Errors
/// A part failed; what the parts before it have found is lost.
pub async fn measure(plan: &Plan, folder: &Path, step: impl Fn()) -> Result<Vec<Row>> {
    raise_limit()?;
    // Each endpoint that goes has to come back, or the next time it goes is no change.
    let plan = &Plan { rounds: plan.rounds.next_multiple_of(2), ..plan.clone() };
    let mut rows = Vec::new();
    let mut small = None;
    for streams in &plan.streams {
        let alone = (plan.streams.first() == Some(streams)).then_some(plan);
        let found = measure_one(plan, folder, plan.services, *streams, Shape::Relayed, alone).await;
        let (of_size, bytes) = found.with_context(|| format!("{streams} streams"))?;
        rows.extend(of_size);
        small.get_or_insert(bytes);
        step();
    }
    if plan.alone > 0 {
        let found = measure_one(plan, folder, plan.services, plan.alone, Shape::Alone, None).await;
        rows.extend(found.context("a connection for each stream")?.0);
        step();
    }
    if plan.large > 0 {
        let found = measure_one(plan, folder, plan.large, plan.large_streams, Shape::Relayed, None).await;
        let (of_size, bytes) = found.context("the large mesh")?;
        rows.extend(of_size);
        if let Some(small) = small {
            let name = format!("bytes of a change to each, {} services", plan.large);
            let baseline = format!("{} services", plan.services);
            let length = bytes.len().min(small.len());
            let series = (&bytes[..length], &small[..length]);
            rows.push(Row::compared(name, "B", series.0, series.1, &baseline, Some(Goal::RatioAtMost(1.1))));
        }
        step();
    }
    Ok(rows)
}

/// One replica, one mesh, one swarm. With a plan also Envoy, once the swarm has gone.
async fn measure_one(
    plan: &Plan,
    folder: &Path,
    services: usize,
    streams: usize,
    shape: Shape,
    envoy: Option<&Plan>,
) -> Result<(Vec<Row>, Vec<f64>)> {
    let folder = tempfile::Builder::new().prefix("xds-").tempdir_in(folder)?;
    let size = Size { nodes: streams.div_ceil(super::world::WORKLOADS_PER_NODE + 1), services };
    let world = World::start(folder.path(), size).await.context("the mesh is not set up")?;
    // Clients of each kind, so that what all share is not counted as the streams'.
    drop(Swarm::connect(&world, 2 * size.nodes, Shape::Relayed).await?);
    let empty = world.process.resident()?;
    let mut swarm = Swarm::connect(&world, streams, shape).await?;
    let count = swarm.streams();
    let full = world.process.resident()?;
    let before = world.process.cpu()?;
    let idle = std::time::Instant::now();
    tokio::time::sleep(IDLE).await;
    let idle = (world.process.cpu()? - before).as_secs_f64() / idle.elapsed().as_secs_f64();
    let channel = world.nodes[0].connect().await?;
    for warm in 0..WARM {
        swarm.round(&world, channel.clone(), warm).await?;
    }
    let (mut p50, mut p99, mut last, mut write, mut bytes) = (vec![], vec![], vec![], vec![], vec![]);
    let before = world.process.cpu()?;
    for number in WARM..WARM + plan.rounds {
        let round = swarm.round(&world, channel.clone(), number).await?;
        p50.push(quantile(&round.to_ack_ms, 0.5));
        p99.push(quantile(&round.to_ack_ms, 0.99));
        last.push(quantile(&round.to_ack_ms, 1.0));
        write.push(round.write.as_secs_f64() * 1e3);
        bytes.push(round.bytes as f64 / count as f64);
    }
    let cpu = (world.process.cpu()? - before).as_secs_f64() * 1e3 / plan.rounds as f64;
    let after = world.process.resident()?;
    let each = |bytes: u64| bytes.saturating_sub(empty) as f64 / 1024.0 / count as f64;
    let connections = match shape {
        Shape::Relayed => "50 to a connection",
        Shape::Alone => "a connection each",
    };
    let label = |what: &str| format!("{what}, {count} streams, {connections}, {services} services");
    let goal = Goal::AtMost((10.0 + quantile(&write, 0.5)).round());
    let judged = streams <= 1_000 && shape == Shape::Relayed && services == plan.services;
    let mut rows = vec![
        Row::alone(label("write, durable"), "ms", &write, None),
        Row::alone(label("write to ACK, p50"), "ms", &p50, None),
        Row::alone(label("write to ACK, p99"), "ms", &p99, judged.then_some(goal)),
        Row::alone(label("write to ACK, last"), "ms", &last, None),
        Row::alone(label("CPU of a change, all told"), "ms", &[cpu], None),
        Row::alone(label("CPU while nothing changes"), "% of one", &[idle * 100.0], None),
        Row::alone(label("bytes of a change to each"), "B", &bytes, None),
        Row::alone(label("memory of an idle stream"), "KiB", &[each(full)], Some(Goal::AtMost(50.0))),
        Row::alone(label("memory after the changes"), "KiB", &[each(after)], None),
    ];
    drop(swarm);
    if let Some(plan) = envoy.filter(|plan| !plan.skip_envoy) {
        match measure_envoy(plan, folder.path(), &world, channel).await {
            Ok(of_envoy) => rows.extend(of_envoy),
            // The rest is worth having.
            Err(error) => eprintln!("not measured with Envoy: {error:#}"),
        }
    }
    Ok((rows, bytes))
}

/// How long nothing is done, to see what that costs.
const IDLE: std::time::Duration = std::time::Duration::from_secs(5);

async fn measure_envoy(
    plan: &Plan,
    folder: &Path,
    world: &World,
    channel: tonic::transport::Channel,
) -> Result<Vec<Row>> {
    let Some(program) = envoy::program() else {
        anyhow::bail!("there is none: `make setup` installs it, SKIP_ENVOY=1 does without");
    };
    let mut envoy = envoy::Envoy::start(&program, folder, world).await?;
    let (mut acked, mut write) = (Vec::new(), Vec::new());
    let mut from = envoy.received();
    for number in 0..WARM + plan.rounds {
        if number == WARM {
            from = envoy.received();
            (acked, write) = (Vec::new(), Vec::new());
        }
        let [answered, written] = envoy.round(world, channel.clone(), number).await?;
        acked.push(answered);
        write.push(written);
    }
    let bytes = (envoy.received() - from) as f64 / plan.rounds as f64;
    let label = |what: &str| format!("{what}, a real Envoy, {} services", plan.services);
    Ok(vec![
        Row::alone(label("write, durable"), "ms", &write, None),
        Row::alone(label("write to ACK"), "ms", &acked, None),
        Row::alone(label("write to ACK, p99"), "ms", &[quantile(&acked, 0.99)], None),
        Row::alone(label("bytes of a change, with framing"), "B", &[bytes], None),
    ])
}

/// Every stream may have a connection of its own, in this process and in the replica, which inherits the limit.
fn raise_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}
