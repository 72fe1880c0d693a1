//! What the kernel is to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ebpf_shared::Direction;
use ipnet::IpNet;

use super::service::{ServiceEntry, ServiceFrontend};

/// A pod of this node, as its creation left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pod {
    pub addresses: PodAddresses,
    /// Of the host's end of its link.
    pub ifindex: u32,
    /// `SO_NETNS_COOKIE` of its network namespace.
    pub netns_cookie: u64,
}

impl Pod {
    /// What tells its connections from those of an earlier pod with the same interface index. Cookies count up as
    /// long as the node runs, and an index comes back after two billion others.
    pub fn incarnation(&self) -> u16 {
        let [a, b, c, d, e, f, g, h] = self.netns_cookie.to_le_bytes();
        [[a, b], [c, d], [e, f], [g, h]].into_iter().map(u16::from_le_bytes).fold(0, |all, part| all ^ part)
    }
}

/// The addresses of a pod, its only ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PodAddresses {
    pub v4: Ipv4Addr,
    /// On nodes that have IPv6 addresses for pods.
    pub v6: Option<Ipv6Addr>,
}

impl PodAddresses {
    /// Both.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        [IpAddr::V4(self.v4)].into_iter().chain(self.v6.map(IpAddr::V6))
    }

    /// Whether it is one of them.
    pub fn has(&self, address: IpAddr) -> bool {
        self.iter().any(|own| own == address)
    }
}

impl From<Ipv4Addr> for PodAddresses {
    fn from(v4: Ipv4Addr) -> Self {
        Self { v4, v6: None }
    }
}

/// The contents of all maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Prefix to identity.
    pub identities: BTreeMap<IpNet, u32>,
    /// By this node's own numbers: a number never changes its rules.
    pub classes: BTreeMap<u32, ClassRules>,
    /// By index of the host's end of the pod's link.
    pub endpoints: BTreeMap<u32, EndpointEntry>,
    /// Their addresses.
    pub services: BTreeMap<ServiceFrontend, ServiceEntry>,
    /// By cookie; only pods with a sidecar.
    pub netns: BTreeMap<u64, NetnsEntry>,
}

/// A policy in the kernel's terms.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
#[allow(missing_docs)]
pub struct ClassRules {
    /// Policy number of the default deny, if there is one.
    pub deny_ingress: Option<u32>,
    pub deny_egress: Option<u32>,
    pub rules: BTreeSet<RuleEntry>,
}

/// One rule: every field but the port range matches in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct RuleEntry {
    pub direction: Direction,
    /// [`ebpf_shared::identity::ANY`]: whoever.
    pub identity: u32,
    /// 0: any.
    pub protocol: u8,
    /// Inclusive; (0, 65535): any.
    pub ports: (u16, u16),
    pub allow: bool,
    pub policy_id: u32,
}

/// An endpoint with its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct EndpointEntry {
    pub addresses: PodAddresses,
    pub identity: u32,
    pub class: u32,
    /// [`Pod::incarnation`].
    pub incarnation: u16,
}

/// What the sidecar of a pod takes over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetnsEntry {
    /// Port and protocol.
    pub captured: BTreeSet<(u16, u8)>,
}
