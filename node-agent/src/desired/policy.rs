//! The control plane's classes in the kernel's terms.

use std::collections::BTreeSet;

use ebpf_shared::{Direction, redirect::DNS_NAME};

use super::{Dictionary, ground::Ground};
use crate::{
    kernel::flatten::Said,
    kernel::rules::{ClassEntry, DefaultDeny, Defaults, Group, compile_groups},
    subscribe::{Class, L7},
};

/// Named by flows that pass because they come from, or go to, the pod's own node.
const HOST_PROVENANCE: &str = "builtin/own-node";

/// A class, resolved. `own` are the identities of this node's addresses.
pub fn class_entry(
    class: &Class,
    ground: &Ground,
    own: &BTreeSet<u32>,
    dictionary: &mut Dictionary,
) -> ClassEntry {
    let mut rules = Vec::with_capacity(class.rules.len() + 2);
    // Kubernetes: "Traffic to and from the node where a Pod is running is always allowed", unless it is denied.
    for direction in [Direction::Ingress, Direction::Egress] {
        let policy_id = dictionary.policy(HOST_PROVENANCE);
        let said = Said { allow: true, audit: false, redirect: None, protocol: 0, ports: None, policy_id };
        rules.push(Group { direction, identities: own.iter().copied().collect(), said });
    }
    // The rules of a policy come together.
    let mut last: Option<(&str, u32)> = None;
    for rule in &class.rules {
        let policy_id = match last {
            Some((name, number)) if name == rule.provenance => number,
            _ => dictionary.policy(&rule.provenance),
        };
        last = Some((&rule.provenance, policy_id));
        let redirect = rule.l7.as_ref().map(|l7| match l7 {
            L7::Dns(_) => dictionary.proxy_slot(DNS_NAME),
            L7::Proxy(name) => dictionary.proxy_slot(name),
        });
        rules.push(Group {
            direction: rule.direction,
            identities: ground.peers(&rule.peer, own, dictionary),
            said: Said {
                allow: rule.allow,
                audit: rule.audit,
                redirect,
                protocol: rule.protocol,
                ports: rule.ports,
                policy_id,
            },
        });
    }
    let mut number = |name: &Option<String>| name.as_deref().map(|name| dictionary.policy(name));
    let defaults = Defaults {
        ingress: DefaultDeny { enforced: number(&class.deny_ingress), audited: number(&class.audit_ingress) },
        egress: DefaultDeny { enforced: number(&class.deny_egress), audited: number(&class.audit_egress) },
    };
    compile_groups(&defaults, &rules, &mut dictionary.rulesets)
}
