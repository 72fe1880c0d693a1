//! Endpoints that fail.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;
use xds_proto::{
    envoy::config::{
        cluster::v3::OutlierDetection,
        route::v3::{RetryPolicy, RouteAction},
    },
    google::protobuf::{Duration, UInt32Value},
};

use crate::{
    backend::{Backend, Nobody},
    client::{get1, send},
    control::{Control, named},
    resources::*,
};

fn fast(mut action: RouteAction) -> RouteAction {
    if let Some(RetryPolicy { retry_back_off, .. }) = &mut action.retry_policy {
        *retry_back_off = Some(xds_proto::envoy::config::route::v3::retry_policy::RetryBackOff {
            base_interval: Some(Duration { seconds: 0, nanos: 1_000_000 }),
            max_interval: None,
        });
    }
    action
}

#[tokio::test]
async fn a_refused_connection_is_retried_on_the_next_endpoint_also_with_a_large_body() {
    let alive = Backend::start("alive").await;
    let (dead, dead2) = (Nobody::new(), Nobody::new());
    let control = Control::start().await;
    let action = fast(retrying("app", "connect-failure", 2));
    control.set([
        named(plain_listener("out")),
        named(routes("out", vec![(&["*"], vec![to(prefix("/"), action)])])),
        named(static_cluster("app", &[dead.address, dead2.address, alive.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for _ in 0..20 {
        let body = Full::from(Bytes::from(vec![b'x'; 300_000]));
        let request = Request::post("/").header("host", "a").body(body).unwrap();
        let answer = send(at, Version::HTTP_11, request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.seen()["body_bytes"], 300_000);
    }
}

#[tokio::test]
async fn an_error_is_retried_elsewhere_with_its_body_and_given_up_when_nobody_is_left() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    let action = fast(retrying("app", "5xx", 5));
    control.set([
        named(plain_listener("out")),
        named(routes("out", vec![(&["*"], vec![to(prefix("/"), action)])])),
        named(static_cluster("app", &[one.address, two.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    let request = Request::post("/status/503").header("host", "a").body(Full::from("hello")).unwrap();
    let answer = send(at, Version::HTTP_11, request).await;
    // The last answer is passed on.
    assert_eq!((answer.status.as_u16(), answer.seen()["body_bytes"].as_u64().unwrap()), (503, 5));
    assert_eq!(one.requests() + two.requests(), 6);
    assert!(one.requests() >= 1 && two.requests() >= 1);
}

#[tokio::test]
async fn traffic_moves_to_the_next_priority_when_the_first_is_gone_and_back() {
    let (local, remote) = (Backend::start("local").await, Backend::start("remote").await);
    let local_address = local.address;
    let control = Control::start().await;
    let action = fast(retrying("app", "connect-failure,reset", 1));
    let mut cluster = eds_cluster("app");
    cluster.outlier_detection = Some(OutlierDetection {
        consecutive_5xx: Some(UInt32Value { value: 2 }),
        base_ejection_time: Some(Duration { seconds: 0, nanos: 200_000_000 }),
        max_ejection_percent: Some(UInt32Value { value: 100 }),
        ..OutlierDetection::default()
    });
    control.set([
        named(plain_listener("out")),
        named(routes("out", vec![(&["*"], vec![to(prefix("/"), action)])])),
        named(cluster),
        named(assignment("app", &[(local_address, 0), (remote.address, 1)])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for _ in 0..10 {
        assert_eq!(get1(at, "/").await.backend(), "local");
    }
    drop(local);
    // Not one request is lost: the first ones by retry, the others because the endpoint is ejected.
    for _ in 0..20 {
        let answer = get1(at, "/").await;
        assert_eq!((answer.status.as_u16(), answer.backend()), (200, "remote"));
    }
    let stats = get1(proxy.admin_address().unwrap(), "/clusters").await;
    assert!(stats.text().contains("ejected_for_seconds"));
    let _back = Backend::on(local_address, "local").await;
    let mut seen = BTreeSet::new();
    while !seen.contains("local") {
        let answer = get1(at, "/").await;
        assert_eq!(answer.status, 200);
        seen.insert(answer.backend().to_owned());
    }
}

#[tokio::test]
async fn endpoints_change_under_traffic_without_a_lost_request() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(eds_cluster("app")),
        named(assignment("app", &[(one.address, 0)])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    assert_eq!(get1(at, "/").await.backend(), "one");
    control.set([named(assignment("app", &[(two.address, 0)]))]);
    loop {
        let answer = get1(at, "/").await;
        assert_eq!(answer.status, 200);
        if answer.backend() == "two" {
            break;
        }
    }
    control.remove::<xds_proto::envoy::config::endpoint::v3::ClusterLoadAssignment>("app");
    loop {
        let answer = get1(at, "/").await;
        if answer.status == 503 {
            assert_eq!(answer.text(), "no healthy upstream");
            break;
        }
    }
}
