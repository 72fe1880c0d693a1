//! NetworkPolicies, drawn for tests.

use proptest::prelude::*;
use serde_json::{Value, json};

pub(super) fn labels() -> impl Strategy<Value = Value> {
    (prop::option::of(prop::sample::select(vec!["x", "y"])), prop::option::of(Just("1"))).prop_map(
        |(app, tier)| {
            let mut out = json!({});
            if let Some(app) = app {
                out["app"] = json!(app);
            }
            if let Some(tier) = tier {
                out["tier"] = json!(tier);
            }
            out
        },
    )
}

fn selector() -> impl Strategy<Value = Value> {
    let expression = prop_oneof![
        Just(json!({"key": "app", "operator": "In", "values": ["x"]})),
        Just(json!({"key": "app", "operator": "NotIn", "values": ["y"]})),
        Just(json!({"key": "tier", "operator": "Exists"})),
        Just(json!({"key": "tier", "operator": "DoesNotExist"})),
    ];
    prop_oneof![
        Just(json!({})),
        labels().prop_map(|l| json!({"matchLabels": l})),
        prop::collection::vec(expression, 1..3).prop_map(|e| json!({"matchExpressions": e})),
    ]
}

pub(super) fn namespace_selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        prop::sample::select(vec!["a", "b"])
            .prop_map(|n| json!({"matchLabels": {"kubernetes.io/metadata.name": n}})),
        Just(json!({"matchExpressions":
            [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["b"]}]})),
        Just(json!({"matchLabels": {"team": "red"}})),
        Just(json!({"matchLabels": {"kubernetes.io/metadata.name": "a"},
            "matchExpressions": [{"key": "team", "operator": "Exists"}]})),
        Just(json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["red"]}]})),
        Just(json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]})),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => selector().prop_map(|s| json!({"podSelector": s})),
        1 => namespace_selector().prop_map(|s| json!({"namespaceSelector": s})),
        2 => (namespace_selector(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        1 => Just(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
        1 => Just(json!({"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/29"]}})),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let protocol = prop::sample::select(vec!["TCP", "UDP"]);
    let what = prop_oneof![
        Just(json!({})),
        Just(json!({"port": 80})),
        Just(json!({"port": "http"})),
        Just(json!({"port": 79, "endPort": 81})),
    ];
    (protocol, what).prop_map(|(protocol, mut port)| {
        port["protocol"] = json!(protocol);
        port
    })
}

fn rules(peers_field: &'static str) -> impl Strategy<Value = Value> {
    let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3))
        .prop_map(move |(peers, ports)| json!({peers_field: peers, "ports": ports}));
    prop::collection::vec(rule, 0..3).prop_map(Value::Array)
}

pub(super) fn policy_spec() -> impl Strategy<Value = Value> {
    let types = prop::sample::select(vec![
        json!([]),
        json!(["Ingress"]),
        json!(["Egress"]),
        json!(["Ingress", "Egress"]),
    ]);
    (selector(), types, rules("from"), rules("to")).prop_map(|(subject, types, ingress, egress)| {
        json!({"podSelector": subject, "policyTypes": types, "ingress": ingress, "egress": egress})
    })
}
