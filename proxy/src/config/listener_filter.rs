//! `Listener.listener_filters`: what is found out about a connection before a filter chain is chosen.
//!
//! They work in one order, whatever theirs in the list: `original_dst`, `proxy_protocol`, the inspectors, `original_src`. A list
//! in another order that would mean something else is refused.

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{
        config::listener::v3::{ListenerFilter, listener_filter},
        extensions::filters::listener::{
            http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, original_src::v3::OriginalSrc,
            proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector,
        },
    },
    google::protobuf::Any,
};

use super::{
    error::Path,
    wire::{Result, bool_or, refuse, u32_or, unpack},
};
use crate::{gateway::HeaderVersion, limits};

/// See the module. Inspectors are not in it: whether a connection is inspected follows from the chains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ListenerFilters {
    /// What was asked for is what the client asked for before the kernel redirected it.
    pub original_destination: bool,
    /// A connection goes to the listener of the address that was asked for, if there is one.
    pub handed_on: bool,
    /// See there.
    pub proxy_header: Option<ProxyHeader>,
    /// See there.
    pub original_source: Option<OriginalSource>,
}

/// `proxy_protocol`: connections begin with a PROXY header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxyHeader {
    /// Whether one without a header is served as it is.
    pub optional: bool,
    /// Versions that are turned away.
    pub disallowed: Vec<HeaderVersion>,
}

/// `original_src`: endpoints are asked from the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OriginalSource {
    /// `SO_MARK`; 0: none.
    pub mark: u32,
}

/// The order in which they mean what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Destination,
    Header,
    Inspector,
}

pub(super) fn convert(path: &Path<'_>, list: Vec<ListenerFilter>) -> Result<ListenerFilters> {
    let mut filters = ListenerFilters::default();
    let mut last = Rank::Destination;
    for (at, wire) in list.into_iter().enumerate() {
        let path = path.index(at);
        let ListenerFilter { name: _, filter_disabled, config_type } = wire;
        refuse!(path; filter_disabled);
        let any = match config_type {
            Some(listener_filter::ConfigType::TypedConfig(any)) => any,
            Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(path.field("config_discovery").unsupported());
            }
            None => return Err(path.field("typed_config").missing()),
        };
        let rank = one(&path.field("typed_config"), &any, &mut filters)?;
        if rank.is_some_and(|rank| rank < last) {
            return Err(path.invalid(&any.type_url, "must come before what reads behind it"));
        }
        last = rank.unwrap_or(last);
    }
    Ok(filters)
}

fn one(path: &Path<'_>, any: &Any, filters: &mut ListenerFilters) -> Result<Option<Rank>> {
    let url = &any.type_url;
    if *url == OriginalDst::type_url() {
        let OriginalDst {} = unpack(path, any)?;
        filters.original_destination = true;
        return Ok(Some(Rank::Destination));
    }
    if *url == ProxyProtocol::type_url() {
        if filters.proxy_header.replace(proxy_header(path, unpack(path, any)?)?).is_some() {
            return Err(path.duplicate("the PROXY header"));
        }
        return Ok(Some(Rank::Header));
    }
    if *url == OriginalSrc::type_url() {
        let OriginalSrc { bind_port, mark } = unpack(path, any)?;
        refuse!(path; bind_port);
        if filters.original_source.replace(OriginalSource { mark }).is_some() {
            return Err(path.duplicate("the original source"));
        }
        return Ok(None);
    }
    if *url == HttpInspector::type_url() {
        let HttpInspector {} = unpack(path, any)?;
        return Ok(Some(Rank::Inspector));
    }
    tls_inspector(path, unpack(path, any)?).map(|()| Some(Rank::Inspector))
}

fn proxy_header(path: &Path<'_>, wire: ProxyProtocol) -> Result<ProxyHeader> {
    let ProxyProtocol {
        rules,
        allow_requests_without_proxy_protocol: optional,
        pass_through_tlvs,
        disallowed_versions,
        // Statistics only.
        stat_prefix: _,
        tlv_location,
    } = wire;
    refuse!(path; rules, pass_through_tlvs, tlv_location);
    let list = path.field("disallowed_versions");
    let version = |(at, number): (usize, i32)| match number {
        0 => Ok(HeaderVersion::V1),
        1 => Ok(HeaderVersion::V2),
        other => Err(list.index(at).invalid(other, "is not V1 or V2")),
    };
    let disallowed = disallowed_versions.into_iter().enumerate().map(version).collect::<Result<_>>()?;
    Ok(ProxyHeader { optional, disallowed })
}

fn tls_inspector(path: &Path<'_>, wire: TlsInspector) -> Result<()> {
    let TlsInspector {
        enable_ja3_fingerprinting,
        enable_ja4_fingerprinting,
        // How it reads is its own business, and it never reads more than the limit below.
        initial_read_buffer_size: _,
        close_connection_on_client_hello_parsing_errors: _,
        max_client_hello_size,
    } = wire;
    for (field, on) in [
        ("enable_ja3_fingerprinting", bool_or(&enable_ja3_fingerprinting, false)),
        ("enable_ja4_fingerprinting", bool_or(&enable_ja4_fingerprinting, false)),
    ] {
        if on {
            return Err(path.field(field).unsupported());
        }
    }
    let size = u32_or(&max_client_hello_size, limits::CLIENT_HELLO_BYTES as u32);
    if size as usize != limits::CLIENT_HELLO_BYTES {
        return Err(path.field("max_client_hello_size").invalid(size, "is not 16384, the limit here"));
    }
    Ok(())
}
