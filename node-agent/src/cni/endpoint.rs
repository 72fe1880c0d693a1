//! A pod of this node, and what it is called by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_model::resource::NamespacedName;
use serde::{Deserialize, Serialize};

use super::{HostPort, MTU, netns::NetnsId};
use crate::desired::PodAddresses;

/// What CNI knows an endpoint by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct EndpointKey {
    pub container_id: String,
    pub ifname: String,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Endpoint {
    pub container_id: String,
    /// Inside the pod.
    pub ifname: String,
    pub workload: NamespacedName,
    /// Path as the runtime gave it.
    pub netns: String,
    pub netns_id: NetnsId,
    pub netns_cookie: u64,
    pub address: Ipv4Addr,
    #[serde(default)]
    pub address6: Option<Ipv6Addr>,
    pub host_interface: String,
    pub host_mac: [u8; 6],
    pub pod_mac: [u8; 6],
    /// Of the host's end; 0 until it is made.
    pub ifindex: u32,
    /// ADD has returned.
    pub ready: bool,
    /// Name in the CNI configuration; empty: of a release that did not remember it.
    #[serde(default)]
    pub network: String,
    /// Another plugin has made the interfaces and given the addresses: here the pod is only guarded.
    #[serde(default)]
    pub chained: bool,
    /// With [`Self::chained`]: addresses of this node by which the pod knows it.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Ports of the node that the runtime wants to lead to it.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
    /// Of both ends of its link.
    #[serde(default = "usual_mtu")]
    pub mtu: u32,
}

fn usual_mtu() -> u32 {
    MTU
}

impl Endpoint {
    /// What CNI knows it by.
    pub fn key(&self) -> EndpointKey {
        EndpointKey { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// Its addresses, as everyone is told them.
    pub fn addresses(&self) -> PodAddresses {
        PodAddresses { v4: self.address, v6: self.address6 }
    }

    /// Whether it is in this very network namespace. The number of one that is gone may come back with another, but
    /// its cookie does not until the node starts anew.
    pub fn is_in(&self, netns: NetnsId, cookie: u64) -> bool {
        self.netns_id == netns && self.netns_cookie == cookie
    }
}

/// The name of the host's end of a pod's link: `ism` and 12 hexadecimal digits, all of the 15 characters that
/// Linux allows. The same for the same pod always, so it can be removed without a memory of it.
pub fn host_interface(key: &EndpointKey) -> String {
    format!("ism{:012x}", hash(key) >> 16)
}

/// FNV-1a, whose high bits every byte reaches.
pub(super) fn hash(key: &EndpointKey) -> u64 {
    let bytes = key.container_id.bytes().chain([0]).chain(key.ifname.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
