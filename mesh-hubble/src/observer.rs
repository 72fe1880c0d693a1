//! The service, over anything that has flows.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status};
use xds_proto::hubble::{
    flow::{Flow, LostEvent, LostEventSource},
    observer::{
        self as wire, GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest,
        GetDebugEventsResponse, GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest,
        GetNamespacesResponse, GetNodesRequest, GetNodesResponse, ServerStatusRequest, ServerStatusResponse,
        get_flows_response::ResponseTypes, observer_server,
    },
    relay::NodeStatusEvent,
};

use crate::{
    Filters,
    translate::{flow_nanos, timestamp, unix_nanos},
};

/// Answers that wait for a slow reader. Behind them the source's own ring goes on, and what it overwrites is told as lost.
const BACKLOG: usize = 64;
/// Calls of GetFlows at once.
const MAX_READERS: usize = 32;

/// Which of the past flows come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Order {
    Oldest,
    Newest,
}

/// Something that happens while somebody follows.
#[derive(Debug, Clone, PartialEq)]
pub enum Live {
    /// A flow.
    Flow(Box<Flow>),
    /// So many are missing here.
    Lost(LostEventSource, u64),
    /// Flows of some nodes are missing from here on, or no more.
    Nodes(NodeStatusEvent),
}

/// What happens from a moment on.
pub type LiveStream = Pin<Box<dyn Stream<Item = Result<Live, Status>> + Send>>;

/// What a source has for one reader.
pub struct Opened {
    /// What there is, in the order that was asked for.
    pub past: Box<dyn Iterator<Item = Live> + Send>,
    /// What comes after that, if it was asked for: nothing is in both, and nothing in neither. An error is the end.
    pub live: Option<LiveStream>,
}

/// What a source says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
#[allow(missing_docs)]
pub struct About {
    pub cluster: String,
    /// Of whoever answers: `<cluster>/<node>`.
    pub name: String,
    pub kept: u64,
    pub capacity: u64,
    pub seen: u64,
    pub uptime: Duration,
    /// Flows per second of the last minute.
    pub rate: f64,
    pub nodes: Vec<wire::Node>,
    /// Of flows that are kept.
    pub namespaces: Vec<String>,
    /// Nodes that should have been asked and could not.
    pub unavailable: Vec<String>,
}

/// Whatever has flows.
#[tonic::async_trait]
pub trait Source: Send + Sync + 'static {
    /// Begins to read, for a caller that was let in.
    async fn open(&self, extensions: Extensions, order: Order, follow: bool) -> Result<Opened, Status>;
    /// What is known of the source.
    async fn about(&self) -> Result<About, Status>;
    /// Whether a caller may read; `Err` says why not.
    fn admit(&self, extensions: &Extensions) -> Result<(), Status>;
}

/// Serves [`Source`] as `observer.Observer`.
pub struct Observer<S> {
    source: Arc<S>,
    readers: Arc<Semaphore>,
}

impl<S> Clone for Observer<S> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), readers: self.readers.clone() }
    }
}

impl<S: Source> Observer<S> {
    /// With a limit of readers at once.
    pub fn new(source: S) -> Self {
        Self { source: Arc::new(source), readers: Arc::new(Semaphore::new(MAX_READERS)) }
    }

    /// Readers at this moment.
    pub fn readers(&self) -> usize {
        MAX_READERS - self.readers.available_permits()
    }
}

/// A request that was read.
struct Asked {
    filters: Filters,
    order: Order,
    /// At most so many of the past; `usize::MAX`: all.
    number: usize,
    since: u64,
    until: u64,
    follow: bool,
}

impl Asked {
    fn read(request: &GetFlowsRequest) -> Result<Self, Status> {
        if request.first && request.follow {
            return Err(Status::invalid_argument("first: can't be asked for together with follow"));
        }
        let filters = Filters::new(&request.whitelist, &request.blacklist)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let since = request.since.as_ref().map(unix_nanos);
        let until = request.until.as_ref().map_or(u64::MAX, unix_nanos);
        let number = match (request.number, request.follow, since) {
            // What comes from now on.
            (0, true, None) => 0,
            (0, _, _) => usize::MAX,
            (number, _, _) => usize::try_from(number).unwrap_or(usize::MAX),
        };
        // The oldest come first where all are wanted: no need to keep them.
        let order = if request.first || number == usize::MAX { Order::Oldest } else { Order::Newest };
        Ok(Self { filters, order, number, since: since.unwrap_or(0), until, follow: request.follow })
    }

    fn wants(&self, flow: &Flow) -> bool {
        let time = flow_nanos(flow);
        time >= self.since && time <= self.until && self.filters.fit(flow)
    }

    /// The past that was asked for, oldest first.
    fn past(&self, past: Box<dyn Iterator<Item = Live> + Send>) -> Vec<Live> {
        let mut count = 0;
        let mut picked = Vec::new();
        for item in past {
            if count == self.number {
                break;
            }
            match item {
                Live::Flow(flow) if self.wants(&flow) => {
                    count += 1;
                    picked.push(Live::Flow(flow));
                }
                Live::Flow(_) => {}
                other => picked.push(other),
            }
        }
        if self.order == Order::Newest {
            picked.reverse();
        }
        picked
    }
}

fn answer(node: &str, item: Live) -> GetFlowsResponse {
    match item {
        Live::Flow(flow) => GetFlowsResponse {
            node_name: flow.node_name.clone(),
            time: flow.time,
            response_types: Some(ResponseTypes::Flow(*flow)),
        },
        Live::Lost(source, count) => GetFlowsResponse {
            node_name: node.to_owned(),
            time: Some(now()),
            response_types: Some(ResponseTypes::LostEvents(LostEvent {
                source: source.into(),
                num_events_lost: count,
                cpu: None,
            })),
        },
        Live::Nodes(status) => GetFlowsResponse {
            node_name: node.to_owned(),
            time: Some(now()),
            response_types: Some(ResponseTypes::NodeStatus(status)),
        },
    }
}

fn now() -> prost_types::Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// How long until a time of day.
fn until(nanos: u64) -> Option<Instant> {
    let left = nanos.saturating_sub(unix_nanos(&now()));
    // Half a century: as good as never.
    (nanos != u64::MAX).then(|| Instant::now() + Duration::from_nanos(left.min(1_500_000_000_000_000_000)))
}

type Answers = mpsc::Sender<Result<GetFlowsResponse, Status>>;

/// Sends what was asked for, until it is over or nobody reads any more.
async fn feed(asked: Asked, opened: Opened, node: String, answers: Answers, _reader: OwnedSemaphorePermit) {
    let Opened { past, live } = opened;
    // Naming thousands of flows takes a while.
    let Ok((asked, picked)) = tokio::task::spawn_blocking(move || {
        let picked = asked.past(past);
        (asked, picked)
    })
    .await
    else {
        return;
    };
    for item in picked {
        if answers.send(Ok(answer(&node, item))).await.is_err() {
            return;
        }
    }
    let Some(mut live) = live else { return };
    let end = until(asked.until);
    loop {
        let item = tokio::select! {
            item = live.next() => item,
            () = answers.closed() => return,
            () = async { match end { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => return,
        };
        let item = match item {
            Some(Ok(item)) => item,
            Some(Err(status)) => {
                // Nobody may be there to hear it.
                let _ = answers.send(Err(status)).await;
                return;
            }
            None => return,
        };
        if matches!(&item, Live::Flow(flow) if !asked.wants(flow)) {
            continue;
        }
        if answers.send(Ok(answer(&node, item))).await.is_err() {
            return;
        }
    }
}

const NOT_SERVED: &str = "Isthmus has no such events; flows are read with GetFlows";

#[tonic::async_trait]
impl<S: Source> observer_server::Observer for Observer<S> {
    type GetFlowsStream = ReceiverStream<Result<GetFlowsResponse, Status>>;
    type GetAgentEventsStream = futures::stream::Empty<Result<GetAgentEventsResponse, Status>>;
    type GetDebugEventsStream = futures::stream::Empty<Result<GetDebugEventsResponse, Status>>;

    async fn get_flows(
        &self,
        request: Request<GetFlowsRequest>,
    ) -> Result<Response<Self::GetFlowsStream>, Status> {
        self.source.admit(request.extensions())?;
        let asked = Asked::read(request.get_ref())?;
        let reader = self.readers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{MAX_READERS} readers are served at once; try again later"))
        })?;
        let node = self.source.about().await?.name;
        let opened = self.source.open(request.into_parts().1, asked.order, asked.follow).await?;
        let (answers, stream) = mpsc::channel(BACKLOG);
        tokio::spawn(feed(asked, opened, node, answers, reader));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_agent_events(
        &self,
        request: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        self.source.admit(request.extensions())?;
        Err(Status::unimplemented(NOT_SERVED))
    }

    async fn get_debug_events(
        &self,
        request: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        self.source.admit(request.extensions())?;
        Err(Status::unimplemented(NOT_SERVED))
    }

    async fn get_nodes(
        &self,
        request: Request<GetNodesRequest>,
    ) -> Result<Response<GetNodesResponse>, Status> {
        self.source.admit(request.extensions())?;
        Ok(Response::new(GetNodesResponse { nodes: self.source.about().await?.nodes }))
    }

    async fn get_namespaces(
        &self,
        request: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        self.source.admit(request.extensions())?;
        let about = self.source.about().await?;
        let namespaces = about
            .namespaces
            .into_iter()
            .map(|namespace| wire::Namespace { cluster: about.cluster.clone(), namespace })
            .collect();
        Ok(Response::new(GetNamespacesResponse { namespaces }))
    }

    async fn server_status(
        &self,
        request: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        self.source.admit(request.extensions())?;
        let about = self.source.about().await?;
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(ServerStatusResponse {
            num_flows: about.kept,
            max_flows: about.capacity,
            seen_flows: about.seen,
            uptime_ns: u64::try_from(about.uptime.as_nanos()).unwrap_or(u64::MAX),
            num_connected_nodes: Some(count(about.nodes.len().saturating_sub(about.unavailable.len()))),
            num_unavailable_nodes: Some(count(about.unavailable.len())),
            unavailable_nodes: about.unavailable,
            version: format!("isthmus v{}", env!("CARGO_PKG_VERSION")),
            flows_rate: about.rate,
        }))
    }
}
