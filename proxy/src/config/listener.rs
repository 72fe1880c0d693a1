//! `Listener`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;
use xds_proto::envoy::config::listener::v3::{AdditionalAddress, Listener as WireListener};

use super::{
    chain::{self, FilterChain, NetworkFilter},
    chain_match::{self, ChainMatch},
    error::Path,
    hcm::RouteSource,
    listener_filter::{self, ListenerFilters},
    socket::{self, SocketOptions},
    tls::SecretRef,
    wire::{Result, address, bool_or, duration_or, refuse, u32_or},
};
use crate::{limits, policy::Rbac, route::RouteTable};

/// What `per_connection_buffer_limit_bytes` must leave room for.
const LEAST_BUFFER: u32 = limits::TCP_BUFFER as u32;

/// `Listener`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listener {
    /// Unique name.
    pub name: String,
    /// Where to listen; at least one.
    pub addresses: Vec<SocketAddr>,
    /// In the order of the resource.
    pub chains: Vec<FilterChain>,
    /// When none of them matches.
    pub default_chain: Option<FilterChain>,
    /// For the first bytes, where they decide on the chain.
    pub inspect_timeout: Duration,
    /// Whether a client that stays silent is served as if it did not speak TLS.
    pub continue_on_timeout: bool,
    /// Waiting connections.
    pub backlog: u32,
    /// Whether it has sockets of its own. Without, it serves what a listener with `use_original_dst` was asked for.
    pub binds: bool,
    /// What its sockets are made with, beside the defaults.
    pub socket: SocketOptions,
    /// What is found out about a connection before a chain is chosen.
    pub filters: ListenerFilters,
}

impl Listener {
    /// All chains.
    pub fn all_chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// Who may connect now to where a chain with this match was; None if there is no such chain.
    pub fn rules_in_place_of(&self, matches: &ChainMatch, default: bool) -> Option<&[Rbac]> {
        let found = match default {
            true => self.default_chain.as_ref(),
            false => self.chains.iter().find(|chain| chain.matches == *matches),
        };
        found.map(|chain| chain.access.as_slice())
    }

    /// Names of the route configurations that it needs.
    pub fn rds_names(&self) -> impl Iterator<Item = &str> {
        self.all_chains().filter_map(|chain| match &chain.filter {
            NetworkFilter::Http(manager) => match &manager.routes {
                RouteSource::Rds(name) => Some(name.as_str()),
                RouteSource::Inline(_) => None,
            },
            NetworkFilter::Tcp(_) => None,
        })
    }

    /// Secrets that it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretRef> {
        self.all_chains().filter_map(|chain| chain.tls.as_ref()).flat_map(|tls| tls.common.secrets())
    }

    /// Clusters that it sends to or asks, as far as they are not named by RDS.
    pub fn inline_clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        self.all_chains().flat_map(|chain| {
            let (tcp, table): (Option<&Arc<str>>, Option<&Arc<RouteTable>>) = match &chain.filter {
                NetworkFilter::Tcp(tcp) => (Some(&tcp.cluster), None),
                NetworkFilter::Http(manager) => match &manager.routes {
                    RouteSource::Inline(table) => (None, Some(table)),
                    RouteSource::Rds(_) => (None, None),
                },
            };
            let asked = match &chain.filter {
                NetworkFilter::Http(manager) => manager.filters.as_slice(),
                NetworkFilter::Tcp(_) => &[],
            };
            let asked = asked.iter().flat_map(|filter| filter.kind.clusters());
            tcp.into_iter().chain(table.into_iter().flat_map(|t| t.clusters())).chain(asked)
        })
    }

    /// Whether another listener has the same sockets.
    pub fn sits_alike(&self, other: &Self) -> bool {
        self.addresses == other.addresses
            && self.binds == other.binds
            && self.socket == other.socket
            && self.backlog == other.backlog
    }
}

#[allow(deprecated)]
pub(super) fn convert(path: &Path<'_>, wire: WireListener) -> Result<Listener> {
    let WireListener {
        name,
        address: wire_address,
        additional_addresses,
        stat_prefix: _,
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        // Each direction of a tunnel has a buffer of a fixed size; HTTP is held back by its windows.
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata: _,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction: _,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        // There is one socket for all threads.
        enable_reuse_port: _,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = wire;
    refuse!(path; stats_matcher, fcds_config, filter_chain_matcher,
        per_connection_buffer_high_watermark_timeout, deprecated_v1, drain_type,
        tcp_fast_open_queue_length, udp_listener_config, api_listener, connection_balance_config, reuse_port,
        access_log, max_connections_to_accept_per_socket_event, enable_mptcp, ignore_global_conn_limit,
        bypass_overload_manager, listener_specifier);
    let buffer = u32_or(&per_connection_buffer_limit_bytes, LEAST_BUFFER);
    if buffer < LEAST_BUFFER {
        let path = path.field("per_connection_buffer_limit_bytes");
        return Err(path.invalid(buffer, format!("is less than the buffers here have: {LEAST_BUFFER}")));
    }
    let binds = bool_or(&bind_to_port, true);
    let handed_on = bool_or(&use_original_dst, false);
    if !binds && handed_on {
        return Err(path.field("use_original_dst").invalid(true, "needs bind_to_port"));
    }
    let mut socket = socket::convert(&path.field("socket_options"), socket_options)?;
    socket.transparent = bool_or(&transparent, false);
    socket.freebind = bool_or(&freebind, false);
    socket.keepalive = socket::keepalive(&path.field("tcp_keepalive"), tcp_keepalive)?;
    if name.is_empty() {
        return Err(path.field("name").missing());
    }
    let mut filters = listener_filter::convert(&path.field("listener_filters"), listener_filters)?;
    filters.handed_on = handed_on;
    filters.original_destination |= handed_on;
    let list = path.field("filter_chains");
    let chains =
        filter_chains.into_iter().enumerate().map(|(at, wire)| chain::convert(&list.index(at), wire));
    let chains: Vec<FilterChain> = chains.collect::<Result<_>>()?;
    let default_path = path.field("default_filter_chain");
    let default_chain = default_filter_chain.map(|wire| chain::convert(&default_path, wire)).transpose()?;
    if chains.is_empty() && default_chain.is_none() {
        return Err(list.missing());
    }
    chain_match::distinct(&list, &chains)?;
    let timeout_path = path.field("listener_filters_timeout");
    let inspect_timeout = duration_or(&timeout_path, &listener_filters_timeout, limits::INSPECT_TIMEOUT)?;
    if inspect_timeout.is_zero() {
        return Err(
            timeout_path.invalid("0s", "would let silent clients hold connections for ever; give a limit")
        );
    }
    let more = path.field("additional_addresses");
    let mut addresses = vec![address(&path.field("address"), wire_address)?];
    for (at, wire) in additional_addresses.into_iter().enumerate() {
        let path = more.index(at);
        let AdditionalAddress { address: wire_address, socket_options, tcp_keepalive } = wire;
        refuse!(path; socket_options, tcp_keepalive);
        let address = address(&path.field("address"), wire_address)?;
        if addresses.contains(&address) {
            return Err(path.field("address").duplicate(address));
        }
        addresses.push(address);
    }
    Ok(Listener {
        name,
        addresses,
        chains,
        default_chain,
        inspect_timeout,
        continue_on_timeout: continue_on_listener_filters_timeout,
        backlog: u32_or(&tcp_backlog_size, limits::BACKLOG).clamp(1, 65_535),
        binds,
        socket,
        filters,
    })
}
