//! Streams of secrets as callers see them: who gets how many, and for how long.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, time::Duration};

use mesh_model::resource::NamespacedName;
use mesh_tls::{TrustBundles, shared_bundles, shared_identity};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Status, Streaming, service::interceptor::InterceptedService, transport::Server};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        extensions::transport_sockets::tls::v3::Secret,
        service::{
            discovery::v3::{DiscoveryRequest, DiscoveryResponse},
            secret::v3::{
                secret_discovery_service_client::SecretDiscoveryServiceClient,
                secret_discovery_service_server::SecretDiscoveryServiceServer,
            },
        },
    },
    type_url,
};

use super::{CallerInfo, Callers, SdsService, Secrets};
use crate::{
    bootstrap::{Upstream, state::tests::state},
    cni::{Registry, SharedRegistry, registry_fixture},
    engine::Engine,
    maps::MemoryMaps,
    subscribe::update_fixture,
};

type Client = SecretDiscoveryServiceClient<tonic::transport::Channel>;

/// A node whose callers are who they are said to be.
struct TestNode {
    engine: Engine,
    registry: SharedRegistry,
    sds: SdsService,
    dir: tempfile::TempDir,
}

impl TestNode {
    fn new(pods: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = state();
        let bundles = shared_bundles(TrustBundles::new());
        let upstream = Upstream::new(&state, vec![], shared_identity(None), bundles).unwrap();
        let engine = Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(MemoryMaps::default())).unwrap();
        let mut registry = Registry::open(dir.path(), state.pod_cidr).unwrap();
        for (container, workload) in pods {
            registry.begin(registry_fixture(container, workload)).unwrap();
        }
        let registry = SharedRegistry::new(registry);
        let callers = Callers::new(registry.clone(), BTreeSet::new()).unwrap();
        let secrets = Secrets::new(dir.path(), engine.clone(), upstream).unwrap();
        let sds = SdsService::new(callers, secrets, engine.clone());
        Self { engine, registry, sds, dir }
    }

    fn socket(&self, container: &str) -> std::path::PathBuf {
        self.dir.path().join(container)
    }

    /// A client that the kernel says is in a pod.
    async fn client(&self, container: &str) -> Client {
        let pod = registry_fixture(container, "shop/any");
        let caller =
            CallerInfo { uid: 1000, netns: Some(pod.netns_id), cookie: pod.netns_cookie, cgroup: None };
        let path = self.socket(container);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let service = SecretDiscoveryServiceServer::new(self.sds.clone());
        let service = InterceptedService::new(service, move |mut request: Request<()>| {
            request.extensions_mut().insert(caller.clone());
            Ok(request)
        });
        let incoming = UnixListenerStream::new(listener);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        Client::new(channel(&path).await)
    }
}

async fn channel(path: &Path) -> tonic::transport::Channel {
    mesh_tls::grpc::connect_unix(path).await.unwrap()
}

/// A stream, open as long as both ends of it are kept.
type Open = (Streaming<DiscoveryResponse>, mpsc::Sender<DiscoveryRequest>);

/// A stream that says these, and stays open.
async fn open(client: &Client, requests: Vec<DiscoveryRequest>) -> Result<Open, Status> {
    let (sender, receiver) = mpsc::channel(8);
    for request in requests {
        sender.try_send(request).expect("there is room");
    }
    let responses = client.clone().stream_secrets(ReceiverStream::new(receiver)).await?;
    Ok((responses.into_inner(), sender))
}

/// Waits until so many are counted.
async fn counted(node: &TestNode, streams: usize) {
    let are = async {
        while node.sds.open_streams() != streams {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), are)
        .await
        .expect("streams are counted as long as they are open");
}

fn asks() -> DiscoveryRequest {
    DiscoveryRequest {
        node: Some(Node { id: "proxy~shop/web".into(), ..Default::default() }),
        resource_names: vec!["ROOTCA".into()],
        type_url: type_url::<Secret>(),
        ..Default::default()
    }
}

#[tokio::test]
async fn one_pod_has_no_more_streams_than_its_share_and_another_gets_its_own() {
    let node = TestNode::new(&[("c1", "shop/web"), ("c2", "shop/pay")]);
    let (web, pay) = (node.client("c1").await, node.client("c2").await);
    let mut streams = Vec::new();
    // They need not say anything.
    for number in 0..64 {
        streams.push(open(&web, if number % 2 == 0 { vec![] } else { vec![asks()] }).await.unwrap());
    }
    let refused = open(&web, vec![asks()]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("64 streams of shop/web"), "{}", refused.message());
    streams.push(open(&pay, vec![asks()]).await.unwrap());
    assert_eq!(node.sds.open_streams(), 65);
    // Whoever is nobody has no slot.
    let stranger = open(&node.client("c3").await, vec![]).await.unwrap_err();
    assert_eq!((stranger.code(), node.sds.open_streams()), (Code::PermissionDenied, 65));
    drop(streams);
    counted(&node, 0).await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_ended() {
    let mut node = TestNode::new(&[("c1", "shop/web")]);
    node.sds.slots.patience = Duration::from_millis(20);
    let web = node.client("c1").await;
    let (mut silent, _requests) = open(&web, vec![]).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), silent.message()).await.expect("it ends");
    let ended = ended.unwrap_err();
    assert_eq!((ended.code(), node.sds.open_streams()), (Code::DeadlineExceeded, 0));
}

#[tokio::test]
async fn a_standing_stream_ends_when_another_pod_has_come_with_the_name() {
    let node = TestNode::new(&[("c1", "shop/web")]);
    let (mut web, _requests) = open(&node.client("c1").await, vec![asks()]).await.unwrap();
    counted(&node, 1).await;
    // Both within one change that streams are told of.
    {
        let mut registry = node.registry.lock();
        let gone = registry_fixture("c1", "shop/web").key();
        assert!(registry.remove(&gone).unwrap().is_some());
        registry.begin(registry_fixture("c9", "shop/web")).unwrap();
    }
    let bundle = xds_proto::isthmus::agent::v1::WorkloadAddress {
        addresses: vec!["10.1.2.2".into()],
        identity: 301,
        ..Default::default()
    };
    node.engine.apply(&update_fixture(&[("shop/other", bundle)], &[])).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), web.message()).await.expect("it ends");
    assert_eq!(ended.unwrap_err().code(), Code::PermissionDenied);
    assert!(
        NamespacedName::parse("shop/web").is_some_and(|web| node.registry.lock().by_workload(&web).is_some())
    );
}
