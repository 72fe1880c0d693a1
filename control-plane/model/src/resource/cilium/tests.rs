//! What is read of Cilium's policies, what is printed of them, and what is refused with which words.

use serde_json::{Value, json};

use super::super::{Object, PortRef, Protocol};
use super::{CiliumPeers, CiliumPolicy};

fn cnp(spec: Value) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "x"}, "spec": spec})
}

fn ingress(entry: Value) -> Value {
    cnp(json!({"endpointSelector": {}, "ingress": [entry]}))
}

fn refused(value: &Value, path: &str, reason: &str) {
    let error = Object::parse(value).expect_err(&format!("must be refused: {value}"));
    assert_eq!(error.path, path, "{error}");
    assert!(error.reason.contains(reason), "{error}");
}

fn read(value: &Value) -> CiliumPolicy {
    let object = Object::parse(value).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(Object::parse(&object.to_json()).unwrap(), object, "{:#}", object.to_json());
    let stored = serde_json::to_string(&object).unwrap();
    assert_eq!(serde_json::from_str::<Object>(&stored).unwrap(), object);
    match object {
        Object::CiliumNetworkPolicy(policy) | Object::CiliumClusterwideNetworkPolicy(policy) => policy,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_as_cilium_documents_it_is_read_and_printed() {
    let policy = read(&json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "rule1", "namespace": "shop", "generation": 1},
        "spec": {
            "description": "callers",
            "endpointSelector": {"matchLabels": {"k8s:app": "pay"}},
            "ingress": [
                {"fromEndpoints": [{"matchLabels": {"any:role": "web"}, "matchExpressions": [
                    {"key": "k8s:io.kubernetes.pod.namespace", "operator": "In", "values": ["shop", "ops"]}]}],
                 "toPorts": [
                    {"ports": [{"port": "80", "protocol": "tcp"}, {"port": "http"}]},
                    {"ports": [{"port": "1000", "endPort": 2000, "protocol": "UDP"}, {"port": "0", "protocol": "SCTP"}]}]},
                {"fromEntities": ["cluster", "world"]},
                {"fromCIDR": ["192.0.2.7", "10.0.0.0/8"]},
            ],
            "ingressDeny": [{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["10.96.0.0/12"]}]}],
            "egress": [{"toEntities": ["all"]}, {}],
            "enableDefaultDeny": {"egress": false},
        },
        "specs": [{"endpointSelector": {}, "egressDeny": [{"toPorts": [{"ports": [{"port": "25"}]}]}]}],
        "status": {"conditions": []},
    }));
    let spec = policy.spec.unwrap();
    let entry = &spec.ingress.allow[0];
    let ports: Vec<_> = entry.ports.iter().map(|p| (p.protocol, p.port.clone(), p.end_port)).collect();
    let number = |n| Some(PortRef::Number(n));
    assert_eq!(
        ports,
        [
            (Some(Protocol::Tcp), number(80), None),
            (None, Some(PortRef::Name("http".to_owned())), None),
            (Some(Protocol::Udp), number(1000), Some(2000)),
            (Some(Protocol::Sctp), None, None),
        ]
    );
    assert!(matches!(&entry.peers, CiliumPeers::Endpoints(list) if list[0].namespaces.is_some()
        && list[0].pods.match_labels.contains_key("role")));
    assert!(spec.ingress.denies_by_default() && !spec.egress.denies_by_default());
    assert!(policy.specs[0].egress.denies_by_default() && !policy.specs[0].ingress.denies_by_default());
}

#[test]
fn a_policy_of_the_whole_cluster_has_no_namespace() {
    let mut value = ingress(json!({}));
    value["kind"] = json!("CiliumClusterwideNetworkPolicy");
    refused(&value, "metadata.namespace", "of the whole cluster");
    value["metadata"] = json!({"name": "x"});
    let policy = read(&value);
    assert_eq!(policy.meta.name.to_string(), "x");
    value["spec"]["ingress"] = json!([{"toPorts": 1}]);
    let error = Object::parse(&value).unwrap_err().to_string();
    assert!(error.starts_with("ciliumclusterwidenetworkpolicy/x: spec.ingress[0].toPorts = 1: "), "{error}");
}

#[test]
fn more_ports_than_one_element_may_have_are_printed_in_several() {
    let ports: Vec<Value> = (1..=30).map(|n| json!({"port": n.to_string()})).collect();
    let policy = read(&ingress(json!({"toPorts": [{"ports": ports}, {"ports": ports}]})));
    assert_eq!(policy.spec.unwrap().ingress.allow[0].ports.len(), 60);
}

#[test]
fn a_policy_that_says_nothing_or_contradicts_itself_is_refused() {
    refused(&cnp(Value::Null), "spec", "required");
    refused(&cnp(json!({"ingress": [{}]})), "spec.endpointSelector", "required");
    refused(&cnp(json!({"endpointSelector": {}})), "spec", "must have an entry");
    refused(
        &cnp(json!({"endpointSelector": {}, "ingress": [], "enableDefaultDeny": {"ingress": true}})),
        "spec",
        "must have an entry",
    );
    let both = json!({"fromEndpoints": [{}], "fromEntities": ["world"]});
    refused(&ingress(both), "spec.ingress[0].fromEntities", "write two entries");
    refused(&ingress(json!({"fromEndpoints": []})), "spec.ingress[0].fromEndpoints", "leave it out");
    refused(&ingress(json!({"toEndpoints": [{}]})), "spec.ingress[0].toEndpoints", "other direction");
    let beyond = json!({"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}]});
    refused(&ingress(beyond), "spec.ingress[0].fromCIDRSet[0].except[0]", "inside");
    let ports = |port: Value| ingress(json!({"toPorts": [{"ports": [port]}]}));
    let at = "spec.ingress[0].toPorts[0].ports[0]";
    refused(&ports(json!({"protocol": "TCP"})), &format!("{at}.port"), "required");
    refused(&ports(json!({"port": "70000"})), &format!("{at}.port"), "1 to 65535");
    refused(&ports(json!({"port": "80", "endPort": 79})), &format!("{at}.endPort"), "80 (port) or more");
    refused(&ports(json!({"port": "http", "endPort": 79})), &format!("{at}.endPort"), "named");
    refused(&ports(json!({"port": "0", "endPort": 79})), &format!("{at}.endPort"), "needs a port");
    refused(&ports(json!({"port": "8", "protocol": "ICMP"})), &format!("{at}.protocol"), "not supported");
    refused(&ingress(json!({"toPorts": [{"ports": []}]})), "spec.ingress[0].toPorts[0].ports", "required");
    let many: Vec<Value> = (1..=41).map(|n| json!({"port": n.to_string()})).collect();
    refused(
        &ingress(json!({"toPorts": [{"ports": many}]})),
        "spec.ingress[0].toPorts[0].ports",
        "at most 40",
    );
    let specs: Vec<Value> = (0..17).map(|_| json!({"endpointSelector": {}, "ingress": [{}]})).collect();
    let mut value = cnp(Value::Null);
    value["specs"] = json!(specs);
    refused(&value, "specs", "at most 16");
}

#[test]
fn selectors_that_no_workload_could_match_as_meant_are_refused() {
    let selector = |labels: Value| ingress(json!({"fromEndpoints": [{ "matchLabels": labels }]}));
    let at = |key: &str| format!("spec.ingress[0].fromEndpoints[0].matchLabels[{key}]");
    let one = |key: &str, reason: &str| refused(&selector(json!({key: "x"})), &at(key), reason);
    one("reserved:host", "fromEntities");
    one("container:name", "source");
    one("io.cilium.k8s.namespace.labels.team", "namespaces have no label here");
    one("io.cilium.k8s.policy.serviceaccount", "not supported");
    one("io.cilium.k8s.policy.cluster", "not supported");
    one("pod-template-hash", "differs per copy");
    refused(&selector(json!({"k8s:app": "x", "app": "y"})), &at("k8s:app"), "same label");
    let expression = json!([{"key": "app", "operator": "Exists"}, {"key": "app", "operator": "Is"}]);
    let value = ingress(json!({"fromEndpoints": [{"matchExpressions": expression}]}));
    refused(&value, "spec.ingress[0].fromEndpoints[0].matchExpressions[1].operator", "must be In");
    let elsewhere = json!({"matchLabels": {"io.kubernetes.pod.namespace": "ops"}});
    let value = cnp(json!({"endpointSelector": elsewhere, "ingress": [{}]}));
    refused(&value, "spec.endpointSelector", "only a CiliumClusterwideNetworkPolicy can");
}

#[test]
fn what_the_data_plane_cannot_enforce_is_refused_and_never_ignored() {
    let entities = |list: &str, entity: &str| {
        let entry = json!({"fromEntities": ["world", entity]});
        refused(
            &cnp(json!({"endpointSelector": {}, list: [entry]})),
            &format!("spec.{list}[0].fromEntities[1]"),
            "not supported",
        );
    };
    for entity in ["init", "unmanaged", "ingress", "kube-apiserver", "World"] {
        entities("ingress", entity);
    }
    for entity in ["host", "cluster", "health"] {
        entities("ingressDeny", entity);
    }
    let rules = json!({"toPorts": [{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]});
    refused(&ingress(rules), "spec.ingress[0].toPorts[0].rules", "not supported");
}
