//! `HttpConnectionManager`.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use serde::Serialize;
use xds_proto::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager as WireHcm, Rds, http_connection_manager as hcm,
};

pub(super) use super::protocol::http2;
use super::{
    edge::{self, Edge},
    error::Path,
    filters::{self, HttpFilter},
    protocol, route,
    wire::{Result, bool_or, refuse, source, timeout_or, u32_or},
};
use crate::{limits, route::RouteTable};

/// Which HTTP versions are spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// By ALPN, or by the first bytes on a connection without TLS.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only, with prior knowledge on a connection without TLS.
    Http2,
}

/// Where the routes come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteSource {
    /// By name, over ADS.
    Rds(String),
    /// With the listener.
    Inline(Arc<RouteTable>),
}

/// What happens to the `server` header of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerHeader {
    /// Replaced (Envoy's default).
    Overwrite,
    /// Set where missing.
    IfAbsent,
    /// Left alone.
    PassThrough,
}

/// HTTP/2 of clients' connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct H2Settings {
    /// Requests open at a time.
    pub max_concurrent_streams: u32,
    /// Bytes.
    pub stream_window: u32,
    /// Bytes.
    pub connection_window: u32,
    /// Between pings.
    pub ping_interval: Duration,
    /// For the answer.
    pub ping_timeout: Duration,
    /// Whether clients may use `CONNECT` with a `:protocol` (RFC 8441), which is how WebSocket is spoken.
    pub allow_connect: bool,
}

/// How long things may take, and how many there may be. Zero is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Times {
    /// From the first byte of a request's head to its last (HTTP/1.1).
    pub request_headers: Option<Duration>,
    /// From a request's head to the end of its body.
    pub request: Option<Duration>,
    /// How long a connection that is to be closed is still read from, so that the client gets the last answer.
    pub delayed_close: Option<Duration>,
    /// A connection is to finish after this.
    pub connection: Option<Duration>,
    /// A request with its answer is ended after this.
    pub stream: Option<Duration>,
    /// A connection is to finish after so many requests.
    pub requests: Option<u32>,
}

/// `HttpConnectionManager`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpManager {
    /// For people.
    pub stat_prefix: String,
    /// See [`Codec`].
    pub codec: Codec,
    /// See [`RouteSource`].
    pub routes: RouteSource,
    /// What requests pass, in this order, before the router.
    pub filters: Vec<HttpFilter>,
    /// See [`Edge`].
    pub edge: Edge,
    /// See [`Times`].
    pub times: Times,
    /// Protocols that clients may switch to, lower case, and whether they may unless the route says otherwise.
    pub upgrades: Vec<(String, bool)>,
    /// `x-forwarded-client-cert` is set from the verified peer. It is removed from requests in any case.
    pub set_client_cert: bool,
    /// Whether `x-request-id` is made where missing.
    pub generate_request_id: bool,
    /// Whether the `x-request-id` of a request from outside is kept.
    pub keep_request_id: bool,
    /// Whether `x-request-id` goes into answers too.
    pub request_id_in_response: bool,
    /// Value of the `server` header.
    #[serde(skip)]
    pub server_name: HeaderValue,
    /// See [`ServerHeader`].
    pub server_header: ServerHeader,
    /// Largest request head, in bytes.
    pub max_request_headers_bytes: u32,
    /// Most headers of a request.
    pub max_headers_count: u32,
    /// A connection without requests is closed after this.
    pub idle_timeout: Duration,
    /// A request on which nothing moves is ended after this.
    pub stream_idle_timeout: Option<Duration>,
    /// Whether HTTP/1.0 is served; otherwise it is answered with 426.
    pub accept_http_10: bool,
    /// Host of HTTP/1.0 requests without one.
    #[serde(skip)]
    pub default_host: Option<HeaderValue>,
    /// See [`H2Settings`].
    pub h2: H2Settings,
}

#[allow(deprecated)]
pub(super) fn convert(path: &Path<'_>, wire: WireHcm) -> Result<HttpManager> {
    let WireHcm {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = wire;
    refuse!(path; add_user_agent, tracing, http1_safe_max_connection_duration, http3_protocol_options,
        stream_flush_timeout, drain_timeout, drain_timeout_jitter, access_log, access_log_flush_interval,
        flush_access_log_on_new_request, access_log_options, original_ip_detection_extensions,
        early_header_mutation_extensions, forward_client_cert_matcher, proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6, request_id_extension, local_reply_config,
        path_normalization_options, proxy_status_config, typed_header_validation_config, append_local_overload,
        add_proxy_protocol_connection_state, forward_proto_config);
    if bool_or(&stream_error_on_invalid_http_message, false) {
        return Err(path.field("stream_error_on_invalid_http_message").unsupported());
    }
    let uses_remote_address = bool_or(&use_remote_address, false);
    let filters = filters::convert(&path.field("http_filters"), http_filters)?;
    let common = protocol::common(&path.field("common_http_protocol_options"), common_http_protocol_options)?;
    let http1 = protocol::http1(&path.field("http_protocol_options"), http_protocol_options)?;
    let time = |field: &str, wire, default| timeout_or(&path.field(field), wire, default);
    let kilobytes = u32_or(&max_request_headers_kb, limits::REQUEST_HEADERS_BYTES / 1024);
    if !(8..=8192).contains(&kilobytes) {
        return Err(path.field("max_request_headers_kb").invalid(kilobytes, "must be 8 to 8192"));
    }
    let server_name = if server_name.is_empty() { "isthmus" } else { &server_name };
    Ok(HttpManager {
        stat_prefix,
        codec: match codec_type {
            0 => Codec::Auto,
            1 => Codec::Http1,
            2 => Codec::Http2,
            other => return Err(path.field("codec_type").invalid(other, "is not AUTO, HTTP1 or HTTP2")),
        },
        routes: routes(path, route_specifier)?,
        filters,
        edge: Edge {
            use_remote_address: uses_remote_address,
            trusted_hops: xff_num_trusted_hops,
            append_forwarded_for: uses_remote_address && !skip_xff_append,
            append_forwarded_port: append_x_forwarded_port,
            internal: edge::internal(&path.field("internal_address_config"), internal_address_config)?,
            scheme: edge::scheme(&path.field("scheme_header_transformation"), scheme_header_transformation)?,
            normalize_path: bool_or(&normalize_path, false),
            merge_slashes,
            escaped_slashes: edge::escaped_slashes(
                &path.field("path_with_escaped_slashes_action"),
                path_with_escaped_slashes_action,
            )?,
            underscores: common.underscores,
            strip_port: edge::strip_port(path, strip_matching_host_port, strip_port_mode)?,
            strip_host_dot: strip_trailing_host_dot,
            via: edge::via(&path.field("via"), &via)?,
        },
        times: Times {
            request_headers: time(
                "request_headers_timeout",
                &request_headers_timeout,
                Some(limits::REQUEST_HEAD_TIMEOUT),
            )?,
            request: time("request_timeout", &request_timeout, None)?,
            delayed_close: time(
                "delayed_close_timeout",
                &delayed_close_timeout,
                Some(limits::DELAYED_CLOSE),
            )?,
            connection: common.max_connection_duration,
            stream: common.max_stream_duration,
            requests: common.max_requests,
        },
        upgrades: upgrades(&path.field("upgrade_configs"), upgrade_configs)?,
        set_client_cert: client_cert(path, forward_client_cert_details, set_current_client_cert_details)?,
        generate_request_id: bool_or(&generate_request_id, true),
        keep_request_id: preserve_external_request_id,
        request_id_in_response: always_set_request_id_in_response,
        server_name: HeaderValue::from_str(server_name)
            .map_err(|_| path.field("server_name").invalid(server_name, "is no header value"))?,
        server_header: match server_header_transformation {
            0 => ServerHeader::Overwrite,
            1 => ServerHeader::IfAbsent,
            2 => ServerHeader::PassThrough,
            other => return Err(path.field("server_header_transformation").invalid(other, "is unknown")),
        },
        max_request_headers_bytes: kilobytes * 1024,
        max_headers_count: common.max_headers_count,
        idle_timeout: common.idle_timeout,
        stream_idle_timeout: timeout_or(
            &path.field("stream_idle_timeout"),
            &stream_idle_timeout,
            Some(limits::STREAM_IDLE),
        )?,
        accept_http_10: http1.accept_http_10,
        default_host: http1.default_host,
        h2: http2(&path.field("http2_protocol_options"), http2_protocol_options)?,
    })
}

fn upgrades(path: &Path<'_>, wire: Vec<hcm::UpgradeConfig>) -> Result<Vec<(String, bool)>> {
    let one = |(at, wire): (usize, hcm::UpgradeConfig)| {
        let path = path.index(at);
        let hcm::UpgradeConfig { upgrade_type, filters, enabled } = wire;
        refuse!(path; filters);
        if upgrade_type.is_empty() {
            return Err(path.field("upgrade_type").missing());
        }
        Ok((upgrade_type.to_ascii_lowercase(), bool_or(&enabled, true)))
    };
    wire.into_iter().enumerate().map(one).collect()
}

fn routes(path: &Path<'_>, wire: Option<hcm::RouteSpecifier>) -> Result<RouteSource> {
    match wire.ok_or_else(|| path.field("route_config").missing())? {
        hcm::RouteSpecifier::Rds(Rds { config_source, route_config_name }) => {
            let path = path.field("rds");
            source(&path.field("config_source"), config_source, false)?;
            if route_config_name.is_empty() {
                return Err(path.field("route_config_name").missing());
            }
            Ok(RouteSource::Rds(route_config_name))
        }
        hcm::RouteSpecifier::RouteConfig(wire) => {
            route::convert(&path.field("route_config"), wire).map(|t| RouteSource::Inline(Arc::new(t)))
        }
        hcm::RouteSpecifier::ScopedRoutes(_) => Err(path.field("scoped_routes").unsupported()),
    }
}

/// `SANITIZE` (the default) and `SANITIZE_SET`; what a client says about certificates is never passed on.
fn client_cert(path: &Path<'_>, mode: i32, set: Option<hcm::SetCurrentClientCertDetails>) -> Result<bool> {
    let set_path = path.field("set_current_client_cert_details");
    let hcm::SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format } =
        set.unwrap_or_default();
    if bool_or(&subject, false) {
        return Err(set_path.field("subject").unsupported());
    }
    refuse!(set_path; cert, chain, dns, issuer, format);
    match mode {
        0 => Ok(false),
        3 if uri => Ok(true),
        3 => Err(set_path
            .field("uri")
            .invalid(uri, "must be true with SANITIZE_SET: it is what this proxy sets")),
        other => {
            Err(path.field("forward_client_cert_details").invalid(other, "is not SANITIZE or SANITIZE_SET"))
        }
    }
}
