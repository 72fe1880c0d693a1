//! HTTP filters in their order, and what routes say of them.
//!
//! A filter of an unknown type is refused unless it is `is_optional`; one whose fields are not supported is refused in any
//! case. `typed_per_filter_config` is keyed by the name of the filter.

mod rbac;
mod route;

use std::sync::Arc;

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::extensions::filters::{
        http::{rbac::v3::Rbac as WireRbac, router::v3::Router},
        network::http_connection_manager::v3::{HttpFilter as WireFilter, http_filter},
    },
    google::protobuf::Any,
};

use super::{
    error::Path,
    wire::{Result, refuse, unpack},
};
use crate::{limits, policy::Rbac};

pub(super) use route::layer;
pub use route::{RouteFilter, RouteFilters, RouteSettings};

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

/// What filters are told of the connection manager that they belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager {
    pub(super) uses_remote_address: bool,
}

/// Any number of filters, and the router at the end.
pub(super) fn convert(path: &Path<'_>, wires: Vec<WireFilter>, manager: Manager) -> Result<Vec<HttpFilter>> {
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
        match kind(&config, &any, manager)? {
            Some(kind) => filters.push(HttpFilter { name: name.into(), disabled, kind }),
            None if is_optional => {}
            None => return Err(config.unsupported_type(&any.type_url)),
        }
    }
    // Nothing would come of what they let pass.
    Err(path.index(last).invalid("last filter", "must be the router"))
}

/// `None`: there is no such filter here.
fn kind(path: &Path<'_>, any: &Any, manager: Manager) -> Result<Option<FilterKind>> {
    let url = any.type_url.as_str();
    Ok(Some(if url == WireRbac::type_url() {
        FilterKind::Rbac(rbac::filter(path, unpack(path, any)?, manager)?)
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
