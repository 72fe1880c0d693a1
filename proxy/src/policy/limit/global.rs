//! Limits that a service counts for many proxies (`envoy.filters.http.ratelimit`), as plain data.

use serde::Serialize;

use super::LimitRule;
use crate::{
    policy::{Fraction, GrpcTarget},
    route::HeaderOps,
};

/// `RateLimit`, the filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GlobalLimit {
    /// Whose limits.
    pub domain: String,
    /// Which rules count.
    pub stage: u32,
    /// Who counts.
    pub service: GrpcTarget,
    /// Whether requests are refused when it cannot be asked.
    pub deny_on_failure: bool,
    /// Whether a gRPC client is told RESOURCE_EXHAUSTED.
    pub resource_exhausted: bool,
    /// Whether answers tell of the limits.
    pub tell: bool,
    /// Whether refusals have `x-envoy-ratelimited`.
    pub tell_limited: bool,
    /// HTTP status of refusals.
    pub status: u16,
    /// For refusals.
    pub response_headers: HeaderOps,
    /// HTTP status when the service cannot be asked.
    pub status_on_error: u16,
    /// Which requests are counted.
    pub enabled: Fraction,
    /// Which of those are refused when they are too many.
    pub enforced: Fraction,
    /// What requests are counted as. `None`: as their routes say.
    pub rules: Option<Vec<LimitRule>>,
}

/// `RateLimitPerRoute`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GlobalRoute {
    /// Whether the virtual host's rules count besides the route's.
    pub include_vhost: bool,
    /// In place of all other rules.
    pub rules: Option<Vec<LimitRule>>,
    /// In place of the filter's.
    pub domain: Option<String>,
}
