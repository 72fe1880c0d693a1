//! What is read of a ClusterNetworkPolicy, and what is refused with which words.

use serde_json::{Value, json};

use super::{ClusterAction, ClusterPeer, ClusterPort, ClusterTier, Object, Protocol};

fn policy(spec: Value) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "x"}, "spec": spec})
}

fn with(field: &str, value: Value) -> Value {
    let mut spec = json!({"tier": "Admin", "priority": 10, "subject": {"namespaces": {}}});
    spec[field] = value;
    policy(spec)
}

fn refused(value: &Value, path: &str, reason: &str) {
    let error = Object::parse(value).expect_err(&format!("must be refused: {value}"));
    assert_eq!(error.path, path, "{error}");
    assert!(error.reason.contains(reason), "{error}");
}

#[test]
fn a_policy_as_the_api_documents_it_is_read_and_printed() {
    let mut value = policy(json!({
        "tier": "Baseline", "priority": 0,
        "subject": {"pods": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}},
            "podSelector": {"matchLabels": {"app": "pay"}}}},
        "ingress": [{"name": "web", "action": "Accept", "from": [{"namespaces": {}}],
            "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"destinationNamedPort": "http"}]}],
        "egress": [{"action": "Pass", "to": [{"networks": ["10.0.0.0/8", "fd00::/8"]}, {"namespaces": {}}],
            "protocols": [{"udp": {"destinationPort": {"range": {"start": 1, "end": 9}}}}, {"sctp": {}}]}],
    }));
    let object = Object::parse(&value).unwrap();
    assert_eq!(Object::parse(&object.to_json()).unwrap(), object);
    let stored = serde_json::to_string(&object).unwrap();
    assert_eq!(serde_json::from_str::<Object>(&stored).unwrap(), object);
    assert_eq!(object.key().to_string(), "clusternetworkpolicy/x");
    value["apiVersion"] = json!("policy.networking.k8s.io/v1beta1");
    assert_eq!(Object::parse(&value).unwrap(), object);
    let Object::ClusterNetworkPolicy(policy) = object else { panic!() };
    assert_eq!((policy.tier, policy.priority), (ClusterTier::Baseline, 0));
    assert_eq!(policy.ingress[0].ports[1], ClusterPort::Named("http".to_owned()));
    let egress = &policy.egress[0];
    assert_eq!(egress.action, ClusterAction::Pass);
    assert!(matches!(&egress.peers[0], ClusterPeer::Networks(networks) if networks.len() == 2));
    assert_eq!(egress.ports[0], ClusterPort::Range { protocol: Protocol::Udp, ports: Some((1, 9)) });
    assert_eq!(egress.ports[1], ClusterPort::Range { protocol: Protocol::Sctp, ports: None });
}

#[test]
fn what_is_incomplete_or_out_of_range_is_refused() {
    refused(&with("tier", json!("Application")), "spec.tier", "Admin or Baseline");
    refused(&with("tier", Value::Null), "spec.tier", "required");
    refused(&with("priority", json!(1001)), "spec.priority", "0 to 1000");
    refused(&with("priority", json!(-1)), "spec.priority", "0 to 1000");
    refused(&with("subject", json!({})), "spec.subject", "exactly one");
    refused(&with("subject", json!({"networks": ["::/0"]})), "spec.subject.networks", "can't be a subject");
    refused(&with("subject", json!({"pods": {}})), "spec.subject.pods.podSelector", "required");
    let rule = |rule: Value| with("egress", json!([rule]));
    refused(&rule(json!({"to": [{"namespaces": {}}]})), "spec.egress[0].action", "required");
    refused(
        &rule(json!({"action": "Allow", "to": [{"namespaces": {}}]})),
        "spec.egress[0].action",
        "Accept, Deny or Pass",
    );
    refused(&rule(json!({"action": "Deny"})), "spec.egress[0].to", "required");
    refused(&rule(json!({"action": "Deny", "to": []})), "spec.egress[0].to", "required");
    refused(&rule(json!({"action": "Deny", "from": []})), "spec.egress[0].from", "other direction");
    let to = |peer: Value| rule(json!({"action": "Deny", "to": [peer]}));
    refused(&to(json!({})), "spec.egress[0].to[0]", "exactly one");
    refused(&to(json!({"namespaces": {}, "networks": ["::/0"]})), "spec.egress[0].to[0]", "exactly one");
    refused(
        &to(json!({"networks": ["10.0.0.1/8"]})),
        "spec.egress[0].to[0].networks[0]",
        "beyond its prefix",
    );
    let many: Vec<Value> = (0..26).map(|_| json!({"action": "Deny", "to": [{"namespaces": {}}]})).collect();
    refused(&with("egress", json!(many)), "spec.egress", "at most 25");
    let ports = |protocols: Value| {
        rule(json!({"action": "Deny", "to": [{"namespaces": {}}], "protocols": protocols}))
    };
    let at = "spec.egress[0].protocols";
    refused(&ports(json!([])), at, "leave it out");
    refused(&ports(json!([{}])), &format!("{at}[0]"), "exactly one");
    refused(&ports(json!([{"tcp": {}, "udp": {}}])), &format!("{at}[0]"), "exactly one");
    let tcp = |destination: Value| ports(json!([{"tcp": {"destinationPort": destination}}]));
    let at = "spec.egress[0].protocols[0].tcp.destinationPort";
    refused(&tcp(json!({})), at, "exactly one");
    refused(&tcp(json!({"number": 0})), &format!("{at}.number"), "1 to 65535");
    refused(&tcp(json!({"range": {"start": 9, "end": 9}})), &format!("{at}.range.end"), "more than 9");
}

#[test]
fn what_would_silently_match_nobody_is_refused() {
    let rule = |list: &str, side: &str, peer: &Value| with(list, json!([{"action": "Deny", side: [peer]}]));
    let copies = json!({"pods": {"podSelector": {"matchLabels": {"pod-template-hash": "1"}}}});
    refused(&rule("egress", "to", &copies), "spec.egress[0].to[0].pods.podSelector", "differs per copy");
    let networks = json!({"networks": ["10.0.0.0/8"]});
    refused(&rule("ingress", "from", &networks), "spec.ingress[0].from[0].networks", "not supported");
    let named =
        json!([{"action": "Deny", "to": [networks], "protocols": [{"destinationNamedPort": "http"}]}]);
    refused(&with("egress", named), "spec.egress[0].protocols[0].destinationNamedPort", "name no ports");
}
