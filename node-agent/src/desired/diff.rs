//! The writes that lead from one state of the maps to another, in an order that opens nothing.

use std::{cmp::Reverse, collections::BTreeMap};

use ipnet::IpNet;

use super::{ClassRules, Desired, EndpointEntry, NetnsEntry, ServiceEntry, ServiceFrontend};

/// All that the agent can ask of the kernel's maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapOp {
    /// A class that no endpoint has yet: its rules, then the class itself.
    PutClass(u32, ClassRules),
    /// One address or CIDR.
    PutIdentity(IpNet, u32),
    /// What covers it answers from now on.
    RemoveIdentity(IpNet),
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
    /// No endpoint has it any more.
    RemoveClass(u32),
}

/// The writes from `current` to `desired`. See the [module](super) for why their order is what it is.
pub fn diff(current: &Desired, desired: &Desired) -> Vec<MapOp> {
    let mut ops = Vec::new();
    // An endpoint that is to be gone is closed before anything changes around it.
    let gone = current.endpoints.keys().filter(|ifindex| !desired.endpoints.contains_key(ifindex));
    ops.extend(gone.map(|ifindex| MapOp::RemoveEndpoint(*ifindex)));

    for (number, rules) in changed(&current.classes, &desired.classes) {
        ops.push(MapOp::PutClass(*number, rules.clone()));
    }
    // Narrow prefixes are written first and removed last, so that no address falls back, even for a moment, to
    // what neither state says of it.
    let mut puts: Vec<_> = changed(&current.identities, &desired.identities).collect();
    puts.sort_by_key(|(net, _)| Reverse(net.prefix_len()));
    ops.extend(puts.into_iter().map(|(net, identity)| MapOp::PutIdentity(*net, *identity)));
    let mut removes: Vec<_> =
        current.identities.keys().filter(|net| !desired.identities.contains_key(net)).collect();
    removes.sort_by_key(|net| net.prefix_len());
    ops.extend(removes.into_iter().map(|net| MapOp::RemoveIdentity(*net)));

    for (cookie, netns) in changed(&current.netns, &desired.netns) {
        ops.push(MapOp::PutNetns(*cookie, netns.clone()));
    }
    for (frontend, service) in changed(&current.services, &desired.services) {
        ops.push(MapOp::PutService(*frontend, service.clone()));
    }
    for (ifindex, endpoint) in changed(&current.endpoints, &desired.endpoints) {
        ops.push(MapOp::PutEndpoint(*ifindex, *endpoint));
    }
    let gone = current.services.keys().filter(|frontend| !desired.services.contains_key(frontend));
    ops.extend(gone.map(|frontend| MapOp::RemoveService(*frontend)));
    let gone = current.netns.keys().filter(|cookie| !desired.netns.contains_key(cookie));
    ops.extend(gone.map(|cookie| MapOp::RemoveNetns(*cookie)));
    let gone = current.classes.keys().filter(|number| !desired.classes.contains_key(number));
    ops.extend(gone.map(|number| MapOp::RemoveClass(*number)));
    ops
}

impl MapOp {
    /// What the maps hold after this write.
    pub fn apply(&self, maps: &mut Desired) {
        match self.clone() {
            MapOp::PutClass(number, rules) => drop(maps.classes.insert(number, rules)),
            MapOp::PutIdentity(net, identity) => drop(maps.identities.insert(net, identity)),
            MapOp::RemoveIdentity(net) => drop(maps.identities.remove(&net)),
            MapOp::PutNetns(cookie, netns) => drop(maps.netns.insert(cookie, netns)),
            MapOp::PutService(frontend, service) => drop(maps.services.insert(frontend, service)),
            MapOp::PutEndpoint(ifindex, endpoint) => drop(maps.endpoints.insert(ifindex, endpoint)),
            MapOp::RemoveEndpoint(ifindex) => drop(maps.endpoints.remove(&ifindex)),
            MapOp::RemoveService(frontend) => drop(maps.services.remove(&frontend)),
            MapOp::RemoveNetns(cookie) => drop(maps.netns.remove(&cookie)),
            MapOp::RemoveClass(number) => drop(maps.classes.remove(&number)),
        }
    }
}

fn changed<'a, K: Ord, V: PartialEq>(
    current: &'a BTreeMap<K, V>,
    desired: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    desired.iter().filter(|(key, value)| current.get(key) != Some(*value))
}
