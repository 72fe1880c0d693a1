//! A mesh of two namespaces, and what a sidecar of one of them has of it: the real store, compiler and translation.

use control_plane::xds::{Client, ProxyKind, ResourceSet, translate::sets::Translation};
use mesh_model::{
    compile::compile,
    records::ClusterInfo,
    resource::{EXPORT_TO_ANNOTATION, Kind, NamespacedName, ObjectKey},
};
use mesh_store::Command;
use serde_json::json;

use crate::world::{World, west};

pub struct Mesh {
    world: World,
    backend: u16,
}

impl Mesh {
    /// `shop/web`, whose Sidecar lists nothing; `ops/log`, `ops/trace` and `ops/pay`, all served by one workload at a
    /// port of 127.0.0.1. The last is for its own namespace.
    pub fn new(backend: u16) -> Self {
        let cluster = ClusterInfo { pod_cidr: "127.0.0.0/16".parse().unwrap(), ..west() };
        let mut mesh = Self { world: World::of(cluster), backend };
        let world = &mut mesh.world;
        world.run(Command::RegisterNode {
            name: "n1".to_owned(),
            address: "192.0.2.1".parse().unwrap(),
            address6: None,
        });
        let workload = |namespace: &str, name: &str, proxy: &str| {
            json!({
                "apiVersion": "isthmus.io/v1", "kind": "Workload",
                "metadata": {"name": name, "namespace": namespace, "labels": {"app": "backend"}},
                "spec": {"proxy": proxy},
            })
        };
        world.put(workload("shop", "web", "sidecar"));
        world.put(workload("ops", "backend", "none"));
        world.bind(NamespacedName::new("ops", "backend"), "n1", "127.0.0.1".parse().unwrap());
        mesh.service("log", "*");
        mesh.service("trace", "*");
        mesh.service("pay", ".");
        mesh.world.put(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
            "metadata": {"name": "default", "namespace": "shop"},
            "spec": {"egress": [{"hosts": ["~/*"]}]},
        }));
        mesh
    }

    /// A service of `ops`, with who may know of it.
    pub fn service(&mut self, name: &str, to: &str) {
        self.world.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "ops", "annotations": {EXPORT_TO_ANNOTATION: to}},
            "spec": {"selector": {"app": "backend"}, "ports": [{"port": 80, "targetPort": self.backend}]},
        }));
    }

    /// The Sidecar is gone.
    pub fn unscope(&mut self) {
        let name = NamespacedName::new("shop", "default");
        self.world.run(Command::Delete { keys: vec![ObjectKey { kind: Kind::Sidecar, name }] });
    }

    /// What the Envoy of `shop/web` has. Its listeners are left out: they are at ports that Envoys of other tests want.
    pub fn view(&self) -> ResourceSet {
        let model = compile(&self.world.state.input().unwrap());
        let client = Client::Proxy { workload: "shop/web".to_owned(), kind: ProxyKind::Envoy };
        let mut set = (*Translation::default().view(&model, &client, None).set).clone();
        set.insert_type(control_plane::xds::kinds::LISTENER, Default::default());
        set
    }
}
