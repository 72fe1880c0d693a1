//! A delta ADS stream whose every answer is the test's own decision.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use xds_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    google,
};

use crate::common::SOON;

pub struct Raw {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Raw {
    /// Opens a stream and subscribes to everything of one type.
    pub async fn open(channel: Channel, type_url: &str) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(1_000);
        let first = DeltaDiscoveryRequest {
            node: Some(xds_client::node("agent~test", "west")),
            type_url: type_url.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        tokio::time::timeout(SOON, self.next_or_end()).await.expect("a response in time")
    }

    /// The next one, however long it takes, or the end of the stream.
    pub async fn next_or_end(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        self.responses.message().await?.ok_or_else(|| Status::unavailable("the stream has ended"))
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub async fn nack(&self, response: &DeltaDiscoveryResponse, words: &str) {
        let error = google::rpc::Status { code: 13, message: words.to_owned(), details: Vec::new() };
        self.answer(response, Some(error)).await;
    }

    /// Reads and ACKs until nothing more comes.
    pub async fn catch_up(&mut self) {
        let first = self.next().await.unwrap();
        self.ack(&first).await;
        while self.acked_another().await {}
    }

    /// Whether something came within a moment.
    async fn acked_another(&mut self) -> bool {
        match tokio::time::timeout(Duration::from_millis(100), self.responses.message()).await {
            Ok(Ok(Some(response))) => {
                self.ack(&response).await;
                true
            }
            _ => false,
        }
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error_detail: Option<google::rpc::Status>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        };
        // An error means that the server has ended the stream, and the next read tells why.
        let _ = self.requests.send(request).await;
    }
}
