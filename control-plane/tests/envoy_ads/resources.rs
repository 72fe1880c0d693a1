//! One listener, one route, one cluster, one endpoint, in Envoy's types.

use control_plane::xds::{Encoded, ResourceSet};
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{
                Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address,
                config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
            listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
            route::v3::{
                Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
                route_action::ClusterSpecifier, route_match::PathSpecifier,
            },
        },
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
            },
        },
    },
    google::protobuf::Duration,
    to_any,
};

/// What the test changes.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub port: u16,
    pub endpoint: u16,
    pub cluster: &'static str,
    pub connect_timeout: i64,
    pub stat_prefix: &'static str,
    /// A virtual host without domains, which Envoy refuses.
    pub bad_route: bool,
    pub listener_ttl: Option<std::time::Duration>,
}

impl Mesh {
    pub fn new(port: u16, endpoint: u16) -> Self {
        Self {
            port,
            endpoint,
            cluster: "first",
            connect_timeout: 5,
            stat_prefix: "web",
            bad_route: false,
            listener_ttl: None,
        }
    }

    pub fn resources(&self, revision: u64) -> ResourceSet {
        let mut set = ResourceSet::new(revision);
        let listener = Encoded::new("web", &self.listener());
        set.insert(match self.listener_ttl {
            Some(ttl) => listener.with_ttl(ttl),
            None => listener,
        });
        set.insert(Encoded::new("web", &self.route()));
        set.insert(Encoded::new(self.cluster, &self.cluster()));
        set.insert(Encoded::new(self.cluster, &self.endpoints()));
        set
    }

    fn listener(&self) -> Listener {
        let manager = HttpConnectionManager {
            stat_prefix: self.stat_prefix.into(),
            route_specifier: Some(RouteSpecifier::Rds(Rds {
                config_source: Some(ads()),
                route_config_name: "web".into(),
            })),
            http_filters: vec![HttpFilter {
                name: "router".into(),
                config_type: Some(http_filter::ConfigType::TypedConfig(to_any(&Router::default()))),
                ..Default::default()
            }],
            ..Default::default()
        };
        Listener {
            name: "web".into(),
            address: Some(loopback(self.port)),
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

    fn route(&self) -> RouteConfiguration {
        let action = RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(self.cluster.into())),
            ..Default::default()
        };
        let route = Route {
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".into())),
                ..Default::default()
            }),
            action: Some(Action::Route(action)),
            ..Default::default()
        };
        RouteConfiguration {
            name: "web".into(),
            virtual_hosts: vec![VirtualHost {
                name: "web".into(),
                domains: if self.bad_route { vec![] } else { vec!["*".into()] },
                routes: vec![route],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn cluster(&self) -> Cluster {
        Cluster {
            name: self.cluster.into(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
            eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
            connect_timeout: Some(Duration { seconds: self.connect_timeout, nanos: 0 }),
            ..Default::default()
        }
    }

    fn endpoints(&self) -> ClusterLoadAssignment {
        let endpoint = Endpoint { address: Some(loopback(self.endpoint)), ..Default::default() };
        ClusterLoadAssignment {
            cluster_name: self.cluster.into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }
}

fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
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
