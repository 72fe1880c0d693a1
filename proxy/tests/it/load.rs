//! Many requests at a time, and the limits on them.

use std::time::Duration;

use futures::future::join_all;
use http::Version;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use xds_proto::{
    envoy::config::{
        cluster::v3::{CircuitBreakers, Cluster, circuit_breakers::Thresholds},
        route::v3::{RetryPolicy, RouteAction},
    },
    google::protobuf::{Duration as WireDuration, UInt32Value},
};

use crate::{
    backend::Backend,
    client::{get, get1, send},
    control::{Control, named},
    resources::*,
};

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn limited(mut cluster: Cluster, thresholds: Thresholds) -> Cluster {
    cluster.circuit_breakers =
        Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() });
    cluster
}

#[tokio::test]
async fn a_hundred_requests_on_one_connection_are_all_answered() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("one")),
        named(plain_listener("two")),
        named(all_to("one", "h1")),
        named(all_to("two", "h2")),
        named(static_cluster("h1", &[app.address])),
        named(speaking_http2(static_cluster("h2", &[app.address]))),
    ]);
    let proxy = control.proxy().await;
    for listener in ["one", "two"] {
        let at = proxy.listener(listener).await.unwrap();
        let stream = TokioIo::new(TcpStream::connect(at).await.unwrap());
        let (sender, connection) =
            http2::handshake::<_, _, Full<bytes::Bytes>>(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let requests = (0..100).map(|_| {
            let mut sender = sender.clone();
            let mut request = get("/");
            *request.uri_mut() = "http://pay.shop/".parse().unwrap();
            async move {
                let response = sender.send_request(request).await.unwrap();
                let status = response.status().as_u16();
                response.into_body().collect().await.unwrap();
                status
            }
        });
        let statuses = join_all(requests).await;
        assert!(statuses.iter().all(|status| *status == 200), "{listener} {statuses:?}");
    }
    assert_eq!(app.requests(), 200);
    // Nothing is left over.
    for cluster in proxy.shared().clusters() {
        assert_eq!(cluster.requests.used(), 0, "{}", cluster.config.name);
    }
}

#[tokio::test]
async fn requests_wait_for_the_connections_that_there_may_be_and_are_refused_beyond_the_limit() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let one_connection = Thresholds { max_connections: number(1), ..Thresholds::default() };
    let one_request = Thresholds { max_requests: number(1), ..Thresholds::default() };
    control.set([
        named(plain_listener("waiting")),
        named(plain_listener("refusing")),
        named(all_to("waiting", "narrow")),
        named(all_to("refusing", "busy")),
        named(limited(static_cluster("narrow", &[app.address]), one_connection)),
        named(limited(static_cluster("busy", &[app.address]), one_request)),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("waiting").await.unwrap();
    let answers = join_all((0..50).map(|_| get1(at, "/"))).await;
    assert!(answers.iter().all(|a| a.status == 200), "{:?}", answers.iter().find(|a| a.status != 200));
    let cluster = proxy.shared().cluster("narrow").unwrap();
    assert_eq!(cluster.stats.connections.load(std::sync::atomic::Ordering::SeqCst), 1);

    let at = proxy.listener("refusing").await.unwrap();
    let before = app.requests();
    let stuck = tokio::spawn(get1(at, "/never"));
    while app.requests() == before {
        tokio::task::yield_now().await;
    }
    let answer = get1(at, "/").await;
    assert_eq!(
        (answer.status.as_u16(), answer.headers["x-envoy-overloaded"].to_str().unwrap()),
        (503, "true")
    );
    assert!(answer.text().ends_with("reset reason: overflow"), "{}", answer.text());
    stuck.abort();
}

#[tokio::test]
async fn an_endpoint_that_is_too_slow_is_left_for_the_next() {
    let (slow, quick) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Backend::start("quick").await);
    let control = Control::start().await;
    let action = RouteAction {
        retry_policy: Some(RetryPolicy {
            retry_on: "reset".to_owned(),
            num_retries: number(1),
            // Long enough for the other one on a busy machine.
            per_try_timeout: Some(WireDuration { seconds: 1, nanos: 0 }),
            ..RetryPolicy::default()
        }),
        ..cluster_action("app")
    };
    control.set([
        named(plain_listener("out")),
        named(routes("out", vec![(&["*"], vec![to(prefix("/"), action)])])),
        named(static_cluster("app", &[slow.local_addr().unwrap(), quick.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    // In turn, so that one of the two meets the slow one first.
    for _ in 0..2 {
        let answer = get1(at, "/").await;
        assert_eq!((answer.status.as_u16(), answer.backend()), (200, "quick"));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_on_as_whole() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = app.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = app.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await;
        }
    });
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    let stream = TokioIo::new(TcpStream::connect(at).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(get("/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_request_with_too_large_a_head_is_refused() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    let mut large = get("/");
    large.headers_mut().insert("x-large", "x".repeat(50_000).parse().unwrap());
    assert_eq!(send(at, Version::HTTP_11, large).await.status, 200);
    let mut larger = get("/");
    larger.headers_mut().insert("x-large", "x".repeat(70_000).parse().unwrap());
    assert_eq!(send(at, Version::HTTP_11, larger).await.status, 431);
    let mut many = get("/");
    for n in 0..200 {
        many.headers_mut()
            .insert(http::HeaderName::try_from(format!("x-{n}")).unwrap(), "1".parse().unwrap());
    }
    assert_eq!(send(at, Version::HTTP_11, many).await.status, 431);
}

#[tokio::test]
async fn a_silent_client_is_given_up() {
    let control = Control::start().await;
    let mut inspecting = listener("in", vec![with_names(chain(tcp_filter("app")), &["a"])]);
    inspecting.listener_filters_timeout = Some(WireDuration { seconds: 0, nanos: 50_000_000 });
    control.set([named(inspecting), named(static_cluster("app", &[]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    let mut silent = TcpStream::connect(at).await.unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut [0; 1])).await;
    assert_eq!(closed.unwrap().unwrap(), 0);
}
