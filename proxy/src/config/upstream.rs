//! `HttpProtocolOptions` of a cluster: which HTTP version its endpoints speak.

use std::{collections::HashMap, time::Duration};

use serde::Serialize;
use xds_proto::{
    envoy::{
        config::core::v3::{Http1ProtocolOptions, HttpProtocolOptions as WireCommon},
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                AutoHttpConfig, ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                explicit_http_config::ProtocolConfig,
            },
        },
    },
    google::protobuf::Any,
};

use super::{
    error::Path,
    hcm,
    wire::{Result, bool_or, refuse, timeout_or, u32_or, unpack},
};
use crate::limits;

/// Key of the extension in `typed_extension_protocol_options`.
const KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Which HTTP version is spoken to endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1 (Envoy's default).
    Http1,
    /// HTTP/2, with prior knowledge where there is no TLS.
    Http2,
    /// What ALPN chooses.
    Auto,
    /// What the client speaks.
    Downstream,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) protocol: UpstreamProtocol,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_streams: usize,
    pub(super) max_connection_duration: Option<Duration>,
    pub(super) max_requests_per_connection: Option<u32>,
    pub(super) pings: (Duration, Duration),
    pub(super) windows: (u32, u32),
}

pub(super) fn convert(path: &Path<'_>, mut wire: HashMap<String, Any>) -> Result<Options> {
    let any = wire.remove(KEY);
    if let Some(other) = wire.keys().min() {
        return Err(path.key(other).unsupported_type(other));
    }
    let path = path.key(KEY);
    let mut options = Options {
        protocol: UpstreamProtocol::Http1,
        idle_timeout: Some(limits::UPSTREAM_IDLE),
        max_streams: limits::H2_UPSTREAM_STREAMS,
        max_connection_duration: None,
        max_requests_per_connection: None,
        pings: (limits::H2_PING_INTERVAL, limits::H2_PING_TIMEOUT),
        windows: (limits::H2_STREAM_WINDOW, limits::H2_CONNECTION_WINDOW),
    };
    let Some(any) = any else { return Ok(options) };
    let HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = unpack(&path, &any)?;
    refuse!(path; upstream_http_protocol_options, http_filters, header_validation_config, outlier_detection,
        request_mirror_policies, hash_policy, retry_policy);
    if let Some(wire) = common_http_protocol_options {
        common(&path.field("common_http_protocol_options"), wire, &mut options)?;
    }
    let mut h2 = |path: &Path<'_>, wire| -> Result<()> {
        let path = path.field("http2_protocol_options");
        let given = Option::is_some(&wire);
        let settings = hcm::http2(&path, wire)?;
        if given && settings.max_concurrent_streams != limits::H2_STREAMS {
            options.max_streams = settings.max_concurrent_streams as usize;
        }
        if given {
            options.pings = (settings.ping_interval, settings.ping_timeout);
            options.windows = (settings.stream_window, settings.connection_window);
        }
        Ok(())
    };
    options.protocol = match upstream_protocol_options {
        None => UpstreamProtocol::Http1,
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })) => {
            let path = path.field("explicit_http_config");
            match protocol_config {
                None => return Err(path.missing()),
                Some(ProtocolConfig::HttpProtocolOptions(wire)) => {
                    http1(&path, Some(wire))?;
                    UpstreamProtocol::Http1
                }
                Some(ProtocolConfig::Http2ProtocolOptions(wire)) => {
                    h2(&path, Some(wire))?;
                    UpstreamProtocol::Http2
                }
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    return Err(path.field("http3_protocol_options").unsupported());
                }
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
        })) => {
            let path = path.field("use_downstream_protocol_config");
            refuse!(path; http3_protocol_options);
            http1(&path, http_protocol_options)?;
            h2(&path, http2_protocol_options)?;
            UpstreamProtocol::Downstream
        }
        Some(UpstreamProtocolOptions::AutoConfig(AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            alternate_protocols_cache_options,
        })) => {
            let path = path.field("auto_config");
            refuse!(path; http3_protocol_options, alternate_protocols_cache_options);
            http1(&path, http_protocol_options)?;
            h2(&path, http2_protocol_options)?;
            UpstreamProtocol::Auto
        }
    };
    Ok(options)
}

fn common(path: &Path<'_>, wire: WireCommon, options: &mut Options) -> Result<()> {
    let WireCommon {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = wire;
    refuse!(path; max_connection_duration_jitter, max_response_headers_kb, max_stream_duration,
        headers_with_underscores_action);
    let count = u32_or(&max_headers_count, limits::HEADERS_COUNT);
    if count != limits::HEADERS_COUNT {
        return Err(path.field("max_headers_count").invalid(count, "is not 100, the limit here"));
    }
    options.idle_timeout =
        timeout_or(&path.field("idle_timeout"), &idle_timeout, Some(limits::UPSTREAM_IDLE))?;
    options.max_connection_duration =
        timeout_or(&path.field("max_connection_duration"), &max_connection_duration, None)?;
    // 0: no limit, as in Envoy.
    options.max_requests_per_connection = Some(u32_or(&max_requests_per_connection, 0)).filter(|n| *n > 0);
    Ok(())
}

#[allow(deprecated)]
fn http1(path: &Path<'_>, wire: Option<Http1ProtocolOptions>) -> Result<()> {
    let path = path.field("http_protocol_options");
    let Http1ProtocolOptions {
        allow_absolute_url,
        accept_http_10,
        default_host_for_http_10,
        header_key_format,
        enable_trailers: _,
        allow_chunked_length,
        override_stream_error_on_invalid_http_message,
        send_fully_qualified_url,
        use_balsa_parser: _,
        allow_custom_methods: _,
        ignore_http_11_upgrade,
    } = wire.unwrap_or_default();
    refuse!(path; accept_http_10, default_host_for_http_10, header_key_format, allow_chunked_length,
        override_stream_error_on_invalid_http_message, send_fully_qualified_url, ignore_http_11_upgrade);
    if !bool_or(&allow_absolute_url, true) {
        return Err(path.field("allow_absolute_url").unsupported());
    }
    Ok(())
}
