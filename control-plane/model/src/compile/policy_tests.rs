//! The compiler against the oracle.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Action, Direction, FlowProtocol, RulePeer,
    generate_cilium::cilium_policy,
    generate_cluster::cluster_policy,
    generate_network::{labels, policy_spec},
    world::{TestCluster, named},
};
use crate::{
    policy::{Flow, FlowPeer, verdict},
    resource::Protocol,
};

fn policy(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

pub(super) fn flow(from: &str, to: &str, protocol: Protocol, port: u16) -> Flow {
    let peer = |text: &str| match text.parse() {
        Ok(ip) => FlowPeer::Address(ip),
        Err(_) => FlowPeer::Workload(named(text)),
    };
    Flow { source: peer(from), destination: peer(to), protocol: protocol.into(), port }
}

pub(super) fn shop() -> TestCluster {
    let mut cluster = TestCluster::west();
    let http = json!([{"name": "http", "port": 8080}]);
    cluster
        .workload("shop/web", "web", "none", json!([]))
        .bind("shop/web", "n1", "10.1.1.2")
        .workload("shop/pay", "pay", "none", http.clone())
        .bind("shop/pay", "n1", "10.1.1.3")
        .workload("shop/batch", "batch", "none", http)
        .bind("shop/batch", "n2", "10.1.2.2");
    cluster
}

#[test]
fn a_selected_workload_admits_only_what_a_rule_permits_and_says_which() {
    let mut cluster = shop();
    cluster.apply(policy(
        "shop",
        "pay-callers",
        json!({
            "podSelector": {"matchLabels": {"app": "pay"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]}],
        }),
    ));
    let model = cluster.compile();
    let permitted = flow("shop/web", "shop/pay", Protocol::Tcp, 8080);
    assert_eq!(model.verdict(&permitted).ingress.provenance, ["networkpolicy/shop/pay-callers#ingress[0]"]);
    assert_eq!(model.verdict(&permitted), verdict(cluster.world(), &permitted));
    for denied in [
        flow("shop/web", "shop/pay", Protocol::Tcp, 8081),
        flow("shop/batch", "shop/pay", Protocol::Tcp, 8080),
        flow("203.0.113.9", "shop/pay", Protocol::Tcp, 8080),
    ] {
        let compiled = model.verdict(&denied);
        assert_eq!(compiled.action, Action::Deny, "{denied:?}");
        assert_eq!(compiled.ingress.provenance, ["networkpolicy/shop/pay-callers#default-deny-ingress"]);
        assert_eq!(compiled, verdict(cluster.world(), &denied));
    }
    // Its own connections are nobody's business.
    assert_eq!(model.verdict(&flow("shop/pay", "shop/batch", Protocol::Udp, 1)).action, Action::Allow);
}

#[test]
fn namespaces_are_selected_by_their_labels_and_one_that_nobody_declared_has_none_but_its_name() {
    let ends = [("a", "a/w"), ("b", "b/w"), ("c", "c/w")];
    let mut cluster = TestCluster::west();
    for (i, (_, name)) in ends.into_iter().enumerate() {
        cluster.workload(name, "w", "none", json!([])).bind(name, "n1", &format!("10.1.1.{}", i + 2));
    }
    cluster.workload("shop/pay", "pay", "none", json!([])).bind("shop/pay", "n1", "10.1.1.9");
    let label = |cluster: &mut TestCluster, name: &str, labels: Value| {
        cluster.apply(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels}}));
    };
    label(&mut cluster, "a", json!({"team": "red"}));
    label(&mut cluster, "b", json!({"team": "blue"}));
    let let_in = |cluster: &mut TestCluster, selector: Value| {
        let rule = json!({"from": [{"namespaceSelector": selector}]});
        cluster.apply(policy("shop", "p", json!({"podSelector": {}, "ingress": [rule]})));
        let model = cluster.compile();
        let let_in = |name: &&str| {
            let flow = flow(name, "shop/pay", Protocol::Tcp, 80);
            let decided = model.verdict(&flow);
            assert_eq!(decided, verdict(cluster.world(), &flow), "{name}");
            decided.action == Action::Allow
        };
        let names: Vec<&str> = ends.into_iter().filter(|(_, name)| let_in(name)).map(|(n, _)| n).collect();
        names
    };
    let expression = |operator: &str| json!({"matchExpressions": [{"key": "team", "operator": operator, "values": ["red"]}]});
    let presence = |operator: &str| json!({"matchExpressions": [{"key": "team", "operator": operator}]});
    assert_eq!(let_in(&mut cluster, json!({"matchLabels": {"team": "red"}})), ["a"]);
    assert_eq!(let_in(&mut cluster, expression("In")), ["a"]);
    assert_eq!(let_in(&mut cluster, expression("NotIn")), ["b", "c"]);
    assert_eq!(let_in(&mut cluster, presence("Exists")), ["a", "b"]);
    assert_eq!(let_in(&mut cluster, presence("DoesNotExist")), ["c"]);
    label(&mut cluster, "c", json!({"team": "red"}));
    assert_eq!(let_in(&mut cluster, expression("NotIn")), ["b"]);
    assert_eq!(
        let_in(&mut cluster, json!({"matchLabels": {"kubernetes.io/metadata.name": "c", "team": "red"}})),
        ["c"]
    );
}

#[test]
fn a_label_of_a_namespace_that_no_selector_reads_leaves_classes_as_they_are() {
    let mut cluster = shop();
    let red = json!({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["red"]}]});
    let rule = json!({"from": [{"namespaceSelector": red}]});
    cluster.apply(policy("shop", "p", json!({"podSelector": {}, "ingress": [rule]})));
    let class = |cluster: &TestCluster| cluster.compile().workloads[&named("shop/pay")].policy_class;
    let before = class(&cluster);
    let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"cost-centre": "7", "team": "blue"}}});
    cluster.apply(namespace.clone());
    assert_eq!(class(&cluster), before);
    namespace["metadata"]["labels"]["team"] = json!("red");
    cluster.apply(namespace);
    assert_ne!(
        class(&cluster),
        before,
        "another meaning is another class, to which endpoints move in one step"
    );
}

#[test]
fn a_workload_without_policy_has_class_zero() {
    let model = shop().compile();
    assert!(model.workloads.values().all(|w| w.policy_class == 0));
    assert!(model.policy_classes[&0].rules.is_empty());
}

#[test]
fn equal_policy_shares_a_class_whose_number_survives_changes_elsewhere() {
    let mut cluster = shop();
    cluster.apply(policy(
        "shop",
        "callers",
        json!({
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["pay", "batch"]}]},
            "ingress": [{"from": [{"podSelector": {}}]}],
        }),
    ));
    let before = cluster.compile();
    let class = before.workloads[&named("shop/pay")].policy_class;
    assert_ne!(class, 0);
    assert_eq!(before.workloads[&named("shop/batch")].policy_class, class);
    let rules = before.policy_classes[&class].rules.len();

    cluster.workload("shop/new", "new", "none", json!([]));
    cluster.apply(policy("other", "unrelated", json!({"podSelector": {}})));
    let after = cluster.compile();
    assert_eq!(after.workloads[&named("shop/pay")].policy_class, class);
    assert_eq!(after.policy_classes[&class].rules.len(), rules + 1, "the new identity may call");

    let new = cluster.objects.keys().find(|key| key.name == named("shop/new")).unwrap().clone();
    cluster.objects.remove(&new);
    assert_eq!(
        cluster.compile().policy_classes[&class].rules.len(),
        rules,
        "nobody has the identity any more"
    );

    cluster.apply(policy("shop", "callers", json!({"podSelector": {}, "ingress": []})));
    let edited = cluster.compile();
    assert_ne!(edited.workloads[&named("shop/pay")].policy_class, class, "another policy is another class");
}

#[test]
fn an_ip_block_without_its_exceptions_matches_outsiders_only() {
    let mut cluster = shop();
    cluster.apply(policy(
        "shop",
        "egress",
        json!({
            "podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["203.0.113.0/24"]}}]}],
        }),
    ));
    let model = cluster.compile();
    let class = &model.policy_classes[&model.workloads[&named("shop/web")].policy_class];
    let denied = "203.0.113.9".parse().unwrap();
    assert!(class.rules.iter().all(|r| match &r.peer {
        RulePeer::Cidr(net) =>
            !net.contains(&std::net::IpAddr::V4(denied)) && r.direction == Direction::Egress,
        _ => false,
    }));
    let action = |to: &str| model.verdict(&flow("shop/web", to, Protocol::Tcp, 443)).action;
    assert_eq!(action("198.51.100.1"), Action::Allow);
    assert_eq!(action("203.0.113.9"), Action::Deny);
    assert_eq!(action("shop/pay"), Action::Deny, "a workload is known by its labels, not by its address");
}

#[test]
fn a_workload_that_nobody_declared_gets_nothing() {
    let cluster = shop();
    let stranger = flow("shop/web", "shop/stranger", Protocol::Tcp, 80);
    assert_eq!(cluster.compile().verdict(&stranger).action, Action::Deny);
    assert_eq!(verdict(cluster.world(), &stranger).action, Action::Deny);
}

// ---- generated worlds -------------------------------------------------------------------------------------

/// With a label, another or none.
pub(super) fn a_namespace(name: &'static str) -> impl Strategy<Value = Value> {
    prop::option::of(prop::sample::select(vec!["red", "blue"])).prop_map(move |team| {
        let labels = team.map_or_else(|| json!({}), |team| json!({"team": team}));
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    })
}

/// One that selects, one that lists addresses, and Kubernetes' own.
fn services() -> [Value; 5] {
    let service = |namespace: &str, name: &str, spec: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "spec": spec,
            "metadata": {"namespace": namespace, "name": name, "labels": {"tier": "1"}}})
    };
    let slice = |namespace: &str, name: &str, address: &str| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"port": 80}], "endpoints": [{"addresses": [address]}]})
    };
    let ports = json!([{"port": 80}]);
    [
        service("a", "s", json!({"selector": {"app": "x"}, "ports": ports})),
        service("b", "bare", json!({"ports": ports})),
        slice("b", "bare", "203.0.113.9"),
        service("default", "kubernetes", json!({"ports": ports})),
        slice("default", "kubernetes", "203.0.113.1"),
    ]
}

fn generated() -> impl Strategy<Value = TestCluster> {
    let namespace = || prop::sample::select(vec!["a", "b"]);
    let ports = prop::sample::select(vec![
        json!([]),
        json!([{"name": "http", "port": 80}]),
        json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 80, "protocol": "UDP"}]),
        json!([{"name": "http", "port": 80, "protocol": "UDP"}]),
    ]);
    let role = prop_oneof![6 => Just("none"), 1 => Just("gateway"), 1 => Just("audited")];
    let workload = (namespace(), labels(), prop::sample::select(vec!["default", "other"]), ports, role);
    let of_cilium = || namespace().prop_flat_map(|n| cilium_policy(n, "p".to_owned()));
    let of_cilium = prop::collection::vec(of_cilium(), 0..4);
    // Tiers in every other world.
    let of_tiers = prop::collection::vec(cluster_policy("t".to_owned()), 1..4);
    let of_tiers = prop_oneof![Just(Vec::new()), of_tiers];
    let of_kubernetes = prop::collection::vec((namespace(), policy_spec()), 0..3);
    let namespaces = (prop::option::of(a_namespace("a")), prop::option::of(a_namespace("b")));
    (prop::collection::vec(workload, 1..6), of_kubernetes, of_cilium, of_tiers, namespaces).prop_map(
        |(workloads, policies, of_cilium, of_tiers, (a, b))| {
            let mut cluster = TestCluster::west();
            for namespace in a.into_iter().chain(b) {
                cluster.apply(namespace);
            }
            for service in services() {
                cluster.apply(service);
            }
            for (i, (namespace, labels, account, ports, role)) in workloads.into_iter().enumerate() {
                let audit = if role == "audited" { json!({"isthmus.io/audit": "true"}) } else { json!({}) };
                let mut spec = json!({"serviceAccount": account, "ports": ports});
                if role == "gateway" {
                    spec["proxy"] = json!("gateway");
                    spec["address"] = json!(format!("192.0.2.{}", 100 + i));
                }
                cluster.apply(json!({
                    "apiVersion": "isthmus.io/v1", "kind": "Workload", "spec": spec,
                    "metadata": {"namespace": namespace, "name": format!("w{i}"), "labels": labels, "annotations": audit},
                }));
                cluster.bind(&format!("{namespace}/w{i}"), "n1", &format!("10.1.1.{}", i + 1));
            }
            for (i, (namespace, spec)) in policies.into_iter().enumerate() {
                cluster.apply(policy(namespace, &format!("p{i}"), spec));
            }
            for (i, mut object) in of_cilium.into_iter().chain(of_tiers).enumerate() {
                object["metadata"]["name"] = json!(format!("p{i}"));
                if crate::resource::Object::parse(&object).is_ok() {
                    cluster.apply(object);
                }
            }
            cluster
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn compiled_classes_decide_every_flow_as_the_oracle_does(cluster in generated()) {
        let model = cluster.compile();
        let tiered = cluster.objects.keys().any(|key| key.kind == crate::resource::Kind::ClusterNetworkPolicy);
        let mut ends: Vec<FlowPeer> = model.workloads.keys().cloned().map(FlowPeer::Workload).collect();
        ends.extend(["203.0.113.1", "203.0.113.9", "10.1.1.1", "10.1.9.9", "192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| FlowPeer::Address(ip.parse().unwrap())));
        ends.extend([("203.0.113.9", "a.example"), ("198.51.100.1", "x.b.example"), ("192.0.2.2", "a.example")].map(|(ip, name)| {
            FlowPeer::Named { address: ip.parse().unwrap(), name: name.to_owned() }
        }));
        for source in &ends {
            for destination in &ends {
                for (protocol, port) in [
                    (FlowProtocol::Tcp, 80), (FlowProtocol::Tcp, 8080), (FlowProtocol::Udp, 80), (FlowProtocol::Icmp, 0),
                    (FlowProtocol::Icmp, 8 << 8), (FlowProtocol::Icmp, 0x0101), (FlowProtocol::Icmpv6, 128 << 8),
                ] {
                    let flow = Flow { source: source.clone(), destination: destination.clone(), protocol, port };
                    let (compiled, oracle) = (model.verdict(&flow), verdict(cluster.world(), &flow));
                    // An address may have a name and be in a block, which tiers can not tell at once: see `flatten`.
                    let named = [source, destination].into_iter().any(|end| matches!(end, FlowPeer::Named { .. }));
                    if tiered && named {
                        prop_assert!(compiled.action == Action::Deny || oracle.action == Action::Allow, "{:?}", &flow);
                        continue;
                    }
                    prop_assert_eq!(compiled.action, oracle.action, "{:?}", &flow);
                    for (ours, all) in [(&compiled.egress, &oracle.egress), (&compiled.ingress, &oracle.ingress)] {
                        prop_assert_eq!(ours.action, all.action, "{:?}", &flow);
                        // Where tiers have a say, whoever no rule names is denied by the default, even where a rule of a
                        // namespace denies anybody: the default then has one name for all.
                        let by_default = tiered && ours.action == Action::Deny;
                        let named = ours.provenance.iter().all(|p| all.provenance.contains(p));
                        prop_assert!(named || by_default, "{:?} {:?} {:?}", &flow, ours, all);
                        prop_assert_eq!(ours.provenance.is_empty(), all.provenance.is_empty());
                        prop_assert_eq!(ours.redirect, all.redirect, "{:?}", &flow);
                        // What tiers would come to with audited policies is told of as far as it is a rule.
                        if !tiered {
                            prop_assert_eq!(ours.audit.is_empty(), all.audit.is_empty(), "{:?} {:?} {:?}", &flow, ours, all);
                            prop_assert!(ours.audit.iter().all(|p| all.audit.contains(p)), "{:?} {:?}", ours, all);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn compilation_is_a_function_of_its_input(cluster in generated()) {
        prop_assert_eq!(cluster.compile(), cluster.compile());
    }
}
