//! Facts about the cluster that no user writes: what `apply` allocates, nodes report and peers tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use imbl::OrdMap;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    identity::{SpiffeId, TrustDomain},
    resource::{AppProtocol, NamespacedName, Protocol, Visibility},
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
    pub service_cidr: IpNet,
    /// Root certificates, DER.
    pub roots: Vec<Vec<u8>>,
    /// Kept by `apply`.
    #[serde(default)]
    pub trust: DomainTrust,
}

/// What belongs to the roots of a trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DomainTrust {
    /// Goes up whenever the roots change, and is never the same for two trust domains: data planes confirm it.
    pub generation: u64,
    /// SHA-256 of the root that leaves are to chain to, hexadecimal. Of the own domain only.
    pub active_root: String,
    /// Registrations of nodes whose certificates, and whose workloads' certificates, are refused.
    pub revoked: BTreeSet<u64>,
}

/// A node, registered by its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NodeRecord {
    pub name: String,
    pub address: IpAddr,
    /// The node's slice of the cluster's pod CIDR, allocated in `apply`.
    pub pod_cidr: IpNet,
    /// Which registration of a node in this cluster this is: every certificate that comes of it says so.
    #[serde(default)]
    pub registration: u64,
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
    /// Service port -> loopback port of its outbound listener.
    pub proxy_ports: BTreeMap<u16, u16>,
    /// Service port -> what of its calls goes to peers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overflow: BTreeMap<u16, Overflow>,
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
