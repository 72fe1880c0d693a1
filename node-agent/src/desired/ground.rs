//! What addresses are, before anybody has said which workload has them; and who a rule's peer is, as identities.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ebpf_shared::identity::{ANY, HEALTH, HOST, REMOTE_NODE, UNMANAGED, WORLD};
use ipnet::IpNet;

use super::{Dictionary, Inputs, dictionary::Place, table::is_host};
use crate::subscribe::{Entity, Peer};

/// Nodes, ranges of pods, and the CIDRs that policies name. All of it changes seldom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ground {
    /// CIDRs of policies.
    named: BTreeSet<IpNet>,
    /// Those that have an identity.
    cidrs: BTreeSet<IpNet>,
    /// Those that are the narrowest around some node's address.
    node_cidrs: BTreeSet<IpNet>,
    ranges: BTreeSet<IpNet>,
    /// This node's own addresses.
    own: BTreeSet<IpAddr>,
    /// Those of the others.
    nodes: BTreeSet<IpAddr>,
}

impl Ground {
    /// `named` are the CIDRs of policies.
    pub fn new(inputs: Inputs<'_>, named: &BTreeSet<IpNet>, dictionary: &mut Dictionary) -> Self {
        let Inputs { resources, node, gateways, .. } = inputs;
        let mut own: BTreeSet<IpAddr> = node.iter().chain(gateways.iter().copied()).collect();
        let mut nodes: BTreeSet<IpAddr> = BTreeSet::new();
        for each in resources.nodes.values() {
            let is_this = each.all_addresses().any(|address| node.iter().any(|own| own == address));
            if is_this { own.extend(each.all_addresses()) } else { nodes.extend(each.all_addresses()) }
        }
        nodes.retain(|address| !own.contains(address));
        let ranges: BTreeSet<IpNet> =
            resources.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
        // A rule about addresses outside the mesh says nothing of pods, known or not.
        let is_outside = |cidr: &&IpNet| around(cidr, &ranges).is_none();
        let cidrs: BTreeSet<IpNet> = named.iter().filter(is_outside).copied().collect();
        let node_cidrs: BTreeSet<IpNet> =
            nodes.iter().filter_map(|address| around(&(*address).into(), &cidrs)).collect();
        dictionary.keep_places(|place| match place {
            Place::Outside(cidr) => cidrs.contains(cidr),
            Place::Node(cidr) => node_cidrs.contains(cidr),
        });
        for cidr in &cidrs {
            dictionary.place(Place::Outside(*cidr));
        }
        for cidr in &node_cidrs {
            dictionary.place(Place::Node(*cidr));
        }
        Self { named: named.clone(), cidrs, node_cidrs, ranges, own, nodes }
    }

    /// Whether these are the CIDRs of policies.
    pub fn is_named(&self, named: &BTreeSet<IpNet>) -> bool {
        self.named == *named
    }

    /// Whether it is this node's own.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    /// This node's addresses.
    pub fn own(&self) -> impl Iterator<Item = IpAddr> {
        self.own.iter().copied()
    }

    /// Everything that something is said of.
    pub fn nets(&self) -> BTreeSet<IpNet> {
        let hosts = self.own.iter().chain(&self.nodes).map(|address| IpNet::from(*address));
        hosts.chain(self.ranges.iter().copied()).chain(self.cidrs.iter().copied()).collect()
    }

    /// What is said of a prefix.
    pub fn identity(&self, net: &IpNet, dictionary: &Dictionary) -> Option<u32> {
        let address = net.addr();
        if is_host(net) {
            if self.own.contains(&address) {
                return Some(HOST);
            }
            if self.nodes.contains(&address) {
                let cidr = around(net, &self.cidrs);
                let local = cidr.and_then(|cidr| dictionary.known_place(Place::Node(cidr)));
                return Some(local.unwrap_or(REMOTE_NODE));
            }
        }
        if self.ranges.contains(net) {
            return Some(UNMANAGED);
        }
        self.cidrs.get(net).and_then(|cidr| dictionary.known_place(Place::Outside(*cidr)))
    }

    /// Everybody that a rule with this peer is about. `own` are the identities of this node's addresses.
    pub fn peers(&self, peer: &Peer, own: &BTreeSet<u32>, dictionary: &Dictionary) -> Vec<u32> {
        let places = |cidrs: &BTreeSet<IpNet>, place: fn(IpNet) -> Place| -> Vec<u32> {
            cidrs.iter().filter_map(|cidr| dictionary.known_place(place(*cidr))).collect()
        };
        match peer {
            Peer::Any => vec![ANY],
            Peer::Identity(identity) => vec![*identity],
            // The kernel answers with the narrowest CIDR, so a rule holds for those inside its own as well.
            Peer::Cidr(outer) => {
                let inside = self.cidrs.range(outer..).take_while(|inner| outer.contains(*inner));
                let both = inside.flat_map(|inner| [Place::Outside(*inner), Place::Node(*inner)]);
                both.filter_map(|place| dictionary.known_place(place)).collect()
            }
            Peer::Entity(entity) => match entity {
                Entity::World => [vec![WORLD], places(&self.cidrs, Place::Outside)].concat(),
                Entity::Host => own.iter().copied().collect(),
                Entity::RemoteNode => [vec![REMOTE_NODE], places(&self.node_cidrs, Place::Node)].concat(),
                // The agent of the own node asks.
                Entity::Health => own.iter().copied().chain([HEALTH]).collect(),
                Entity::Unmanaged => vec![UNMANAGED],
            },
            Peer::Nobody => Vec::new(),
        }
    }
}

/// The narrowest of some CIDRs that holds a prefix, or is it.
fn around(net: &IpNet, cidrs: &BTreeSet<IpNet>) -> Option<IpNet> {
    let mut wider = Some(*net);
    while let Some(net) = wider {
        if cidrs.contains(&net) {
            return Some(net);
        }
        wider = net.supernet();
    }
    None
}
