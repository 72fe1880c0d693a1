//! `FilterChain`.

use std::time::Duration;

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{
        config::{
            core::v3::{TransportSocket, transport_socket},
            listener::v3::{Filter, FilterChain as WireChain, filter},
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
    chain_match::{self, ChainMatch},
    error::Path,
    hcm::{self, HttpManager},
    rbac,
    tcp_proxy::{self, TcpProxy},
    tls::{self, DownstreamTls},
    wire::{Result, duration_or, refuse, unpack},
};
use crate::{limits, policy::Rbac};

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
        matches: chain_match::convert(
            &path.field("filter_chain_match"),
            filter_chain_match.unwrap_or_default(),
        )?,
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
