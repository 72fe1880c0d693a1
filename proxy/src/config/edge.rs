//! What an `HttpConnectionManager` believes of a request, and how it writes it down before anybody judges it: addresses,
//! schemes, hosts, paths.

use http::HeaderValue;
use ipnet::IpNet;
use serde::Serialize;
use xds_proto::envoy::{
    config::core::v3::{
        CidrRange, SchemeHeaderTransformation, http_protocol_options::HeadersWithUnderscoresAction,
        scheme_header_transformation::Transformation,
    },
    extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
        InternalAddressConfig, StripPortMode,
    },
};

use super::{
    error::Path,
    wire::{Result, refuse},
};

/// What happens to `%2F` and `%5C` in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EscapedSlashes {
    /// Nothing.
    #[default]
    Keep,
    /// The request is refused with 400.
    Reject,
    /// The client is sent to the path without them, with 307.
    Redirect,
    /// They become slashes.
    Unescape,
}

/// What happens to headers with `_` in their name, which some applications take for `-`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Underscores {
    /// Nothing.
    #[default]
    Allow,
    /// The request is refused with 400.
    Reject,
    /// The header is left out.
    Drop,
}

/// Which port is removed from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StripPort {
    /// None.
    #[default]
    Never,
    /// The listener's own.
    Matching,
    /// Any.
    Any,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Edge {
    /// The connection's address is the client's, and what the client says of itself is not believed.
    pub use_remote_address: bool,
    /// Proxies in front of this one that are believed.
    pub trusted_hops: u32,
    /// Whether the connection's address is added to `x-forwarded-for`. Only with `use_remote_address`.
    pub append_forwarded_for: bool,
    /// Whether the port that was asked is added as `x-forwarded-port`. Only with `use_remote_address`.
    pub append_forwarded_port: bool,
    /// Clients of one's own. Empty: nobody is (Envoy's default since 1.33).
    pub internal: Vec<IpNet>,
    /// Stands for whatever scheme was used.
    pub scheme: Option<&'static str>,
    /// Dot segments are resolved, and letters, digits, `-`, `.`, `_` and `~` that were escaped need not be (RFC 3986 6.2.2).
    pub normalize_path: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// See [`EscapedSlashes`].
    pub escaped_slashes: EscapedSlashes,
    /// See [`Underscores`].
    pub underscores: Underscores,
    /// See [`StripPort`].
    pub strip_port: StripPort,
    /// Whether the dot at the end of a host is removed.
    pub strip_host_dot: bool,
    /// Added to the `via` of requests and answers.
    #[serde(skip)]
    pub via: Option<HeaderValue>,
}

pub(super) fn scheme(
    path: &Path<'_>,
    wire: Option<SchemeHeaderTransformation>,
) -> Result<Option<&'static str>> {
    let SchemeHeaderTransformation { match_upstream, transformation } = wire.unwrap_or_default();
    refuse!(path; match_upstream);
    match transformation {
        None => Ok(None),
        Some(Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" => Ok(Some("http")),
            "https" => Ok(Some("https")),
            _ => Err(path.field("scheme_to_overwrite").invalid(&scheme, "is not http or https")),
        },
    }
}

pub(super) fn internal(path: &Path<'_>, wire: Option<InternalAddressConfig>) -> Result<Vec<IpNet>> {
    // There are no clients on unix sockets.
    let InternalAddressConfig { unix_sockets: _, cidr_ranges } = wire.unwrap_or_default();
    let list = path.field("cidr_ranges");
    cidr_ranges.into_iter().enumerate().map(|(at, range)| cidr(&list.index(at), range)).collect()
}

/// A block of addresses.
pub(super) fn cidr(path: &Path<'_>, wire: CidrRange) -> Result<IpNet> {
    let CidrRange { address_prefix, prefix_len } = wire;
    let address: std::net::IpAddr = address_prefix
        .parse()
        .map_err(|_| path.field("address_prefix").invalid(&address_prefix, "is no IP address"))?;
    let length = prefix_len.map_or(0, |l| l.value);
    let block = u8::try_from(length).ok().and_then(|length| IpNet::new(address, length).ok());
    block.ok_or_else(|| path.field("prefix_len").invalid(length, "is too long for the address"))
}

pub(super) fn escaped_slashes(path: &Path<'_>, wire: i32) -> Result<EscapedSlashes> {
    match wire {
        0 | 1 => Ok(EscapedSlashes::Keep),
        2 => Ok(EscapedSlashes::Reject),
        3 => Ok(EscapedSlashes::Redirect),
        4 => Ok(EscapedSlashes::Unescape),
        other => Err(path.invalid(other, "is unknown")),
    }
}

pub(super) fn underscores(path: &Path<'_>, wire: i32) -> Result<Underscores> {
    match HeadersWithUnderscoresAction::try_from(wire) {
        Ok(HeadersWithUnderscoresAction::Allow) => Ok(Underscores::Allow),
        Ok(HeadersWithUnderscoresAction::RejectRequest) => Ok(Underscores::Reject),
        Ok(HeadersWithUnderscoresAction::DropHeader) => Ok(Underscores::Drop),
        Err(_) => Err(path.invalid(wire, "is unknown")),
    }
}

pub(super) fn strip_port(path: &Path<'_>, matching: bool, mode: Option<StripPortMode>) -> Result<StripPort> {
    match (matching, mode) {
        (false, None | Some(StripPortMode::StripAnyHostPort(false))) => Ok(StripPort::Never),
        (true, None) => Ok(StripPort::Matching),
        (false, Some(StripPortMode::StripAnyHostPort(true))) => Ok(StripPort::Any),
        (true, Some(_)) => Err(path
            .field("strip_any_host_port")
            .invalid(true, "and strip_matching_host_port: only one of them may be set")),
    }
}

pub(super) fn via(path: &Path<'_>, text: &str) -> Result<Option<HeaderValue>> {
    if text.is_empty() {
        return Ok(None);
    }
    HeaderValue::from_str(text).map(Some).map_err(|_| path.invalid(text, "is no header value"))
}
