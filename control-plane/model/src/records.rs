//! Facts about the cluster that no user writes: what `apply` allocates, nodes report and peers tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{
    identity::{SpiffeId, TrustDomain},
    resource::{AUDIT_ANNOTATION, AppProtocol, Labels, NamespacedName, Protocol, Visibility},
};

/// Chosen at `init`, never changed afterwards but for the roots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ClusterInfo {
    pub name: String,
    pub trust_domain: TrustDomain,
    /// Shared by all clusters of a mesh; the suffix of every SNI.
    pub mesh_domain: String,
    pub pod_cidr: IpNet,
    /// IPv6 addresses of pods, where they have them beside those of IPv4: a pod's is at the same place in here.
    #[serde(default)]
    pub pod_cidr6: Option<Ipv6Net>,
    pub service_cidr: IpNet,
    /// Virtual IPs of services that have IPv6 beside IPv4.
    #[serde(default)]
    pub service_cidr6: Option<Ipv6Net>,
    /// Root certificates, DER.
    pub roots: Vec<Vec<u8>>,
    /// Kept by `apply`.
    #[serde(default)]
    pub trust: DomainTrust,
}

impl ClusterInfo {
    /// The addresses of pods, of every family that they have.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = IpNet> {
        [self.pod_cidr].into_iter().chain(self.pod_cidr6.map(IpNet::V6))
    }

    /// Whether an address is one of those, whoever has it.
    pub fn has_pods_at(&self, address: IpAddr) -> bool {
        self.pod_cidrs().any(|pods| pods.contains(&address))
    }

    /// The addresses of services, of every family that they can have.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        [self.service_cidr].into_iter().chain(self.service_cidr6.map(IpNet::V6))
    }

    /// The addresses of a node's pods. The slice of IPv6 is where the slice of IPv4 is, so nobody need remember it.
    pub fn slices(&self, node: &NodeRecord) -> impl Iterator<Item = IpNet> {
        let slice6 = node.address6.and_then(|_| self.slice6(node)).map(IpNet::V6);
        [node.pod_cidr].into_iter().chain(slice6)
    }

    fn slice6(&self, node: &NodeRecord) -> Option<Ipv6Net> {
        let (IpNet::V4(all), IpNet::V4(slice), Some(all6)) = (self.pod_cidr, node.pod_cidr, self.pod_cidr6)
        else {
            return None;
        };
        let place = u32::from(slice.network()).checked_sub(u32::from(all.network()))?;
        let first = u128::from(all6.network()).checked_add(u128::from(place))?;
        let slice6 = Ipv6Net::new(first.into(), 96 + slice.prefix_len()).ok()?;
        all6.contains(&slice6).then_some(slice6)
    }
}

/// What belongs to the roots of a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DomainTrust {
    /// Goes up whenever the roots change, and is never the same for two trust domains: data planes confirm it.
    pub generation: u64,
    /// SHA-256 of the root that leaves are to chain to, hexadecimal. Of the own domain only.
    pub active_root: String,
    /// Registrations of nodes whose certificates, and whose workloads' certificates, are refused; and the numbers of
    /// administrators' certificates that were withdrawn.
    pub revoked: BTreeSet<u64>,
    /// Keys that sign JWT-SVIDs of this domain: points of P-256, uncompressed.
    #[serde(default)]
    pub jwt_keys: Vec<Vec<u8>>,
}

/// A node, registered by its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NodeRecord {
    pub name: String,
    pub address: IpAddr,
    /// Of IPv6, if its pods are to have IPv6.
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    /// The node's slice of the cluster's pod CIDR, allocated in `apply`.
    pub pod_cidr: IpNet,
    /// Which registration of a node in this cluster this is: every certificate that comes of it says so.
    #[serde(default)]
    pub registration: u64,
    /// What it has told of itself since.
    #[serde(default, skip_serializing_if = "NodeFacts::is_default")]
    pub facts: NodeFacts,
}

/// What a node tells of itself whenever its agent starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct NodeFacts {
    pub labels: Labels,
    /// Empty: it is in none.
    pub zone: String,
    pub region: String,
    /// Beside those of its registration.
    pub addresses: Vec<IpAddr>,
    /// How its pods are reached; None: as by default.
    pub tunnel: Option<Tunnel>,
    /// Where its agent answers for its health.
    pub health: Option<SocketAddr>,
}

/// How packets to pods of another node travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Tunnel {
    Vxlan,
    Direct,
}

impl Tunnel {
    /// As nodes report it.
    pub fn as_str(self) -> &'static str {
        match self {
            Tunnel::Vxlan => "vxlan",
            Tunnel::Direct => "direct",
        }
    }

    /// Reads what [`Self::as_str`] writes.
    pub fn from_name(text: &str) -> Option<Self> {
        [Tunnel::Vxlan, Tunnel::Direct].into_iter().find(|tunnel| tunnel.as_str() == text)
    }
}

impl NodeFacts {
    /// Whether nothing was told.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl NodeRecord {
    /// What it calls and is called by, of every family that it has: those of its registration first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.registered().chain(self.facts.addresses.iter().copied())
    }

    /// The addresses that it registered with.
    pub fn registered(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [self.address].into_iter().chain(self.address6.map(IpAddr::V6))
    }

    /// What selectors of nodes see: what it has told, and what Kubernetes gives every node.
    pub fn labels(&self) -> Labels {
        let mut labels = self.facts.labels.clone();
        let mut given = |key: &str, value: &str| {
            if !value.is_empty() {
                labels.entry(key.to_owned()).or_insert_with(|| value.to_owned());
            }
        };
        given("kubernetes.io/hostname", &self.name);
        given("topology.kubernetes.io/zone", &self.facts.zone);
        given("topology.kubernetes.io/region", &self.facts.region);
        labels
    }

    /// What policies would do to the node itself is only told of.
    pub fn is_audited(&self) -> bool {
        self.facts.labels.get(AUDIT_ANNOTATION).is_some_and(|text| text == "true")
    }

    /// Whether an address is one of those.
    pub fn is_at(&self, address: IpAddr) -> bool {
        self.addresses().any(|own| own == address)
    }
}

/// Where a declared workload runs, as its node reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct WorkloadBinding {
    pub node: String,
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
}

/// What `apply` allocated for a service, local or imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ServiceAllocation {
    pub virtual_ip: Option<IpAddr>,
    /// Of the other family, where the service has both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_ip: Option<IpAddr>,
    /// In the order of ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_ports: Vec<NodePort>,
    /// Where each node answers whether it has an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_port: Option<u16>,
    /// Service port -> loopback port of its outbound listener.
    pub proxy_ports: BTreeMap<u16, u16>,
    /// Service port -> what of its calls goes to peers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overflow: BTreeMap<u16, Overflow>,
}

/// A port at every node that leads to a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NodePort {
    pub port: u16,
    pub protocol: Protocol,
    pub node_port: u16,
}

/// A share of a service port's calls goes to peers, because callers report that they fail here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overflow {
    /// Of all calls; at most [`MAX_OVERFLOW_PERCENT`](crate::limits::MAX_OVERFLOW_PERCENT).
    pub percent: u8,
    /// Callers that saw half or more of their calls fail, when it was set.
    pub failing: u32,
    /// Callers that had called enough to say something.
    pub callers: u32,
    /// When it was set, by the leader's clock.
    pub since_unix_ms: u64,
}

/// A control-plane replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ReplicaRecord {
    pub id: u64,
    /// `host:port` of its mesh door.
    pub address: String,
    /// It is given the log and does not vote; else it votes once it has caught up.
    #[serde(default)]
    pub learner: bool,
}

/// Another cluster, as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PeerRecord {
    pub cluster: String,
    pub trust_domain: TrustDomain,
    pub mesh_domain: String,
    pub roots: Vec<Vec<u8>>,
    /// Kept by `apply`, but for what is revoked.
    #[serde(default)]
    pub trust: DomainTrust,
    pub doors: Vec<String>,
    pub gateways: Vec<String>,
    /// The peer's revision that the imports reflect.
    pub origin_revision: u64,
    pub imports: OrdMap<NamespacedName, Arc<ImportedService>>,
}

/// A service that a peer exports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ImportedService {
    pub ports: Vec<ImportedPort>,
    /// Identities that may serve it there.
    pub spiffe_ids: Vec<SpiffeId>,
    pub ready_endpoints: u32,
    pub exported_at_unix: u64,
    /// Namespaces that may know of it, there as here.
    #[serde(default, skip_serializing_if = "Visibility::is_everywhere")]
    pub visibility: Visibility,
    /// Where packets to its ports are taken in there. A port that has any is not reached through the peer's gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<PacketEntry>,
}

/// A node port of another cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketEntry {
    /// The service's port that it leads to.
    pub port: u16,
    #[allow(missing_docs)]
    pub protocol: Protocol,
    /// A node's address, and the node port.
    pub at: SocketAddr,
}

impl ImportedService {
    /// Where packets to one of its ports are taken in.
    pub fn entries_of(&self, port: u16, protocol: Protocol) -> impl Iterator<Item = SocketAddr> {
        let of_port = move |entry: &&PacketEntry| (entry.port, entry.protocol) == (port, protocol);
        self.entries.iter().filter(of_port).map(|entry| entry.at)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ImportedPort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
    pub app_protocol: AppProtocol,
}

/// What the store adds to an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMeta {
    /// `metadata.resourceVersion`: the revision of the last change.
    pub revision: u64,
    /// The revision at which it came to be.
    pub created_revision: u64,
    /// `metadata.uid`, in the form of a UUID.
    pub uid: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created_unix: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_same_place_in_both_ranges_of_pods() {
        let mut cluster = (*crate::compile::world::TestCluster::west().cluster).clone();
        let mut node = NodeRecord {
            name: "n1".into(),
            address: "192.0.2.1".parse().unwrap(),
            address6: Some("2001:db8::1".parse().unwrap()),
            pod_cidr: "10.1.5.0/24".parse().unwrap(),
            registration: 1,
            facts: NodeFacts::default(),
        };
        let slices = |cluster: &ClusterInfo, node: &NodeRecord| {
            cluster.slices(node).map(|net| net.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(slices(&cluster, &node), ["10.1.5.0/24"]);
        cluster.pod_cidr6 = Some("fd00:1::/112".parse().unwrap());
        assert_eq!(slices(&cluster, &node), ["10.1.5.0/24", "fd00:1::500/120"]);
        node.address6 = None;
        assert_eq!(slices(&cluster, &node), ["10.1.5.0/24"]);
    }
}
