//! `FilterChain` and its match.

use std::time::Duration;

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{
        config::{
            core::v3::{TransportSocket, transport_socket},
            listener::v3::{Filter, FilterChain as WireChain, FilterChainMatch as WireMatch, filter},
        },
        extensions::{
            filters::network::{
                http_connection_manager::v3::HttpConnectionManager, rbac::v3::Rbac as WireRbac,
                tcp_proxy::v3::TcpProxy as WireTcpProxy,
            },
            transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::DownstreamTlsContext},
        },
    },
};

use super::{
    error::Path,
    hcm::{self, HttpManager},
    rbac,
    tcp_proxy::{self, TcpProxy},
    tls::{self, DownstreamTls},
    wire::{Result, duration_or, refuse, unpack},
};
use crate::{limits, policy::Rbac};

/// A pattern for the server name that a client asks for, lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerName {
    /// This name.
    Exact(String),
    /// `*.suffix`, here as `.suffix`: every name below it.
    Suffix(String),
}

/// What a chain wants of the first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Anything.
    Any,
    /// A TLS `ClientHello`.
    Tls,
    /// Anything else.
    Raw,
}

/// `FilterChainMatch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChainMatch {
    /// Empty: any name or none.
    pub server_names: Vec<ServerName>,
    /// See [`Transport`].
    pub transport: Transport,
}

/// The one filter at the end of a chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkFilter {
    /// HTTP.
    Http(Box<HttpManager>),
    /// Bytes.
    Tcp(TcpProxy),
}

/// `FilterChain`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilterChain {
    /// For people.
    pub name: String,
    /// When it is taken.
    pub matches: ChainMatch,
    /// TLS to terminate. `None`: bytes are taken as they come.
    pub tls: Option<DownstreamTls>,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// Who may connect: all of these must permit it.
    pub access: Vec<Rbac>,
    /// What serves the connection.
    pub filter: NetworkFilter,
}

impl FilterChain {
    /// Whether another chain does the same, for whomever it may be.
    pub fn serves_alike(&self, other: &Self) -> bool {
        let Self { name, matches, tls, handshake_timeout, access: _, filter } = self;
        *name == other.name
            && *matches == other.matches
            && *tls == other.tls
            && *handshake_timeout == other.handshake_timeout
            && *filter == other.filter
    }
}

#[allow(deprecated)]
pub(super) fn convert(path: &Path<'_>, wire: WireChain) -> Result<FilterChain> {
    let WireChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name,
    } = wire;
    refuse!(path; use_proxy_proto);
    let tls = match transport_socket {
        Some(wire) => downstream(&path.field("transport_socket"), wire)?,
        None => None,
    };
    let list = path.field("filters");
    let last = filters.len().checked_sub(1).ok_or_else(|| list.missing())?;
    let mut access = Vec::new();
    let mut terminal = None;
    for (at, wire) in filters.into_iter().enumerate() {
        let path = list.index(at);
        match network_filter(&path, wire)? {
            Either::Access(rbac) => access.push(rbac),
            Either::Terminal(filter) if at == last => terminal = Some(filter),
            Either::Terminal(_) => return Err(list.index(at + 1).unsupported()),
        }
    }
    // Nothing would come of whom they let in.
    let filter = terminal.ok_or_else(|| list.index(last).unsupported())?;
    let timeout_path = path.field("transport_socket_connect_timeout");
    Ok(FilterChain {
        name,
        matches: chain_match(&path.field("filter_chain_match"), filter_chain_match.unwrap_or_default())?,
        tls,
        handshake_timeout: duration_or(
            &timeout_path,
            &transport_socket_connect_timeout,
            limits::HANDSHAKE_TIMEOUT,
        )?,
        access,
        filter,
    })
}

fn chain_match(path: &Path<'_>, wire: WireMatch) -> Result<ChainMatch> {
    let WireMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = wire;
    refuse!(path; destination_port, prefix_ranges, address_suffix, suffix_len, direct_source_prefix_ranges,
        source_type, source_prefix_ranges, source_ports, application_protocols);
    let list = path.field("server_names");
    let names = server_names.iter().enumerate().map(|(at, text)| server_name(&list.index(at), text));
    let transport = match transport_protocol.as_str() {
        "" => Transport::Any,
        "tls" => Transport::Tls,
        "raw_buffer" => Transport::Raw,
        other => return Err(path.field("transport_protocol").invalid(other, "is not tls or raw_buffer")),
    };
    Ok(ChainMatch { server_names: names.collect::<Result<_>>()?, transport })
}

fn server_name(path: &Path<'_>, text: &str) -> Result<ServerName> {
    let lower = text.to_ascii_lowercase();
    let (name, wrap): (_, fn(String) -> ServerName) = match lower.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 => (suffix, ServerName::Suffix),
        None if !lower.is_empty() => (lower.as_str(), ServerName::Exact),
        _ => return Err(path.invalid(text, "must be a name or *.suffix")),
    };
    if name.contains('*') {
        return Err(path.invalid(text, "may have a '*' only as its first label"));
    }
    Ok(wrap(name.to_owned()))
}

fn downstream(path: &Path<'_>, wire: TransportSocket) -> Result<Option<DownstreamTls>> {
    let path = path.field("typed_config");
    let Some(transport_socket::ConfigType::TypedConfig(any)) = wire.config_type else {
        return Err(path.missing());
    };
    if any.type_url == RawBuffer::type_url() {
        return Ok(None);
    }
    tls::downstream(&path, unpack::<DownstreamTlsContext>(&path, &any)?).map(Some)
}

enum Either {
    Access(Rbac),
    Terminal(NetworkFilter),
}

fn network_filter(path: &Path<'_>, wire: Filter) -> Result<Either> {
    let any = match wire.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => any,
        Some(filter::ConfigType::ConfigDiscovery(_)) => {
            return Err(path.field("config_discovery").unsupported());
        }
        None => return Err(path.field("typed_config").missing()),
    };
    let path = path.field("typed_config");
    if any.type_url == WireTcpProxy::type_url() {
        return Ok(Either::Terminal(NetworkFilter::Tcp(tcp_proxy::convert(&path, unpack(&path, &any)?)?)));
    }
    if any.type_url == WireRbac::type_url() {
        return rbac::network(&path, unpack(&path, &any)?).map(Either::Access);
    }
    let manager: HttpConnectionManager = unpack(&path, &any)?;
    hcm::convert(&path, manager).map(|m| Either::Terminal(NetworkFilter::Http(Box::new(m))))
}
