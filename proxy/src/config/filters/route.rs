//! `typed_per_filter_config` of route tables, virtual hosts, routes and weighted clusters.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Serialize;
use xds_proto::{
    Name,
    envoy::{
        config::route::v3::{CorsPolicy as RouteCors, FilterConfig},
        extensions::filters::http::{
            buffer::v3::BufferPerRoute, cors::v3::CorsPolicy as WireCors, ext_authz::v3::ExtAuthzPerRoute,
            fault::v3::HttpFault, jwt_authn::v3::PerRouteConfig as JwtPerRoute,
            local_ratelimit::v3::LocalRateLimit, ratelimit::v3::RateLimitPerRoute, rbac::v3::RbacPerRoute,
        },
    },
    google::protobuf::Any,
};

use super::{buffer, cors as cors_policy, ext_authz, fault, jwt, local_limit, rate_limit, rbac};
use crate::{
    config::{
        error::Path,
        wire::{Result, unpack},
    },
    limits,
    policy::{
        CorsPolicy, Fault, Rbac,
        authz::AuthzRoute,
        limit::{GlobalRoute, LocalLimit},
    },
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
    /// Which requirement counts.
    Jwt(JwtRoute),
    /// In place of the filter's.
    LocalLimit(Box<LocalLimit>),
    /// Which origins may ask.
    Cors(Box<CorsPolicy>),
    /// In place of the filter's.
    Fault(Box<Fault>),
    /// In place of the filter's; or requests do not wait.
    Buffer(Option<u32>),
    /// Whether the service is asked, and what it is told besides.
    Authz(AuthzRoute),
    /// What requests are counted as.
    GlobalLimit(Box<GlobalRoute>),
}

/// What a route says of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JwtRoute {
    /// None is needed.
    Disabled,
    /// The requirement of this name.
    Named(String),
}

impl RouteFilters {
    /// Of this level, over what the levels above say.
    fn add(&mut self, name: String, filter: RouteFilter) {
        let filter = match (filter, self.0.get(name.as_str())) {
            (RouteFilter::Enabled(Some(own)), Some(RouteFilter::Enabled(Some(above)))) => {
                RouteFilter::Enabled(Some(own.over(above)))
            }
            (own, _) => own,
        };
        self.0.insert(name.into(), filter);
    }

    /// What is said of the filter of this name.
    pub fn get(&self, name: &str) -> Option<&RouteFilter> {
        self.0.get(name)
    }
}

impl RouteSettings {
    /// Most settings count as a whole; some are completed by those of the level above.
    fn over(self: Arc<Self>, above: &Self) -> Arc<Self> {
        match (&*self, above) {
            (Self::Cors(own), Self::Cors(above)) => {
                Arc::new(Self::Cors(Box::new(CorsPolicy::clone(own).over(above))))
            }
            (Self::Authz(own), Self::Authz(above)) => Arc::new(Self::Authz(own.over(above))),
            _ => self,
        }
    }
}

/// What CORS filters are called, by those who write `cors` in its old place.
const CORS: &str = "envoy.filters.http.cors";

/// `cors` of a virtual host or route, where its own filter has no settings.
pub(in crate::config) fn cors(
    path: &Path<'_>,
    wire: Option<RouteCors>,
    own: &HashMap<String, Any>,
    above: &Arc<RouteFilters>,
) -> Result<Arc<RouteFilters>> {
    let Some(wire) = wire else { return Ok(above.clone()) };
    let policy = cors_policy::old(&path.field("cors"), wire)?;
    if own.contains_key(CORS) {
        return Ok(above.clone());
    }
    let mut all = RouteFilters::clone(above);
    all.add(CORS.to_owned(), RouteFilter::Enabled(Some(Arc::new(RouteSettings::Cors(Box::new(policy))))));
    Ok(Arc::new(all))
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
            all.add(name, filter);
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
    } else if url == JwtPerRoute::type_url() {
        RouteSettings::Jwt(jwt::route(path, unpack(path, any)?)?)
    } else if url == LocalRateLimit::type_url() {
        RouteSettings::LocalLimit(Box::new(local_limit::convert(path, unpack(path, any)?, true)?))
    } else if url == WireCors::type_url() {
        RouteSettings::Cors(Box::new(cors_policy::route(path, unpack(path, any)?)?))
    } else if url == HttpFault::type_url() {
        RouteSettings::Fault(Box::new(fault::convert(path, unpack(path, any)?)?))
    } else if url == BufferPerRoute::type_url() {
        RouteSettings::Buffer(buffer::route(path, unpack(path, any)?)?)
    } else if url == ExtAuthzPerRoute::type_url() {
        RouteSettings::Authz(ext_authz::route(path, unpack(path, any)?)?)
    } else if url == RateLimitPerRoute::type_url() {
        RouteSettings::GlobalLimit(Box::new(rate_limit::route(path, unpack(path, any)?)?))
    } else {
        return Ok(None);
    }))
}
