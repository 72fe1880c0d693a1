//! How endpoints are connected to: `transport_socket`, `transport_socket_matches`, `upstream_bind_config`,
//! `upstream_connection_options`.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{
        config::{
            cluster::v3::{UpstreamConnectionOptions, cluster::TransportSocketMatch},
            core::v3::{BindConfig, SocketAddress, TcpKeepalive, TransportSocket, transport_socket},
        },
        extensions::transport_sockets::{raw_buffer::v3::RawBuffer, tls::v3::UpstreamTlsContext},
    },
    google::protobuf::UInt32Value,
};

use super::{
    error::Path,
    metadata,
    tls::{self, UpstreamTls},
    wire::{Result, bool_or, refuse, unpack},
};
use crate::balance::Metadata;

/// Most `transport_socket_matches`: each has TLS configurations of its own.
const MAX_MATCHES: usize = 64;

/// A way to connect, and which endpoints it is for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SocketMatch {
    /// For people.
    pub name: String,
    /// What an endpoint's metadata must have; nothing: all of them.
    pub wanted: Metadata,
    /// TLS to originate.
    pub tls: Option<UpstreamTls>,
}

/// `TcpKeepalive`: pings of the kernel. Not set: the kernel's defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Keepalive {
    /// Unanswered ones until the connection is dead.
    pub probes: Option<u32>,
    /// Idle time before the first.
    pub time: Option<Duration>,
    /// Between them.
    pub interval: Option<Duration>,
}

/// Options of the kernel's sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamSocketOptions {
    /// Connections come from here; of the first address of the endpoint's IP version. Port 0: the kernel's choice.
    pub sources: Vec<std::net::SocketAddr>,
    /// Also from addresses that this machine does not have.
    pub freebind: bool,
    /// See [`Keepalive`].
    pub keepalive: Option<Keepalive>,
}

pub(super) fn matches(path: &Path<'_>, wire: Vec<TransportSocketMatch>) -> Result<Vec<SocketMatch>> {
    if wire.len() > MAX_MATCHES {
        return Err(path.invalid(wire.len(), format!("matches are more than {MAX_MATCHES}")));
    }
    let one = |(at, wire): (usize, TransportSocketMatch)| {
        let path = path.index(at);
        let TransportSocketMatch { name, r#match, transport_socket } = wire;
        let wanted = metadata::object(&path.field("match"), r#match.unwrap_or_default())?;
        let tls = match transport_socket {
            Some(wire) => transport(&path.field("transport_socket"), wire)?,
            None => None,
        };
        Ok(SocketMatch { name, wanted, tls })
    };
    wire.into_iter().enumerate().map(one).collect()
}

pub(super) fn transport(path: &Path<'_>, wire: TransportSocket) -> Result<Option<UpstreamTls>> {
    let path = path.field("typed_config");
    let Some(transport_socket::ConfigType::TypedConfig(any)) = wire.config_type else {
        return Err(path.missing());
    };
    if any.type_url == RawBuffer::type_url() {
        return Ok(None);
    }
    tls::upstream(&path, unpack::<UpstreamTlsContext>(&path, &any)?).map(Some)
}

pub(super) fn options(
    path: &Path<'_>,
    bind: Option<BindConfig>,
    connection: Option<UpstreamConnectionOptions>,
) -> Result<UpstreamSocketOptions> {
    let mut options = UpstreamSocketOptions::default();
    if let Some(wire) = bind {
        self::bind(&path.field("upstream_bind_config"), wire, &mut options)?;
    }
    if let Some(wire) = connection {
        let path = path.field("upstream_connection_options");
        let UpstreamConnectionOptions {
            tcp_keepalive,
            set_local_interface_name_on_upstream_connections,
            happy_eyeballs_config,
        } = wire;
        refuse!(path; set_local_interface_name_on_upstream_connections, happy_eyeballs_config);
        options.keepalive =
            tcp_keepalive.map(|wire| keepalive(&path.field("tcp_keepalive"), wire)).transpose()?;
    }
    Ok(options)
}

#[allow(deprecated)]
fn bind(path: &Path<'_>, wire: BindConfig, options: &mut UpstreamSocketOptions) -> Result<()> {
    let BindConfig {
        source_address,
        freebind,
        socket_options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    } = wire;
    refuse!(path; socket_options, local_address_selector, validate_network_namespaces);
    options.freebind = bool_or(&freebind, false);
    let first = source_address.map(|wire| source(&path.field("source_address"), wire)).transpose()?;
    options.sources.extend(first);
    let list = path.field("extra_source_addresses");
    for (at, wire) in extra_source_addresses.into_iter().enumerate() {
        let path = list.index(at);
        let socket_options = wire.socket_options;
        refuse!(path; socket_options);
        let address = path.field("address");
        options.sources.push(source(&address, wire.address.ok_or_else(|| address.missing())?)?);
    }
    let list = path.field("additional_source_addresses");
    for (at, wire) in additional_source_addresses.into_iter().enumerate() {
        options.sources.push(source(&list.index(at), wire)?);
    }
    Ok(())
}

fn source(path: &Path<'_>, wire: SocketAddress) -> Result<std::net::SocketAddr> {
    use xds_proto::envoy::config::core::v3::socket_address::PortSpecifier;
    let SocketAddress {
        protocol,
        address,
        resolver_name,
        ipv4_compat,
        network_namespace_filepath,
        port_specifier,
    } = wire;
    refuse!(path; protocol, resolver_name, ipv4_compat, network_namespace_filepath);
    let ip: IpAddr =
        address.parse().map_err(|_| path.field("address").invalid(&address, "is no IP address"))?;
    let port = match port_specifier {
        None => 0,
        Some(PortSpecifier::PortValue(port)) => {
            u16::try_from(port).map_err(|_| path.field("port_value").invalid(port, "is no port"))?
        }
        Some(PortSpecifier::NamedPort(_)) => return Err(path.field("named_port").unsupported()),
    };
    Ok((ip, port).into())
}

fn keepalive(path: &Path<'_>, wire: TcpKeepalive) -> Result<Keepalive> {
    let TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval } = wire;
    // The kernel's own bounds (tcp(7)): 127 probes, 32767 seconds.
    let bounded = |field: &str, wire: Option<UInt32Value>, max: u32| match wire.map(|n| n.value) {
        None => Ok(None),
        Some(n) if n == 0 || n > max => Err(path.field(field).invalid(n, format!("must be 1 to {max}"))),
        some => Ok(some),
    };
    let seconds = |field, wire| {
        let seconds = bounded(field, wire, 32_767)?;
        Ok(seconds.map(|n| Duration::from_secs(n.into())))
    };
    Ok(Keepalive {
        probes: bounded("keepalive_probes", keepalive_probes, 127)?,
        time: seconds("keepalive_time", keepalive_time)?,
        interval: seconds("keepalive_interval", keepalive_interval)?,
    })
}
