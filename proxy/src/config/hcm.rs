//! `HttpConnectionManager`.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use serde::Serialize;
use xds_proto::envoy::{
    config::core::v3::{
        Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings,
        http_protocol_options,
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager as WireHcm, Rds, http_connection_manager as hcm,
    },
};

use super::{
    error::Path,
    filters::{self, HttpFilter, Manager},
    route,
    wire::{Result, bool_or, duration_or, refuse, source, timeout_or, u32_or},
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
    /// Whether the client's address is added to `x-forwarded-for`.
    pub append_forwarded_for: bool,
    /// `x-forwarded-client-cert` is set from the verified peer. It is removed from requests in any case.
    pub set_client_cert: bool,
    /// Whether `x-request-id` is made where missing.
    pub generate_request_id: bool,
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
        // Ids from outside are always kept.
        preserve_external_request_id: _,
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
        scheme_header_transformation, stream_flush_timeout, request_timeout, request_headers_timeout, drain_timeout,
        drain_timeout_jitter, delayed_close_timeout, access_log, access_log_flush_interval,
        flush_access_log_on_new_request, access_log_options, xff_num_trusted_hops, original_ip_detection_extensions,
        early_header_mutation_extensions, internal_address_config, via, forward_client_cert_matcher,
        proxy_100_continue, represent_ipv4_remote_address_as_ipv4_mapped_ipv6, upgrade_configs, merge_slashes,
        request_id_extension, local_reply_config, strip_matching_host_port, path_normalization_options,
        strip_trailing_host_dot, proxy_status_config, typed_header_validation_config, append_x_forwarded_port,
        append_local_overload, add_proxy_protocol_connection_state, forward_proto_config, strip_port_mode);
    for (field, on) in [
        ("normalize_path", bool_or(&normalize_path, false)),
        ("stream_error_on_invalid_http_message", bool_or(&stream_error_on_invalid_http_message, false)),
        // KEEP_UNCHANGED (1) is what is done.
        ("path_with_escaped_slashes_action", path_with_escaped_slashes_action > 1),
    ] {
        if on {
            return Err(path.field(field).unsupported());
        }
    }
    let uses_remote_address = bool_or(&use_remote_address, false);
    let filters =
        filters::convert(&path.field("http_filters"), http_filters, Manager { uses_remote_address })?;
    let common = common(&path.field("common_http_protocol_options"), common_http_protocol_options)?;
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
        append_forwarded_for: uses_remote_address && !skip_xff_append,
        set_client_cert: client_cert(path, forward_client_cert_details, set_current_client_cert_details)?,
        generate_request_id: bool_or(&generate_request_id, true),
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
        accept_http_10: http1(&path.field("http_protocol_options"), http_protocol_options)?,
        h2: http2(&path.field("http2_protocol_options"), http2_protocol_options)?,
    })
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

struct Common {
    idle_timeout: Duration,
    max_headers_count: u32,
}

fn common(path: &Path<'_>, wire: Option<HttpProtocolOptions>) -> Result<Common> {
    let HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = wire.unwrap_or_default();
    refuse!(path; max_connection_duration, max_connection_duration_jitter, max_response_headers_kb,
        max_stream_duration, max_requests_per_connection);
    if headers_with_underscores_action != http_protocol_options::HeadersWithUnderscoresAction::Allow as i32 {
        return Err(path.field("headers_with_underscores_action").unsupported());
    }
    let idle_path = path.field("idle_timeout");
    let idle_timeout = duration_or(&idle_path, &idle_timeout, limits::DOWNSTREAM_IDLE)?;
    if idle_timeout.is_zero() {
        return Err(idle_path.invalid("0s", "would keep idle connections for ever; give a limit"));
    }
    let max_headers_count = u32_or(&max_headers_count, limits::HEADERS_COUNT);
    if !(1..=10_000).contains(&max_headers_count) {
        return Err(path.field("max_headers_count").invalid(max_headers_count, "must be 1 to 10000"));
    }
    Ok(Common { idle_timeout, max_headers_count })
}

/// Whether HTTP/1.0 is served.
#[allow(deprecated)]
fn http1(path: &Path<'_>, wire: Option<Http1ProtocolOptions>) -> Result<bool> {
    let Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        // Trailers always pass.
        enable_trailers: _,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser: _,
        allow_custom_methods: _,
        ignore_http_11_upgrade,
    } = wire.unwrap_or_default();
    refuse!(path; default_host_for_http_10, header_key_format, allow_chunked_length,
        override_stream_error_on_invalid_http_message, send_fully_qualified_url, ignore_http_11_upgrade);
    if !bool_or(&allow_absolute_url, true) {
        return Err(path
            .field("allow_absolute_url")
            .invalid(false, "is not supported: RFC 9112 3.2.2 wants them accepted"));
    }
    Ok(accept_http_10)
}

#[allow(deprecated)]
pub(super) fn http2(path: &Path<'_>, wire: Option<Http2ProtocolOptions>) -> Result<H2Settings> {
    let Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        use_oghttp2_codec: _,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = wire.unwrap_or_default();
    refuse!(path; hpack_table_size, allow_connect, allow_metadata, max_outbound_frames, max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload, max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent, stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message, custom_settings_parameters, max_metadata_size,
        enable_huffman_encoding, max_header_field_size_kb, disallow_obs_text, stream_reset_burst, stream_reset_rate);
    let window = |field: &str, wire, default| {
        let size = u32_or(wire, default);
        // RFC 9113 6.9.1 and Envoy's own lower bound.
        let good = (65_535..=0x7FFF_FFFF).contains(&size);
        if good { Ok(size) } else { Err(path.field(field).invalid(size, "must be 65535 to 2147483647")) }
    };
    let streams = u32_or(&max_concurrent_streams, limits::H2_STREAMS);
    if streams == 0 || streams > 0x7FFF_FFFF {
        return Err(path.field("max_concurrent_streams").invalid(streams, "must be 1 to 2147483647"));
    }
    let keepalive = path.field("connection_keepalive");
    let KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } =
        connection_keepalive.unwrap_or_default();
    refuse!(keepalive; interval_jitter, connection_idle_interval);
    Ok(H2Settings {
        max_concurrent_streams: streams,
        stream_window: window(
            "initial_stream_window_size",
            &initial_stream_window_size,
            limits::H2_STREAM_WINDOW,
        )?,
        connection_window: window(
            "initial_connection_window_size",
            &initial_connection_window_size,
            limits::H2_CONNECTION_WINDOW,
        )?,
        ping_interval: duration_or(&keepalive.field("interval"), &interval, limits::H2_PING_INTERVAL)?
            .max(Duration::from_millis(1)),
        ping_timeout: duration_or(&keepalive.field("timeout"), &timeout, limits::H2_PING_TIMEOUT)?
            .max(Duration::from_millis(1)),
    })
}
