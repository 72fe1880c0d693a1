//! Limits of requests counted here, requests of other origins, wanted faults, and requests that wait for their end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::Full;
use proxy::config;
use xds_proto::{
    Name,
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption, RuntimeFractionalPercent},
            route::v3::{
                CorsPolicy as RouteCors, HeaderMatcher, RateLimit, Route, RouteConfiguration,
                header_matcher::HeaderMatchSpecifier,
                rate_limit::{
                    Action,
                    action::{ActionSpecifier, GenericKey, RequestHeaders},
                },
                route as wire_route,
            },
        },
        extensions::{
            common::ratelimit::v3::{LocalRateLimitDescriptor, rate_limit_descriptor::Entry},
            filters::{
                common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
                http::{
                    buffer::v3::{Buffer, BufferPerRoute, buffer_per_route::Override},
                    cors::v3::{Cors, CorsPolicy},
                    fault::v3::{
                        FaultAbort, HttpFault,
                        fault_abort::{ErrorType, HeaderAbort},
                    },
                    local_ratelimit::v3::LocalRateLimit,
                },
            },
        },
        r#type::{
            matcher::v3::{StringMatcher, string_matcher::MatchPattern},
            v3::{FractionalPercent, HttpStatus, TokenBucket},
        },
    },
    google::protobuf::{BoolValue, Duration as WireDuration, UInt32Value},
    to_any,
};

use crate::{
    client::{get, send},
    envoy::Pair,
    filters::{filtered, http, listening},
    resources::*,
};

fn percent(numerator: u32) -> Option<RuntimeFractionalPercent> {
    Some(RuntimeFractionalPercent {
        default_value: Some(FractionalPercent { numerator, denominator: 0 }),
        runtime_key: String::new(),
    })
}

fn bucket(max_tokens: u32) -> Option<TokenBucket> {
    Some(TokenBucket {
        max_tokens,
        tokens_per_fill: Some(UInt32Value { value: 1 }),
        fill_interval: Some(WireDuration { seconds: 3600, nanos: 0 }),
    })
}

fn limit(max: u32) -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "limit".into(),
        token_bucket: bucket(max),
        filter_enabled: percent(100),
        filter_enforced: percent(100),
        ..LocalRateLimit::default()
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() }),
        ..HeaderValueOption::default()
    }
}

fn on_route<M: Name>(path: &str, name: &str, settings: &M) -> Route {
    let mut route = to(prefix(path), cluster_action("app"));
    route.typed_per_filter_config = [(name.to_owned(), to_any(settings))].into();
    route
}

fn before(mut table: RouteConfiguration, routes: Vec<Route>) -> RouteConfiguration {
    table.virtual_hosts[0].routes.splice(0..0, routes);
    table
}

fn with(name: &'static str, value: &'static str) -> impl Fn() -> Request<Full<Bytes>> {
    move || {
        let mut request = get("/");
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    }
}

#[tokio::test]
async fn requests_beyond_a_bucket_are_refused_and_routes_have_buckets_of_their_own() {
    let filter = LocalRateLimit {
        response_headers_to_add: vec![header("x-limited", "yes")],
        enable_x_ratelimit_headers: 1,
        ..limit(2)
    };
    let route = LocalRateLimit {
        status: Some(HttpStatus { code: 503 }),
        enable_retry_after_header: true,
        ..limit(1)
    };
    let told = LocalRateLimit {
        filter_enforced: percent(0),
        request_headers_to_add_when_not_enforced: vec![header("x-over", "yes")],
        ..limit(0)
    };
    let off = LocalRateLimit { filter_enabled: percent(0), ..limit(0) };
    let later = LocalRateLimit { enable_retry_after_header: true, ..limit(0) };
    let table = before(
        all_to("in", "app"),
        vec![
            on_route("/own", "limit", &route),
            on_route("/told", "limit", &told),
            on_route("/off", "limit", &off),
            on_route("/later", "limit", &later),
        ],
    );
    let pair = Pair::start(&filtered(table, vec![http("limit", &filter)]), []).await;
    let names = ["x-limited", "x-ratelimit-limit", "x-ratelimit-remaining", "content-type", "retry-after"];
    for (path, status) in [
        ("/", 200),
        ("/", 200),
        ("/", 429),
        ("/", 429),
        ("/own", 200),
        ("/own", 503),
        ("/off", 200),
        ("/told", 200),
    ] {
        assert_eq!(pair.alike(&names, || get(path)).await.status, status, "{path}");
    }
    let refused = pair.alike(&names, || get("/")).await;
    assert_eq!(
        (refused.text(), &refused.headers["x-limited"]),
        ("local_rate_limited", &"yes".parse().unwrap())
    );
    assert_eq!(pair.alike(&[], || get("/told")).await.seen()["headers"]["x-over"], "yes");
    let later = pair.alike(&[], || get("/later")).await;
    let wait: u64 = later.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    let mut grpc = get("/");
    grpc.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = send(pair.ours, Version::HTTP_2, grpc).await;
    assert_eq!((answer.status.as_u16(), answer.headers["grpc-status"].to_str().unwrap()), (200, "14"));
}

#[tokio::test]
async fn what_a_request_is_counted_as_has_its_own_bucket() {
    let action = |specifier| Action { action_specifier: Some(specifier) };
    let user = || RateLimit {
        actions: vec![action(ActionSpecifier::RequestHeaders(RequestHeaders {
            header_name: "x-user".into(),
            descriptor_key: "user".into(),
            skip_if_absent: false,
        }))],
        ..RateLimit::default()
    };
    let generic = || RateLimit {
        actions: vec![action(ActionSpecifier::GenericKey(GenericKey {
            descriptor_value: "all".into(),
            ..GenericKey::default()
        }))],
        ..RateLimit::default()
    };
    let descriptor = |key: &str, value: &str, max| LocalRateLimitDescriptor {
        entries: vec![Entry { key: key.into(), value: value.into() }],
        token_bucket: bucket(max),
        shadow_mode: false,
    };
    let filter = LocalRateLimit {
        descriptors: vec![descriptor("user", "web", 1), descriptor("generic_key", "all", 2)],
        ..limit(100)
    };
    let mut table = before(all_to("in", "app"), vec![to(prefix("/vhost"), cluster_action("app"))]);
    table.virtual_hosts[0].rate_limits = vec![generic()];
    let Some(wire_route::Action::Route(action)) = &mut table.virtual_hosts[0].routes[1].action else {
        unreachable!()
    };
    action.rate_limits = vec![user()];
    let pair = Pair::start(&filtered(table, vec![http("limit", &filter)]), []).await;
    for status in [200, 429, 429] {
        assert_eq!(pair.alike(&[], with("x-user", "web")).await.status, status);
    }
    for _ in 0..3 {
        assert_eq!(pair.alike(&[], with("x-user", "other")).await.status, 200);
        assert_eq!(pair.alike(&[], || get("/")).await.status, 200);
    }
    for status in [200, 200, 429] {
        assert_eq!(pair.alike(&[], || get("/vhost")).await.status, status, "the virtual host's count");
    }
}

const CORS_HEADERS: [&str; 6] = [
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
    "access-control-allow-credentials",
];

#[tokio::test]
async fn pages_of_other_origins_are_answered_as_envoy_does_it() {
    let origin = |text: &str| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(text.into())),
        ..StringMatcher::default()
    };
    let policy = CorsPolicy {
        allow_origin_string_match: vec![origin("https://a.example")],
        allow_methods: "GET, PUT".into(),
        allow_headers: "x-a".into(),
        expose_headers: "x-b".into(),
        max_age: "600".into(),
        allow_credentials: Some(BoolValue { value: true }),
        ..CorsPolicy::default()
    };
    let strict = CorsPolicy {
        allow_origin_string_match: vec![origin("https://b.example")],
        forward_not_matching_preflights: Some(BoolValue { value: false }),
        ..CorsPolicy::default()
    };
    let off = CorsPolicy { filter_enabled: percent(0), ..policy.clone() };
    let any = CorsPolicy { allow_origin_string_match: vec![origin("*")], ..CorsPolicy::default() };
    let name = "envoy.filters.http.cors";
    let mut old = to(prefix("/old"), cluster_action("app"));
    let Some(wire_route::Action::Route(action)) = &mut old.action else { unreachable!() };
    #[allow(deprecated)]
    {
        action.cors = Some(RouteCors {
            allow_origin_string_match: vec![origin("https://old.example")],
            ..RouteCors::default()
        });
    }
    let mut table = before(
        all_to("in", "app"),
        vec![on_route("/strict", name, &strict), on_route("/off", name, &off), on_route("/any", name, &any)],
    );
    table.virtual_hosts[0].typed_per_filter_config = [(name.to_owned(), to_any(&policy))].into();
    let pair = Pair::start(&filtered(table, vec![http(name, &Cors {})]), []).await;
    let request = |method: Method, path: &str, origin: &str, preflight: bool| {
        let mut request = get(path);
        *request.method_mut() = method;
        request.headers_mut().insert("origin", origin.parse().unwrap());
        if preflight {
            request.headers_mut().insert("access-control-request-method", "PUT".parse().unwrap());
        }
        request
    };
    let (a, b) = ("https://a.example", "https://b.example");
    for (method, path, origin, preflight, allowed, answered) in [
        (Method::GET, "/", a, false, true, false),
        (Method::GET, "/", b, false, false, false),
        (Method::OPTIONS, "/", a, true, true, true),
        (Method::OPTIONS, "/", a, false, true, false),
        (Method::OPTIONS, "/", b, true, false, false),
        (Method::OPTIONS, "/strict", b, true, true, true),
        (Method::OPTIONS, "/strict", a, true, false, true),
        (Method::GET, "/strict", b, false, true, false),
        (Method::OPTIONS, "/off", a, true, false, false),
        (Method::GET, "/any", b, false, true, false),
    ] {
        let answer = pair.alike(&CORS_HEADERS, || request(method.clone(), path, origin, preflight)).await;
        let told = format!("{method} {path} {origin} {preflight}: {answer:?}");
        assert_eq!(answer.status, 200, "{told}");
        assert_eq!(answer.headers.contains_key("access-control-allow-origin"), allowed, "{told}");
        assert_eq!(answer.backend().is_empty(), answered, "{told}");
    }
    // The old place for the same.
    let table = before(all_to("in", "app"), vec![old]);
    let pair = Pair::start(&filtered(table, vec![http(name, &Cors {})]), []).await;
    for (origin, allowed) in [("https://old.example", true), (a, false)] {
        let answer = pair.alike(&CORS_HEADERS, || request(Method::GET, "/old", origin, false)).await;
        assert_eq!(answer.headers.contains_key("access-control-allow-origin"), allowed);
    }
}

fn all() -> Option<FractionalPercent> {
    Some(FractionalPercent { numerator: 100, denominator: 0 })
}

fn abort(error_type: ErrorType, share: Option<FractionalPercent>) -> Option<FaultAbort> {
    Some(FaultAbort { percentage: share, error_type: Some(error_type), ..FaultAbort::default() })
}

#[tokio::test]
async fn faults_that_are_wanted_happen_to_whom_they_are_meant_for() {
    let filter = HttpFault {
        abort: abort(ErrorType::HttpStatus(418), all()),
        headers: vec![HeaderMatcher {
            name: "x-victim".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..HeaderMatcher::default()
        }],
        ..HttpFault::default()
    };
    let asked =
        HttpFault { abort: abort(ErrorType::HeaderAbort(HeaderAbort {}), all()), ..HttpFault::default() };
    let grpc = HttpFault { abort: abort(ErrorType::GrpcStatus(5), all()), ..HttpFault::default() };
    let never = HttpFault { abort: abort(ErrorType::HttpStatus(503), None), ..HttpFault::default() };
    let elsewhere = HttpFault {
        upstream_cluster: "other".into(),
        abort: abort(ErrorType::HttpStatus(503), all()),
        ..HttpFault::default()
    };
    let slow = HttpFault {
        delay: Some(FaultDelay {
            percentage: all(),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(WireDuration {
                seconds: 0,
                nanos: 100_000_000,
            })),
        }),
        ..HttpFault::default()
    };
    let table = before(
        all_to("in", "app"),
        vec![
            on_route("/asked", "fault", &asked),
            on_route("/grpc", "fault", &grpc),
            on_route("/nothing", "fault", &never),
            on_route("/elsewhere", "fault", &elsewhere),
            on_route("/slow", "fault", &slow),
        ],
    );
    let pair = Pair::start(&filtered(table, vec![http("fault", &filter)]), []).await;
    let answer = pair.alike(&["content-type"], with("x-victim", "1")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (418, "fault filter abort"));
    for (path, status) in
        [("/", 200), ("/asked", 200), ("/grpc", 200), ("/nothing", 200), ("/elsewhere", 200)]
    {
        assert_eq!(pair.alike(&[], || get(path)).await.status, status, "{path}");
    }
    for (share, status) in [("100", 503), ("0", 200)] {
        let request = || {
            let mut request = get("/asked");
            request.headers_mut().insert("x-envoy-fault-abort-request", "503".parse().unwrap());
            request.headers_mut().insert("x-envoy-fault-abort-request-percentage", share.parse().unwrap());
            request
        };
        assert_eq!(pair.alike(&[], request).await.status, status, "{share}");
    }
    let mut request = get("/grpc");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = send(pair.ours, Version::HTTP_2, request).await;
    assert_eq!((answer.status.as_u16(), answer.headers["grpc-status"].to_str().unwrap()), (200, "5"));
    let start = Instant::now();
    assert_eq!(send(pair.ours, Version::HTTP_11, get("/slow")).await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn a_request_that_is_waited_for_is_passed_on_whole_or_refused_as_too_large() {
    let wanted = |max| Buffer { max_request_bytes: Some(UInt32Value { value: max }) };
    let small = BufferPerRoute { r#override: Some(Override::Buffer(wanted(4))) };
    let off = BufferPerRoute { r#override: Some(Override::Disabled(true)) };
    let table = before(
        all_to("in", "app"),
        vec![on_route("/small", "buffer", &small), on_route("/off", "buffer", &off)],
    );
    let pair = Pair::start(&filtered(table, vec![http("buffer", &wanted(1000))]), []).await;
    let post = |path: &str, bytes: usize| {
        Request::post(path)
            .header("host", "pay.shop")
            .body(Full::new(Bytes::from(vec![b'x'; bytes])))
            .unwrap()
    };
    for (path, bytes, status) in [
        ("/", 0, 200),
        ("/", 1000, 200),
        ("/", 1001, 413),
        ("/small", 4, 200),
        ("/small", 5, 413),
        ("/off", 5000, 200),
    ] {
        let answer = pair.alike(&["content-type"], || post(path, bytes)).await;
        assert_eq!(answer.status, status, "{path} {bytes}");
        assert!(status != 200 || answer.seen()["body_bytes"] == bytes, "{path} {bytes}");
    }
    // Without a length at its head: it gets one, and is counted as it comes.
    let chunked = |chunks: &[&str]| {
        let mut text =
            "POST / HTTP/1.1\r\nhost: pay.shop\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_owned();
        for chunk in chunks {
            text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
        }
        text + "0\r\n\r\n"
    };
    let answer = crate::client::raw(pair.ours, chunked(&["ab", "cde"]).as_bytes()).await;
    assert!(answer.contains("\"body_bytes\":5") && answer.contains("\"content-length\":\"5\""), "{answer}");
    let long = "x".repeat(600);
    let answer = crate::client::raw(pair.ours, chunked(&[&long, &long]).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    fn refused<M: Name>(filter: &M) -> String {
        let manager = filtered(all_to("in", "app"), vec![http("filter", filter)]);
        let path = config::listener(listening(&manager)).unwrap_err().path;
        path.rsplit_once("http_filters[0].typed_config.").unwrap().1.to_owned()
    }
    let short = TokenBucket {
        fill_interval: Some(WireDuration { seconds: 0, nanos: 1_000_000 }),
        ..bucket(1).unwrap()
    };
    let limits = [
        (
            LocalRateLimit { token_bucket: Some(TokenBucket::default()), ..limit(1) },
            "token_bucket.fill_interval",
        ),
        (LocalRateLimit { token_bucket: Some(short), ..limit(1) }, "token_bucket.fill_interval"),
        (
            LocalRateLimit { local_rate_limit_per_downstream_connection: true, ..limit(1) },
            "local_rate_limit_per_downstream_connection",
        ),
        (
            LocalRateLimit { descriptors: vec![LocalRateLimitDescriptor::default()], ..limit(1) },
            "descriptors[0].entries",
        ),
        (LocalRateLimit { stage: 11, ..limit(1) }, "stage"),
        (LocalRateLimit { rate_limits: vec![RateLimit::default()], ..limit(1) }, "rate_limits[0].actions"),
    ];
    for (wire, path) in limits {
        assert_eq!(refused(&wire), path);
    }
    let faults = [
        (HttpFault { downstream_nodes: vec!["a".into()], ..HttpFault::default() }, "downstream_nodes"),
        (
            HttpFault { response_rate_limit: Some(Default::default()), ..HttpFault::default() },
            "response_rate_limit",
        ),
        (
            HttpFault { abort: abort(ErrorType::HttpStatus(99), all()), ..HttpFault::default() },
            "abort.http_status",
        ),
        (HttpFault { delay: Some(FaultDelay::default()), ..HttpFault::default() }, "delay.fixed_delay"),
    ];
    for (wire, path) in faults {
        assert_eq!(refused(&wire), path);
    }
    assert_eq!(refused(&Buffer::default()), "max_request_bytes");
    assert_eq!(
        refused(&Buffer { max_request_bytes: Some(UInt32Value { value: 1 << 30 }) }),
        "max_request_bytes"
    );
    let bucketless = LocalRateLimit { token_bucket: None, ..limit(1) };
    let table = before(all_to("in", "app"), vec![on_route("/", "limit", &bucketless)]);
    let path = config::routes(table).unwrap_err().path;
    assert_eq!(path, "virtual_hosts[0].routes[0].typed_per_filter_config[\"limit\"].token_bucket");
}
