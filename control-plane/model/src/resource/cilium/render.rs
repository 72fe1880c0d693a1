//! Back to JSON.

use serde_json::{Map, Value, json};

use super::{
    CiliumEntity, CiliumEntry, CiliumIcmp, CiliumPeers, CiliumPolicy, CiliumPort, CiliumRule, CiliumService,
    selector::joined, wire::MAX_PORTS,
};
use crate::policy::NamePattern;

/// Adds `spec` and `specs`.
pub(in super::super) fn render(policy: &CiliumPolicy, out: &mut Map<String, Value>) {
    if let Some(spec) = &policy.spec {
        out.insert("spec".to_owned(), rule(spec));
    }
    if !policy.specs.is_empty() {
        out.insert("specs".to_owned(), policy.specs.iter().map(rule).collect());
    }
}

fn rule(rule: &CiliumRule) -> Value {
    let mut out = Map::new();
    match &rule.nodes {
        Some(nodes) => out.insert("nodeSelector".to_owned(), nodes.to_json()),
        None => out.insert("endpointSelector".to_owned(), joined(&rule.subject).to_json()),
    };
    for (list, prefix, entries) in [
        ("ingress", "from", &rule.ingress.allow),
        ("ingressDeny", "from", &rule.ingress.deny),
        ("egress", "to", &rule.egress.allow),
        ("egressDeny", "to", &rule.egress.deny),
    ] {
        if !entries.is_empty() {
            out.insert(list.to_owned(), entries.iter().map(|e| entry(e, prefix)).collect());
        }
    }
    let said = [("ingress", rule.ingress.default_deny), ("egress", rule.egress.default_deny)];
    let said: Map<String, Value> =
        said.into_iter().filter_map(|(name, said)| Some((name.to_owned(), json!(said?)))).collect();
    if !said.is_empty() {
        out.insert("enableDefaultDeny".to_owned(), Value::Object(said));
    }
    Value::Object(out)
}

fn entry(entry: &CiliumEntry, prefix: &str) -> Value {
    let mut out = Map::new();
    let peers = match &entry.peers {
        CiliumPeers::Unsaid => None,
        CiliumPeers::Endpoints(list) => {
            Some(("Endpoints", list.iter().map(|s| joined(s).to_json()).collect()))
        }
        CiliumPeers::Cidrs(list) => Some(("CIDR", json!(list))),
        CiliumPeers::CidrSets(list) => {
            let one = |set: &super::CiliumCidrSet| match set.except.is_empty() {
                true => json!({"cidr": set.cidr}),
                false => json!({"cidr": set.cidr, "except": set.except}),
            };
            Some(("CIDRSet", list.iter().map(one).collect()))
        }
        CiliumPeers::Entities(list) => {
            Some(("Entities", list.iter().map(|e| CiliumEntity::as_str(*e)).collect()))
        }
        CiliumPeers::Services(list) => Some(("Services", list.iter().map(service).collect())),
        CiliumPeers::Names(list) => Some(("FQDNs", list.iter().map(name).collect())),
    };
    if let Some((name, list)) = peers {
        out.insert(format!("{prefix}{name}"), list);
    }
    if !entry.icmps.is_empty() {
        let field =
            |icmp: &CiliumIcmp| json!({"family": if icmp.v6 { "IPv6" } else { "IPv4" }, "type": icmp.kind});
        let fields: Value = entry.icmps.iter().map(field).collect();
        out.insert("icmps".to_owned(), json!([{ "fields": fields }]));
    }
    if !entry.ports.is_empty() {
        let mut elements = to_ports(&entry.ports);
        if !entry.dns.is_empty() {
            let names: Value = entry.dns.iter().map(name).collect();
            elements[0]["rules"] = json!({ "dns": names });
        }
        if !entry.http.is_empty() {
            let rules: Value = entry.http.iter().map(super::http::render).collect();
            elements[0]["rules"] = json!({ "http": rules });
        }
        if let Some(proxy) = &entry.proxy {
            for element in elements.as_array_mut().into_iter().flatten() {
                element["listener"] = json!({ "name": proxy });
            }
        }
        out.insert("toPorts".to_owned(), elements);
    }
    Value::Object(out)
}

fn name(pattern: &NamePattern) -> Value {
    let field = if pattern.is_exact() { "matchName" } else { "matchPattern" };
    json!({ field: pattern.as_str() })
}

fn service(service: &CiliumService) -> Value {
    let (field, mut out, namespace) = match service {
        CiliumService::Named { namespace, name } => ("k8sService", json!({ "serviceName": name }), namespace),
        CiliumService::Selected { namespace, labels } => {
            ("k8sServiceSelector", json!({ "selector": labels.to_json() }), namespace)
        }
    };
    if let Some(namespace) = namespace {
        out["namespace"] = json!(namespace);
    }
    json!({ field: out })
}

/// In so many elements as the limit of one makes of them.
fn to_ports(ports: &[CiliumPort]) -> Value {
    ports.chunks(MAX_PORTS).map(|some| json!({"ports": some.iter().map(port).collect::<Value>()})).collect()
}

fn port(port: &CiliumPort) -> Value {
    let number = match &port.port {
        None => "0".to_owned(),
        Some(super::PortRef::Number(number)) => number.to_string(),
        Some(super::PortRef::Name(name)) => name.clone(),
    };
    let mut out = json!({"port": number, "protocol": port.protocol.map_or("ANY", super::Protocol::as_str)});
    if let Some(end) = port.end_port {
        out["endPort"] = json!(end);
    }
    out
}
