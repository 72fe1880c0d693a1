//! The RBAC filters, for connections and for requests: `rules` and `shadow_rules` with ALLOW and DENY.
//!
//! Permissions: `and_rules`, `or_rules`, `not_rule`, `any`, `destination_ip`, `destination_port`,
//! `destination_port_range`, `requested_server_name`. Principals: `and_ids`, `or_ids`, `not_id`, `any`, `authenticated`,
//! `direct_remote_ip`, `source_ip`, `remote_ip`. Both, for requests only: `header`, `url_path`.

use std::sync::Arc;

use ipnet::IpNet;
use xds_proto::envoy::{
    config::{
        core::v3::CidrRange,
        rbac::v3::{
            Permission, Policy as WirePolicy, Principal, Rbac as WireRules, permission,
            principal::{self, Authenticated, Identifier},
        },
    },
    extensions::filters::{http::rbac::v3::Rbac as HttpRbac, network::rbac::v3::Rbac as NetworkRbac},
    r#type::{
        matcher::v3::{PathMatcher, path_matcher},
        v3::Int32Range,
    },
};

use super::{
    error::Path,
    matcher, route,
    wire::{Result, refuse, u32_or},
};
use crate::policy::{Action, Caller, Policy, Rbac, RequestTest, Rule, Rules, Target};

/// What the rules may ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Connections.
    Network,
    /// Requests. `remote_ip` is then the client's own address only if the connection manager uses that
    /// (`use_remote_address`), and else what the client says.
    Http { uses_remote_address: bool },
}

pub(super) fn network(path: &Path<'_>, wire: NetworkRbac) -> Result<Rbac> {
    let NetworkRbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix: _,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = wire;
    refuse!(path; matcher, shadow_matcher, delay_deny);
    // Nothing that is known of a connection changes while it stands, so once is as good as continuously; and it is
    // asked again whenever the rules change.
    if !matches!(enforcement_type, 0 | 1) {
        return Err(path.field("enforcement_type").invalid(enforcement_type, "is unknown"));
    }
    filter(path, Scope::Network, &stat_prefix, rules, shadow_rules)
}

pub(super) fn http(path: &Path<'_>, wire: HttpRbac, uses_remote_address: bool) -> Result<Rbac> {
    let HttpRbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix: _,
        track_per_rule_stats: _,
    } = wire;
    refuse!(path; matcher, shadow_matcher);
    filter(path, Scope::Http { uses_remote_address }, &rules_stat_prefix, rules, shadow_rules)
}

fn filter(
    path: &Path<'_>,
    scope: Scope,
    stat_prefix: &str,
    wire: Option<WireRules>,
    shadow: Option<WireRules>,
) -> Result<Rbac> {
    let convert = |field: &str, wire: Option<WireRules>| {
        wire.map(|wire| self::rules(&path.field(field), scope, wire)).transpose()
    };
    Ok(Rbac {
        name: if stat_prefix.is_empty() { "none" } else { stat_prefix }.into(),
        rules: convert("rules", wire)?,
        shadow: convert("shadow_rules", shadow)?,
    })
}

fn rules(path: &Path<'_>, scope: Scope, wire: WireRules) -> Result<Rules> {
    let WireRules { action, policies, audit_logging_options } = wire;
    refuse!(path; audit_logging_options);
    let action = match action {
        0 => Action::Allow,
        1 => Action::Deny,
        other => return Err(path.field("action").invalid(other, "is not ALLOW or DENY")),
    };
    let list = path.field("policies");
    let mut policies: Vec<Policy> = policies
        .into_iter()
        .map(|(name, wire)| policy(&list.key(&name), scope, name.as_str().into(), wire))
        .collect::<Result<_>>()?;
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Rules { action, policies })
}

fn policy(path: &Path<'_>, scope: Scope, name: Arc<str>, wire: WirePolicy) -> Result<Policy> {
    let WirePolicy { permissions, principals, condition, checked_condition, cel_config } = wire;
    refuse!(path; condition, checked_condition, cel_config);
    let (what, who) = (path.field("permissions"), path.field("principals"));
    Ok(Policy {
        name,
        permissions: several(&what, permissions, |path, wire| permission(path, scope, wire))?,
        principals: several(&who, principals, |path, wire| principal(path, scope, wire))?,
    })
}

/// At least one: none would match nothing, and its negation everything.
fn several<W, T>(
    path: &Path<'_>,
    wires: Vec<W>,
    convert: impl Fn(&Path<'_>, W) -> Result<Rule<T>>,
) -> Result<Vec<Rule<T>>> {
    if wires.is_empty() {
        return Err(path.missing());
    }
    wires.into_iter().enumerate().map(|(at, wire)| convert(&path.index(at), wire)).collect()
}

fn any<T>(path: &Path<'_>, any: bool) -> Result<Rule<T>> {
    if any { Ok(Rule::Any) } else { Err(path.field("any").invalid(false, "must be true")) }
}

#[allow(deprecated)]
fn permission(path: &Path<'_>, scope: Scope, wire: Permission) -> Result<Rule<Target>> {
    use permission::Rule as Wire;
    let set = |field: &str, set: permission::Set| {
        let path = path.field(field);
        several(&path.field("rules"), set.rules, |path, wire| permission(path, scope, wire))
    };
    Ok(Rule::Test(match wire.rule.ok_or_else(|| path.missing())? {
        Wire::AndRules(wires) => return set("and_rules", wires).map(Rule::And),
        Wire::OrRules(wires) => return set("or_rules", wires).map(Rule::Or),
        Wire::NotRule(wire) => {
            let rule = permission(&path.field("not_rule"), scope, *wire)?;
            return Ok(Rule::Not(Box::new(rule)));
        }
        Wire::Any(yes) => return any(path, yes),
        Wire::DestinationIp(range) => Target::Ip(block(&path.field("destination_ip"), range)?),
        Wire::DestinationPort(wire) => {
            let port = u16::try_from(wire)
                .map_err(|_| path.field("destination_port").invalid(wire, "is no port"))?;
            Target::Ports(port, port)
        }
        Wire::DestinationPortRange(range) => ports(&path.field("destination_port_range"), range)?,
        Wire::RequestedServerName(wire) => {
            Target::ServerName(matcher::text(&path.field("requested_server_name"), wire)?)
        }
        Wire::Header(wire) => {
            let path = path.field("header");
            in_requests(&path, scope)?;
            Target::Request(RequestTest::Header(route::header(&path, wire)?))
        }
        Wire::UrlPath(wire) => Target::Request(url_path(&path.field("url_path"), scope, wire)?),
        Wire::Metadata(_) => return Err(path.field("metadata").unsupported()),
        Wire::Matcher(_) => return Err(path.field("matcher").unsupported()),
        Wire::UriTemplate(_) => return Err(path.field("uri_template").unsupported()),
        Wire::SourcedMetadata(_) => return Err(path.field("sourced_metadata").unsupported()),
    }))
}

#[allow(deprecated)]
fn principal(path: &Path<'_>, scope: Scope, wire: Principal) -> Result<Rule<Caller>> {
    let set = |field: &str, set: principal::Set| {
        let path = path.field(field);
        several(&path.field("ids"), set.ids, |path, wire| principal(path, scope, wire))
    };
    Ok(Rule::Test(match wire.identifier.ok_or_else(|| path.missing())? {
        Identifier::AndIds(wires) => return set("and_ids", wires).map(Rule::And),
        Identifier::OrIds(wires) => return set("or_ids", wires).map(Rule::Or),
        Identifier::NotId(wire) => {
            let rule = principal(&path.field("not_id"), scope, *wire)?;
            return Ok(Rule::Not(Box::new(rule)));
        }
        Identifier::Any(yes) => return any(path, yes),
        Identifier::Authenticated(Authenticated { principal_name }) => {
            let path = path.field("authenticated");
            let path = path.field("principal_name");
            Caller::Authenticated(principal_name.map(|wire| matcher::text(&path, wire)).transpose()?)
        }
        Identifier::DirectRemoteIp(range) => Caller::Address(block(&path.field("direct_remote_ip"), range)?),
        Identifier::SourceIp(range) => Caller::Address(block(&path.field("source_ip"), range)?),
        Identifier::RemoteIp(range) => {
            let path = path.field("remote_ip");
            if scope == (Scope::Http { uses_remote_address: false }) {
                let reason = "would be what the client says: set use_remote_address, or use direct_remote_ip";
                return Err(path.invalid(&range.address_prefix, reason));
            }
            Caller::Address(block(&path, range)?)
        }
        Identifier::Header(wire) => {
            let path = path.field("header");
            in_requests(&path, scope)?;
            Caller::Request(RequestTest::Header(route::header(&path, wire)?))
        }
        Identifier::UrlPath(wire) => Caller::Request(url_path(&path.field("url_path"), scope, wire)?),
        Identifier::Metadata(_) => return Err(path.field("metadata").unsupported()),
        Identifier::FilterState(_) => return Err(path.field("filter_state").unsupported()),
        Identifier::SourcedMetadata(_) => return Err(path.field("sourced_metadata").unsupported()),
        Identifier::Custom(_) => return Err(path.field("custom").unsupported()),
    }))
}

/// In a network filter Envoy takes conditions on requests, and none holds; within a negation all do.
fn in_requests(path: &Path<'_>, scope: Scope) -> Result<()> {
    match scope {
        Scope::Http { .. } => Ok(()),
        Scope::Network => Err(path.invalid("network filter", "has no request to look at")),
    }
}

fn url_path(path: &Path<'_>, scope: Scope, wire: PathMatcher) -> Result<RequestTest> {
    in_requests(path, scope)?;
    let path = path.field("path");
    match wire.rule {
        Some(path_matcher::Rule::Path(wire)) => matcher::text(&path, wire).map(RequestTest::Path),
        None => Err(path.missing()),
    }
}

fn block(path: &Path<'_>, wire: CidrRange) -> Result<IpNet> {
    let CidrRange { address_prefix, prefix_len } = wire;
    let address = address_prefix
        .parse()
        .map_err(|_| path.field("address_prefix").invalid(&address_prefix, "is no IP address"))?;
    let length = u32_or(&prefix_len, 0);
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| path.field("prefix_len").invalid(length, "is longer than the address"))
}

/// The end of the range is not part of it.
fn ports(path: &Path<'_>, Int32Range { start, end }: Int32Range) -> Result<Target> {
    let port = |value: i32| u16::try_from(value).ok();
    match (port(start), port(end.saturating_sub(1))) {
        (Some(first), Some(last)) if first <= last => Ok(Target::Ports(first, last)),
        _ => Err(path.invalid(format!("{start}..{end}"), "is no range of ports")),
    }
}
