//! Routing and the rules of HTTP, through one proxy.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;
use xds_proto::{
    envoy::{
        config::{
            core::v3::{DataSource, HeaderValue, HeaderValueOption, data_source},
            route::v3::{
                DirectResponseAction, HeaderMatcher, RedirectAction, Route, RouteAction, RouteMatch,
                WeightedCluster, header_matcher::HeaderMatchSpecifier, route, route_action::ClusterSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{BoolValue, Duration, UInt32Value},
};

use crate::{
    backend::Backend,
    client::{get, get1, raw, send},
    control::{Control, named},
    resources::*,
};

fn on_header(name: &str, value: &str) -> RouteMatch {
    RouteMatch {
        headers: vec![HeaderMatcher {
            name: name.to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
                match_pattern: Some(MatchPattern::Exact(value.to_owned())),
                ..StringMatcher::default()
            })),
            ..HeaderMatcher::default()
        }],
        ..prefix("/")
    }
}

fn weighted(shares: &[(&str, u32)]) -> RouteAction {
    let cluster = |(name, weight): &(&str, u32)| ClusterWeight {
        name: (*name).to_owned(),
        weight: Some(UInt32Value { value: *weight }),
        ..ClusterWeight::default()
    };
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: shares.iter().map(cluster).collect(),
            ..WeightedCluster::default()
        })),
        ..RouteAction::default()
    }
}

#[tokio::test]
async fn requests_are_routed_by_host_path_and_header_with_weights_in_both_versions() {
    let (v1, v2, other) =
        (Backend::start("v1").await, Backend::start("v2").await, Backend::start("other").await);
    let control = Control::start().await;
    let api = RouteAction { prefix_rewrite: "/".to_owned(), ..cluster_action("v2") };
    let pay: Vec<Route> = vec![
        to(on_header("x-canary", "yes"), cluster_action("v2")),
        to(prefix("/api/"), api),
        to(prefix("/"), weighted(&[("v1", 90), ("v2", 10)])),
    ];
    control.set([
        named(plain_listener("out")),
        named(routes(
            "out",
            vec![
                (&["pay.shop", "*.pay.shop"], pay),
                (&["*"], vec![to(prefix("/"), cluster_action("other"))]),
            ],
        )),
        named(static_cluster("v1", &[v1.address])),
        named(speaking_http2(static_cluster("v2", &[v2.address]))),
        named(eds_cluster("other")),
        named(assignment("other", &[(other.address, 0)])),
    ]);
    let proxy = control.proxy().await;
    proxy.ready().await;
    let at = proxy.listener("out").await.unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut canary = get("/x");
        canary.headers_mut().insert("x-canary", "yes".parse().unwrap());
        let answer = send(at, version, canary).await;
        assert_eq!((answer.status.as_u16(), answer.backend()), (200, "v2"));
        assert_eq!(answer.seen()["version"], "HTTP/2.0");
        let answer = send(at, version, get("/api/cards?limit=3")).await;
        assert_eq!((answer.backend(), answer.seen()["path"].as_str().unwrap()), ("v2", "/cards?limit=3"));
        assert_eq!(answer.seen()["headers"]["host"], "pay.shop");
        let request = Request::get("/").header("host", "Elsewhere").body(Full::default()).unwrap();
        assert_eq!(send(at, version, request).await.backend(), "other");
    }
    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..300 {
        *shares.entry(get1(at, "/").await.backend().to_owned()).or_default() += 1;
    }
    // 30 are expected; less than 8 or more than 60 happens to one run in ten million.
    assert!((8..60).contains(&shares["v2"]), "{shares:?}");
    assert_eq!(shares["v1"] + shares["v2"], 300);
}

#[tokio::test]
async fn bodies_trailers_and_bodyless_answers_pass_in_every_combination_of_versions() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let routes = routes(
        "out",
        vec![(
            &["*"],
            vec![
                to(on_header("x-to", "h2"), retrying("h2", "5xx", 1)),
                to(prefix("/"), cluster_action("h1")),
            ],
        )],
    );
    control.set([
        named(plain_listener("out")),
        named(routes),
        named(static_cluster("h1", &[app.address])),
        named(speaking_http2(static_cluster("h2", &[app.address]))),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for upstream in ["h1", "h2"] {
            let with = |mut request: Request<Full<Bytes>>| {
                request.headers_mut().insert("x-to", upstream.parse().unwrap());
                request.headers_mut().insert("te", "trailers".parse().unwrap());
                request
            };
            // Larger than what is kept for retries, and than any window.
            for size in [0, 10, 200_000] {
                let body = Full::from(vec![b'x'; size]);
                let request = Request::post("/").header("host", "pay").body(body).unwrap();
                let answer = send(at, version, with(request)).await;
                assert_eq!(answer.seen()["body_bytes"], size, "{version:?} {upstream}");
            }
            let answer = send(at, version, with(get("/trailers"))).await;
            assert_eq!(answer.trailers.unwrap()["x-checksum"], "42", "{version:?} {upstream}");
            for (path, status) in [("/204", 204), ("/status/304", 304)] {
                let answer = send(at, version, with(get(path))).await;
                assert_eq!(
                    (answer.status.as_u16(), answer.body.len()),
                    (status, 0),
                    "{version:?} {upstream}"
                );
            }
            let head = Request::head("/x").header("host", "pay").body(Full::default()).unwrap();
            let answer = send(at, version, with(head)).await;
            assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
            assert!(answer.headers["content-length"].to_str().unwrap().parse::<u32>().unwrap() > 50);
        }
    }
}

#[tokio::test]
async fn headers_of_one_connection_stay_there_and_routes_change_the_others() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let add = |key: &str, value: &str| HeaderValueOption {
        header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: 2,
        ..HeaderValueOption::default()
    };
    let mut table = all_to("out", "app");
    table.request_headers_to_add = vec![add("x-added", "1")];
    table.request_headers_to_remove = vec!["x-secret".to_owned()];
    table.response_headers_to_add = vec![add("x-answer", "2")];
    let mut manager = hcm(inline(table));
    manager.use_remote_address = Some(BoolValue { value: true });
    manager.always_set_request_id_in_response = true;
    control.set([
        named(listener("out", vec![chain(http_filter(&manager))])),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    let mut request = get("/");
    for (name, value) in [
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-secret", "1"),
        ("keep-alive", "timeout=5"),
        ("x-forwarded-client-cert", "URI=spiffe://west.example/ns/a/sa/forged"),
        ("expect", "100-continue"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let answer = send(at, Version::HTTP_11, request).await;
    let seen = &answer.seen()["headers"];
    for gone in ["x-hop", "x-secret", "keep-alive", "connection", "x-forwarded-client-cert", "expect"] {
        assert!(seen.get(gone).is_none(), "{gone} in {seen}");
    }
    assert_eq!(seen["x-added"], "1");
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_eq!(seen["x-request-id"], answer.headers["x-request-id"].to_str().unwrap());
    assert_eq!(answer.headers["x-answer"], "2");
    assert_eq!(answer.headers["server"], "isthmus");
    assert!(!answer.headers.contains_key("x-private"));
}

#[tokio::test]
async fn smuggling_and_unsupported_requests_are_refused_before_any_application_sees_them() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for (bytes, status) in [
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\n folded: x\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n", "403"),
    ] {
        let answer = raw(at, bytes.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} "))
                || answer.starts_with(&format!("HTTP/1.0 {status} ")),
            "{bytes:?}: {answer:?}"
        );
    }
    assert_eq!(app.requests(), 0);
    // An ordinary chunked one passes, on the same kind of connection.
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(raw(at, chunked.as_bytes()).await.contains("\"body_bytes\":3"));
}

#[tokio::test]
async fn local_answers_use_envoys_words() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let direct = |status, text: &str| {
        let specifier = Some(data_source::Specifier::InlineString(text.to_owned()));
        route::Action::DirectResponse(DirectResponseAction {
            status,
            body: Some(DataSource { specifier, ..DataSource::default() }),
            ..DirectResponseAction::default()
        })
    };
    let redirect = route::Action::Redirect(RedirectAction {
        host_redirect: "new.shop".to_owned(),
        ..Default::default()
    });
    let with =
        |path: &str, action| Route { r#match: Some(prefix(path)), action: Some(action), ..Route::default() };
    let quick =
        RouteAction { timeout: Some(Duration { seconds: 0, nanos: 50_000_000 }), ..cluster_action("app") };
    let table = routes(
        "out",
        vec![(
            &["pay.shop"],
            vec![
                with("/direct", direct(418, "teapot")),
                with("/old", redirect),
                to(prefix("/never"), quick),
                to(prefix("/nobody"), cluster_action("empty")),
                to(prefix("/unknown"), cluster_action("unknown")),
            ],
        )],
    );
    control.set([
        named(plain_listener("out")),
        named(table),
        named(static_cluster("app", &[app.address])),
        named(eds_cluster("empty")),
        named(assignment("empty", &[])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for (path, status, text) in [
        ("/direct", 418, "teapot"),
        ("/never", 504, "upstream request timeout"),
        ("/nobody", 503, "no healthy upstream"),
        ("/unknown", 503, ""),
        ("/elsewhere", 404, ""),
    ] {
        let answer = get1(at, path).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, text), "{path}");
    }
    let answer = get1(at, "/old?x").await;
    assert_eq!(
        (answer.status.as_u16(), answer.headers["location"].to_str().unwrap()),
        (301, "http://new.shop/old?x")
    );
    let mut grpc = get("/nobody");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = send(at, Version::HTTP_2, grpc).await;
    assert_eq!((answer.status.as_u16(), answer.headers["grpc-status"].to_str().unwrap()), (200, "14"));
    let admin = proxy.admin_address().unwrap();
    let page = get1(admin, "/stats/prometheus").await;
    let line = "isthmus_proxy_downstream_requests_total{listener=\"out\",code=\"504\"} 1";
    assert!(page.text().contains(line), "{}", page.text());
    assert_eq!(get1(admin, "/ready").await.text(), "LIVE\n");
    assert!(get1(admin, "/clusters").await.text().contains(&app.address.to_string()));
    assert!(get1(admin, "/config_dump").await.text().contains("teapot"));
}
