//! The policies of `envoy.filters.http.cors` on routes and virtual hosts, in their new and in their old place.

use http::HeaderValue;
use xds_proto::envoy::{
    config::route::v3::{CorsPolicy as RouteCors, cors_policy::EnabledSpecifier},
    extensions::filters::http::cors::v3::CorsPolicy as WireCors,
};

use super::fraction;
use crate::{
    config::{
        error::Path,
        matcher,
        wire::{Result, refuse},
    },
    policy::{CorsPolicy, Fraction},
};

pub(super) fn route(path: &Path<'_>, wire: WireCors) -> Result<CorsPolicy> {
    let WireCors {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = wire;
    refuse!(path; shadow_enabled);
    let list = path.field("allow_origin_string_match");
    let origins = (0..).zip(allow_origin_string_match).map(|(at, wire)| matcher::text(&list.index(at), wire));
    let value = |field: &str, text: String| match text.is_empty() {
        true => Ok(None),
        false => HeaderValue::from_str(&text)
            .map(Some)
            .map_err(|_| path.field(field).invalid(&text, "is no header value")),
    };
    Ok(CorsPolicy {
        origins: origins.collect::<Result<_>>()?,
        allow_methods: value("allow_methods", allow_methods)?,
        allow_headers: value("allow_headers", allow_headers)?,
        expose_headers: value("expose_headers", expose_headers)?,
        max_age: value("max_age", max_age)?,
        credentials: allow_credentials.map(|wire| wire.value),
        private_network: allow_private_network_access.map(|wire| wire.value),
        forward_not_matching: forward_not_matching_preflights.map(|wire| wire.value),
        enabled: fraction::or(&path.field("filter_enabled"), filter_enabled, Fraction::ALL)?,
    })
}

/// `cors` of a route or virtual host.
pub(super) fn old(path: &Path<'_>, wire: RouteCors) -> Result<CorsPolicy> {
    let RouteCors {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = wire;
    let filter_enabled = enabled_specifier.map(|EnabledSpecifier::FilterEnabled(wire)| wire);
    let wire = WireCors {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    };
    route(path, wire)
}
