//! `cilium.io/v2 CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`: what of them the data plane enforces.
//!
//! The rules are those of Cilium (its `pkg/policy/api`): one family of peers in an entry, an entry that says neither
//! peers nor ports admits nobody (yet makes the direction denied by default), deny entries beat allow entries, and a
//! direction that has entries of either kind is denied by default unless `enableDefaultDeny` says otherwise. What would
//! need more than the data plane has is refused with the field's path, never ignored.

mod far;
mod http;
mod icmp;
mod render;
mod selector;
#[cfg(test)]
mod tests;
mod wire;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{LabelSelector, Meta, PortRef, Protocol};
use crate::policy::NamePattern;

pub use http::{AMBIGUOUS_PATH, HttpRequest, HttpRule, HttpRuleHeader};
pub(super) use render::render;
pub(super) use wire::WireCilium;

/// One object of either kind. That of the whole cluster has no namespace in its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CiliumPolicy {
    pub meta: Meta,
    pub spec: Option<CiliumRule>,
    /// At most 16; there is one rule at least, here or in `spec`.
    #[serde(default)]
    pub specs: Vec<CiliumRule>,
}

/// What a policy says of the workloads that it selects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CiliumRule {
    /// Says nothing where `nodes` does.
    pub subject: CiliumSelector,
    /// `nodeSelector`: the nodes themselves, by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<LabelSelector>,
    pub ingress: CiliumSide,
    pub egress: CiliumSide,
}

/// One direction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CiliumSide {
    pub allow: Vec<CiliumEntry>,
    pub deny: Vec<CiliumEntry>,
    /// `enableDefaultDeny`, where the user says it.
    pub default_deny: Option<bool>,
}

impl CiliumSide {
    /// Whether what no entry allows is denied: as said, or where there is any entry.
    pub fn denies_by_default(&self) -> bool {
        self.default_deny.unwrap_or(!self.allow.is_empty() || !self.deny.is_empty())
    }
}

/// One entry of `ingress`, `ingressDeny`, `egress` or `egressDeny`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumEntry {
    /// Without any, and with ports: whoever.
    pub peers: CiliumPeers,
    /// Those of all elements of `toPorts`. Empty: all ports and protocols.
    pub ports: Vec<CiliumPort>,
    /// Those of all elements of `icmps`, instead of ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub icmps: Vec<CiliumIcmp>,
    /// `toPorts[].rules.dns`: names that may be asked for at these ports. Empty: whatever.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<NamePattern>,
    /// `toPorts[].listener.name`: the proxy of the workload's node by which alone these ports are reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// `toPorts[].rules.http`: requests that are let through at these ports. Empty: whatever.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRule>,
}

/// A type of ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CiliumIcmp {
    pub v6: bool,
    pub kind: u8,
}

impl CiliumEntry {
    /// It stands there for the default denial alone: `ingress: [{}]`.
    pub fn is_empty(&self) -> bool {
        self.peers == CiliumPeers::Unsaid && self.ports.is_empty() && self.icmps.is_empty()
    }
}

/// Peers of an entry: one family of them, and never an empty list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CiliumPeers {
    #[allow(missing_docs)]
    Unsaid,
    /// Workloads of this cluster.
    Endpoints(Vec<CiliumSelector>),
    /// `fromCIDR`: addresses outside the mesh.
    Cidrs(Vec<IpNet>),
    /// `fromCIDRSet`
    CidrSets(Vec<CiliumCidrSet>),
    #[allow(missing_docs)]
    Entities(Vec<CiliumEntity>),
    /// `toServices`
    Services(Vec<CiliumService>),
    /// `toFQDNs`
    Names(Vec<NamePattern>),
}

/// One element of `toServices`. Without a namespace the policy's own is meant, or, by labels and of a policy without one,
/// every one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum CiliumService {
    Named { namespace: Option<String>, name: String },
    Selected { namespace: Option<String>, labels: LabelSelector },
}

/// A block without parts of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CiliumCidrSet {
    pub cidr: IpNet,
    pub except: Vec<IpNet>,
}

/// Who is known without labels or addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CiliumEntity {
    /// Anybody.
    All,
    /// Addresses that are neither nodes nor among the pods'.
    World,
    #[allow(missing_docs)]
    WorldIpv4,
    #[allow(missing_docs)]
    WorldIpv6,
    /// The workloads and the nodes of this cluster.
    Cluster,
    /// The workload's own node, which is always admitted unless a denial means it.
    Host,
    /// The nodes of this cluster but the workload's own.
    RemoteNode,
    /// Health checks. They come from the workload's own node.
    Health,
    /// Addresses among the pods' that no workload has.
    Unmanaged,
    /// Every workload that has an identity.
    Mesh,
    /// Gateways, through which traffic of peers comes.
    Ingress,
    /// The endpoints of the service `kubernetes` in the namespace `default`, if there is one.
    KubeApiserver,
    /// Workloads that have no identity yet, which have no traffic either.
    Init,
    /// Nobody.
    None,
}

impl CiliumEntity {
    /// All of them.
    pub const ALL: [CiliumEntity; 14] = [
        CiliumEntity::All,
        CiliumEntity::World,
        CiliumEntity::WorldIpv4,
        CiliumEntity::WorldIpv6,
        CiliumEntity::Cluster,
        CiliumEntity::Host,
        CiliumEntity::RemoteNode,
        CiliumEntity::Health,
        CiliumEntity::Unmanaged,
        CiliumEntity::Mesh,
        CiliumEntity::Ingress,
        CiliumEntity::KubeApiserver,
        CiliumEntity::Init,
        CiliumEntity::None,
    ];

    /// As Cilium spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            CiliumEntity::All => "all",
            CiliumEntity::World => "world",
            CiliumEntity::WorldIpv4 => "world-ipv4",
            CiliumEntity::WorldIpv6 => "world-ipv6",
            CiliumEntity::Cluster => "cluster",
            CiliumEntity::Host => "host",
            CiliumEntity::RemoteNode => "remote-node",
            CiliumEntity::Health => "health",
            CiliumEntity::Unmanaged => "unmanaged",
            CiliumEntity::Mesh => "mesh",
            CiliumEntity::Ingress => "ingress",
            CiliumEntity::KubeApiserver => "kube-apiserver",
            CiliumEntity::Init => "init",
            CiliumEntity::None => "none",
        }
    }
}

/// One element of `toPorts[].ports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiliumPort {
    /// None: TCP, UDP and SCTP.
    pub protocol: Option<Protocol>,
    /// None: every port of the protocol.
    pub port: Option<PortRef>,
    /// Inclusive; only with a numeric port.
    pub end_port: Option<u16>,
}

impl CiliumPort {
    /// The protocols that it is about.
    pub fn protocols(&self) -> &[Protocol] {
        const ANY: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        self.protocol.as_ref().map_or(ANY, std::slice::from_ref)
    }
}

/// Workloads, by their labels and by the namespace that they are in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct CiliumSelector {
    #[allow(missing_docs)]
    pub pods: LabelSelector,
    /// Over the labels of Namespace objects and their names. None: the selector says nothing of namespaces, which means the
    /// policy's own, or every one if the policy has none.
    pub namespaces: Option<LabelSelector>,
}
