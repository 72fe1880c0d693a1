//! `typed_per_filter_config` of route tables, virtual hosts, routes and weighted clusters.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{config::route::v3::FilterConfig, extensions::filters::http::rbac::v3::RbacPerRoute},
    google::protobuf::Any,
};

use super::rbac;
use crate::{
    config::{
        error::Path,
        wire::{Result, unpack},
    },
    limits,
    policy::Rbac,
};

/// What is said of filters, by their names: on all levels together, the most specific one counting.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RouteFilters(BTreeMap<Arc<str>, RouteFilter>);

/// What is said of one filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteFilter {
    /// It is passed by.
    Disabled,
    /// It is not passed by even if it is `disabled` otherwise, and has these settings in place of its own.
    Enabled(Option<Arc<RouteSettings>>),
}

/// Settings of filters. Settings of another kind than the filter's have no effect.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RouteSettings {
    /// In place of the filter's rules.
    Rbac(Rbac),
}

impl RouteFilters {
    /// What is said of the filter of this name.
    pub fn get(&self, name: &str) -> Option<&RouteFilter> {
        self.0.get(name)
    }
}

/// What a level says, over what the levels above it say.
pub(in crate::config) fn layer(
    path: &Path<'_>,
    wires: HashMap<String, Any>,
    above: &Arc<RouteFilters>,
) -> Result<Arc<RouteFilters>> {
    if wires.is_empty() {
        return Ok(above.clone());
    }
    let path = path.field("typed_per_filter_config");
    if wires.len() > limits::HTTP_FILTERS {
        return Err(path.invalid(wires.len(), format!("filters are more than {}", limits::HTTP_FILTERS)));
    }
    // One problem is told, and it is to be the same one every time.
    let wires: BTreeMap<_, _> = wires.into_iter().collect();
    let mut all = RouteFilters::clone(above);
    for (name, any) in wires {
        if let Some(filter) = filter(&path.key(&name), &any)? {
            all.0.insert(name.into(), filter);
        }
    }
    Ok(Arc::new(all))
}

fn filter(path: &Path<'_>, any: &Any) -> Result<Option<RouteFilter>> {
    if any.type_url != FilterConfig::type_url() {
        let settings = settings(path, any)?.ok_or_else(|| path.unsupported_type(&any.type_url))?;
        return Ok(Some(RouteFilter::Enabled(Some(Arc::new(settings)))));
    }
    let FilterConfig { config, is_optional, disabled } = unpack(path, any)?;
    if disabled {
        return Ok(Some(RouteFilter::Disabled));
    }
    let path = path.field("config");
    let config = config.ok_or_else(|| path.missing())?;
    // It says no more than that the filter is not disabled here.
    if config.type_url.is_empty() {
        return Ok(Some(RouteFilter::Enabled(None)));
    }
    match settings(&path, &config)? {
        Some(settings) => Ok(Some(RouteFilter::Enabled(Some(Arc::new(settings))))),
        None if is_optional => Ok(None),
        None => Err(path.unsupported_type(&config.type_url)),
    }
}

/// `None`: there is no such filter here.
fn settings(path: &Path<'_>, any: &Any) -> Result<Option<RouteSettings>> {
    let url = any.type_url.as_str();
    Ok(Some(if url == RbacPerRoute::type_url() {
        RouteSettings::Rbac(rbac::route(path, unpack(path, any)?)?)
    } else {
        return Ok(None);
    }))
}
