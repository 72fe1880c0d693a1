//! A cluster for tests, built from the JSON that a user would write.

use std::sync::Arc;

use imbl::OrdMap;
use serde_json::{Value, json};

use super::{Input, MeshModel, compile};
use crate::{
    identity::{IdentityKey, IdentityTable, SpiffeId, TrustDomain},
    policy::World,
    records::{
        ClusterInfo, ImportedPort, ImportedService, NodeRecord, PeerRecord, ServiceAllocation, StoredMeta,
        WorkloadBinding,
    },
    resource::{AppProtocol, Kind, NamespacedName, Object, ObjectKey, Protocol, Visibility},
};

#[derive(Debug)]
pub(crate) struct TestCluster {
    pub(crate) cluster: Arc<ClusterInfo>,
    pub(crate) objects: OrdMap<ObjectKey, Arc<Object>>,
    pub(crate) object_meta: OrdMap<ObjectKey, Arc<StoredMeta>>,
    pub(crate) identities: IdentityTable,
    pub(crate) nodes: OrdMap<String, Arc<NodeRecord>>,
    pub(crate) bindings: OrdMap<NamespacedName, Arc<WorkloadBinding>>,
    pub(crate) allocations: OrdMap<NamespacedName, Arc<ServiceAllocation>>,
    pub(crate) peers: OrdMap<String, Arc<PeerRecord>>,
}

impl TestCluster {
    pub(crate) fn west() -> Self {
        let node = |name: &str, last: u8| {
            Arc::new(NodeRecord {
                name: name.to_owned(),
                address: [192, 0, 2, last].into(),
                address6: None,
                pod_cidr: format!("10.1.{last}.0/24").parse().unwrap(),
                registration: 1,
                facts: Default::default(),
            })
        };
        Self {
            cluster: Arc::new(ClusterInfo {
                name: "west".to_owned(),
                trust_domain: TrustDomain::parse("west.example").unwrap(),
                mesh_domain: "mesh.local".to_owned(),
                pod_cidr: "10.1.0.0/16".parse().unwrap(),
                pod_cidr6: None,
                service_cidr6: None,
                service_cidr: "10.101.0.0/16".parse().unwrap(),
                roots: vec![vec![1]],
                trust: Default::default(),
            }),
            objects: OrdMap::new(),
            object_meta: OrdMap::new(),
            identities: IdentityTable::default(),
            nodes: OrdMap::from_iter([("n1".to_owned(), node("n1", 1)), ("n2".to_owned(), node("n2", 2))]),
            bindings: OrdMap::new(),
            allocations: OrdMap::new(),
            peers: OrdMap::new(),
        }
    }

    /// Stores an object, allocates identities, virtual IPs and proxy ports as `apply` would.
    pub(crate) fn apply(&mut self, value: Value) -> &mut Self {
        let object = Object::parse(&value).unwrap();
        if let Object::Workload(workload) = &object {
            let key = IdentityKey::of(&self.cluster.trust_domain, workload);
            self.identities.number_for(&key).unwrap();
        }
        if let Object::Service(service) = &object {
            let ports: Vec<u16> = service.ports.iter().map(|p| p.port).collect();
            self.allocate(&object.meta().name.clone(), &ports);
        }
        self.objects.insert(object.key(), Arc::new(object));
        self
    }

    pub(crate) fn allocate(&mut self, name: &NamespacedName, ports: &[u16]) {
        let n = u8::try_from(self.allocations.len()).unwrap() + 1;
        let proxy_ports = ports.iter().zip(16384 + u16::from(n) * 100..).map(|(p, q)| (*p, q)).collect();
        let allocation = ServiceAllocation {
            virtual_ip: Some([10, 101, 0, n].into()),
            proxy_ports,
            overflow: Default::default(),
            second_ip: None,
            node_ports: Vec::new(),
            health_check_port: None,
        };
        self.allocations.insert(name.clone(), Arc::new(allocation));
    }

    pub(crate) fn workload(&mut self, name: &str, app: &str, proxy: &str, ports: Value) -> &mut Self {
        let name = NamespacedName::parse(name).unwrap();
        self.apply(json!({
            "apiVersion": "isthmus.io/v1", "kind": "Workload",
            "metadata": {"namespace": name.namespace, "name": name.name, "labels": {"app": app}},
            "spec": {"serviceAccount": app, "proxy": proxy, "ports": ports},
        }))
    }

    pub(crate) fn bind(&mut self, name: &str, node: &str, ip: &str) -> &mut Self {
        let binding =
            WorkloadBinding { node: node.to_owned(), addresses: vec![ip.parse().unwrap()], ready: true };
        self.bindings.insert(NamespacedName::parse(name).unwrap(), Arc::new(binding));
        self
    }

    pub(crate) fn service(&mut self, name: &str, app: &str, port: u16, target: Value) -> &mut Self {
        let name = NamespacedName::parse(name).unwrap();
        self.apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": name.namespace, "name": name.name},
            "spec": {"selector": {"app": app}, "ports": [{"port": port, "targetPort": target}]},
        }))
    }

    pub(crate) fn export(&mut self, name: &str) -> &mut Self {
        let name = NamespacedName::parse(name).unwrap();
        self.apply(json!({
            "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
            "metadata": {"namespace": name.namespace, "name": name.name},
        }))
    }

    /// A peer that exports one service with one port.
    pub(crate) fn import(&mut self, peer: &str, service: &str, port: u16, exported_at: u64) -> &mut Self {
        let trust_domain = TrustDomain::parse(&format!("{peer}.example")).unwrap();
        let name = NamespacedName::parse(service).unwrap();
        let spiffe_id = SpiffeId::workload(&trust_domain, &name.namespace, &name.name);
        let record = self.peers.entry(peer.to_owned()).or_insert_with(|| {
            Arc::new(PeerRecord {
                cluster: peer.to_owned(),
                trust_domain,
                mesh_domain: "mesh.local".to_owned(),
                roots: vec![vec![2]],
                trust: Default::default(),
                doors: Vec::new(),
                gateways: vec!["198.51.100.7:15443".to_owned(), "gateway.example:15443".to_owned()],
                origin_revision: 1,
                imports: OrdMap::new(),
            })
        });
        Arc::make_mut(record).imports.insert(
            name,
            Arc::new(ImportedService {
                entries: Vec::new(),
                ports: vec![ImportedPort {
                    name: "http".to_owned(),
                    port,
                    protocol: Protocol::Tcp,
                    app_protocol: AppProtocol::Http,
                }],
                spiffe_ids: vec![spiffe_id],
                ready_endpoints: 2,
                exported_at_unix: exported_at,
                visibility: Visibility::Everywhere,
            }),
        );
        self
    }

    /// The object's creation time, in Unix seconds.
    pub(crate) fn created(&mut self, kind: Kind, name: &str, created_unix: u64) -> &mut Self {
        let meta = StoredMeta { revision: 1, created_revision: 1, uid: String::new(), created_unix };
        self.object_meta.insert(ObjectKey { kind, name: named(name) }, Arc::new(meta));
        self
    }

    pub(crate) fn input(&self) -> Input {
        Input {
            revision: 7,
            cluster: self.cluster.clone(),
            objects: self.objects.clone(),
            object_meta: self.object_meta.clone(),
            identities: self.identities.clone(),
            nodes: self.nodes.clone(),
            bindings: self.bindings.clone(),
            allocations: self.allocations.clone(),
            peers: self.peers.clone(),
        }
    }

    pub(crate) fn compile(&self) -> MeshModel {
        compile(&self.input())
    }

    pub(crate) fn world(&self) -> World<'_> {
        World { objects: &self.objects, bindings: &self.bindings, nodes: &self.nodes, cluster: &self.cluster }
    }
}

/// `<namespace>/<name>`
pub(crate) fn named(text: &str) -> NamespacedName {
    NamespacedName::parse(text).unwrap()
}
