//! `HealthCheck`: HTTP, gRPC and TCP.

use std::{ops::Range, time::Duration};

use http::{HeaderName, HeaderValue, Method};
use serde::Serialize;
use xds_proto::{
    envoy::{
        config::core::v3::{
            HeaderValue as WireHeader, HeaderValueOption, HealthCheck as WireCheck,
            health_check::{
                GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
            },
        },
        r#type::v3::Int64Range,
    },
    google::protobuf::{Duration as WireDuration, UInt32Value},
};

use super::{
    error::Path,
    metadata,
    wire::{Result, bool_or, duration, duration_or, refuse, u32_or},
};
use crate::balance::{CheckTiming, Metadata};

/// Shortest time between checks: a resource must not make a proxy a nuisance.
const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// Most bytes of what a TCP check sends or waits for.
const MAX_PAYLOAD: usize = 64 * 1024;
/// Most headers that a check adds.
const MAX_HEADERS: usize = 100;

/// One kind of check of all endpoints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HealthCheck {
    /// See [`CheckTiming`].
    pub timing: CheckTiming,
    /// Whether the next check uses the same connection.
    pub reuse_connection: bool,
    /// Another port than the endpoint's.
    pub alt_port: Option<u16>,
    /// Chooses among the ways to connect, in place of the endpoint's metadata.
    pub socket: Option<Metadata>,
    /// What is asked.
    pub checker: Checker,
}

/// What a check asks for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Checker {
    /// An answer.
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcCheck),
    /// A connection, and perhaps bytes.
    Tcp {
        /// Sent at first.
        send: Vec<u8>,
        /// Waited for: each after the one before, whatever is in between.
        receive: Vec<Vec<u8>>,
    },
}

/// `HttpHealthCheck`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpCheck {
    /// `host`; empty: the cluster's name.
    pub host: String,
    /// With query.
    pub path: String,
    /// `GET` and so on.
    #[serde(skip)]
    pub method: Method,
    /// Set on the request.
    #[serde(skip)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Not sent, whoever would.
    #[serde(skip)]
    pub without: Vec<HeaderName>,
    /// Statuses of endpoints that are well.
    pub expected: Vec<Range<i64>>,
    /// Statuses that only count when they go on.
    pub retriable: Vec<Range<i64>>,
    /// Whether HTTP/2 is spoken.
    pub http2: bool,
}

/// `GrpcHealthCheck`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GrpcCheck {
    /// Empty: the whole server.
    pub service: String,
    /// Empty: the cluster's name.
    pub authority: String,
    /// Set on the request.
    #[serde(skip)]
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

#[allow(deprecated)]
pub(super) fn convert(path: &Path<'_>, wire: WireCheck) -> Result<HealthCheck> {
    let WireCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = wire;
    refuse!(path; event_log_path, event_logger, event_service, always_log_health_check_failures,
        always_log_health_check_success, tls_options);
    let must = |field: &str, wire: Option<WireDuration>| {
        let path = path.field(field);
        positive(&path, duration(&path, &wire.ok_or_else(|| path.missing())?)?)
    };
    let or = |field: &str, wire, default| {
        let path = path.field(field);
        positive(&path, duration_or(&path, &wire, default)?)
    };
    let threshold = |field: &str, wire: Option<UInt32Value>| match wire {
        None => Err(path.field(field).missing()),
        Some(wire) => Ok(wire.value.max(1)),
    };
    let jitter = |field: &str, wire| duration_or(&path.field(field), &wire, Duration::ZERO);
    let interval = must("interval", interval)?;
    let unhealthy_interval = or("unhealthy_interval", unhealthy_interval, interval)?;
    let no_traffic_interval = or("no_traffic_interval", no_traffic_interval, Duration::from_secs(60))?;
    if interval_jitter_percent > 100_000 {
        let path = path.field("interval_jitter_percent");
        return Err(path.invalid(interval_jitter_percent, "is above 100000"));
    }
    let port_path = path.field("alt_port");
    let alt_port = match u32_or(&alt_port, 0) {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| port_path.invalid(port, "is no port"))?),
    };
    let criteria = path.field("transport_socket_match_criteria");
    Ok(HealthCheck {
        timing: CheckTiming {
            timeout: must("timeout", timeout)?,
            interval,
            initial_jitter: jitter("initial_jitter", initial_jitter)?,
            interval_jitter: jitter("interval_jitter", interval_jitter)?,
            interval_jitter_percent,
            unhealthy_threshold: threshold("unhealthy_threshold", unhealthy_threshold)?,
            healthy_threshold: threshold("healthy_threshold", healthy_threshold)?,
            no_traffic_interval,
            no_traffic_healthy_interval: or(
                "no_traffic_healthy_interval",
                no_traffic_healthy_interval,
                no_traffic_interval,
            )?,
            unhealthy_interval,
            unhealthy_edge_interval: or(
                "unhealthy_edge_interval",
                unhealthy_edge_interval,
                unhealthy_interval,
            )?,
            healthy_edge_interval: or("healthy_edge_interval", healthy_edge_interval, interval)?,
        },
        reuse_connection: bool_or(&reuse_connection, true),
        alt_port,
        socket: transport_socket_match_criteria.map(|wire| metadata::object(&criteria, wire)).transpose()?,
        checker: match health_checker {
            None => return Err(path.field("health_checker").missing()),
            Some(HealthChecker::HttpHealthCheck(wire)) => {
                Checker::Http(http(&path.field("http_health_check"), wire)?)
            }
            Some(HealthChecker::GrpcHealthCheck(wire)) => {
                Checker::Grpc(grpc(&path.field("grpc_health_check"), wire)?)
            }
            Some(HealthChecker::TcpHealthCheck(wire)) => tcp(&path.field("tcp_health_check"), wire)?,
            Some(HealthChecker::CustomHealthCheck(_)) => {
                return Err(path.field("custom_health_check").unsupported());
            }
        },
    })
}

fn positive(path: &Path<'_>, duration: Duration) -> Result<Duration> {
    if duration >= MIN_INTERVAL { Ok(duration) } else { Err(path.invalid("0s", "must be at least 1 ms")) }
}

fn http(path: &Path<'_>, wire: HttpHealthCheck) -> Result<HttpCheck> {
    let HttpHealthCheck {
        host,
        path: target,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = wire;
    refuse!(path; send, receive, response_buffer_size, service_name_matcher);
    if !target.starts_with('/') || target.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(path.field("path").invalid(&target, "must begin with '/' and be a path"));
    }
    authority(&path.field("host"), &host)?;
    let http2 = match codec_client_type {
        0 => false,
        1 => true,
        other => return Err(path.field("codec_client_type").invalid(other, "is not HTTP1 or HTTP2")),
    };
    let names = ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let name = usize::try_from(method).ok().and_then(|n| names.get(n)).filter(|name| **name != "CONNECT");
    let method_path = path.field("method");
    let name = name.ok_or_else(|| method_path.invalid(method, "is unknown or cannot be used"))?;
    let remove = path.field("request_headers_to_remove");
    let without = request_headers_to_remove.into_iter().enumerate().map(|(at, name)| {
        HeaderName::try_from(&name).map_err(|_| remove.index(at).invalid(&name, "is no header name"))
    });
    let mut expected = ranges(&path.field("expected_statuses"), expected_statuses, 100)?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    Ok(HttpCheck {
        host,
        path: target,
        method: Method::try_from(*name).map_err(|_| method_path.invalid(method, "is unknown"))?,
        headers: headers(&path.field("request_headers_to_add"), request_headers_to_add)?,
        without: without.collect::<Result<_>>()?,
        expected,
        retriable: ranges(&path.field("retriable_statuses"), retriable_statuses, 100)?,
        http2,
    })
}

fn authority(path: &Path<'_>, host: &str) -> Result<()> {
    if host.is_empty() || host.parse::<http::uri::Authority>().is_ok() {
        return Ok(());
    }
    Err(path.invalid(host, "is no host"))
}

fn ranges(path: &Path<'_>, wire: Vec<Int64Range>, from: i64) -> Result<Vec<Range<i64>>> {
    let one = |(at, Int64Range { start, end }): (usize, Int64Range)| {
        if from <= start && start < end && end <= 600 {
            return Ok(start..end);
        }
        let reason = format!("must be within [{from}, 600) and not empty");
        Err(path.index(at).invalid(format!("[{start}, {end})"), reason))
    };
    wire.into_iter().enumerate().map(one).collect()
}

fn headers(path: &Path<'_>, wire: Vec<HeaderValueOption>) -> Result<Vec<(HeaderName, HeaderValue)>> {
    if wire.len() > MAX_HEADERS {
        return Err(path.invalid(wire.len(), format!("headers are more than {MAX_HEADERS}")));
    }
    let one = |(at, wire): (usize, HeaderValueOption)| {
        let path = path.index(at);
        let path = path.field("header");
        let WireHeader { key, value, raw_value } = wire.header.ok_or_else(|| path.missing())?;
        let bytes = if value.is_empty() { raw_value } else { value.clone().into_bytes() };
        // Variables of requests mean nothing here.
        if bytes.contains(&b'%') {
            return Err(path.field("value").invalid(value, "has a variable"));
        }
        let name =
            HeaderName::try_from(&key).map_err(|_| path.field("key").invalid(&key, "is no header name"))?;
        let value = HeaderValue::from_bytes(&bytes)
            .map_err(|_| path.field("value").invalid(value, "is no header value"))?;
        Ok((name, value))
    };
    wire.into_iter().enumerate().map(one).collect()
}

fn grpc(path: &Path<'_>, wire: GrpcHealthCheck) -> Result<GrpcCheck> {
    let GrpcHealthCheck { service_name, authority, initial_metadata } = wire;
    self::authority(&path.field("authority"), &authority)?;
    let headers = headers(&path.field("initial_metadata"), initial_metadata)?;
    Ok(GrpcCheck { service: service_name, authority, headers })
}

fn tcp(path: &Path<'_>, wire: TcpHealthCheck) -> Result<Checker> {
    let TcpHealthCheck { send, receive, proxy_protocol_config } = wire;
    refuse!(path; proxy_protocol_config);
    let list = path.field("receive");
    let receive: Vec<_> = receive
        .into_iter()
        .enumerate()
        .map(|(at, wire)| bytes(&list.index(at), wire))
        .collect::<Result<_>>()?;
    let send = send.map_or(Ok(vec![]), |wire| bytes(&path.field("send"), wire))?;
    if receive.iter().map(Vec::len).sum::<usize>() > MAX_PAYLOAD {
        return Err(list.invalid("payload", format!("is longer than {MAX_PAYLOAD} bytes")));
    }
    Ok(Checker::Tcp { send, receive })
}

fn bytes(path: &Path<'_>, wire: Payload) -> Result<Vec<u8>> {
    let bytes = match wire.payload {
        None => return Err(path.missing()),
        Some(payload::Payload::Binary(bytes)) => bytes,
        Some(payload::Payload::Text(text)) => {
            unhex(&text).ok_or_else(|| path.field("text").invalid(&text, "is not hexadecimal"))?
        }
    };
    if bytes.is_empty() || bytes.len() > MAX_PAYLOAD {
        return Err(path.invalid(bytes.len(), format!("bytes: must be 1 to {MAX_PAYLOAD}")));
    }
    Ok(bytes)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let pair = |pair: &[u8; 2]| {
        let digits = std::str::from_utf8(pair).ok().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
        u8::from_str_radix(digits, 16).ok()
    };
    rest.is_empty().then(|| pairs.iter().map(pair).collect::<Option<_>>())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_hexadecimal_or_refused() {
        assert_eq!(unhex("00fF10"), Some(vec![0, 255, 16]));
        for text in ["0", "0g", "+1", "ä"] {
            assert_eq!(unhex(text), None, "{text}");
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn statuses_are_half_open_and_within_http() {
        let range = |start, end| ranges(&Path::ROOT, vec![Int64Range { start, end }], 100);
        assert_eq!(range(200, 300).unwrap(), Vec::from_iter(Some(200..300)));
        for (start, end) in [(99, 200), (200, 200), (300, 200), (500, 601)] {
            assert!(range(start, end).is_err(), "{start} {end}");
        }
    }
}
