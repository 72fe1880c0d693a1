//! `Cluster`: `name`, `type` EDS or STATIC, `eds_cluster_config`, `load_assignment`, `connect_timeout`, `lb_policy`,
//! `least_request_lb_config.choice_count`, `common_lb_config` (`healthy_panic_threshold`, `locality_weighted_lb_config`),
//! `circuit_breakers` (`max_connections`, `max_pending_requests`, `max_requests`, `max_retries` of priority DEFAULT),
//! `outlier_detection`, `transport_socket`, `typed_extension_protocol_options`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster as WireCluster,
                circuit_breakers::Thresholds,
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig,
                    LbPolicy, LeastRequestLbConfig, OriginalDstLbConfig,
                    common_lb_config::LocalityConfigSpecifier,
                },
            },
            core::v3::{TransportSocket, transport_socket},
        },
        extensions::transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::UpstreamTlsContext},
    },
};

use super::{
    endpoint,
    error::Path,
    outlier,
    tls::{self, UpstreamTls},
    upstream::{self, UpstreamProtocol},
    wire::{Result, duration_or, refuse, source, u32_or, unpack},
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

/// `CircuitBreakers` of priority DEFAULT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Breakers {
    /// Connections.
    pub max_connections: u32,
    /// Requests that wait for a connection.
    pub max_pending_requests: u32,
    /// Requests.
    pub max_requests: u32,
    /// Retries.
    pub max_retries: u32,
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
    /// See [`Policy`].
    pub policy: Policy,
    /// In percent.
    pub panic_threshold: u32,
    /// Whether localities share by weight before endpoints do.
    pub by_locality: bool,
    /// TLS to originate.
    pub tls: Option<UpstreamTls>,
    /// See [`UpstreamProtocol`].
    pub protocol: UpstreamProtocol,
    /// A pooled connection without requests is closed after this.
    pub idle_timeout: Option<Duration>,
    /// Requests on one HTTP/2 connection before another is opened.
    pub max_streams: usize,
    /// See [`Breakers`].
    pub breakers: Breakers,
    /// Passive health, if wanted.
    pub outlier: Option<EjectionConfig>,
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
        // Connections to an endpoint that is gone are not used again, and closed once idle.
        close_connections_on_host_health_failure: _,
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
    refuse!(path; transport_socket_matches, transport_socket_matcher, stats_matcher, per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout, health_checks, max_requests_per_connection,
        upstream_http_protocol_options, common_http_protocol_options, http_protocol_options, http2_protocol_options,
        dns_refresh_rate, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl, dns_resolvers,
        use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config, upstream_bind_config,
        lb_subset_config, protocol_selection, upstream_connection_options, filters, load_balancing_policy, lrs_server,
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
        Some(wire) => transport(&path.field("transport_socket"), wire)?,
        None => None,
    };
    let options_path = path.field("typed_extension_protocol_options");
    let options = upstream::convert(&options_path, typed_extension_protocol_options)?;
    if options.protocol == UpstreamProtocol::Auto && tls.is_none() {
        return Err(options_path.invalid("auto_config", "needs TLS, whose ALPN makes the choice"));
    }
    let timeout_path = path.field("connect_timeout");
    let connect_timeout = duration_or(&timeout_path, &connect_timeout, limits::CONNECT_TIMEOUT)?;
    if connect_timeout.is_zero() {
        return Err(timeout_path.invalid("0s", "leaves no time to connect"));
    }
    let (panic_threshold, by_locality) = common_lb(&path.field("common_lb_config"), common_lb_config)?;
    let policy = match discovery {
        Discovery::OriginalDestination => original(path, lb_policy, lb_config)?,
        Discovery::Eds(_) | Discovery::Static(_) => policy(path, lb_policy, lb_config)?,
    };
    Ok(Cluster {
        name: name.into(),
        discovery,
        connect_timeout,
        policy,
        panic_threshold,
        by_locality,
        tls,
        protocol: options.protocol,
        idle_timeout: options.idle_timeout,
        max_streams: options.max_streams.max(1),
        breakers: breakers(&path.field("circuit_breakers"), circuit_breakers)?,
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

fn transport(path: &Path<'_>, wire: TransportSocket) -> Result<Option<UpstreamTls>> {
    let path = path.field("typed_config");
    let Some(transport_socket::ConfigType::TypedConfig(any)) = wire.config_type else {
        return Err(path.missing());
    };
    if any.type_url == RawBuffer::type_url() {
        return Ok(None);
    }
    tls::upstream(&path, unpack::<UpstreamTlsContext>(&path, &any)?).map(Some)
}

fn policy(path: &Path<'_>, policy: i32, config: Option<LbConfig>) -> Result<Policy> {
    let mut choices = 2;
    match config {
        None => {}
        Some(LbConfig::LeastRequestLbConfig(wire)) => {
            let path = path.field("least_request_lb_config");
            let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } = wire;
            refuse!(path; active_request_bias, slow_start_config);
            choices = u32_or(&choice_count, 2);
            if !(2..=16).contains(&choices) {
                return Err(path.field("choice_count").invalid(choices, "must be 2 to 16"));
            }
        }
        Some(LbConfig::RoundRobinLbConfig(wire)) => {
            let path = path.field("round_robin_lb_config");
            let slow_start_config = wire.slow_start_config;
            refuse!(path; slow_start_config);
        }
        Some(_) => return Err(path.field("lb_config").unsupported()),
    }
    match LbPolicy::try_from(policy) {
        Ok(LbPolicy::RoundRobin) => Ok(Policy::RoundRobin),
        Ok(LbPolicy::LeastRequest) => Ok(Policy::LeastRequest { choices }),
        Ok(LbPolicy::Random) => Ok(Policy::Random),
        _ => Err(path.field("lb_policy").invalid(policy, "is not ROUND_ROBIN, LEAST_REQUEST or RANDOM")),
    }
}

/// There is nothing to choose.
fn original(path: &Path<'_>, policy: i32, config: Option<LbConfig>) -> Result<Policy> {
    if LbPolicy::try_from(policy) != Ok(LbPolicy::ClusterProvided) {
        return Err(path
            .field("lb_policy")
            .invalid(policy, "is not CLUSTER_PROVIDED, as ORIGINAL_DST needs"));
    }
    match config {
        None => Ok(Policy::RoundRobin),
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
            Ok(Policy::RoundRobin)
        }
        Some(_) => Err(path.field("lb_config").unsupported()),
    }
}

fn common_lb(path: &Path<'_>, wire: Option<CommonLbConfig>) -> Result<(u32, bool)> {
    let CommonLbConfig {
        healthy_panic_threshold,
        // Updates are applied at once.
        update_merge_window: _,
        ignore_new_hosts_until_first_hc,
        close_connections_on_host_set_change,
        consistent_hashing_lb_config,
        override_host_status,
        locality_config_specifier,
    } = wire.unwrap_or_default();
    refuse!(path; ignore_new_hosts_until_first_hc, close_connections_on_host_set_change,
        consistent_hashing_lb_config, override_host_status);
    let by_locality = match locality_config_specifier {
        None => false,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            return Err(path.field("zone_aware_lb_config").unsupported());
        }
    };
    let threshold = healthy_panic_threshold.map_or(50.0, |p| p.value);
    if !(0.0..=100.0).contains(&threshold) {
        return Err(path.field("healthy_panic_threshold").invalid(threshold, "must be 0 to 100"));
    }
    Ok((threshold as u32, by_locality))
}

fn breakers(path: &Path<'_>, wire: Option<CircuitBreakers>) -> Result<Breakers> {
    let CircuitBreakers { thresholds, per_host_thresholds } = wire.unwrap_or_default();
    refuse!(path; per_host_thresholds);
    let list = path.field("thresholds");
    let mut breakers = Breakers {
        max_connections: limits::BREAKER,
        max_pending_requests: limits::BREAKER,
        max_requests: limits::BREAKER,
        max_retries: limits::BREAKER_RETRIES,
    };
    for (at, wire) in thresholds.into_iter().enumerate() {
        let path = list.index(at);
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            // Statistics only.
            track_remaining: _,
            max_connection_pools,
        } = wire;
        refuse!(path; retry_budget, max_connection_pools);
        // Routes of priority HIGH are refused, so its limits can never be reached.
        if priority != 0 {
            continue;
        }
        breakers = Breakers {
            max_connections: u32_or(&max_connections, limits::BREAKER),
            max_pending_requests: u32_or(&max_pending_requests, limits::BREAKER),
            max_requests: u32_or(&max_requests, limits::BREAKER),
            max_retries: u32_or(&max_retries, limits::BREAKER_RETRIES),
        };
    }
    Ok(breakers)
}
