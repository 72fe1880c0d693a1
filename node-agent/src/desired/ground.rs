//! What addresses are, before anybody has said which workload has them; and who a rule's peer is, as identities.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ebpf_shared::identity::{ANY, HEALTH, HOST, REMOTE_NODE, UNMANAGED, WORKLOADS, WORLD};
use ipnet::IpNet;
use mesh_model::policy::NamePattern;

use super::{Desired, Dictionary, Inputs, dictionary::Place, mentions::Mentions, table::is_host};
use crate::names::Names;
use crate::subscribe::{Entity, Peer};

/// Places that are kept beyond those that addresses have.
const SPARE: usize = 64;

/// Nodes, ranges of pods, the CIDRs that policies name, which change seldom; and where names are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ground {
    /// What policies name.
    mentions: Mentions,
    /// CIDRs that have an identity.
    cidrs: BTreeSet<IpNet>,
    /// Those that are the narrowest around some node's address.
    node_cidrs: BTreeSet<IpNet>,
    ranges: BTreeSet<IpNet>,
    /// This node's own addresses.
    own: BTreeSet<IpAddr>,
    /// Those of the others.
    nodes: BTreeSet<IpAddr>,
    /// Addresses with names that policies name.
    hosts: BTreeMap<IpAddr, Host>,
    /// Their identities, and those of a moment ago.
    places: BTreeMap<Place, u32>,
}

/// What an address is by its names in DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    /// To what begins now.
    live: Option<Place>,
    /// To what is there already, if that is another.
    lasting: Option<Place>,
}

impl Host {
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.live.iter().chain(&self.lasting)
    }
}

impl Ground {
    /// `mentions` is what policies name, `current` what the kernel holds.
    pub fn new(
        inputs: Inputs<'_>,
        mentions: &Mentions,
        current: &Desired,
        dictionary: &mut Dictionary,
    ) -> Self {
        let Inputs { resources, node, gateways, names, .. } = inputs;
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
        let cidrs: BTreeSet<IpNet> = mentions.cidrs.iter().filter(is_outside).copied().collect();
        let node_cidrs: BTreeSet<IpNet> =
            nodes.iter().filter_map(|address| around(&(*address).into(), &cidrs)).collect();
        let mut ground =
            Self { mentions: mentions.clone(), cidrs, node_cidrs, ranges, own, nodes, ..Self::default() };
        if !ground.mentions.names.is_empty() {
            let host = |address| Some((address, ground.host(address, names)?));
            ground.hosts = names.addresses().filter_map(host).collect();
        }
        let named: BTreeSet<&Place> = ground.hosts.values().flat_map(Host::places).collect();
        dictionary.keep_places(|place| match place {
            Place::Outside(cidr) => ground.cidrs.contains(cidr),
            Place::Node(cidr) => ground.node_cidrs.contains(cidr),
            Place::Named(..) => named.contains(place),
        });
        for cidr in &ground.cidrs {
            dictionary.place(Place::Outside(*cidr));
        }
        for cidr in &ground.node_cidrs {
            dictionary.place(Place::Node(*cidr));
        }
        let held = if dictionary.begins() { ground.held(current) } else { BTreeMap::new() };
        for address in ground.hosts.keys().copied().collect::<Vec<_>>() {
            ground.number(address, &held, dictionary);
        }
        ground
    }

    /// What numbers in the kernel stand for, as far as all that has one is in one place.
    fn held(&self, current: &Desired) -> BTreeMap<Place, u32> {
        let live = |net: &IpNet| {
            let host = self.hosts.get(&net.addr()).filter(|_| is_host(net))?;
            host.live.clone()
        };
        let lasting = |address: &IpAddr| {
            let host = self.hosts.get(address)?;
            host.lasting.clone().or_else(|| host.live.clone())
        };
        let mut places: BTreeMap<u32, Option<Place>> = BTreeMap::new();
        let all = current.identities.iter().map(|(net, number)| (*number, live(net)));
        for (number, place) in all.chain(current.lingering.iter().map(|(at, number)| (*number, lasting(at))))
        {
            let known = places.entry(number).or_insert_with(|| place.clone());
            if *known != place {
                *known = None;
            }
        }
        places.into_iter().filter_map(|(number, place)| Some((place?, number))).collect()
    }

    /// What an address is by its names; `None`: nothing.
    fn host(&self, address: IpAddr, names: &Names) -> Option<Host> {
        let net = IpNet::from(address);
        // Names are of what is outside the mesh.
        let is_inside = self.own.contains(&address) || self.nodes.contains(&address);
        if is_inside || around(&net, &self.ranges).is_some() {
            return None;
        }
        let (live, lasting) = names.patterns_of(address, &self.mentions.names);
        let cidr = around(&net, &self.cidrs);
        let place = |patterns: BTreeSet<&NamePattern>| {
            let set = || Arc::new(patterns.iter().copied().cloned().collect());
            (!patterns.is_empty()).then(|| Place::Named(set(), cidr))
        };
        let lasting = if lasting == live { None } else { place(lasting) };
        let host = Host { live: place(live), lasting };
        (host.live.is_some() || host.lasting.is_some()).then_some(host)
    }

    /// Gives the places of an address their numbers; true: one of them is new.
    fn number(&mut self, address: IpAddr, held: &BTreeMap<Place, u32>, dictionary: &mut Dictionary) -> bool {
        let Some(Host { live, lasting }) = self.hosts.get(&address).cloned() else { return false };
        let mut is_new = false;
        for place in [live, lasting] {
            if let Some(place) = place.filter(|place| !self.places.contains_key(place)) {
                let number = dictionary.place_with(&place, held.get(&place).copied());
                self.places.insert(place, number);
                is_new = true;
            }
        }
        is_new
    }

    /// Takes in that the names of these addresses changed. True: one of them has an identity that no class speaks of yet.
    pub fn note(&mut self, addresses: &BTreeSet<IpAddr>, names: &Names, dictionary: &mut Dictionary) -> bool {
        let mut is_new = false;
        for address in addresses {
            match self.host(*address, names) {
                Some(host) => drop(self.hosts.insert(*address, host)),
                None => drop(self.hosts.remove(address)),
            }
            is_new |= self.number(*address, &BTreeMap::new(), dictionary);
        }
        is_new
    }

    /// The patterns of names that policies name.
    pub fn names(&self) -> impl Iterator<Item = &NamePattern> {
        self.mentions.names.iter()
    }

    /// Whether many identities are of no use any more.
    pub fn is_cluttered(&self) -> bool {
        self.places.len() > 2 * self.hosts.len() + SPARE
    }

    /// Who an address is to what is there already, if that is another than to what begins now.
    pub fn lasting(&self, address: IpAddr) -> Option<u32> {
        let place = self.hosts.get(&address)?.lasting.as_ref()?;
        self.places.get(place).copied()
    }

    /// The same for all.
    pub fn all_lasting(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.hosts.keys().filter_map(|address| Some((*address, self.lasting(*address)?)))
    }

    /// Whether this is what policies name.
    pub fn rests_on(&self, mentions: &Mentions) -> bool {
        self.mentions == *mentions
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
        let named = self.hosts.iter().filter(|(_, host)| host.live.is_some());
        let named = named.map(|(address, _)| IpNet::from(*address));
        hosts.chain(named).chain(self.ranges.iter().copied()).chain(self.cidrs.iter().copied()).collect()
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
                let local = cidr.and_then(|cidr| dictionary.known_place(&Place::Node(cidr)));
                return Some(local.unwrap_or(REMOTE_NODE));
            }
            if let Some(live) = self.hosts.get(&address).and_then(|host| host.live.as_ref()) {
                return self.places.get(live).copied();
            }
        }
        if self.ranges.contains(net) {
            return Some(UNMANAGED);
        }
        self.cidrs.get(net).and_then(|cidr| dictionary.known_place(&Place::Outside(*cidr)))
    }

    /// Everybody that a rule with this peer is about. `own` are the identities of this node's addresses.
    pub fn peers(&self, peer: &Peer, own: &BTreeSet<u32>, dictionary: &Dictionary) -> Vec<u32> {
        let places = |cidrs: &BTreeSet<IpNet>, place: fn(IpNet) -> Place| -> Vec<u32> {
            cidrs.iter().filter_map(|cidr| dictionary.known_place(&place(*cidr))).collect()
        };
        match peer {
            Peer::Any => vec![ANY],
            Peer::Identity(identity) => vec![*identity],
            Peer::Identities(identities) => identities.to_vec(),
            // The kernel answers with the narrowest CIDR, so a rule holds for those inside its own as well.
            Peer::Cidr(outer) => self.within(std::slice::from_ref(outer), dictionary),
            Peer::Cidrs(outer) => self.within(outer, dictionary),
            Peer::Name(name) => self.named(|_, names| names.contains(name)).collect(),
            Peer::Entity(entity) => match entity {
                Entity::World => {
                    let named = self.named(|_, _| true).collect();
                    [vec![WORLD], places(&self.cidrs, Place::Outside), named].concat()
                }
                Entity::Host => own.iter().copied().collect(),
                Entity::RemoteNode => [vec![REMOTE_NODE], places(&self.node_cidrs, Place::Node)].concat(),
                // The agent of the own node asks.
                Entity::Health => own.iter().copied().chain([HEALTH]).collect(),
                Entity::Unmanaged => vec![UNMANAGED],
                Entity::Workloads => vec![WORKLOADS],
            },
            Peer::Nobody => Vec::new(),
        }
    }
}

impl Ground {
    /// Everybody in any of these blocks, each once.
    fn within(&self, blocks: &[IpNet], dictionary: &Dictionary) -> Vec<u32> {
        let mut all = BTreeSet::new();
        for outer in blocks {
            let inside = self.cidrs.range(outer..).take_while(|inner| outer.contains(*inner));
            let both = inside.flat_map(|inner| [Place::Outside(*inner), Place::Node(*inner)]);
            all.extend(both.filter_map(|place| dictionary.known_place(&place)));
        }
        let outer: BTreeSet<IpNet> = blocks.iter().copied().collect();
        all.extend(self.named(|cidr, _| cidr.is_some_and(|inner| around(&inner, &outer).is_some())));
        all.into_iter().collect()
    }

    /// Identities of addresses with names, by the narrowest CIDR around them and the patterns that hold for the names.
    fn named(
        &self,
        wanted: impl Fn(Option<IpNet>, &BTreeSet<NamePattern>) -> bool,
    ) -> impl Iterator<Item = u32> {
        self.places.iter().filter_map(move |(place, number)| match place {
            Place::Named(names, cidr) if wanted(*cidr, names) => Some(*number),
            Place::Named(..) | Place::Outside(_) | Place::Node(_) => None,
        })
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
