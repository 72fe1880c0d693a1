//! HTTP routes: which request goes to which cluster.

use std::collections::BTreeSet;

use mesh_model::{
    compile::MeshRoute,
    resource::{
        BackendRef, HeaderMatch, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, PathMatch, ValueMatch,
    },
    view::names,
};
use xds_proto::{
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
            route::v3::{
                DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RetryPolicy, Route, RouteAction,
                RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
                header_matcher::HeaderMatchSpecifier,
                query_parameter_matcher::QueryParameterMatchSpecifier,
                retry_policy::{RetryHostPredicate, retry_host_predicate},
                route, route_action,
                route_match::PathSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
    },
    to_any,
};

use super::wire::{exact, matches_regex, millis, number, regex};

/// Attempts after the first.
const RETRIES: u32 = 3;
/// How often another endpoint is drawn before one that was tried already is taken again.
const HOST_SELECTION_ATTEMPTS: i64 = 5;
/// What is retried: a connect that failed, a stream that was refused, or reset before the request went out, and the
/// 503 that a proxy answers for an application that is gone. Not a plain `reset`: what the application may have
/// begun to do, a POST among it, is not done twice.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request,retriable-status-codes";

/// The routes of one service port: its HTTPRoutes in order of precedence, or everything to its own cluster if
/// it has none.
pub fn outbound(name: &str, routes: &[MeshRoute]) -> RouteConfiguration {
    let hostnames: BTreeSet<&str> = routes.iter().flat_map(|r| &r.hostnames).map(String::as_str).collect();
    // Envoy looks into one virtual host only, the most specific: each repeats the routes of wider ones.
    let mut hosts: Vec<VirtualHost> = hostnames
        .into_iter()
        .map(|host| {
            let concerned = routes.iter().filter(|r| concerns(r, Some(host)));
            virtual_host(&format!("{name}|{host}"), host, concerned)
        })
        .collect();
    let any: Vec<&MeshRoute> = routes.iter().filter(|r| concerns(r, None)).collect();
    if routes.is_empty() {
        hosts.push(VirtualHost {
            routes: vec![everything_to(name)],
            ..virtual_host(name, "*", [].into_iter())
        });
    } else if !any.is_empty() {
        hosts.push(virtual_host(name, "*", any.into_iter()));
    }
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts,
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

/// Everything to one cluster, without retries: the next hop is the application itself.
pub(super) fn to_one_cluster(name: &str, cluster: &str) -> RouteConfiguration {
    let mut route = everything_to(cluster);
    if let Some(route::Action::Route(action)) = &mut route.action {
        action.retry_policy = None;
    }
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Whether a route applies to requests for `host` (None: for hosts that no route names).
fn concerns(route: &MeshRoute, host: Option<&str>) -> bool {
    let Some(host) = host else { return route.hostnames.is_empty() };
    route.hostnames.is_empty()
        || route.hostnames.iter().any(|own| {
            own == host
                || own
                    .strip_prefix('*')
                    .is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
        })
}

fn virtual_host<'a>(name: &str, domain: &str, routes: impl Iterator<Item = &'a MeshRoute>) -> VirtualHost {
    VirtualHost {
        name: name.to_owned(),
        domains: vec![domain.to_owned()],
        routes: routes.flat_map(rule_routes).collect(),
        ..Default::default()
    }
}

fn everything_to(cluster: &str) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
            timeout: Some(millis(0)),
            retry_policy: Some(retry_policy(None)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// One Envoy route per alternative match.
fn rule_routes(route: &MeshRoute) -> Vec<Route> {
    let rule = &route.rule;
    let action = action(rule);
    let mut template = Route { name: route.provenance.clone(), action: Some(action), ..Default::default() };
    for filter in &rule.filters {
        match filter {
            HttpRouteFilter::RequestHeaders { set, add, remove } => {
                template.request_headers_to_add.extend(header_options(set, add));
                template.request_headers_to_remove.extend(remove.iter().cloned());
            }
            HttpRouteFilter::ResponseHeaders { set, add, remove } => {
                template.response_headers_to_add.extend(header_options(set, add));
                template.response_headers_to_remove.extend(remove.iter().cloned());
            }
        }
    }
    rule.matches.iter().map(|m| Route { r#match: Some(route_match(m)), ..template.clone() }).collect()
}

fn action(rule: &HttpRouteRule) -> route::Action {
    let weighted: Vec<&BackendRef> = rule.backends.iter().filter(|b| b.weight > 0).collect();
    let cluster_of = |b: &BackendRef| names::outbound(&b.service, b.port);
    let specifier = match weighted.as_slice() {
        // Gateway API: a rule without a usable backend answers 500.
        [] => {
            return route::Action::DirectResponse(DirectResponseAction { status: 500, ..Default::default() });
        }
        [one] => route_action::ClusterSpecifier::Cluster(cluster_of(one)),
        several => route_action::ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|b| ClusterWeight {
                    name: cluster_of(b),
                    weight: number(b.weight),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }),
    };
    route::Action::Route(RouteAction {
        cluster_specifier: Some(specifier),
        cluster_not_found_response_code: route_action::ClusterNotFoundResponseCode::InternalServerError
            as i32,
        // 0 is "no limit" in Envoy, whose own default is 15 s.
        timeout: Some(millis(rule.request_timeout_ms.unwrap_or(0))),
        retry_policy: Some(retry_policy(rule.backend_timeout_ms)),
        ..Default::default()
    })
}

fn retry_policy(per_try_timeout_ms: Option<u64>) -> RetryPolicy {
    RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        retriable_status_codes: vec![503],
        num_retries: number(RETRIES),
        per_try_timeout: per_try_timeout_ms.map(millis),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(to_any(
                &PreviousHostsPredicate {},
            ))),
        }],
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        ..Default::default()
    }
}

fn route_match(wanted: &HttpRouteMatch) -> RouteMatch {
    let path = match &wanted.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        PathMatch::Regex(pattern) => PathSpecifier::SafeRegex(regex(pattern)),
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/') {
            "" => PathSpecifier::Prefix("/".to_owned()),
            elements => PathSpecifier::PathSeparatedPrefix(elements.to_owned()),
        },
    };
    let mut headers: Vec<HeaderMatcher> = wanted.headers.iter().map(header).collect();
    headers.extend(wanted.method.iter().map(|method| HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(exact(method))),
        ..Default::default()
    }));
    RouteMatch {
        path_specifier: Some(path),
        headers,
        query_parameters: wanted.query.iter().map(query).collect(),
        ..Default::default()
    }
}

fn header(wanted: &HeaderMatch) -> HeaderMatcher {
    HeaderMatcher {
        name: wanted.name.clone(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value(&wanted.value))),
        ..Default::default()
    }
}

fn query(wanted: &HeaderMatch) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: wanted.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(value(
            &wanted.value,
        ))),
    }
}

fn value(wanted: &ValueMatch) -> xds_proto::envoy::r#type::matcher::v3::StringMatcher {
    match wanted {
        ValueMatch::Exact(text) => exact(text),
        ValueMatch::Regex(pattern) => matches_regex(pattern),
    }
}

fn header_options<'a>(
    set: &'a [(String, String)],
    add: &'a [(String, String)],
) -> impl Iterator<Item = HeaderValueOption> + 'a {
    let option = |action: HeaderAppendAction| {
        move |(key, value): &(String, String)| HeaderValueOption {
            header: Some(HeaderValue {
                key: key.clone(),
                // Envoy reads a single '%' as the beginning of a command operator.
                value: value.replace('%', "%%"),
                ..Default::default()
            }),
            append_action: action as i32,
            ..Default::default()
        }
    };
    let set = set.iter().map(option(HeaderAppendAction::OverwriteIfExistsOrAdd));
    set.chain(add.iter().map(option(HeaderAppendAction::AppendIfExistsOrAdd)))
}
