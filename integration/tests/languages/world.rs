//! A cluster of drawn objects, as its control plane compiles it and as its agent is told.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex},
};

use control_plane::xds::translate::agent;
use ebpf_shared::{Metric, Reason};
use imbl::OrdMap;
use mesh_model::{
    compile::{Input, MeshModel, compile},
    identity::{IdentityKey, IdentityTable, TrustDomain},
    policy::World,
    records::{ClusterInfo, NodeRecord, WorkloadBinding},
    resource::{NamespacedName, Object, ObjectKey},
};
use node_agent::{
    desired::{Desired, Limits, MapOp, Pod, PodAddresses},
    maps::{KernelMaps, MapError, Maps},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use xds_client::{Resource, Update};
use xds_proto::{isthmus::agent::v1 as wire, to_any};

use crate::{
    generate_cilium::cilium_policy,
    generate_cluster::cluster_policy,
    generate_network::{labels, policy_spec},
};

/// The loopback interface, which test runs happen at.
pub const LO: u32 = 1;

/// Addresses that no workload has: of either node, of slices of theirs, and outside the mesh.
pub const OUTSIDE: [&str; 11] = [
    "192.0.2.1",
    "192.0.2.2",
    "10.1.2.77",
    "203.0.113.1",
    "203.0.113.9",
    "198.51.100.1",
    "10.200.0.1",
    "2001:db8::2",
    "fd00:1::277",
    "2001:db8:9::1",
    "2001:db8:5::7",
];

pub fn own_node() -> PodAddresses {
    PodAddresses { v4: Ipv4Addr::new(192, 0, 2, 1), v6: Some("2001:db8::1".parse().unwrap()) }
}

#[derive(Debug, Clone)]
pub struct Cluster {
    input: Input,
    model: Arc<MeshModel>,
    objects: Vec<Value>,
}

impl Cluster {
    fn new(workloads: Vec<Value>, policies: Vec<Value>) -> Self {
        let node = |name: &str, last: u8| {
            let node = NodeRecord {
                name: name.to_owned(),
                address: [192, 0, 2, last].into(),
                address6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())),
                pod_cidr: format!("10.1.{last}.0/24").parse().unwrap(),
                registration: 1,
                facts: Default::default(),
            };
            (name.to_owned(), Arc::new(node))
        };
        let cluster = ClusterInfo {
            name: "west".to_owned(),
            trust_domain: TrustDomain::parse("west.example").unwrap(),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            pod_cidr6: Some("fd00:1::/112".parse().unwrap()),
            service_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            roots: vec![vec![1]],
            trust: Default::default(),
        };
        let mut identities = IdentityTable::default();
        let mut objects: OrdMap<ObjectKey, Arc<Object>> = OrdMap::new();
        let mut bindings = OrdMap::new();
        let mut told = Vec::new();
        for (number, value) in workloads.iter().enumerate() {
            let object = Object::parse(value).unwrap();
            let Object::Workload(workload) = &object else { panic!("{value}") };
            identities.number_for(&IdentityKey::of(&cluster.trust_domain, workload)).unwrap();
            // The first is here, of the others every second one is elsewhere.
            let (node, slice) = if number % 2 == 0 { ("n1", 1) } else { ("n2", 2) };
            let last = u8::try_from(number).unwrap() + 2;
            let addresses = vec![
                IpAddr::V4(Ipv4Addr::new(10, 1, slice, last)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, u16::from(slice) << 8 | u16::from(last))),
            ];
            let binding = WorkloadBinding { node: node.to_owned(), addresses, ready: true };
            bindings.insert(object.meta().name.clone(), Arc::new(binding));
            objects.insert(object.key(), Arc::new(object));
            told.push(value.clone());
        }
        for value in policies {
            // Some contradict themselves, and are refused as they are at apply.
            if let Ok(object) = Object::parse(&value) {
                objects.insert(object.key(), Arc::new(object));
                told.push(value);
            }
        }
        let input = Input {
            revision: 7,
            cluster: Arc::new(cluster),
            objects,
            object_meta: OrdMap::new(),
            identities,
            nodes: OrdMap::from_iter([node("n1", 1), node("n2", 2)]),
            bindings,
            allocations: OrdMap::new(),
            peers: OrdMap::new(),
        };
        let model = Arc::new(compile(&input));
        Self { input, model, objects: told }
    }

    pub fn world(&self) -> World<'_> {
        let Input { objects, bindings, nodes, cluster, .. } = &self.input;
        World { objects, bindings, nodes, cluster }
    }

    fn addresses(&self, workload: &NamespacedName) -> Vec<IpAddr> {
        self.input.bindings[workload].addresses.clone()
    }

    /// The workload at whose door is asked.
    pub fn first(&self) -> (NamespacedName, Vec<IpAddr>) {
        let is_first = |name: &&NamespacedName| name.name == "w0";
        let name = self.model.workloads.keys().find(is_first).unwrap().clone();
        let addresses = self.addresses(&name);
        (name, addresses)
    }

    pub fn others(&self) -> Vec<(NamespacedName, Vec<IpAddr>)> {
        let others = self.model.workloads.keys().filter(|name| name.name != "w0");
        others.map(|name| (name.clone(), self.addresses(name))).collect()
    }

    pub fn policies(&self) -> usize {
        self.objects.iter().filter(|object| object["kind"] != "Workload").count()
    }

    pub fn has_tiers(&self) -> bool {
        self.objects.iter().any(|object| object["kind"] == "ClusterNetworkPolicy")
    }

    /// Whether an agent takes all classes: a rule of "world" beside tiers comes to hundreds, each as often as it has ranges of ports.
    pub fn is_too_large(&self) -> bool {
        self.model.policy_classes.values().any(|class| class.too_large().is_some())
    }

    pub fn shown(&self) -> String {
        self.objects.iter().map(|object| format!("\n{object}")).collect()
    }

    /// All that the agent of the first node is told, in the order of the types.
    pub fn told(&self) -> Vec<Update> {
        let Input { nodes, cluster, .. } = &self.input;
        let node = |node: &Arc<NodeRecord>| (node.name.clone(), agent::node(node, cluster));
        let workloads = || self.model.workloads.values();
        let address = workloads()
            .filter_map(|workload| Some((workload.name.to_string(), agent::workload_address(workload)?)));
        let class = self
            .model
            .policy_classes
            .values()
            .map(|class| (class.id.to_string(), agent::policy_class(class)));
        let here = workloads().filter(|workload| workload.binding.as_ref().is_some_and(|at| at.node == "n1"));
        let local = here.map(|workload| (workload.name.to_string(), agent::local_endpoint(workload, None)));
        vec![
            update(nodes.values().map(node)),
            update(address),
            update(class),
            update::<wire::Service>([].into_iter()),
            update(local),
        ]
    }
}

pub fn pod(cluster: &Cluster) -> Pod {
    let (_, addresses) = cluster.first();
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (addresses[0], addresses[1]) else { panic!("{addresses:?}") };
    Pod { addresses: PodAddresses { v4, v6: Some(v6) }, ifindex: LO, netns_cookie: 77 }
}

fn update<M: xds_proto::Name>(all: impl Iterator<Item = (String, M)>) -> Update {
    let added = all.map(|(name, message)| Resource { name, version: "1".into(), resource: to_any(&message) });
    Update {
        type_url: M::type_url(),
        added: added.collect(),
        removed: Vec::new(),
        nonce: "n".into(),
        system_version: "7".into(),
    }
}

/// Names, DNS rules and policies for nodes are about more than the first packet at a pod's door: each has tests of its own.
fn is_asked_here(policy: &Value) -> bool {
    let text = policy.to_string();
    !["toFQDNs", "\"dns\"", "nodeSelector", "toServices"].iter().any(|word| text.contains(word))
}

pub fn drawn() -> impl Strategy<Value = Cluster> {
    let namespace = || prop::sample::select(vec!["a", "b"]);
    let ports = prop::sample::select(vec![
        json!([]),
        json!([{"name": "http", "port": 80}]),
        json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]),
    ]);
    let workload = (namespace(), labels(), prop::sample::select(vec!["default", "other"]), ports);
    let of_kubernetes = prop::collection::vec((namespace(), policy_spec()), 0..3);
    let of_cilium = || namespace().prop_flat_map(|namespace| cilium_policy(namespace, "p".to_owned()));
    let of_cilium = prop::collection::vec(of_cilium(), 0..4);
    let of_tiers = prop::collection::vec(cluster_policy("t".to_owned()), 1..4);
    let of_tiers = prop_oneof![Just(Vec::new()), of_tiers];
    (prop::collection::vec(workload, 2..6), of_kubernetes, of_cilium, of_tiers).prop_map(
        |(workloads, of_kubernetes, of_cilium, of_tiers)| {
            let workloads =
                workloads.into_iter().enumerate().map(|(number, (namespace, labels, account, ports))| {
                    json!({
                        "apiVersion": "isthmus.io/v1", "kind": "Workload",
                        "metadata": {"namespace": namespace, "name": format!("w{number}"), "labels": labels},
                        "spec": {"serviceAccount": account, "ports": ports},
                    })
                });
            let of_kubernetes = of_kubernetes.into_iter().map(|(namespace, spec)| {
                json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"namespace": namespace}, "spec": spec,
                })
            });
            let policies =
                of_kubernetes.chain(of_cilium).chain(of_tiers).enumerate().map(|(number, mut policy)| {
                    policy["metadata"]["name"] = json!(format!("p{number}"));
                    policy
                });
            Cluster::new(workloads.collect(), policies.filter(is_asked_here).collect())
        },
    )
}

/// The maps of one agent after the other.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<KernelMaps>>);

impl Shared {
    pub fn new(maps: KernelMaps) -> Self {
        Self(Arc::new(Mutex::new(maps)))
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut KernelMaps) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

impl Maps for Shared {
    fn snapshot(&mut self) -> Result<Desired, MapError> {
        self.with(Maps::snapshot)
    }

    fn limits(&self) -> Limits {
        self.with(|maps| maps.limits())
    }

    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)> {
        self.with(|maps| maps.execute(ops))
    }

    fn attach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.with(|maps| maps.attach(interface, ifindex))
    }

    fn detach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.with(|maps| maps.detach(interface, ifindex))
    }

    fn attached(&mut self) -> Result<Vec<u32>, MapError> {
        self.with(Maps::attached)
    }

    fn lost_events(&mut self) -> u64 {
        0
    }

    fn packets(&mut self) -> Vec<(ebpf_shared::Direction, Reason, Metric)> {
        Vec::new()
    }
}
