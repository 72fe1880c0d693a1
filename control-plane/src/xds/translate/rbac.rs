//! Who may connect to a captured port, as Envoy's network RBAC filter. It stands before everything else of its
//! filter chain and behind the TLS handshake, so that it knows the caller's certificate.
//!
//! A rule of a policy becomes a policy of the filter, under the name of the object and the rule in it, which Envoy
//! and our proxy write into their logs. There is no HTTP RBAC filter: no policy language here says anything of
//! requests.

use ipnet::IpNet;
use mesh_model::{
    identity::TrustDomain,
    view::{Access, AccessRule, Caller},
};
use xds_proto::{
    Message, Name,
    envoy::{
        config::{
            core::v3::CidrRange,
            listener::v3::{Filter, filter},
            rbac::v3::{
                Permission, Policy, Principal, Rbac, permission,
                principal::{self, Authenticated, Identifier},
                rbac::Action,
            },
        },
        extensions::filters::network::rbac::v3::Rbac as NetworkRbac,
        r#type::{
            matcher::v3::{StringMatcher, string_matcher::MatchPattern},
            v3::Int32Range,
        },
    },
    google::protobuf::{Any, UInt32Value},
};

use super::wire::exact;

const NAME: &str = "envoy.filters.network.rbac";
/// Every SPIFFE ID.
const ANY_ID: &str = "spiffe://";

/// The filters that decide, in their order: one that denies where a rule does, and one that permits where not
/// everybody may.
pub(super) fn filters(access: &Access) -> Vec<Filter> {
    let denies = (!access.deny.is_empty()).then(|| filter(access, Action::Deny, "deny", &access.deny));
    let permits = access
        .default_deny
        .as_ref()
        // Envoy counts under this name, and our proxy logs it: denied is who matches nothing.
        .map(|provenance| filter(access, Action::Allow, provenance, &access.allow));
    denies.into_iter().chain(permits).collect()
}

fn filter(access: &Access, action: Action, stat_prefix: &str, rules: &[AccessRule]) -> Filter {
    let rbac = |rules| NetworkRbac { rules: Some(rules), ..Default::default() };
    let head = NetworkRbac {
        stat_prefix: stat_prefix.to_owned(),
        ..rbac(Rbac { action: action as i32, ..Default::default() })
    };
    let mut value = head.encode_to_vec();
    // A map is encoded in an order that differs between processes, and versions are hashes of what is encoded. So each
    // entry goes by itself: messages that are written one after the other are one message.
    for rule in rules {
        let spared = access.spared.as_ref().filter(|_| action == Action::Deny);
        let policies = [(rule.provenance.to_string(), policy(&access.trust_domain, rule, spared))].into();
        // `encode` fails only for want of room, and a vector has it.
        let _ = rbac(Rbac { policies, ..Default::default() }).encode(&mut value);
    }
    let any = Any { type_url: NetworkRbac::type_url(), value };
    Filter { name: NAME.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(any)) }
}

fn policy(trust_domain: &TrustDomain, rule: &AccessRule, spared: Option<&Caller>) -> Policy {
    let one = |caller| match spared {
        Some(spared) => all([principal(trust_domain, caller), not(principal(trust_domain, spared))]),
        None => principal(trust_domain, caller),
    };
    Policy {
        permissions: rule.ports.iter().map(permission).collect(),
        principals: rule.callers.iter().map(one).collect(),
        ..Default::default()
    }
}

fn permission(ports: &Option<(u16, u16)>) -> Permission {
    use permission::Rule;
    let rule = match *ports {
        None => Rule::Any(true),
        Some((first, last)) if first == last => Rule::DestinationPort(first.into()),
        // The end of Envoy's range is not part of it.
        Some((first, last)) => {
            Rule::DestinationPortRange(Int32Range { start: first.into(), end: i32::from(last) + 1 })
        }
    };
    Permission { rule: Some(rule) }
}

fn principal(trust_domain: &TrustDomain, caller: &Caller) -> Principal {
    let elsewhere = || {
        let here = authenticated(prefix(&format!("{ANY_ID}{trust_domain}/")));
        [authenticated(prefix(ANY_ID)), not(here)]
    };
    match caller {
        Caller::Anybody => identified(Identifier::Any(true)),
        Caller::Account(id) => authenticated(exact(&id.to_string())),
        Caller::At { id, addresses } => all([authenticated(exact(&id.to_string())), from(addresses)]),
        Caller::Through(gateways) => all([from(gateways)].into_iter().chain(elsewhere())),
        Caller::Outside { blocks, except } => {
            let except = (!except.is_empty()).then(|| not(from(except)));
            all([from(blocks)].into_iter().chain(except).chain(elsewhere()))
        }
        Caller::From(blocks) => from(blocks),
        Caller::Beyond { blocks, except } if except.is_empty() => from(blocks),
        Caller::Beyond { blocks, except } => all([from(blocks), not(from(except))]),
        Caller::Elsewhere { id, except } => all([authenticated(exact(&id.to_string())), not(from(except))]),
    }
}

/// The other end of the connection itself, whatever it may say of addresses behind it.
fn from(blocks: &[IpNet]) -> Principal {
    let one = |net: &IpNet| {
        identified(Identifier::DirectRemoteIp(CidrRange {
            address_prefix: net.network().to_string(),
            prefix_len: Some(UInt32Value { value: net.prefix_len().into() }),
        }))
    };
    match blocks {
        [net] => one(net),
        several => identified(Identifier::OrIds(principal::Set { ids: several.iter().map(one).collect() })),
    }
}

fn all(ids: impl IntoIterator<Item = Principal>) -> Principal {
    identified(Identifier::AndIds(principal::Set { ids: ids.into_iter().collect() }))
}

fn not(id: Principal) -> Principal {
    identified(Identifier::NotId(Box::new(id)))
}

fn authenticated(name: StringMatcher) -> Principal {
    identified(Identifier::Authenticated(Authenticated { principal_name: Some(name) }))
}

fn prefix(text: &str) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(MatchPattern::Prefix(text.to_owned())) }
}

fn identified(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}
