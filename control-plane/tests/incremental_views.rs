//! Views kept up to date by what changed are those that would be made anew, whatever changes in whatever order.

#![allow(clippy::unwrap_used)]

#[path = "common/world.rs"]
mod world;

use std::{collections::BTreeMap, sync::Arc};

use control_plane::{
    views::ModelViews,
    xds::{Client, ProxyKind, ResourceSet, TypeResources, Views, kinds},
};
use mesh_model::{
    identity::{SpiffeId, TrustDomain},
    policy::NODE_PROXY,
    records::{ImportedPort, ImportedService, PeerRecord, WorkloadBinding},
    resource::{AppProtocol, EXPORT_TO_ANNOTATION, Kind, NamespacedName, Object, ObjectKey, Protocol},
};
use mesh_store::Command;
use proptest::prelude::*;
use serde_json::{Value, json};
use world::{World, west};

const WORKLOADS: usize = 5;
const SERVICES: usize = 3;

fn name(prefix: &str, number: usize) -> String {
    format!("{prefix}{number}")
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "shop"})
}

fn workload(number: usize, variant: usize) -> Value {
    let proxy = ["sidecar", "none", "sidecar"][variant % 3];
    json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload", "metadata": {
            "name": name("w", number), "namespace": home(number),
            "labels": {"app": name("s", (number + variant / 3) % SERVICES)},
        },
        "spec": {"serviceAccount": name("a", number % 2), "proxy": proxy, "ports": [{"port": 8080}, {"port": 8081}]},
    })
}

/// A gateway that policies may select, at one of two addresses.
fn gateway(variant: usize) -> Value {
    let address = format!("192.0.2.{}", 1 + variant % 2);
    json!({
        "apiVersion": "isthmus.io/v1", "kind": "Workload", "metadata": {
            "name": "gateway", "namespace": "shop", "labels": {"app": name("s", variant / 2)},
        },
        "spec": {
            "serviceAccount": name("a", 0), "proxy": "gateway", "address": address, "ports": [{"port": 15443}],
        },
    })
}

/// Services and workloads are in `shop`, but for the last workload.
fn home(number: usize) -> &'static str {
    if number == WORKLOADS - 1 { "bank" } else { "shop" }
}

fn service(number: usize, variant: usize) -> Value {
    let protocol = ["http", "tcp", "grpc"][variant % 3];
    let ports = [
        json!({"name": "a", "port": 80, "targetPort": 8080, "appProtocol": protocol}),
        json!({"name": "b", "port": 81, "targetPort": 8081, "appProtocol": "http"}),
    ];
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": meta(&name("s", number)),
        "spec": {"selector": {"app": name("s", number)}, "ports": ports[..1 + variant / 3 % 2]},
    })
}

/// The same service, visible to some.
fn service_for(number: usize, variant: usize, export_to: &str) -> Value {
    let mut service = service(number, variant);
    service["metadata"]["annotations"] = json!({EXPORT_TO_ANNOTATION: export_to});
    service
}

const SIDECARS: [&str; 4] = ["shop/default", "shop/selected", "bank/default", "istio-system/default"];

fn sidecar(at: usize, variant: usize) -> Value {
    let name = NamespacedName::parse(SIDECARS[at]).unwrap();
    let hosts = [
        json!(["./*"]),
        json!(["*/*"]),
        json!(["~/*"]),
        json!(["shop/s0.shop"]),
        json!(["*/s1.shop", "./*"]),
    ];
    let mut spec = json!({"egress": [{"hosts": hosts[variant % hosts.len()]}]});
    if name.name == "selected" {
        spec["workloadSelector"] = json!({"labels": {"app": "s1"}});
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"name": name.name, "namespace": name.namespace}, "spec": spec,
    })
}

fn policy(number: usize, variant: usize) -> Value {
    let mut peers = vec![json!({"podSelector": {"matchLabels": {"app": name("s", variant % SERVICES)}}})];
    if variant >= SERVICES {
        peers.push(json!({"ipBlock": {"cidr": "192.0.2.0/24"}}));
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta(&name("p", number)),
        "spec": {
            "podSelector": {"matchLabels": {"app": name("s", number)}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": peers}],
        },
    })
}

/// Pods of one service send others requests of one kind only.
fn reads(number: usize, variant: usize) -> Value {
    let method = ["GET", "PUT"][variant % 2];
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": meta(&name("c", number)),
        "spec": {
            "endpointSelector": {"matchLabels": {"app": name("s", number)}},
            "egress": [{
                "toEndpoints": [{"matchLabels": {"app": name("s", variant % SERVICES)}}],
                "toPorts": [{
                    "ports": [{"port": "8080", "protocol": "TCP"}],
                    "rules": {"http": [{"method": method}]},
                }],
            }],
        },
    })
}

/// The same service, led to proxies of nodes.
fn service_led(number: usize, variant: usize) -> Value {
    let mut service = service(number, variant);
    let proxy = [NODE_PROXY, "other"][variant % 2];
    service["metadata"]["annotations"] = json!({"isthmus.io/redirect": proxy});
    service
}

fn route(number: usize, variant: usize) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": meta(&name("r", number)),
        "spec": {
            "parentRefs": [{"kind": "Service", "group": "", "name": name("s", number), "port": 80}],
            "rules": [{"backendRefs": [{"name": name("s", variant % SERVICES), "port": 80}]}],
        },
    })
}

fn export(number: usize) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
        "metadata": meta(&name("s", number)),
    })
}

fn put(object: Value) -> Command {
    Command::Apply { objects: vec![Object::parse(&object).unwrap()], dry_run: false }
}

fn delete(kind: Kind, name: String) -> Command {
    delete_in("shop", kind, name)
}

fn delete_in(namespace: &str, kind: Kind, name: String) -> Command {
    Command::Delete { keys: vec![ObjectKey { kind, name: NamespacedName::new(namespace, name) }] }
}

fn peer(number: usize) -> PeerRecord {
    PeerRecord {
        cluster: name("peer", number),
        trust_domain: TrustDomain::parse(&format!("peer{number}.example")).unwrap(),
        mesh_domain: "mesh.local".to_owned(),
        roots: vec![vec![number as u8]],
        trust: Default::default(),
        doors: vec!["192.0.2.65:9443".to_owned()],
        gateways: vec!["192.0.2.65:15443".to_owned()],
        origin_revision: 0,
        imports: Default::default(),
    }
}

fn import(service: usize, endpoints: u32, at: u64) -> Command {
    let imported = ImportedService {
        entries: Vec::new(),
        ports: vec![ImportedPort {
            name: "a".to_owned(),
            port: 80,
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
        }],
        spiffe_ids: vec![SpiffeId::workload(&TrustDomain::parse("peer0.example").unwrap(), "shop", "a0")],
        ready_endpoints: endpoints,
        exported_at_unix: 1,
        visibility: Default::default(),
    };
    Command::ImportServices {
        cluster: name("peer", 0),
        origin_revision: at,
        upserts: vec![(NamespacedName::new("shop", name("s", service)), imported)],
        removals: Vec::new(),
    }
}

fn command() -> impl Strategy<Value = Command> {
    // The first shares its node's address, and perhaps the gateway's.
    let address = |node: usize, host: usize| match host {
        0 => format!("192.0.2.{}", node + 1).parse().unwrap(),
        _ => format!("10.1.{node}.{}", host + 5).parse().unwrap(),
    };
    prop_oneof![
        3 => (0..WORKLOADS, 0..6usize).prop_map(|(n, v)| put(workload(n, v))),
        2 => (0..SERVICES, 0..6usize).prop_map(|(n, v)| put(service(n, v))),
        2 => (0..SERVICES, 0..6usize).prop_map(|(n, v)| put(policy(n, v))),
        1 => (0..SERVICES, 0..6usize).prop_map(|(n, v)| put(route(n, v))),
        3 => (0..SERVICES, 0..6usize).prop_map(|(n, v)| put(service_led(n, v))),
        3 => (0..SERVICES, 0..6usize).prop_map(|(n, v)| put(reads(n, v))),
        1 => (0..SERVICES).prop_map(|n| delete(Kind::CiliumNetworkPolicy, name("c", n))),
        1 => (0..SERVICES).prop_map(|n| put(export(n))),
        1 => (0..4usize).prop_map(|v| put(gateway(v))),
        1 => Just(delete(Kind::Workload, "gateway".to_owned())),
        6 => (0..WORKLOADS, 0..2usize, any::<bool>()).prop_map(move |(n, node, ready)| Command::BindWorkload {
            workload: NamespacedName::new(home(n), name("w", n)),
            binding: WorkloadBinding { node: name("n", node), addresses: vec![address(node, n)], ready },
        }),
        1 => (0..WORKLOADS, 0..2usize).prop_map(|(n, node)| Command::UnbindWorkload {
            workload: NamespacedName::new(home(n), name("w", n)),
            node: name("n", node),
        }),
        1 => (0..2usize).prop_map(|n| Command::RegisterNode {
            name: name("n", n),
            address: format!("192.0.2.{}", n + 1).parse().unwrap(), address6: None }),
        1 => (0..2usize).prop_map(|n| Command::RemoveNode { name: name("n", n) }),
        1 => (0..2usize).prop_map(|n| Command::PutPeer(peer(n))),
        1 => (0..2usize).prop_map(|n| Command::RemovePeer { cluster: name("peer", n) }),
        1 => (0..SERVICES, 0..3u32, 1..99u64).prop_map(|(n, ready, at)| import(n, ready, at)),
        1 => (0..WORKLOADS).prop_map(|n| delete_in(home(n), Kind::Workload, name("w", n))),
        3 => (0..SERVICES, 0..6usize, prop::sample::select(vec!["*", ".", "~", "bank", "bank,shop"]))
            .prop_map(|(n, v, to)| put(service_for(n, v, to))),
        4 => (0..SIDECARS.len(), 0..5usize).prop_map(|(at, v)| put(sidecar(at, v))),
        3 => (0..SIDECARS.len()).prop_map(|at| {
            let name = NamespacedName::parse(SIDECARS[at]).unwrap();
            delete_in(&name.namespace, Kind::Sidecar, name.name.clone())
        }),
        1 => (0..SERVICES).prop_map(|n| delete(Kind::Service, name("s", n))),
        1 => (0..SERVICES).prop_map(|n| delete(Kind::NetworkPolicy, name("p", n))),
        1 => (0..SERVICES).prop_map(|n| delete(Kind::HttpRoute, name("r", n))),
        1 => (0..SERVICES).prop_map(|n| delete(Kind::ServiceExport, name("s", n))),
    ]
}

fn clients() -> Vec<Client> {
    let proxies = (0..WORKLOADS).flat_map(|n| {
        [ProxyKind::Proxy, ProxyKind::Envoy]
            .map(|kind| Client::Proxy { workload: format!("{}/{}", home(n), name("w", n)), kind })
    });
    let grpc = [0, WORKLOADS - 1].map(|n| Client::Grpc { workload: format!("{}/{}", home(n), name("w", n)) });
    let agents = (0..2).map(|n| Client::Agent { node: name("n", n) });
    let peers = (0..2).map(|n| Client::Peer { cluster: name("peer", n) });
    let gateway = Client::Gateway { workload: "shop/gateway".to_owned() };
    let nodes = [(0, NODE_PROXY), (1, NODE_PROXY), (1, "other")];
    let nodes = nodes.map(|(n, proxy)| Client::NodeProxy { node: name("n", n), proxy: proxy.to_owned() });
    proxies.chain(nodes).chain(agents).chain(peers).chain([gateway]).chain(grpc).collect()
}

/// Names and contents; what there is by name only is marked.
fn contents(set: &ResourceSet) -> BTreeMap<(String, String), Vec<u8>> {
    let of_type = |(type_url, all): (&str, &TypeResources), mark: &str| {
        let type_url = format!("{mark}{type_url}");
        all.iter()
            .map(move |(name, resource)| ((type_url.clone(), name.to_string()), resource.any.value.clone()))
            .collect::<Vec<_>>()
    };
    let named = set.named_types().flat_map(|named| of_type(named, "named "));
    set.types().flat_map(|whole| of_type(whole, "")).chain(named).collect()
}

fn views_of(world: &World) -> ModelViews {
    ModelViews::new(west().trust_domain, Vec::new(), &world.state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_views_are_equal_to_whole_ones_and_shared_while_they_are(
        steps in prop::collection::vec((command(), 0..4usize), 1..50),
    ) {
        let mut world = World::of(west());
        for n in 0..2 {
            let address = format!("192.0.2.{}", n + 1).parse().unwrap();
            let _ = world.take(Command::RegisterNode { name: name("n", n), address, address6: None });
            let _ = world.take(Command::PutPeer(peer(n)));
        }
        (0..WORKLOADS).for_each(|n| drop(world.take(put(workload(n, 0)))));
        (0..SERVICES).for_each(|n| drop(world.take(put(service(n, 0)))));
        let views = views_of(&world);
        let clients = clients();
        let mut held: Vec<Arc<ResourceSet>> = clients.iter().map(|client| views.resources(client)).collect();
        let mut seen = vec![true; clients.len()];
        for (index, (command, turn)) in steps.into_iter().enumerate() {
            let _ = world.take(command);
            // Some revisions are never compiled.
            if turn == 3 {
                continue;
            }
            views.update(Arc::new(world.state.clone()));
            let whole = views_of(&world);
            for (number, client) in clients.iter().enumerate() {
                // Some clients miss some revisions.
                if (index + number) % 4 == turn {
                    seen[number] = false;
                    continue;
                }
                let (set, expected) = (views.resources(client), contents(&whole.resources(client)));
                prop_assert_eq!(contents(&set), expected.clone(), "{}", client);
                // Who has missed a change and its undoing has equal resources in another map.
                if seen[number] && expected == contents(&held[number]) {
                    let apart = |(type_url, all): &(&str, &TypeResources)| {
                        !held[number].of(type_url).is_some_and(|old| old.ptr_eq(all))
                    };
                    let apart: Vec<_> = set.types().filter(apart).map(|(type_url, _)| type_url).collect();
                    prop_assert_eq!(apart, Vec::<&str>::new(), "{} has other maps of equal resources at {}", client, index);
                }
                seen[number] = true;
                held[number] = set;
            }
        }
    }
}

#[test]
fn clients_that_are_told_of_the_same_services_share_one_map_and_everybody_the_resources() {
    let mut world = World::of(west());
    (0..WORKLOADS).for_each(|n| drop(world.take(put(workload(n, 0)))));
    (0..SERVICES).for_each(|n| drop(world.take(put(service(n, 0)))));
    let _ = world.take(put(sidecar(0, 3)));
    let views = views_of(&world);
    let view = |n: usize| {
        let workload = format!("{}/{}", home(n), name("w", n));
        views.resources(&Client::Proxy { workload, kind: ProxyKind::Proxy })
    };
    let (one, other, unscoped) = (view(0), view(1), view(WORKLOADS - 1));
    let endpoints = |set: &ResourceSet| set.of(kinds::ENDPOINT).unwrap().clone();
    let listed = "outbound|80|s0.shop";
    assert!(endpoints(&one).keys().map(|name| &**name).eq([listed]));
    assert_eq!(endpoints(&unscoped).len(), SERVICES);
    assert!(endpoints(&one).ptr_eq(&endpoints(&other)));
    assert!(
        endpoints(&unscoped).ptr_eq(one.named(kinds::ENDPOINT).unwrap()),
        "what is there by name is the same map"
    );
    assert!(Arc::ptr_eq(&endpoints(&one)[listed], &endpoints(&unscoped)[listed]), "encoded once");

    // A change of what is out of scope leaves everything as it was that is sent unasked.
    let _ = world.take(put(service(2, 1)));
    views.update(Arc::new(world.state.clone()));
    let workload = format!("shop/{}", name("w", 0));
    let now = views.resources(&Client::Proxy { workload, kind: ProxyKind::Proxy });
    assert!(now.shares_unasked(&one) && !now.shares_all(&one));
}
