//! `TcpProxy`: `cluster`, `idle_timeout`, `max_connect_attempts`.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use xds_proto::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy as WireTcpProxy, tcp_proxy::ClusterSpecifier,
};

use super::{
    error::Path,
    wire::{Result, refuse, timeout_or, u32_or},
};
use crate::limits;

/// Bytes through, unseen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TcpProxy {
    /// Where to.
    pub cluster: Arc<str>,
    /// Closed when nothing moved for so long.
    pub idle_timeout: Option<Duration>,
    /// Endpoints to try.
    pub connect_attempts: u32,
}

#[allow(deprecated)]
pub(super) fn convert(path: &Path<'_>, wire: WireTcpProxy) -> Result<TcpProxy> {
    let WireTcpProxy {
        stat_prefix: _,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = wire;
    refuse!(path; on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout, access_log,
        backoff_options, hash_policy, tunneling_config, max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage, access_log_flush_interval, flush_access_log_on_connected,
        access_log_options, proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy, upstream_connect_mode,
        max_early_data_bytes, check_drain_close);
    let cluster = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => name.into(),
        Some(ClusterSpecifier::WeightedClusters(_)) => {
            return Err(path.field("weighted_clusters").unsupported());
        }
        _ => return Err(path.field("cluster").missing()),
    };
    let attempts = u32_or(&max_connect_attempts, 1);
    if !(1..=100).contains(&attempts) {
        return Err(path.field("max_connect_attempts").invalid(attempts, "must be 1 to 100"));
    }
    let idle_timeout = timeout_or(&path.field("idle_timeout"), &idle_timeout, Some(limits::TCP_IDLE))?;
    Ok(TcpProxy { cluster, idle_timeout, connect_attempts: attempts })
}
