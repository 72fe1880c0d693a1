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

use crate::{desired::PodAddresses, engine::Engine, subscribe::Resources};

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

    /// Whether there is a device.
    pub const fn is_tunnel(self) -> bool {
        !matches!(self, Self::Direct)
    }
}

/// Who has which addresses: ranges of pods, and the nodes' own, from which nodes call pods. PURE.
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
        if mode == Mode::VxlanIpv6 && other.address6.is_none() {
            tracing::debug!(node = name, "has no IPv6 address: its pods can't be reached");
            continue;
        }
        let v6 = other.address6.map_or(Addr::UNSPECIFIED, Addr::from);
        let hop = Hop { v4: other.address.into(), v6, flags: by, padding: 0 };
        let addresses = [Some(IpAddr::V4(other.address)), other.address6.map(IpAddr::V6)];
        let nets = other.pod_cidrs.iter().copied();
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
    use crate::subscribe::NodeRoute;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn resources() -> Resources {
        let mut resources = Resources::default();
        for (name, last) in [("n1", 1u8), ("n2", 2)] {
            let node = NodeRoute {
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
