//! What requests a node's proxy lets through, as Envoy's HTTP RBAC filter: by the address that a pod asks from, the address
//! and port that it asks for, and what it asks.

use std::net::IpAddr;

use ipnet::IpNet;
use mesh_model::{
    resource::{AMBIGUOUS_PATH, HttpRule, HttpRuleHeader},
    view::{Destinations, ReadRule, Reader},
};
use xds_proto::{
    Message, Name,
    envoy::{
        config::{
            core::v3::CidrRange,
            rbac::v3::{
                Permission, Policy, Principal, Rbac, permission, principal::Identifier, principal::Set,
            },
            route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
        },
        extensions::filters::{
            http::rbac::v3::Rbac as HttpRbac,
            network::http_connection_manager::v3::{HttpFilter, http_filter},
        },
        r#type::{matcher::v3::StringMatcher, v3::Int32Range},
    },
    google::protobuf::{Any, UInt32Value},
};

use super::wire::{exact, matches_regex};

const NAME: &str = "envoy.filters.http.rbac";
/// What is counted and logged where no rule lets a request through.
const DENIED: &str = "node-proxy";

/// For what comes by policy: nobody's requests pass but those that a rule lets through.
pub(super) fn by_policy(readers: &[Reader<'_>]) -> HttpFilter {
    let policies = readers.iter().flat_map(|reader| {
        reader.rules.iter().enumerate().map(move |(at, rule)| {
            let to = [destination(&rule.to), ports(rule.ports)].into_iter().flatten();
            policy(reader, at, rule, to)
        })
    });
    filter(policies)
}

/// For a service that is led to the proxy, whose endpoints these are: who may call it whatever they ask passes, the others by their
/// rules. Which endpoint a request goes to is not known yet, so a rule about one of them is about all. None: it concerns nobody.
pub(super) fn by_service(readers: &[Reader<'_>], ends: &[(IpAddr, u16)]) -> Option<HttpFilter> {
    let (mut policies, mut read) = (Vec::new(), Vec::new());
    for reader in readers {
        let rules = reader.concerning(ends);
        if rules.is_empty() {
            continue;
        }
        read.extend(reader.sources.iter().copied());
        policies.extend(rules.into_iter().enumerate().map(|(at, rule)| policy(reader, at, rule, [])));
    }
    if read.is_empty() {
        return None;
    }
    let others = Policy {
        permissions: vec![any()],
        principals: vec![Principal { identifier: Some(Identifier::NotId(Box::new(from(&read)))) }],
        ..Default::default()
    };
    Some(filter(policies.into_iter().chain([("unread".to_owned(), others)])))
}

fn filter(policies: impl Iterator<Item = (String, Policy)>) -> HttpFilter {
    let rbac = |rules| HttpRbac { rules: Some(rules), ..Default::default() };
    // Allows, and denies whom nothing matches, also where there is nothing.
    let head = HttpRbac { rules_stat_prefix: DENIED.to_owned(), ..rbac(Rbac::default()) };
    let mut value = head.encode_to_vec();
    // A map is encoded in an order that differs between processes, and versions are hashes of what is encoded. So each
    // entry goes by itself: messages that are written one after the other are one message.
    for (name, policy) in policies {
        // `encode` fails only for want of room, and a vector has it.
        let _ = rbac(Rbac { policies: [(name, policy)].into(), ..Default::default() }).encode(&mut value);
    }
    let any = Any { type_url: HttpRbac::type_url(), value };
    HttpFilter {
        name: NAME.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    }
}

fn policy(
    reader: &Reader<'_>,
    at: usize,
    rule: &ReadRule<'_>,
    to: impl IntoIterator<Item = Permission>,
) -> (String, Policy) {
    let requests = any_of(rule.requests.iter().map(request));
    let name = format!("{}|{}|{at}", rule.provenance, reader.class);
    let permission = all_of(to.into_iter().chain([requests]));
    let policy = Policy {
        permissions: vec![permission],
        principals: vec![from(&reader.sources)],
        ..Default::default()
    };
    (name, policy)
}

fn from(sources: &[IpAddr]) -> Principal {
    let one =
        |ip: &IpAddr| Principal { identifier: Some(Identifier::DirectRemoteIp(range(IpNet::from(*ip)))) };
    let ids = sources.iter().map(one).collect();
    Principal { identifier: Some(Identifier::OrIds(Set { ids })) }
}

fn destination(to: &Destinations) -> Option<Permission> {
    let one = |net: &IpNet| permission(permission::Rule::DestinationIp(range(*net)));
    let inside = to.blocks.as_ref().map(|blocks| any_of(blocks.iter().map(one)));
    let except = to.except.iter().map(one).map(not);
    let both: Vec<Permission> = inside.into_iter().chain(except).collect();
    (!both.is_empty()).then(|| all_of(both))
}

fn ports(ports: Option<(u16, u16)>) -> Option<Permission> {
    // The end of Envoy's range is not part of it.
    let range = |(first, last): (u16, u16)| Int32Range { start: first.into(), end: i32::from(last) + 1 };
    ports.map(|ports| permission(permission::Rule::DestinationPortRange(range(ports))))
}

fn request(rule: &HttpRule) -> Permission {
    let HttpRule { method, path, host, headers } = rule;
    let is = |name: &str, pattern: &String| header(name, Some(matches_regex(pattern)));
    let mut all = Vec::new();
    all.extend(method.iter().map(|pattern| is(":method", pattern)));
    if let Some(pattern) = path {
        all.push(is(":path", pattern));
        all.push(not(header(":path", Some(matches_regex(AMBIGUOUS_PATH)))));
    }
    all.extend(host.iter().map(|pattern| is(":authority", pattern)));
    all.extend(
        headers.iter().map(|HttpRuleHeader { name, value }| header(name, value.as_deref().map(exact))),
    );
    if all.is_empty() { any() } else { all_of(all) }
}

/// That it is there, or is this.
fn header(name: &str, value: Option<StringMatcher>) -> Permission {
    let specifier = match value {
        Some(value) => HeaderMatchSpecifier::StringMatch(value),
        None => HeaderMatchSpecifier::PresentMatch(true),
    };
    permission(permission::Rule::Header(HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }))
}

fn any() -> Permission {
    permission(permission::Rule::Any(true))
}

fn not(one: Permission) -> Permission {
    permission(permission::Rule::NotRule(Box::new(one)))
}

fn all_of(rules: impl IntoIterator<Item = Permission>) -> Permission {
    permission(permission::Rule::AndRules(permission::Set { rules: rules.into_iter().collect() }))
}

fn any_of(rules: impl IntoIterator<Item = Permission>) -> Permission {
    permission(permission::Rule::OrRules(permission::Set { rules: rules.into_iter().collect() }))
}

fn permission(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn range(net: IpNet) -> CidrRange {
    CidrRange {
        address_prefix: net.network().to_string(),
        prefix_len: Some(UInt32Value { value: net.prefix_len().into() }),
    }
}
