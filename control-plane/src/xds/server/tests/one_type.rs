//! Services of one type, and what belongs to a stream and not to a message.

use tonic::client::Grpc;
use tonic_prost::ProstCodec;
use xds_proto::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;

use super::*;

#[tokio::test]
async fn a_service_of_one_type_needs_no_type_url_and_refuses_others() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1"), (SECRET, "s", "1")])).await;
    let mut client = EndpointDiscoveryServiceClient::new(running.channel().await);
    let (requests, receiver) = mpsc::channel(4);
    let request = DiscoveryRequest { resource_names: vec!["e".into()], ..Default::default() };
    requests.send(request.clone()).await.unwrap();
    let mut responses = client.stream_endpoints(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let response: DiscoveryResponse = responses.message().await.unwrap().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (EDS, 1));
    requests.send(DiscoveryRequest { type_url: SECRET.into(), ..request }).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::InvalidArgument);
}

/// How a stream ends that begins with this request.
async fn refused<Q, A>(running: &Running, path: String, request: Q) -> Status
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + std::fmt::Debug + 'static,
{
    let mut grpc = Grpc::new(running.channel().await);
    grpc.ready().await.unwrap();
    let request = tonic::Request::new(tokio_stream::once(request));
    let path = path.parse().unwrap();
    let mut responses: Streaming<A> = match grpc.streaming(request, path, ProstCodec::default()).await {
        Ok(responses) => responses.into_inner(),
        Err(status) => return status,
    };
    tokio::time::timeout(WAIT, responses.message()).await.unwrap().expect_err("nothing is served")
}

#[tokio::test]
async fn every_service_of_one_type_refuses_other_types_with_a_status() {
    let running = Running::start(TestViews::new(1, &[(SERVICE, "s", "1"), (SECRET, "s", "1")])).await;
    let services = [
        ("listener", "ListenerDiscoveryService", "Listeners"),
        ("route", "RouteDiscoveryService", "Routes"),
        ("route", "ScopedRoutesDiscoveryService", "ScopedRoutes"),
        ("cluster", "ClusterDiscoveryService", "Clusters"),
        ("endpoint", "EndpointDiscoveryService", "Endpoints"),
        ("secret", "SecretDiscoveryService", "Secrets"),
        ("extension", "ExtensionConfigDiscoveryService", "ExtensionConfigs"),
        ("runtime", "RuntimeDiscoveryService", "Runtime"),
        ("route", "VirtualHostDiscoveryService", "VirtualHosts"),
    ];
    for (package, service, what) in services {
        let path = |way: &str| format!("/envoy.service.{package}.v3.{service}/{way}{what}");
        let type_url = SERVICE.to_owned();
        let request = DeltaDiscoveryRequest { type_url: type_url.clone(), ..Default::default() };
        let status = refused::<_, DeltaDiscoveryResponse>(&running, path("Delta"), request).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
        assert!(status.message().contains(SERVICE), "{status}");
        let request = DiscoveryRequest { type_url, ..Default::default() };
        let status = refused::<_, DiscoveryResponse>(&running, path("Stream"), request).await;
        let expected = if what == "VirtualHosts" { Code::Unimplemented } else { Code::InvalidArgument };
        assert_eq!(status.code(), expected, "{what}: {status}");
    }
    assert_eq!(running.server.subscribers().list(), [], "whoever was refused is not listed");
}

#[tokio::test]
async fn a_later_type_on_a_delta_service_of_one_type_ends_the_stream() {
    let running = Running::start(TestViews::new(1, &[(EDS, "e", "1")])).await;
    let mut client = EndpointDiscoveryServiceClient::new(running.channel().await);
    let (requests, receiver) = mpsc::channel(4);
    let first = DeltaDiscoveryRequest { resource_names_subscribe: vec!["e".into()], ..Default::default() };
    requests.send(first).await.unwrap();
    let mut responses = client.delta_endpoints(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(next(&mut responses).await.type_url, EDS);
    requests.send(DeltaDiscoveryRequest { type_url: CDS.into(), ..Default::default() }).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn another_node_in_a_later_delta_message_is_ignored() {
    let running = Running::start(TestViews::new(1, &[(EDS, "a", "1"), (CDS, "c", "1")])).await;
    let node = |id: &str| Some(Node { id: id.into(), ..Default::default() });
    let of = |type_url: &str, id: &str| DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: vec!["*".into()],
        node: node(id),
        ..Default::default()
    };
    let (requests, mut responses) = delta(&running, of(EDS, "n1")).await;
    assert_eq!(next(&mut responses).await.type_url, EDS);
    requests.send(of(CDS, "intruder")).await.unwrap();
    assert_eq!(next(&mut responses).await.type_url, CDS, "the stream goes on");
    let list = running.server.subscribers().list();
    assert_eq!((list[0].id.as_str(), list[0].node_id.as_str()), ("agent~n1", "n1"));
}
