//! The overlay: packets between nodes in VXLAN, for underlays that do not route pods.
//!
//! The device is one for all nodes. The programs at it (`ebpf/src/overlay.rs`) say where a packet goes, with the table of
//! nodes that is kept here, and let in only what comes from whom it says it is from. Routes lead to the device
//! ([`crate::routes`]).

mod device;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use clap::ValueEnum;
pub use device::{DEVICE, DeviceError, ensure, open, remove};
use ebpf_shared::overlay::Hop;
use ebpf_shared::{Addr, overlay};
use ipnet::IpNet;
use mesh_model::records::Tunnel;
use xds_proto::isthmus::local::v1::{Connectivity, ReachedNode};

use crate::{
    desired::PodAddresses,
    engine::Engine,
    subscribe::{NodeRoute, Resources},
};

/// After a write that the kernel refused.
const RETRY: Duration = Duration::from_secs(5);

/// How packets get to pods of other nodes. All nodes of a cluster have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Mode {
    /// By routes to the nodes: the underlay carries pods' addresses between nodes, e.g. because all share a network.
    #[default]
    Direct,
    /// In VXLAN over the nodes' IPv4 addresses.
    Vxlan,
    /// In VXLAN over the nodes' IPv6 addresses (`--address6`).
    VxlanIpv6,
}

impl Mode {
    /// Bytes of a frame of the underlay that pods can't use.
    pub const fn overhead(self) -> u32 {
        match self {
            Self::Direct => 0,
            Self::Vxlan => overlay::OVERHEAD4,
            Self::VxlanIpv6 => overlay::OVERHEAD6,
        }
    }

    /// What is left for pods of an underlay's MTU: IPv6 needs 1280.
    pub const fn inner_mtu(self, underlay: u32) -> u32 {
        let left = underlay.saturating_sub(self.overhead());
        if left < 1280 { 1280 } else { left }
    }

    /// As it is given on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
            Self::VxlanIpv6 => "vxlan-ipv6",
        }
    }

    /// As other nodes are told.
    pub const fn kind(self) -> Tunnel {
        match self {
            Self::Direct => Tunnel::Direct,
            Self::Vxlan | Self::VxlanIpv6 => Tunnel::Vxlan,
        }
    }

    /// Whether there is a device.
    pub const fn is_tunnel(self) -> bool {
        !matches!(self, Self::Direct)
    }
}

/// How packets get to another node and its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reach {
    Tunnel,
    Routes,
    /// Not at all, and why.
    Nothing(&'static str),
}

/// The way from a node of this mode to another one. PURE.
pub fn reach(other: &NodeRoute, mode: Mode) -> Reach {
    if !mode.is_tunnel() || !other.has_tunnel() {
        Reach::Routes
    } else if mode == Mode::VxlanIpv6 && other.address6.is_none() {
        Reach::Nothing("it has no IPv6 address")
    } else {
        Reach::Tunnel
    }
}

/// What a node's agent says of its connectivity. PURE.
pub fn connectivity(resources: &Resources, node: &str, mode: Mode, mtu: u32) -> Connectivity {
    let others = resources.nodes.iter().filter(|(name, _)| *name != node);
    let nodes = others.map(|(name, other)| {
        let (way, why) = match reach(other, mode) {
            Reach::Tunnel => ("tunnel", ""),
            Reach::Routes => ("routes", ""),
            Reach::Nothing(why) => ("none", why),
        };
        let address = match (mode, other.address6) {
            (Mode::VxlanIpv6, Some(address)) => IpAddr::V6(address),
            _ => IpAddr::V4(other.address),
        };
        ReachedNode { name: name.clone(), address: address.to_string(), way: way.into(), why: why.into() }
    });
    Connectivity { mode: mode.name().into(), mtu, nodes: nodes.collect(), short_cuts: Vec::new() }
}

/// Who has which addresses: ranges of pods, and the nodes' own, from which nodes call pods; of nodes without a tunnel the
/// own only. PURE.
pub fn hops(
    resources: &Resources,
    node: &str,
    own: PodAddresses,
    own_pods: &[IpNet],
    mode: Mode,
) -> BTreeMap<IpNet, Hop> {
    let mut table = BTreeMap::new();
    let by = if mode == Mode::VxlanIpv6 { Hop::BY_IPV6 } else { 0 };
    for (name, other) in resources.nodes.iter().filter(|(name, _)| *name != node) {
        let routed = match reach(other, mode) {
            Reach::Tunnel => 0,
            Reach::Routes => Hop::ROUTED,
            Reach::Nothing(why) => {
                tracing::debug!(node = name, why, "can't be reached");
                continue;
            }
        };
        let v6 = other.address6.map_or(Addr::UNSPECIFIED, Addr::from);
        let hop = Hop { v4: other.address.into(), v6, flags: by | routed, padding: 0 };
        let addresses = [Some(IpAddr::V4(other.address)), other.address6.map(IpAddr::V6)];
        let nets = other.pod_cidrs.iter().copied().filter(|_| routed == 0);
        table.extend(nets.chain(addresses.into_iter().flatten().map(IpNet::from)).map(|net| (net, hop)));
    }
    // Last, so that no other node's word is taken about what is here.
    let v6 = own.v6.map_or(Addr::UNSPECIFIED, Addr::from);
    let here = Hop { v4: own.v4.into(), v6, flags: Hop::HERE | by, padding: 0 };
    table.extend(own_pods.iter().copied().chain(own.iter().map(IpNet::from)).map(|net| (net, here)));
    table
}

/// Keeps the kernel's table of nodes as it is to be, for ever. Stop it by dropping the future.
pub async fn keep_for_ever(
    engine: Engine,
    node: String,
    own: PodAddresses,
    own_pods: Vec<IpNet>,
    mode: Mode,
) {
    let mut changes = engine.changes();
    let mut held = None;
    loop {
        changes.borrow_and_update();
        let wanted = engine.resources(|resources| hops(resources, &node, own, &own_pods, mode));
        if held.as_ref() != Some(&wanted) {
            match engine.set_hops(&wanted) {
                Ok(()) => held = Some(wanted),
                Err(error) => {
                    tracing::error!(%error, "pods of other nodes may be out of reach; trying again in {RETRY:?}");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn resources() -> Resources {
        let mut resources = Resources::default();
        for (name, last) in [("n1", 1u8), ("n2", 2)] {
            let node = NodeRoute {
                tunnel: None,
                address: [192, 0, 2, last].into(),
                address6: (last == 2).then(|| "2001:db8::2".parse().unwrap()),
                pod_cidrs: vec![net(&format!("10.1.{last}.0/24"))],
                addresses: Vec::new(),
                zone: String::new(),
            };
            resources.nodes.insert(name.into(), node);
        }
        resources
    }

    #[test]
    fn every_node_has_its_pods_and_its_own_addresses_and_this_one_is_here() {
        let own = PodAddresses { v4: [192, 0, 2, 1].into(), v6: None };
        let table = hops(&resources(), "n1", own, &[net("10.1.1.0/24")], Mode::Vxlan);
        let nets: Vec<String> = table.keys().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.1.1.0/24", "10.1.2.0/24", "192.0.2.1/32", "192.0.2.2/32", "2001:db8::2/128"]);
        let there = table[&net("10.1.2.0/24")];
        assert_eq!((there.v4, there.flags), (std::net::Ipv4Addr::new(192, 0, 2, 2).into(), 0));
        assert!(table[&net("10.1.1.0/24")].is_here() && table[&net("192.0.2.1/32")].is_here());
    }

    #[test]
    fn a_node_without_a_tunnel_is_reached_by_routes_and_that_is_said() {
        let mut resources = resources();
        let own = PodAddresses { v4: [192, 0, 2, 1].into(), v6: None };
        resources.nodes.get_mut("n2").unwrap().tunnel = Some(Tunnel::Direct);
        for mode in [Mode::Vxlan, Mode::Direct] {
            let table = hops(&resources, "n1", own, &[], mode);
            assert!(!table.contains_key(&net("10.1.2.0/24")), "{mode:?}");
            let there = table[&net("192.0.2.2/32")];
            assert_eq!(
                (there.flags, there.is_tunnelled()),
                (Hop::ROUTED, false),
                "{mode:?}: a node all the same"
            );
        }
        let said = |mode| {
            let said = connectivity(&resources, "n1", mode, 1_450);
            (said.mode, said.nodes[0].way.clone(), said.nodes[0].address.clone())
        };
        assert_eq!(said(Mode::Vxlan), ("vxlan".into(), "routes".into(), "192.0.2.2".into()));
        resources.nodes.get_mut("n2").unwrap().tunnel = Some(Tunnel::Vxlan);
        let said = connectivity(&resources, "n2", Mode::VxlanIpv6, 1_430);
        assert_eq!(
            (said.nodes[0].way.as_str(), said.nodes[0].why.as_str()),
            ("none", "it has no IPv6 address")
        );
    }

    #[test]
    fn over_ipv6_only_nodes_that_have_it_are_reached() {
        let own = PodAddresses { v4: [192, 0, 2, 2].into(), v6: Some("2001:db8::2".parse().unwrap()) };
        let table = hops(&resources(), "n2", own, &[net("10.1.2.0/24")], Mode::VxlanIpv6);
        assert!(!table.contains_key(&net("10.1.1.0/24")));
        assert!(table[&net("10.1.2.0/24")].is_by_ipv6());
        assert_eq!(
            (Mode::Vxlan.overhead(), Mode::VxlanIpv6.overhead(), Mode::Direct.overhead()),
            (50, 70, 0)
        );
    }

    #[test]
    fn no_other_node_can_claim_what_is_here() {
        let mut resources = resources();
        resources.nodes.get_mut("n2").unwrap().pod_cidrs.push(net("10.1.1.0/24"));
        let own = PodAddresses { v4: [192, 0, 2, 1].into(), v6: None };
        let table = hops(&resources, "n1", own, &[net("10.1.1.0/24")], Mode::Vxlan);
        assert!(table[&net("10.1.1.0/24")].is_here());
    }
}
