//! `Watch` over the real door: events, labels, resumption, and what becomes of a watcher that does not read.

use tonic::{Code, Streaming};
use xds_proto::isthmus::admin::v1::{WatchEvent, WatchRequest};

use crate::common::{Cluster, SOON};

fn service(name: &str, app: &str, port: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
         spec: {{ports: [{{port: {port}}}]}}}}"
    )
}

async fn next(stream: &mut Streaming<WatchEvent>) -> (String, String, u64) {
    let event = tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap().unwrap();
    let object: serde_json::Value = serde_json::from_slice(&event.object).unwrap();
    (event.r#type, object["metadata"]["name"].as_str().unwrap().to_owned(), event.revision)
}

fn request(from_revision: u64, label_selector: &str) -> WatchRequest {
    WatchRequest {
        kind: "svc".to_owned(),
        namespace: "shop".to_owned(),
        from_revision,
        label_selector: label_selector.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn every_change_is_told_once_in_order_and_goes_on_from_a_revision() {
    let mut cluster = Cluster::start("west").await;
    let first = cluster.apply(&service("a", "pay", 80)).await.unwrap();
    let mut all = cluster.admin.watch(request(0, "")).await.unwrap().into_inner();
    assert_eq!(next(&mut all).await, ("ADDED".to_owned(), "a".to_owned(), first));
    let mut pay = cluster.admin.watch(request(first, "app=pay")).await.unwrap().into_inner();
    let left = cluster.apply(&service("a", "web", 80)).await.unwrap();
    let second = cluster.apply(&service("b", "pay", 80)).await.unwrap();
    assert_eq!(next(&mut all).await, ("MODIFIED".to_owned(), "a".to_owned(), left));
    assert_eq!(next(&mut all).await, ("ADDED".to_owned(), "b".to_owned(), second));
    assert_eq!(
        next(&mut pay).await,
        ("DELETED".to_owned(), "a".to_owned(), left),
        "it has left the selector"
    );
    assert_eq!(next(&mut pay).await, ("ADDED".to_owned(), "b".to_owned(), second));
    let mut later = cluster.admin.watch(request(left, "")).await.unwrap().into_inner();
    assert_eq!(next(&mut later).await, ("ADDED".to_owned(), "b".to_owned(), second));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_and_told_where_to_go_on() {
    let mut cluster = Cluster::start_with("west", &["--limit", "watch-backlog=4"]).await;
    let slices = WatchRequest { kind: "endpointslice".to_owned(), ..Default::default() };
    let mut slow = cluster.admin.watch(slices.clone()).await.unwrap().into_inner();
    let endpoints: Vec<_> =
        (0..900).map(|i| format!("{{addresses: [10.9.{}.{}]}}", i / 250, i % 250 + 1)).collect();
    // More than the watch may be behind and the connection may hold.
    let mut newest = 0;
    for port in 1..=300 {
        let slice = format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: s, namespace: shop, labels: \
             {{kubernetes.io/service-name: s}}}}, addressType: IPv4, ports: [{{port: {port}}}], endpoints: [{}]}}",
            endpoints.join(",")
        );
        newest = cluster.apply(&slice).await.unwrap();
    }
    let mut seen = 0;
    let status = loop {
        match tokio::time::timeout(SOON, slow.message()).await.unwrap() {
            Ok(Some(event)) => seen = event.revision,
            Ok(None) => panic!("cut without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("is at the limit watch-backlog: 4 unread events"), "{status}");
    assert!(seen > 0 && seen < newest, "{seen} of {newest}");
    // What it says is enough to miss nothing.
    let from: u64 = status.message().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(from >= seen, "{status}");
    let again = WatchRequest { from_revision: seen, ..slices };
    let mut again = cluster.admin.watch(again).await.unwrap().into_inner();
    let event = tokio::time::timeout(SOON, again.message()).await.unwrap().unwrap().unwrap();
    assert!(event.revision > seen, "{} after {seen}", event.revision);
}
