//! Where a proxy accepts connections.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mesh_model::{
    resource::AppProtocol,
    view::{Access, Passthrough},
};
use xds_proto::{
    Name,
    envoy::{
        config::{
            core::v3::TrafficDirection,
            listener::v3::{
                AdditionalAddress, Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter,
                listener_filter,
            },
            route::v3::RouteConfiguration,
        },
        extensions::filters::{
            http::router::v3::Router,
            listener::tls_inspector::v3::TlsInspector,
            network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds, http_connection_manager as hcm, http_filter,
                },
                tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
            },
        },
    },
    to_any,
};

use super::{
    rbac, route, tls,
    wire::{address, ads, loopback, millis},
};

/// Longest that a client may take for its ClientHello.
const INSPECT_TIMEOUT_MS: u64 = 5_000;

/// The listener of one service port in the namespaces of its callers. The kernel rewrites `connect()` to it.
pub fn outbound(name: &str, proxy_port: u16, protocol: AppProtocol) -> Listener {
    Listener {
        name: name.to_owned(),
        address: Some(loopback(proxy_port)),
        filter_chains: vec![FilterChain { filters: vec![to_service(name, protocol)], ..Default::default() }],
        traffic_direction: TrafficDirection::Outbound as i32,
        ..Default::default()
    }
}

/// What serves the callers of a service port: by the routes, or to the cluster, of its name.
pub(super) fn to_service(name: &str, protocol: AppProtocol) -> Filter {
    match protocol {
        AppProtocol::Tcp => tcp_proxy(name, name),
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            let mut manager = http_manager(name);
            // The application must not speak for anybody: what it says of client certificates is dropped.
            manager.forward_client_cert_details = hcm::ForwardClientCertDetails::Sanitize as i32;
            manager.route_specifier = Some(hcm::RouteSpecifier::Rds(Rds {
                config_source: Some(ads()),
                route_config_name: name.to_owned(),
            }));
            http_filter_of(&manager)
        }
    }
}

/// What serves the callers of a service port, or with `table` whoever comes, as far as `judge` lets their requests through.
pub(super) fn read(name: &str, judge: HttpFilter, table: Option<RouteConfiguration>) -> Filter {
    let mut manager = http_manager(name);
    manager.http_filters.insert(0, judge);
    // Many applications take `//admin` for `/admin`.
    manager.merge_slashes = true;
    manager.forward_client_cert_details = hcm::ForwardClientCertDetails::Sanitize as i32;
    manager.route_specifier = Some(match table {
        Some(table) => hcm::RouteSpecifier::RouteConfig(table),
        None => {
            hcm::RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: name.to_owned() })
        }
    });
    http_filter_of(&manager)
}

/// The listener that serves an application's port in its stead: mesh mTLS only, for the SNIs of the services
/// that have this workload as an endpoint on that port, and for whom its policies let in.
pub fn inbound(
    name: &str,
    at: SocketAddr,
    also: &[SocketAddr],
    server_names: &[String],
    protocol: AppProtocol,
    access: Option<&Access>,
) -> Listener {
    let (filter, alpn): (_, &[&str]) = match protocol {
        AppProtocol::Tcp => (tcp_proxy(name, name), &[]),
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => {
            let mut manager = http_manager(name);
            manager.forward_client_cert_details = hcm::ForwardClientCertDetails::SanitizeSet as i32;
            manager.set_current_client_cert_details =
                Some(hcm::SetCurrentClientCertDetails { uri: true, ..Default::default() });
            manager.route_specifier =
                Some(hcm::RouteSpecifier::RouteConfig(route::to_one_cluster(name, name)));
            (http_filter_of(&manager), &["h2", "http/1.1"])
        }
    };
    Listener {
        name: name.to_owned(),
        address: Some(address(at)),
        additional_addresses: also
            .iter()
            .map(|at| AdditionalAddress { address: Some(address(*at)), ..Default::default() })
            .collect(),
        listener_filters: vec![tls_inspector()],
        listener_filters_timeout: Some(millis(INSPECT_TIMEOUT_MS)),
        filter_chains: vec![FilterChain {
            name: name.to_owned(),
            filter_chain_match: Some(by_sni(server_names)),
            filters: access.map(rbac::filters).into_iter().flatten().chain([filter]).collect(),
            transport_socket: Some(tls::downstream(alpn)),
            ..Default::default()
        }],
        traffic_direction: TrafficDirection::Inbound as i32,
        ..Default::default()
    }
}

/// Whether a port is routed by request, and not by connection.
pub fn is_http(protocol: AppProtocol) -> bool {
    match protocol {
        AppProtocol::Http | AppProtocol::Http2 | AppProtocol::Grpc => true,
        AppProtocol::Tcp => false,
    }
}

/// The east-west gateway: reads the SNI and forwards without terminating. None without anything to forward to,
/// because Envoy refuses a listener without filter chains.
pub fn gateway(name: &str, port: u16, passthroughs: &[Passthrough<'_>]) -> Option<Listener> {
    if passthroughs.is_empty() {
        return None;
    }
    let filter_chains = passthroughs
        .iter()
        .map(|p| FilterChain {
            name: p.cluster.clone(),
            filter_chain_match: Some(by_sni(&[p.sni.to_owned()])),
            filters: vec![tcp_proxy(&p.cluster, &p.cluster)],
            ..Default::default()
        })
        .collect();
    Some(Listener {
        name: name.to_owned(),
        address: Some(address(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))),
        listener_filters: vec![tls_inspector()],
        listener_filters_timeout: Some(millis(INSPECT_TIMEOUT_MS)),
        filter_chains,
        traffic_direction: TrafficDirection::Inbound as i32,
        ..Default::default()
    })
}

fn http_manager(stat_prefix: &str) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        codec_type: hcm::CodecType::Auto as i32,
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(to_any(&Router::default()))),
            ..Default::default()
        }],
        // Routes that set no timeout mean none; a stream may be idle for long (gRPC watches).
        stream_idle_timeout: Some(millis(3_600_000)),
        // What rules and routes judge is what the application sees.
        normalize_path: Some(xds_proto::google::protobuf::BoolValue { value: true }),
        upgrade_configs: vec![hcm::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn http_filter_of(manager: &HttpConnectionManager) -> Filter {
    network_filter("envoy.filters.network.http_connection_manager", manager)
}

fn tcp_proxy(stat_prefix: &str, cluster: &str) -> Filter {
    let proxy = TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        max_connect_attempts: super::wire::number(3),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    network_filter("envoy.filters.network.tcp_proxy", &proxy)
}

fn network_filter<M: Name>(name: &str, config: &M) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(to_any(config))) }
}

fn tls_inspector() -> ListenerFilter {
    ListenerFilter {
        name: "envoy.filters.listener.tls_inspector".to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(to_any(&TlsInspector::default()))),
        ..Default::default()
    }
}

fn by_sni(server_names: &[String]) -> FilterChainMatch {
    FilterChainMatch {
        server_names: server_names.to_vec(),
        transport_protocol: "tls".to_owned(),
        ..Default::default()
    }
}
