//! What the kernel is to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{
    IdentityTable, ProxyEntry,
    service::{ServiceEntry, ServiceFrontend},
};
use crate::kernel::{rules::ClassEntry, ruleset::RuleSet};

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
    pub identities: IdentityTable,
    /// Who addresses are for connections that are there already, where names of theirs have run out.
    pub lingering: BTreeMap<IpAddr, u32>,
    /// By this node's own numbers: a number never changes its contents.
    pub rulesets: BTreeMap<u32, Arc<RuleSet>>,
    /// By this node's own numbers: a number never changes what holds for whoever is not named.
    pub classes: BTreeMap<u32, ClassEntry>,
    /// By index of the host's end of the pod's link.
    pub endpoints: BTreeMap<u32, EndpointEntry>,
    /// Their addresses.
    pub services: BTreeMap<ServiceFrontend, ServiceEntry>,
    /// By cookie; only pods with a sidecar.
    pub netns: BTreeMap<u64, NetnsEntry>,
    /// By slot.
    pub proxies: BTreeMap<u16, ProxyEntry>,
}

/// An endpoint with its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct EndpointEntry {
    pub addresses: PodAddresses,
    pub identity: u32,
    pub class: u32,
    /// What policy denies is told of, and passes.
    pub audit: bool,
    /// [`Pod::incarnation`].
    pub incarnation: u16,
}

/// What the sidecar of a pod takes over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetnsEntry {
    /// Port and protocol.
    pub captured: BTreeSet<(u16, u8)>,
}
