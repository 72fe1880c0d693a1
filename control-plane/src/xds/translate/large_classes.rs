//! Policies of very many rules, from the objects by the wire to what the kernel of a node would say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ebpf_shared::{Direction, policy::Question};
use imbl::OrdMap;
use mesh_model::{
    compile::{Input, MeshModel, compile},
    identity::{IdentityKey, IdentityTable, TrustDomain},
    records::{ClusterInfo, WorkloadBinding},
    resource::{NamespacedName, Object},
};
use node_agent::{
    desired::{Desired, Dictionary, Inputs, Pod, PodAddresses, compute},
    kernel::verdict::Policy,
    names::Names,
    subscribe::Resources,
};
use serde_json::{Value, json};
use xds_client::{Resource, Update};
use xds_proto::to_any;

use super::agent;

const IFINDEX: u32 = 9;
const WORKLOADS: u32 = 10_000;

/// The mesh, and its callers by their numbers.
struct World {
    model: Arc<MeshModel>,
    identities: BTreeMap<u32, u32>,
}

fn world(policies: Vec<Value>) -> World {
    let trust_domain = TrustDomain::parse("west.example").unwrap();
    let (mut objects, mut bindings) = (OrdMap::new(), OrdMap::new());
    let (mut table, mut identities) = (IdentityTable::default(), BTreeMap::new());
    for n in 0..WORKLOADS {
        let object = Object::parse(&json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": "shop", "name": format!("w{n}"), "labels": {"app": format!("a{n}"), "half": format!("h{}", n % 2)}},
            "spec": {"serviceAccount": "default"},
        }));
        let object = object.unwrap();
        let Object::Workload(workload) = &object else { unreachable!() };
        let number = table.number_for(&IdentityKey::of(&trust_domain, workload)).unwrap();
        identities.insert(n, number);
        if n == 0 {
            let binding =
                WorkloadBinding { node: "n1".to_owned(), addresses: vec![[10, 1, 0, 2].into()], ready: true };
            bindings.insert(workload.meta.name.clone(), Arc::new(binding));
        }
        objects.insert(object.key(), Arc::new(object));
    }
    for policy in policies {
        let object = Object::parse(&policy).unwrap();
        objects.insert(object.key(), Arc::new(object));
    }
    let cluster = ClusterInfo {
        name: "west".to_owned(),
        trust_domain,
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().unwrap(),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/16".parse().unwrap(),
        roots: Vec::new(),
        trust: Default::default(),
    };
    let input = Input { objects, identities: table, bindings, ..Input::empty(Arc::new(cluster)) };
    World { model: Arc::new(compile(&input)), identities }
}

fn update<M: xds_proto::Name>(name: &str, message: &M) -> Update {
    Update {
        type_url: M::type_url(),
        added: vec![Resource { name: name.to_owned(), version: "1".into(), resource: to_any(message) }],
        removed: Vec::new(),
        nonce: "n".into(),
        system_version: "7".into(),
    }
}

/// What the agent of its node makes of the first workload's class, and how many bytes it was told.
fn kernel(world: &World) -> (Desired, usize) {
    let name = NamespacedName::new("shop", "w0");
    let workload = &world.model.workloads[&name];
    let class = &world.model.policy_classes[&workload.policy_class];
    assert_eq!(class.too_large(), None);
    let told = update(&class.id.to_string(), &agent::policy_class(class));
    let bytes = told.added[0].resource.value.len();
    let mut resources = Resources::default();
    resources.apply(&told).unwrap();
    resources.apply(&update("shop/w0", &agent::local_endpoint(workload, None))).unwrap();
    let node = PodAddresses { v4: Ipv4Addr::new(192, 0, 2, 1), v6: None };
    let addresses = PodAddresses { v4: Ipv4Addr::new(10, 1, 0, 2), v6: None };
    let pods = BTreeMap::from([(name, Pod { addresses, ifindex: IFINDEX, netns_cookie: 1 })]);
    let inputs = Inputs {
        resources: &resources,
        node,
        pods: &pods,
        gateways: &BTreeSet::<IpAddr>::new(),
        names: &Names::default(),
    };
    (compute(inputs, &Desired::default(), &mut Dictionary::default()), bytes)
}

fn admits(maps: &Desired, identity: u32, port: u16) -> bool {
    let policy =
        Policy { classes: maps.classes.clone(), rulesets: maps.rulesets.clone(), ..Policy::default() };
    let class = maps.endpoints[&IFINDEX].class;
    let question = Question { class, direction: Direction::Ingress, identity, protocol: 6, port };
    ebpf_shared::judge(&policy, &question).passes()
}

fn cilium(peers: Value) -> Value {
    let mut rule = json!({"toPorts": [{"ports": [
        {"port": "80", "protocol": "TCP"}, {"port": "443", "protocol": "TCP"}, {"port": "9000", "endPort": 9100, "protocol": "TCP"},
    ]}]});
    for (key, value) in peers.as_object().unwrap() {
        rule[key] = value.clone();
    }
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": {"namespace": "shop", "name": "wide"},
        "spec": {"endpointSelector": {}, "ingress": [rule]},
    })
}

#[test]
fn every_workload_of_a_mesh_of_ten_thousand_is_one_rule() {
    let world = world(vec![cilium(json!({"fromEntities": ["mesh"]}))]);
    let (maps, bytes) = kernel(&world);
    assert!(bytes < 1_000, "{bytes} bytes");
    let class = &maps.classes[&maps.endpoints[&IFINDEX].class];
    assert!(class.peers.len() < 4, "{} peers", class.peers.len());
    for identity in [world.identities[&0], world.identities[&9_999], 16_777_215] {
        assert!(
            admits(&maps, identity, 443) && admits(&maps, identity, 9050) && !admits(&maps, identity, 81)
        );
    }
    for other in [ebpf_shared::identity::WORLD, ebpf_shared::identity::UNMANAGED] {
        assert!(!admits(&maps, other, 443));
    }
}

#[test]
fn a_selector_of_many_workloads_comes_to_thousands_of_rules_and_every_one_is_in_the_kernel() {
    let selector = json!({"matchExpressions": [{"key": "half", "operator": "In", "values": ["h0", "h1"]}]});
    let mut policy = cilium(json!({"fromEndpoints": [selector]}));
    let denied = json!({"fromEndpoints": [{"matchLabels": {"app": "a77"}}]});
    policy["spec"]["ingressDeny"] = json!([denied]);
    let world = world(vec![policy]);
    let class =
        &world.model.policy_classes[&world.model.workloads[&NamespacedName::new("shop", "w0")].policy_class];
    assert!(class.rules.len() > 30_000, "{} rules", class.rules.len());
    let (maps, bytes) = kernel(&world);
    assert!(bytes < 120_000, "{bytes} bytes");
    for (n, identity) in &world.identities {
        assert_eq!(admits(&maps, *identity, 443), *n != 77, "w{n}");
        assert!(!admits(&maps, *identity, 81));
    }
    assert!(!admits(&maps, 16_777_215, 443), "nobody has selected it");
    let entry = &maps.classes[&maps.endpoints[&IFINDEX].class];
    assert!((9_999..10_003).contains(&entry.peers.len()), "{} peers", entry.peers.len());
    assert!(maps.rulesets.len() < 5);
}

#[test]
fn beside_tiers_every_workload_is_counted_and_every_one_is_in_the_kernel() {
    let tier = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "tier"},
        "spec": {"tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"pods": {"podSelector": {"matchLabels": {"app": "a77"}}}}]}]},
    });
    let world = world(vec![cilium(json!({"fromEntities": ["mesh"]})), tier]);
    let class =
        &world.model.policy_classes[&world.model.workloads[&NamespacedName::new("shop", "w0")].policy_class];
    assert!(class.rules.len() > 20_000, "{} rules", class.rules.len());
    let (maps, bytes) = kernel(&world);
    assert!(bytes < 200_000, "{bytes} bytes");
    for (n, identity) in &world.identities {
        assert_eq!(admits(&maps, *identity, 443), *n != 77, "w{n}");
    }
}
