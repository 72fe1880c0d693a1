//! Facts about the cluster that no user writes: what `apply` allocates, nodes report and peers tell.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    identity::{SpiffeId, TrustDomain},
    resource::{AppProtocol, NamespacedName, Protocol},
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
}

/// A node, registered by its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NodeRecord {
    pub name: String,
    pub address: IpAddr,
    /// The node's slice of the cluster's pod CIDR, allocated in `apply`.
    pub pod_cidr: IpNet,
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
}

/// A control-plane replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ReplicaRecord {
    pub id: u64,
    /// `host:port` of its mesh door.
    pub address: String,
}

/// Another cluster, as this one knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PeerRecord {
    pub cluster: String,
    pub trust_domain: TrustDomain,
    pub mesh_domain: String,
    pub roots: Vec<Vec<u8>>,
    pub doors: Vec<String>,
    pub gateways: Vec<String>,
    /// The peer's revision that the imports reflect.
    pub origin_revision: u64,
    pub imports: BTreeMap<NamespacedName, ImportedService>,
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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ImportedPort {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
    pub app_protocol: AppProtocol,
}
