//! `Cluster`. What is supported, field by field, stands in docs/proxy.md.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use xds_proto::envoy::config::cluster::v3::{
    Cluster as WireCluster,
    cluster::{
        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy, OriginalDstLbConfig,
    },
};

use super::{
    balancing::{self, Balancing},
    breakers::{self, Breakers},
    endpoint,
    error::Path,
    health_check::{self, HealthCheck},
    lb_extension, outlier,
    tls::UpstreamTls,
    upstream::{self, UpstreamProtocol},
    upstream_socket::{self, SocketMatch, UpstreamSocketOptions},
    wire::{Result, duration_or, refuse, source, u32_or},
};
use crate::{
    balance::{Assignment, EjectionConfig, Policy},
    limits,
};

/// Where endpoints come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// By this name, over ADS.
    Eds(String),
    /// With the cluster.
    Static(Arc<Assignment>),
    /// Whom the client asked, before the kernel redirected it to a listener with `original_dst`.
    OriginalDestination,
}

/// `Cluster`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cluster {
    /// Unique name.
    pub name: Arc<str>,
    /// See [`Discovery`].
    pub discovery: Discovery,
    /// TCP and TLS together.
    pub connect_timeout: Duration,
    /// See [`Balancing`].
    pub balancing: Balancing,
    /// In percent.
    pub panic_threshold: u32,
    /// Whether connections are closed whenever the endpoints change.
    pub close_on_change: bool,
    /// TLS to originate, where none of the next ones fits.
    pub tls: Option<UpstreamTls>,
    /// Other ways to connect; the first that fits an endpoint's metadata is taken.
    pub socket_matches: Vec<SocketMatch>,
    /// See [`UpstreamSocketOptions`].
    pub socket: UpstreamSocketOptions,
    /// See [`UpstreamProtocol`].
    pub protocol: UpstreamProtocol,
    /// A pooled connection without requests is closed after this.
    pub idle_timeout: Option<Duration>,
    /// Requests on one HTTP/2 connection before another is opened.
    pub max_streams: usize,
    /// A connection takes no new requests after this.
    pub max_connection_duration: Option<Duration>,
    /// Nor after so many.
    pub max_requests_per_connection: Option<u32>,
    /// HTTP/2 pings: how often, and how long an answer may take.
    pub pings: (Duration, Duration),
    /// HTTP/2 flow control: bytes in flight of a stream and of a connection.
    pub windows: (u32, u32),
    /// Active health; at most one kind.
    pub health_checks: Vec<HealthCheck>,
    /// Whether connections to an endpoint are closed when it is found to be unhealthy.
    pub close_on_failure: bool,
    /// See [`Breakers`].
    pub breakers: Breakers,
    /// Passive health, if wanted.
    pub outlier: Option<EjectionConfig>,
}

impl Cluster {
    /// Every TLS configuration that endpoints may be connected with.
    pub fn all_tls(&self) -> impl Iterator<Item = &UpstreamTls> {
        self.tls.iter().chain(self.socket_matches.iter().filter_map(|m| m.tls.as_ref()))
    }
}

#[allow(deprecated)]
pub(super) fn convert(path: &Path<'_>, wire: WireCluster) -> Result<Cluster> {
    let WireCluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name: _,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family: _,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init: _,
        outlier_detection,
        cleanup_interval: _,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata: _,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        // Endpoints that are gone are removed at once, whatever their health; connections to them end when they are idle.
        ignore_health_on_host_removal: _,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats: _,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = wire;
    refuse!(path; transport_socket_matcher, stats_matcher, per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        upstream_http_protocol_options, common_http_protocol_options, http_protocol_options, http2_protocol_options,
        dns_refresh_rate, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl, dns_resolvers,
        use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config,
        protocol_selection, filters, lrs_server,
        lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config, preconnect_policy,
        connection_pool_per_downstream_connection, queuing_policies);
    if name.is_empty() {
        return Err(path.field("name").missing());
    }
    let assignment_path = path.field("load_assignment");
    let discovery = match cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => match DiscoveryType::try_from(kind) {
            Ok(DiscoveryType::Eds) => {
                refuse!(path; load_assignment);
                eds(&path.field("eds_cluster_config"), &name, eds_cluster_config)?
            }
            Ok(DiscoveryType::Static) => {
                refuse!(path; eds_cluster_config);
                let wire = load_assignment.ok_or_else(|| assignment_path.missing())?;
                Discovery::Static(Arc::new(endpoint::convert(&assignment_path, wire)?))
            }
            Ok(DiscoveryType::OriginalDst) => {
                refuse!(path; eds_cluster_config, load_assignment);
                Discovery::OriginalDestination
            }
            _ => return Err(path.field("type").invalid(kind, "is not EDS, STATIC or ORIGINAL_DST")),
        },
        Some(ClusterDiscoveryType::ClusterType(_)) => return Err(path.field("cluster_type").unsupported()),
        None => return Err(path.field("type").missing()),
    };
    let tls = match transport_socket {
        Some(wire) => upstream_socket::transport(&path.field("transport_socket"), wire)?,
        None => None,
    };
    let socket_matches =
        upstream_socket::matches(&path.field("transport_socket_matches"), transport_socket_matches)?;
    let options_path = path.field("typed_extension_protocol_options");
    let options = upstream::convert(&options_path, typed_extension_protocol_options)?;
    let in_clear = tls.is_none() || socket_matches.iter().any(|m| m.tls.is_none());
    if options.protocol == UpstreamProtocol::Auto && in_clear {
        return Err(options_path.invalid("auto_config", "needs TLS, whose ALPN makes the choice"));
    }
    let list = path.field("health_checks");
    if health_checks.len() > 1 {
        return Err(list.index(1).unsupported());
    }
    let checks = health_checks.into_iter().map(|wire| health_check::convert(&list.index(0), wire));
    let checks = checks.collect::<Result<_>>()?;
    let timeout_path = path.field("connect_timeout");
    let connect_timeout = duration_or(&timeout_path, &connect_timeout, limits::CONNECT_TIMEOUT)?;
    if connect_timeout.is_zero() {
        return Err(timeout_path.invalid("0s", "leaves no time to connect"));
    }
    let common = balancing::common(&path.field("common_lb_config"), common_lb_config)?;
    let balancing = match (&discovery, load_balancing_policy) {
        (Discovery::OriginalDestination, None) => original(path, lb_policy, lb_config)?,
        (Discovery::OriginalDestination, Some(_)) => {
            return Err(path.field("load_balancing_policy").unsupported());
        }
        // Everything that the older fields say about the choice is ignored beside it, as in Envoy.
        (_, Some(wire)) => lb_extension::convert(&path.field("load_balancing_policy"), wire)?,
        (_, None) => balancing::legacy(path, lb_policy, lb_config, lb_subset_config, &common)?,
    };
    Ok(Cluster {
        name: name.into(),
        discovery,
        connect_timeout,
        balancing,
        panic_threshold: common.panic_threshold,
        close_on_change: common.close_on_change,
        tls,
        socket_matches,
        socket: upstream_socket::options(path, upstream_bind_config, upstream_connection_options)?,
        protocol: options.protocol,
        idle_timeout: options.idle_timeout,
        max_streams: options.max_streams.max(1),
        max_connection_duration: options.max_connection_duration,
        // The cluster's own field is older, and counts where the other is not set.
        max_requests_per_connection: options.max_requests_per_connection.or(Some(u32_or(
            &max_requests_per_connection,
            0,
        ))
        .filter(|n| *n > 0)),
        pings: options.pings,
        windows: options.windows,
        health_checks: checks,
        close_on_failure: close_connections_on_host_health_failure,
        breakers: breakers::convert(&path.field("circuit_breakers"), circuit_breakers)?,
        outlier: outlier_detection
            .map(|wire| outlier::convert(&path.field("outlier_detection"), wire))
            .transpose()?,
    })
}

fn eds(path: &Path<'_>, cluster: &str, wire: Option<EdsClusterConfig>) -> Result<Discovery> {
    let EdsClusterConfig { eds_config, service_name } = wire.ok_or_else(|| path.missing())?;
    source(&path.field("eds_config"), eds_config, false)?;
    Ok(Discovery::Eds(if service_name.is_empty() { cluster.to_owned() } else { service_name }))
}

/// There is nothing to choose.
fn original(path: &Path<'_>, policy: i32, config: Option<LbConfig>) -> Result<Balancing> {
    if LbPolicy::try_from(policy) != Ok(LbPolicy::ClusterProvided) {
        return Err(path
            .field("lb_policy")
            .invalid(policy, "is not CLUSTER_PROVIDED, as ORIGINAL_DST needs"));
    }
    match config {
        None => {}
        Some(LbConfig::OriginalDstLbConfig(wire)) => {
            let path = path.field("original_dst_lb_config");
            // Clients would be asked where to go, headers and all.
            let OriginalDstLbConfig {
                use_http_header,
                http_header_name,
                upstream_port_override,
                metadata_key,
            } = wire;
            refuse!(path; use_http_header, http_header_name, upstream_port_override, metadata_key);
        }
        Some(_) => return Err(path.field("lb_config").unsupported()),
    }
    Ok(Balancing::of(Policy::RoundRobin))
}
