//! The RBAC filters, for connections and for requests: `rules` and `shadow_rules` with ALLOW, DENY and LOG. Conditions on
//! requests and metadata are refused in filters for connections, which have neither.

use std::sync::Arc;

use ipnet::IpNet;
use xds_proto::envoy::{
    config::{
        core::v3::{CidrRange, TypedExtensionConfig},
        rbac::v3::{
            MetadataSource, Permission, Policy as WirePolicy, Principal, Rbac as WireRules, SourcedMetadata,
            permission,
            principal::{Authenticated, Identifier},
        },
    },
    extensions::{
        filters::{http::rbac::v3::Rbac as HttpRbac, network::rbac::v3::Rbac as NetworkRbac},
        rbac::principals::mtls_authenticated::v3::Config as MtlsAuthenticated,
        transport_sockets::tls::v3::{SubjectAltNameMatcher, subject_alt_name_matcher::SanType},
    },
    r#type::{
        matcher::v3::{FilterStateMatcher, MetadataMatcher, PathMatcher, filter_state_matcher, path_matcher},
        v3::Int32Range,
    },
};

use super::{
    error::Path,
    matcher, metadata_match, route,
    wire::{Result, refuse, u32_or, unpack},
};
use crate::policy::{Action, Caller, MetadataTest, Policy, Rbac, RequestTest, Rule, Rules, Target};

/// What the rules may ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Connections.
    Network,
    /// Requests.
    Http,
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

pub(super) fn http(path: &Path<'_>, wire: HttpRbac) -> Result<Rbac> {
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
    filter(path, Scope::Http, &rules_stat_prefix, rules, shadow_rules)
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
        2 => Action::Log,
        other => return Err(path.field("action").invalid(other, "is not ALLOW, DENY or LOG")),
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
        Wire::Metadata(wire) => Target::Metadata(metadata(&path.field("metadata"), scope, wire)?),
        Wire::Matcher(_) => return Err(path.field("matcher").unsupported()),
        Wire::UriTemplate(_) => return Err(path.field("uri_template").unsupported()),
        Wire::SourcedMetadata(wire) => {
            Target::Metadata(sourced(&path.field("sourced_metadata"), scope, wire)?)
        }
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
        Identifier::RemoteIp(range) => Caller::Client(block(&path.field("remote_ip"), range)?),
        Identifier::Header(wire) => {
            let path = path.field("header");
            in_requests(&path, scope)?;
            Caller::Request(RequestTest::Header(route::header(&path, wire)?))
        }
        Identifier::UrlPath(wire) => Caller::Request(url_path(&path.field("url_path"), scope, wire)?),
        Identifier::Metadata(wire) => Caller::Metadata(metadata(&path.field("metadata"), scope, wire)?),
        Identifier::FilterState(wire) => filter_state(&path.field("filter_state"), wire)?,
        Identifier::SourcedMetadata(wire) => {
            Caller::Metadata(sourced(&path.field("sourced_metadata"), scope, wire)?)
        }
        Identifier::Custom(wire) => custom(&path.field("custom"), wire)?,
    }))
}

/// In a network filter Envoy takes conditions on requests, and none holds; within a negation all do.
fn in_requests(path: &Path<'_>, scope: Scope) -> Result<()> {
    match scope {
        Scope::Http => Ok(()),
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

fn metadata(path: &Path<'_>, scope: Scope, wire: MetadataMatcher) -> Result<MetadataTest> {
    in_requests(path, scope)?;
    metadata_match::convert(path, wire)
}

fn sourced(path: &Path<'_>, scope: Scope, wire: SourcedMetadata) -> Result<MetadataTest> {
    let SourcedMetadata { metadata_matcher, metadata_source } = wire;
    if metadata_source != MetadataSource::Dynamic as i32 {
        return Err(path.field("metadata_source").invalid(metadata_source, "is not DYNAMIC"));
    }
    let path = path.field("metadata_matcher");
    metadata(&path, scope, metadata_matcher.ok_or_else(|| path.missing())?)
}

/// Where Istio looks for the identity of a peer that need not be at the other end of the connection.
const PEER: &str = "io.istio.peer_principal";

fn filter_state(path: &Path<'_>, wire: FilterStateMatcher) -> Result<Caller> {
    let FilterStateMatcher { key, matcher } = wire;
    if key != PEER {
        return Err(path.field("key").invalid(&key, format!("is not {PEER}")));
    }
    match matcher {
        Some(filter_state_matcher::Matcher::StringMatch(wire)) => {
            matcher::text(&path.field("string_match"), wire).map(|text| Caller::Authenticated(Some(text)))
        }
        Some(filter_state_matcher::Matcher::AddressMatch(_)) => {
            Err(path.field("address_match").unsupported())
        }
        None => Err(path.field("string_match").missing()),
    }
}

fn custom(path: &Path<'_>, wire: TypedExtensionConfig) -> Result<Caller> {
    let path = path.field("typed_config");
    let any = wire.typed_config.ok_or_else(|| path.missing())?;
    let MtlsAuthenticated { san_matcher, any_validated_client_certificate } = unpack(&path, &any)?;
    let Some(wire) = san_matcher else {
        let field = path.field("any_validated_client_certificate");
        return if any_validated_client_certificate {
            Ok(Caller::Authenticated(None))
        } else {
            Err(field.missing())
        };
    };
    let path = path.field("san_matcher");
    let SubjectAltNameMatcher { san_type, matcher, oid } = wire;
    refuse!(path; oid);
    if san_type != SanType::Uri as i32 {
        return Err(path.field("san_type").invalid(san_type, "is not URI"));
    }
    let path = path.field("matcher");
    let text = matcher::text(&path, matcher.ok_or_else(|| path.missing())?)?;
    Ok(Caller::Authenticated(Some(text)))
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
