//! `RouteConfiguration`: virtual hosts (`domains`: exact, `*suffix`, `prefix*`, `*`), route matches (`prefix`, `path`,
//! `path_separated_prefix`, `safe_regex`, `case_sensitive`, `headers`, `query_parameters`), header changes on every level,
//! `ignore_port_in_host_matching`, `most_specific_header_mutations_wins`. Actions: [`super::route_action`].

use std::sync::Arc;

use http::{HeaderName, header};
use xds_proto::envoy::config::route::v3::{
    CookieMatcher, HeaderMatcher, QueryParameterMatcher, Route as WireRoute, RouteConfiguration,
    RouteMatch as WireMatch, VirtualHost as WireVhost, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route::Action as WireAction,
    route_match::PathSpecifier,
};

use xds_proto::envoy::config::core::v3::RuntimeFractionalPercent;

use super::{
    error::Path,
    filters::{self, RouteFilters},
    header_ops::{self, REQUEST, RESPONSE},
    limits,
    matcher::{self, Text, TextMatch},
    route_action::{self, Levels},
    wire::{Result, bool_or, refuse},
};
use crate::policy::{Fraction, limit::RouteLimits};
use crate::route::{
    CookieTest, HeaderMatch, HeaderOps, HeaderTest, HostIndex, PathMatch, QueryMatch, RequireTls, Route,
    RouteMatch, RouteTable, VirtualHost,
};

/// Most routes in one configuration.
const MAX_ROUTES: usize = 20_000;

/// Header changes for both directions.
#[derive(Debug, Clone, Default)]
pub(super) struct Ops {
    pub(super) request: HeaderOps,
    pub(super) response: HeaderOps,
}

impl Ops {
    pub(super) fn then(&self, next: &Self) -> Self {
        Self { request: self.request.then(&next.request), response: self.response.then(&next.response) }
    }
}

pub(super) fn convert(path: &Path<'_>, wire: RouteConfiguration) -> Result<RouteTable> {
    let RouteConfiguration {
        name,
        virtual_hosts,
        vhds,
        internal_only_headers,
        response_headers_to_add,
        response_headers_to_remove,
        request_headers_to_add,
        request_headers_to_remove,
        most_specific_header_mutations_wins,
        // Clusters come and go by themselves here; a route to a missing one answers 503.
        validate_clusters: _,
        max_direct_response_body_size_bytes,
        cluster_specifier_plugins,
        request_mirror_policies,
        ignore_port_in_host_matching,
        vhost_header,
        ignore_path_parameters_in_path_matching,
        typed_per_filter_config,
        metadata: _,
        route_specifiers,
    } = wire;
    refuse!(path; vhds, internal_only_headers, cluster_specifier_plugins, request_mirror_policies, vhost_header,
        ignore_path_parameters_in_path_matching, route_specifiers,
        max_direct_response_body_size_bytes);
    let table = Ops {
        request: header_ops::convert(path, &REQUEST, request_headers_to_add, request_headers_to_remove)?,
        response: header_ops::convert(path, &RESPONSE, response_headers_to_add, response_headers_to_remove)?,
    };
    let filters = filters::layer(path, typed_per_filter_config, &Arc::default())?;
    let count: usize = virtual_hosts.iter().map(|v| v.routes.len()).sum();
    let list = path.field("virtual_hosts");
    if count > MAX_ROUTES {
        return Err(list.invalid(count, format!("routes are more than {MAX_ROUTES}")));
    }
    let mut index = HostIndex::default();
    let mut vhosts = Vec::with_capacity(virtual_hosts.len());
    for (at, wire) in virtual_hosts.into_iter().enumerate() {
        let path = list.index(at);
        let domains = path.field("domains");
        if wire.domains.is_empty() {
            return Err(domains.missing());
        }
        for (n, domain) in wire.domains.iter().enumerate() {
            index.insert(domain, at).map_err(|e| domains.index(n).invalid(domain, e))?;
        }
        vhosts.push(vhost(&path, wire, &table, &filters, most_specific_header_mutations_wins)?);
    }
    Ok(RouteTable { name, vhosts, ignore_port: ignore_port_in_host_matching, index })
}

#[allow(deprecated)]
fn vhost(
    path: &Path<'_>,
    wire: WireVhost,
    table: &Ops,
    filters: &Arc<RouteFilters>,
    specific_wins: bool,
) -> Result<VirtualHost> {
    let WireVhost {
        name,
        domains,
        routes,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        metadata: _,
        route_specifiers,
    } = wire;
    refuse!(path; matcher, virtual_clusters,
        retry_policy_typed_config, hedge_policy, include_is_timeout_retry_header, per_request_buffer_limit_bytes,
        request_body_buffer_limit, request_mirror_policies, route_specifiers);
    let ops = Ops {
        request: header_ops::convert(path, &REQUEST, request_headers_to_add, request_headers_to_remove)?,
        response: header_ops::convert(path, &RESPONSE, response_headers_to_add, response_headers_to_remove)?,
    };
    let retry = match retry_policy {
        Some(policy) => route_action::retry(&path.field("retry_policy"), policy)?,
        None => None,
    };
    let filters = filters::cors(path, cors, &typed_per_filter_config, filters)?;
    let filters = filters::layer(path, typed_per_filter_config, &filters)?;
    let limits = Arc::new(limits::convert(path, rate_limits)?);
    let levels = Levels {
        limits: &limits,
        filters: &filters,
        table,
        vhost: &ops,
        specific_wins,
        retry: retry.as_ref(),
        attempt_count_in_request: include_request_attempt_count,
        attempt_count_in_response: include_attempt_count_in_response,
    };
    let list = path.field("routes");
    let routes =
        routes.into_iter().enumerate().map(|(at, wire)| route(&list.index(at), wire, &levels).map(Arc::new));
    let require_tls = match require_tls {
        0 => RequireTls::Nobody,
        1 => RequireTls::Strangers,
        2 => RequireTls::Everybody,
        other => return Err(path.field("require_tls").invalid(other, "is unknown")),
    };
    Ok(VirtualHost { name, domains, require_tls, routes: routes.collect::<Result<_>>()? })
}

#[allow(deprecated)]
fn route(path: &Path<'_>, wire: WireRoute, levels: &Levels<'_>) -> Result<Route> {
    let WireRoute {
        name,
        r#match,
        metadata: _,
        // Only names spans, and there is no tracing here.
        decorator: _,
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        tracing,
        per_request_buffer_limit_bytes,
        stat_prefix: _,
        request_body_buffer_limit,
        route_specifiers,
        action,
    } = wire;
    refuse!(path; tracing, per_request_buffer_limit_bytes, request_body_buffer_limit,
        route_specifiers);
    let ops = Ops {
        request: header_ops::convert(path, &REQUEST, request_headers_to_add, request_headers_to_remove)?,
        response: header_ops::convert(path, &RESPONSE, response_headers_to_add, response_headers_to_remove)?,
    };
    let match_path = path.field("match");
    let matches = route_match(&match_path, r#match.ok_or_else(|| match_path.missing())?)?;
    let mut action = action.ok_or_else(|| path.field("action").missing())?;
    let mut filters = levels.filters.clone();
    let mut limits = RouteLimits { vhost: levels.limits.clone(), ..RouteLimits::default() };
    if let WireAction::Route(wire) = &mut action {
        let path = path.field("route");
        let cors = wire.cors.take();
        filters = filters::cors(&path, cors, &typed_per_filter_config, &filters)?;
        limits.route = limits::convert(&path, std::mem::take(&mut wire.rate_limits))?;
        limits.include_vhost = bool_or(&wire.include_vh_rate_limits.take(), false);
    }
    let filters = filters::layer(path, typed_per_filter_config, &filters)?;
    let levels = Levels { filters: &filters, ..*levels };
    let action = route_action::convert(path, action, &ops, &levels)?;
    Ok(Route { name, matches, action, filters, limits })
}

pub(super) fn route_match(path: &Path<'_>, wire: WireMatch) -> Result<RouteMatch> {
    let WireMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = wire;
    refuse!(path; tls_context, dynamic_metadata, filter_state);
    let cookie_list = path.field("cookies");
    let cookies = cookies.into_iter().enumerate().map(|(at, wire)| cookie(&cookie_list.index(at), wire));
    let path_match = match path_specifier.ok_or_else(|| path.field("path_specifier").missing())? {
        PathSpecifier::Prefix(prefix) => PathMatch::Prefix(prefix),
        PathSpecifier::Path(exact) => PathMatch::Exact(exact),
        PathSpecifier::PathSeparatedPrefix(prefix) => {
            let path = path.field("path_separated_prefix");
            if !prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains(['?', '#']) {
                return Err(
                    path.invalid(&prefix, "must begin with '/', not end with it, and have no '?' or '#'")
                );
            }
            PathMatch::SeparatedPrefix(prefix)
        }
        PathSpecifier::SafeRegex(wire) => PathMatch::Regex(matcher::regex(&path.field("safe_regex"), wire)?),
        PathSpecifier::ConnectMatcher(_) => PathMatch::Connect,
        PathSpecifier::PathMatchPolicy(_) => return Err(path.field("path_match_policy").unsupported()),
    };
    let case_sensitive = bool_or(&case_sensitive, true);
    let (header_list, query_list) = (path.field("headers"), path.field("query_parameters"));
    let headers = headers.into_iter().enumerate().map(|(at, wire)| header(&header_list.index(at), wire));
    let query = query_parameters.into_iter().enumerate().map(|(at, wire)| query(&query_list.index(at), wire));
    Ok(RouteMatch {
        path: path_match,
        case_sensitive,
        headers: headers.collect::<Result<_>>()?,
        query: query.collect::<Result<_>>()?,
        cookies: cookies.collect::<Result<_>>()?,
        grpc: grpc.is_some(),
        fraction: runtime_fraction.map(|wire| fraction(&path.field("runtime_fraction"), wire)).transpose()?,
    })
}

fn cookie(path: &Path<'_>, wire: CookieMatcher) -> Result<CookieTest> {
    let CookieMatcher { name, string_match, invert_match } = wire;
    if name.is_empty() {
        return Err(path.field("name").missing());
    }
    let text = path.field("string_match");
    let text = matcher::text(&text, string_match.ok_or_else(|| text.missing())?)?;
    Ok(CookieTest { name, text, invert: invert_match })
}

/// The default: there is no runtime here that would say otherwise.
pub(super) fn fraction(path: &Path<'_>, wire: RuntimeFractionalPercent) -> Result<Fraction> {
    let RuntimeFractionalPercent { default_value, runtime_key: _ } = wire;
    let path = path.field("default_value");
    filters::fraction::convert(&path, default_value.ok_or_else(|| path.missing())?)
}

#[allow(deprecated)]
pub(super) fn header(path: &Path<'_>, wire: HeaderMatcher) -> Result<HeaderTest> {
    let HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } = wire;
    let header = match name.as_str() {
        ":method" => HeaderMatch::Method,
        ":path" => HeaderMatch::Path,
        ":authority" => HeaderMatch::Authority,
        ":scheme" => HeaderMatch::Scheme,
        name => {
            let parsed: HeaderName =
                name.parse().map_err(|_| path.field("name").invalid(name, "is no header name"))?;
            if parsed == header::HOST { HeaderMatch::Authority } else { HeaderMatch::Name(parsed) }
        }
    };
    let mut present = true;
    let text = match header_match_specifier {
        None => None,
        Some(HeaderMatchSpecifier::PresentMatch(wanted)) => {
            present = wanted;
            None
        }
        Some(HeaderMatchSpecifier::ExactMatch(s)) => Some(Text::new(TextMatch::Exact(s))),
        Some(HeaderMatchSpecifier::PrefixMatch(s)) => Some(Text::new(TextMatch::Prefix(s))),
        Some(HeaderMatchSpecifier::SuffixMatch(s)) => Some(Text::new(TextMatch::Suffix(s))),
        Some(HeaderMatchSpecifier::ContainsMatch(s)) => Some(Text::new(TextMatch::Contains(s))),
        Some(HeaderMatchSpecifier::SafeRegexMatch(wire)) => {
            Some(Text::new(TextMatch::Regex(matcher::regex(&path.field("safe_regex_match"), wire)?)))
        }
        Some(HeaderMatchSpecifier::StringMatch(wire)) => {
            Some(matcher::text(&path.field("string_match"), wire)?)
        }
        Some(HeaderMatchSpecifier::RangeMatch(range)) => {
            Some(Text::new(TextMatch::Range(range.start, range.end)))
        }
    };
    Ok(HeaderTest {
        header,
        text,
        present,
        invert: invert_match,
        missing_as_empty: treat_missing_header_as_empty,
    })
}

fn query(path: &Path<'_>, wire: QueryParameterMatcher) -> Result<QueryMatch> {
    let QueryParameterMatcher { name, query_parameter_match_specifier } = wire;
    if name.is_empty() {
        return Err(path.field("name").missing());
    }
    let (text, present) = match query_parameter_match_specifier {
        None => (None, true),
        Some(QueryParameterMatchSpecifier::PresentMatch(present)) => (None, present),
        Some(QueryParameterMatchSpecifier::StringMatch(wire)) => {
            (Some(matcher::text(&path.field("string_match"), wire)?), true)
        }
    };
    Ok(QueryMatch { name, text, present })
}
