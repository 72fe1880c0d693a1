//! HTTP filters in their order, and what routes say of them.
//!
//! A filter of an unknown type is refused unless it is `is_optional`; one whose fields are not supported is refused in any
//! case. `typed_per_filter_config` is keyed by the name of the filter.

mod buffer;
mod cors;
mod ext_authz;
mod fault;
pub(super) mod fraction;
mod jwt;
mod local_limit;
mod rate_limit;
mod rbac;
mod route;
mod service;

use std::sync::Arc;

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::extensions::filters::{
        http::{
            buffer::v3::Buffer, cors::v3::Cors, ext_authz::v3::ExtAuthz as WireAuthz, fault::v3::HttpFault,
            jwt_authn::v3::JwtAuthentication, local_ratelimit::v3::LocalRateLimit, ratelimit::v3::RateLimit,
            rbac::v3::Rbac as WireRbac, router::v3::Router,
        },
        network::http_connection_manager::v3::{HttpFilter as WireFilter, http_filter},
    },
    google::protobuf::Any,
};

use super::{
    error::Path,
    rbac as config_rbac,
    wire::{Result, refuse, unpack},
};
use crate::{
    limits,
    policy::{
        Fault, Rbac,
        authz::{AuthzService, ExtAuthz},
        jwt::{JwtAuthn, KeySource, RemoteKeys},
        limit::{GlobalLimit, LocalLimit},
    },
};

pub use route::{JwtRoute, RouteFilter, RouteFilters, RouteSettings};
pub(super) use route::{cors, layer};

/// An HTTP filter; the router, which ends every chain, is not among them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpFilter {
    /// What routes call it.
    pub name: Arc<str>,
    /// It is passed by, except on routes that have settings for it.
    pub disabled: bool,
    /// What it does.
    pub kind: FilterKind,
}

/// What filters there are.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterKind {
    /// Who may ask for what.
    Rbac(Rbac),
    /// Who is told by tokens.
    Jwt(Arc<JwtAuthn>),
    /// How many requests.
    LocalLimit(Box<LocalLimit>),
    /// Requests of pages of other origins.
    Cors,
    /// Faults that are wanted.
    Fault(Box<Fault>),
    /// Requests wait until all of them is there, which is at most so many bytes.
    Buffer(u32),
    /// Whether a service permits them.
    Authz(Box<ExtAuthz>),
    /// How many requests, counted by a service.
    GlobalLimit(Box<GlobalLimit>),
}

impl FilterKind {
    /// Clusters that it asks.
    pub fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let (one, providers) = match self {
            Self::Authz(authz) => match &authz.service {
                AuthzService::Grpc(target) => (Some(&target.cluster), &[][..]),
                AuthzService::Http(service) => (Some(&service.cluster), &[][..]),
            },
            Self::GlobalLimit(limit) => (Some(&limit.service.cluster), &[][..]),
            Self::Jwt(authn) => (None, authn.providers.as_slice()),
            Self::Rbac(_) | Self::LocalLimit(_) | Self::Cors | Self::Fault(_) | Self::Buffer(_) => {
                (None, &[][..])
            }
        };
        one.into_iter().chain(providers.iter().filter_map(|provider| match &provider.keys {
            KeySource::Remote(keys) => Some(&keys.cluster),
            KeySource::Local(_) => None,
        }))
    }

    /// Keys that are to be there before anybody needs them.
    pub fn keys_ahead(&self) -> impl Iterator<Item = &Arc<RemoteKeys>> {
        let providers = match self {
            Self::Jwt(authn) => authn.providers.as_slice(),
            _ => &[],
        };
        providers.iter().filter_map(|provider| match &provider.keys {
            KeySource::Remote(keys) if keys.ahead => Some(keys),
            KeySource::Remote(_) | KeySource::Local(_) => None,
        })
    }
}

impl HttpFilter {
    /// What it does on a route, with the settings of that route. `None`: it is passed by.
    pub fn on<'a>(
        &'a self,
        route: Option<&'a RouteFilters>,
    ) -> Option<(&'a FilterKind, Option<&'a RouteSettings>)> {
        match route.and_then(|route| route.get(&self.name)) {
            None if self.disabled => None,
            None => Some((&self.kind, None)),
            Some(RouteFilter::Disabled) => None,
            Some(RouteFilter::Enabled(settings)) => Some((&self.kind, settings.as_deref())),
        }
    }
}

/// Any number of filters, and the router at the end.
pub(super) fn convert(path: &Path<'_>, wires: Vec<WireFilter>) -> Result<Vec<HttpFilter>> {
    let last = wires.len().checked_sub(1).ok_or_else(|| path.missing())?;
    if wires.len() > limits::HTTP_FILTERS {
        return Err(path.invalid(wires.len(), format!("filters are more than {}", limits::HTTP_FILTERS)));
    }
    let mut filters = Vec::with_capacity(last);
    for (at, wire) in wires.into_iter().enumerate() {
        let path = path.index(at);
        let WireFilter { name, is_optional, disabled, config_type } = wire;
        let any = match config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => any,
            Some(http_filter::ConfigType::ConfigDiscovery(_)) => {
                return Err(path.field("config_discovery").unsupported());
            }
            None => return Err(path.field("typed_config").missing()),
        };
        let config = path.field("typed_config");
        if any.type_url == Router::type_url() {
            refuse!(path; disabled);
            router(&config, unpack(&config, &any)?)?;
            if at != last {
                return Err(path.invalid("router", "must be the last filter"));
            }
            return Ok(filters);
        }
        match kind(&config, &any)? {
            Some(kind) => filters.push(HttpFilter { name: name.into(), disabled, kind }),
            None if is_optional => {}
            None => return Err(config.unsupported_type(&any.type_url)),
        }
    }
    // Nothing would come of what they let pass.
    Err(path.index(last).invalid("last filter", "must be the router"))
}

/// `None`: there is no such filter here.
fn kind(path: &Path<'_>, any: &Any) -> Result<Option<FilterKind>> {
    let url = any.type_url.as_str();
    Ok(Some(if url == WireRbac::type_url() {
        FilterKind::Rbac(config_rbac::http(path, unpack(path, any)?)?)
    } else if url == JwtAuthentication::type_url() {
        FilterKind::Jwt(Arc::new(jwt::filter(path, unpack(path, any)?)?))
    } else if url == LocalRateLimit::type_url() {
        FilterKind::LocalLimit(Box::new(local_limit::convert(path, unpack(path, any)?, false)?))
    } else if url == Cors::type_url() {
        let Cors {} = unpack(path, any)?;
        FilterKind::Cors
    } else if url == HttpFault::type_url() {
        FilterKind::Fault(Box::new(fault::convert(path, unpack(path, any)?)?))
    } else if url == Buffer::type_url() {
        FilterKind::Buffer(buffer::filter(path, unpack(path, any)?)?)
    } else if url == WireAuthz::type_url() {
        FilterKind::Authz(Box::new(ext_authz::filter(path, unpack(path, any)?)?))
    } else if url == RateLimit::type_url() {
        FilterKind::GlobalLimit(Box::new(rate_limit::filter(path, unpack(path, any)?)?))
    } else {
        return Ok(None);
    }))
}

#[allow(deprecated)]
fn router(path: &Path<'_>, wire: Router) -> Result<()> {
    let Router {
        // Statistics only.
        dynamic_stats: _,
        start_child_span,
        upstream_log,
        upstream_log_options,
        // None of those headers is made here.
        suppress_envoy_headers: _,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats: _,
        upstream_http_filters,
        reject_connect_request_early_data: _,
    } = wire;
    refuse!(path; start_child_span, upstream_log, upstream_log_options, strict_check_headers,
        respect_expected_rq_timeout, upstream_http_filters);
    Ok(())
}
