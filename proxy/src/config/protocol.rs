//! `HttpProtocolOptions`, `Http1ProtocolOptions` and `Http2ProtocolOptions` of clients' connections.

use std::time::Duration;

use http::HeaderValue;
use xds_proto::envoy::config::core::v3::{
    Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions, KeepaliveSettings,
};

use super::{
    edge::{self, Underscores},
    error::Path,
    hcm::H2Settings,
    header_ops,
    wire::{Result, bool_or, duration_or, refuse, timeout_or, u32_or},
};
use crate::limits;

pub(super) struct Common {
    pub(super) idle_timeout: Duration,
    pub(super) max_headers_count: u32,
    pub(super) max_connection_duration: Option<Duration>,
    pub(super) max_stream_duration: Option<Duration>,
    pub(super) max_requests: Option<u32>,
    pub(super) underscores: Underscores,
}

pub(super) struct Http1 {
    pub(super) accept_http_10: bool,
    pub(super) default_host: Option<HeaderValue>,
}

pub(super) fn common(path: &Path<'_>, wire: Option<HttpProtocolOptions>) -> Result<Common> {
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
    refuse!(path; max_connection_duration_jitter, max_response_headers_kb);
    let idle_path = path.field("idle_timeout");
    let idle_timeout = duration_or(&idle_path, &idle_timeout, limits::DOWNSTREAM_IDLE)?;
    if idle_timeout.is_zero() {
        return Err(idle_path.invalid("0s", "would keep idle connections for ever; give a limit"));
    }
    let max_headers_count = u32_or(&max_headers_count, limits::HEADERS_COUNT);
    if !(1..=10_000).contains(&max_headers_count) {
        return Err(path.field("max_headers_count").invalid(max_headers_count, "must be 1 to 10000"));
    }
    let time = |field: &str, wire| timeout_or(&path.field(field), wire, None);
    Ok(Common {
        idle_timeout,
        max_headers_count,
        max_connection_duration: time("max_connection_duration", &max_connection_duration)?,
        max_stream_duration: time("max_stream_duration", &max_stream_duration)?,
        max_requests: Some(u32_or(&max_requests_per_connection, 0)).filter(|n| *n > 0),
        underscores: edge::underscores(
            &path.field("headers_with_underscores_action"),
            headers_with_underscores_action,
        )?,
    })
}

#[allow(deprecated)]
pub(super) fn http1(path: &Path<'_>, wire: Option<Http1ProtocolOptions>) -> Result<Http1> {
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
    refuse!(path; header_key_format, allow_chunked_length,
        override_stream_error_on_invalid_http_message, send_fully_qualified_url, ignore_http_11_upgrade);
    if !bool_or(&allow_absolute_url, true) {
        return Err(path
            .field("allow_absolute_url")
            .invalid(false, "is not supported: RFC 9112 3.2.2 wants them accepted"));
    }
    let host = path.field("default_host_for_http_10");
    Ok(Http1 { accept_http_10, default_host: header_ops::host(&host, &default_host_for_http_10)? })
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
    refuse!(path; hpack_table_size, allow_metadata, max_outbound_frames, max_outbound_control_frames,
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
        allow_connect,
    })
}
