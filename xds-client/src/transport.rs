//! Which gRPC service carries the stream, and how its connection proves that it is alive.

use std::time::Duration;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use xds_proto::envoy::service::{
    discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
};

/// The service to call. Both speak the same messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// `AggregatedDiscoveryService.DeltaAggregatedResources`: every type on one stream.
    #[default]
    Ads,
    /// `SecretDiscoveryService.DeltaSecrets`: certificates, from the node's own agent.
    Sds,
}

impl Transport {
    pub(crate) async fn open(
        self,
        channel: Channel,
        metadata: MetadataMap,
        requests: ReceiverStream<DeltaDiscoveryRequest>,
        max_message_bytes: usize,
    ) -> Result<Streaming<DeltaDiscoveryResponse>, tonic::Status> {
        let mut request = Request::new(requests);
        *request.metadata_mut() = metadata;
        let response = match self {
            Self::Ads => {
                AggregatedDiscoveryServiceClient::new(channel)
                    .max_decoding_message_size(max_message_bytes)
                    .delta_aggregated_resources(request)
                    .await?
            }
            Self::Sds => {
                SecretDiscoveryServiceClient::new(channel)
                    .max_decoding_message_size(max_message_bytes)
                    .delta_secrets(request)
                    .await?
            }
        };
        Ok(response.into_inner())
    }
}

/// What [`run`](crate::run) is doing, for status pages and readiness.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Status {
    /// Dialling, or waiting for the stream to be accepted.
    #[default]
    Connecting,
    /// The stream is open.
    Connected,
    /// The last attempt or stream ended; the next one follows after a delay. What was received stays valid.
    Disconnected {
        /// Why, in the words of the transport or the peer.
        reason: String,
    },
}

/// Makes a connection notice a peer that is gone without a word: HTTP/2 pings every 10 s, also when idle,
/// and 5 s to answer; 5 s to connect.
pub fn keepalive(endpoint: Endpoint) -> Endpoint {
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
}
