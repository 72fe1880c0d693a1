//! Cilium's policies, drawn for tests. Some contradict themselves, and are refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::generate_network::labels;

fn selector() -> impl Strategy<Value = Value> {
    let expression = prop_oneof![
        Just(json!({"key": "k8s:app", "operator": "In", "values": ["x"]})),
        Just(json!({"key": "app", "operator": "NotIn", "values": ["y"]})),
        Just(json!({"key": "any:tier", "operator": "DoesNotExist"})),
    ];
    prop_oneof![
        2 => Just(json!({})),
        3 => labels().prop_map(|l| json!({"matchLabels": l})),
        2 => expression.prop_map(|e| json!({"matchExpressions": [e]})),
    ]
}

/// That also says something of namespaces.
fn far_selector() -> impl Strategy<Value = Value> {
    let key = "k8s:io.kubernetes.pod.namespace";
    let namespaces = prop_oneof![
        Just(json!({"key": key, "operator": "Exists"})),
        Just(json!({"key": key, "operator": "In", "values": ["a", "b"]})),
        Just(json!({"key": key, "operator": "NotIn", "values": ["b"]})),
        Just(json!({"key": "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
            "operator": "In", "values": ["b"]})),
        Just(json!({"key": "io.cilium.k8s.namespace.labels.team", "operator": "NotIn", "values": ["red"]})),
        Just(json!({"key": "k8s:io.cilium.k8s.namespace.labels.team", "operator": "Exists"})),
    ];
    (selector(), prop::option::of(namespaces), any::<bool>()).prop_map(move |(mut out, expression, named)| {
        if let Some(expression) = expression {
            let mut all = out["matchExpressions"].as_array().cloned().unwrap_or_default();
            all.push(expression);
            out["matchExpressions"] = json!(all);
        } else if named {
            out["matchLabels"]["io.kubernetes.pod.namespace"] = json!("a");
        }
        out
    })
}

fn peers(side: &'static str, deny: bool) -> impl Strategy<Value = Value> {
    let entities: &[&str] = match deny {
        true => &[
            "all",
            "world",
            "world-ipv4",
            "remote-node",
            "none",
            "host",
            "cluster",
            "health",
            "mesh",
            "ingress",
        ],
        false => &[
            "all",
            "world",
            "world-ipv4",
            "world-ipv6",
            "cluster",
            "host",
            "remote-node",
            "health",
            "none",
            "unmanaged",
            "mesh",
            "ingress",
            "kube-apiserver",
            "init",
        ],
    };
    let block = prop_oneof![
        Just(json!({"cidr": "0.0.0.0/0"})),
        Just(json!({"cidr": "203.0.113.0/24", "except": ["203.0.113.8/29"]})),
        Just(json!({"cidr": "192.0.2.0/24", "except": ["192.0.2.2/32"]})),
    ];
    let service = prop_oneof![
        Just(json!({"k8sService": {"serviceName": "s", "namespace": "a"}})),
        Just(json!({"k8sService": {"serviceName": "x", "namespace": "a"}})),
        Just(json!({"k8sServiceSelector": {"selector": {}, "namespace": "b"}})),
        Just(json!({"k8sService": {"serviceName": "bare", "namespace": "b"}})),
        Just(json!({"k8sServiceSelector": {"selector": {"matchLabels": {"tier": "1"}}}})),
    ];
    let name = prop_oneof![
        Just(json!({"matchName": "a.example"})),
        Just(json!({"matchPattern": "*.example"})),
        Just(json!({"matchPattern": "**.b.example"})),
    ];
    let list = |of: BoxedStrategy<Value>| prop::collection::vec(of, 1..3);
    // Of egress alone; elsewhere they are refused.
    let (services, names) = match (side, deny) {
        ("to", false) => (1, 1),
        ("to", true) => (1, 0),
        _ => (0, 0),
    };
    let entity = prop::sample::select(entities.to_vec()).prop_map(|e| json!(e));
    let cidr = prop::sample::select(vec!["203.0.113.9", "10.0.0.0/8", "::/0"]).prop_map(|c| json!(c));
    prop_oneof![
        2 => Just(json!({})),
        4 => list(far_selector().boxed()).prop_map(move |l| json!({format!("{side}Endpoints"): l})),
        1 => list(cidr.boxed()).prop_map(move |l| json!({format!("{side}CIDR"): l})),
        1 => list(block.boxed()).prop_map(move |l| json!({format!("{side}CIDRSet"): l})),
        3 => list(entity.boxed()).prop_map(move |l| json!({format!("{side}Entities"): l})),
        services => list(service.boxed()).prop_map(|l| json!({"toServices": l})),
        names => list(name.boxed()).prop_map(|l| json!({"toFQDNs": l})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop::sample::select(vec![json!(null), json!("ANY"), json!("TCP"), json!("UDP")]);
    let port = prop_oneof![
        Just(json!({"port": "0"})),
        Just(json!({"port": "80"})),
        Just(json!({"port": "http"})),
        Just(json!({"port": "79", "endPort": 81})),
    ];
    (protocol, port).prop_map(|(protocol, mut port)| {
        port["protocol"] = protocol;
        port
    })
}

fn entries(side: &'static str, deny: bool) -> impl Strategy<Value = Vec<Value>> {
    let ports = prop::collection::vec(port(), 0..3);
    let icmps = prop_oneof![
        5 => Just(json!([])),
        1 => Just(json!([{"fields": [{"type": "EchoRequest"}, {"family": "IPv6", "type": 128}]}])),
        1 => Just(json!([{"fields": [{"type": 0}, {"type": 1}]}])),
    ];
    let dns = prop::bool::weighted(if side == "to" && !deny { 0.2 } else { 0.0 });
    let entry = (peers(side, deny), ports, icmps, dns).prop_map(|(mut entry, ports, icmps, dns)| {
        if icmps != json!([]) {
            entry["icmps"] = icmps;
        } else if dns && entry["toServices"].is_null() {
            let (rules, protocol) = match ports.len() {
                1 if entry["toFQDNs"].is_null() => (json!({"http": [{"method": "GET"}]}), "TCP"),
                _ => (json!({"dns": [{"matchPattern": "*"}]}), "ANY"),
            };
            entry["toPorts"] = json!([{"ports": [{"port": "80", "protocol": protocol}], "rules": rules}]);
        } else if !ports.is_empty() && entry["toServices"].is_null() {
            entry["toPorts"] = json!([{ "ports": ports }]);
        }
        entry
    });
    prop::collection::vec(entry, if deny { 0..2 } else { 0..3 })
}

fn rule(subject: BoxedStrategy<Value>) -> impl Strategy<Value = Value> {
    let said = prop_oneof![
        3 => Just(json!({})),
        1 => Just(json!({"ingress": false})),
        1 => Just(json!({"egress": false})),
        1 => Just(json!({"ingress": true, "egress": false})),
    ];
    let lists = (entries("from", false), entries("from", true), entries("to", false), entries("to", true));
    (subject, lists, said).prop_map(|(subject, (ingress, ingress_deny, egress, egress_deny), said)| {
        json!({
            "endpointSelector": subject, "ingress": ingress, "ingressDeny": ingress_deny,
            "egress": egress, "egressDeny": egress_deny, "enableDefaultDeny": said,
        })
    })
}

/// `spec`, `specs` or both, of a policy of one namespace, or of the whole cluster.
fn body(of_cluster: bool) -> impl Strategy<Value = Value> {
    let subject = if of_cluster { far_selector().boxed() } else { selector().boxed() };
    let specs = prop_oneof![3 => Just(0..1), 1 => Just(1..3)];
    let specs = specs.prop_flat_map({
        let subject = subject.clone();
        move |count| prop::collection::vec(rule(subject.clone()), count)
    });
    (rule(subject), specs, prop::bool::weighted(0.9)).prop_map(|(spec, specs, has_spec)| {
        let mut out = json!({});
        if has_spec {
            out["spec"] = spec;
        }
        if !specs.is_empty() {
            out["specs"] = json!(specs);
        }
        out
    })
}

/// A policy of a namespace or of the whole cluster, by this name.
pub(super) fn cilium_policy(namespace: &'static str, name: String) -> impl Strategy<Value = Value> {
    let some = (any::<bool>().prop_flat_map(body_of), prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    some.prop_map(move |((of_cluster, mut out), audited, of_nodes)| {
        if of_cluster && of_nodes && out["spec"].is_object() {
            out["spec"].as_object_mut().unwrap().remove("endpointSelector");
            out["spec"]["nodeSelector"] = match audited {
                true => json!({}),
                false => json!({"matchLabels": {"kubernetes.io/hostname": "n2"}}),
            };
        }
        out["apiVersion"] = json!("cilium.io/v2");
        let (kind, metadata) = match of_cluster {
            true => ("CiliumClusterwideNetworkPolicy", json!({"name": name})),
            false => ("CiliumNetworkPolicy", json!({"namespace": namespace, "name": name})),
        };
        out["kind"] = json!(kind);
        out["metadata"] = metadata;
        if audited {
            out["metadata"]["annotations"] = json!({"isthmus.io/audit": "true"});
        }
        out
    })
}

fn body_of(of_cluster: bool) -> impl Strategy<Value = (bool, Value)> {
    body(of_cluster).prop_map(move |out| (of_cluster, out))
}
