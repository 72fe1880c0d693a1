//! ADS at a loopback port of the pod. C-core names a unix socket's path in the authority of its requests, which is no
//! authority (RFC 3986, 3.2.2) and is refused by HTTP/2 servers that look, ours among them; so it is given a port.
//!
//! Nothing but configuration passes: keys are in files, for their owner alone.

use std::path::PathBuf;

use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use xds_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};

use crate::relay::{MAX_MESSAGE, client};

/// Passes streams on to the agent.
#[derive(Debug, Clone)]
struct ToAgent {
    socket: PathBuf,
}

impl ToAgent {
    async fn client(&self) -> Result<AggregatedDiscoveryServiceClient<tonic::transport::Channel>, Status> {
        let channel = mesh_tls::grpc::connect_unix(&self.socket).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(client(channel))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for ToAgent {
    type StreamAggregatedResourcesStream = Streaming<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Streaming<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        // A client that breaks off is one that has ended its stream.
        let requests = request.into_inner().map_while(Result::ok);
        self.client().await?.stream_aggregated_resources(requests).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let requests = request.into_inner().map_while(Result::ok);
        self.client().await?.delta_aggregated_resources(requests).await
    }
}

/// Serves for ever.
///
/// # Errors
/// The transport broke.
pub async fn serve(listener: TcpListener, socket: PathBuf) -> Result<(), tonic::transport::Error> {
    let service = AggregatedDiscoveryServiceServer::new(ToAgent { socket })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)).await
}
