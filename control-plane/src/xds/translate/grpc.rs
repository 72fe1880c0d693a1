//! The same mesh for gRPC's own xDS clients: what they take of Envoy's types (gRFC A27, A28, A29), and nothing that
//! one of them refuses. Tried with C-core and Node: see `tests/grpc_clients`.

use mesh_model::{compile::MeshRoute, identity::SpiffeId};
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, circuit_breakers,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
            },
            core::v3::TransportSocket,
            listener::v3::{ApiListener, Listener},
            route::v3::{
                Route, RouteConfiguration, header_matcher::HeaderMatchSpecifier, route::Action,
                route_action::MaxStreamDuration, route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                http::router::v3::Router,
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                    http_filter,
                },
            },
            transport_sockets::tls::v3::{
                CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
                UpstreamTlsContext,
                common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
            },
        },
        r#type::matcher::v3::string_matcher::MatchPattern,
    },
    to_any,
};

use super::{
    cluster::Encryption,
    route, tls,
    wire::{ads, exact, number, transport_socket},
};

/// The instance of the bootstrap's `certificate_providers` that holds the workload's certificate and the roots.
pub const CERTIFICATE_PROVIDER: &str = "default";

/// What `xds:///<name>` resolves to.
pub fn listener(name: &str, route: &str) -> Listener {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: route.to_owned(),
        })),
        // An empty list is refused.
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(to_any(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(to_any(&manager)) }),
        ..Default::default()
    }
}

/// The routes that a proxy has, in the words that gRPC knows. What can't match a gRPC call is left out; changes of
/// headers are not in its vocabulary; it retries by itself what no server has seen.
pub fn routes(name: &str, port: u16, routes: &[MeshRoute]) -> RouteConfiguration {
    let mut config = route::outbound(name, routes);
    config.ignore_port_in_host_matching = false;
    for host in &mut config.virtual_hosts {
        // Its authority carries the port, and it compares all of it.
        let with_port = host.domains.iter().filter(|domain| *domain != "*").map(|d| format!("{d}:{port}"));
        let with_port: Vec<String> = with_port.collect();
        host.domains.extend(with_port);
        host.routes = std::mem::take(&mut host.routes).into_iter().flat_map(route_of).collect();
    }
    config
}

/// Zero, one or two routes: gRPC knows no prefix of whole path elements.
fn route_of(mut route: Route) -> Vec<Route> {
    route.request_headers_to_add.clear();
    route.request_headers_to_remove.clear();
    route.response_headers_to_add.clear();
    route.response_headers_to_remove.clear();
    if let Some(Action::Route(action)) = &mut route.action {
        action.retry_policy = None;
        let limit = action.timeout.take().filter(|t| t.seconds != 0 || t.nanos != 0);
        action.max_stream_duration =
            limit.map(|t| MaxStreamDuration { max_stream_duration: Some(t), ..Default::default() });
    }
    let Some(wanted) = &mut route.r#match else { return Vec::new() };
    if !wanted.query_parameters.is_empty() {
        return Vec::new();
    }
    // Every call is a POST.
    let posts =
        wanted.headers.iter().filter(|h| h.name == ":method").all(|h| match &h.header_match_specifier {
            Some(HeaderMatchSpecifier::StringMatch(text)) => {
                matches!(&text.match_pattern, Some(MatchPattern::Exact(method)) if method == "POST")
            }
            _ => false,
        });
    if !posts {
        return Vec::new();
    }
    wanted.headers.retain(|h| h.name != ":method");
    let Some(PathSpecifier::PathSeparatedPrefix(prefix)) =
        wanted.path_specifier.take_if(|path| matches!(path, PathSpecifier::PathSeparatedPrefix(_)))
    else {
        return vec![route];
    };
    let with = |path: PathSpecifier| {
        let mut route = route.clone();
        if let Some(wanted) = &mut route.r#match {
            wanted.path_specifier = Some(path);
        }
        route
    };
    vec![with(PathSpecifier::Prefix(format!("{prefix}/"))), with(PathSpecifier::Path(prefix))]
}

/// The cluster of one service port.
pub fn cluster(name: &str, sni: &str, allowed: &[SpiffeId], encryption: Encryption) -> Cluster {
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), service_name: name.to_owned() }),
        lb_policy: LbPolicy::RoundRobin as i32,
        // Without it gRPC fails the 1,025th concurrent call (gRFC A32).
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![circuit_breakers::Thresholds {
                max_requests: number(1 << 20),
                ..Default::default()
            }],
            ..Default::default()
        }),
        transport_socket: match encryption {
            Encryption::Plain => None,
            Encryption::Mesh | Encryption::Mixed => Some(upstream(sni, allowed)),
        },
        ..Default::default()
    }
}

/// Certificates come from files that the bootstrap names, not by SDS. A channel with insecure credentials ignores
/// this, and is then refused by the other end.
#[allow(deprecated)]
fn upstream(sni: &str, allowed: &[SpiffeId]) -> TransportSocket {
    let instance = |certificate: &str| CertificateProviderPluginInstance {
        instance_name: CERTIFICATE_PROVIDER.to_owned(),
        certificate_name: certificate.to_owned(),
    };
    let context = UpstreamTlsContext {
        sni: sni.to_owned(),
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: Some(instance(tls::OWN_CERTIFICATE)),
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(CertificateValidationContext {
                        ca_certificate_provider_instance: Some(instance(tls::TRUST_BUNDLES)),
                        // gRPC reads the old list, and refuses no certificate by the new one.
                        match_subject_alt_names: tls::names(allowed).iter().map(|name| exact(name)).collect(),
                        ..Default::default()
                    }),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    transport_socket(tls::TLS, &context)
}

#[cfg(test)]
mod tests {
    use mesh_model::resource::{
        BackendRef, HeaderMatch, HttpRouteMatch, HttpRouteRule, NamespacedName, PathMatch, ValueMatch,
    };

    use super::*;

    fn rule(wanted: HttpRouteMatch) -> MeshRoute {
        MeshRoute {
            provenance: "httproute/shop/pay#rules[0]".to_owned(),
            hostnames: vec!["pay.example".to_owned()],
            rule: HttpRouteRule {
                matches: vec![wanted],
                filters: Vec::new(),
                backends: vec![BackendRef {
                    service: NamespacedName::new("shop", "pay"),
                    port: 80,
                    weight: 1,
                }],
                request_timeout_ms: Some(1_500),
                backend_timeout_ms: None,
            },
        }
    }

    fn wanted(path: PathMatch, method: Option<&str>, query: &[&str]) -> HttpRouteMatch {
        HttpRouteMatch {
            path,
            headers: Vec::new(),
            query: query
                .iter()
                .map(|name| HeaderMatch {
                    name: (*name).to_owned(),
                    value: ValueMatch::Exact("1".to_owned()),
                })
                .collect(),
            method: method.map(str::to_owned),
        }
    }

    #[test]
    fn a_prefix_of_elements_becomes_a_prefix_and_a_path_and_what_no_call_can_match_is_left_out() {
        let prefix = || PathMatch::Prefix("/shop.Cards".to_owned());
        let all = [
            rule(wanted(prefix(), Some("POST"), &[])),
            rule(wanted(prefix(), Some("GET"), &[])),
            rule(wanted(prefix(), None, &["page"])),
        ];
        let config = routes("outbound|80|pay.shop", 80, &all);
        let [host] = config.virtual_hosts.as_slice() else { panic!("{config:?}") };
        assert_eq!(host.domains, ["pay.example", "pay.example:80"]);
        let paths: Vec<_> =
            host.routes.iter().map(|r| r.r#match.clone().unwrap().path_specifier.unwrap()).collect();
        assert_eq!(
            paths,
            [PathSpecifier::Prefix("/shop.Cards/".into()), PathSpecifier::Path("/shop.Cards".into())]
        );
        assert!(host.routes.iter().all(|r| r.r#match.as_ref().unwrap().headers.is_empty()));
        let Some(Action::Route(action)) = &host.routes[0].action else { panic!("{host:?}") };
        let limit = action.max_stream_duration.unwrap().max_stream_duration.unwrap();
        assert_eq!((limit.seconds, limit.nanos), (1, 500_000_000));
        assert_eq!((&action.retry_policy, &action.timeout), (&None, &None));
    }

    #[test]
    fn nobody_is_accepted_where_nobody_is_known() {
        let socket = cluster("c", "80.pay.shop.svc.mesh.local", &[], Encryption::Mesh).transport_socket;
        assert!(format!("{socket:?}").contains("UpstreamTlsContext"));
        assert_eq!(tls::names(&[]), ["spiffe://nobody.invalid/nobody"]);
    }
}
