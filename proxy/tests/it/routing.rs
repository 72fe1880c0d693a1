//! What routes choose by, and what they change of requests and answers.

use http::{Request, Version};
use http_body_util::Full;
use xds_proto::{
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption, RuntimeFractionalPercent},
            route::v3::{
                CookieMatcher, RedirectAction, RetryPolicy, Route, RouteAction, RouteConfiguration,
                RouteMatch,
                redirect_action::PathRewriteSpecifier,
                retry_policy::{RateLimitedRetryBackOff, ResetHeader},
                route,
                route_action::{
                    ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy,
                },
                route_match::GrpcRouteMatchOptions,
                virtual_host::TlsRequirementType,
            },
        },
        r#type::{
            matcher::v3::{
                RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
            },
            v3::FractionalPercent,
        },
    },
    google::protobuf::{Duration, UInt32Value},
};

use crate::{
    backend::Backend,
    client::{get, get1, send},
    control::{Control, named},
    origin::{Does, OK, Origin},
    resources::*,
};

struct Setup {
    at: std::net::SocketAddr,
    _proxy: proxy::Proxy,
    _control: Control,
}

async fn serve(table: RouteConfiguration, clusters: &[(&str, std::net::SocketAddr)]) -> Setup {
    let control = Control::start().await;
    control.set([named(listener("out", vec![chain(http_filter(&hcm(inline(table))))]))]);
    control.set(clusters.iter().map(|(name, at)| named(static_cluster(name, &[*at]))));
    let proxy = control.proxy().await;
    proxy.ready().await;
    let at = proxy.listener("out").await.unwrap();
    Setup { at, _proxy: proxy, _control: control }
}

fn one(matches: RouteMatch, action: RouteAction) -> RouteConfiguration {
    routes("out", vec![(&["*"], vec![to(matches, action)])])
}

fn add(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
        append_action: 2,
        ..HeaderValueOption::default()
    }
}

fn substitute(regex: &str, substitution: &str) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute {
        pattern: Some(RegexMatcher { regex: regex.to_owned(), ..RegexMatcher::default() }),
        substitution: substitution.to_owned(),
    }
}

fn exactly(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.to_owned())), ..StringMatcher::default() }
}

#[tokio::test]
async fn headers_are_set_from_what_is_known_of_request_and_answer() {
    let app = Backend::start("app").await;
    let mut route = to(prefix("/"), cluster_action("app"));
    route.name = "the-route".to_owned();
    route.request_headers_to_add = vec![
        add("x-path", "%REQ(:path)%"),
        add("x-client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% by %PROTOCOL%"),
        add("x-missing", "%REQ(x-none)%"),
    ];
    route.response_headers_to_add = vec![
        add("x-upstream", "%UPSTREAM_HOST%"),
        add("x-asked", "%REQ(x-ask)% got %RESPONSE_CODE% from %RESP(x-backend)% by %ROUTE_NAME%"),
        add("x-cluster", "%UPSTREAM_CLUSTER%"),
    ];
    let setup = serve(routes("out", vec![(&["*"], vec![route])]), &[("app", app.address)]).await;
    let mut request = get("/a?b");
    request.headers_mut().insert("x-ask", "me".parse().unwrap());
    let answer = send(setup.at, Version::HTTP_2, request).await;
    let seen = &answer.seen()["headers"];
    assert_eq!(
        (seen["x-path"].as_str(), seen["x-client"].as_str()),
        (Some("/a?b"), Some("127.0.0.1 by HTTP/2"))
    );
    assert!(seen.get("x-missing").is_none(), "{seen}");
    assert_eq!(answer.headers["x-upstream"], app.address.to_string());
    assert_eq!(answer.headers["x-asked"], "me got 200 from app by the-route");
    assert_eq!(answer.headers["x-cluster"], "app");
}

#[tokio::test]
async fn cookies_shares_and_grpc_choose_routes() {
    let (canary, none, grpc, rest) = (
        Backend::start("canary").await,
        Backend::start("none").await,
        Backend::start("grpc").await,
        Backend::start("rest").await,
    );
    let share = |numerator| {
        let percent = FractionalPercent { numerator, denominator: 0 };
        Some(RuntimeFractionalPercent { default_value: Some(percent), runtime_key: "key".to_owned() })
    };
    let cookie = CookieMatcher {
        name: "version".to_owned(),
        string_match: Some(exactly("next")),
        invert_match: false,
    };
    let table = routes(
        "out",
        vec![(
            &["*"],
            vec![
                to(RouteMatch { cookies: vec![cookie], ..prefix("/") }, cluster_action("canary")),
                to(RouteMatch { runtime_fraction: share(0), ..prefix("/") }, cluster_action("none")),
                to(
                    RouteMatch { grpc: Some(GrpcRouteMatchOptions {}), ..prefix("/") },
                    cluster_action("grpc"),
                ),
                to(RouteMatch { runtime_fraction: share(100), ..prefix("/") }, cluster_action("rest")),
            ],
        )],
    );
    let clusters =
        [("canary", canary.address), ("none", none.address), ("grpc", grpc.address), ("rest", rest.address)];
    let setup = serve(table, &clusters).await;
    for (header, value, expected) in [
        ("cookie", "a=b; version=next", "canary"),
        ("cookie", "version=nextish", "rest"),
        ("content-type", "application/grpc", "grpc"),
        ("content-type", "application/grpc-web", "rest"),
    ] {
        let mut request = get("/");
        request.headers_mut().insert(header, value.parse().unwrap());
        assert_eq!(send(setup.at, Version::HTTP_11, request).await.backend(), expected, "{value}");
    }
}

#[tokio::test]
async fn paths_hosts_and_clusters_are_rewritten_by_expressions_and_headers() {
    let app = Backend::start("app").await;
    let by_path = RouteAction {
        regex_rewrite: Some(substitute("^/service/([^/]+)(/.*)$", r"\2/instance/\1")),
        host_rewrite_specifier: Some(HostRewriteSpecifier::HostRewritePathRegex(substitute(
            "^/service/([^/]+)/.*$",
            r"\1.svc",
        ))),
        append_x_forwarded_host: true,
        ..cluster_action("app")
    };
    let by_header = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::ClusterHeader("x-cluster".to_owned())),
        host_rewrite_specifier: Some(HostRewriteSpecifier::HostRewriteHeader("x-host".to_owned())),
        ..RouteAction::default()
    };
    let redirect = RedirectAction {
        path_rewrite_specifier: Some(PathRewriteSpecifier::RegexRewrite(substitute(
            "^/old/(.*)$",
            r"/new/\1",
        ))),
        ..RedirectAction::default()
    };
    let redirect = Route {
        r#match: Some(prefix("/old")),
        action: Some(route::Action::Redirect(redirect)),
        ..Route::default()
    };
    let table = routes(
        "out",
        vec![(&["*"], vec![to(prefix("/service"), by_path), redirect, to(prefix("/"), by_header)])],
    );
    let setup = serve(table, &[("app", app.address)]).await;
    let seen = get1(setup.at, "/service/foo/v1/api?x=/service/y/z").await.seen();
    assert_eq!(seen["path"], "/v1/api/instance/foo?x=/service/y/z");
    assert_eq!(seen["headers"]["host"], "foo.svc");
    assert_eq!(seen["headers"]["x-forwarded-host"], "pay.shop");
    let answer = get1(setup.at, "/old/a?b=c").await;
    assert_eq!(answer.headers["location"], "http://pay.shop/new/a?b=c");
    let asked = |cluster: &str, host: &str| {
        let request =
            Request::get("/").header("host", "a").header("x-cluster", cluster).header("x-host", host);
        request.body(Full::default()).unwrap()
    };
    let answer = send(setup.at, Version::HTTP_11, asked("app", "other.shop")).await;
    assert_eq!(answer.seen()["headers"]["host"], "other.shop");
    assert_eq!(send(setup.at, Version::HTTP_11, asked("app", "u@evil")).await.seen()["headers"]["host"], "a");
    assert_eq!(send(setup.at, Version::HTTP_11, asked("unknown", "a")).await.status, 503);
    assert_eq!(get1(setup.at, "/").await.status, 503, "no cluster is named");
}

#[tokio::test]
async fn a_host_that_requires_tls_redirects_to_it() {
    let app = Backend::start("app").await;
    let mut table = all_to("out", "app");
    table.virtual_hosts[0].require_tls = TlsRequirementType::All as i32;
    let setup = serve(table, &[("app", app.address)]).await;
    let answer = get1(setup.at, "/a?b").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["location"]),
        (301, &"https://pay.shop/a?b".parse().unwrap())
    );
    // A proxy in front has ended TLS, and this listener believes it.
    let mut request = get("/");
    request.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
    assert_eq!(send(setup.at, Version::HTTP_11, request).await.status, 200);
}

#[tokio::test]
async fn requests_are_mirrored_with_their_bodies_and_nobody_waits_for_the_copy() {
    let (app, shadow) = (Origin::content().await, Origin::start(|_| Does::Silent).await);
    let mirror = RequestMirrorPolicy { cluster: "shadow".to_owned(), ..RequestMirrorPolicy::default() };
    let never = RequestMirrorPolicy {
        cluster: "app".to_owned(),
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(FractionalPercent { numerator: 0, denominator: 0 }),
            runtime_key: String::new(),
        }),
        ..RequestMirrorPolicy::default()
    };
    let action = RouteAction { request_mirror_policies: vec![mirror, never], ..cluster_action("app") };
    let setup = serve(one(prefix("/"), action), &[("app", app.address), ("shadow", shadow.address)]).await;
    let request = Request::post("/cards").header("host", "pay.shop:80").body(Full::from("hello")).unwrap();
    let answer = send(setup.at, Version::HTTP_11, request).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"));
    while !shadow.seen().ends_with("hello") {
        tokio::task::yield_now().await;
    }
    let seen = shadow.seen();
    assert!(
        seen.starts_with("POST /cards HTTP/1.1\r\n") && seen.contains("host: pay.shop-shadow:80\r\n"),
        "{seen}"
    );
    let seen = app.seen();
    assert!(seen.ends_with("\r\n\r\nhello") && seen.matches("POST").count() == 1, "{seen}");
}

#[tokio::test]
async fn answers_are_retried_by_their_headers_and_when_they_say() {
    let busy = Origin::start(|_| {
        Does::Answers(
            "HTTP/1.1 200 OK\r\nx-try-again: yes\r\nretry-after: 0\r\ncontent-length: 4\r\n\r\nbusy",
        )
    })
    .await;
    let good = Origin::start(|_| Does::Answers(OK)).await;
    let retry = RetryPolicy {
        retry_on: "retriable-headers".to_owned(),
        num_retries: Some(UInt32Value { value: 1 }),
        retriable_headers: vec![xds_proto::envoy::config::route::v3::HeaderMatcher {
            name: "x-try-again".to_owned(),
            ..Default::default()
        }],
        rate_limited_retry_back_off: Some(RateLimitedRetryBackOff {
            reset_headers: vec![ResetHeader { name: "retry-after".to_owned(), format: 0 }],
            max_interval: None,
        }),
        ..RetryPolicy::default()
    };
    let action = RouteAction { retry_policy: Some(retry), ..cluster_action("app") };
    let control = Control::start().await;
    control.set([
        named(listener("out", vec![chain(http_filter(&hcm(inline(one(prefix("/"), action)))))])),
        named(static_cluster("app", &[busy.address, good.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    for _ in 0..4 {
        assert_eq!(get1(at, "/").await.text(), "ok");
    }
    assert!(busy.seen().contains("GET"), "one of two was asked first at least once");
}

#[tokio::test]
async fn a_stream_has_its_time_and_a_grpc_client_the_time_that_it_asks_for() {
    let app = Backend::start("app").await;
    let millis = |millis: i32| Some(Duration { seconds: 0, nanos: millis * 1_000_000 });
    let stream = |own, header| MaxStreamDuration {
        max_stream_duration: own,
        grpc_timeout_header_max: header,
        grpc_timeout_header_offset: None,
    };
    let table = routes(
        "out",
        vec![(
            &["*"],
            vec![to(
                prefix("/never"),
                RouteAction {
                    timeout: Some(Duration::default()),
                    max_stream_duration: Some(stream(millis(50), Some(Duration { seconds: 3600, nanos: 0 }))),
                    ..cluster_action("app")
                },
            )],
        )],
    );
    let setup = serve(table, &[("app", app.address)]).await;
    assert_eq!(get1(setup.at, "/never").await.status, 504);
    let mut grpc = get("/never");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    grpc.headers_mut().insert("grpc-timeout", "20m".parse().unwrap());
    let answer = send(setup.at, Version::HTTP_2, grpc).await;
    assert_eq!((answer.status.as_u16(), answer.headers["grpc-status"].to_str().unwrap()), (200, "14"));
}
