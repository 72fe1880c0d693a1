//! A listener with the on-demand filter, and what it may ask for.

use control_plane::xds::{
    Encoded, ResourceSet,
    kinds::{LISTENER, ROUTE},
};
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService,
                Locality, SocketAddress, address,
                api_config_source::ApiType,
                config_source::ConfigSourceSpecifier,
                grpc_service::{EnvoyGrpc, TargetSpecifier},
                socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, Vhds, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::filters::{
            http::{
                on_demand::v3::{OnDemand, OnDemandCds},
                router::v3::Router,
            },
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
            },
        },
    },
    google::protobuf::Duration,
    to_any,
};

/// Where routes come from, and where they go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    /// Virtual hosts by VHDS, all to `near`.
    OnDemand,
    /// One virtual host for everything, to the cluster that the request names.
    ByHeader,
}

/// A listener, its route configuration, and the cluster `near`.
pub fn mesh(revision: u64, port: u16, endpoint: u16, routes: Routes) -> ResourceSet {
    let mut set = ResourceSet::new(revision);
    set.insert(Encoded::new("web", &listener(port, routes)));
    let mut config = RouteConfiguration { name: "web".into(), ..Default::default() };
    match routes {
        Routes::OnDemand => config.vhds = Some(Vhds { config_source: Some(own_stream()) }),
        Routes::ByHeader => {
            config.virtual_hosts =
                vec![virtual_host("all", &["*"], ClusterSpecifier::ClusterHeader("x-cluster".into()))];
        }
    }
    set.insert(Encoded::new("web", &config));
    set.insert(cluster("near"));
    set.insert(endpoints("near", endpoint));
    set
}

/// Puts a listener in front of a view: it sends a request to the cluster that it names.
pub fn front(set: &mut ResourceSet, port: u16) {
    let mesh = mesh(0, port, 0, Routes::ByHeader);
    for type_url in [LISTENER, ROUTE] {
        mesh.of(type_url)
            .into_iter()
            .flat_map(|all| all.values())
            .for_each(|front| set.insert(front.clone()));
    }
}

/// A virtual host for VHDS, to `near`.
pub fn host(name: &str, domains: &[&str]) -> Encoded {
    Encoded::new(name, &virtual_host(name, domains, ClusterSpecifier::Cluster("near".into())))
}

fn virtual_host(name: &str, domains: &[&str], cluster: ClusterSpecifier) -> VirtualHost {
    let action = RouteAction { cluster_specifier: Some(cluster), ..Default::default() };
    let path_specifier = Some(PathSpecifier::Prefix("/".into()));
    VirtualHost {
        name: name.into(),
        domains: domains.iter().map(ToString::to_string).collect(),
        routes: vec![Route {
            r#match: Some(RouteMatch { path_specifier, ..Default::default() }),
            action: Some(Action::Route(action)),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn filter<M: Name>(name: &str, config: &M) -> HttpFilter {
    HttpFilter {
        name: name.into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(to_any(config))),
        ..Default::default()
    }
}

fn listener(port: u16, routes: Routes) -> Listener {
    let clusters = OnDemandCds {
        source: Some(ads()),
        timeout: Some(Duration { seconds: 15, nanos: 0 }),
        ..Default::default()
    };
    let on_demand = OnDemand { odcds: (routes == Routes::ByHeader).then_some(clusters) };
    let manager = HttpConnectionManager {
        stat_prefix: "web".into(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: "web".into(),
        })),
        http_filters: vec![
            filter("envoy.filters.http.on_demand", &on_demand),
            filter("router", &Router::default()),
        ],
        ..Default::default()
    };
    Listener {
        name: "web".into(),
        address: Some(loopback(port)),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "http".into(),
                config_type: Some(ConfigType::TypedConfig(to_any(&manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A cluster with endpoints by EDS.
pub fn cluster(name: &str) -> Encoded {
    let cluster = Cluster {
        name: name.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
        connect_timeout: Some(Duration { seconds: 5, nanos: 0 }),
        ..Default::default()
    };
    Encoded::new(name, &cluster)
}

/// One endpoint, in `eu/a`.
pub fn endpoints(cluster: &str, port: u16) -> Encoded {
    let endpoint = Endpoint { address: Some(loopback(port)), ..Default::default() };
    let assignment = ClusterLoadAssignment {
        cluster_name: cluster.into(),
        endpoints: vec![LocalityLbEndpoints {
            locality: Some(Locality { region: "eu".into(), zone: "a".into(), ..Default::default() }),
            lb_endpoints: vec![LbEndpoint {
                host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    Encoded::new(cluster, &assignment)
}

fn ads() -> ConfigSource {
    source(ConfigSourceSpecifier::Ads(AggregatedConfigSource {}))
}

/// A stream of its own, to the service of one type: Envoy has VHDS no other way.
fn own_stream() -> ConfigSource {
    let service = EnvoyGrpc { cluster_name: "isthmus_agent".into(), ..Default::default() };
    source(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
        api_type: ApiType::DeltaGrpc.into(),
        transport_api_version: ApiVersion::V3.into(),
        grpc_services: vec![GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(service)),
            ..Default::default()
        }],
        set_node_on_first_message_only: true,
        ..Default::default()
    }))
}

fn source(specifier: ConfigSourceSpecifier) -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(specifier),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

fn loopback(port: u16) -> Address {
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}
