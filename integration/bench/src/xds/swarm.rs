//! Thousands of delta streams that ACK whatever they get, and note when.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use prost::bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};
use tonic::transport::Channel;

use super::{
    World,
    stream::{Stream, connection},
    world::{WORKLOADS_PER_NODE, workload_name},
};

/// No answer for so long: everything that there was to say has been said.
const QUIET: Duration = Duration::from_millis(500);
/// Longest wait for all to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Nodes that connect at once. The server lets 64 handshakes of one address be in flight.
const AT_ONCE: usize = 32;

/// How the streams are spread over connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One connection for the agent and all proxies of a node: how agents relay them.
    Relayed,
    /// A connection for every stream: the worst that could be.
    Alone,
}

/// What all streams write to.
#[derive(Debug)]
struct Tally {
    start: Instant,
    /// Nanoseconds after `start` at which the change was made that is being followed.
    from: AtomicU64,
    answers: AtomicUsize,
    bytes: AtomicU64,
    ended: AtomicUsize,
    /// Why the first one ended.
    reason: OnceLock<String>,
    latencies: mpsc::UnboundedSender<u64>,
}

/// Connected clients.
#[derive(Debug)]
pub struct Swarm {
    streams: usize,
    tally: Arc<Tally>,
    latencies: mpsc::UnboundedReceiver<u64>,
    _tasks: JoinSet<()>,
}

/// One change and what became of it.
#[derive(Debug, Clone)]
pub struct Round {
    /// Until the write was acknowledged.
    pub write: Duration,
    /// From the call that wrote to the ACK, in milliseconds, one for each stream.
    pub to_ack_ms: Vec<f64>,
    /// Of resources, to all streams together.
    pub bytes: u64,
}

impl Swarm {
    /// Opens so many streams, spread over all nodes, and waits until each has what there is.
    pub async fn connect(world: &World, streams: usize, shape: Shape) -> Result<Self> {
        let (sender, latencies) = mpsc::unbounded_channel();
        let tally = Arc::new(Tally {
            start: Instant::now(),
            from: AtomicU64::new(0),
            answers: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            ended: AtomicUsize::new(0),
            reason: OnceLock::new(),
            latencies: sender,
        });
        let nodes = &world.nodes;
        let open = |index: usize| {
            let tally = tally.clone();
            async move {
                let node = &nodes[index];
                let own = streams / nodes.len() + usize::from(index < streams % nodes.len());
                let mut tasks = JoinSet::new();
                let mut shared = None;
                let mut opened = 0;
                // The agent, and then the proxies.
                for place in 0..own.min(WORKLOADS_PER_NODE + 1) {
                    if shared.is_none() || shape == Shape::Alone {
                        let (requests, serving) = connection(node.tunnel().await?).await?;
                        tasks.spawn(serving);
                        shared = Some(requests);
                    }
                    let connection = shared.clone().context("no connection")?;
                    let workload = (place > 0).then(|| workload_name(index * WORKLOADS_PER_NODE + place - 1));
                    let stream = Stream::open(connection, &node.name, workload.as_deref()).await?;
                    tasks.spawn(follow(stream, tally.clone()));
                    opened += 1;
                }
                anyhow::Ok((opened, tasks))
            }
        };
        let opened: Vec<(usize, JoinSet<()>)> =
            stream::iter(0..nodes.len()).map(open).buffer_unordered(AT_ONCE).try_collect().await?;
        let streams = opened.iter().map(|(count, _)| count).sum();
        let mut tasks = JoinSet::new();
        for (_, mut of_node) in opened {
            tasks.spawn(async move { while of_node.join_next().await.is_some() {} });
        }
        let mut swarm = Self { streams, tally, latencies, _tasks: tasks };
        swarm.settle().await?;
        Ok(swarm)
    }

    /// How many streams there are.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// Waits until nothing is said any more.
    async fn settle(&mut self) -> Result<()> {
        while let Ok(Some(_)) = tokio::time::timeout(QUIET, self.latencies.recv()).await {}
        match self.tally.ended.load(Ordering::Relaxed) {
            0 => Ok(()),
            ended => bail!("{ended} streams have ended: {}", self.tally.reason.get().map_or("?", |r| r)),
        }
    }

    /// Changes one endpoint, which every stream is to be told of, and waits for all ACKs.
    pub async fn round(&mut self, world: &World, channel: Channel, number: usize) -> Result<Round> {
        self.settle().await?;
        self.tally.bytes.store(0, Ordering::Relaxed);
        let before = Instant::now();
        let from = before.duration_since(self.tally.start).as_nanos();
        self.tally.from.store(u64::try_from(from).unwrap_or(u64::MAX), Ordering::Relaxed);
        let written = async {
            world.flip(channel, number).await?;
            anyhow::Ok(before.elapsed())
        };
        let acked = async {
            let mut to_ack_ms = Vec::with_capacity(self.streams);
            while to_ack_ms.len() < self.streams {
                let nanos = self.latencies.recv().await.context("no stream is left")?;
                to_ack_ms.push(nanos as f64 / 1e6);
            }
            anyhow::Ok(to_ack_ms)
        };
        let all = tokio::time::timeout(PATIENCE, futures::future::try_join(written, acked)).await;
        let (write, to_ack_ms) = all.context("not all streams have answered")??;
        Ok(Round { write, to_ack_ms, bytes: self.tally.bytes.load(Ordering::Relaxed) })
    }
}

/// Serves one stream. The first ACK after a change is what is told of.
async fn follow(mut stream: Stream, tally: Arc<Tally>) {
    let mut told = u64::MAX;
    let why = loop {
        let answer = match stream.next().await {
            Ok(answer) => answer,
            Err(error) => break error,
        };
        let bytes: usize = answer.resources.iter().map(Bytes::len).sum();
        if let Err(error) = stream.acknowledge(answer) {
            break error;
        }
        let now = u64::try_from(tally.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        tally.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        tally.answers.fetch_add(1, Ordering::Relaxed);
        let from = tally.from.load(Ordering::Relaxed);
        // Before the first change every answer counts: it shows that there is something to be waited for.
        if from == 0 || std::mem::replace(&mut told, from) != from {
            // Fails when the swarm is being taken down.
            let _ = tally.latencies.send(now.saturating_sub(from));
        }
    };
    let _ = tally.reason.set(format!("{why:#}"));
    tally.ended.fetch_add(1, Ordering::Relaxed);
}
