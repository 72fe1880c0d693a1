//! The RBAC filters that a sidecar is sent, against the oracle: generated workloads, policies and callers. What the
//! filters say is asked of our proxy, which reads them from the wire.

#![allow(clippy::unwrap_used)]

#[path = "common/world.rs"]
mod world;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use control_plane::{
    views::ModelViews,
    xds::{Client, ProxyKind, Views, kinds},
};
use mesh_model::{
    compile::Action,
    identity::TrustDomain,
    policy::{self, Flow, FlowPeer, verdict},
    resource::{NamespacedName, Protocol},
};
use mesh_store::Command;
use proptest::prelude::*;
use proxy::policy::{Connection, Facts, Rbac, decide};
use serde_json::{Value, json};
use world::{World, west};
use xds_proto::{Message, envoy::config::listener::v3::Listener};

/// Of the generated workloads.
const PORTS: [u16; 2] = [80, 8080];
const FOREIGN: &str = "spiffe://east.example/ns/shop/sa/web";
/// The first is among the pods', and nobody's.
const NOBODY: [&str; 4] = ["10.1.250.1", "203.0.113.1", "203.0.113.9", "192.0.2.200"];

#[derive(Debug, Clone)]
struct Place {
    namespace: &'static str,
    labels: Value,
    account: &'static str,
    proxy: &'static str,
    /// The object says where it is, and no node does.
    fixed: bool,
    /// None: its node has not reported it.
    address: Option<IpAddr>,
}

impl Place {
    fn name(&self, number: usize) -> NamespacedName {
        NamespacedName::new(self.namespace, format!("w{number}"))
    }

    fn id(&self) -> String {
        format!("spiffe://west.example/ns/{}/sa/{}", self.namespace, self.account)
    }

    fn object(&self, number: usize) -> Value {
        let name = self.name(number);
        let mut spec = json!({"serviceAccount": self.account, "proxy": self.proxy, "ports": [
            {"name": "http", "port": PORTS[number % 2]}, {"name": "more", "port": PORTS[(number + 1) % 2]},
        ]});
        if self.fixed {
            spec["address"] = json!(self.address);
        }
        json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": name.namespace, "name": name.name, "labels": self.labels},
            "spec": spec,
        })
    }
}

/// A policy that is described so is audited.
const AUDITED: &str = "audited";

struct Mesh {
    world: World,
    places: Vec<Place>,
}

impl Mesh {
    fn new(places: Vec<Place>, policies: &[(&str, Value)]) -> Self {
        let mut world = World::of(west());
        world.run(Command::RegisterNode {
            name: "n1".to_owned(),
            address: "192.0.2.1".parse().unwrap(),
            address6: None,
        });
        for namespace in ["a", "b"] {
            world.put(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": "all", "namespace": namespace},
                "spec": {"selector": {"served": "yes"}, "ports": [
                    {"name": "a", "port": 80, "appProtocol": "http"},
                    {"name": "b", "port": 8080, "appProtocol": "tcp"},
                ]},
            }));
        }
        for (number, place) in places.iter().enumerate() {
            world.put(place.object(number));
            if let Some(address) = place.address.filter(|_| !place.fixed) {
                world.bind(place.name(number), "n1", address);
            }
        }
        for (number, (namespace, spec)) in policies.iter().enumerate() {
            let cilium = spec.get("endpointSelector").is_some();
            let tiered = spec.get("tier").is_some();
            let (api, kind) = match (cilium, *namespace) {
                _ if tiered => ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
                (false, _) => ("networking.k8s.io/v1", "NetworkPolicy"),
                (true, "") => ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
                (true, _) => ("cilium.io/v2", "CiliumNetworkPolicy"),
            };
            let mut object = json!({
                "apiVersion": api, "kind": kind, "metadata": {"name": format!("p{number}")}, "spec": spec,
            });
            if !namespace.is_empty() {
                object["metadata"]["namespace"] = json!(namespace);
            }
            if spec["description"] == AUDITED {
                object["metadata"]["annotations"] = json!({"isthmus.io/audit": "true"});
            }
            world.put(object);
        }
        Self { world, places }
    }

    /// Filters by workload and port. None: the port has none.
    fn filters(&self) -> Vec<(usize, u16, IpAddr, Vec<Rbac>)> {
        let domain = TrustDomain::parse("west.example").unwrap();
        let views = ModelViews::new(domain, Vec::new(), &self.world.state);
        let mut found = Vec::new();
        for (number, place) in self.places.iter().enumerate() {
            let workload = place.name(number).to_string();
            let set = views.resources(&Client::Proxy { workload, kind: ProxyKind::Envoy });
            for port in PORTS {
                let Some(resource) = set.get(kinds::LISTENER, &format!("inbound|{port}")) else { continue };
                let wire = Listener::decode(resource.any.value.as_slice()).unwrap();
                let listener = proxy::config::listener(wire).unwrap();
                let at = listener.addresses[0].ip();
                found.push((number, port, at, listener.chains[0].access.clone()));
            }
        }
        found
    }

    fn oracle(&self, source: FlowPeer, to: usize, port: u16) -> (Action, Vec<String>) {
        let state = &self.world.state;
        let world = policy::World {
            objects: &state.objects,
            bindings: &state.bindings,
            nodes: &state.nodes,
            cluster: state.cluster.as_deref().unwrap(),
        };
        let destination = FlowPeer::Workload(self.places[to].name(to));
        let flow = Flow { source, destination, protocol: Protocol::Tcp.into(), port };
        let ingress = verdict(world, &flow).ingress;
        (ingress.action, ingress.provenance)
    }

    fn allows(&self, source: FlowPeer, to: usize, port: u16) -> bool {
        self.oracle(source, to, port).0 == Action::Allow
    }

    fn workload(&self, number: usize) -> FlowPeer {
        FlowPeer::Workload(self.places[number].name(number))
    }
}

fn permitted(access: &[Rbac], from: IpAddr, id: &str, at: SocketAddr) -> bool {
    let connection = Connection {
        local: at,
        remote: SocketAddr::new(from, 40_000),
        direct: SocketAddr::new(from, 40_000),
        peer: Some(id.to_owned()),
        server_name: None,
        behalf: Default::default(),
    };
    decide(access, Facts::of(&connection)).denied.is_none()
}

fn labels() -> impl Strategy<Value = Value> {
    (prop::option::of(prop::sample::select(vec!["x", "y"])), prop::option::of(Just("1"))).prop_map(
        |(app, tier)| {
            let mut out = json!({"served": "yes"});
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

fn places(shared_addresses: bool) -> impl Strategy<Value = Vec<Place>> {
    let place = (
        prop::sample::select(vec!["a", "b"]),
        labels(),
        prop::sample::select(vec!["one", "two"]),
        prop::sample::select(vec!["sidecar", "sidecar", "none", "gateway"]),
        any::<bool>(),
        0..4u8,
    );
    prop::collection::vec(place, 2..7).prop_map(move |all| {
        let place = |(number, (namespace, labels, account, proxy, reported, host)): (usize, _)| {
            let host: u8 = if shared_addresses { host } else { number as u8 * 4 };
            // A pod has its address alone; what is not in the pods' network may share one.
            let fixed = proxy == "gateway" || host % 3 == 2;
            let address =
                if fixed { format!("192.0.2.{}", host + 10) } else { format!("10.1.0.{}", number + 5) };
            let address = Some(address.parse().unwrap()).filter(|_| fixed || reported);
            Place { namespace, labels, account, proxy, fixed, address }
        };
        all.into_iter().enumerate().map(place).collect()
    })
}

fn policies() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let selector = || {
        prop_oneof![
            2 => Just(json!({})),
            2 => prop::sample::select(vec!["x", "y"]).prop_map(|app| json!({"matchLabels": {"app": app}})),
            1 => Just(json!({"matchLabels": {"tier": "1"}})),
            1 => Just(json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["y"]}]})),
        ]
    };
    let namespaces = || {
        prop_oneof![
            Just(json!({})),
            prop::sample::select(vec!["a", "b"])
                .prop_map(|n| json!({"matchLabels": {"kubernetes.io/metadata.name": n}})),
        ]
    };
    let peer = prop_oneof![
        3 => selector().prop_map(|s| json!({"podSelector": s})),
        3 => (namespaces(), selector()).prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
        1 => Just(json!({"ipBlock": {"cidr": "0.0.0.0/0"}})),
        1 => Just(json!({"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.8/29"]}})),
        1 => Just(json!({"ipBlock": {"cidr": "192.0.2.0/24"}})),
    ];
    let port = prop_oneof![
        Just(json!({})),
        Just(json!({"port": 80})),
        Just(json!({"port": "http"})),
        Just(json!({"port": 79, "endPort": 81})),
        Just(json!({"port": 1, "endPort": 65535})),
        Just(json!({"port": 80, "protocol": "UDP"})),
    ];
    let rule = (prop::collection::vec(peer, 0..3), prop::collection::vec(port, 0..3))
        .prop_map(|(from, ports)| json!({"from": from, "ports": ports}));
    let types =
        prop::sample::select(vec![json!(["Ingress"]), json!(["Ingress", "Egress"]), json!(["Egress"])]);
    let spec =
        (selector(), types, prop::collection::vec(rule, 0..3)).prop_map(|(subject, types, mut ingress)| {
            if types == json!(["Egress"]) {
                ingress.clear();
            }
            json!({"podSelector": subject, "policyTypes": types, "ingress": ingress})
        });
    prop::collection::vec((prop::sample::select(vec!["a", "b"]), spec), 0..4)
}

/// Cilium's, of a namespace or of the whole cluster (the empty one), with denials and without a default one.
fn cilium_policies() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let selector = || {
        prop_oneof![
            1 => Just(json!({})),
            3 => prop::sample::select(vec!["x", "y"]).prop_map(|app| json!({"matchLabels": {"app": app}})),
            1 => Just(json!({"matchExpressions": [{"key": "k8s:tier", "operator": "Exists"}]})),
            1 => Just(json!({"matchLabels": {"io.kubernetes.pod.namespace": "a"}})),
        ]
    };
    let peers = move || {
        prop_oneof![
            1 => Just(json!({})),
            5 => prop::collection::vec(selector(), 1..3).prop_map(|list| json!({"fromEndpoints": list})),
            2 => prop::sample::select(vec![
                "all", "world", "world-ipv4", "remote-node", "cluster", "mesh", "host", "health", "ingress",
            ]).prop_map(|e| json!({"fromEntities": [e]})),
            1 => Just(json!({"fromCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.8/29"]}]})),
            1 => Just(json!({"fromCIDR": ["192.0.2.0/24"]})),
        ]
    };
    let ports = prop_oneof![
        2 => Just(json!([])),
        1 => Just(json!([{"ports": [{"port": "80", "protocol": "ANY"}]}])),
        1 => Just(json!([{"ports": [{"port": "http", "protocol": "TCP"}]}])),
    ];
    let entries = move || {
        let entry = (peers(), ports.clone()).prop_map(|(mut entry, ports)| {
            entry["toPorts"] = ports;
            entry
        });
        prop::collection::vec(entry, 0..3)
    };
    let subject = prop_oneof![Just(json!({})), Just(json!({"matchLabels": {"app": "x"}}))];
    let said = prop_oneof![2 => Just(json!({})), 1 => Just(json!({"ingress": false}))];
    let words = prop_oneof![4 => Just(""), 1 => Just(AUDITED)];
    let spec =
        (subject, entries(), entries(), said, words).prop_map(|(subject, allow, deny, said, words)| {
            json!({"endpointSelector": subject, "ingress": allow, "ingressDeny": deny, "egress": [{}],
            "enableDefaultDeny": said, "description": words})
        });
    prop::collection::vec((prop::sample::select(vec!["a", "b", ""]), spec), 1..4)
}

/// Tiers, and a policy of Cilium's between them.
fn tiers() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let pods = || {
        prop_oneof![
            1 => Just(json!({"namespaces": {}})),
            3 => prop::sample::select(vec!["x", "y"]).prop_map(|app| {
                json!({"pods": {"podSelector": {"matchLabels": {"app": app}}}})
            }),
            1 => Just(json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}})),
        ]
    };
    let ports = prop_oneof![
        3 => Just(json!(null)),
        1 => Just(json!([{"tcp": {"destinationPort": {"number": 80}}}])),
        1 => Just(json!([{"destinationNamedPort": "http"}])),
    ];
    let rule =
        (prop::sample::select(vec!["Accept", "Deny", "Pass"]), prop::collection::vec(pods(), 1..3), ports)
            .prop_map(
                |(action, from, protocols)| json!({"action": action, "from": from, "protocols": protocols}),
            );
    let rules = prop::collection::vec(rule, 1..4);
    let spec = (prop::sample::select(vec!["Admin", "Baseline"]), 0..3, rules).prop_map(|(tier, priority, ingress)| {
        json!({"tier": tier, "priority": priority, "subject": {"namespaces": {}}, "ingress": ingress})
    });
    let spec = spec.prop_map(|spec| ("", spec));
    (prop::collection::vec(spec, 1..4), cilium_policies()).prop_map(|(mut tiers, mut others)| {
        others.truncate(2);
        tiers.append(&mut others);
        tiers
    })
}

/// What everybody is told who connects as who they are.
fn honest(mesh: &Mesh) -> Result<(), TestCaseError> {
    for (to, port, at, access) in mesh.filters() {
        let at = SocketAddr::new(at, port);
        for (from, place) in mesh.places.iter().enumerate() {
            let Some(address) = place.address else { continue };
            let (id, who) = match place.proxy {
                // It passes on what comes from another cluster.
                "gateway" => (FOREIGN.to_owned(), "by way of"),
                _ => (place.id(), "as"),
            };
            let expected = mesh.allows(mesh.workload(from), to, port);
            prop_assert_eq!(
                permitted(&access, address, &id, at),
                expected,
                "{} {:?} to {:?} port {} through {:#?}",
                who,
                place,
                &mesh.places[to],
                port,
                access
            );
        }
        for outside in NOBODY {
            let ip = outside.parse().unwrap();
            let expected = mesh.allows(FlowPeer::Address(ip), to, port);
            prop_assert_eq!(permitted(&access, ip, FOREIGN, at), expected, "{} to {:?}", ip, at);
        }
    }
    Ok(())
}

/// A certificate that doesn't go with its address, addresses that several workloads have: what is admitted is
/// admitted by the oracle for the workload whose certificate it is, and where that tells one workload of an account
/// from another, at that address.
fn never_wider(mesh: &Mesh) -> Result<(), TestCaseError> {
    let (addresses, ids) = anything(mesh);
    for (to, port, at, access) in mesh.filters() {
        let at = SocketAddr::new(at, port);
        for address in &addresses {
            for id in &ids {
                if !permitted(&access, *address, id, at) {
                    continue;
                }
                let of_account: Vec<usize> =
                    (0..mesh.places.len()).filter(|n| mesh.places[*n].id() == *id).collect();
                if of_account.is_empty() {
                    prop_assert!(mesh.allows(FlowPeer::Address(*address), to, port), "{} at {}", id, address);
                    continue;
                }
                let verdicts = |numbers: &[usize]| -> Vec<bool> {
                    numbers.iter().map(|from| mesh.allows(mesh.workload(*from), to, port)).collect()
                };
                if verdicts(&of_account).into_iter().all(|allowed| allowed) {
                    continue;
                }
                let here: Vec<usize> =
                    of_account.into_iter().filter(|n| mesh.places[*n].address == Some(*address)).collect();
                let verdicts = verdicts(&here);
                prop_assert!(
                    !verdicts.is_empty() && verdicts.into_iter().all(|allowed| allowed),
                    "{} at {} to {:?} port {} among {:#?} through {:#?}",
                    id,
                    address,
                    mesh.places[to].name(to),
                    port,
                    mesh.places,
                    access
                );
            }
        }
    }
    Ok(())
}

/// Whoever a connection could come from, with whatever certificate.
fn anything(mesh: &Mesh) -> (BTreeSet<IpAddr>, BTreeSet<String>) {
    let addresses = mesh.places.iter().filter_map(|place| place.address);
    let ids = mesh.places.iter().map(Place::id).chain([FOREIGN.to_owned()]);
    (addresses.chain(NOBODY.map(|ip| ip.parse().unwrap())).collect(), ids.collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_decides_every_honest_connection_as_the_oracle_does(
        places in places(false), policies in policies(),
    ) {
        let mesh = Mesh::new(places, &policies);
        for (to, port, _, access) in mesh.filters() {
            prop_assert_eq!(
                access.is_empty(),
                mesh.oracle(FlowPeer::Address("203.0.113.1".parse().unwrap()), to, port).1.is_empty(),
                "a port has a filter if and only if a policy has to do with its ingress"
            );
        }
        honest(&mesh)?;
    }

    #[test]
    fn no_filter_is_wider_than_the_oracle_whoever_connects_from_wherever(
        places in places(true), policies in policies(),
    ) {
        never_wider(&Mesh::new(places, &policies))?;
    }

    #[test]
    fn denials_of_ciliums_policies_hold_for_whom_they_mean_and_for_nobody_else(
        places in places(false), policies in cilium_policies(),
    ) {
        honest(&Mesh::new(places, &policies))?;
    }

    #[test]
    fn no_filter_of_ciliums_policies_is_wider_than_the_oracle(
        places in places(true), policies in cilium_policies(),
    ) {
        never_wider(&Mesh::new(places, &policies))?;
    }

    #[test]
    fn tiers_hold_for_whom_they_mean(places in places(false), policies in tiers()) {
        honest(&Mesh::new(places, &policies))?;
    }

    #[test]
    fn no_filter_of_tiers_is_wider_than_the_oracle(places in places(true), policies in tiers()) {
        never_wider(&Mesh::new(places, &policies))?;
    }
}

fn place(labels: Value, account: &'static str, proxy: &'static str, address: &str) -> Place {
    let mut labels = labels;
    labels["served"] = json!("yes");
    let fixed = proxy == "gateway";
    Place { namespace: "a", labels, account, proxy, fixed, address: Some(address.parse().unwrap()) }
}

#[test]
fn a_policy_says_in_the_filter_which_rule_it_was() {
    let places = vec![
        place(json!({"app": "pay"}), "pay", "sidecar", "10.1.0.5"),
        place(json!({"app": "web"}), "web", "none", "10.1.0.6"),
    ];
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "pay"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 80}]}],
    });
    let mesh = Mesh::new(places, &[("a", spec)]);
    let filters = mesh.filters();
    let names = |port: u16| -> Vec<String> {
        let (.., access) = filters.iter().find(|(to, p, ..)| (*to, *p) == (0, port)).unwrap();
        assert_eq!(access.len(), 1);
        assert_eq!(&*access[0].name, "networkpolicy/a/p0#default-deny-ingress");
        access[0].rules.as_ref().unwrap().policies.iter().map(|policy| policy.name.to_string()).collect()
    };
    assert_eq!(names(80), ["networkpolicy/a/p0#ingress[0]", "workload/a/w0#itself"]);
    assert_eq!(names(8080), ["workload/a/w0#itself"], "a rule stands only where it can match");
}

#[test]
fn a_gateway_lets_in_whom_it_brings_from_another_cluster_and_nobody_of_this_one() {
    let places = vec![
        place(json!({"app": "pay"}), "pay", "sidecar", "10.1.0.5"),
        place(json!({"app": "gateway"}), "gateway", "gateway", "192.0.2.9"),
        place(json!({"app": "web"}), "web", "none", "10.1.0.6"),
    ];
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "pay"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "gateway"}}}]}],
    });
    let mesh = Mesh::new(places, &[("a", spec)]);
    let filters = mesh.filters();
    let (_, port, at, access) = &filters[0];
    let from = |address: &str, id: &str| {
        permitted(access, address.parse().unwrap(), id, SocketAddr::new(*at, *port))
    };
    assert!(from("192.0.2.9", FOREIGN));
    assert!(!from("192.0.2.9", &mesh.places[2].id()), "the way round does not help web");
    assert!(!from("10.1.0.6", &mesh.places[2].id()));
    assert!(!from("203.0.113.1", FOREIGN));
}
