//! Wire to plain data: Envoy's messages in, types that can only hold what this proxy does out.
//!
//! # What is supported
//! Everything that is not listed here is refused with its field path when set; nothing is ignored in silence.
//!
//! | message | fields |
//! | --- | --- |
//! | `Listener` | `name`, `address` and `additional_addresses` (`socket_address`), `filter_chains`, `default_filter_chain`, `listener_filters` (`original_dst`, `proxy_protocol`, `tls_inspector`, `http_inspector`, `original_src`), `listener_filters_timeout`, `continue_on_listener_filters_timeout`, `tcp_backlog_size`, `drain_type` DEFAULT, `bind_to_port`, `use_original_dst`, `transparent`, `freebind`, `socket_options` (see the head of `socket.rs`), `tcp_keepalive`, `per_connection_buffer_limit_bytes` |
//! | `FilterChain` | `filter_chain_match` (all but `address_suffix`), filters (`rbac` any number of times, then one other), `transport_socket`, `transport_socket_connect_timeout`, `name` |
//! | network filters | `rbac` (see the head of `rbac.rs`), `http_connection_manager`, `tcp_proxy` |
//! | HTTP filters | any number in any order, each with `typed_per_filter_config` (see `filters/`), and `router` as the last one |
//! | transport sockets | `tls` (downstream, upstream), `raw_buffer` |
//! | TLS | certificates and validation by SDS, SPIFFE validator or `trusted_ca`, URI SAN matchers, ALPN, TLS 1.3 |
//! | `RouteConfiguration` | see the heads of `route.rs` and `route_action.rs` |
//! | `Cluster` | EDS, STATIC and ORIGINAL_DST; ROUND_ROBIN, LEAST_REQUEST, RANDOM; `circuit_breakers`, `outlier_detection` (consecutive kinds), `HttpProtocolOptions`; see the head of `cluster.rs` |
//! | `ClusterLoadAssignment` | priorities, weights, health, localities, `policy.overprovisioning_factor` |
//! | `Secret` | `tls_certificate`, `validation_context`, inline only |
//!
//! Accepted without effect, because they change nothing that a peer can see: `stat_prefix`, `alt_stat_name`, `metadata`,
//! `traffic_direction`, `enable_reuse_port`, `cleanup_interval`, `dns_lookup_family`, `validate_clusters`, `decorator`,
//! `initial_fetch_timeout`, `suppress_envoy_headers`, `wait_for_warm_on_init`, `track_cluster_stats`.

mod balancing;
mod breakers;
mod chain;
mod chain_match;
mod cluster;
mod edge;
mod endpoint;
mod error;
mod filters;
mod hcm;
mod header_ops;
mod health_check;
mod lb_extension;
mod limits;
mod listener;
mod listener_filter;
mod matcher;
mod metadata;
mod metadata_match;
mod outlier;
mod protocol;
mod rbac;
mod route;
mod route_action;
mod secret;
mod socket;
mod tcp_proxy;
mod tls;
mod upstream;
mod upstream_choice;
mod upstream_socket;
mod wire;

pub use balancing::{Balancing, Localities};
pub use breakers::{Breakers, Priority, PriorityLimits, Retries};
pub use chain::{FilterChain, NetworkFilter};
pub use chain_match::{ChainMatch, ServerName, SourceType, Transport};
pub use cluster::{Cluster, Discovery};
pub use edge::{Edge, EscapedSlashes, StripPort, Underscores};
pub use error::{ConfigError, Path, Problem};
pub use filters::{FilterKind, HttpFilter, JwtRoute, RouteFilter, RouteFilters, RouteSettings};
pub use hcm::{Codec, H2Settings, HttpManager, RouteSource, ServerHeader, Times};
pub use health_check::{Checker, GrpcCheck, HealthCheck, HttpCheck};
pub use listener::Listener;
pub use listener_filter::{ListenerFilters, OriginalSource, ProxyHeader};
pub use matcher::{FullRegex, Substitution, Text, TextMatch};
pub use secret::{CertificateSecret, Secret, ValidationSecret};
pub use socket::{SocketOption, SocketOptions};
pub use tcp_proxy::TcpProxy;
pub use tls::{DownstreamTls, PeerMatch, SecretRef, TlsCommon, UpstreamTls, Versions};
pub use upstream::UpstreamProtocol;
pub use upstream_socket::{Keepalive, SocketMatch, UpstreamSocketOptions};
pub use wire::Source;

use xds_proto::envoy::config::{
    cluster::v3::Cluster as WireCluster, endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener as WireListener, route::v3::RouteConfiguration,
};
use xds_proto::envoy::extensions::transport_sockets::tls::v3::Secret as WireSecret;

use crate::{balance::Assignment, route::RouteTable};

/// Reads a listener.
///
/// # Errors
/// The first field that is wrong or not supported.
pub fn listener(wire: WireListener) -> Result<Listener, ConfigError> {
    listener::convert(&Path::ROOT, wire)
}

/// Reads a cluster.
///
/// # Errors
/// The first field that is wrong or not supported.
pub fn cluster(wire: WireCluster) -> Result<Cluster, ConfigError> {
    cluster::convert(&Path::ROOT, wire)
}

/// Reads the endpoints of a cluster.
///
/// # Errors
/// The first field that is wrong or not supported.
pub fn assignment(wire: ClusterLoadAssignment) -> Result<Assignment, ConfigError> {
    endpoint::convert(&Path::ROOT, wire)
}

/// Reads a route configuration.
///
/// # Errors
/// The first field that is wrong or not supported.
pub fn routes(wire: RouteConfiguration) -> Result<RouteTable, ConfigError> {
    route::convert(&Path::ROOT, wire)
}

/// Reads a secret.
///
/// # Errors
/// The first field that is wrong or not supported. No key or certificate is part of the message.
pub fn secret(wire: WireSecret) -> Result<Secret, ConfigError> {
    secret::convert(&Path::ROOT, wire)
}
