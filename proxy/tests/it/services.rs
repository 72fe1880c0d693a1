//! Services that decide on requests: external authorization over gRPC and HTTP, and limits that a service counts. They are
//! real servers, and the real Envoy asks them as well.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;
use proxy::config;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};
use xds_proto::{
    Name,
    envoy::{
        config::{
            core::v3::{
                GrpcService, HeaderValue, HeaderValueOption, HttpUri,
                grpc_service::{EnvoyGrpc, TargetSpecifier},
                http_uri::HttpUpstreamType,
            },
            ratelimit::v3::RateLimitServiceConfig,
            route::v3::{
                RateLimit as RouteLimit, Route, RouteConfiguration,
                rate_limit::{
                    Action,
                    action::{ActionSpecifier, RequestHeaders},
                },
            },
        },
        extensions::filters::http::{
            ext_authz::v3::{
                AuthorizationRequest, AuthorizationResponse, BufferSettings, CheckSettings, ExtAuthz,
                ExtAuthzPerRoute, HttpService, ext_authz::Services, ext_authz_per_route::Override,
            },
            ratelimit::v3::RateLimit,
        },
        service::{
            auth::v3::{
                CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
                attribute_context::HttpRequest,
                authorization_server::{Authorization, AuthorizationServer},
                check_response::HttpResponse,
            },
            ratelimit::v3::{
                RateLimitRequest, RateLimitResponse,
                rate_limit_response::{Code, DescriptorStatus, RateLimit as Limit, rate_limit::Unit},
                rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
            },
        },
        r#type::{
            matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern},
            v3::HttpStatus,
        },
    },
    google::{
        protobuf::{BoolValue, Duration, UInt32Value},
        rpc,
    },
    to_any,
};

use crate::{
    backend::Backend,
    client::{get, send},
    control::named,
    envoy::Pair,
    filters::{filtered, http, listening},
    resources::*,
};

/// Does what `x-do` says.
#[derive(Clone, Default)]
struct Judge {
    asked: Arc<Mutex<Vec<CheckRequest>>>,
}

fn header(key: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    #[allow(deprecated)]
    HeaderValueOption {
        header: Some(HeaderValue { key: key.into(), value: value.into(), ..HeaderValue::default() }),
        append: append.map(|value| BoolValue { value }),
        ..HeaderValueOption::default()
    }
}

fn http_of(request: &CheckRequest) -> &HttpRequest {
    request.attributes.as_ref().unwrap().request.as_ref().unwrap().http.as_ref().unwrap()
}

#[tonic::async_trait]
impl Authorization for Judge {
    async fn check(&self, request: tonic::Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let what = http_of(&request).headers.get("x-do").cloned().unwrap_or_default();
        self.asked.lock().unwrap().push(request);
        let status = |code| Some(rpc::Status { code, ..rpc::Status::default() });
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: 401 }),
            headers: vec![header("www-authenticate", "Custom", None), header("x-why", "so", Some(true))],
            body: "not you".into(),
        };
        let permitted = OkHttpResponse {
            headers: vec![
                header("x-user", "web", None),
                header("x-there", "more", Some(true)),
                header("x-not-there", "more", Some(true)),
            ],
            headers_to_remove: vec!["x-secret".into()],
            response_headers_to_add: vec![
                header("x-seen", "yes", None),
                header("x-backend", "twice", Some(true)),
                header("x-why", "added", Some(true)),
            ],
            ..OkHttpResponse::default()
        };
        let (status, http_response) = match what.as_str() {
            "slow" => std::future::pending().await,
            "fail" => return Err(Status::internal("broken")),
            "deny" => (status(7), Some(HttpResponse::DeniedResponse(denied))),
            "bare" => (status(7), None),
            "permit" => (status(0), Some(HttpResponse::OkResponse(permitted))),
            _ => (status(0), None),
        };
        Ok(Response::new(CheckResponse { status, http_response, ..CheckResponse::default() }))
    }
}

async fn serve<S>(service: S) -> SocketAddr
where
    S: tonic::codegen::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn grpc(cluster: &str, timeout: Option<Duration>) -> GrpcService {
    GrpcService {
        timeout,
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: cluster.into(),
            ..EnvoyGrpc::default()
        })),
        ..GrpcService::default()
    }
}

fn authz() -> ExtAuthz {
    ExtAuthz {
        transport_api_version: 2,
        services: Some(Services::GrpcService(grpc("judge", Some(Duration { seconds: 5, nanos: 0 })))),
        ..ExtAuthz::default()
    }
}

fn doing(path: &str, what: &str) -> Request<Full<Bytes>> {
    let mut request = get(path);
    request.headers_mut().insert("x-do", what.parse().unwrap());
    request
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

#[tokio::test]
async fn a_service_permits_and_denies_and_changes_requests_and_answers() {
    let judge = Judge::default();
    let at = serve(AuthorizationServer::new(judge.clone())).await;
    let check = |settings| ExtAuthzPerRoute { r#override: Some(Override::CheckSettings(settings)) };
    let context = |pairs: &[(&str, &str)]| CheckSettings {
        context_extensions: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..CheckSettings::default()
    };
    let off = ExtAuthzPerRoute { r#override: Some(Override::Disabled(true)) };
    let mut table = before(
        all_to("in", "app"),
        vec![on_route("/off", "authz", &off), on_route("/told", "authz", &check(context(&[("b", "route")])))],
    );
    let outer = check(context(&[("a", "host"), ("b", "host")]));
    table.virtual_hosts[0].typed_per_filter_config = [("authz".to_owned(), to_any(&outer))].into();
    let manager = filtered(table, vec![http("authz", &authz())]);
    let cluster = named(speaking_http2(static_cluster("judge", &[at])));
    let pair = Pair::start(&manager, [cluster]).await;
    for (path, what, status, body) in [
        ("/", "permit", 200, ""),
        ("/", "deny", 401, "not you"),
        ("/", "bare", 403, ""),
        ("/", "fail", 403, ""),
        ("/off", "deny", 200, ""),
    ] {
        let answer =
            pair.alike(&["x-seen", "x-why", "www-authenticate", "content-type"], || doing(path, what)).await;
        assert_eq!(answer.status, status, "{path} {what}");
        assert!(status == 200 || answer.text() == body, "{path} {what}: {}", answer.text());
    }
    let request = || {
        let mut request = doing("/told?x=1", "permit");
        for name in ["x-there", "x-secret"] {
            request.headers_mut().insert(name, "mine".parse().unwrap());
        }
        request
    };
    judge.asked.lock().unwrap().clear();
    let answer = pair.alike(&["x-seen"], request).await;
    assert_eq!(answer.headers["x-seen"], "yes");
    let seen = answer.seen()["headers"].clone();
    assert_eq!((&seen["x-user"], seen.get("x-secret"), seen.get("x-not-there")), (&"web".into(), None, None));
    let asked = judge.asked.lock().unwrap().clone();
    let ours = asked[0].attributes.clone().unwrap();
    assert_eq!(ours.context_extensions["a"], "host");
    assert_eq!(ours.context_extensions["b"], "route");
    if let Some(theirs) = asked.get(1) {
        let theirs = theirs.attributes.clone().unwrap();
        assert_eq!(ours.context_extensions, theirs.context_extensions);
        let (ours, theirs) = (http_of(&asked[0]).clone(), http_of(&asked[1]).clone());
        let of = |request: HttpRequest| {
            let mut headers = request.headers;
            // Of which each request has its own.
            headers.retain(|name, _| name != "x-request-id");
            let headers: std::collections::BTreeMap<_, _> = headers.into_iter().collect();
            (
                request.method,
                request.path,
                request.host,
                request.scheme,
                request.size,
                request.protocol,
                headers,
            )
        };
        assert_eq!(of(ours), of(theirs));
    }
    let mut request = doing("/", "deny");
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = send(pair.ours, Version::HTTP_2, request).await;
    assert_eq!((answer.status.as_u16(), answer.headers["grpc-status"].to_str().unwrap()), (200, "16"));
}

#[tokio::test]
async fn a_service_that_cannot_be_asked_stops_requests_unless_it_is_to_let_them_pass() {
    let at = serve(AuthorizationServer::new(Judge::default())).await;
    let nobody = crate::backend::Nobody::new();
    let cluster = |name: &str, at| named(speaking_http2(static_cluster(name, &[at])));
    let short = Some(Duration { seconds: 0, nanos: 200_000_000 });
    for (service, allow, what, status) in [
        ("judge", false, "slow", 503),
        ("judge", true, "slow", 200),
        ("judge", true, "fail", 200),
        ("judge", true, "deny", 401),
        ("nobody", false, "permit", 503),
        ("nobody", true, "permit", 200),
    ] {
        let filter = ExtAuthz {
            services: Some(Services::GrpcService(grpc(service, short))),
            failure_mode_allow: allow,
            failure_mode_allow_header_add: true,
            status_on_error: Some(HttpStatus { code: 503 }),
            ..authz()
        };
        let manager = filtered(all_to("in", "app"), vec![http("authz", &filter)]);
        let pair = Pair::start(&manager, [cluster("judge", at), cluster("nobody", nobody.address)]).await;
        let answer = pair.alike(&["content-type"], || doing("/", what)).await;
        assert_eq!(answer.status, status, "{service} {allow} {what}");
        if status == 200 {
            assert_eq!(answer.seen()["headers"]["x-envoy-auth-failure-mode-allowed"], "true");
        }
    }
}

#[tokio::test]
async fn a_service_is_shown_as_much_of_a_body_as_it_may_see() {
    let judge = Judge::default();
    let at = serve(AuthorizationServer::new(judge.clone())).await;
    let body = |max, partial| BufferSettings {
        max_request_bytes: max,
        allow_partial_message: partial,
        pack_as_bytes: false,
    };
    let on = |path: &str, settings| {
        let per_route = ExtAuthzPerRoute { r#override: Some(Override::CheckSettings(settings)) };
        on_route(path, "authz", &per_route)
    };
    let table = before(
        all_to("in", "app"),
        vec![
            on("/part", CheckSettings { with_request_body: Some(body(4, true)), ..CheckSettings::default() }),
            on("/none", CheckSettings { disable_request_body_buffering: true, ..CheckSettings::default() }),
        ],
    );
    let filter = ExtAuthz { with_request_body: Some(body(8, false)), ..authz() };
    let cluster = named(speaking_http2(static_cluster("judge", &[at])));
    let pair = Pair::start(&filtered(table, vec![http("authz", &filter)]), [cluster]).await;
    for (path, bytes, status, shown, partial) in [
        ("/", "12345678", 200, "12345678", Some("false")),
        ("/", "123456789", 413, "", None),
        ("/part", "123", 200, "123", Some("false")),
        ("/part", "12345678", 200, "1234", Some("true")),
        ("/none", "12345678", 200, "", None),
    ] {
        judge.asked.lock().unwrap().clear();
        let post = || Request::post(path).header("host", "pay.shop").body(Full::from(bytes)).unwrap();
        let answer = pair.alike(&["content-type"], post).await;
        assert_eq!(answer.status, status, "{path} {bytes}");
        let asked = judge.asked.lock().unwrap().clone();
        if status == 200 {
            assert_eq!(answer.seen()["body_bytes"], bytes.len(), "all of it is passed on");
            for request in &asked {
                let request = http_of(request);
                assert_eq!(request.body, shown, "{path} {bytes}");
                let told = request.headers.get("x-envoy-auth-partial-body").map(String::as_str);
                assert_eq!(told, partial, "{path} {bytes}");
            }
        }
        assert_eq!(asked.is_empty(), status == 413);
    }
}

fn exactly(names: &[&str]) -> Option<ListStringMatcher> {
    let pattern = |name: &&str| StringMatcher {
        match_pattern: Some(MatchPattern::Exact((*name).to_owned())),
        ..StringMatcher::default()
    };
    Some(ListStringMatcher { patterns: names.iter().map(pattern).collect() })
}

#[tokio::test]
async fn an_http_server_decides_by_its_status() {
    // It says what it saw, and its status is the path's: `/status/<status>`.
    let server = Backend::start("judge").await;
    let service = HttpService {
        server_uri: Some(HttpUri {
            uri: "http://judge".into(),
            timeout: Some(Duration { seconds: 5, nanos: 0 }),
            http_upstream_type: Some(HttpUpstreamType::Cluster("judge".into())),
        }),
        authorization_request: Some(AuthorizationRequest {
            headers_to_add: vec![HeaderValue {
                key: "x-added".into(),
                value: "yes".into(),
                ..Default::default()
            }],
            ..AuthorizationRequest::default()
        }),
        authorization_response: Some(AuthorizationResponse {
            allowed_upstream_headers: exactly(&["x-backend"]),
            allowed_client_headers_on_success: exactly(&["x-backend"]),
            ..AuthorizationResponse::default()
        }),
        ..HttpService::default()
    };
    let filter = ExtAuthz {
        services: Some(Services::HttpService(service)),
        allowed_headers: exactly(&["x-allowed"]),
        ..authz()
    };
    let manager = filtered(all_to("in", "app"), vec![http("authz", &filter)]);
    let pair = Pair::start(&manager, [named(static_cluster("judge", &[server.address]))]).await;
    let request = |path: &str| {
        let mut request = get(path);
        for name in ["authorization", "x-allowed", "x-other"] {
            request.headers_mut().insert(name, "mine".parse().unwrap());
        }
        request
    };
    let permitted = pair.alike(&[], || request("/a?b")).await;
    assert_eq!(permitted.status, 200);
    assert_eq!(
        permitted.seen()["headers"]["x-backend"],
        "judge",
        "the service's header went to the application"
    );
    let denied = send(pair.ours, Version::HTTP_11, request("/status/403?b")).await;
    assert_eq!(denied.status, 403);
    let seen = denied.seen();
    assert_eq!((&seen["backend"], &seen["path"]), (&"judge".into(), &"/status/403?b".into()));
    let headers = &seen["headers"];
    assert_eq!((&headers["host"], &headers["x-added"]), (&"pay.shop".into(), &"yes".into()));
    assert_eq!((&headers["authorization"], &headers["x-allowed"]), (&"mine".into(), &"mine".into()));
    assert_eq!(headers.get("x-other"), None, "not everything is shown");
    for path in ["/status/503", "/status/401", "/status/302"] {
        let expected = if path == "/status/503" { 403 } else { path[8..].parse().unwrap() };
        let ours = send(pair.ours, Version::HTTP_11, request(path)).await;
        assert_eq!(ours.status, expected, "{path}");
        if let Some(at) = pair.envoy {
            assert_eq!(send(at, Version::HTTP_11, request(path)).await.status, expected, "{path}");
        }
    }
}

/// Counts nothing: `x-user` says it.
#[derive(Clone, Default)]
struct Counter {
    asked: Arc<Mutex<Vec<RateLimitRequest>>>,
}

#[tonic::async_trait]
impl RateLimitService for Counter {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let user = request.descriptors[0].entries[0].value.clone();
        self.asked.lock().unwrap().push(request);
        if user == "broken" {
            return Err(Status::internal("broken"));
        }
        let code = if user == "greedy" { Code::OverLimit } else { Code::Ok } as i32;
        let pair = |key: &str, value: &str| HeaderValue {
            key: key.into(),
            value: value.into(),
            ..HeaderValue::default()
        };
        Ok(Response::new(RateLimitResponse {
            overall_code: code,
            statuses: vec![DescriptorStatus {
                code,
                current_limit: Some(Limit {
                    requests_per_unit: 10,
                    unit: Unit::Minute as i32,
                    name: String::new(),
                }),
                limit_remaining: 3,
                duration_until_reset: Some(Duration { seconds: 30, nanos: 0 }),
                ..DescriptorStatus::default()
            }],
            response_headers_to_add: vec![pair("x-counted", "yes")],
            request_headers_to_add: vec![pair("x-class", "gold")],
            ..RateLimitResponse::default()
        }))
    }
}

fn limit() -> RateLimit {
    RateLimit {
        domain: "shop".into(),
        timeout: Some(Duration { seconds: 5, nanos: 0 }),
        enable_x_ratelimit_headers: 1,
        rate_limit_service: Some(RateLimitServiceConfig {
            grpc_service: Some(grpc("counter", None)),
            transport_api_version: 2,
        }),
        ..RateLimit::default()
    }
}

fn by_user() -> RouteLimit {
    RouteLimit {
        actions: vec![Action {
            action_specifier: Some(ActionSpecifier::RequestHeaders(RequestHeaders {
                header_name: "x-user".into(),
                descriptor_key: "user".into(),
                skip_if_absent: false,
            })),
        }],
        ..RouteLimit::default()
    }
}

#[tokio::test]
async fn a_service_counts_requests_and_refuses_those_that_are_too_many() {
    let counter = Counter::default();
    let at = serve(RateLimitServiceServer::new(counter.clone())).await;
    for deny in [false, true] {
        let mut table = all_to("in", "app");
        table.virtual_hosts[0].rate_limits = vec![by_user()];
        let filter = RateLimit { failure_mode_deny: deny, ..limit() };
        let cluster = named(speaking_http2(static_cluster("counter", &[at])));
        let pair = Pair::start(&filtered(table, vec![http("limit", &filter)]), [cluster]).await;
        let told = [
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "x-envoy-ratelimited",
            "x-counted",
            "content-type",
        ];
        for (user, status) in [("web", 200), ("greedy", 429), ("broken", if deny { 500 } else { 200 })] {
            let request = || {
                let mut request = get("/");
                request.headers_mut().insert("x-user", user.parse().unwrap());
                request
            };
            let answer = pair.alike(&told, request).await;
            assert_eq!(answer.status, status, "{user}");
            if user == "web" {
                assert_eq!(answer.seen()["headers"]["x-class"], "gold");
            }
        }
        counter.asked.lock().unwrap().clear();
        assert_eq!(pair.alike(&told, || get("/")).await.status, 200);
        assert!(counter.asked.lock().unwrap().is_empty(), "what is counted as nothing is not asked about");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    fn refused<M: Name>(filter: &M) -> String {
        let manager = filtered(all_to("in", "app"), vec![http("filter", filter)]);
        let path = config::listener(listening(&manager)).unwrap_err().path;
        path.rsplit_once("http_filters[0].typed_config.").unwrap().1.to_owned()
    }
    let google = GrpcService {
        target_specifier: Some(TargetSpecifier::GoogleGrpc(Default::default())),
        ..GrpcService::default()
    };
    for (wire, path) in [
        (ExtAuthz { services: None, ..authz() }, "grpc_service"),
        (ExtAuthz { services: Some(Services::GrpcService(google)), ..authz() }, "grpc_service.google_grpc"),
        (
            ExtAuthz { services: Some(Services::GrpcService(grpc("", None))), ..authz() },
            "grpc_service.envoy_grpc.cluster_name",
        ),
        (
            ExtAuthz { services: Some(Services::HttpService(HttpService::default())), ..authz() },
            "http_service.server_uri",
        ),
        (ExtAuthz { transport_api_version: 1, ..authz() }, "transport_api_version"),
        (ExtAuthz { shadow_mode: true, ..authz() }, "shadow_mode"),
        (
            ExtAuthz { with_request_body: Some(BufferSettings::default()), ..authz() },
            "with_request_body.max_request_bytes",
        ),
        (ExtAuthz { filter_metadata: Some(Default::default()), ..authz() }, "filter_metadata"),
    ] {
        assert_eq!(refused(&wire), path);
    }
    for (wire, path) in [
        (RateLimit { domain: String::new(), ..limit() }, "domain"),
        (RateLimit { rate_limit_service: None, ..limit() }, "rate_limit_service"),
        (RateLimit { request_type: "internal".into(), ..limit() }, "request_type"),
        (RateLimit { stage: 11, ..limit() }, "stage"),
    ] {
        assert_eq!(refused(&wire), path);
    }
    let mut stale = by_user();
    stale.stage = Some(UInt32Value { value: 11 });
    let mut table = all_to("in", "app");
    table.virtual_hosts[0].rate_limits = vec![stale];
    assert_eq!(config::routes(table).unwrap_err().path, "virtual_hosts[0].rate_limits[0].stage");
}
