//! ADS and LRS on the agent's socket: the agent attests who calls, and carries the stream to a replica. It reads the first
//! request for the node's name, and otherwise changes nothing.

mod seen;

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use seen::Seen;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue, transport::Channel};
use xds_client::REVISION_METADATA;
use xds_proto::envoy::service::{
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse, load_reporting_service_client::LoadReportingServiceClient,
        load_reporting_service_server::LoadReportingService,
    },
};

use crate::{
    bootstrap::Upstream,
    engine::Engine,
    identity::{CallerInfo, Callers, Opened, Slots},
};

/// gRPC metadata by which the control plane learns for whom the agent asks.
pub const WORKLOAD_METADATA: &str = "x-isthmus-workload";
/// Messages in flight, each way. A side that does not read holds up the other, and nobody else.
const BUFFER: usize = 8;
/// Largest message, either way.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Carries streams.
#[derive(Clone)]
pub struct Relay {
    callers: Callers,
    upstream: Upstream,
    engine: Engine,
    slots: Slots,
    seen: Arc<Seen>,
}

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

impl Relay {
    /// Carries the streams of whom `callers` knows.
    pub fn new(callers: Callers, upstream: Upstream, engine: Engine) -> Self {
        Self { callers, upstream, engine, slots: Slots::default(), seen: Arc::default() }
    }

    /// Streams of proxies that are carried.
    pub fn open_streams(&self) -> usize {
        self.slots.taken()
    }

    fn open<K: Kind>(
        &self,
        request: Request<Streaming<K::Request>>,
    ) -> Result<Response<Responses<K::Response>>, Status> {
        let caller = CallerInfo::from_request(&request)?;
        let opened = self.slots.open(&self.callers, &caller)?;
        let (sender, receiver) = mpsc::channel(BUFFER);
        let relay = self.clone();
        tokio::spawn(async move {
            if let Err(status) = relay.carry::<K>(opened, caller, request, &sender).await {
                tracing::debug!(%status, "relayed stream ended");
                // An error means that the client has gone.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn carry<K: Kind>(
        &self,
        opened: Opened,
        caller: CallerInfo,
        from_client: Request<Streaming<K::Request>>,
        to_client: &mpsc::Sender<Result<K::Response, Status>>,
    ) -> Result<(), Status> {
        let said = from_client.metadata().get(REVISION_METADATA);
        let said: Option<u64> = said.and_then(|value| value.to_str().ok()?.parse().ok());
        let mut from_client = from_client.into_inner();
        let first = self.slots.first(opened, &self.callers, &caller, &mut from_client, K::node_id);
        let first = tokio::select! {
            first = first => first?,
            () = to_client.closed() => None,
        };
        let Some((first, stream)) = first else { return Ok(()) };
        let workload = stream.workload();

        let channel =
            self.upstream.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (to_server, requests) = mpsc::channel(BUFFER);
        to_server.try_send(first).map_err(|_| Status::internal("a new buffer is full"))?;
        let mut request = Request::new(ReceiverStream::new(requests));
        let name = MetadataValue::try_from(workload.to_string())
            .map_err(|_| Status::internal("the workload's name is no metadata value"))?;
        request.metadata_mut().insert(WORKLOAD_METADATA, name);
        self.seen.retain(|workload| self.callers.is_here(workload));
        if let Some(revision) = said.max(self.seen.of(workload)) {
            request.metadata_mut().insert(REVISION_METADATA, revision.into());
        }
        let mut from_server = match K::call(channel, request).await {
            Ok(stream) => stream,
            Err(status) => return Err(self.upstream_ended(status)),
        };
        let mut changes = self.engine.changes();
        // Both ways at once: one that is held up must not hold up the other.
        let up = async {
            while let Some(message) = from_client.message().await? {
                stream.attest()?;
                if to_server.send(message).await.is_err() {
                    return Err(Status::unavailable("the control plane ended the stream"));
                }
            }
            Ok(())
        };
        let down = async {
            loop {
                match from_server.message().await {
                    Ok(Some(message)) => {
                        // It may be another's by now that has the name.
                        stream.attest()?;
                        self.seen.note(workload, K::version(&message));
                        if to_client.send(Ok(message)).await.is_err() {
                            return Ok(());
                        }
                    }
                    Ok(None) => {
                        return Err(
                            self.upstream_ended(Status::unavailable("the control plane ended the stream"))
                        );
                    }
                    Err(status) => return Err(self.upstream_ended(status)),
                }
            }
        };
        let gone = async {
            loop {
                if let Err(status) = stream.attest() {
                    return status;
                }
                if changes.changed().await.is_err() {
                    return Status::unavailable("the agent is stopping");
                }
            }
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
            status = gone => Err(status),
            () = to_client.closed() => Ok(()),
        }
    }

    /// Whatever ended the stream above, the client below is to come back; the next stream goes to another replica. What
    /// the control plane refuses for good is passed on as it is.
    fn upstream_ended(&self, status: Status) -> Status {
        use tonic::Code;
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::NotFound => status,
            _ => {
                self.upstream.move_on();
                Status::unavailable(format!("control plane: {}", status.message()))
            }
        }
    }
}

/// One of the two variants of ADS, or LRS.
trait Kind: 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    fn node_id(request: &Self::Request) -> &str;

    /// Empty if responses have none.
    fn version(_: &Self::Response) -> &str {
        ""
    }

    fn call(
        channel: Channel,
        request: Request<ReceiverStream<Self::Request>>,
    ) -> impl Future<Output = Result<Streaming<Self::Response>, Status>> + Send;
}

/// `StreamAggregatedResources`.
struct StateOfTheWorld;
/// `DeltaAggregatedResources`.
struct Delta;

/// A client that takes messages of the size that the agent's socket does.
pub(crate) fn client(channel: Channel) -> AggregatedDiscoveryServiceClient<Channel> {
    AggregatedDiscoveryServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

impl Kind for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn node_id(request: &DiscoveryRequest) -> &str {
        request.node.as_ref().map_or("", |node| &node.id)
    }

    fn version(response: &DiscoveryResponse) -> &str {
        &response.version_info
    }

    async fn call(
        channel: Channel,
        request: Request<ReceiverStream<DiscoveryRequest>>,
    ) -> Result<Streaming<DiscoveryResponse>, Status> {
        client(channel).stream_aggregated_resources(request).await.map(Response::into_inner)
    }
}

impl Kind for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn node_id(request: &DeltaDiscoveryRequest) -> &str {
        request.node.as_ref().map_or("", |node| &node.id)
    }

    fn version(response: &DeltaDiscoveryResponse) -> &str {
        &response.system_version_info
    }

    async fn call(
        channel: Channel,
        request: Request<ReceiverStream<DeltaDiscoveryRequest>>,
    ) -> Result<Streaming<DeltaDiscoveryResponse>, Status> {
        client(channel).delta_aggregated_resources(request).await.map(Response::into_inner)
    }
}

/// `StreamLoadStats`.
struct LoadReports;

impl Kind for LoadReports {
    type Request = LoadStatsRequest;
    type Response = LoadStatsResponse;

    fn node_id(request: &LoadStatsRequest) -> &str {
        request.node.as_ref().map_or("", |node| &node.id)
    }

    async fn call(
        channel: Channel,
        request: Request<ReceiverStream<LoadStatsRequest>>,
    ) -> Result<Streaming<LoadStatsResponse>, Status> {
        let mut client = LoadReportingServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        client.stream_load_stats(request).await.map(Response::into_inner)
    }
}

#[tonic::async_trait]
impl LoadReportingService for Relay {
    type StreamLoadStatsStream = Responses<LoadStatsResponse>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        self.open::<LoadReports>(request)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Relay {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<StateOfTheWorld>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<Delta>(request)
    }
}
