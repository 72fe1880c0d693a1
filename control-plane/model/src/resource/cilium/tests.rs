//! What is read of Cilium's policies, what is printed of them, and what is refused with which words.

use serde_json::{Value, json};

use super::super::{Object, PortRef, Protocol};
use super::{CiliumPeers, CiliumPolicy, HttpRule, HttpRuleHeader};

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
    entities("ingress", "World");
    entities("ingressDeny", "unmanaged");
    let rules = json!({"toPorts": [{"ports": [{"port": "80"}], "rules": {"http": [{}]}}]});
    refused(&ingress(rules), "spec.ingress[0].toPorts[0].rules.http", "not supported");
}

fn egress(entry: Value) -> Value {
    cnp(json!({"endpointSelector": {}, "egress": [entry]}))
}

#[test]
fn types_of_icmp_are_read_by_number_and_by_name_of_their_family() {
    let fields = json!([{"type": 8}, {"family": "IPv4", "type": "TimeExceeded"}, {"type": "13"},
        {"family": "IPv6", "type": "TimeExceeded"}, {"family": "IPv6", "type": 255}]);
    let policy = read(&ingress(json!({"icmps": [{"fields": fields}]})));
    let spec = policy.spec.unwrap();
    let types: Vec<(bool, u8)> =
        spec.ingress.allow[0].icmps.iter().map(|icmp| (icmp.v6, icmp.kind)).collect();
    assert_eq!(types, [(false, 8), (false, 11), (false, 13), (true, 3), (true, 255)]);
    assert!(!spec.ingress.allow[0].is_empty());
    let at = "spec.ingress[0].icmps[0].fields[0]";
    let one = |field: Value| ingress(json!({"icmps": [{"fields": [field]}]}));
    refused(&one(json!({"type": 256})), &format!("{at}.type"), "0 to 255");
    refused(&one(json!({"type": "PacketTooBig"})), &format!("{at}.type"), "of that family");
    refused(&one(json!({"family": "IPX", "type": 1})), &format!("{at}.family"), "IPv4 or IPv6");
    refused(&one(json!({})), &format!("{at}.type"), "required");
    let both = json!({"icmps": [{"fields": [{"type": 8}]}], "toPorts": [{"ports": [{"port": "80"}]}]});
    refused(&ingress(both), "spec.ingress[0].icmps", "write two entries");
    let many: Vec<Value> = (0..41).map(|n| json!({"type": n})).collect();
    refused(&ingress(json!({"icmps": [{"fields": many}]})), "spec.ingress[0].icmps", "at most 40");
}

#[test]
fn services_are_named_or_selected_and_have_no_other_ports() {
    let policy = read(&egress(json!({"toServices": [
        {"k8sService": {"serviceName": "pay"}}, {"k8sService": {"serviceName": "db", "namespace": "data"}},
        {"k8sServiceSelector": {"selector": {"matchLabels": {"k8s:tier": "db"}}, "namespace": "data"}}]})));
    assert!(
        matches!(&policy.spec.unwrap().egress.allow[0].peers, CiliumPeers::Services(list) if list.len() == 3)
    );
    let at = "spec.egress[0].toServices";
    refused(&egress(json!({"toServices": [{}]})), &format!("{at}[0]"), "must have k8sService");
    let unnamed = json!({"toServices": [{"k8sService": {"namespace": "a"}}]});
    refused(&egress(unnamed), &format!("{at}[0].k8sService.serviceName"), "required");
    let ports = json!({"toServices": [{"k8sService": {"serviceName": "a"}}], "toPorts": [{"ports": [{"port": "1"}]}]});
    refused(&egress(ports), at, "beside toPorts");
    refused(&ingress(json!({"toServices": []})), "spec.ingress[0].toServices", "other direction");
    let of_cluster = json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "x"},
        "spec": {"endpointSelector": {}, "egress": [{"toServices": [{"k8sService": {"serviceName": "a"}}]}]}});
    refused(&of_cluster, &format!("{at}[0].k8sService.namespace"), "required");
}

#[test]
fn names_are_patterns_and_those_that_may_be_asked_for_stand_with_ports_by_number() {
    let dns = |ports: Value, names: Value| json!({"toPorts": [{"ports": ports, "rules": {"dns": names}}]});
    let policy = read(&cnp(json!({"endpointSelector": {}, "egress": [
        {"toFQDNs": [{"matchName": "A.example."}, {"matchPattern": "*.b.example"}]},
        dns(json!([{"port": "53", "protocol": "ANY"}]), json!([{"matchPattern": "*"}]))]})));
    let spec = policy.spec.unwrap();
    let CiliumPeers::Names(names) = &spec.egress.allow[0].peers else { panic!("{spec:?}") };
    assert_eq!(names.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["a.example", "*.b.example"]);
    assert!(spec.egress.allow[1].dns[0].matches("anything.example"));
    let at = "spec.egress[0].toFQDNs";
    let one = |name: Value| egress(json!({"toFQDNs": [name]}));
    refused(&one(json!({"matchName": "*.a"})), &format!("{at}[0].matchName"), "is a pattern");
    refused(&one(json!({"matchPattern": "a..b"})), &format!("{at}[0].matchPattern"), "empty label");
    refused(&one(json!({})), &format!("{at}[0]"), "must have");
    refused(&one(json!({"matchName": "a", "matchPattern": "b"})), &format!("{at}[0]"), "not both");
    let at = "spec.egress[0].toPorts[0].rules.dns";
    let any = json!([{"matchPattern": "*"}]);
    for ports in
        [json!([{"port": "0"}]), json!([{"port": "dns"}]), json!([{"port": "53", "protocol": "SCTP"}])]
    {
        refused(&egress(dns(ports, any.clone())), at, "by number");
    }
    let ports = || json!([{"port": "53"}]);
    refused(
        &ingress(dns(ports(), any.clone())),
        "spec.ingress[0].toPorts[0].rules.dns",
        "not supported here",
    );
    let denied = cnp(json!({"endpointSelector": {}, "egressDeny": [dns(ports(), any.clone())]}));
    refused(&denied, "spec.egressDeny[0].toPorts[0].rules.dns", "not supported here");
    let mut beside = dns(ports(), any);
    beside["toPorts"].as_array_mut().unwrap().push(json!({"ports": [{"port": "80"}]}));
    refused(&egress(beside), at, "write two entries");
}

#[test]
fn a_listener_is_a_proxy_of_the_node_for_egress() {
    let entry = |listener: Value| json!({"toPorts": [{"ports": [{"port": "80"}], "listener": listener}]});
    let egress = |rule: Value| cnp(json!({"endpointSelector": {}, "egress": [rule]}));
    let rule = read(&egress(entry(json!({"name": "l7"})))).spec.unwrap();
    assert_eq!(rule.egress.allow[0].proxy.as_deref(), Some("l7"));
    let at = "spec.egress[0].toPorts[0].listener";
    for name in ["", "L7", "a.b", "dns"] {
        refused(&egress(entry(json!({ "name": name }))), &format!("{at}.name"), "name of a proxy");
    }
    refused(&egress(entry(json!({}))), &format!("{at}.name"), "required");
    refused(&egress(entry(json!({"name": "a", "priority": 1}))), &format!("{at}.priority"), "not supported");
    let config = json!({"name": "a", "envoyConfig": {"name": "x"}});
    refused(&egress(entry(config)), &format!("{at}.envoyConfig"), "not supported");
    refused(&ingress(entry(json!({"name": "a"}))), "spec.ingress[0].toPorts[0].listener", "egress");
    let mut ruled = entry(json!({"name": "a"}));
    ruled["toPorts"][0]["rules"] = json!({"dns": [{"matchPattern": "*"}]});
    refused(&egress(ruled), at, "two entries");
    let mut two = entry(json!({"name": "a"}));
    two["toPorts"].as_array_mut().unwrap().push(json!({"ports": [{"port": "81"}]}));
    refused(&egress(two), "spec.egress[0].toPorts[1].listener", "two entries");
}

#[test]
fn requests_are_let_through_by_the_nodes_proxy_on_egress_of_tcp() {
    let entry = |http: Value| json!({"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": http}}]});
    let egress = |rule: Value| cnp(json!({"endpointSelector": {}, "egress": [rule]}));
    let rules = json!([{"method": "GET", "path": "/v1/.*", "host": "", "headers": ["X-Team: web", "X-Any"],
        "headerMatches": [{"name": "X-More", "value": "a b"}]}, {}]);
    let read = read(&egress(entry(rules))).spec.unwrap().egress.allow.remove(0).http;
    let header = |name: &str, value: Option<&str>| HttpRuleHeader {
        name: name.to_owned(),
        value: value.map(str::to_owned),
    };
    let first = HttpRule {
        method: Some("GET".to_owned()),
        path: Some("/v1/.*".to_owned()),
        host: None,
        headers: vec![header("x-team", Some("web")), header("x-any", None), header("x-more", Some("a b"))],
    };
    assert_eq!(read, [first, HttpRule::default()]);

    let at = "spec.egress[0].toPorts[0].rules.http";
    refused(&egress(entry(json!([]))), at, "must not be empty");
    refused(&egress(entry(json!([{"path": "("}]))), &format!("{at}[0].path"), "regular expression");
    refused(&egress(entry(json!([{"headers": [": x"]}]))), &format!("{at}[0].headers[0]"), "must");
    let replaced = json!([{"headerMatches": [{"name": "a", "value": "b", "mismatch": "REPLACE"}]}]);
    refused(&egress(entry(replaced)), &format!("{at}[0].headerMatches[0].mismatch"), "not supported");
    refused(&ingress(entry(json!([{}]))), "spec.ingress[0].toPorts[0].rules.http", "egress");
    let mut any = entry(json!([{}]));
    any["toPorts"][0]["ports"][0] = json!({"port": "80"});
    refused(&egress(any), at, "TCP");
    let mut two = entry(json!([{}]));
    two["toPorts"].as_array_mut().unwrap().push(json!({"ports": [{"port": "81", "protocol": "TCP"}]}));
    refused(&egress(two), at, "two entries");
    let mut both = entry(json!([{}]));
    both["toPorts"][0]["rules"]["dns"] = json!([{"matchPattern": "*"}]);
    refused(&egress(both), at, "two entries");
    let mut named = entry(json!([{}]));
    named["toFQDNs"] = json!([{"matchName": "a.example"}]);
    refused(&egress(named), "spec.egress[0].toFQDNs", "rules.http");
    let reserved = json!({"toPorts": [{"ports": [{"port": "80"}], "listener": {"name": "node-proxy"}}]});
    refused(&egress(reserved), "spec.egress[0].toPorts[0].listener.name", "rules.http");
}

#[test]
fn only_a_policy_of_the_cluster_selects_nodes_and_says_less_of_them() {
    let of = |spec: Value| {
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumClusterwideNetworkPolicy", "metadata": {"name": "x"},
            "spec": spec})
    };
    let nodes =
        json!({"matchLabels": {"k8s:rack": "7"}, "matchExpressions": [{"key": "gpu", "operator": "Exists"}]});
    let policy = read(&of(json!({"nodeSelector": nodes, "ingress": [{"fromEntities": ["cluster"]}]})));
    let rule = policy.spec.unwrap();
    assert!(rule.nodes.is_some_and(|nodes| nodes.match_labels.contains_key("rack")));
    refused(
        &cnp(json!({"nodeSelector": {}, "ingress": [{}]})),
        "spec.nodeSelector",
        "CiliumClusterwideNetworkPolicy",
    );
    let both = json!({"nodeSelector": {}, "endpointSelector": {}, "ingress": [{}]});
    refused(&of(both), "spec.nodeSelector", "write two rules");
    let named = json!({"nodeSelector": {}, "ingress": [{"toPorts": [{"ports": [{"port": "http"}]}]}]});
    refused(&of(named), "spec.ingress[0].toPorts[0].ports[0].port", "have no names");
    let names = json!({"nodeSelector": {}, "egress": [{"toFQDNs": [{"matchName": "a"}]}]});
    refused(&of(names), "spec.egress[0].toFQDNs", "for nodes");
}

#[test]
fn whether_a_policy_is_audited_is_true_or_false() {
    let mut audited = ingress(json!({}));
    audited["metadata"]["annotations"] = json!({"isthmus.io/audit": "true"});
    assert!(read(&audited).meta.is_audited());
    audited["metadata"]["annotations"] = json!({"isthmus.io/audit": "yes"});
    refused(&audited, "metadata.annotations[isthmus.io/audit]", "'true' or 'false'");
}
