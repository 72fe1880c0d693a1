//! The compiler that remembers, against the one that does not: long random histories of everything that a state
//! consists of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Changes, Compiler, MeshModel, ModelDiff, ModelIndex,
    class::Numbering,
    compile_numbered,
    generate_cilium::cilium_policy,
    generate_cluster::cluster_policy,
    generate_network::policy_spec,
    policy_tests::a_namespace,
    world::{TestCluster, named},
};
use crate::{
    identity::IdentityTable,
    records::{NodeFacts, NodePort, NodeRecord},
    resource::{Kind, Object, ObjectKey, Protocol},
};

/// One change of a state.
#[derive(Debug, Clone)]
enum Op {
    Put(Value),
    Delete(Kind, &'static str),
    Age(Kind, &'static str, u64),
    Bind(&'static str, &'static str, u8, bool),
    Unbind(&'static str),
    Allocate(&'static str, u16),
    Unallocate(&'static str),
    /// All identities are given other numbers, beginning with that many unused ones.
    Renumber(u8),
    Unidentify,
    Node(&'static str, u8),
    RemoveNode(&'static str),
    Import(&'static str, &'static str, u16, u64),
    Unimport(&'static str, &'static str),
    Gateway(&'static str, u8),
    Elsewhere(&'static str),
    RemovePeer(&'static str),
    Roots(u8),
    Rename(&'static str),
}

const NAMES: [&str; 6] = ["a/x", "a/y", "a/z", "b/x", "b/y", "b/z"];

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(NAMES.to_vec())
}

fn labels() -> impl Strategy<Value = Value> {
    let pairs = (
        prop::option::of(prop::sample::select(vec!["x", "y"])),
        prop::option::of(Just("1")),
        prop::option::of(Just("7")),
    );
    pairs.prop_map(|(app, tier, hash)| {
        let mut out = json!({});
        for (key, value) in [("app", app), ("tier", tier), ("pod-template-hash", hash)] {
            if let Some(value) = value {
                out[key] = json!(value);
            }
        }
        out
    })
}

fn object(kind: &str, api: &str, name: &str, labels: Value, spec: Value) -> Value {
    let name = named(name);
    let metadata = json!({"namespace": name.namespace, "name": name.name, "labels": labels});
    json!({"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec})
}

fn workload() -> impl Strategy<Value = Value> {
    let ports = prop::sample::select(vec![
        json!([]),
        json!([{"name": "http", "port": 80}]),
        json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 80, "protocol": "UDP"}]),
        json!([{"name": "http", "port": 80, "protocol": "UDP"}]),
    ]);
    let proxy = prop::sample::select(vec!["none", "sidecar", "gateway"]);
    let account = prop::sample::select(vec!["default", "other"]);
    let address = prop::option::weighted(0.2, 1u8..4);
    (name(), labels(), account, ports, proxy, address, prop::bool::weighted(0.2)).prop_map(
        |(name, labels, account, ports, proxy, address, ends)| {
            let mut spec = json!({"serviceAccount": account, "ports": ports, "proxy": proxy});
            // A gateway can't be without.
            if let Some(last) = address.or((proxy == "gateway").then_some(2)) {
                spec["address"] = json!(format!("192.0.2.{last}"));
            }
            let mut out = object("Workload", "isthmus.io/v1", name, labels, spec);
            if ends {
                out["metadata"]["annotations"] = json!({"isthmus.io/drain": "true"});
            }
            out
        },
    )
}

fn service() -> impl Strategy<Value = Value> {
    let selector = prop::sample::select(vec![
        json!({}),
        json!({"app": "x"}),
        json!({"app": "y", "tier": "1"}),
        json!({"tier": "1"}),
    ]);
    let port = prop::sample::select(vec![
        json!({"port": 80, "targetPort": "http"}),
        json!({"port": 80, "appProtocol": "tcp"}),
        json!({"port": 53, "protocol": "UDP", "targetPort": "dns"}),
        json!({"port": 8080, "targetPort": 80}),
    ]);
    let export_to = prop::option::of(prop::sample::select(vec!["*", ".", "~", "a,b", "b"]));
    (name(), selector, port, export_to).prop_map(|(name, selector, mut port, export_to)| {
        port["name"] = json!("web");
        let mut out =
            object("Service", "v1", name, json!({}), json!({"selector": selector, "ports": [port]}));
        if let Some(text) = export_to {
            out["metadata"]["annotations"] = json!({crate::resource::EXPORT_TO_ANNOTATION: text});
            out["spec"]["publishNotReadyAddresses"] = json!(text == "b");
            if text == "~" {
                out["spec"]["clusterIP"] = json!("None");
            } else {
                out["spec"]["type"] = json!("NodePort");
            }
        }
        out
    })
}

fn slice() -> impl Strategy<Value = Value> {
    (name(), prop::sample::select(vec!["x", "y"]), prop::collection::vec((1u8..5, any::<bool>()), 0..3))
        .prop_map(|(name, service, endpoints)| {
            let name = named(name);
            let endpoints: Vec<Value> = endpoints
                .into_iter()
                .map(|(last, ready)| {
                    json!({"addresses": [format!("10.1.1.{last}")], "conditions": {"ready": ready, "serving": true,
                        "terminating": !ready}, "hostname": format!("h{last}")})
                })
                .collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": name.namespace, "name": name.name,
                    "labels": {"kubernetes.io/service-name": service}},
                "ports": [{"name": "web", "port": 80}], "endpoints": endpoints,
            })
        })
}

fn route() -> impl Strategy<Value = Value> {
    let parent = (prop::sample::select(vec!["x", "y"]), prop::option::of(Just(80)));
    let path = prop::sample::select(vec!["/", "/v1"]);
    (name(), prop::collection::vec(parent, 1..3), path).prop_map(|(name, parents, path)| {
        let parents: Vec<Value> = parents
            .into_iter()
            .map(|(service, port)| {
                let mut parent = json!({"group": "", "kind": "Service", "name": service});
                if let Some(port) = port {
                    parent["port"] = json!(port);
                }
                parent
            })
            .collect();
        let rule =
            json!({"matches": [{"path": {"value": path}}], "backendRefs": [{"name": "x", "port": 80}]});
        let spec = json!({"parentRefs": parents, "rules": [rule]});
        object("HTTPRoute", "gateway.networking.k8s.io/v1", name, json!({}), spec)
    })
}

fn sidecar() -> impl Strategy<Value = Value> {
    let name = prop_oneof![4 => name(), 1 => Just("istio-system/x"), 1 => Just("istio-system/y")];
    let hosts = prop::sample::select(vec!["./*", "*/*", "~/*", "b/x.b", "*/*.a"]);
    (name, labels(), any::<bool>(), hosts).prop_map(|(name, labels, selects, host)| {
        let mut spec = json!({"egress": [{"hosts": [host]}]});
        if selects && labels != json!({}) {
            spec["workloadSelector"] = json!({"labels": labels});
        }
        object("Sidecar", "networking.istio.io/v1", name, json!({}), spec)
    })
}

fn op() -> impl Strategy<Value = Op> {
    let peer = || prop::sample::select(vec!["east", "north"]);
    let node = || prop::sample::select(vec!["n1", "n2", "n3"]);
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let aged = prop::sample::select(vec![Kind::HttpRoute, Kind::Sidecar]);
    let any_name = prop_oneof![4 => name(), 1 => Just("istio-system/x")];
    let gone = prop_oneof![6 => name(), 1 => Just("istio-system/x"), 1 => Just("istio-system/y")];
    let policy = (name(), policy_spec())
        .prop_map(|(name, spec)| object("NetworkPolicy", "networking.k8s.io/v1", name, json!({}), spec));
    let export = name().prop_map(|name| {
        let mut export =
            object("ServiceExport", "multicluster.x-k8s.io/v1alpha1", name, json!({}), json!(null));
        export.as_object_mut().unwrap().remove("spec");
        export
    });
    let of_cilium = name().prop_flat_map(|name| {
        let (namespace, name) = name.split_once('/').unwrap();
        cilium_policy(namespace, name.to_owned())
    });
    let of_tiers = name().prop_flat_map(|name| cluster_policy(name.split_once('/').unwrap().1.to_owned()));
    let namespace = prop_oneof![a_namespace("a"), a_namespace("b")];
    let put = prop_oneof![4 => workload(), 3 => namespace, 4 => of_cilium, 3 => of_tiers, 3 => service(), 2 => slice(), 2 => route(), 4 => policy, 1 => export, 3 => sidecar()];
    prop_oneof![
        24 => put.prop_map(Op::Put),
        8 => (kind, gone).prop_map(|(kind, name)| Op::Delete(kind, name)),
        2 => (aged, any_name, 1u64..4).prop_map(|(kind, name, age)| Op::Age(kind, name, age)),
        6 => (name(), node(), 1u8..5, any::<bool>()).prop_map(|(w, n, a, r)| Op::Bind(w, n, a, r)),
        2 => name().prop_map(Op::Unbind),
        2 => (name(), 1u16..4).prop_map(|(name, port)| Op::Allocate(name, port)),
        1 => name().prop_map(Op::Unallocate),
        1 => (0u8..3).prop_map(Op::Renumber),
        1 => Just(Op::Unidentify),
        2 => (node(), 1u8..4).prop_map(|(name, last)| Op::Node(name, last)),
        1 => node().prop_map(Op::RemoveNode),
        3 => (peer(), name(), prop::sample::select(vec![80u16, 81]), 1u64..4)
            .prop_map(|(p, n, port, at)| Op::Import(p, n, port, at)),
        1 => (peer(), name()).prop_map(|(peer, name)| Op::Unimport(peer, name)),
        1 => (peer(), 1u8..4).prop_map(|(peer, last)| Op::Gateway(peer, last)),
        1 => peer().prop_map(Op::Elsewhere),
        1 => peer().prop_map(Op::RemovePeer),
        1 => (1u8..3).prop_map(Op::Roots),
        1 => prop::sample::select(vec!["mesh.local", "mesh.test"]).prop_map(Op::Rename),
    ]
}

fn run(cluster: &mut TestCluster, op: Op) {
    match op {
        Op::Put(value) => {
            // Some of what is drawn contradicts itself.
            let Ok(object) = Object::parse(&value) else { return };
            if let Object::Workload(workload) = &object {
                let key = crate::identity::IdentityKey::of(&cluster.cluster.trust_domain, workload);
                cluster.identities.number_for(&key).unwrap();
            }
            cluster.objects.insert(object.key(), Arc::new(object));
        }
        Op::Delete(kind, name) => {
            let name = named(name);
            // Namespaces have the names that others have before their own.
            let last = if kind == Kind::Namespace { &name.namespace } else { &name.name };
            drop(cluster.objects.remove(&ObjectKey { kind, name: kind.name(&name.namespace, last) }));
        }
        Op::Age(kind, name, age) => drop(cluster.created(kind, name, age)),
        Op::Bind(name, node, last, ready) => {
            cluster.bind(name, node, &format!("10.1.1.{last}"));
            Arc::make_mut(cluster.bindings.get_mut(&named(name)).unwrap()).ready = ready;
        }
        Op::Unbind(name) => drop(cluster.bindings.remove(&named(name))),
        Op::Allocate(name, port) => {
            let proxy_ports = BTreeMap::from([(80, 16_384 + port), (8080, 16_390 + port)]);
            let virtual_ip = Some(IpAddr::from([10, 101, 0, port as u8]));
            // A share for some, so that one that comes and goes is seen too.
            let share = crate::records::Overflow { percent: 10, failing: 3, callers: 4, since_unix_ms: 1 };
            let overflow = if port % 2 == 0 { BTreeMap::new() } else { BTreeMap::from([(80, share)]) };
            // Of two families for some.
            let second_ip = (port == 3).then(|| "fd00:2::3".parse().unwrap());
            let node_port = NodePort { port: 80, protocol: Protocol::Tcp, node_port: 30_000 + port };
            let allocation = crate::records::ServiceAllocation {
                virtual_ip,
                second_ip,
                node_ports: vec![node_port],
                health_check_port: None,
                proxy_ports,
                overflow,
            };
            cluster.allocations.insert(named(name), Arc::new(allocation));
        }
        Op::Unallocate(name) => drop(cluster.allocations.remove(&named(name))),
        Op::Renumber(skip) => {
            let mut keys: Vec<_> = cluster.identities.iter().map(|(_, key)| key.clone()).collect();
            let mut table = IdentityTable::default();
            for i in 0..skip {
                let mut other = keys.first().cloned().unwrap_or_else(|| crate::identity::IdentityKey {
                    trust_domain: cluster.cluster.trust_domain.clone(),
                    namespace: "c".to_owned(),
                    service_account: "c".to_owned(),
                    labels: BTreeMap::new(),
                });
                other.service_account = format!("unused{i}");
                table.number_for(&other).unwrap();
            }
            let middle = keys.len() / 2;
            keys.rotate_left(middle);
            for key in &keys {
                table.number_for(key).unwrap();
            }
            cluster.identities = table;
        }
        Op::Unidentify => cluster.identities = IdentityTable::default(),
        Op::Node(name, last) => {
            let record = NodeRecord {
                name: name.to_owned(),
                address: [192, 0, 2, last].into(),
                address6: None,
                pod_cidr: "10.1.1.0/24".parse().unwrap(),
                registration: 1,
                facts: NodeFacts {
                    zone: ["", "a", "b"][usize::from(last) % 3].to_owned(),
                    ..Default::default()
                },
            };
            cluster.nodes.insert(name.to_owned(), Arc::new(record));
        }
        Op::RemoveNode(name) => drop(cluster.nodes.remove(name)),
        Op::Import(peer, name, port, at) => drop(cluster.import(peer, name, port, at)),
        Op::Unimport(peer, name) => {
            if let Some(peer) = cluster.peers.get_mut(peer) {
                Arc::make_mut(peer).imports.remove(&named(name));
            }
        }
        Op::Gateway(peer, last) => {
            if let Some(peer) = cluster.peers.get_mut(peer) {
                Arc::make_mut(peer).gateways = vec![format!("198.51.100.{last}:15443")];
            }
        }
        Op::Elsewhere(peer) => {
            if let Some(peer) = cluster.peers.get_mut(peer) {
                Arc::make_mut(peer).mesh_domain = "other.mesh".to_owned();
            }
        }
        Op::RemovePeer(peer) => drop(cluster.peers.remove(peer)),
        Op::Roots(n) => Arc::make_mut(&mut cluster.cluster).roots = vec![vec![n]],
        Op::Rename(domain) => Arc::make_mut(&mut cluster.cluster).mesh_domain = domain.to_owned(),
    }
}

/// Not by the map's own comparison, which relies on what is shared.
fn plain<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>) -> BTreeMap<K, V> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn plain_changes<K: Ord + Clone, V: PartialEq + Clone>(old: &OrdMap<K, V>, new: &OrdMap<K, V>) -> Changes<K> {
    let (old, new) = (plain(old), plain(new));
    Changes {
        changed: new.iter().filter(|(k, v)| old.get(k) != Some(v)).map(|(k, _)| k.clone()).collect(),
        removed: old.keys().filter(|k| !new.contains_key(k)).cloned().collect(),
    }
}

fn assert_same(ours: &MeshModel, reference: &MeshModel) {
    assert_eq!(ours.revision, reference.revision);
    assert_eq!(ours.cluster, reference.cluster);
    assert_eq!(plain(&ours.nodes), plain(&reference.nodes));
    assert_eq!(plain(&ours.policy_classes), plain(&reference.policy_classes));
    assert_eq!(ours.host_classes, reference.host_classes);
    assert_eq!(plain(&ours.workloads), plain(&reference.workloads));
    assert_eq!(plain(&ours.services), plain(&reference.services));
    assert_eq!(plain(&ours.peers), plain(&reference.peers));
    assert_eq!(plain(&ours.egress_scopes), plain(&reference.egress_scopes));
    assert_index(&ours.index, reference);
}

/// What the index must say, by looking at everything.
fn assert_index(index: &ModelIndex, model: &MeshModel) {
    let nodes: BTreeSet<&str> = ["", "n1", "n2", "n3"].into();
    for node in nodes {
        let on_node = model.workloads.values().filter(|w| w.binding.as_ref().is_some_and(|b| b.node == node));
        assert!(index.on_node(node).eq(on_node.map(|w| &w.name)), "{node}");
    }
    for last in 0..9 {
        for ip in [[10, 1, 1, last], [192, 0, 2, last]].map(IpAddr::from) {
            let there = |w: &&Arc<super::MeshWorkload>| w.binding.iter().any(|b| b.addresses.contains(&ip));
            assert!(index.at(ip).eq(model.workloads.values().filter(there).map(|w| &w.name)), "{ip}");
        }
    }
    for name in NAMES.map(named) {
        let mut serves = BTreeSet::new();
        for service in model.services.values() {
            for port in &service.ports {
                for endpoint in port.endpoints.iter().filter(|e| e.workload.as_ref() == Some(&name)) {
                    serves.insert((endpoint.address.port(), service.name.clone(), port.port, port.protocol));
                }
            }
        }
        let said = index.served_by(&name).iter();
        assert!(said.map(|s| (s.target, s.service.clone(), s.port, s.protocol)).eq(serves), "{name}");
    }
    let gateways = model.workloads.values().filter(|w| w.proxy == crate::resource::ProxyMode::Gateway);
    assert!(index.gateways().eq(gateways.map(|w| &w.name)));
    assert!(index.exported().eq(model.services.values().filter(|s| s.exported).map(|s| &s.name)));
    for namespace in ["a", "b", "c"] {
        let only =
            |s: &&Arc<super::MeshService>| !s.visibility.is_everywhere() && s.visibility.includes(namespace);
        assert!(index.restricted_to(namespace).eq(model.services.values().filter(only).map(|s| &s.name)));
    }
    for name in NAMES.map(named) {
        let leads = |s: &&Arc<super::MeshService>| s.backends().any(|backend| *backend == name);
        assert!(index.routed_to(&name).eq(model.services.values().filter(leads).map(|s| &s.name)), "{name}");
    }
}

fn follow(batches: Vec<Vec<Op>>, mask: u32) {
    let numbering = Numbering { mask };
    let mut cluster = TestCluster::west();
    let mut compiler = Compiler::numbered(numbering);
    let (mut last, first) = compiler.compile(cluster.input());
    assert!(first.cluster);
    for (step, batch) in batches.into_iter().enumerate() {
        for op in batch {
            run(&mut cluster, op);
        }
        let mut input = cluster.input();
        input.revision = step as u64;
        let reference = compile_numbered(&input, numbering);
        let (model, changes) = compiler.compile(input);
        assert_same(&model, &reference);
        let expected = ModelDiff {
            cluster: last.cluster != model.cluster,
            nodes: plain_changes(&last.nodes, &model.nodes),
            workloads: plain_changes(&last.workloads, &model.workloads),
            services: plain_changes(&last.services, &model.services),
            host_classes: plain_changes(&last.host_classes, &model.host_classes),
            policy_classes: plain_changes(&last.policy_classes, &model.policy_classes),
            peers: plain_changes(&last.peers, &model.peers),
            egress_scopes: plain_changes(&last.egress_scopes, &model.egress_scopes),
        };
        assert_eq!(changes, expected);
        assert_eq!(super::diff(&last, &model), expected);
        last = model;
    }
}

fn history() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 1..5), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_compiled_after_a_change_is_what_would_be_compiled_anew(batches in history()) {
        follow(batches, u32::MAX);
    }

    #[test]
    fn class_numbers_that_collide_depend_on_the_state_alone(batches in history()) {
        follow(batches, 0x1f);
    }
}

#[test]
fn what_a_change_does_not_concern_is_shared_with_the_model_before() {
    let mut cluster = TestCluster::west();
    for name in NAMES {
        let app = name.replace('/', "-");
        cluster.workload(name, &app, "sidecar", json!([{"name": "http", "port": 80}]));
        cluster.bind(name, "n1", &format!("10.1.1.{}", app.len() + usize::from(app.as_bytes()[2])));
        cluster.service(name, &app, 80, json!("http"));
    }
    let mut compiler = Compiler::default();
    let (before, _) = compiler.compile(cluster.input());
    Arc::make_mut(cluster.bindings.get_mut(&named("a/x")).unwrap()).ready = false;
    let (after, changes) = compiler.compile(cluster.input());
    assert_eq!(
        (changes.workloads.changed, changes.services.changed),
        (vec![named("a/x")], vec![named("a/x")])
    );
    assert!(changes.policy_classes.is_empty() && changes.nodes.is_empty());
    let others = NAMES.map(named).into_iter().filter(|name| *name != named("a/x"));
    for name in others {
        assert!(Arc::ptr_eq(&before.services[&name], &after.services[&name]));
        assert!(Arc::ptr_eq(&before.workloads[&name], &after.workloads[&name]));
    }
}
