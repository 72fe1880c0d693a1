//! `envoy.filters.http.ratelimit`, and its settings on routes.

use std::time::Duration;

use xds_proto::envoy::extensions::filters::http::ratelimit::v3::{
    RateLimit as WireLimit, RateLimitPerRoute, rate_limit_per_route::VhRateLimitsOptions,
};

use super::{fraction, local_limit, service};
use crate::{
    config::{
        error::Path,
        header_ops, limits,
        wire::{Result, duration_or, refuse},
    },
    policy::{
        Fraction,
        limit::{GlobalLimit, GlobalRoute},
    },
};

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(20);

pub(super) fn filter(path: &Path<'_>, wire: WireLimit) -> Result<GlobalLimit> {
    let WireLimit {
        domain,
        stage,
        request_type,
        timeout,
        failure_mode_deny,
        rate_limited_as_resource_exhausted,
        rate_limit_service,
        enable_x_ratelimit_headers,
        disable_x_envoy_ratelimited_header,
        rate_limited_status,
        response_headers_to_add,
        status_on_error,
        stat_prefix: _,
        filter_enabled,
        filter_enforced,
        failure_mode_deny_percent,
        rate_limits,
        metadata_namespace,
        enable_retry_after_header,
    } = wire;
    refuse!(path; failure_mode_deny_percent, metadata_namespace, enable_retry_after_header);
    if !matches!(request_type.as_str(), "" | "both") {
        return Err(path.field("request_type").invalid(&request_type, "is not both"));
    }
    if domain.is_empty() {
        return Err(path.field("domain").missing());
    }
    if stage > 10 {
        return Err(path.field("stage").invalid(stage, "must be at most 10"));
    }
    let service_path = path.field("rate_limit_service");
    let config = rate_limit_service.ok_or_else(|| service_path.missing())?;
    if !matches!(config.transport_api_version, 0 | 2) {
        let version = config.transport_api_version;
        return Err(service_path.field("transport_api_version").invalid(version, "is not V3"));
    }
    let grpc = service_path.field("grpc_service");
    let timeout = duration_or(&path.field("timeout"), &timeout, TIMEOUT)?;
    let mut wire = config.grpc_service.ok_or_else(|| grpc.missing())?;
    // The filter's own counts.
    wire.timeout = None;
    Ok(GlobalLimit {
        domain,
        stage,
        service: service::grpc(&grpc, wire, timeout)?,
        deny_on_failure: failure_mode_deny,
        resource_exhausted: rate_limited_as_resource_exhausted,
        tell: match enable_x_ratelimit_headers {
            0 => false,
            1 => true,
            other => return Err(path.field("enable_x_ratelimit_headers").invalid(other, "is unknown")),
        },
        tell_limited: !disable_x_envoy_ratelimited_header,
        status: local_limit::status(&path.field("rate_limited_status"), rate_limited_status, 429)?,
        response_headers: header_ops::convert(path, &header_ops::RESPONSE, response_headers_to_add, vec![])?,
        status_on_error: local_limit::status(&path.field("status_on_error"), status_on_error, 500)?,
        enabled: fraction::or(&path.field("filter_enabled"), filter_enabled, Fraction::ALL)?,
        enforced: fraction::or(&path.field("filter_enforced"), filter_enforced, Fraction::ALL)?,
        rules: Some(limits::convert(path, rate_limits)?).filter(|rules| !rules.is_empty()),
    })
}

pub(super) fn route(path: &Path<'_>, wire: RateLimitPerRoute) -> Result<GlobalRoute> {
    let RateLimitPerRoute { vh_rate_limits, override_option, rate_limits, domain } = wire;
    refuse!(path; override_option);
    let (include_vhost, ignore_vhost) = match VhRateLimitsOptions::try_from(vh_rate_limits) {
        Ok(VhRateLimitsOptions::Override) => (false, false),
        Ok(VhRateLimitsOptions::Include) => (true, false),
        Ok(VhRateLimitsOptions::Ignore) => (false, true),
        Err(_) => return Err(path.field("vh_rate_limits").invalid(vh_rate_limits, "is unknown")),
    };
    if ignore_vhost {
        return Err(path.field("vh_rate_limits").invalid("IGNORE", "is not OVERRIDE or INCLUDE"));
    }
    Ok(GlobalRoute {
        include_vhost,
        rules: Some(limits::convert(path, rate_limits)?).filter(|rules| !rules.is_empty()),
        domain: Some(domain).filter(|domain| !domain.is_empty()),
    })
}
