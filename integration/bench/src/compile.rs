//! From a state to the compiled mesh: all of it, and after one change.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use mesh_model::{
    compile::{Compiler, Input},
    identity::{IdentityKey, IdentityTable, TrustDomain},
    records::{ClusterInfo, NodeRecord, ServiceAllocation, WorkloadBinding},
    resource::{
        AppProtocol, LabelSelector, Labels, Meta, NAMESPACE_NAME_LABEL, NamespacedName, NetworkPolicy,
        NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, Object, PortRef, Protocol, ProxyMode,
        Service, ServicePort, Workload, WorkloadPort,
    },
};

/// Workloads of a service.
pub const ENDPOINTS: usize = 10;
const SERVICES_PER_NAMESPACE: usize = 100;
const WORKLOADS_PER_NODE: usize = 100;

/// Milliseconds, one figure per round.
#[derive(Debug, Default)]
pub struct Compiled {
    /// Everything, from nothing.
    pub full: Vec<f64>,
    /// One endpoint becomes ready, or unready.
    pub endpoint: Vec<f64>,
    /// One policy names another peer.
    pub policy: Vec<f64>,
    /// One workload has another label, and so another identity.
    pub label: Vec<f64>,
}

/// Compiles a mesh of so many services whole, then changes it `rounds` times in each way.
pub fn measure(services: usize, rounds: usize) -> Compiled {
    let mut mesh = Mesh::new(services);
    let mut found = Compiled::default();
    let mut compiler = Compiler::default();
    for _ in 0..3 {
        compiler = Compiler::default();
        found.full.push(timed(&mut compiler, mesh.input.clone()));
    }
    for round in 0..rounds {
        // Far from the one before: nothing is warm.
        let service = round * 7919 % services;
        mesh.toggle(service);
        found.endpoint.push(timed(&mut compiler, mesh.input.clone()));
        mesh.edit_policy(service, round);
        found.policy.push(timed(&mut compiler, mesh.input.clone()));
        mesh.relabel(service, round);
        found.label.push(timed(&mut compiler, mesh.input.clone()));
    }
    found
}

fn timed(compiler: &mut Compiler, input: Input) -> f64 {
    let start = Instant::now();
    let compiled = compiler.compile(input);
    let took = start.elapsed();
    assert!(!compiled.1.is_empty(), "every change changes the mesh");
    took.as_secs_f64() * 1000.0
}

/// A mesh: 10 workloads with sidecars to a service, 100 services to a namespace, a policy for every second service.
struct Mesh {
    input: Input,
}

impl Mesh {
    fn new(services: usize) -> Self {
        let cluster = ClusterInfo {
            name: "bench".to_owned(),
            trust_domain: TrustDomain::parse("bench.example").expect("a trust domain"),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.0.0.0/8".parse().expect("a range"),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "172.16.0.0/12".parse().expect("a range"),
            roots: Vec::new(),
            trust: Default::default(),
        };
        let mut mesh = Self { input: Input::empty(Arc::new(cluster)) };
        let mut identities = IdentityTable::default();
        for service in 0..services {
            mesh.put(Object::Service(mesh_service(service)));
            let allocation = ServiceAllocation {
                virtual_ip: Some(address([172, 16], service)),
                proxy_ports: [(80, 16_384 + (service % 16_384) as u16)].into(),
                overflow: Default::default(),
                second_ip: None,
                node_ports: Vec::new(),
                health_check_port: None,
            };
            mesh.input.allocations.insert(service_name(service), Arc::new(allocation));
            if service % 2 == 0 {
                mesh.put(Object::NetworkPolicy(policy(service, services, 1)));
            }
            for endpoint in 0..ENDPOINTS {
                let number = service * ENDPOINTS + endpoint;
                let workload = workload(service, endpoint, "1");
                let key = IdentityKey::of(&mesh.input.cluster.trust_domain, &workload);
                identities.number_for(&key).expect("fewer than 2^24");
                let binding = WorkloadBinding {
                    node: node_name(number),
                    addresses: vec![address([10, 0], number)],
                    ready: true,
                };
                mesh.input.bindings.insert(workload.meta.name.clone(), Arc::new(binding));
                mesh.put(Object::Workload(workload));
                if number.is_multiple_of(WORKLOADS_PER_NODE) {
                    let node = NodeRecord {
                        name: node_name(number),
                        address: address([192, 168], number),
                        address6: None,
                        pod_cidr: "10.0.0.0/24".parse().expect("a range"),
                        registration: 1,
                        facts: Default::default(),
                    };
                    mesh.input.nodes.insert(node.name.clone(), Arc::new(node));
                }
            }
        }
        mesh.input.identities = identities;
        mesh
    }

    fn put(&mut self, object: Object) {
        self.input.objects.insert(object.key(), Arc::new(object));
    }

    fn toggle(&mut self, service: usize) {
        let name = workload_name(service, 3);
        let Some(binding) = self.input.bindings.get_mut(&name) else { return };
        let binding = Arc::make_mut(binding);
        binding.ready = !binding.ready;
    }

    fn edit_policy(&mut self, service: usize, round: usize) {
        let services = self.input.allocations.len();
        self.put(Object::NetworkPolicy(policy(service / 2 * 2, services, 2 + round)));
    }

    fn relabel(&mut self, service: usize, round: usize) {
        let workload = workload(service, 5, &format!("r{round}"));
        let key = IdentityKey::of(&self.input.cluster.trust_domain, &workload);
        self.input.identities.number_for(&key).expect("fewer than 2^24");
        self.put(Object::Workload(workload));
    }
}

fn namespace(service: usize) -> String {
    format!("team-{}", service / SERVICES_PER_NAMESPACE)
}

fn service_name(service: usize) -> NamespacedName {
    NamespacedName::new(namespace(service), format!("app-{service}"))
}

fn workload_name(service: usize, endpoint: usize) -> NamespacedName {
    NamespacedName::new(namespace(service), format!("app-{service}-{endpoint}"))
}

fn node_name(workload: usize) -> String {
    format!("node-{}", workload / WORKLOADS_PER_NODE)
}

fn address([a, b]: [u8; 2], number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from_be_bytes([a, b, 0, 0]) + number as u32 + 1))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn meta(name: NamespacedName, labels: Labels) -> Meta {
    Meta { name, labels, annotations: Default::default(), resource_version: None }
}

fn app(service: usize) -> String {
    format!("app-{service}")
}

fn workload(service: usize, endpoint: usize, version: &str) -> Workload {
    let labels = labels(&[("app", &app(service)), ("tier", "backend"), ("version", version)]);
    Workload {
        meta: meta(workload_name(service, endpoint), labels),
        service_account: app(service),
        proxy: ProxyMode::Sidecar,
        ports: vec![WorkloadPort {
            name: Some("http".to_owned()),
            port: 8080,
            protocol: Protocol::Tcp,
            app_protocol: None,
            host_port: None,
        }],
        address: None,
        readiness: None,
    }
}

fn mesh_service(service: usize) -> Service {
    Service {
        meta: meta(service_name(service), Labels::new()),
        selector: labels(&[("app", &app(service))]),
        ports: vec![ServicePort {
            name: "http".to_owned(),
            port: 80,
            target_port: PortRef::Name("http".to_owned()),
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
            node_port: None,
        }],
        cluster_ip: None,
        headless: false,
        visibility: Default::default(),
        exposure: Default::default(),
    }
}

/// Two callers may call a service: one of its own namespace, one of another.
fn policy(service: usize, services: usize, shift: usize) -> NetworkPolicy {
    let selector =
        |app: String| LabelSelector { match_labels: labels(&[("app", &app)]), match_expressions: Vec::new() };
    let neighbour = service / SERVICES_PER_NAMESPACE * SERVICES_PER_NAMESPACE
        + (service + shift) % SERVICES_PER_NAMESPACE;
    let stranger = (service + SERVICES_PER_NAMESPACE + shift) % services;
    let elsewhere = LabelSelector {
        match_labels: labels(&[(NAMESPACE_NAME_LABEL, &namespace(stranger))]),
        match_expressions: Vec::new(),
    };
    NetworkPolicy {
        meta: meta(service_name(service), Labels::new()),
        pod_selector: selector(app(service)),
        ingress_selected: true,
        egress_selected: false,
        ingress: vec![NetworkPolicyRule {
            peers: vec![
                NetworkPolicyPeer::Pods { pod: Some(selector(app(neighbour))), namespace: None },
                NetworkPolicyPeer::Pods { pod: Some(selector(app(stranger))), namespace: Some(elsewhere) },
            ],
            ports: vec![NetworkPolicyPort {
                protocol: Protocol::Tcp,
                port: Some(PortRef::Name("http".to_owned())),
                end_port: None,
            }],
        }],
        egress: Vec::new(),
    }
}
