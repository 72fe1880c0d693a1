//! `envoy.filters.http.jwt_authn`, and its settings on routes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use xds_proto::envoy::{
    config::core::v3::{DataSource, HttpUri, RetryPolicy as WireRetry, http_uri::HttpUpstreamType},
    extensions::filters::http::jwt_authn::v3::{
        JwksAsyncFetch, JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider, JwtRequirement,
        PerRouteConfig, ProviderWithAudiences, RemoteJwks, RequirementRule,
        jwt_claim_to_header::PathSegment,
        jwt_provider::{JwksSourceSpecifier, NormalizePayload},
        jwt_requirement::RequiresType,
        per_route_config::RequirementSpecifier,
        requirement_rule::RequirementType,
    },
};

use super::route::JwtRoute;
use crate::{
    config::{
        error::Path,
        matcher, route,
        wire::{Result, duration, duration_or, inline, refuse, u32_or},
    },
    limits,
    policy::jwt::{
        ClaimHeader, JwtAuthn, JwtRule, KeySet, KeySource, Location, Provider, RemoteKeys, Requirement,
    },
};

/// Most providers, rules, and requirements in one of them.
const MAX_ENTRIES: usize = 1000;
/// Deepest requirement.
const MAX_DEPTH: u32 = 16;

fn few(path: &Path<'_>, count: usize) -> Result<()> {
    if count > MAX_ENTRIES {
        return Err(path.invalid(count, format!("entries are more than {MAX_ENTRIES}")));
    }
    Ok(())
}

pub(super) fn filter(path: &Path<'_>, wire: JwtAuthentication) -> Result<JwtAuthn> {
    let JwtAuthentication {
        providers,
        rules,
        filter_state_rules,
        bypass_cors_preflight,
        requirement_map,
        strip_failure_response,
        stat_prefix: _,
    } = wire;
    refuse!(path; filter_state_rules);
    let (provider_map, rule_list, named) =
        (path.field("providers"), path.field("rules"), path.field("requirement_map"));
    few(&provider_map, providers.len())?;
    few(&rule_list, rules.len())?;
    few(&named, requirement_map.len())?;
    let providers: BTreeMap<_, _> = providers.into_iter().collect();
    let providers = providers
        .into_iter()
        .map(|(name, wire)| provider(&provider_map.key(&name), name.clone(), wire))
        .collect::<Result<Vec<_>>>()?;
    let names: HashMap<&str, usize> = (0..).zip(&providers).map(|(at, p)| (p.name.as_str(), at)).collect();
    let requirements: BTreeMap<_, _> = requirement_map.into_iter().collect();
    let requirements = requirements
        .into_iter()
        .map(|(name, wire)| Ok((name.clone(), requirement(&named.key(&name), wire, &names, 0)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let mut all = Vec::with_capacity(rules.len());
    for (at, RequirementRule { r#match, requirement_type }) in rules.into_iter().enumerate() {
        let path = rule_list.index(at);
        let match_path = path.field("match");
        let requires = match requirement_type {
            None => None,
            Some(RequirementType::Requires(wire)) if wire.requires_type.is_none() => None,
            Some(RequirementType::Requires(wire)) => {
                Some(requirement(&path.field("requires"), wire, &names, 0)?)
            }
            Some(RequirementType::RequirementName(name)) => {
                let found = requirements.get(&name).cloned();
                let unknown = || path.field("requirement_name").invalid(&name, "is not in requirement_map");
                Some(found.ok_or_else(unknown)?)
            }
        };
        let matches = route::route_match(&match_path, r#match.ok_or_else(|| match_path.missing())?)?;
        if matches.fraction.is_some() {
            // Who must show a token is no matter of chance.
            return Err(match_path.field("runtime_fraction").unsupported());
        }
        all.push(JwtRule { matches, requires });
    }
    Ok(JwtAuthn { providers, rules: all, named: requirements, bypass_cors_preflight, strip_failure_response })
}

/// A requirement's name is not looked up here: the route does not know the filter. A name that the filter does not have
/// refuses requests.
pub(super) fn route(path: &Path<'_>, wire: PerRouteConfig) -> Result<JwtRoute> {
    match wire.requirement_specifier {
        Some(RequirementSpecifier::Disabled(true)) => Ok(JwtRoute::Disabled),
        Some(RequirementSpecifier::Disabled(false)) => {
            Err(path.field("disabled").invalid(false, "must be true"))
        }
        Some(RequirementSpecifier::RequirementName(name)) if !name.is_empty() => Ok(JwtRoute::Named(name)),
        Some(RequirementSpecifier::RequirementName(_)) | None => {
            Err(path.field("requirement_name").missing())
        }
    }
}

fn requirement(
    path: &Path<'_>,
    wire: JwtRequirement,
    names: &HashMap<&str, usize>,
    depth: u32,
) -> Result<Requirement> {
    if depth > MAX_DEPTH {
        return Err(path.invalid(depth, format!("is deeper than {MAX_DEPTH}")));
    }
    let provider = |path: &Path<'_>, name: &str, audiences| match names.get(name) {
        Some(provider) => Ok(Requirement::Provider { provider: *provider, audiences }),
        None => Err(path.field("provider_name").invalid(name, "is not in providers")),
    };
    let several = |path: &Path<'_>, wires: Vec<JwtRequirement>| {
        let path = path.field("requirements");
        few(&path, wires.len())?;
        if wires.len() < 2 {
            return Err(path.invalid(wires.len(), "must be at least 2"));
        }
        let each = wires.into_iter().enumerate();
        each.map(|(at, wire)| requirement(&path.index(at), wire, names, depth + 1)).collect::<Result<_>>()
    };
    match wire.requires_type.ok_or_else(|| path.missing())? {
        RequiresType::ProviderName(name) => provider(path, &name, None),
        RequiresType::ProviderAndAudiences(ProviderWithAudiences { provider_name, audiences }) => {
            let audiences = Some(audiences).filter(|all| !all.is_empty());
            provider(&path.field("provider_and_audiences"), &provider_name, audiences)
        }
        RequiresType::RequiresAny(list) => {
            several(&path.field("requires_any"), list.requirements).map(Requirement::Any)
        }
        RequiresType::RequiresAll(list) => {
            several(&path.field("requires_all"), list.requirements).map(Requirement::All)
        }
        RequiresType::AllowMissingOrFailed(_) => Ok(Requirement::AllowMissingOrFailed),
        RequiresType::AllowMissing(_) => Ok(Requirement::AllowMissing),
        RequiresType::ExtractOnlyWithoutValidation(_) => {
            Err(path.field("extract_only_without_validation").unsupported())
        }
    }
}

fn provider(path: &Path<'_>, name: String, wire: JwtProvider) -> Result<Provider> {
    let JwtProvider {
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime,
        forward,
        from_headers,
        from_params,
        from_cookies,
        forward_payload_header,
        pad_forward_payload_header,
        payload_in_metadata,
        normalize_payload_in_metadata,
        header_in_metadata,
        failed_status_in_metadata,
        clock_skew_seconds,
        // It saves work, and changes nothing that anybody sees.
        jwt_cache_config: _,
        claim_to_headers,
        clear_route_cache,
        jwks_source_specifier,
    } = wire;
    refuse!(path; failed_status_in_metadata);
    let NormalizePayload { space_delimited_claims } = normalize_payload_in_metadata.unwrap_or_default();
    let subjects = subjects.map(|wire| matcher::text(&path.field("subjects"), wire)).transpose()?;
    let claims = path.field("claim_to_headers");
    few(&claims, claim_to_headers.len())?;
    let claims = (0..).zip(claim_to_headers).map(|(at, wire)| claim(&claims.index(at), wire));
    let nonempty = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Provider {
        name,
        issuer,
        audiences,
        subjects,
        require_expiration,
        max_lifetime: max_lifetime.map(|d| duration(&path.field("max_lifetime"), &d)).transpose()?,
        locations: locations(path, from_headers, from_params, from_cookies)?,
        forward,
        payload_header: nonempty(forward_payload_header)
            .map(|text| header(&path.field("forward_payload_header"), &text))
            .transpose()?,
        pad_payload_header: pad_forward_payload_header,
        payload_in_metadata: nonempty(payload_in_metadata),
        header_in_metadata: nonempty(header_in_metadata),
        space_delimited: space_delimited_claims,
        clock_skew: Duration::from_secs(match clock_skew_seconds {
            0 => 60,
            seconds => seconds.into(),
        }),
        claims: claims.collect::<Result<_>>()?,
        clear_route_cache,
        keys: match jwks_source_specifier.ok_or_else(|| path.field("jwks_source_specifier").missing())? {
            JwksSourceSpecifier::LocalJwks(wire) => local(&path.field("local_jwks"), wire)?,
            JwksSourceSpecifier::RemoteJwks(wire) => remote(&path.field("remote_jwks"), wire)?,
        },
    })
}

fn header(path: &Path<'_>, text: &str) -> Result<HeaderName> {
    text.parse().map_err(|_| path.invalid(text, "is no header name"))
}

fn locations(
    path: &Path<'_>,
    from_headers: Vec<JwtHeader>,
    from_params: Vec<String>,
    from_cookies: Vec<String>,
) -> Result<Vec<Location>> {
    let list = path.field("from_headers");
    let mut all = vec![];
    for (at, JwtHeader { name, value_prefix }) in from_headers.into_iter().enumerate() {
        all.push(Location::Header(header(&list.index(at).field("name"), &name)?, value_prefix));
    }
    all.extend(from_params.into_iter().map(Location::Param));
    all.extend(from_cookies.into_iter().map(Location::Cookie));
    few(path, all.len())?;
    if all.is_empty() {
        all.push(Location::Header(http::header::AUTHORIZATION, "Bearer ".to_owned()));
        all.push(Location::Param("access_token".to_owned()));
    }
    Ok(all)
}

fn claim(path: &Path<'_>, wire: JwtClaimToHeader) -> Result<ClaimHeader> {
    let JwtClaimToHeader { header_name, claim_name, claim_path } = wire;
    let segments = path.field("claim_path");
    let keys = match (claim_name.is_empty(), claim_path.is_empty()) {
        (false, true) => claim_name.split('.').map(str::to_owned).collect(),
        (true, false) => claim_path
            .into_iter()
            .enumerate()
            .map(|(at, PathSegment { key })| match key.is_empty() {
                false => Ok(key),
                true => Err(segments.index(at).field("key").missing()),
            })
            .collect::<Result<_>>()?,
        (true, true) => return Err(path.field("claim_name").missing()),
        (false, false) => return Err(segments.invalid(&claim_name, "is set beside claim_name")),
    };
    Ok(ClaimHeader { header: header(&path.field("header_name"), &header_name)?, path: keys })
}

fn local(path: &Path<'_>, wire: DataSource) -> Result<KeySource> {
    let source = inline(path, wire)?;
    let keys = KeySet::parse(&source).map_err(|error| path.invalid("key set", error))?;
    Ok(KeySource::Local(Arc::new(keys)))
}

fn remote(path: &Path<'_>, wire: RemoteJwks) -> Result<KeySource> {
    let RemoteJwks { http_uri, cache_duration, async_fetch, retry_policy } = wire;
    let uri_path = path.field("http_uri");
    let Uri { cluster, authority, path: at, timeout } =
        uri(&uri_path, http_uri.ok_or_else(|| uri_path.missing())?)?;
    let ahead = async_fetch.is_some();
    // Requests wait for their keys, so no listener has to.
    let JwksAsyncFetch { fast_listener: _, failed_refetch_duration } = async_fetch.unwrap_or_default();
    let pause = path.field("async_fetch");
    let pause =
        duration_or(&pause.field("failed_refetch_duration"), &failed_refetch_duration, limits::JWKS_PAUSE)?;
    let retries = match retry_policy {
        None => 0,
        Some(wire) => retries(&path.field("retry_policy"), wire)?,
    };
    Ok(KeySource::Remote(Arc::new(RemoteKeys {
        cluster,
        authority,
        path: at,
        timeout,
        cache: duration_or(&path.field("cache_duration"), &cache_duration, limits::JWKS_CACHE)?,
        attempts: retries + 1,
        ahead,
        pause: pause.max(Duration::from_millis(100)),
    })))
}

/// Keys are asked for at once again, so often and no more.
fn retries(path: &Path<'_>, wire: WireRetry) -> Result<u32> {
    let WireRetry {
        retry_back_off,
        num_retries,
        retry_on: _,
        retry_priority,
        retry_host_predicate,
        host_selection_retry_max_attempts: _,
    } = wire;
    refuse!(path; retry_back_off, retry_priority, retry_host_predicate);
    let count = u32_or(&num_retries, 1);
    if count > 10 {
        return Err(path.field("num_retries").invalid(count, "must be at most 10"));
    }
    Ok(count)
}

/// `HttpUri`.
pub(super) struct Uri {
    pub(super) cluster: Arc<str>,
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) timeout: Duration,
}

pub(super) fn uri(path: &Path<'_>, wire: HttpUri) -> Result<Uri> {
    let HttpUri { uri, timeout, http_upstream_type } = wire;
    let bad = || path.field("uri").invalid(&uri, "is no absolute http or https URI");
    let parsed: http::Uri = uri.parse().map_err(|_| bad())?;
    let authority = parsed.authority().ok_or_else(bad)?.to_string();
    let at = parsed.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let timeout_path = path.field("timeout");
    let timeout = duration(&timeout_path, &timeout.ok_or_else(|| timeout_path.missing())?)?;
    match http_upstream_type {
        Some(HttpUpstreamType::Cluster(cluster)) if !cluster.is_empty() => {
            Ok(Uri { cluster: cluster.into(), authority, path: at, timeout })
        }
        _ => Err(path.field("cluster").missing()),
    }
}
