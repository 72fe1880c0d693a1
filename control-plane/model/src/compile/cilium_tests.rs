//! What Cilium's policies compile to.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Action, OWN_NODE,
    policy_tests::{flow, shop},
    world::{TestCluster, named},
};
use crate::{policy::verdict, resource::Protocol};

fn cnp(spec: Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"}, "spec": spec})
}

fn pay(mut spec: Value) -> Value {
    spec["endpointSelector"] = json!({"matchLabels": {"app": "pay"}});
    cnp(spec)
}

/// What both evaluators say of a flow to TCP port 80, and of the rule that they name.
fn ingress(cluster: &TestCluster, from: &str, to: &str) -> (Action, String) {
    let flow = flow(from, to, Protocol::Tcp, 80);
    let (compiled, oracle) = (cluster.compile().verdict(&flow), verdict(cluster.world(), &flow));
    assert_eq!(compiled.ingress.action, oracle.ingress.action, "{flow:?}");
    let named = compiled.ingress.provenance.first().cloned().unwrap_or_default();
    assert!(named.is_empty() || oracle.ingress.provenance.contains(&named), "{named}: {oracle:?}");
    (compiled.ingress.action, named)
}

fn said(action: Action, provenance: &str) -> (Action, String) {
    (action, provenance.to_owned())
}

#[test]
fn a_denial_beats_what_is_allowed_by_whichever_policy() {
    let mut cluster = shop();
    cluster
        .apply(pay(json!({
            "ingress": [{"fromEndpoints": [{}]}],
            "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"k8s:app": "batch"}}]}],
        })))
        .apply(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "all"},
            "spec": {"podSelector": {}, "ingress": [{}]},
        }));
    let p = "ciliumnetworkpolicy/shop/p#";
    assert_eq!(ingress(&cluster, "shop/web", "shop/pay").0, Action::Allow);
    let denied = said(Action::Deny, &format!("{p}ingressDeny[0]"));
    assert_eq!(ingress(&cluster, "shop/batch", "shop/pay"), denied);
    assert_eq!(ingress(&cluster, "203.0.113.9", "shop/pay").0, Action::Allow, "by the NetworkPolicy");
}

#[test]
fn an_entry_that_says_nothing_denies_by_default_and_allows_nobody() {
    let mut cluster = shop();
    cluster.apply(pay(json!({"ingress": [{}]})));
    let denied = said(Action::Deny, "ciliumnetworkpolicy/shop/p#default-deny-ingress");
    assert_eq!(ingress(&cluster, "shop/web", "shop/pay"), denied);
    cluster.apply(pay(json!({"ingress": [{}], "enableDefaultDeny": {"ingress": false}})));
    assert_eq!(ingress(&cluster, "shop/web", "shop/pay"), said(Action::Allow, ""));
}

#[test]
fn without_default_denial_only_what_is_denied_is() {
    let mut cluster = shop();
    cluster.apply(pay(json!({
        "ingressDeny": [{"fromEntities": ["world"], "toPorts": [{"ports": [{"port": "80"}]}]}],
        "enableDefaultDeny": {"ingress": false},
    })));
    let denied = said(Action::Deny, "ciliumnetworkpolicy/shop/p#ingressDeny[0]");
    assert_eq!(ingress(&cluster, "203.0.113.9", "shop/pay"), denied);
    assert_eq!(ingress(&cluster, "shop/web", "shop/pay"), said(Action::Allow, ""));
    assert_eq!(
        ingress(&cluster, "192.0.2.2", "shop/pay"),
        said(Action::Allow, ""),
        "a node is not the world"
    );
    assert_eq!(ingress(&cluster, "10.1.77.7", "shop/pay"), said(Action::Allow, ""), "nor is a pod's address");
}

#[test]
fn entities_are_who_they_say() {
    let to = |entity: &str| {
        let mut cluster = shop();
        cluster.apply(pay(json!({"ingress": [{"fromEntities": [entity]}]})));
        let from = ["shop/web", "203.0.113.9", "192.0.2.1", "192.0.2.2", "10.1.77.7"];
        from.map(|from| ingress(&cluster, from, "shop/pay").0 == Action::Allow)
    };
    assert_eq!(to("all"), [true, true, true, true, true]);
    assert_eq!(to("world"), [false, true, true, false, false], "its own node is always admitted");
    assert_eq!(to("world-ipv6"), [false, false, true, false, false]);
    assert_eq!(to("cluster"), [true, false, true, true, false]);
    assert_eq!(to("remote-node"), [false, false, true, true, false]);
    assert_eq!(to("host"), [false, false, true, false, false]);
    assert_eq!(to("health"), to("host"), "from where health is checked");
    assert_eq!(to("none"), to("host"));
    assert_eq!(to("mesh"), [true, false, true, false, false]);
    assert_eq!(to("unmanaged"), [false, false, true, false, true]);
    assert_eq!(to("init"), to("none"));
    let mut cluster = shop();
    cluster.apply(pay(json!({"ingress": [{}]})));
    assert_eq!(ingress(&cluster, "192.0.2.1", "shop/pay"), said(Action::Allow, OWN_NODE));
    cluster.apply(pay(json!({"ingressDeny": [{"fromEntities": ["all"]}]})));
    assert_eq!(ingress(&cluster, "192.0.2.1", "shop/pay").0, Action::Deny, "unless nobody is");
    cluster.apply(pay(
        json!({"ingressDeny": [{"fromEntities": ["host"]}], "enableDefaultDeny": {"ingress": false}}),
    ));
    assert_eq!(ingress(&cluster, "192.0.2.1", "shop/pay").0, Action::Deny, "or it is not");
    assert_eq!(ingress(&cluster, "192.0.2.2", "shop/pay").0, Action::Allow);
}

#[test]
fn health_is_the_own_node_and_the_api_server_is_whoever_its_service_lists() {
    let mut cluster = shop();
    let closed_to = |entity: &str| {
        pay(json!({"ingressDeny": [{"fromEntities": [entity]}], "enableDefaultDeny": {"ingress": false}}))
    };
    cluster.apply(closed_to("health"));
    let let_in = |cluster: &TestCluster| {
        ["192.0.2.1", "192.0.2.2", "shop/web", "203.0.113.9", "203.0.113.1"]
            .map(|from| ingress(cluster, from, "shop/pay").0 == Action::Allow)
    };
    assert_eq!(
        let_in(&cluster),
        [false, true, true, true, true],
        "probes come from there, and from no other node"
    );
    cluster.apply(pay(json!({"ingress": [{"fromEntities": ["kube-apiserver"]}]})));
    assert_eq!(let_in(&cluster), [true, false, false, false, false], "nobody, as long as there is none");
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "kubernetes"},
            "spec": {"ports": [{"port": 443}]}}))
        .apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "default", "name": "kubernetes",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "ports": [{"port": 6443}], "endpoints": [{"addresses": ["203.0.113.1"]}]}));
    assert_eq!(let_in(&cluster), [true, false, false, false, true]);
    cluster.apply(closed_to("init"));
    assert_eq!(let_in(&cluster), [true; 5], "who has no identity yet has no traffic either");
}

#[test]
fn the_world_is_one_rule_however_many_nodes_there_are() {
    let mut cluster = shop();
    cluster.apply(pay(json!({"ingress": [{"fromEntities": ["world", "remote-node"]}]})));
    let model = cluster.compile();
    let class = &model.policy_classes[&model.workloads[&named("shop/pay")].policy_class];
    assert_eq!(class.rules.len(), 2, "{class:?}");
}

#[test]
fn gateways_are_whoever_has_an_identity_of_gateways_alone() {
    let mut cluster = shop();
    let gateway = |name: &str, proxy: &str| {
        json!({"apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": "gw"}},
            "spec": {"proxy": proxy, "address": "192.0.2.70"}})
    };
    cluster.apply(gateway("gw", "gateway")).apply(pay(json!({"ingress": [{"fromEntities": ["ingress"]}]})));
    assert_eq!(ingress(&cluster, "shop/gw", "shop/pay").0, Action::Allow);
    assert_eq!(ingress(&cluster, "shop/web", "shop/pay").0, Action::Deny);
    cluster.apply(gateway("alike", "none"));
    assert_eq!(ingress(&cluster, "shop/gw", "shop/pay").0, Action::Deny, "it can not be told from the other");
}

#[test]
fn a_gateway_with_the_address_of_the_own_node_is_both() {
    let mut cluster = shop();
    cluster.bind("shop/pay", "n1", "10.1.0.7");
    // What the node's own address is, is told by the testbed's first node.
    let own = cluster.nodes["n1"].addresses().next().unwrap().to_string();
    cluster.apply(json!({"apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"namespace": "infra", "name": "gw", "labels": {"app": "gw"}},
        "spec": {"proxy": "gateway", "address": own}}));
    let mut at = |spec: Value, own: &str| {
        cluster.apply(pay(spec));
        let by_name = ingress(&cluster, "infra/gw", "shop/pay");
        assert_eq!(by_name, ingress(&cluster, own, "shop/pay"));
        by_name
    };
    let p = "ciliumnetworkpolicy/shop/p#";
    let admitted = said(Action::Allow, OWN_NODE);
    assert_eq!(at(json!({"ingress": [{"fromEntities": ["world"]}]}), &own), admitted);
    assert_eq!(at(json!({"ingress": [{"fromEntities": ["mesh"]}]}), &own), admitted);
    let denied = said(Action::Deny, &format!("{p}ingressDeny[0]"));
    for entity in ["host", "health", "cluster", "mesh"] {
        assert_eq!(at(json!({"ingressDeny": [{"fromEntities": [entity]}]}), &own), denied, "{entity}");
    }
    let by_label = json!({"ingressDeny": [{"fromEndpoints": [{
        "matchLabels": {"k8s:io.kubernetes.pod.namespace": "infra", "app": "gw"}}]}]});
    assert_eq!(at(by_label, &own), denied);
    // To pods of another node it is what it is, and no node.
    cluster
        .bind("shop/pay", "n2", "10.1.1.7")
        .apply(pay(json!({"ingress": [{"fromEntities": ["remote-node"]}]})));
    assert_eq!(ingress(&cluster, "infra/gw", "shop/pay").0, Action::Deny);
}

#[test]
fn an_audited_policy_is_told_of_and_decides_nothing() {
    let mut cluster = shop();
    let mut audited = pay(json!({"ingress": [{"fromEndpoints": [{"matchLabels": {"app": "web"}}]}]}));
    audited["metadata"]["annotations"] = json!({"isthmus.io/audit": "true"});
    cluster.apply(audited);
    let of = |cluster: &TestCluster, from: &str| {
        let flow = flow(from, "shop/pay", Protocol::Tcp, 80);
        let (compiled, oracle) =
            (cluster.compile().verdict(&flow).ingress, verdict(cluster.world(), &flow).ingress);
        assert_eq!(compiled, oracle);
        (compiled.action, compiled.audit)
    };
    let denied = "ciliumnetworkpolicy/shop/p#default-deny-ingress".to_owned();
    assert_eq!(of(&cluster, "shop/web"), (Action::Allow, vec![]));
    assert_eq!(of(&cluster, "shop/batch"), (Action::Allow, vec![denied]));
    // Whom it would allow it allows nothing that others deny.
    cluster.apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "none"}, "spec": {"podSelector": {"matchLabels": {"app": "pay"}}},
    }));
    assert_eq!(of(&cluster, "shop/web"), (Action::Deny, vec![]));
}

#[test]
fn a_workload_that_is_audited_is_denied_nothing() {
    let mut cluster = shop();
    cluster.apply(pay(json!({"ingress": [{}]}))).apply(json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"namespace": "shop", "name": "pay", "labels": {"app": "pay"}, "annotations": {"isthmus.io/audit": "true"}},
        "spec": {"serviceAccount": "pay"},
    }));
    let flow = flow("shop/web", "shop/pay", Protocol::Tcp, 80);
    let compiled = cluster.compile().verdict(&flow).ingress;
    assert_eq!(compiled, verdict(cluster.world(), &flow).ingress);
    assert_eq!((compiled.action, compiled.audit.len()), (Action::Allow, 1));
}

#[test]
fn a_policy_of_nodes_decides_at_the_node_and_not_at_its_workloads() {
    let mut cluster = shop();
    cluster.apply(json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "ssh"}, "spec": {
            "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "n2"}},
            "ingress": [{"fromEntities": ["remote-node"], "toPorts": [{"ports": [{"port": "22"}]}]},
                {"fromEndpoints": [{"matchLabels": {"app": "web"}}]}]}}));
    let model = cluster.compile();
    assert_eq!(model.host_classes.keys().collect::<Vec<_>>(), ["n2"]);
    let at = |from: &str, to: &str, port: u16| {
        let flow = flow(from, to, Protocol::Tcp, port);
        let (compiled, oracle) = (model.verdict(&flow).ingress, verdict(cluster.world(), &flow).ingress);
        assert_eq!(compiled.action, oracle.action, "{flow:?}");
        compiled.action == Action::Allow
    };
    assert!(at("192.0.2.1", "192.0.2.2", 22) && !at("192.0.2.1", "192.0.2.2", 80));
    assert!(at("shop/web", "192.0.2.2", 80) && !at("shop/pay", "192.0.2.2", 80));
    assert!(!at("203.0.113.9", "192.0.2.2", 22) && at("203.0.113.9", "192.0.2.1", 22));
    assert!(at("192.0.2.2", "192.0.2.2", 80), "with itself");
    assert!(at("203.0.113.9", "shop/batch", 80));
}

#[test]
fn a_node_that_is_audited_is_denied_nothing() {
    let mut cluster = shop();
    cluster.apply(json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "closed"}, "spec": {"nodeSelector": {}, "ingress": [{}]}}));
    let node = Arc::make_mut(cluster.nodes.get_mut("n2").unwrap());
    node.facts.labels.insert("isthmus.io/audit".to_owned(), "true".to_owned());
    let model = cluster.compile();
    for (to, action, audited) in [("192.0.2.1", Action::Deny, 0), ("192.0.2.2", Action::Allow, 1)] {
        let flow = flow("203.0.113.9", to, Protocol::Tcp, 22);
        let compiled = model.verdict(&flow).ingress;
        assert_eq!(compiled, verdict(cluster.world(), &flow).ingress, "{to}");
        assert_eq!((compiled.action, compiled.audit.len()), (action, audited), "{to}");
    }
}

#[test]
fn egress_to_a_service_and_to_names_goes_nowhere_else() {
    let mut cluster = shop();
    let service = |name: &str, spec: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name}, "spec": spec});
    cluster
        .apply(service("batch", json!({"selector": {"app": "batch"}, "ports": [{"port": 80}]})))
        .apply(pay(json!({"egress": [
            {"toServices": [{"k8sService": {"serviceName": "batch"}}]},
            {"toFQDNs": [{"matchPattern": "*.example"}]},
            {"toEntities": ["world"], "toPorts": [{"ports": [{"port": "53"}], "rules": {"dns": [{"matchName": "a.example"}]}}]},
        ]})));
    let to = |peer: crate::policy::FlowPeer, port: u16| {
        let flow =
            crate::policy::Flow { destination: peer, ..flow("shop/pay", "shop/web", Protocol::Tcp, port) };
        let (compiled, oracle) =
            (cluster.compile().verdict(&flow).egress, verdict(cluster.world(), &flow).egress);
        assert_eq!((compiled.action, compiled.redirect), (oracle.action, oracle.redirect), "{flow:?}");
        (compiled.action == Action::Allow, compiled.redirect)
    };
    use crate::policy::FlowPeer;
    let asked =
        |name: &str| FlowPeer::Named { address: "203.0.113.9".parse().unwrap(), name: name.to_owned() };
    assert_eq!(to(FlowPeer::Workload(named("shop/batch")), 80), (true, false));
    assert_eq!(to(FlowPeer::Workload(named("shop/web")), 80), (false, false));
    assert_eq!(to(asked("a.example"), 443), (true, false));
    assert_eq!(to(asked("a.b.example"), 443), (false, false));
    assert_eq!(to(asked("b.test"), 53), (true, true), "through the DNS proxy");
    assert_eq!(to(asked("a.example"), 53), (true, false), "whatever it is");
}

#[test]
fn a_new_node_is_no_longer_the_world() {
    let mut cluster = shop();
    cluster.apply(pay(json!({"ingress": [{"fromEntities": ["world"]}]})));
    assert_eq!(ingress(&cluster, "192.0.2.9", "shop/pay").0, Action::Allow);
    let mut node = cluster.nodes["n2"].as_ref().clone();
    (node.name, node.address) = ("n3".to_owned(), [192, 0, 2, 9].into());
    cluster.nodes.insert("n3".to_owned(), node.into());
    assert_eq!(ingress(&cluster, "192.0.2.9", "shop/pay").0, Action::Deny);
}

#[test]
fn selectors_mean_their_own_namespace_unless_they_name_one() {
    let from = |selector: Value| {
        let mut cluster = shop();
        cluster.workload("ops/web", "web", "none", json!([]));
        cluster.apply(pay(json!({"ingress": [{"fromEndpoints": [selector]}]})));
        ["shop/web", "ops/web"].map(|from| ingress(&cluster, from, "shop/pay").0 == Action::Allow)
    };
    assert_eq!(from(json!({"matchLabels": {"app": "web"}})), [true, false]);
    assert_eq!(
        from(json!({"matchLabels": {"any:app": "web", "io.kubernetes.pod.namespace": "ops"}})),
        [false, true]
    );
    let anywhere =
        json!({"matchExpressions": [{"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"}]});
    assert_eq!(from(anywhere), [true, true]);
}

#[test]
fn a_policy_of_the_whole_cluster_selects_everywhere_and_each_of_its_specs_does() {
    let mut cluster = shop();
    cluster.workload("ops/db", "db", "none", json!([]));
    let deny = |app: &str| {
        json!({"endpointSelector": {"matchLabels": {"app": app}},
            "ingressDeny": [{"fromEndpoints": [{"matchLabels": {"app": "web"}}]}],
            "enableDefaultDeny": {"ingress": false}})
    };
    cluster.apply(json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "guard"}, "spec": deny("pay"), "specs": [deny("db"), deny("batch")]}));
    let name = |place: &str| format!("ciliumclusterwidenetworkpolicy/guard#{place}ingressDeny[0]");
    assert_eq!(ingress(&cluster, "shop/web", "shop/pay"), said(Action::Deny, &name("")));
    assert_eq!(ingress(&cluster, "shop/web", "ops/db"), said(Action::Deny, &name("specs[0].")));
    assert_eq!(ingress(&cluster, "shop/web", "shop/batch"), said(Action::Deny, &name("specs[1].")));
    assert_eq!(ingress(&cluster, "shop/batch", "ops/db"), said(Action::Allow, ""));
    let classes = ["shop/pay", "ops/db"].map(|name| cluster.compile().workloads[&named(name)].policy_class);
    assert_ne!(classes[0], classes[1], "a class says which rule it was");
}
