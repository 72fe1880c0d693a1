//! Services that filters ask: `GrpcService`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use xds_proto::envoy::config::core::v3::{
    GrpcService, HeaderValue as WireHeader,
    grpc_service::{EnvoyGrpc, TargetSpecifier},
};

use crate::{
    config::{
        error::Path,
        wire::{Result, duration_or, refuse, u32_or},
    },
    limits,
    policy::GrpcTarget,
};

pub(super) fn grpc(path: &Path<'_>, wire: GrpcService, timeout: Duration) -> Result<GrpcTarget> {
    let GrpcService { timeout: wire_timeout, initial_metadata, retry_policy, target_specifier } = wire;
    refuse!(path; retry_policy);
    let timeout = duration_or(&path.field("timeout"), &wire_timeout, timeout)?;
    let metadata = headers(&path.field("initial_metadata"), initial_metadata)?;
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(wire)) => {
            let path = path.field("envoy_grpc");
            let EnvoyGrpc {
                cluster_name,
                authority,
                retry_policy,
                max_receive_message_length,
                skip_envoy_headers: _,
            } = wire;
            refuse!(path; retry_policy);
            if cluster_name.is_empty() {
                return Err(path.field("cluster_name").missing());
            }
            let name = if authority.is_empty() { &cluster_name } else { &authority };
            // Names of clusters need not be hosts.
            let host: Option<http::uri::Authority> = name.parse().ok();
            let max = u32_or(&max_receive_message_length, limits::SERVICE_ANSWER_BYTES);
            Ok(GrpcTarget {
                authority: host.map_or("localhost".into(), |host| host.as_str().into()),
                cluster: Arc::from(cluster_name),
                timeout: Some(timeout).filter(|time| !time.is_zero()).unwrap_or(limits::SERVICE_TIMEOUT),
                metadata,
                max_answer: max.min(limits::SERVICE_ANSWER_BYTES) as usize,
            })
        }
        Some(TargetSpecifier::GoogleGrpc(_)) => Err(path.field("google_grpc").unsupported()),
        None => Err(path.field("envoy_grpc").missing()),
    }
}

/// Literal headers.
pub(super) fn headers(path: &Path<'_>, wires: Vec<WireHeader>) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let each = wires.into_iter().enumerate().map(|(at, WireHeader { key, value, raw_value })| {
        let path = path.index(at);
        refuse!(path; raw_value);
        let name = key.parse().map_err(|_| path.field("key").invalid(&key, "is no header name"))?;
        if value.contains('%') {
            let reason = "contains '%': command operators are not supported";
            return Err(path.field("value").invalid(&value, reason));
        }
        let value = HeaderValue::from_str(&value)
            .map_err(|_| path.field("value").invalid(&value, "is no header value"))?;
        Ok((name, value))
    });
    each.collect()
}
