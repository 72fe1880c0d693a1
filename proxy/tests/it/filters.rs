//! HTTP filters in their order, and what route tables, virtual hosts, routes and weighted clusters say of them.

use http::StatusCode;
use proxy::{Proxy, config};
use xds_proto::{
    Name,
    envoy::{
        config::{
            listener::v3::Listener,
            rbac::v3::{
                Permission, Policy, Principal, Rbac, permission::Rule, principal::Identifier, rbac::Action,
            },
            route::v3::{
                FilterConfig, Route, RouteAction, RouteConfiguration, WeightedCluster,
                route_action::ClusterSpecifier, weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::{
            http::{
                rbac::v3::{Rbac as HttpRbac, RbacPerRoute},
                router::v3::Router,
                wasm::v3::Wasm,
            },
            network::http_connection_manager::v3::{HttpConnectionManager, HttpFilter, http_filter},
        },
    },
    google::protobuf::{Any, UInt32Value},
    to_any,
};

use crate::{
    backend::Backend,
    client::get1,
    control::{Control, named},
    resources::*,
};

pub fn http<M: Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(to_any(config))),
        ..HttpFilter::default()
    }
}

/// A connection manager with these filters before its router.
pub fn filtered(routes: RouteConfiguration, filters: Vec<HttpFilter>) -> HttpConnectionManager {
    let mut manager = hcm(inline(routes));
    manager.http_filters.splice(0..0, filters);
    manager
}

pub fn listening(manager: &HttpConnectionManager) -> Listener {
    listener("in", vec![chain(http_filter(manager))])
}

/// A proxy with these filters, and where it listens.
pub async fn proxy(
    control: &Control,
    app: &Backend,
    manager: &HttpConnectionManager,
) -> (Proxy, std::net::SocketAddr) {
    control.set([named(listening(manager)), named(static_cluster("app", &[app.address]))]);
    let proxy = control.proxy().await;
    let at = proxy.listener("in").await.unwrap();
    (proxy, at)
}

fn rbac(action: Action) -> HttpRbac {
    let policy = Policy {
        permissions: vec![Permission { rule: Some(Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(Identifier::Any(true)) }],
        ..Policy::default()
    };
    let rules =
        Rbac { action: action as i32, policies: [("all".to_owned(), policy)].into(), ..Rbac::default() };
    HttpRbac { rules: Some(rules), ..HttpRbac::default() }
}

fn on_route(action: Action) -> Any {
    to_any(&RbacPerRoute { rbac: Some(rbac(action)) })
}

fn wrapped(config: Option<Any>, disabled: bool) -> Any {
    to_any(&FilterConfig { config, disabled, is_optional: false })
}

fn named_route(path: &str, settings: Option<Any>) -> Route {
    let mut route = to(prefix(path), cluster_action("app"));
    route.typed_per_filter_config.extend(settings.map(|any| ("guard".to_owned(), any)));
    route
}

#[tokio::test]
async fn the_most_specific_level_says_what_a_filter_does() {
    let app = Backend::start("app").await;
    let weighted = |settings: Any| {
        let cluster = ClusterWeight {
            name: "app".to_owned(),
            weight: Some(UInt32Value { value: 1 }),
            typed_per_filter_config: [("guard".to_owned(), settings)].into(),
            ..ClusterWeight::default()
        };
        let weighted = WeightedCluster { clusters: vec![cluster], ..WeightedCluster::default() };
        RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
            ..RouteAction::default()
        }
    };
    let mut weighted_route = to(prefix("/weighted"), weighted(on_route(Action::Deny)));
    weighted_route.typed_per_filter_config = [("guard".to_owned(), on_route(Action::Allow))].into();
    let mut table = routes(
        "in",
        vec![
            (
                &["pay.shop"],
                vec![
                    weighted_route,
                    named_route("/route", Some(on_route(Action::Allow))),
                    named_route("/off", Some(wrapped(None, true))),
                    named_route("/without", Some(to_any(&RbacPerRoute::default()))),
                    named_route("/wrapped", Some(wrapped(Some(on_route(Action::Allow)), false))),
                    named_route("/", None),
                ],
            ),
            (&["other.shop"], vec![named_route("/", None)]),
            (&["open.shop"], vec![named_route("/", None)]),
        ],
    );
    // The filter permits, the table denies, one host is silent, one permits again.
    table.typed_per_filter_config = [("guard".to_owned(), on_route(Action::Deny))].into();
    table.virtual_hosts[2].typed_per_filter_config =
        [("guard".to_owned(), on_route(Action::Allow)), ("nobody".to_owned(), on_route(Action::Deny))].into();
    let control = Control::start().await;
    let (_proxy, at) =
        proxy(&control, &app, &filtered(table, vec![http("guard", &rbac(Action::Allow))])).await;
    for (path, status) in
        [("/", 403), ("/weighted", 403), ("/route", 200), ("/off", 200), ("/without", 200), ("/wrapped", 200)]
    {
        assert_eq!(get1(at, path).await.status.as_u16(), status, "{path}");
    }
    let of = async |host: &str| {
        let mut request = crate::client::get("/");
        request.headers_mut().insert("host", host.parse().unwrap());
        crate::client::send(at, http::Version::HTTP_11, request).await.status.as_u16()
    };
    assert_eq!((of("other.shop").await, of("open.shop").await), (403, 200));
}

#[tokio::test]
async fn a_disabled_filter_works_only_where_a_route_wants_it_and_the_rest_keep_their_order() {
    let app = Backend::start("app").await;
    let table = routes(
        "in",
        vec![(
            &["*"],
            vec![
                named_route("/on", Some(on_route(Action::Deny))),
                named_route("/plain", Some(wrapped(Some(Any::default()), false))),
                named_route("/", None),
            ],
        )],
    );
    let guard = HttpFilter { disabled: true, ..http("guard", &rbac(Action::Deny)) };
    let unknown = HttpFilter { is_optional: true, ..http("later", &Wasm::default()) };
    let control = Control::start().await;
    let manager = filtered(table, vec![unknown, guard, http("open", &rbac(Action::Allow))]);
    let (_proxy, at) = proxy(&control, &app, &manager).await;
    for (path, status) in [("/", 200), ("/on", 403), ("/plain", 403)] {
        assert_eq!(get1(at, path).await.status.as_u16(), status, "{path}");
    }
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_request_without_a_route_passes_the_filters_all_the_same() {
    let app = Backend::start("app").await;
    let table = routes("in", vec![(&["nobody"], vec![named_route("/", None)])]);
    let control = Control::start().await;
    let (_proxy, at) =
        proxy(&control, &app, &filtered(table, vec![http("guard", &rbac(Action::Deny))])).await;
    assert_eq!(get1(at, "/").await.status, StatusCode::FORBIDDEN);
}

fn refused(filters: Vec<HttpFilter>) -> String {
    let mut manager = filtered(all_to("in", "app"), vec![]);
    manager.http_filters = filters;
    let path = config::listener(listening(&manager)).unwrap_err().path;
    path.strip_prefix("filter_chains[0].filters[0].typed_config.http_filters").unwrap().to_owned()
}

#[test]
fn filters_that_are_not_supported_are_refused_by_their_path() {
    let router = || http("router", &Router::default());
    let guard = || http("guard", &rbac(Action::Deny));
    let optional = |filter| HttpFilter { is_optional: true, ..filter };
    assert_eq!(refused(vec![http("wasm", &Wasm::default()), router()]), "[0].typed_config");
    assert_eq!(refused(vec![guard(), HttpFilter::default(), router()]), "[1].typed_config");
    assert_eq!(refused(vec![guard()]), "[0]", "no router at the end");
    assert_eq!(refused(vec![router(), guard()]), "[0]");
    assert_eq!(refused(vec![guard(), HttpFilter { disabled: true, ..router() }]), "[1].disabled");
    let mut wrong = rbac(Action::Deny);
    wrong.matcher = Some(Default::default());
    let path = refused(vec![optional(http("guard", &wrong)), router()]);
    assert_eq!(path, "[0].typed_config.matcher", "optional is the type, not its fields");
    assert_eq!(refused(vec![guard(); 65]), "");

    let route = |settings: Any| {
        let table = routes("in", vec![(&["*"], vec![named_route("/", Some(settings))])]);
        let path = config::routes(table).map_err(|e| e.path).unwrap_err();
        path.strip_prefix("virtual_hosts[0].routes[0].typed_per_filter_config[\"guard\"]").unwrap().to_owned()
    };
    assert_eq!(route(to_any(&Wasm::default())), "");
    assert_eq!(route(wrapped(Some(to_any(&Wasm::default())), false)), ".config");
    assert_eq!(route(wrapped(None, false)), ".config");
    let inner = to_any(&RbacPerRoute { rbac: Some(wrong) });
    assert_eq!(route(wrapped(Some(inner), false)), ".config.rbac.matcher");
    let skipped =
        to_any(&FilterConfig { config: Some(to_any(&Wasm::default())), is_optional: true, disabled: false });
    assert!(config::routes(routes("in", vec![(&["*"], vec![named_route("/", Some(skipped))])])).is_ok());
}
