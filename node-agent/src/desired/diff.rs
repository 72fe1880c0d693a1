//! The writes that the agent makes, and what is to change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ebpf_shared::Sides;
use ipnet::IpNet;

use super::{Desired, EndpointEntry, NetnsEntry, ProxyEntry, ServiceEntry, ServiceFrontend};
use crate::kernel::{rules::ClassEntry, ruleset::RuleSet};

/// All that the agent can ask of the kernel's maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapOp {
    /// Nothing refers to it yet.
    PutRuleSet(u32, Arc<RuleSet>),
    /// A class that no endpoint has yet: its peers, then the class itself.
    PutClass(u32, ClassEntry),
    /// What holds for an identity in a class, in one write.
    PutPeer {
        /// The kernel's number.
        class: u32,
        /// Of the peer.
        identity: u32,
        /// What holds.
        sides: Sides,
    },
    /// From now on, what holds for whoever is not named holds for it.
    RemovePeer {
        /// The kernel's number.
        class: u32,
        /// Of the peer.
        identity: u32,
    },
    /// One address or CIDR.
    PutIdentity(IpNet, u32),
    /// What covers it answers from now on.
    RemoveIdentity(IpNet),
    /// Who an address is for connections that are there already, before it is another for new ones.
    PutLingering(IpAddr, u32),
    /// From now on it is the same for both.
    RemoveLingering(IpAddr),
    /// Where the proxy of a slot listens, if it is there. Slots are never taken back.
    PutProxy(u16, ProxyEntry),
    /// Before the endpoint that has it: a pod's socket hooks must be right when its traffic begins.
    PutNetns(u64, NetnsEntry),
    /// Replaces the service as a whole.
    PutService(ServiceFrontend, ServiceEntry),
    /// Opens or changes an endpoint, in one write.
    PutEndpoint(u32, EndpointEntry),
    /// Closes it: an interface without an entry has no traffic.
    RemoveEndpoint(u32),
    /// From now on its address is only an address.
    RemoveService(ServiceFrontend),
    /// The pod is gone, or has no sidecar any more.
    RemoveNetns(u64),
    /// No endpoint has had it for a moment. With the identities that it has peers for.
    RemoveClass(u32, Vec<u32>),
    /// Nothing has referred to it for a moment.
    RemoveRuleSet(u32, Arc<RuleSet>),
}

/// What is to be another: `None` is to be gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Delta {
    pub identities: BTreeMap<IpNet, Option<u32>>,
    pub lingering: BTreeMap<IpAddr, Option<u32>>,
    /// Those that are to be there. What nothing needs any more is for [`super::collect`].
    pub rulesets: BTreeMap<u32, Arc<RuleSet>>,
    pub classes: BTreeMap<u32, ClassEntry>,
    /// Classes that endpoints have and are to have no more.
    pub retiring: BTreeSet<u32>,
    pub endpoints: BTreeMap<u32, Option<EndpointEntry>>,
    pub services: BTreeMap<ServiceFrontend, Option<ServiceEntry>>,
    pub netns: BTreeMap<u64, Option<NetnsEntry>>,
    pub proxies: BTreeMap<u16, Option<ProxyEntry>>,
}

impl Delta {
    /// All that differs.
    pub fn between(current: &Desired, desired: &Desired) -> Self {
        let in_use: BTreeSet<u32> = current.endpoints.values().map(|endpoint| endpoint.class).collect();
        let missing = |(number, set): &(&u32, &Arc<RuleSet>)| current.rulesets.get(number) != Some(*set);
        let changed = |(number, entry): &(&u32, &ClassEntry)| current.classes.get(number) != Some(*entry);
        Self {
            identities: changes(&current.identities, &desired.identities),
            lingering: changes(&current.lingering, &desired.lingering),
            rulesets: desired.rulesets.iter().filter(missing).map(|(n, set)| (*n, set.clone())).collect(),
            classes: desired.classes.iter().filter(changed).map(|(n, entry)| (*n, entry.clone())).collect(),
            retiring: in_use.into_iter().filter(|number| !desired.classes.contains_key(number)).collect(),
            endpoints: changes(&current.endpoints, &desired.endpoints),
            services: changes(&current.services, &desired.services),
            netns: changes(&current.netns, &desired.netns),
            proxies: changes(&current.proxies, &desired.proxies),
        }
    }
}

/// The entries of two tables that differ. Each table is walked once: mostly little differs of much.
pub(super) fn changes<K: Ord + Clone, V: PartialEq + Clone>(
    current: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let mut changes = BTreeMap::new();
    let mut held = current.iter().peekable();
    for (key, value) in desired {
        while let Some((gone, _)) = held.next_if(|(held, _)| *held < key) {
            changes.insert(gone.clone(), None);
        }
        let is_held = held.next_if(|(held, _)| *held == key).is_some_and(|(_, held)| held == value);
        if !is_held {
            changes.insert(key.clone(), Some(value.clone()));
        }
    }
    changes.extend(held.map(|(gone, _)| (gone.clone(), None)));
    changes
}

impl MapOp {
    /// Whether it is about an address of a service.
    pub fn is_of_service(&self) -> bool {
        matches!(self, Self::PutService(..) | Self::RemoveService(_))
    }

    /// What the maps hold after this write.
    pub fn apply(&self, maps: &mut Desired) {
        match self {
            MapOp::PutRuleSet(number, set) => drop(maps.rulesets.insert(*number, set.clone())),
            MapOp::PutClass(number, entry) => drop(maps.classes.insert(*number, entry.clone())),
            MapOp::PutPeer { class, identity, sides } => {
                maps.classes.entry(*class).or_default().peers.insert(*identity, *sides);
            }
            MapOp::RemovePeer { class, identity } => {
                maps.classes.entry(*class).or_default().peers.remove(identity);
            }
            MapOp::PutIdentity(net, identity) => maps.identities.insert(*net, *identity),
            MapOp::RemoveIdentity(net) => maps.identities.remove(net),
            MapOp::PutLingering(address, identity) => {
                maps.lingering.insert(*address, *identity);
            }
            MapOp::RemoveLingering(address) => {
                maps.lingering.remove(address);
            }
            MapOp::PutProxy(slot, proxy) => {
                maps.proxies.insert(*slot, *proxy);
            }
            MapOp::PutNetns(cookie, netns) => drop(maps.netns.insert(*cookie, netns.clone())),
            MapOp::PutService(frontend, service) => drop(maps.services.insert(*frontend, service.clone())),
            MapOp::PutEndpoint(ifindex, endpoint) => drop(maps.endpoints.insert(*ifindex, *endpoint)),
            MapOp::RemoveEndpoint(ifindex) => drop(maps.endpoints.remove(ifindex)),
            MapOp::RemoveService(frontend) => drop(maps.services.remove(frontend)),
            MapOp::RemoveNetns(cookie) => drop(maps.netns.remove(cookie)),
            MapOp::RemoveClass(number, _) => drop(maps.classes.remove(number)),
            MapOp::RemoveRuleSet(number, _) => drop(maps.rulesets.remove(number)),
        }
    }
}
