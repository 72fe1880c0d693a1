//! `envoy.filters.http.fault`; its settings on routes are the same message.

use std::sync::Arc;

use xds_proto::envoy::extensions::filters::{
    common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
    http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
};

use super::fraction;
use crate::{
    config::{
        error::Path,
        route,
        wire::{Result, duration, refuse},
    },
    policy::{Abort, AbortWith, DelayFor, Fault, Fraction, Percentage},
};

pub(super) fn convert(path: &Path<'_>, wire: HttpFault) -> Result<Fault> {
    let HttpFault {
        delay,
        abort,
        upstream_cluster,
        headers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        disable_downstream_cluster_stats: _,
        filter_metadata,
    } = wire;
    refuse!(path; downstream_nodes, response_rate_limit, delay_percent_runtime, abort_percent_runtime,
        delay_duration_runtime, abort_http_status_runtime, max_active_faults_runtime,
        response_rate_limit_percent_runtime, abort_grpc_status_runtime, filter_metadata);
    let list = path.field("headers");
    let headers = headers.into_iter().enumerate().map(|(at, wire)| route::header(&list.index(at), wire));
    Ok(Fault {
        delay: delay.map(|wire| self::delay(&path.field("delay"), wire)).transpose()?,
        abort: abort.map(|wire| self::abort(&path.field("abort"), wire)).transpose()?,
        cluster: Some(upstream_cluster).filter(|name| !name.is_empty()).map(Arc::from),
        headers: headers.collect::<Result<_>>()?,
        max_active: max_active_faults.map(|wire| wire.value),
        active: Arc::default(),
    })
}

fn delay(path: &Path<'_>, wire: FaultDelay) -> Result<(DelayFor, Percentage)> {
    let FaultDelay { percentage, fault_delay_secifier } = wire;
    let share = path.field("percentage");
    let share = percentage.map_or(Ok(Fraction::NONE), |wire| fraction::convert(&share, wire))?;
    let field = path.field("fixed_delay");
    let delay = match fault_delay_secifier.ok_or_else(|| field.missing())? {
        FaultDelaySecifier::FixedDelay(wire) => match duration(&field, &wire)? {
            time if time.is_zero() => return Err(field.invalid("0s", "must be more than 0s")),
            time => DelayFor::Fixed(time),
        },
        FaultDelaySecifier::HeaderDelay(_) => DelayFor::Header,
    };
    Ok((delay, share))
}

fn abort(path: &Path<'_>, wire: FaultAbort) -> Result<Abort> {
    let FaultAbort { percentage, response_body, error_type } = wire;
    let share = path.field("percentage");
    let percentage = percentage.map_or(Ok(Fraction::NONE), |wire| fraction::convert(&share, wire))?;
    let with = match error_type.ok_or_else(|| path.field("http_status").missing())? {
        ErrorType::HttpStatus(status) => match u16::try_from(status) {
            Ok(status @ 200..600) => AbortWith::Http(status),
            _ => return Err(path.field("http_status").invalid(status, "must be 200 to 599")),
        },
        ErrorType::GrpcStatus(status) => match u16::try_from(status) {
            Ok(status @ 0..=16) => AbortWith::Grpc(status),
            _ => return Err(path.field("grpc_status").invalid(status, "is no gRPC status")),
        },
        ErrorType::HeaderAbort(_) => AbortWith::Header,
    };
    Ok(Abort { with, percentage, body: response_body })
}
