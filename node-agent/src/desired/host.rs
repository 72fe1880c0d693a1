//! This node itself: an endpoint without an interface, while a policy selects it.

use std::collections::BTreeSet;

use ebpf_shared::{host::INTERFACE, identity::HOST};
use xds_proto::isthmus::agent::v1 as wire;

use super::{Desired, EndpointEntry, PodAddresses, assign::Want};
use crate::subscribe::{Host, Resources};

/// What the node itself is to have; `None`: nothing is judged.
pub fn want(resources: &Resources, current: &Desired) -> Option<Want> {
    match resources.host() {
        Some(host) if resources.class(host.class).is_some() => Some(Want::Class(host.class)),
        Some(_) => kept(current).map(Want::Kept),
        None if !resources.heard::<wire::HostEndpoint>() => kept(current).map(Want::Kept),
        None => None,
    }
}

/// The class that the kernel has for it.
pub fn kept(current: &Desired) -> Option<u32> {
    let class = current.endpoints.get(&INTERFACE)?.class;
    current.classes.contains_key(&class).then_some(class)
}

/// Its entry, with a class of the kernel's.
pub fn endpoint(node: PodAddresses, host: &Host, class: u32) -> EndpointEntry {
    EndpointEntry { addresses: node, identity: HOST, class, audit: host.audit, incarnation: 0 }
}

/// The identities that are always let through by a class: a pod's own node, and nobody for the node itself, which does not
/// meet itself on any way.
pub fn admitted<'a>(
    resources: &Resources,
    class: u32,
    own: &'a BTreeSet<u32>,
    nobody: &'a BTreeSet<u32>,
) -> &'a BTreeSet<u32> {
    let is_hosts = resources.host().is_some_and(|host| host.class == class);
    if is_hosts && resources.locals.values().all(|local| local.class != class) { nobody } else { own }
}
