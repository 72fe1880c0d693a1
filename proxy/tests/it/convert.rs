//! Wire to plain data: what is refused, and by which name.

use proptest::prelude::*;
use proxy::config;
use xds_proto::{
    Message, Name,
    envoy::{
        config::{
            accesslog::v3::AccessLog,
            cluster::v3::{CircuitBreakers, Cluster, OutlierDetection, circuit_breakers::Thresholds},
            core::v3::{HeaderValue, HeaderValueOption},
            endpoint::v3::{ClusterLoadAssignment, cluster_load_assignment::Policy},
            listener::v3::{Listener, filter},
            route::v3::{RouteAction, RouteConfiguration, RouteMatch, route, route_match::PathSpecifier},
        },
        extensions::{
            filters::network::http_connection_manager::v3::HttpConnectionManager,
            transport_sockets::tls::v3::{DownstreamTlsContext, Secret, UpstreamTlsContext, secret},
        },
        r#type::matcher::v3::RegexMatcher,
    },
    google::protobuf::{Any, Duration, UInt32Value},
};

use crate::resources::*;

const AT: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);

fn good_listener() -> Listener {
    let filter = http_filter(&telling_the_peer(hcm(inline(all_to("in", "app")))));
    listener("in", vec![with_tls(chain(filter), &["a.b", "*.c"], &downstream_tls(&["spiffe://a/b"]))])
}

fn good_cluster() -> Cluster {
    over_tls(static_cluster("app", &[AT]), &upstream_tls("a.b", &["spiffe://a/b"]))
}

fn changed<T>(mut value: T, edit: impl FnOnce(&mut T)) -> T {
    edit(&mut value);
    value
}

fn manager(edit: impl FnOnce(&mut HttpConnectionManager)) -> Listener {
    let manager = changed(hcm(inline(all_to("in", "app"))), edit);
    listener("in", vec![chain(http_filter(&manager))])
}

fn server_tls(edit: impl FnOnce(&mut DownstreamTlsContext)) -> Listener {
    let tls = changed(downstream_tls(&["spiffe://a/b"]), edit);
    listener("in", vec![with_tls(chain(tcp_filter("app")), &[], &tls)])
}

fn client_tls(edit: impl FnOnce(&mut UpstreamTlsContext)) -> Cluster {
    over_tls(static_cluster("app", &[AT]), &changed(upstream_tls("a", &[]), edit))
}

fn action(edit: impl FnOnce(&mut RouteAction)) -> RouteConfiguration {
    let action = changed(cluster_action("app"), edit);
    routes("r", vec![(&["*"], vec![to(prefix("/"), action)])])
}

fn matching(edit: impl FnOnce(&mut RouteMatch)) -> RouteConfiguration {
    routes("r", vec![(&["*"], vec![to(changed(prefix("/"), edit), cluster_action("app"))])])
}

#[test]
fn a_listener_is_refused_by_the_path_of_its_first_wrong_field() {
    assert!(config::listener(good_listener()).is_ok());
    let in_hcm = "filter_chains[0].filters[0].typed_config";
    let in_tls = "filter_chains[0].transport_socket.typed_config";
    let cases: Vec<(Listener, String)> = vec![
        (changed(good_listener(), |l| l.address = None), "address".into()),
        (changed(good_listener(), |l| l.access_log.push(AccessLog::default())), "access_log".into()),
        (changed(good_listener(), |l| l.filter_chains.clear()), "filter_chains".into()),
        (changed(good_listener(), |l| l.enable_mptcp = true), "enable_mptcp".into()),
        (
            changed(good_listener(), |l| {
                l.connection_balance_config = Some(Default::default());
            }),
            "connection_balance_config".into(),
        ),
        (
            changed(good_listener(), |l| l.filter_chains.push(l.filter_chains[0].clone())),
            "filter_chains[1].filter_chain_match".into(),
        ),
        (
            changed(good_listener(), |l| {
                let any = Any { type_url: "type.googleapis.com/envoy.x.Y".into(), value: vec![] };
                l.filter_chains[0].filters[0].config_type = Some(filter::ConfigType::TypedConfig(any));
            }),
            in_hcm.into(),
        ),
        (
            changed(good_listener(), |l| {
                let any = Any { type_url: HttpConnectionManager::type_url(), value: vec![0xFF; 9] };
                l.filter_chains[0].filters[0].config_type = Some(filter::ConfigType::TypedConfig(any));
            }),
            in_hcm.into(),
        ),
        (manager(|m| m.http_filters.clear()), format!("{in_hcm}.http_filters")),
        (manager(|m| m.codec_type = 3), format!("{in_hcm}.codec_type")),
        (manager(|m| m.forward_client_cert_details = 4), format!("{in_hcm}.forward_client_cert_details")),
        (
            manager(|m| m.path_with_escaped_slashes_action = 5),
            format!("{in_hcm}.path_with_escaped_slashes_action"),
        ),
        (
            manager(|m| m.upgrade_configs.push(Default::default())),
            format!("{in_hcm}.upgrade_configs[0].upgrade_type"),
        ),
        (
            manager(|m| m.stream_idle_timeout = Some(Duration { seconds: -1, nanos: 0 })),
            format!("{in_hcm}.stream_idle_timeout"),
        ),
        (
            manager(|m| m.route_specifier = Some(inline(routes("r", vec![(&["a", "*b*"], vec![])])))),
            format!("{in_hcm}.route_config.virtual_hosts[0].domains[1]"),
        ),
        (server_tls(|t| t.common_tls_context = None), format!("{in_tls}.common_tls_context")),
        (
            server_tls(|t| {
                let common = t.common_tls_context.as_mut().unwrap();
                common.tls_params = Some(Default::default());
                common.tls_params.as_mut().unwrap().tls_maximum_protocol_version = 3;
            }),
            format!("{in_tls}.common_tls_context.tls_params.tls_maximum_protocol_version"),
        ),
        (
            server_tls(|t| {
                let common = t.common_tls_context.as_mut().unwrap();
                common.tls_params = Some(Default::default());
                common.tls_params.as_mut().unwrap().tls_minimum_protocol_version = 3;
            }),
            format!("{in_tls}.common_tls_context.tls_params.tls_minimum_protocol_version"),
        ),
        (
            server_tls(|t| t.common_tls_context.as_mut().unwrap().validation_context_type = None),
            format!("{in_tls}.common_tls_context.combined_validation_context"),
        ),
    ];
    for (wire, path) in cases {
        assert_eq!(config::listener(wire).unwrap_err().path, path);
    }
}

#[test]
fn a_cluster_is_refused_by_the_path_of_its_first_wrong_field() {
    assert!(config::cluster(good_cluster()).is_ok());
    let options = "typed_extension_protocol_options";
    let in_tls = "transport_socket.typed_config";
    let cases: Vec<(Cluster, String)> = vec![
        (changed(good_cluster(), |c| c.name.clear()), "name".into()),
        (changed(good_cluster(), |c| c.cluster_discovery_type = None), "type".into()),
        (changed(good_cluster(), |c| c.lb_policy = 6), "lb_policy".into()),
        (
            changed(good_cluster(), |c| c.connect_timeout = Some(Duration::default())),
            "connect_timeout".into(),
        ),
        (changed(eds_cluster("a"), |c| c.eds_cluster_config = None), "eds_cluster_config".into()),
        (changed(good_cluster(), |c| c.transport_socket = None), options.into()),
        (
            changed(good_cluster(), |c| {
                c.typed_extension_protocol_options.insert("other".into(), Any::default());
            }),
            format!("{options}[\"other\"]"),
        ),
        (
            changed(good_cluster(), |c| {
                let thresholds = Thresholds {
                    max_connection_pools: Some(UInt32Value { value: 1 }),
                    ..Thresholds::default()
                };
                c.circuit_breakers =
                    Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() });
            }),
            "circuit_breakers.thresholds[0].max_connection_pools".into(),
        ),
        (
            changed(good_cluster(), |c| {
                let thresholds = Thresholds { priority: 2, ..Thresholds::default() };
                c.circuit_breakers =
                    Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() });
            }),
            "circuit_breakers.thresholds[0].priority".into(),
        ),
        (
            changed(good_cluster(), |c| {
                let thresholds =
                    Thresholds { max_requests: Some(UInt32Value { value: 1 }), ..Thresholds::default() };
                c.circuit_breakers = Some(CircuitBreakers {
                    per_host_thresholds: vec![thresholds],
                    ..CircuitBreakers::default()
                });
            }),
            "circuit_breakers.per_host_thresholds[0].max_requests".into(),
        ),
        (
            changed(good_cluster(), |c| {
                c.outlier_detection = Some(OutlierDetection {
                    enforcing_success_rate: Some(UInt32Value { value: 101 }),
                    ..OutlierDetection::default()
                });
            }),
            "outlier_detection.enforcing_success_rate".into(),
        ),
        (client_tls(|t| t.sni = "not a name".into()), format!("{in_tls}.sni")),
        (
            client_tls(|t| t.common_tls_context.as_mut().unwrap().validation_context_type = None),
            format!("{in_tls}.common_tls_context.combined_validation_context"),
        ),
        (
            over_tls(static_cluster("app", &[AT]), &upstream_tls("a", &["spiffe://a/b", "https://a"])),
            format!(
                "{in_tls}.common_tls_context.combined_validation_context.default_validation_context\
                 .match_typed_subject_alt_names[1].matcher.exact"
            ),
        ),
    ];
    for (wire, path) in cases {
        assert_eq!(config::cluster(wire).unwrap_err().path, path);
    }
}

#[test]
fn routes_and_endpoints_are_refused_by_the_path_of_their_first_wrong_field() {
    let in_route = "virtual_hosts[0].routes[0].route";
    let in_match = "virtual_hosts[0].routes[0].match";
    let header = |value: &str| HeaderValueOption {
        header: Some(HeaderValue { key: "x-a".into(), value: value.into(), ..HeaderValue::default() }),
        ..HeaderValueOption::default()
    };
    let cases: Vec<(RouteConfiguration, String)> = vec![
        (action(|a| a.prefix_rewrite = "x".into()), format!("{in_route}.prefix_rewrite")),
        (action(|a| a.cluster_specifier = None), format!("{in_route}.cluster")),
        (action(|a| a.regex_rewrite = Some(Default::default())), format!("{in_route}.regex_rewrite.pattern")),
        (
            action(|a| a.request_mirror_policies.push(Default::default())),
            format!("{in_route}.request_mirror_policies[0].cluster"),
        ),
        (
            matching(|m| {
                let regex = RegexMatcher { regex: "(".into(), ..RegexMatcher::default() };
                m.path_specifier = Some(PathSpecifier::SafeRegex(regex));
            }),
            format!("{in_match}.safe_regex.regex"),
        ),
        (matching(|m| m.path_specifier = None), format!("{in_match}.path_specifier")),
        (
            matching(|m| m.runtime_fraction = Some(Default::default())),
            format!("{in_match}.runtime_fraction.default_value"),
        ),
        (
            changed(all_to("r", "app"), |r| r.request_headers_to_add = vec![header("%NO_SUCH_OPERATOR%")]),
            "request_headers_to_add[0].header.value".into(),
        ),
        (
            changed(all_to("r", "app"), |r| r.request_headers_to_remove = vec!["Host".into()]),
            "request_headers_to_remove[0]".into(),
        ),
        (
            changed(all_to("r", "app"), |r| r.virtual_hosts[0].routes[0].action = None),
            "virtual_hosts[0].routes[0].action".into(),
        ),
    ];
    for (wire, path) in cases {
        assert_eq!(config::routes(wire).unwrap_err().path, path);
    }
    let escaped = changed(all_to("r", "app"), |r| r.request_headers_to_add = vec![header("100%%")]);
    let table = config::routes(escaped).unwrap();
    let dumped = serde_json::to_string(&table).unwrap();
    assert!(dumped.contains("\"value\":\"100%\""), "{dumped}");

    let assignments: Vec<(ClusterLoadAssignment, &str)> = vec![
        (
            changed(assignment("a", &[(AT, 0)]), |a| a.endpoints[0].lb_endpoints[0].host_identifier = None),
            "endpoints[0].lb_endpoints[0].endpoint",
        ),
        (
            changed(assignment("a", &[(AT, 0)]), |a| a.endpoints[0].lb_endpoints[0].health_status = 99),
            "endpoints[0].lb_endpoints[0].health_status",
        ),
        (assignment("a", &[(AT, 129)]), "endpoints[0].priority"),
        (
            assignment("a", &[(LOCAL, 0)]),
            "endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value",
        ),
        (
            changed(assignment("a", &[]), |a| {
                a.policy = Some(Policy { weighted_priority_health: true, ..Policy::default() });
            }),
            "policy.weighted_priority_health",
        ),
        (overprovisioned(0), "policy.overprovisioning_factor"),
    ];
    for (wire, path) in assignments {
        assert_eq!(config::assignment(wire).unwrap_err().path, path);
    }
    assert_eq!(config::assignment(overprovisioned(50)).unwrap().overprovisioning, 50);
}

fn overprovisioned(percent: u32) -> ClusterLoadAssignment {
    let policy =
        Policy { overprovisioning_factor: Some(UInt32Value { value: percent }), ..Policy::default() };
    changed(assignment("a", &[(AT, 0)]), |a| a.policy = Some(policy))
}

#[test]
fn the_words_about_a_bad_key_do_not_contain_it() {
    let good = Ca::new("a").identity("spiffe://a/b");
    assert!(config::secret(good.clone()).is_ok());
    let bad = changed(good, |s| {
        let Some(secret::Type::TlsCertificate(certificate)) = &mut s.r#type else { unreachable!() };
        certificate.private_key = certificate.certificate_chain.clone();
    });
    let error = config::secret(bad).unwrap_err();
    assert_eq!(error.to_string(), "tls_certificate.private_key: cannot be decoded: no private key in PEM");
}

#[test]
fn roots_without_the_spiffe_validator_must_name_their_trust_domain() {
    let west = Ca::new("west.example");
    assert!(config::secret(roots(&[&west])).is_ok());
    let error = config::secret(west.plain_roots()).unwrap_err();
    assert!(error.to_string().contains("give the roots by the SPIFFE validator instead"), "{error}");
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let error = config::secret(trusted_ca(nonsense.to_owned())).unwrap_err();
    assert_eq!(error.path, "validation_context.trusted_ca", "{error}");
}

#[test]
fn a_route_with_an_unsupported_action_is_refused() {
    let wire = changed(all_to("r", "app"), |r| {
        r.virtual_hosts[0].routes[0].action = Some(route::Action::NonForwardingAction(Default::default()));
    });
    assert_eq!(config::routes(wire).unwrap_err().path, "virtual_hosts[0].routes[0].non_forwarding_action");
}

fn damaged<M: Message + Default>(good: &M, at: usize, value: u8) -> Option<M> {
    let mut bytes = good.encode_to_vec();
    let at = at % bytes.len();
    bytes[at] = value;
    M::decode(bytes.as_slice()).ok()
}

proptest! {
    #[test]
    fn damaged_resources_are_taken_or_refused_but_never_panic(at in 0_usize..4096, value: u8) {
        if let Some(wire) = damaged(&good_listener(), at, value) {
            let _ = config::listener(wire);
        }
        if let Some(wire) = damaged(&good_cluster(), at, value) {
            let _ = config::cluster(wire);
        }
        if let Some(wire) = damaged(&all_to("r", "app"), at, value) {
            let _ = config::routes(wire);
        }
        if let Some(wire) = damaged(&assignment("a", &[(AT, 1)]), at, value) {
            let _ = config::assignment(wire);
        }
        if let Some(wire) = damaged::<Secret>(&roots(&[]), at, value) {
            let _ = config::secret(wire);
        }
    }
}
