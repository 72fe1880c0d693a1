//! `FilterChainMatch`: every criterion of Envoy's but `address_suffix`, which it does not implement itself.

use std::collections::HashSet;

use ipnet::IpNet;
use serde::Serialize;
use xds_proto::envoy::config::{
    core::v3::CidrRange,
    listener::v3::{FilterChainMatch as WireMatch, filter_chain_match::ConnectionSourceType},
};

use super::{
    chain::FilterChain,
    error::Path,
    rbac,
    wire::{Result, refuse},
};

/// Most combinations of criteria of all chains of a listener together.
const MAX_COMBINATIONS: usize = 1_000_000;

/// A pattern for the server name that a client asks for, lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerName {
    /// This name.
    Exact(String),
    /// `*.suffix`, here as `.suffix`: every name below it.
    Suffix(String),
}

/// What a chain wants of the first bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Anything.
    #[default]
    Any,
    /// A TLS `ClientHello`.
    Tls,
    /// Anything else.
    Raw,
}

/// Where a client is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// On this machine: at a loopback address, or at the one that it asked for.
    Local,
    /// Anywhere else.
    External,
}

/// `FilterChainMatch`. Empty lists match anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ChainMatch {
    /// The port that was asked for.
    pub destination_port: Option<u16>,
    /// The address that was asked for.
    pub destinations: Vec<IpNet>,
    /// Of the TLS handshake.
    pub server_names: Vec<ServerName>,
    /// See [`Transport`].
    pub transport: Transport,
    /// ALPN of the TLS handshake; without TLS `http/1.0`, `http/1.1` and `h2c`, as the first bytes say.
    pub application_protocols: Vec<String>,
    /// The other end of the connection itself.
    pub direct_sources: Vec<IpNet>,
    /// See [`SourceType`].
    pub source_type: SourceType,
    /// The client, which a PROXY header may name.
    pub sources: Vec<IpNet>,
    /// Its port.
    pub source_ports: Vec<u16>,
}

impl ChainMatch {
    /// Whether the first bytes of a connection have to be seen to tell.
    pub fn inspects(&self) -> bool {
        !self.server_names.is_empty()
            || self.transport != Transport::Any
            || !self.application_protocols.is_empty()
    }

    fn combinations(&self) -> usize {
        let lengths = [
            self.destinations.len(),
            self.server_names.len(),
            self.application_protocols.len(),
            self.direct_sources.len(),
            self.sources.len(),
            self.source_ports.len(),
        ];
        lengths.into_iter().fold(1, |product, length| product.saturating_mul(length.max(1)))
    }
}

pub(super) fn convert(path: &Path<'_>, wire: WireMatch) -> Result<ChainMatch> {
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
    refuse!(path; address_suffix, suffix_len);
    let port = |path: &Path<'_>, number: u32| match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(path.invalid(number, "must be 1 to 65535")),
    };
    let port_path = path.field("destination_port");
    let destination_port = destination_port.map(|number| port(&port_path, number.value)).transpose()?;
    let blocks = |name: &'static str, wire: Vec<CidrRange>| -> Result<Vec<IpNet>> {
        let list = path.field(name);
        let one = |(at, wire)| rbac::block(&list.index(at), wire).map(|net| net.trunc());
        wire.into_iter().enumerate().map(one).collect()
    };
    let names = path.field("server_names");
    let ports = path.field("source_ports");
    let protocols = path.field("application_protocols");
    if let Some(at) = application_protocols.iter().position(|name| name.is_empty() || name.len() > 255) {
        return Err(protocols.index(at).invalid("", "must have 1 to 255 bytes"));
    }
    Ok(ChainMatch {
        destination_port,
        destinations: blocks("prefix_ranges", prefix_ranges)?,
        server_names: server_names
            .iter()
            .enumerate()
            .map(|(at, text)| server_name(&names.index(at), text))
            .collect::<Result<_>>()?,
        transport: match transport_protocol.as_str() {
            "" => Transport::Any,
            "tls" => Transport::Tls,
            "raw_buffer" => Transport::Raw,
            other => return Err(path.field("transport_protocol").invalid(other, "is not tls or raw_buffer")),
        },
        application_protocols,
        direct_sources: blocks("direct_source_prefix_ranges", direct_source_prefix_ranges)?,
        source_type: match ConnectionSourceType::try_from(source_type) {
            Ok(ConnectionSourceType::Any) => SourceType::Any,
            Ok(ConnectionSourceType::SameIpOrLoopback) => SourceType::Local,
            Ok(ConnectionSourceType::External) => SourceType::External,
            Err(_) => return Err(path.field("source_type").invalid(source_type, "is unknown")),
        },
        sources: blocks("source_prefix_ranges", source_prefix_ranges)?,
        source_ports: source_ports
            .into_iter()
            .enumerate()
            .map(|(at, number)| port(&ports.index(at), number))
            .collect::<Result<_>>()?,
    })
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

/// Two chains that match the same would make the choice arbitrary.
pub(super) fn distinct(path: &Path<'_>, chains: &[FilterChain]) -> Result<()> {
    let all = chains.iter().fold(0, |sum: usize, chain| sum.saturating_add(chain.matches.combinations()));
    if all > MAX_COMBINATIONS {
        return Err(path.invalid(all, format!("combinations of matches are more than {MAX_COMBINATIONS}")));
    }
    let mut seen = HashSet::with_capacity(all);
    for (at, chain) in chains.iter().enumerate() {
        let m = &chain.matches;
        let rest = (m.destination_port, m.transport, m.source_type);
        for destination in each(&m.destinations) {
            for name in each(&m.server_names) {
                for protocol in each(&m.application_protocols) {
                    for direct in each(&m.direct_sources) {
                        for source in each(&m.sources) {
                            for port in each(&m.source_ports) {
                                if !seen.insert((rest, destination, name, protocol, direct, source, port)) {
                                    let chain = path.index(at);
                                    return Err(chain
                                        .field("filter_chain_match")
                                        .duplicate(format!("the match {name:?}")));
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Each of a list; of an empty one, that it says nothing.
fn each<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> + Clone {
    let nothing = list.is_empty().then_some(None);
    list.iter().map(Some).chain(nothing)
}
