//! What pods of this node may ask DNS for, as its proxy is told.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::{Direction, packet::protocol};
use xds_proto::isthmus::local::v1 as wire;

use super::{Dictionary, Inputs, ground::Ground};
use crate::subscribe::{Class, L7, Peer, Rule};

/// The rules of all pods whose policy is here. Pods with the same policy share a list.
///
/// Policy in the kernel leads queries to the proxy where a rule asks for it and no other allows them anyway; what is said of
/// denials and of who has a server's address has been decided there.
pub fn dns_rules(
    inputs: Inputs<'_>,
    ground: &Ground,
    own: &BTreeSet<u32>,
    dictionary: &Dictionary,
) -> wire::DnsRules {
    let mut rules = wire::DnsRules {
        gated: ground.names().map(ToString::to_string).collect(),
        ..wire::DnsRules::default()
    };
    let mut places: BTreeMap<u32, u32> = BTreeMap::new();
    for (name, pod) in inputs.pods {
        let Some(local) = inputs.resources.locals.get(name) else { continue };
        let Some(class) = inputs.resources.class(local.class) else { continue };
        let list = *places.entry(local.class).or_insert_with(|| {
            rules.lists.push(list(class, ground, own, dictionary));
            u32::try_from(rules.lists.len() - 1).unwrap_or(u32::MAX)
        });
        let addresses = pod.addresses.iter().map(|address| address.to_string()).collect();
        rules.pods.push(wire::DnsPod { addresses, list });
    }
    rules
}

/// Whether a class has its pods ask by the proxy.
pub fn asks_proxy(class: &Class) -> bool {
    class.rules.iter().any(|rule| names(rule).is_some())
}

/// The rules by which a class has its pods ask for names. What audited policies say grants nothing.
pub fn names(rule: &Rule) -> Option<&[mesh_model::policy::NamePattern]> {
    let holds = rule.allow && !rule.audit && rule.direction == Direction::Egress;
    match &rule.l7 {
        Some(L7::Dns(names)) if holds => Some(names),
        _ => None,
    }
}

fn list(class: &Class, ground: &Ground, own: &BTreeSet<u32>, dictionary: &Dictionary) -> wire::DnsRuleList {
    let rule = |rule: &Rule| {
        let patterns = names(rule)?;
        let number = match rule.protocol {
            protocol::ANY => 0,
            protocol::TCP | protocol::UDP => rule.protocol.into(),
            // Nothing else is led to it.
            _ => return None,
        };
        let any_peer = matches!(rule.peer, Peer::Any);
        let (port, end_port) = rule.ports.unwrap_or((1, u16::MAX));
        Some(wire::DnsRule {
            any_peer,
            identities: if any_peer { Vec::new() } else { ground.peers(&rule.peer, own, dictionary) },
            protocol: number,
            port: port.into(),
            end_port: end_port.into(),
            any_name: false,
            patterns: patterns.iter().map(ToString::to_string).collect(),
        })
    };
    wire::DnsRuleList { rules: class.rules.iter().filter_map(rule).collect() }
}
