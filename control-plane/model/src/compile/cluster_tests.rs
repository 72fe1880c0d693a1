//! What tiers compile to.

use serde_json::{Value, json};

use super::{
    Action, Direction, FlowProtocol, OWN_NODE, RulePeer,
    policy_tests::{flow, shop},
    world::{TestCluster, named},
};
use crate::{policy::verdict, resource::Protocol};

fn tier(cluster: &mut TestCluster, name: &str, tier: &str, priority: u16, ingress: Value) {
    cluster.apply(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, "ingress": ingress,
            "subject": {"pods": {"podSelector": {"matchLabels": {"app": "pay"}}}}},
    }));
}

fn from(app: &str) -> Value {
    json!([{"pods": {"podSelector": {"matchLabels": {"app": app}}}}])
}

fn everybody() -> Value {
    json!([{"namespaces": {}}])
}

fn network_policy(cluster: &mut TestCluster, ingress: Value) {
    cluster.apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"podSelector": {"matchLabels": {"app": "pay"}}, "ingress": ingress},
    }));
}

/// What both evaluators say of a flow to the port, and the rule that they name.
fn at(cluster: &TestCluster, from: &str, port: u16) -> (Action, String) {
    let flow = flow(from, "shop/pay", Protocol::Tcp, port);
    let (compiled, oracle) = (cluster.compile().verdict(&flow), verdict(cluster.world(), &flow));
    assert_eq!(compiled.ingress, oracle.ingress, "{flow:?}");
    (compiled.ingress.action, compiled.ingress.provenance.first().cloned().unwrap_or_default())
}

fn said(action: Action, provenance: &str) -> (Action, String) {
    (action, provenance.to_owned())
}

#[test]
fn the_tier_of_administrators_goes_before_what_a_namespace_says() {
    let mut cluster = shop();
    network_policy(&mut cluster, json!([{"from": [{"podSelector": {"matchLabels": {"app": "batch"}}}]}]));
    tier(
        &mut cluster,
        "a",
        "Admin",
        5,
        json!([
            {"action": "Accept", "from": from("web"), "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]},
            {"action": "Deny", "from": from("batch")},
        ]),
    );
    assert_eq!(at(&cluster, "shop/web", 80), said(Action::Allow, "clusternetworkpolicy/a#ingress[0]"));
    assert_eq!(at(&cluster, "shop/batch", 80), said(Action::Deny, "clusternetworkpolicy/a#ingress[1]"));
    let denied = said(Action::Deny, "networkpolicy/shop/p#default-deny-ingress");
    assert_eq!(at(&cluster, "shop/web", 81), denied);
    assert_eq!(at(&cluster, "203.0.113.9", 80), denied);
}

#[test]
fn a_lower_priority_goes_first_and_pass_leaves_it_to_the_next_tier() {
    let mut cluster = shop();
    tier(&mut cluster, "deny", "Admin", 5, json!([{"action": "Deny", "from": everybody()}]));
    tier(
        &mut cluster,
        "let",
        "Admin",
        1,
        json!([
            {"action": "Pass", "from": from("web")}, {"action": "Accept", "from": from("batch")},
        ]),
    );
    assert_eq!(at(&cluster, "shop/batch", 80), said(Action::Allow, "clusternetworkpolicy/let#ingress[1]"));
    assert_eq!(at(&cluster, "shop/web", 80), said(Action::Allow, ""), "nobody else says anything");
    tier(&mut cluster, "base", "Baseline", 1, json!([{"action": "Deny", "from": everybody()}]));
    assert_eq!(at(&cluster, "shop/web", 80), said(Action::Deny, "clusternetworkpolicy/base#ingress[0]"));
    network_policy(&mut cluster, json!([{}]));
    assert_eq!(at(&cluster, "shop/web", 80), said(Action::Allow, "networkpolicy/shop/p#ingress[0]"));
    assert_eq!(at(&cluster, "shop/batch", 80), said(Action::Allow, "clusternetworkpolicy/let#ingress[1]"));
}

#[test]
fn what_no_tier_names_is_as_it_was() {
    let mut cluster = shop();
    tier(&mut cluster, "a", "Admin", 5, json!([{"action": "Deny", "from": from("web")}]));
    let model = cluster.compile();
    let class = &model.policy_classes[&model.workloads[&named("shop/pay")].policy_class];
    assert_eq!((class.ingress_default_deny.as_ref(), class.rules.len()), (None, 1), "{class:?}");
    let ports = json!([{"tcp": {"destinationPort": {"number": 80}}}]);
    let mut of_one_port = shop();
    tier(
        &mut of_one_port,
        "a",
        "Admin",
        5,
        json!([{"action": "Deny", "from": from("web"), "protocols": ports}]),
    );
    let other = of_one_port.compile();
    let class = &other.policy_classes[&other.workloads[&named("shop/pay")].policy_class];
    assert_eq!((class.ingress_default_deny.as_ref(), class.rules.len()), (None, 1), "{class:?}");
    let flow = |from: &str, protocol| {
        let mut flow = flow(from, "shop/pay", Protocol::Tcp, 80);
        flow.protocol = protocol;
        model.verdict(&flow).action
    };
    assert_eq!(flow("shop/web", FlowProtocol::Icmp), Action::Deny);
    assert_eq!(flow("shop/batch", FlowProtocol::Icmp), Action::Allow);
    assert_eq!(at(&cluster, "192.0.2.1", 80), said(Action::Allow, OWN_NODE));
}

#[test]
fn a_denial_of_anybody_leaves_room_for_whom_administrators_accept() {
    let mut cluster = shop();
    cluster.apply(json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"endpointSelector": {}, "ingressDeny": [{"toPorts": [{"ports": [{"port": "80"}]}]}],
            "enableDefaultDeny": {"ingress": false}},
    }));
    tier(&mut cluster, "a", "Admin", 5, json!([{"action": "Accept", "from": from("web")}]));
    assert_eq!(at(&cluster, "shop/web", 80).0, Action::Allow);
    assert_eq!(
        at(&cluster, "shop/batch", 80),
        said(Action::Deny, "ciliumnetworkpolicy/shop/p#ingressDeny[0]")
    );
    assert_eq!(at(&cluster, "shop/batch", 81), said(Action::Allow, ""));
    let model = cluster.compile();
    let class = &model.policy_classes[&model.workloads[&named("shop/pay")].policy_class];
    let of_anybody = class.rules.iter().filter(|rule| rule.peer == RulePeer::Any);
    assert!(
        of_anybody.clone().all(|rule| rule.action == Action::Allow && rule.direction == Direction::Ingress)
    );
    assert!(of_anybody.clone().any(|rule| rule.protocol == Some(FlowProtocol::Icmp)), "{class:#?}");
}

#[test]
fn networks_that_hold_all_pods_hold_every_workload() {
    let to = |network: &str| {
        let mut cluster = shop();
        cluster.apply(json!({
            "apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "egress"},
            "spec": {"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "egress": [
                {"action": "Deny", "to": [{"networks": [network]}]}]},
        }));
        let model = cluster.compile();
        ["shop/batch", "203.0.113.9", "192.0.2.2"].map(|to| {
            let flow = flow("shop/pay", to, Protocol::Tcp, 80);
            assert_eq!(model.verdict(&flow).action, verdict(cluster.world(), &flow).action);
            model.verdict(&flow).action == Action::Deny
        })
    };
    assert_eq!(to("0.0.0.0/0"), [true, true, true]);
    assert_eq!(to("10.0.0.0/8"), [true, false, false]);
    assert_eq!(to("10.1.2.0/24"), [false, false, false], "a workload is not known by its address");
    assert_eq!(to("203.0.113.0/24"), [false, true, false]);
}

#[test]
fn networks_that_hold_pods_of_one_family_deny_them_and_let_nobody_through() {
    let to = |action: &str, networks: Value| {
        let mut cluster = shop();
        std::sync::Arc::make_mut(&mut cluster.cluster).pod_cidr6 = Some("fd00:1::/112".parse().unwrap());
        cluster.apply(json!({
            "apiVersion": "policy.networking.k8s.io/v1beta1", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "egress"},
            "spec": {"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "egress": [
                {"action": action, "to": [{"networks": networks}]}]},
        }));
        // Without which nobody can be told to be let through.
        cluster.apply(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "none"},
            "spec": {"podSelector": {}, "policyTypes": if action == "Deny" { json!(["Ingress"]) } else { json!(["Egress"]) }},
        }));
        let flow = flow("shop/pay", "shop/batch", Protocol::Tcp, 80);
        let (compiled, oracle) =
            (cluster.compile().verdict(&flow).egress, verdict(cluster.world(), &flow).egress);
        assert_eq!(compiled.action, oracle.action);
        compiled.action
    };
    assert_eq!(to("Deny", json!(["::/0"])), Action::Deny);
    assert_eq!(to("Deny", json!(["10.0.0.0/8"])), Action::Deny);
    assert_eq!(to("Accept", json!(["10.0.0.0/8"])), Action::Deny);
    assert_eq!(to("Accept", json!(["10.0.0.0/8", "fd00::/8"])), Action::Allow);
}
