//! Every limit is refused as RESOURCE_EXHAUSTED, by its name and value, and the others go on.

use tonic::{Code, Status};
use xds_proto::{
    isthmus::{
        admin::v1::{WaitRequest, WatchRequest},
        agent::v1::Service,
        bootstrap::v1::{
            RegisterNodeRequest, RemoveEndpointRequest, bootstrap_client::BootstrapClient,
            endpoints_client::EndpointsClient,
        },
    },
    type_url,
};

use crate::{
    common::{Cluster, SOON},
    raw::Raw,
};

fn assert_reached(status: &Status, limit: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains(&format!("is at the limit {limit}")), "{status}");
}

fn watch_services() -> WatchRequest {
    WatchRequest { kind: "svc".to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_node_that_asks_too_often_is_refused() {
    let mut cluster = Cluster::start_with("west", &["--limit", "node-requests=1"]).await;
    let node = cluster.node("n1").await;
    let mut endpoints = EndpointsClient::new(node.channel.clone());
    let mut refused = None;
    for _ in 0..20 {
        let request = RemoveEndpointRequest { namespace: "shop".to_owned(), workload: "none".to_owned() };
        if let Err(status) = endpoints.remove(request).await
            && status.code() == Code::ResourceExhausted
        {
            refused = Some(status);
            break;
        }
    }
    assert_reached(&refused.expect("a refusal"), "node-requests: 1 requests a second");
    assert!(cluster.revision().await > 0, "the local administrator is served");
}

#[tokio::test]
async fn whoever_tries_tokens_is_slowed_down() {
    let cluster = Cluster::start_with("west", &["--limit", "newcomer-requests=1"]).await;
    let mut newcomer = BootstrapClient::new(cluster.connect(None).await.unwrap());
    let mut codes = Vec::new();
    for _ in 0..8 {
        let request = RegisterNodeRequest { token: "isthmus1.nonsense".to_owned(), ..Default::default() };
        codes.push(newcomer.register_node(request).await.unwrap_err().code());
    }
    assert_eq!(codes[0], Code::InvalidArgument, "{codes:?}");
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
}

#[tokio::test]
async fn streams_are_limited_per_client_and_in_total() {
    let mut cluster =
        Cluster::start_with("west", &["--limit", "xds-streams-per-client=1", "--limit", "xds-streams=2"])
            .await;
    let (n1, n2, n3) = (cluster.node("n1").await, cluster.node("n2").await, cluster.node("n3").await);
    let services = type_url::<Service>();
    let mut first = Raw::open(n1.channel.clone(), &services).await.unwrap();
    first.next().await.unwrap();
    let mut again = Raw::open(n1.channel.clone(), &services).await.unwrap();
    assert_reached(&again.next().await.unwrap_err(), "xds-streams-per-client: 1 streams");
    let mut second = Raw::open(n2.channel.clone(), &services).await.unwrap();
    second.next().await.unwrap();
    let mut third = Raw::open(n3.channel.clone(), &services).await.unwrap();
    assert_reached(&third.next().await.unwrap_err(), "xds-streams: 2 streams");
    drop(second);
    // Once its end was noticed there is room again.
    let room = async {
        loop {
            let mut next = Raw::open(n3.channel.clone(), &services).await.unwrap();
            if next.next().await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(SOON, room).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_talks_too_much_ends() {
    let mut cluster = Cluster::start_with("west", &["--limit", "xds-requests=1"]).await;
    let node = cluster.node("n1").await;
    let mut raw = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    let response = raw.next().await.unwrap();
    for _ in 0..50 {
        raw.ack(&response).await;
    }
    assert_reached(&raw.next().await.unwrap_err(), "xds-requests: 1 requests a second on one stream");
}

#[tokio::test]
async fn watches_and_waits_are_limited() {
    let mut cluster =
        Cluster::start_with("west", &["--limit", "watches-per-client=1", "--limit", "waits=1"]).await;
    let held = cluster.admin.watch(watch_services()).await.unwrap();
    let refused = cluster.admin.watch(watch_services()).await.unwrap_err();
    assert_reached(&refused, "watches-per-client: 1 at once");
    drop(held);
    // A node that never answers keeps the first wait open.
    let node = cluster.node("n1").await;
    let mut silent = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    silent.next().await.unwrap();
    let revision = cluster
        .apply("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}")
        .await
        .unwrap();
    let request = WaitRequest { revision, timeout_ms: 600_000 };
    let mut waiting = cluster.admin.wait(request).await.unwrap().into_inner();
    waiting.message().await.unwrap();
    assert_reached(&cluster.admin.wait(request).await.unwrap_err(), "waits: 1 at once");
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_read() {
    let mut cluster = Cluster::start("west").await;
    let node = cluster.node("n1").await;
    let request = RemoveEndpointRequest { namespace: "n".repeat(2 << 20), workload: "x".to_owned() };
    let status = EndpointsClient::new(node.channel.clone()).remove(request).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    assert!(status.message().contains("1048576"), "{status}");
}
