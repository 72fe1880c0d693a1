//! A mesh of two namespaces, and what a sidecar of one of them has of it: the real store, compiler and translation.

use control_plane::xds::{Client, ProxyKind, ResourceSet, translate::sets::Translation};
use mesh_model::{
    compile::compile,
    identity::TrustDomain,
    records::{ClusterInfo, WorkloadBinding},
    resource::{EXPORT_TO_ANNOTATION, Kind, NamespacedName, Object, ObjectKey},
};
use mesh_store::{Bytes16, Command, Envelope, State, apply};
use serde_json::{Value, json};

pub struct Mesh {
    state: State,
    commands: u128,
    backend: u16,
}

impl Mesh {
    /// `shop/web`, whose Sidecar lists nothing; `ops/log`, `ops/trace` and `ops/pay`, all served by one workload at a
    /// port of 127.0.0.1. The last is for its own namespace.
    pub fn new(backend: u16) -> Self {
        let mut mesh = Self { state: State::default(), commands: 0, backend };
        mesh.run(Command::Init(ClusterInfo {
            name: "west".to_owned(),
            trust_domain: TrustDomain::parse("west.example").unwrap(),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "127.0.0.0/16".parse().unwrap(),
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            roots: vec![vec![1]],
            trust: Default::default(),
        }));
        mesh.run(Command::RegisterNode { name: "n1".to_owned(), address: "192.0.2.1".parse().unwrap() });
        let workload = |namespace: &str, name: &str, proxy: &str| {
            json!({
                "apiVersion": "isthmus.io/v1", "kind": "Workload",
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": "backend"}},
                "spec": {"proxy": proxy},
            })
        };
        mesh.put(workload("shop", "web", "sidecar"));
        mesh.put(workload("ops", "backend", "none"));
        let binding = WorkloadBinding {
            node: "n1".to_owned(),
            addresses: vec!["127.0.0.1".parse().unwrap()],
            ready: true,
        };
        mesh.run(Command::BindWorkload { workload: NamespacedName::new("ops", "backend"), binding });
        mesh.service("log", "*");
        mesh.service("trace", "*");
        mesh.service("pay", ".");
        mesh.put(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": "shop"},
            "spec": {"egress": [{"hosts": ["~/*"]}]},
        }));
        mesh
    }

    /// A service of `ops`, with who may know of it.
    pub fn service(&mut self, name: &str, to: &str) {
        self.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "ops", "annotations": {EXPORT_TO_ANNOTATION: to}},
            "spec": {"selector": {"app": "backend"}, "ports": [{"port": 80, "targetPort": self.backend}]},
        }));
    }

    /// The Sidecar is gone.
    pub fn unscope(&mut self) {
        let name = NamespacedName::new("shop", "default");
        self.run(Command::Delete { keys: vec![ObjectKey { kind: Kind::Sidecar, name }] });
    }

    /// What the Envoy of `shop/web` has. Its listeners are left out: they are at ports that Envoys of other tests want.
    pub fn view(&self) -> ResourceSet {
        let model = compile(&self.state.input().unwrap());
        let client = Client::Proxy { workload: "shop/web".to_owned(), kind: ProxyKind::Envoy };
        let mut set = (*Translation::default().view(&model, &client, None).set).clone();
        set.insert_type(control_plane::xds::kinds::LISTENER, Default::default());
        set
    }

    fn put(&mut self, object: Value) {
        self.run(Command::Apply { objects: vec![Object::parse(&object).unwrap()], dry_run: false });
    }

    fn run(&mut self, command: Command) {
        self.commands += 1;
        let key = Bytes16(self.commands.to_be_bytes());
        let envelope = Envelope { key, now_unix_ms: 1_000_000, first_unix_ms: None, random: key, command };
        apply(&mut self.state, &envelope).outcome.unwrap();
    }
}
