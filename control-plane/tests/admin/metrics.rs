//! The metrics' door, and the page that documents them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xds_proto::{
    envoy::{
        config::{
            core::v3::Locality,
            endpoint::v3::{ClusterStats, UpstreamLocalityStats},
        },
        service::load_stats::v3::{
            LoadStatsRequest, load_reporting_service_client::LoadReportingServiceClient,
        },
    },
    isthmus::{agent::v1::Service, bootstrap::v1::RegisterNodeRequest},
    type_url,
};

use crate::{
    common::{Cluster, SOON},
    raw::Raw,
};

/// What comes back on a connection of its own.
async fn http(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn scrape(at: SocketAddr) -> String {
    let answer = http(at, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("application/openmetrics-text; version=1.0.0"), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    answer
}

/// Name to type, of everything that is exported.
fn families(page: &str) -> BTreeMap<String, String> {
    let declared = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    declared
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            (if kind == "counter" { format!("{name}_total") } else { name.to_owned() }, kind.to_owned())
        })
        .collect()
}

/// Sum of the samples whose name and labels begin so.
fn sample(page: &str, begins: &str) -> f64 {
    let matching = page.lines().filter(|line| line.starts_with(begins));
    matching.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_is_exported() {
    let cluster = Cluster::start_with("west", &["--metrics", "127.0.0.1:0"]).await;
    let page = scrape(cluster.running.metrics.unwrap()).await;
    let exported = families(&page);
    let documented: BTreeMap<String, String> = include_str!("../../../docs/metrics.md")
        .lines()
        .take_while(|line| !line.starts_with("## What to alert on"))
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[0].trim_end_matches('`').to_owned(), cells[1].to_owned())
        })
        .collect();
    let names = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<BTreeSet<_>>();
    let (ours, theirs) = (names(&exported), names(&documented));
    assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/metrics.md");
    assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), Vec::<&String>::new(), "not exported");
    assert_eq!(exported, documented);
}

#[tokio::test]
async fn what_happens_is_counted() {
    let mut cluster = Cluster::start_with("west", &["--metrics", "127.0.0.1:0"]).await;
    let at = cluster.running.metrics.unwrap();
    let node = cluster.node("n1").await;
    let mut agent = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    agent.catch_up().await;
    let revision = cluster
        .apply("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}")
        .await
        .unwrap();
    agent.catch_up().await;
    // A stranger's token, and somebody who speaks no TLS.
    let mut newcomer = xds_proto::isthmus::bootstrap::v1::bootstrap_client::BootstrapClient::new(
        cluster.connect(None).await.unwrap(),
    );
    newcomer.register_node(RegisterNodeRequest::default()).await.unwrap_err();
    http(cluster.running.door, "GET / HTTP/1.1\r\n\r\n").await;
    let page = scrape(at).await;
    let at_least = |begins: &str, least: f64| {
        assert!(sample(&page, begins) >= least, "{begins} is {}\n{page}", sample(&page, begins));
    };
    assert_eq!(sample(&page, "isthmus_store_revision "), revision as f64);
    assert_eq!(sample(&page, "isthmus_store_objects{kind=\"Service\"}"), 1.0);
    assert_eq!(sample(&page, "isthmus_raft_role{role=\"leader\"}"), 1.0);
    assert_eq!(sample(&page, "isthmus_xds_streams{kind=\"agent\",protocol=\"delta\"}"), 1.0);
    at_least("isthmus_raft_term ", 1.0);
    at_least("isthmus_raft_groups_synced_total ", 1.0);
    at_least("isthmus_raft_disk_bytes ", 1.0);
    at_least("isthmus_raft_write_seconds_count ", 1.0);
    at_least("isthmus_xds_pushes_total{type=\"Service\"}", 2.0);
    at_least("isthmus_xds_acks_total{type=\"Service\"}", 2.0);
    at_least("isthmus_xds_push_bytes_total{type=\"Service\"}", 1.0);
    at_least("isthmus_xds_convergence_seconds_count ", 1.0);
    assert_eq!(
        sample(&page, "isthmus_xds_convergence_from_hearing_seconds_count "),
        0.0,
        "it led all the time"
    );
    // The next one waits for the answer to the one before.
    let apply = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: 80}}]}}}}"
        )
    };
    cluster.apply(&apply("b")).await.unwrap();
    let unanswered = agent.next().await.unwrap();
    cluster.apply(&apply("c")).await.unwrap();
    let page = until_sample(at, "isthmus_xds_types_queued{kind=\"agent\",protocol=\"delta\"}", 1.0).await;
    assert_eq!(sample(&page, "isthmus_xds_streams_queued{kind=\"agent\",protocol=\"delta\"}"), 1.0);
    assert_eq!(sample(&page, "isthmus_xds_responses_in_flight{kind=\"agent\",protocol=\"delta\"}"), 1.0);
    agent.ack(&unanswered).await;
    agent.catch_up().await;
    until_sample(at, "isthmus_xds_responses_in_flight{kind=\"agent\",protocol=\"delta\"}", 0.0).await;
    at_least("isthmus_ca_certificates_signed_total{purpose=\"node\"}", 1.0);
    at_least("isthmus_ca_certificate_expiry_timestamp_seconds{", 1.0);
    at_least("isthmus_door_handshakes_refused_total ", 1.0);
    at_least("process_resident_memory_bytes ", 1.0);
}

/// The first page on which a sample has a value.
async fn until_sample(at: std::net::SocketAddr, begins: &str, value: f64) -> String {
    let asking = async {
        loop {
            let page = scrape(at).await;
            if sample(&page, begins) == value {
                return page;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, asking).await.unwrap_or_else(|_| panic!("{begins} is never {value}"))
}

/// What one client has seen of one cluster since its last report.
fn report(issued: u64, failed: u64) -> LoadStatsRequest {
    let stats = UpstreamLocalityStats {
        locality: Some(Locality { region: "eu".into(), zone: "a".into(), ..Default::default() }),
        total_issued_requests: issued,
        total_successful_requests: issued - failed,
        total_error_requests: failed,
        total_requests_in_progress: 3,
        ..Default::default()
    };
    LoadStatsRequest {
        node: Some(xds_client::node("agent~n1", "west")),
        cluster_stats: vec![ClusterStats {
            cluster_name: "pay \"quoted\"".into(),
            upstream_locality_stats: vec![stats],
            total_dropped_requests: 2,
            ..Default::default()
        }],
    }
}

#[tokio::test]
async fn the_load_that_data_planes_report_is_exported_and_its_labels_can_not_break_the_page() {
    let mut cluster = Cluster::start_with("west", &["--metrics", "127.0.0.1:0"]).await;
    let at = cluster.running.metrics.unwrap();
    let node = cluster.node("n1").await;
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    requests.send(report(10, 1)).await.unwrap();
    requests.send(report(5, 0)).await.unwrap();
    let mut client = LoadReportingServiceClient::new(node.channel.clone());
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let answers = client.stream_load_stats(stream).await.unwrap();
    let of = r#"{cluster="pay \"quoted\"",locality="eu/a""#;
    let exported = async {
        loop {
            let page = scrape(at).await;
            let issued = format!("isthmus_load_requests_total{of},outcome=\"issued\"}}");
            if sample(&page, &issued) == 15.0 {
                return page;
            }
            tokio::task::yield_now().await;
        }
    };
    let page = tokio::time::timeout(SOON, exported).await.unwrap();
    assert_eq!(sample(&page, &format!("isthmus_load_requests_total{of},outcome=\"failed\"}}")), 1.0);
    assert_eq!(sample(&page, &format!("isthmus_load_requests_in_progress{of}}}")), 3.0);
    assert_eq!(sample(&page, &format!("isthmus_load_reporters{of}}}")), 1.0);
    let dropped = r#"isthmus_load_requests_total{cluster="pay \"quoted\"",locality="-",outcome="dropped"}"#;
    assert_eq!(sample(&page, dropped), 4.0);
    drop((requests, answers));
}

#[tokio::test]
async fn the_door_serves_one_path_to_read_and_nothing_else() {
    let cluster = Cluster::start_with("west", &["--metrics", "127.0.0.1:0"]).await;
    let at = cluster.running.metrics.unwrap();
    let status = |answer: String| answer.split(' ').nth(1).unwrap().to_owned();
    for (line, code) in
        [("POST /metrics", "405"), ("DELETE /metrics", "405"), ("GET /", "404"), ("GET /metrics/x", "404")]
    {
        let answer = http(at, &format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(status(answer), code, "{line}");
    }
    let huge = format!("GET /metrics HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
    let answer = http(at, &huge).await;
    assert!(answer.is_empty() || status(answer).starts_with('4'));
    let without = Cluster::start("east").await;
    assert_eq!(without.running.metrics, None, "off unless asked for");
}
