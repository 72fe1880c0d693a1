//! What the objects compile to: the mesh as the views read it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;
use serde::Serialize;

use super::ModelIndex;
use crate::{
    identity::{IdentityNumber, IdentityTable, SpiffeId},
    policy::{Entity, L7, NamePattern},
    records::{
        ClusterInfo, NodePort, NodeRecord, PeerRecord, ServiceAllocation, StoredMeta, WorkloadBinding,
    },
    resource::{
        AppProtocol, EgressHost, Exposure, HostPort, HttpRouteRule, Kind, NamespacedName, Object, ObjectKey,
        Protocol, ProxyMode, Readiness, Visibility,
    },
};

/// Everything that a compilation reads, shared with the store's state: a clone costs nothing, and what two inputs
/// share need not be compared.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Input {
    pub revision: u64,
    pub cluster: Arc<ClusterInfo>,
    pub objects: OrdMap<ObjectKey, Arc<Object>>,
    /// The older HTTPRoute wins a tie (Gateway API). A route that is missing here counts as the youngest.
    pub object_meta: OrdMap<ObjectKey, Arc<StoredMeta>>,
    pub identities: IdentityTable,
    pub nodes: OrdMap<String, Arc<NodeRecord>>,
    pub bindings: OrdMap<NamespacedName, Arc<WorkloadBinding>>,
    pub allocations: OrdMap<NamespacedName, Arc<ServiceAllocation>>,
    pub peers: OrdMap<String, Arc<PeerRecord>>,
}

impl Input {
    /// A cluster in which nothing is.
    pub fn empty(cluster: Arc<ClusterInfo>) -> Self {
        Self {
            revision: 0,
            cluster,
            objects: OrdMap::new(),
            object_meta: OrdMap::new(),
            identities: IdentityTable::default(),
            nodes: OrdMap::new(),
            bindings: OrdMap::new(),
            allocations: OrdMap::new(),
            peers: OrdMap::new(),
        }
    }

    pub(crate) fn object(&self, kind: Kind, name: &NamespacedName) -> Option<&Object> {
        self.objects.get(&ObjectKey { kind, name: name.clone() }).map(Arc::as_ref)
    }

    /// Whether SPIFFE IDs and SNIs are what they are in another input.
    pub(super) fn same_names(&self, other: &Self) -> bool {
        let names = |input: &Self| {
            let cluster = &input.cluster;
            (cluster.name.clone(), cluster.trust_domain.clone(), cluster.mesh_domain.clone())
        };
        names(self) == names(other)
    }
}

/// The compiled mesh of one cluster at one revision. What did not change since the revision before is shared with
/// that one's model.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct MeshModel {
    pub revision: u64,
    pub cluster: Arc<ClusterInfo>,
    pub nodes: OrdMap<String, Arc<NodeRecord>>,
    pub workloads: OrdMap<NamespacedName, Arc<MeshWorkload>>,
    pub services: OrdMap<NamespacedName, Arc<MeshService>>,
    /// Every class that a workload has. Class 0, which permits everything, is there too where it is used.
    pub policy_classes: OrdMap<u32, Arc<PolicyClass>>,
    /// Classes of nodes that a policy selects.
    pub host_classes: OrdMap<String, u32>,
    pub peers: OrdMap<String, Arc<PeerRecord>>,
    /// Every Sidecar object, by its name.
    pub egress_scopes: OrdMap<NamespacedName, Arc<EgressScope>>,
    /// Derived from the rest.
    pub index: ModelIndex,
}

/// A declared workload with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MeshWorkload {
    pub name: NamespacedName,
    pub identity: IdentityNumber,
    pub spiffe_id: SpiffeId,
    pub proxy: ProxyMode,
    pub policy_class: u32,
    /// What policies deny it is told of, and not enforced.
    pub audit: bool,
    /// Ports that the sidecar serves in the workload's stead: its TCP ports, if it has a sidecar.
    pub captured_ports: Vec<u16>,
    /// How its node finds out whether it is ready, at this port.
    pub readiness: Option<(Readiness, u16)>,
    /// Ports of its node that lead to it.
    pub host_ports: Vec<MeshHostPort>,
    /// What the workload itself says that its ports speak, where it says so.
    pub port_protocols: BTreeMap<u16, AppProtocol>,
    /// Where it listens if it is a gateway: its first TCP port, or 15443. 0 for everything else.
    pub gateway_port: u16,
    /// The Sidecar object that says what it calls.
    pub egress_scope: Option<NamespacedName>,
    /// None until its node reports it.
    pub binding: Option<Arc<WorkloadBinding>>,
}

/// A port of the node that a workload runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MeshHostPort {
    pub host: HostPort,
    pub port: u16,
    pub protocol: Protocol,
}

/// A service that workloads of this cluster can call: local, imported, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MeshService {
    pub name: NamespacedName,
    pub virtual_ip: Option<IpAddr>,
    /// Of the other family, where it has both.
    pub second_ip: Option<IpAddr>,
    pub ports: Vec<MeshServicePort>,
    /// Offered to peers.
    pub exported: bool,
    /// Namespaces whose workloads are told of it, here and at peers.
    pub visibility: Visibility,
    /// For the kernel.
    pub delivery: Delivery,
}

/// How a service is reached besides by its virtual IPs, and which of its endpoints a client gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Delivery {
    pub exposure: Exposure,
    pub headless: bool,
    /// Only peers have it.
    pub imported: bool,
    /// Endpoints of a headless service without ports, which has names all the same. Their port is 0.
    pub named: Vec<MeshEndpoint>,
    pub node_ports: Vec<NodePort>,
    pub health_check_port: Option<u16>,
}

/// What a Sidecar object says of the workloads that it applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressScope {
    /// Any of them; empty: no service.
    pub hosts: Vec<EgressHost>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MeshServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
    pub app_protocol: AppProtocol,
    /// Loopback port of the outbound listener.
    pub proxy_port: u16,
    /// `<port>.<service>.<namespace>.svc.<mesh-domain>`
    pub sni: String,
    pub endpoints: Vec<MeshEndpoint>,
    /// Of a service of two families: the endpoints' addresses of the second. Proxies have no use for them.
    pub second_family: Vec<MeshEndpoint>,
    /// Every identity that may serve this port, local or remote.
    pub spiffe_ids: Vec<SpiffeId>,
    /// Percent of the calls that go to peers, where there are any, though local endpoints are ready.
    pub overflow: u8,
    /// In order of precedence; empty: everything goes to this port's own endpoints.
    pub routes: Vec<MeshRoute>,
}

/// One place that a service port can be reached at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MeshEndpoint {
    pub address: SocketAddr,
    pub weight: u32,
    /// The next is for when the one before has none that is ready: those of this cluster from 0 on, then peers (through
    /// their gateways).
    pub priority: u32,
    /// Cluster that the endpoint is in.
    pub cluster: String,
    pub ready: bool,
    /// The workload behind it, where it is one of this cluster.
    pub workload: Option<NamespacedName>,
    /// It expects mesh mTLS (a sidecar, or a gateway that forwards to one).
    pub mtls: bool,
    #[allow(missing_docs)]
    pub place: Place,
}

/// Where an endpoint is, and what else only the kernel asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Place {
    /// It is a peer's gateway: only a proxy can speak to it.
    pub by_gateway: bool,
    /// It is a peer's.
    pub elsewhere: bool,
    /// It ends, and serves those whom it serves until then.
    pub draining: bool,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// Zones whose clients are to have it; empty: all.
    pub hint_zones: Vec<String>,
    /// Nodes whose clients are to have it; empty: all.
    pub hint_nodes: Vec<String>,
    /// Below the name of a headless service.
    pub hostname: Option<String>,
}

impl MeshModel {
    /// A cluster in which nothing is.
    pub fn empty(cluster: Arc<ClusterInfo>) -> Self {
        Self {
            revision: 0,
            cluster,
            nodes: OrdMap::new(),
            workloads: OrdMap::new(),
            services: OrdMap::new(),
            policy_classes: OrdMap::new(),
            host_classes: OrdMap::new(),
            peers: OrdMap::new(),
            egress_scopes: OrdMap::new(),
            index: ModelIndex::default(),
        }
    }
}

impl MeshService {
    /// Services that its routes lead to.
    pub fn backends(&self) -> impl Iterator<Item = &NamespacedName> {
        let rules = self.ports.iter().flat_map(|port| &port.routes).map(|route| &route.rule);
        rules.flat_map(|rule| &rule.backends).map(|backend| &backend.service)
    }
}

impl MeshServicePort {
    /// What packets can be sent to: this cluster's endpoints, of both families, and node ports of peers. Peers' gateways are
    /// not among them, because only a proxy can speak to those.
    pub fn reachable(&self) -> impl Iterator<Item = &MeshEndpoint> {
        self.endpoints.iter().chain(&self.second_family).filter(|e| !e.place.by_gateway)
    }

    /// Where packets to the virtual IPs go: of those the ones that are ready, of the first priority that has one.
    pub fn packet_backends(&self) -> impl Iterator<Item = &MeshEndpoint> {
        let ready = |e: &&MeshEndpoint| e.ready && e.weight > 0;
        let best = self.reachable().filter(ready).map(|e| e.priority).min();
        self.reachable().filter(ready).filter(move |e| Some(e.priority) == best)
    }
}

/// One match of one HTTPRoute rule that applies to a service port: a rule with several matches or hostnames
/// yields several, because each has its own precedence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct MeshRoute {
    pub provenance: String,
    pub hostnames: Vec<String>,
    pub rule: HttpRouteRule,
}

/// The L3/L4 policy that endpoints with equal policy share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct PolicyClass {
    pub id: u32,
    /// Provenance of the default deny, where the direction is selected by a policy.
    pub ingress_default_deny: Option<String>,
    pub egress_default_deny: Option<String>,
    /// Default denials that audited policies ask for: told of, not enforced.
    pub ingress_audit_default: Option<String>,
    pub egress_audit_default: Option<String>,
    pub rules: Vec<PolicyRule>,
    /// It comes to more rules than anybody could be told of, so many at least: none is here, and everything is denied.
    pub unexpanded: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct PolicyRule {
    pub direction: Direction,
    pub action: Action,
    pub peer: RulePeer,
    /// None: any.
    pub protocol: Option<FlowProtocol>,
    /// Inclusive; None: any. Of ICMP it is `type << 8 | code`.
    pub ports: Option<(u16, u16)>,
    /// Of an audited policy: a denial is told of and not enforced, and what is allowed is not told of.
    pub audit: bool,
    /// It allows only what this admits.
    pub l7: Option<L7>,
    pub provenance: Arc<str>,
}

/// What pods may speak at all: a superset of what ports have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub enum FlowProtocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
    Icmpv6,
}

impl FlowProtocol {
    /// All of them.
    pub const ALL: [FlowProtocol; 5] =
        [FlowProtocol::Tcp, FlowProtocol::Udp, FlowProtocol::Sctp, FlowProtocol::Icmp, FlowProtocol::Icmpv6];
}

impl FlowProtocol {
    /// As people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            FlowProtocol::Tcp => "TCP",
            FlowProtocol::Udp => "UDP",
            FlowProtocol::Sctp => "SCTP",
            FlowProtocol::Icmp => "ICMP",
            FlowProtocol::Icmpv6 => "ICMPv6",
        }
    }
}

impl From<Protocol> for FlowProtocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => FlowProtocol::Tcp,
            Protocol::Udp => FlowProtocol::Udp,
            Protocol::Sctp => FlowProtocol::Sctp,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub enum Direction {
    Ingress,
    Egress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub enum Action {
    Deny,
    Allow,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum RulePeer {
    Any,
    Identity(IdentityNumber),
    Cidr(IpNet),
    Entity(Entity),
    /// Addresses outside the mesh that DNS has answered for such a name.
    Name(NamePattern),
}
