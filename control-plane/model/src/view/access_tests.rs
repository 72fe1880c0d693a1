//! What a port's access rules say.

use serde_json::{Value, json};

use super::{Access, Caller, access};
use crate::compile::{
    MeshModel,
    world::{TestCluster, named},
};

fn shop() -> TestCluster {
    let mut cluster = TestCluster::west();
    let http = json!([{"name": "http", "port": 8080}]);
    cluster
        .workload("shop/pay", "pay", "sidecar", http)
        .bind("shop/pay", "n1", "10.1.1.2")
        .workload("shop/web", "web", "none", json!([]))
        .bind("shop/web", "n1", "10.1.1.3")
        .workload("shop/web-2", "web", "none", json!([]))
        .bind("shop/web-2", "n2", "10.1.2.3");
    cluster
}

/// A workload of the account `web` that is something else.
fn impostor(cluster: &mut TestCluster, name: &str, proxy: &str) {
    let name = named(name);
    cluster.apply(json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload",
        "metadata": {"namespace": name.namespace, "name": name.name, "labels": {"app": "impostor"}},
        "spec": {"serviceAccount": "web", "proxy": proxy, "address": "192.0.2.50"},
    }));
}

fn policy(cluster: &mut TestCluster, ingress: Value) {
    cluster.apply(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"podSelector": {"matchLabels": {"app": "pay"}}, "policyTypes": ["Ingress"], "ingress": ingress},
    }));
}

fn from(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": app}}})
}

fn of_pay(model: &MeshModel) -> Option<Access> {
    access(model, &model.workloads[&named("shop/pay")], 8080)
}

/// Callers of the only rule of the policy; none if it stands there not at all.
fn callers(cluster: &TestCluster) -> Vec<Caller> {
    let mut rules = of_pay(&cluster.compile()).unwrap().allow;
    assert_eq!(&*rules.remove(0).provenance, "workload/shop/pay#itself");
    rules.into_iter().flat_map(|rule| rule.callers).collect()
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_workload_that_no_policy_selects_is_not_restricted() {
    let mut cluster = shop();
    assert_eq!(of_pay(&cluster.compile()), None);
    policy(&mut cluster, json!([]));
    let denied = of_pay(&cluster.compile()).unwrap();
    assert_eq!(denied.default_deny.as_deref(), Some("networkpolicy/shop/p#default-deny-ingress"));
    assert_eq!(denied.allow.len(), 1, "nobody but itself");
    let model = cluster.compile();
    assert_eq!(access(&model, &model.workloads[&named("shop/web")], 8080), None);
}

#[test]
fn an_account_that_is_admitted_as_a_whole_is_known_by_its_id_wherever_its_workloads_are() {
    let mut cluster = shop();
    policy(&mut cluster, json!([{"from": [from("web")]}]));
    let id = cluster.compile().workloads[&named("shop/web")].spiffe_id.clone();
    assert_eq!(callers(&cluster), [Caller::Account(id.clone())]);
    // One that is not meant, though nobody knows yet where it is: now it takes the address too.
    impostor(&mut cluster, "shop/impostor", "none");
    let at = |addresses| vec![Caller::At { id: id.clone(), addresses: nets(addresses) }];
    assert_eq!(callers(&cluster), at(&["10.1.1.3/32", "10.1.2.3/32"]));
    // An address that it shares tells nothing.
    cluster.bind("shop/impostor", "n1", "10.1.1.3");
    assert_eq!(callers(&cluster), at(&["10.1.2.3/32"]));
    cluster.bindings.remove(&named("shop/web-2"));
    assert_eq!(callers(&cluster), [], "a rule that lets in nobody yet is left out");
}

#[test]
fn a_gateway_is_admitted_for_those_whom_it_brings() {
    let mut cluster = shop();
    impostor(&mut cluster, "shop/gateway", "gateway");
    policy(&mut cluster, json!([{"from": [from("impostor")]}]));
    assert_eq!(callers(&cluster), [Caller::Through(nets(&["192.0.2.50/32"]))]);
    cluster.bind("shop/web", "n1", "192.0.2.50");
    assert_eq!(callers(&cluster), [], "who has its address too could be anybody");
}

#[test]
fn a_block_of_addresses_leaves_out_pods_and_other_workloads() {
    let mut cluster = shop();
    impostor(&mut cluster, "shop/vm", "none");
    policy(&mut cluster, json!([{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["128.0.0.0/1"]}}]}]));
    let outside = |blocks, except| Caller::Outside { blocks: nets(blocks), except: nets(except) };
    assert_eq!(callers(&cluster), [outside(&["0.0.0.0/1"], &["10.1.0.0/16"])]);
    policy(&mut cluster, json!([{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]));
    assert_eq!(callers(&cluster), [outside(&["192.0.2.0/24"], &["192.0.2.50/32"])]);
}

#[test]
fn a_rule_for_other_ports_does_not_stand_there() {
    let mut cluster = shop();
    let any = json!({"protocol": "TCP"});
    policy(
        &mut cluster,
        json!([
            {"from": [from("web")], "ports": [{"port": 80}, {"port": 8080, "protocol": "UDP"}]},
            {"ports": [{"port": "http"}, {"port": 8000, "endPort": 9000}, any]},
        ]),
    );
    let rules = of_pay(&cluster.compile()).unwrap().allow;
    assert_eq!(rules.len(), 2);
    assert_eq!(&*rules[1].provenance, "networkpolicy/shop/p#ingress[1]");
    assert_eq!(rules[1].ports, [None, Some((8000, 9000)), Some((8080, 8080))]);
    assert_eq!(rules[1].callers, [Caller::Anybody]);
}
