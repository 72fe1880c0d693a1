//! What the kernel is to hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
};

use ebpf_shared::Direction;
use ipnet::Ipv4Net;

/// A pod of this node, as its creation left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    /// Its only address.
    pub address: Ipv4Addr,
    /// Of the host's end of its link.
    pub ifindex: u32,
    /// `SO_NETNS_COOKIE` of its network namespace.
    pub netns_cookie: u64,
}

/// The contents of all maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Prefix to identity.
    pub identities: BTreeMap<Ipv4Net, u32>,
    /// By this node's own numbers: a number never changes its rules.
    pub classes: BTreeMap<u32, ClassRules>,
    /// By index of the host's end of the pod's link.
    pub endpoints: BTreeMap<u32, EndpointEntry>,
    /// Virtual addresses.
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
    pub address: Ipv4Addr,
    pub identity: u32,
    pub class: u32,
}

/// A virtual address, port and protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct ServiceFrontend {
    pub address: Ipv4Addr,
    pub port: u16,
    pub protocol: u8,
}

/// Where a virtual address leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceEntry {
    /// Loopback port of the sidecar's listener; 0: none.
    pub proxy_port: u16,
    /// Weights expanded: one is picked with equal chance.
    pub slots: Vec<SocketAddrV4>,
}

/// What the sidecar of a pod takes over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetnsEntry {
    /// Port and protocol.
    pub captured: BTreeSet<(u16, u8)>,
}
