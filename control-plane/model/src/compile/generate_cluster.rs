//! ClusterNetworkPolicies, drawn for tests.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::generate_network::{labels, namespace_selector};

fn pods() -> impl Strategy<Value = Value> {
    let labels = prop_oneof![2 => Just(json!({})), 3 => labels().prop_map(|l| json!({"matchLabels": l}))];
    prop_oneof![
        2 => namespace_selector().prop_map(|n| json!({"namespaces": n})),
        3 => (namespace_selector(), labels)
            .prop_map(|(n, p)| json!({"pods": {"namespaceSelector": n, "podSelector": p}})),
    ]
}

fn networks() -> impl Strategy<Value = Value> {
    let blocks = vec!["0.0.0.0/0", "10.0.0.0/8", "203.0.113.0/24", "203.0.113.8/29", "192.0.2.2/32", "::/0"];
    prop::collection::vec(prop::sample::select(blocks), 1..3).prop_map(|list| json!({ "networks": list }))
}

fn rules(ingress: bool) -> impl Strategy<Value = Vec<Value>> {
    let side = if ingress { "from" } else { "to" };
    let peer = if ingress { pods().boxed() } else { prop_oneof![2 => pods(), 1 => networks()].boxed() };
    let protocol = prop_oneof![
        Just(json!({"tcp": {"destinationPort": {"number": 80}}})),
        Just(json!({"tcp": {"destinationPort": {"range": {"start": 79, "end": 8080}}}})),
        Just(json!({"tcp": {}})),
        Just(json!({"udp": {"destinationPort": {"number": 80}}})),
        Just(json!({"destinationNamedPort": "http"})),
    ];
    let action = prop::sample::select(vec!["Accept", "Deny", "Pass"]);
    let rule = (action, prop::collection::vec(peer, 1..3), prop::collection::vec(protocol, 0..3));
    let rule = rule.prop_map(move |(action, peers, protocols)| {
        let mut out = json!({"action": action, side: peers});
        if !protocols.is_empty() {
            out["protocols"] = json!(protocols);
        }
        out
    });
    prop::collection::vec(rule, 0..4)
}

/// By this name. One whose rules contradict each other (networks have no named ports) is refused.
pub(super) fn cluster_policy(name: String) -> impl Strategy<Value = Value> {
    let tier = prop::sample::select(vec!["Admin", "Baseline"]);
    // Few, so that some are equal.
    (tier, 0..3, pods(), rules(true), rules(false)).prop_map(move |(tier, priority, subject, ingress, egress)| {
        json!({
            "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name},
            "spec": {"tier": tier, "priority": priority, "subject": subject, "ingress": ingress, "egress": egress},
        })
    })
}
