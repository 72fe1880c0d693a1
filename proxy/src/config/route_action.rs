//! What a route does: `route` (`cluster`, `weighted_clusters`, `timeout`, `idle_timeout`, `retry_policy`, `prefix_rewrite`,
//! `host_rewrite_literal`, `append_x_forwarded_host`, `cluster_not_found_response_code`), `redirect`, `direct_response`.

use std::{sync::Arc, time::Duration};

use xds_proto::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, RedirectAction, RetryPolicy as WireRetry, RouteAction,
    WeightedCluster,
    redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
    retry_policy::{RateLimitedRetryBackOff, ResetHeader, RetryBackOff},
    route,
    route_action::{
        ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy, UpgradeConfig,
        upgrade_config::ConnectConfig,
    },
    weighted_cluster::{ClusterWeight, cluster_weight},
};

use super::{
    error::Path,
    filters::{self, RouteFilters},
    header_ops::{self, REQUEST, RESPONSE},
    matcher,
    route::{self as table, Ops},
    upstream_choice,
    wire::{Result, bool_or, duration, duration_or, inline, refuse, timeout_or, u32_or},
};
use crate::{
    balance::Criteria,
    policy::{Fraction, limit::LimitRule},
    retry::{RateLimited, RetryOn, RetryPolicy},
    route::{Action, Destination, Direct, Forward, GrpcTimeout, HostRewrite, Mirror, PathRedirect, Redirect},
};

/// Envoy's default of a route's timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest body of a direct answer, as in Envoy, in bytes.
const MAX_DIRECT_BODY: usize = 4096;

/// What the levels above a route add to it.
pub(super) struct Levels<'a> {
    /// Of all levels, down to the one at hand.
    pub(super) filters: &'a Arc<RouteFilters>,
    /// Of the virtual host.
    pub(super) limits: &'a Arc<Vec<LimitRule>>,
    pub(super) table: &'a Ops,
    pub(super) vhost: &'a Ops,
    pub(super) specific_wins: bool,
    pub(super) retry: Option<&'a Arc<RetryPolicy>>,
    pub(super) attempt_count_in_request: bool,
    pub(super) attempt_count_in_response: bool,
}

impl Levels<'_> {
    /// The order of evaluation: by default the most specific level is first, so that the table has the last word.
    fn all(&self, specific: &Ops) -> Ops {
        if self.specific_wins {
            self.table.then(self.vhost).then(specific)
        } else {
            specific.then(self.vhost).then(self.table)
        }
    }
}

pub(super) fn convert(
    path: &Path<'_>,
    wire: route::Action,
    ops: &Ops,
    levels: &Levels<'_>,
) -> Result<Action> {
    match wire {
        route::Action::Route(wire) => {
            forward(&path.field("route"), wire, ops, levels).map(|f| Action::Forward(Box::new(f)))
        }
        route::Action::Redirect(wire) => Ok(Action::Redirect {
            to: redirect(&path.field("redirect"), wire)?,
            response: levels.all(ops).response,
        }),
        route::Action::DirectResponse(wire) => Ok(Action::Direct {
            answer: direct(&path.field("direct_response"), wire)?,
            response: levels.all(ops).response,
        }),
        route::Action::FilterAction(_) => Err(path.field("filter_action").unsupported()),
        route::Action::NonForwardingAction(_) => Err(path.field("non_forwarding_action").unsupported()),
    }
}

#[allow(deprecated)]
fn forward(path: &Path<'_>, wire: RouteAction, ops: &Ops, levels: &Levels<'_>) -> Result<Forward> {
    let RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = wire;
    refuse!(path; path_rewrite_policy, path_rewrite, flush_timeout, early_data_policy,
        retry_policy_typed_config, rate_limits, include_vh_rate_limits,
        cors, max_grpc_timeout, grpc_timeout_offset, internal_redirect_policy,
        internal_redirect_action, max_internal_redirects, hedge_policy);
    let choice = upstream_choice::convert(path, priority, hash_policy)?;
    let wanted = upstream_choice::wanted(&path.field("metadata_match"), metadata_match)?;
    let destinations = destinations(path, cluster_specifier, ops, levels, wanted)?;
    let host_rewrite = match host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            header_ops::host(&path.field("host_rewrite_literal"), &host)?.map(|_| HostRewrite::Literal(host))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(on)) if !on.value => None,
        Some(HostRewriteSpecifier::AutoHostRewrite(_)) => {
            return Err(path.field("auto_host_rewrite").unsupported());
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => Some(HostRewrite::Header(
            header_ops::header(&path.field("host_rewrite_header"), &name)?.to_string(),
        )),
        Some(HostRewriteSpecifier::HostRewritePathRegex(wire)) => {
            let path = path.field("host_rewrite_path_regex");
            Some(HostRewrite::Path(matcher::substitution(&path, wire)?))
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => return Err(path.field("host_rewrite").unsupported()),
    };
    let cluster_not_found_status = match cluster_not_found_response_code {
        0 => 503,
        1 => 404,
        2 => 500,
        other => return Err(path.field("cluster_not_found_response_code").invalid(other, "is unknown")),
    };
    let rewrite_path = path.field("prefix_rewrite");
    if !prefix_rewrite.is_empty()
        && (!prefix_rewrite.starts_with('/') || !prefix_rewrite.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(rewrite_path.invalid(&prefix_rewrite, "must begin with '/' and be visible ASCII"));
    }
    if !prefix_rewrite.is_empty() && regex_rewrite.is_some() {
        return Err(path
            .field("regex_rewrite")
            .invalid("regex_rewrite", "and prefix_rewrite exclude each other"));
    }
    let regex_path = path.field("regex_rewrite");
    let regex_rewrite = regex_rewrite.map(|wire| matcher::substitution(&regex_path, wire)).transpose()?;
    let mirror_list = path.field("request_mirror_policies");
    let mirrors = request_mirror_policies.into_iter().enumerate();
    let mirrors = mirrors.map(|(at, wire)| mirror(&mirror_list.index(at), wire));
    let (max_stream, grpc_timeout) =
        stream_duration(&path.field("max_stream_duration"), max_stream_duration)?;
    let retry = match retry_policy {
        // A route's own policy replaces that of its virtual host as a whole.
        Some(wire) => retry(&path.field("retry_policy"), wire)?,
        None => levels.retry.cloned(),
    };
    let (upgrades, terminates_connect) = upgrades(&path.field("upgrade_configs"), upgrade_configs)?;
    let total_weight = destinations.iter().map(|d| u64::from(d.weight)).sum();
    Ok(Forward {
        destinations,
        total_weight,
        timeout: timeout_or(&path.field("timeout"), &timeout, Some(DEFAULT_TIMEOUT))?,
        idle_timeout: timeout_or(&path.field("idle_timeout"), &idle_timeout, None)?,
        upgrades,
        terminates_connect,
        retry,
        max_stream,
        grpc_timeout,
        mirrors: mirrors.collect::<Result<_>>()?,
        prefix_rewrite: Some(prefix_rewrite).filter(|p| !p.is_empty()),
        regex_rewrite,
        host_rewrite,
        append_x_forwarded_host,
        cluster_not_found_status,
        choice,
        attempt_count_in_request: levels.attempt_count_in_request,
        attempt_count_in_response: levels.attempt_count_in_response,
    })
}

fn stream_duration(
    path: &Path<'_>,
    wire: Option<MaxStreamDuration>,
) -> Result<(Option<Duration>, Option<GrpcTimeout>)> {
    let MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } =
        wire.unwrap_or_default();
    let own = match &max_stream_duration {
        Some(wire) => Some(duration(&path.field("max_stream_duration"), wire)?),
        None => None,
    };
    let max_path = path.field("grpc_timeout_header_max");
    let offset =
        duration_or(&path.field("grpc_timeout_header_offset"), &grpc_timeout_header_offset, Duration::ZERO)?;
    let grpc = match &grpc_timeout_header_max {
        None => None,
        Some(wire) => {
            let max = Some(duration(&max_path, wire)?).filter(|max| !max.is_zero());
            Some(GrpcTimeout { max, offset })
        }
    };
    Ok((own, grpc))
}

fn mirror(path: &Path<'_>, wire: RequestMirrorPolicy) -> Result<Mirror> {
    let RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction,
        // Copies are not traced.
        trace_sampled: _,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = wire;
    refuse!(path; request_headers_mutations);
    let header_path = path.field("cluster_header");
    let fraction = match runtime_fraction {
        Some(wire) => table::fraction(&path.field("runtime_fraction"), wire)?,
        None => Fraction::ALL,
    };
    let cluster_header = match (cluster.is_empty(), cluster_header.as_str()) {
        (true, "") => return Err(path.field("cluster").missing()),
        (false, "") => None,
        (true, name) => Some(header_ops::header(&header_path, name)?),
        (false, name) => return Err(header_path.invalid(name, "and cluster exclude each other")),
    };
    Ok(Mirror {
        cluster: cluster.into(),
        cluster_header,
        fraction,
        shadow_host: !disable_shadow_host_suffix_append,
        host: header_ops::host(&path.field("host_rewrite_literal"), &host_rewrite_literal)?,
    })
}

/// What may be switched to, and whether `CONNECT` ends here.
fn upgrades(path: &Path<'_>, wire: Vec<UpgradeConfig>) -> Result<(Vec<(String, bool)>, bool)> {
    let mut upgrades = Vec::with_capacity(wire.len());
    let mut terminates = false;
    for (at, wire) in wire.into_iter().enumerate() {
        let path = path.index(at);
        let UpgradeConfig { upgrade_type, enabled, connect_config } = wire;
        let kind = path.field("upgrade_type");
        let name = upgrade_type.to_ascii_lowercase();
        if name.is_empty() {
            return Err(kind.missing());
        }
        if upgrades.iter().any(|(known, _)| *known == name) {
            return Err(kind.duplicate(&name));
        }
        if let Some(ConnectConfig { proxy_protocol_config, allow_post }) = connect_config {
            let path = path.field("connect_config");
            refuse!(path; proxy_protocol_config, allow_post);
            if name != "connect" {
                return Err(path.invalid(&name, "must be CONNECT"));
            }
            terminates = true;
        }
        upgrades.push((name, bool_or(&enabled, true)));
    }
    Ok((upgrades, terminates))
}

fn destinations(
    path: &Path<'_>,
    wire: Option<ClusterSpecifier>,
    ops: &Ops,
    levels: &Levels<'_>,
    wanted: Option<Criteria>,
) -> Result<Vec<Destination>> {
    match wire.ok_or_else(|| path.field("cluster").missing())? {
        ClusterSpecifier::Cluster(name) if name.is_empty() => Err(path.field("cluster").missing()),
        ClusterSpecifier::Cluster(name) => {
            let Ops { request, response } = levels.all(ops);
            Ok(vec![Destination {
                cluster: name.into(),
                cluster_header: None,
                weight: 1,
                request,
                response,
                host_rewrite: None,
                wanted,
                filters: levels.filters.clone(),
            }])
        }
        ClusterSpecifier::WeightedClusters(wire) => {
            weighted(&path.field("weighted_clusters"), wire, ops, levels, wanted)
        }
        ClusterSpecifier::ClusterHeader(name) => {
            let Ops { request, response } = levels.all(ops);
            Ok(vec![Destination {
                cluster: "".into(),
                cluster_header: Some(header_ops::header(&path.field("cluster_header"), &name)?),
                weight: 1,
                request,
                response,
                host_rewrite: None,
                wanted,
                filters: levels.filters.clone(),
            }])
        }
        ClusterSpecifier::ClusterSpecifierPlugin(_) => {
            Err(path.field("cluster_specifier_plugin").unsupported())
        }
        ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
            Err(path.field("inline_cluster_specifier_plugin").unsupported())
        }
    }
}

#[allow(deprecated)]
fn weighted(
    path: &Path<'_>,
    wire: WeightedCluster,
    ops: &Ops,
    levels: &Levels<'_>,
    wanted: Option<Criteria>,
) -> Result<Vec<Destination>> {
    // The total is the sum of the weights; Envoy ignores the deprecated field as well when it is the sum.
    let WeightedCluster { clusters, total_weight, runtime_key_prefix, random_value_specifier } = wire;
    refuse!(path; runtime_key_prefix, random_value_specifier);
    let list = path.field("clusters");
    let mut sum = 0_u64;
    let mut destinations = Vec::with_capacity(clusters.len());
    for (at, wire) in clusters.into_iter().enumerate() {
        let path = list.index(at);
        let ClusterWeight {
            name,
            cluster_header,
            weight,
            metadata_match,
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            typed_per_filter_config,
            host_rewrite_specifier,
        } = wire;
        let own = upstream_choice::wanted(&path.field("metadata_match"), metadata_match)?;
        let wanted = upstream_choice::both(wanted.as_ref(), own);
        let header_path = path.field("cluster_header");
        let cluster_header = match (name.is_empty(), cluster_header.as_str()) {
            (true, "") => return Err(path.field("name").missing()),
            (false, "") => None,
            (true, header) => Some(header_ops::header(&header_path, header)?),
            (false, header) => return Err(header_path.invalid(header, "and name exclude each other")),
        };
        let weight = weight.ok_or_else(|| path.field("weight").missing())?.value;
        sum += u64::from(weight);
        let own = Ops {
            request: header_ops::convert(&path, &REQUEST, request_headers_to_add, request_headers_to_remove)?,
            response: header_ops::convert(
                &path,
                &RESPONSE,
                response_headers_to_add,
                response_headers_to_remove,
            )?,
        };
        let specific = if levels.specific_wins { ops.then(&own) } else { own.then(ops) };
        let Ops { request, response } = levels.all(&specific);
        let host_rewrite = match host_rewrite_specifier {
            None => None,
            Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                header_ops::host(&path.field("host_rewrite_literal"), &host)?
            }
        };
        let filters = filters::layer(&path, typed_per_filter_config, levels.filters)?;
        let cluster = name.into();
        destinations.push(Destination {
            cluster,
            cluster_header,
            weight,
            request,
            response,
            host_rewrite,
            wanted,
            filters,
        });
    }
    if sum == 0 || sum > u64::from(u32::MAX) {
        return Err(list.invalid(sum, "is the sum of the weights; it must be 1 to 4294967295"));
    }
    match total_weight {
        Some(total) if u64::from(total.value) != sum => Err(path
            .field("total_weight")
            .invalid(total.value, format!("is not the sum of the weights, {sum}"))),
        _ => Ok(destinations),
    }
}

pub(super) fn retry(path: &Path<'_>, wire: WireRetry) -> Result<Option<Arc<RetryPolicy>>> {
    let WireRetry {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        // Hosts that were tried are always left out, and found without drawing again.
        host_selection_retry_max_attempts: _,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = wire;
    refuse!(path; per_try_idle_timeout, retry_options_predicates, refresh_cluster_on_retry);
    let header_tests = |field: &str, wires: Vec<HeaderMatcher>| {
        let list = path.field(field);
        let tests = wires.into_iter().enumerate().map(|(at, wire)| table::header(&list.index(at), wire));
        tests.collect::<Result<Vec<_>>>()
    };
    let rate_limited = rate_limited_retry_back_off
        .map(|wire| rate_limited(&path.field("rate_limited_retry_back_off"), wire))
        .transpose()?;
    // What these two ask for is how this proxy always retries: hosts that failed are not tried again while others are
    // left, and a priority whose hosts all failed is left for the next.
    let predicates = path.field("retry_host_predicate");
    for (at, predicate) in retry_host_predicate.iter().enumerate() {
        if predicate.name != "envoy.retry_host_predicates.previous_hosts" {
            return Err(predicates.index(at).field("name").unsupported_type(&predicate.name));
        }
    }
    if let Some(priority) = retry_priority
        && priority.name != "envoy.retry_priorities.previous_priorities"
    {
        return Err(path.field("retry_priority").field("name").unsupported_type(&priority.name));
    }
    let on =
        RetryOn::parse(&retry_on).map_err(|name| path.field("retry_on").invalid(name, "is not supported"))?;
    let codes = path.field("retriable_status_codes");
    let status_codes = retriable_status_codes.iter().enumerate().map(|(at, code)| {
        let valid = u16::try_from(*code).ok().filter(|c| (100..600).contains(c));
        valid.ok_or_else(|| codes.index(at).invalid(code, "is no HTTP status"))
    });
    let (back_off_base, back_off_max) = back_off(&path.field("retry_back_off"), retry_back_off)?;
    let policy = RetryPolicy {
        on,
        num_retries: u32_or(&num_retries, 1),
        per_try_timeout: timeout_or(&path.field("per_try_timeout"), &per_try_timeout, None)?,
        status_codes: status_codes.collect::<Result<_>>()?,
        headers: header_tests("retriable_headers", retriable_headers)?,
        request_headers: header_tests("retriable_request_headers", retriable_request_headers)?,
        rate_limited,
        back_off_base,
        back_off_max,
    };
    Ok((!policy.on.is_empty() && policy.num_retries > 0).then(|| Arc::new(policy)))
}

fn rate_limited(path: &Path<'_>, wire: RateLimitedRetryBackOff) -> Result<RateLimited> {
    let RateLimitedRetryBackOff { reset_headers, max_interval } = wire;
    let list = path.field("reset_headers");
    if reset_headers.is_empty() {
        return Err(list.missing());
    }
    let headers = reset_headers.into_iter().enumerate().map(|(at, ResetHeader { name, format })| {
        let path = list.index(at);
        let name = header_ops::header(&path.field("name"), &name)?.to_string();
        match format {
            0 => Ok((name, false)),
            1 => Ok((name, true)),
            other => Err(path.field("format").invalid(other, "is unknown")),
        }
    });
    Ok(RateLimited {
        headers: headers.collect::<Result<_>>()?,
        max: duration_or(&path.field("max_interval"), &max_interval, Duration::from_secs(300))?,
    })
}

fn back_off(path: &Path<'_>, wire: Option<RetryBackOff>) -> Result<(Duration, Duration)> {
    let RetryBackOff { base_interval, max_interval } = wire.unwrap_or_default();
    let base_path = path.field("base_interval");
    let base = duration_or(&base_path, &base_interval, Duration::from_millis(25))?;
    let max_path = path.field("max_interval");
    let max = duration_or(&max_path, &max_interval, base.saturating_mul(10))?;
    if base.is_zero() || max < base {
        return Err(
            max_path.invalid(format!("{max:?}"), format!("and base {base:?}: 0 < base <= max must hold"))
        );
    }
    Ok((base, max))
}

fn redirect(path: &Path<'_>, wire: RedirectAction) -> Result<Redirect> {
    let RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = wire;
    let visible = |field: &str, text: String| {
        let good = text.bytes().all(|b| b.is_ascii_graphic());
        if good { Ok(text) } else { Err(path.field(field).invalid(&text, "must be visible ASCII")) }
    };
    let scheme = match scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => Some(visible("scheme_redirect", scheme)?),
    };
    let new_path = match path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRedirect(full)) => {
            Some(PathRedirect::Full(visible("path_redirect", full)?))
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            Some(PathRedirect::Prefix(visible("prefix_rewrite", prefix)?))
        }
        Some(PathRewriteSpecifier::RegexRewrite(wire)) => {
            Some(PathRedirect::Regex(matcher::substitution(&path.field("regex_rewrite"), wire)?))
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Err(path.field("path_rewrite").unsupported()),
    };
    let status = match response_code {
        0 => 301,
        1 => 302,
        2 => 303,
        3 => 307,
        4 => 308,
        other => return Err(path.field("response_code").invalid(other, "is unknown")),
    };
    let port = u16::try_from(port_redirect)
        .map_err(|_| path.field("port_redirect").invalid(port_redirect, "is no port"))?;
    Ok(Redirect {
        status,
        scheme,
        host: Some(visible("host_redirect", host_redirect)?).filter(|h| !h.is_empty()),
        port: Some(port).filter(|p| *p != 0),
        path: new_path,
        strip_query,
    })
}

fn direct(path: &Path<'_>, wire: DirectResponseAction) -> Result<Direct> {
    let DirectResponseAction { status, body, body_format } = wire;
    refuse!(path; body_format);
    let code = u16::try_from(status).ok().filter(|s| (200..600).contains(s));
    let code = code.ok_or_else(|| path.field("status").invalid(status, "must be 200 to 599"))?;
    let body_path = path.field("body");
    let body = body.map_or(Ok(vec![]), |source| inline(&body_path, source))?;
    if body.len() > MAX_DIRECT_BODY {
        return Err(body_path.invalid(body.len(), format!("bytes are more than {MAX_DIRECT_BODY}")));
    }
    let body = String::from_utf8(body).map_err(|_| body_path.invalid("body", "is no UTF-8"))?;
    Ok(Direct { status: code, body })
}
