//! `envoy.filters.http.ext_authz`, and its settings on routes.

use std::{collections::BTreeMap, time::Duration};

use xds_proto::envoy::{
    extensions::filters::http::ext_authz::v3::{
        AuthorizationRequest, AuthorizationResponse, BufferSettings, CheckSettings, ExtAuthz as WireAuthz,
        ExtAuthzPerRoute, HttpService, ext_authz::Services, ext_authz_per_route::Override,
    },
    r#type::matcher::v3::ListStringMatcher,
};

use super::{
    fraction,
    jwt::{self, Uri},
    local_limit, service,
};
use crate::{
    config::{
        Text,
        error::Path,
        matcher,
        wire::{Result, bool_or, refuse},
    },
    limits,
    policy::Fraction,
    policy::authz::{AuthzBody, AuthzHttp, AuthzRoute, AuthzService, ExtAuthz},
};

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(200);

#[allow(deprecated)]
pub(super) fn filter(path: &Path<'_>, wire: WireAuthz) -> Result<ExtAuthz> {
    let WireAuthz {
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        // Mutations that cannot be made are errors in any case.
        validate_mutations: _,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix: _,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        // Statistics only.
        charge_cluster_response_stats: _,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats: _,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
        shadow_mode,
        // There are no spans here.
        emit_client_span: _,
        services,
    } = wire;
    refuse!(path; typed_metadata_context_namespaces, route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces, filter_enabled_metadata, deny_at_disable,
        bootstrap_metadata_labels_key, decoder_header_mutation_rules, filter_metadata,
        enforce_response_header_limits, shadow_mode);
    // AUTO (0) means V3 to everybody who is left.
    if !matches!(transport_api_version, 0 | 2) {
        return Err(path.field("transport_api_version").invalid(transport_api_version, "is not V3"));
    }
    let service = match services {
        Some(Services::GrpcService(wire)) => {
            AuthzService::Grpc(service::grpc(&path.field("grpc_service"), wire, TIMEOUT)?)
        }
        Some(Services::HttpService(wire)) => {
            AuthzService::Http(Box::new(http(&path.field("http_service"), wire)?))
        }
        None => return Err(path.field("grpc_service").missing()),
    };
    Ok(ExtAuthz {
        service,
        allow_on_failure: failure_mode_allow,
        tell_allowed: failure_mode_allow_header_add,
        body: with_request_body.map(|wire| body(&path.field("with_request_body"), wire)).transpose()?,
        clear_route_cache,
        status_on_error: local_limit::status(&path.field("status_on_error"), status_on_error, 403)?,
        metadata_namespaces: metadata_context_namespaces,
        enabled: fraction::or(&path.field("filter_enabled"), filter_enabled, Fraction::ALL)?,
        include_peer_certificate,
        include_tls_session,
        allowed_headers: texts(&path.field("allowed_headers"), allowed_headers)?,
        disallowed_headers: texts(&path.field("disallowed_headers"), disallowed_headers)?.unwrap_or_default(),
        raw_headers: encode_raw_headers,
        take_metadata: bool_or(&enable_dynamic_metadata_ingestion, true),
        max_denied_body: Some(max_denied_response_body_bytes as usize).filter(|max| *max > 0),
    })
}

pub(super) fn route(path: &Path<'_>, wire: ExtAuthzPerRoute) -> Result<AuthzRoute> {
    let wire = match wire.r#override {
        Some(Override::Disabled(true)) => return Ok(AuthzRoute::Disabled),
        Some(Override::Disabled(false)) => {
            return Err(path.field("disabled").invalid(false, "must be true"));
        }
        Some(Override::CheckSettings(wire)) => wire,
        None => return Err(path.field("check_settings").missing()),
    };
    let path = path.field("check_settings");
    let CheckSettings {
        context_extensions,
        disable_request_body_buffering,
        with_request_body,
        emit_client_span: _,
        service_override,
    } = wire;
    refuse!(path; service_override);
    let body_path = path.field("with_request_body");
    let body = match (disable_request_body_buffering, with_request_body) {
        (true, None) => Some(None),
        (false, None) => None,
        (false, Some(wire)) => Some(Some(body(&body_path, wire)?)),
        (true, Some(_)) => {
            return Err(body_path.invalid("message", "is set beside disable_request_body_buffering"));
        }
    };
    let context: BTreeMap<_, _> = context_extensions.into_iter().collect();
    Ok(AuthzRoute::Check { context, body })
}

fn body(path: &Path<'_>, wire: BufferSettings) -> Result<AuthzBody> {
    let BufferSettings { max_request_bytes: max, allow_partial_message, pack_as_bytes } = wire;
    if max == 0 || max > limits::BUFFERED_BYTES {
        let reason = format!("must be 1 to {}", limits::BUFFERED_BYTES);
        return Err(path.field("max_request_bytes").invalid(max, reason));
    }
    Ok(AuthzBody { max: max as usize, partial: allow_partial_message, as_bytes: pack_as_bytes })
}

fn texts(path: &Path<'_>, wire: Option<ListStringMatcher>) -> Result<Option<Vec<Text>>> {
    let Some(ListStringMatcher { patterns }) = wire else { return Ok(None) };
    let list = path.field("patterns");
    let each = patterns.into_iter().enumerate().map(|(at, wire)| matcher::text(&list.index(at), wire));
    each.collect::<Result<_>>().map(Some)
}

#[allow(deprecated)]
fn http(path: &Path<'_>, wire: HttpService) -> Result<AuthzHttp> {
    let HttpService {
        server_uri,
        path_prefix,
        path_override,
        authorization_request,
        authorization_response,
        retry_policy,
    } = wire;
    refuse!(path; retry_policy);
    let uri_path = path.field("server_uri");
    let Uri { cluster, timeout, .. } = jwt::uri(&uri_path, server_uri.ok_or_else(|| uri_path.missing())?)?;
    for (field, text) in [("path_prefix", &path_prefix), ("path_override", &path_override)] {
        if !text.is_empty() && (!text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(path.field(field).invalid(text, "must begin with '/' and be visible ASCII"));
        }
    }
    let (asking, answer) = (path.field("authorization_request"), path.field("authorization_response"));
    let AuthorizationRequest { allowed_headers, headers_to_add } = authorization_request.unwrap_or_default();
    let AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = authorization_response.unwrap_or_default();
    refuse!(answer; dynamic_metadata_from_headers);
    let list = |field: &str, wire| texts(&answer.field(field), wire);
    Ok(AuthzHttp {
        cluster,
        timeout,
        path_prefix,
        path_override: Some(path_override).filter(|text| !text.is_empty()),
        allowed: texts(&asking.field("allowed_headers"), allowed_headers)?.unwrap_or_default(),
        add: service::headers(&asking.field("headers_to_add"), headers_to_add)?,
        upstream: list("allowed_upstream_headers", allowed_upstream_headers)?.unwrap_or_default(),
        upstream_append: list("allowed_upstream_headers_to_append", allowed_upstream_headers_to_append)?
            .unwrap_or_default(),
        client: list("allowed_client_headers", allowed_client_headers)?,
        client_on_success: list("allowed_client_headers_on_success", allowed_client_headers_on_success)?
            .unwrap_or_default(),
    })
}
