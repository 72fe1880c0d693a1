//! Thousands of delta streams that ACK whatever they get, and note when.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use prost::bytes::Bytes;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, client::Grpc, codegen::http::uri::PathAndQuery, metadata::MetadataValue, transport::Channel,
};
use tonic_prost::ProstCodec;
use xds_proto::envoy::{config::core::v3::Node as XdsNode, service::discovery::v3::DeltaDiscoveryRequest};

use super::{
    World,
    world::{WORKLOADS_PER_NODE, workload_name},
};

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// What an agent subscribes to, in its order.
const AGENT: [&str; 6] =
    ["TrustBundle", "Node", "PolicyClass", "WorkloadAddress", "LocalEndpoint", "Service"];
/// What our proxy subscribes to.
const PROXY: [&str; 4] = [
    "config.cluster.v3.Cluster",
    "config.endpoint.v3.ClusterLoadAssignment",
    "config.listener.v3.Listener",
    "config.route.v3.RouteConfiguration",
];
/// No answer for so long: everything that there was to say has been said.
const QUIET: Duration = Duration::from_millis(500);
/// Longest wait for all to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Streams that are opened at once.
const AT_ONCE: usize = 64;

/// How the streams are spread over connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One connection for the agent and all proxies of a node: how agents relay them.
    Relayed,
    /// A connection for every stream: the worst that could be.
    Alone,
}

/// A response, as far as it matters here. The rest is skipped unread.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
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
            latencies: sender,
        });
        let nodes = &world.nodes;
        let open = |index: usize| {
            let tally = tally.clone();
            async move {
                let node = &nodes[index];
                let own = streams / nodes.len() + usize::from(index < streams % nodes.len());
                let shared = node.connect().await?;
                let mut opened = Vec::new();
                for place in 0..own.min(WORKLOADS_PER_NODE + 1) {
                    let channel = match shape {
                        Shape::Relayed => shared.clone(),
                        Shape::Alone => node.connect().await?,
                    };
                    // The agent, and then the proxies.
                    let workload = match place {
                        0 => None,
                        place => Some(workload_name(index * WORKLOADS_PER_NODE + place - 1)),
                    };
                    opened.push(subscribe(channel, &node.name, workload, tally.clone()).await?);
                }
                anyhow::Ok(opened)
            }
        };
        let opened = stream::iter(0..nodes.len()).map(open).buffer_unordered(AT_ONCE);
        let opened: Vec<Vec<_>> = opened.try_collect().await?;
        let mut tasks = JoinSet::new();
        opened.into_iter().flatten().for_each(|stream| drop(tasks.spawn(stream)));
        let mut swarm = Self { streams: tasks.len(), tally, latencies, _tasks: tasks };
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
            ended => bail!("{ended} streams have ended"),
        }
    }

    /// Changes one endpoint, which every stream is to be told of, and waits for all ACKs.
    pub async fn round(&mut self, world: &World, channel: Channel, number: usize) -> Result<Round> {
        self.settle().await?;
        self.tally.bytes.store(0, Ordering::Relaxed);
        let before = Instant::now();
        let from = before.duration_since(self.tally.start).as_nanos();
        self.tally.from.store(u64::try_from(from).unwrap_or(u64::MAX), Ordering::Relaxed);
        let place = number / 2 % WORKLOADS_PER_NODE;
        let written = async {
            world.flip(channel, place, number % 2 == 1).await?;
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

fn full(name: &str, agent: bool) -> String {
    match agent {
        true => format!("type.googleapis.com/isthmus.agent.v1.{name}"),
        false => format!("type.googleapis.com/envoy.{name}"),
    }
}

/// Opens a stream and says what it wants. The future that comes back serves it.
async fn subscribe(
    channel: Channel,
    node: &str,
    workload: Option<String>,
    tally: Arc<Tally>,
) -> Result<BoxFuture<'static, ()>> {
    let (types, id): (&[&str], String) = match &workload {
        None => (&AGENT, format!("agent~{node}")),
        Some(workload) => (&PROXY, format!("proxy~bench/{workload}")),
    };
    let (requests, outgoing) = mpsc::channel(8);
    for (index, name) in types.iter().enumerate() {
        let request = DeltaDiscoveryRequest {
            node: (index == 0).then(|| XdsNode { id: id.clone(), ..Default::default() }),
            type_url: full(name, workload.is_none()),
            resource_names_subscribe: vec!["*".to_owned()],
            ..Default::default()
        };
        requests.send(request).await?;
    }
    let mut request = Request::new(ReceiverStream::new(outgoing));
    if let Some(workload) = workload {
        let value = MetadataValue::try_from(format!("bench/{workload}"))?;
        request.metadata_mut().insert("x-isthmus-workload", value);
    }
    let mut grpc = Grpc::new(channel).max_decoding_message_size(64 << 20);
    grpc.ready().await?;
    let codec = ProstCodec::<DeltaDiscoveryRequest, Answer>::default();
    let mut answers = grpc.streaming(request, PathAndQuery::from_static(ADS), codec).await?.into_inner();
    Ok(Box::pin(async move {
        while let Ok(Some(answer)) = answers.message().await {
            let ack = DeltaDiscoveryRequest {
                type_url: answer.type_url,
                response_nonce: answer.nonce,
                ..Default::default()
            };
            if requests.send(ack).await.is_err() {
                break;
            }
            let now = u64::try_from(tally.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let bytes: usize = answer.resources.iter().map(Bytes::len).sum();
            tally.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            tally.answers.fetch_add(1, Ordering::Relaxed);
            // Fails when the swarm is being taken down.
            let _ = tally.latencies.send(now.saturating_sub(tally.from.load(Ordering::Relaxed)));
        }
        tally.ended.fetch_add(1, Ordering::Relaxed);
    }))
}
