//! One delta stream. On HTTP/2 itself, without a gRPC library around it: thousands of clients share the processors with
//! the server that is measured, so what they cost is part of what is seen.

use anyhow::{Context, Result, bail, ensure};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::HeaderMap;
use prost::{
    Message,
    bytes::{Buf, BufMut, Bytes, BytesMut},
};
use xds_proto::envoy::{config::core::v3::Node as XdsNode, service::discovery::v3::DeltaDiscoveryRequest};

use super::node::REPLICA;

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
/// gRPC's frame: a flag for compression and four bytes of length.
const FRAME: usize = 5;
/// Bytes that one stream may have unread: what our agents allow.
const STREAM_WINDOW: u32 = 512 << 10;
/// The same of a connection.
const CONNECTION_WINDOW: u32 = 64 << 20;

/// A response, as far as it matters here. The rest is skipped unread.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Answer {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub(super) resources: Vec<Bytes>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

/// A connection that takes streams.
pub(super) async fn connection(
    tunnel: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
) -> Result<(SendRequest<Bytes>, impl Future<Output = ()> + Send + 'static)> {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    let (requests, connection) = builder.handshake(tunnel).await?;
    // How it ends is told by its streams.
    Ok((requests, async move { drop(connection.await) }))
}

/// A stream that has said what it wants.
pub(super) struct Stream {
    opening: Option<ResponseFuture>,
    responses: Option<RecvStream>,
    requests: SendStream<Bytes>,
    read: BytesMut,
}

impl Stream {
    /// Of the agent of a node or, with a workload, of its proxy.
    pub(super) async fn open(
        connection: SendRequest<Bytes>,
        node: &str,
        workload: Option<&str>,
    ) -> Result<Self> {
        let (types, prefix, id): (&[&str], _, _) = match workload {
            None => (&AGENT, "isthmus.agent.v1", format!("agent~{node}")),
            Some(workload) => (&PROXY, "envoy", format!("proxy~bench/{workload}")),
        };
        let mut request = http::Request::post(format!("https://{REPLICA}{ADS}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(workload) = workload {
            request = request.header("x-isthmus-workload", format!("bench/{workload}"));
        }
        let mut connection = connection.ready().await?;
        let (opening, requests) = connection.send_request(request.body(())?, false)?;
        let mut stream = Self { opening: Some(opening), responses: None, requests, read: BytesMut::new() };
        for (index, name) in types.iter().enumerate() {
            stream.say(&DeltaDiscoveryRequest {
                node: (index == 0).then(|| XdsNode { id: id.clone(), ..Default::default() }),
                type_url: format!("type.googleapis.com/{prefix}.{name}"),
                resource_names_subscribe: vec!["*".to_owned()],
                ..Default::default()
            })?;
        }
        Ok(stream)
    }

    fn say(&mut self, request: &DeltaDiscoveryRequest) -> Result<()> {
        let mut frame = BytesMut::with_capacity(FRAME + request.encoded_len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(request.encoded_len())?);
        request.encode(&mut frame)?;
        Ok(self.requests.send_data(frame.freeze(), false)?)
    }

    /// ACKs a response.
    pub(super) fn acknowledge(&mut self, answer: Answer) -> Result<()> {
        let Answer { type_url, nonce, .. } = answer;
        self.say(&DeltaDiscoveryRequest { type_url, response_nonce: nonce, ..Default::default() })
    }

    /// The next response. An error says why there are no more.
    pub(super) async fn next(&mut self) -> Result<Answer> {
        if let Some(opening) = self.opening.take() {
            let response = opening.await?;
            // A refusal comes without a body.
            ensure!(response.headers().get("grpc-status").is_none(), "{}", reason(response.headers()));
            self.responses = Some(response.into_body());
        }
        let responses = self.responses.as_mut().context("the stream has failed before")?;
        loop {
            if let Some(mut length) = self.read.get(1..FRAME) {
                let length = length.get_u32() as usize;
                if self.read.len() >= FRAME + length {
                    self.read.advance(FRAME);
                    let whole = self.read.split_to(length).freeze();
                    if self.read.is_empty() {
                        // Or what was large once stays so.
                        self.read = BytesMut::new();
                    }
                    return Ok(Answer::decode(whole)?);
                }
            }
            let Some(data) = responses.data().await else {
                let trailers = responses.trailers().await?.unwrap_or_default();
                bail!("the server has ended the stream: {}", reason(&trailers));
            };
            let data = data?;
            responses.flow_control().release_capacity(data.len())?;
            self.read.extend_from_slice(&data);
        }
    }
}

fn reason(headers: &HeaderMap) -> String {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none");
    format!("status {}, {}", text("grpc-status"), text("grpc-message"))
}
