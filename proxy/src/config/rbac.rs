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
            principal::{Authenticated, Identifier},
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

pub(super) fn http(path: &Path<'_>, wire: HttpRbac, scope: Scope) -> Result<Rbac> {
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
    filter(path, scope, &rules_stat_prefix, rules, shadow_rules)
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

/// What joins conditions, in the tree of permissions and in that of principals.
enum Join<W> {
    Any(bool),
    All(Vec<W>),
    OneOf(Vec<W>),
    Not(Box<W>),
}

/// What the fields of a tree are called.
struct Names {
    all: &'static str,
    one_of: &'static str,
    not: &'static str,
    /// Within `all` and `one_of`.
    list: &'static str,
}

const PERMISSIONS: Names = Names { all: "and_rules", one_of: "or_rules", not: "not_rule", list: "rules" };
const PRINCIPALS: Names = Names { all: "and_ids", one_of: "or_ids", not: "not_id", list: "ids" };

fn joined<W, T>(
    path: &Path<'_>,
    names: &Names,
    join: Join<W>,
    convert: impl Fn(&Path<'_>, W) -> Result<Rule<T>>,
) -> Result<Rule<T>> {
    let list = |field, wires| several(&path.field(field).field(names.list), wires, &convert);
    match join {
        Join::Any(true) => Ok(Rule::Any),
        Join::Any(false) => Err(path.field("any").invalid(false, "must be true")),
        Join::All(wires) => list(names.all, wires).map(Rule::And),
        Join::OneOf(wires) => list(names.one_of, wires).map(Rule::Or),
        Join::Not(wire) => Ok(Rule::Not(Box::new(convert(&path.field(names.not), *wire)?))),
    }
}

#[allow(deprecated)]
fn permission(path: &Path<'_>, scope: Scope, wire: Permission) -> Result<Rule<Target>> {
    use permission::Rule as Wire;
    let joined = |join| joined(path, &PERMISSIONS, join, |path, wire| permission(path, scope, wire));
    Ok(Rule::Test(match wire.rule.ok_or_else(|| path.missing())? {
        Wire::AndRules(set) => return joined(Join::All(set.rules)),
        Wire::OrRules(set) => return joined(Join::OneOf(set.rules)),
        Wire::NotRule(wire) => return joined(Join::Not(wire)),
        Wire::Any(yes) => return joined(Join::Any(yes)),
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
    let joined = |join| joined(path, &PRINCIPALS, join, |path, wire| principal(path, scope, wire));
    Ok(Rule::Test(match wire.identifier.ok_or_else(|| path.missing())? {
        Identifier::AndIds(set) => return joined(Join::All(set.ids)),
        Identifier::OrIds(set) => return joined(Join::OneOf(set.ids)),
        Identifier::NotId(wire) => return joined(Join::Not(wire)),
        Identifier::Any(yes) => return joined(Join::Any(yes)),
        Identifier::Authenticated(Authenticated { principal_name }) => {
            let path = path.field("authenticated");
            let path = path.field("principal_name");
            Caller::Authenticated(principal_name.map(|wire| matcher::text(&path, wire)).transpose()?)
        }
        Identifier::DirectRemoteIp(range) => {
            Caller::DirectAddress(block(&path.field("direct_remote_ip"), range)?)
        }
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

pub(super) fn block(path: &Path<'_>, wire: CidrRange) -> Result<IpNet> {
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
