//! Endpoints as clusters see them: limits, active and passive health, ways to connect.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use futures::future::join_all;
use proxy::Proxy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::watch,
};
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, OutlierDetection,
                circuit_breakers::{Thresholds, thresholds::RetryBudget},
                cluster::TransportSocketMatch,
            },
            core::v3::{
                HealthCheck, Metadata,
                health_check::{
                    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
                },
            },
            endpoint::v3::ClusterLoadAssignment,
        },
        r#type::v3::{Int64Range, Percent},
    },
    google::protobuf::{Duration, Struct, UInt32Value, Value, value::Kind},
};

use crate::{
    backend::Backend,
    client::get1,
    control::{Control, named},
    resources::*,
};

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn millis(millis: u32) -> Option<Duration> {
    let millis = i64::from(millis);
    Some(Duration { seconds: millis / 1000, nanos: (millis % 1000 * 1_000_000) as i32 })
}

fn check(checker: HealthChecker) -> HealthCheck {
    HealthCheck {
        timeout: millis(5_000),
        interval: millis(20),
        no_traffic_interval: millis(20),
        unhealthy_threshold: number(2),
        healthy_threshold: number(2),
        health_checker: Some(checker),
        ..HealthCheck::default()
    }
}

/// Never in panic: an endpoint that is not known to be well gets nothing.
fn checked(mut cluster: Cluster, checker: HealthChecker) -> Cluster {
    cluster.health_checks = vec![check(checker)];
    cluster.common_lb_config.get_or_insert_default().healthy_panic_threshold = Some(Percent { value: 0.0 });
    cluster
}

async fn serving(control: &Control, clusters: impl IntoIterator<Item = Cluster>) -> (Proxy, SocketAddr) {
    control.set([named(plain_listener("out")), named(all_to("out", "app"))]);
    control.set(clusters.into_iter().map(named));
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    (proxy, at)
}

/// Asks until it is answered like this.
async fn until(at: SocketAddr, path: &str, status: u16) {
    while get1(at, path).await.status != status {
        tokio::task::yield_now().await;
    }
}

/// An application whose health can be changed.
struct Patient {
    address: SocketAddr,
    status: watch::Sender<u16>,
    seen: watch::Receiver<String>,
}

impl Patient {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, told) = watch::channel(200_u16);
        let (saw, seen) = watch::channel(String::new());
        let saw = Arc::new(saw);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (told, saw) = (told.clone(), saw.clone());
                tokio::spawn(async move {
                    let mut head = vec![];
                    while stream.read_buf(&mut head).await.is_ok_and(|n| n > 0) {
                        if !head.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
                        let status = if text.contains("/health") { *told.borrow() } else { 200 };
                        if text.contains("/health") {
                            saw.send_replace(text);
                        }
                        let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, status, seen }
    }
}

#[tokio::test]
async fn an_endpoint_is_used_while_it_passes_http_checks() {
    let patient = Patient::start().await;
    let http = HttpHealthCheck {
        path: "/health?deep".to_owned(),
        host: "checked.example".to_owned(),
        expected_statuses: vec![Int64Range { start: 200, end: 300 }],
        retriable_statuses: vec![Int64Range { start: 500, end: 501 }],
        ..HttpHealthCheck::default()
    };
    let control = Control::start().await;
    let cluster = checked(static_cluster("app", &[patient.address]), HealthChecker::HttpHealthCheck(http));
    let (proxy, at) = serving(&control, [cluster]).await;
    until(at, "/", 200).await;
    let seen = patient.seen.borrow().clone();
    assert!(seen.starts_with("GET /health?deep HTTP/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("host: checked.example\r\n") && seen.contains("user-agent: Envoy/HC\r\n"),
        "{seen}"
    );
    // An endpoint that says no is believed at once, one that may say so and one that is well again not.
    patient.status.send_replace(404);
    until(at, "/", 503).await;
    assert_eq!(get1(at, "/").await.text(), "no healthy upstream");
    patient.status.send_replace(200);
    until(at, "/", 200).await;
    patient.status.send_replace(500);
    until(at, "/", 503).await;
    let stats = &proxy.shared().cluster("app").unwrap().stats;
    assert!(stats.health_check_failures.load(Ordering::SeqCst) >= 3);
}

#[tokio::test]
async fn traffic_goes_to_the_next_priority_while_a_tcp_check_of_the_first_fails() {
    let (first, second) = (Backend::start("first").await, Backend::start("second").await);
    // It greets whoever connects to its other port, as long as it is well.
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = door.local_addr().unwrap().port();
    let (well, told) = watch::channel(true);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = door.accept().await.unwrap();
            let greeting: &[u8] = if *told.borrow() { b"220 hello\r\n" } else { b"421 go away\r\n" };
            let mut asked = [0; 4];
            if stream.read_exact(&mut asked).await.is_ok() && &asked == b"ping" {
                let _ = stream.write_all(greeting).await;
            }
        }
    });
    let payload = |bytes: &[u8]| Payload { payload: Some(payload::Payload::Binary(bytes.to_vec())) };
    let tcp = TcpHealthCheck {
        send: Some(payload(b"ping")),
        receive: vec![payload(b"220"), payload(b"\r\n")],
        ..TcpHealthCheck::default()
    };
    let control = Control::start().await;
    let cluster = checked(eds_cluster("app"), HealthChecker::TcpHealthCheck(tcp));
    let mut endpoints = assignment("app", &[(first.address, 0), (second.address, 1)]);
    let config = |assignment: &mut ClusterLoadAssignment, at: usize| {
        let endpoint = &mut assignment.endpoints[at].lb_endpoints[0];
        match &mut endpoint.host_identifier {
            Some(xds_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier::Endpoint(e)) => {
                e.health_check_config.get_or_insert_default().clone_from(&Default::default());
                e.health_check_config.as_mut().unwrap().port_value = port.into();
                e.health_check_config.as_mut().unwrap().disable_active_health_check = at == 1;
            }
            _ => unreachable!(),
        }
    };
    config(&mut endpoints, 0);
    config(&mut endpoints, 1);
    control.set([named(endpoints)]);
    let (_proxy, at) = serving(&control, [cluster]).await;
    let from = async |name: &str| {
        while get1(at, "/").await.backend() != name {
            tokio::task::yield_now().await;
        }
    };
    from("first").await;
    well.send_replace(false);
    from("second").await;
    well.send_replace(true);
    from("first").await;
}

#[tokio::test]
async fn a_grpc_check_asks_the_health_service() {
    use http_body_util::{BodyExt, Full, StreamBody};
    use hyper::service::service_fn;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (state, told) = watch::channel(1_u8);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let told = told.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let state = *told.borrow();
                async move {
                    if request.uri().path() != "/grpc.health.v1.Health/Check" {
                        return Ok(http::Response::new(Full::<bytes::Bytes>::default().boxed()));
                    }
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let known = asked.ends_with(b"\x0a\x03pay");
                    let status = http::HeaderValue::from_static(if known { "0" } else { "5" });
                    let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), status)]);
                    let frames = [
                        http_body::Frame::data(bytes::Bytes::from(vec![0, 0, 0, 0, 2, 8, state])),
                        http_body::Frame::trailers(trailers),
                    ];
                    let frames = frames.map(Ok::<_, std::convert::Infallible>);
                    Ok::<_, std::convert::Infallible>(http::Response::new(
                        StreamBody::new(futures::stream::iter(frames)).boxed(),
                    ))
                }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let executor = hyper_util::rt::TokioExecutor::new();
            tokio::spawn(async move {
                let _ =
                    hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service).await;
            });
        }
    });
    let control = Control::start().await;
    let grpc = GrpcHealthCheck { service_name: "pay".to_owned(), ..GrpcHealthCheck::default() };
    let cluster = speaking_http2(static_cluster("app", &[address]));
    let (_proxy, at) = serving(&control, [checked(cluster, HealthChecker::GrpcHealthCheck(grpc))]).await;
    until(at, "/", 200).await;
    state.send_replace(2);
    until(at, "/", 503).await;
    state.send_replace(1);
    until(at, "/", 200).await;
}

#[tokio::test]
async fn an_endpoint_with_a_low_success_rate_is_ejected() {
    let mut backends = vec![];
    for _ in 0..5 {
        backends.push(Backend::start("well").await);
    }
    // Answers everything with 500, and never so often in a row that this alone would matter.
    let sick = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut addresses: Vec<_> = backends.iter().map(|b| b.address).collect();
    addresses.push(sick.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = sick.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
        }
    });
    let mut cluster = static_cluster("app", &addresses);
    cluster.outlier_detection = Some(OutlierDetection {
        interval: millis(200),
        consecutive_5xx: number(0),
        success_rate_request_volume: number(5),
        success_rate_minimum_hosts: number(5),
        max_ejection_percent: number(20),
        base_ejection_time: Some(Duration { seconds: 600, nanos: 0 }),
        ..OutlierDetection::default()
    });
    let control = Control::start().await;
    let (proxy, at) = serving(&control, [cluster]).await;
    let stats = proxy.shared().cluster("app").unwrap().stats.clone();
    while stats.ejections.load(Ordering::SeqCst) == 0 {
        join_all((0..60).map(|_| get1(at, "/"))).await;
    }
    let reasons: BTreeMap<_, _> =
        stats.outliers.seen().into_iter().map(|(r, n)| (r.as_str(), n[1])).collect();
    assert_eq!(reasons, [("success_rate", 1)].into());
    for _ in 0..20 {
        assert_eq!(get1(at, "/").await.status, 200);
    }
    let page = get1(proxy.admin_address().unwrap(), "/stats/prometheus").await;
    let line = "isthmus_proxy_upstream_outliers_ejected_total{cluster=\"app\",reason=\"success_rate\"} 1";
    assert!(page.text().contains(line), "{}", page.text());
}

#[tokio::test]
async fn each_endpoint_is_connected_to_in_the_way_its_metadata_asks_for() {
    let app = Backend::start("plain").await;
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let object = |key: &str, value: &str| Struct { fields: [(key.to_owned(), text(value))].into() };
    let mut cluster = eds_cluster("app");
    let encrypted = over_tls(eds_cluster("x"), &upstream_tls("pay", &["spiffe://west.example/pay"]));
    cluster.transport_socket_matches = vec![
        TransportSocketMatch {
            name: "mtls".to_owned(),
            r#match: Some(object("tlsMode", "istio")),
            transport_socket: encrypted.transport_socket,
        },
        TransportSocketMatch { name: "plain".to_owned(), ..TransportSocketMatch::default() },
    ];
    let west = Ca::new("west.example");
    let control = Control::start().await;
    control.set([
        named(west.identity("spiffe://west.example/web")),
        named(roots(&[&west])),
        named(assignment("app", &[(app.address, 0)])),
    ]);
    let (_proxy, at) = serving(&control, [cluster]).await;
    assert_eq!(get1(at, "/").await.backend(), "plain");
    // The same address is spoken to in another way as soon as it asks for it: this one cannot do it.
    let mut endpoints = assignment("app", &[(app.address, 0)]);
    let namespace = "envoy.transport_socket_match".to_owned();
    endpoints.endpoints[0].lb_endpoints[0].metadata = Some(Metadata {
        filter_metadata: [(namespace, object("tlsMode", "istio"))].into(),
        ..Metadata::default()
    });
    control.set([named(endpoints)]);
    until(at, "/", 503).await;
    assert!(get1(at, "/").await.text().contains("TLS with"), "{}", get1(at, "/").await.text());
}

#[tokio::test]
async fn connections_end_after_the_requests_they_may_have_and_hosts_have_limits_of_their_own() {
    let app = Backend::start("app").await;
    let mut few = static_cluster("app", &[app.address]);
    #[allow(deprecated)]
    {
        few.max_requests_per_connection = number(2);
    }
    few.circuit_breakers = Some(CircuitBreakers {
        per_host_thresholds: vec![Thresholds { max_connections: number(1), ..Thresholds::default() }],
        thresholds: vec![Thresholds { track_remaining: true, ..Thresholds::default() }],
    });
    let control = Control::start().await;
    let (proxy, at) = serving(&control, [few]).await;
    for _ in 0..6 {
        assert_eq!(get1(at, "/").await.status, 200);
    }
    let stats = proxy.shared().cluster("app").unwrap().stats.clone();
    assert_eq!(stats.connections.load(Ordering::SeqCst), 3);
    let answers = join_all((0..20).map(|_| get1(at, "/"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(stats.connection_overflow.load(Ordering::SeqCst) > 0);
    let page = get1(proxy.admin_address().unwrap(), "/stats/prometheus").await;
    for line in [
        "isthmus_proxy_upstream_circuit_remaining{cluster=\"app\",priority=\"default\",limit=\"rq\"} 1024",
        "isthmus_proxy_upstream_circuit_open{cluster=\"app\",priority=\"high\",limit=\"cx\"} 0",
    ] {
        assert!(page.text().contains(line), "{line} is not in:\n{}", page.text());
    }
}

#[tokio::test]
async fn retries_have_a_budget() {
    let app = Backend::start("app").await;
    let mut cluster = static_cluster("app", &[app.address]);
    let budget = |percent, min| RetryBudget {
        budget_percent: Some(Percent { value: percent }),
        min_retry_concurrency: number(min),
        ..RetryBudget::default()
    };
    let limited = |retry_budget| {
        let thresholds = Thresholds { retry_budget: Some(retry_budget), ..Thresholds::default() };
        Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() })
    };
    cluster.circuit_breakers = limited(budget(0.0, 0));
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(routes("out", vec![(&["*"], vec![to(prefix("/"), retrying("app", "5xx", 1))])])),
        named(cluster.clone()),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    assert_eq!(get1(at, "/status/503").await.status, 503);
    assert_eq!(app.requests(), 1, "no budget, no retry");
    let stats = proxy.shared().cluster("app").unwrap().stats.clone();
    assert_eq!(stats.retry_overflow.load(Ordering::SeqCst), 1);
    cluster.circuit_breakers = limited(budget(0.0, 1));
    control.set([named(cluster)]);
    while stats.retries.load(Ordering::SeqCst) == 0 {
        assert_eq!(get1(at, "/status/503").await.status, 503);
    }
}
