//! Resources and pods to the contents of the maps: all of it, at once. This is what [`super::Planner`] does where little is
//! known of what changed, and what it is compared with where more is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ebpf_shared::{
    host::INTERFACE,
    identity::{HOST, LOCAL},
};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use xds_proto::isthmus::agent::v1 as wire;

use super::{
    Desired, Dictionary, EndpointEntry, IdentityTable, Inputs, NetnsEntry, Pod,
    assign::{Want, assign},
    ground::Ground,
    host,
    mentions::Mentions,
    policy::class_entry,
    service::services,
};
use crate::{
    kernel::rules::ClassEntry,
    subscribe::{Local, Resources},
};

/// What the kernel is to hold. `current` is what it holds now: an endpoint whose new class has not arrived yet keeps
/// what it has.
pub fn compute(inputs: Inputs<'_>, current: &Desired, dictionary: &mut Dictionary) -> Desired {
    on_ground(inputs, current, dictionary).0
}

/// The same, with what it was made on.
pub(super) fn on_ground(
    inputs: Inputs<'_>,
    current: &Desired,
    dictionary: &mut Dictionary,
) -> (Desired, Ground) {
    let Inputs { resources, node, pods, .. } = inputs;
    let wants = wants(resources, pods, current);
    let mut mentions = Mentions::all(Mentions::in_use(resources).values());
    let keeps = wants.values().any(|want| matches!(want, Want::Kept(_)));
    if keeps {
        // What is kept may rest on any of them.
        mentions.cidrs.extend(local_cidrs(resources, current, dictionary));
        mentions.names.extend(dictionary.named().flat_map(|(names, _)| names.iter().cloned()));
    }
    let ground = Ground::new(inputs, &mentions, current, dictionary);
    let mut desired =
        Desired { identities: identities(resources, pods, &ground, dictionary), ..Desired::default() };
    let is_heard = resources.heard::<wire::WorkloadAddress>();
    for (net, identity) in current.identities.iter() {
        // Identities of this node's making mean what the kernel's classes say of them: nothing to others.
        let stays = if *identity & LOCAL == 0 { !is_heard } else { keeps };
        if stays && !desired.identities.contains_key(net) {
            desired.identities.insert(*net, *identity);
        }
    }
    let own = own_identities(&ground, &desired.identities);
    // Whoever has the address now is of the mesh.
    let is_outside = |address: IpAddr| {
        let net = IpNet::from(address);
        desired.identities.get(&net).copied() == ground.identity(&net, dictionary)
    };
    desired.lingering = ground.all_lasting().filter(|(address, _)| is_outside(*address)).collect();
    if keeps {
        for (address, identity) in &current.lingering {
            desired.lingering.entry(*address).or_insert(*identity);
        }
    }

    let nobody = BTreeSet::new();
    let wires: BTreeSet<u32> = wants
        .values()
        .filter_map(|want| match want {
            Want::Class(wire) => Some(*wire),
            Want::Kept(_) => None,
        })
        .collect();
    let mut entries: BTreeMap<u32, ClassEntry> = BTreeMap::new();
    for wire in wires {
        if let Some(class) = resources.class(wire) {
            let own = host::admitted(resources, wire, &own, &nobody);
            entries.insert(wire, class_entry(class, &ground, own, dictionary));
        }
    }
    let numbers = assign(&wants, &entries, current, dictionary);
    for (wire, entry) in entries {
        if let Some(number) = numbers.get(&wire) {
            desired.classes.insert(*number, entry);
        }
    }
    for (name, pod) in pods {
        match wants.get(&pod.ifindex) {
            Some(Want::Kept(class)) => keep_pod(pod, *class, current, &mut desired),
            Some(Want::Class(wire)) => match (resources.locals.get(name), numbers.get(wire)) {
                (Some(local), Some(number)) => {
                    desired.endpoints.insert(pod.ifindex, endpoint(pod, local, *number));
                }
                _ => {
                    if let Some(class) = kept(pod, current) {
                        keep_pod(pod, class, current, &mut desired);
                    }
                }
            },
            None => {}
        }
    }
    let host = wants.get(&INTERFACE).copied();
    match (host, resources.host()) {
        (Some(Want::Kept(class)), _) => keep(INTERFACE, class, current, &mut desired),
        (Some(Want::Class(wire)), Some(host)) => match numbers.get(&wire) {
            Some(number) => drop(desired.endpoints.insert(INTERFACE, host::endpoint(node, host, *number))),
            None => {
                if let Some(class) = host::kept(current) {
                    keep(INTERFACE, class, current, &mut desired);
                }
            }
        },
        _ => {}
    }
    desired.netns.extend(sidecars(resources, pods));
    for entry in desired.classes.values() {
        let sets = entry.rulesets().filter_map(|by| Some((by.set, dictionary.rulesets.get(by)?.clone())));
        desired.rulesets.extend(sets);
    }
    desired.services = if resources.heard::<wire::Service>() {
        services(resources, node, pods, &mut |name| dictionary.proxy_slot(name))
    } else {
        current.services.clone()
    };
    desired.proxies = dictionary.proxies.entries().clone();
    (desired, ground)
}

/// What each endpoint is to have, by its interface. A pod that is not among them is closed.
pub(super) fn wants(
    resources: &Resources,
    pods: &BTreeMap<NamespacedName, Pod>,
    current: &Desired,
) -> BTreeMap<u32, Want> {
    let mut wants = BTreeMap::new();
    for (name, pod) in pods {
        let want = match resources.locals.get(name) {
            Some(local) if resources.class(local.class).is_some() => Some(Want::Class(local.class)),
            // The pod keeps what it has, until its new policy is here.
            Some(_) => kept(pod, current).map(Want::Kept),
            None if !resources.heard::<wire::LocalEndpoint>() => kept(pod, current).map(Want::Kept),
            None => None,
        };
        wants.extend(want.map(|want| (pod.ifindex, want)));
    }
    wants.extend(host::want(resources, current).map(|want| (INTERFACE, want)));
    wants
}

/// The class that the kernel has for a pod.
fn kept(pod: &Pod, current: &Desired) -> Option<u32> {
    let entry = current.endpoints.get(&pod.ifindex)?;
    let is_same = entry.addresses == pod.addresses && entry.incarnation == pod.incarnation();
    (is_same && current.classes.contains_key(&entry.class)).then_some(entry.class)
}

fn keep_pod(pod: &Pod, number: u32, current: &Desired, desired: &mut Desired) {
    keep(pod.ifindex, number, current, desired);
    let netns = current.netns.get(&pod.netns_cookie);
    if let Some(netns) = netns.filter(|_| desired.endpoints.contains_key(&pod.ifindex)) {
        desired.netns.insert(pod.netns_cookie, netns.clone());
    }
}

fn keep(ifindex: u32, number: u32, current: &Desired, desired: &mut Desired) {
    let (Some(entry), Some(class)) = (current.endpoints.get(&ifindex), current.classes.get(&number)) else {
        return;
    };
    let mut class = class.clone();
    // CIDRs and names that others name from now on are to it what was there before.
    let held: BTreeSet<u32> = current.lingering.values().copied().collect();
    let is_new = |identity: u32| {
        identity & LOCAL != 0 && !current.identities.has(identity) && !held.contains(&identity)
    };
    let begins = desired.identities.iter().map(|(net, identity)| (*identity, *net, None));
    let lasts = desired.lingering.iter().map(|(address, identity)| {
        (*identity, IpNet::from(*address), current.lingering.get(address).copied())
    });
    for (identity, net, lasting) in begins.chain(lasts).filter(|(identity, ..)| is_new(*identity)) {
        let sides = class.sides(lasting.unwrap_or_else(|| current.identities.identity(&net)));
        if sides != class.sides(identity) {
            class.peers.insert(identity, sides);
        }
    }
    desired.classes.insert(number, class);
    desired.endpoints.insert(ifindex, *entry);
}

pub(super) fn endpoint(pod: &Pod, local: &Local, class: u32) -> EndpointEntry {
    EndpointEntry {
        addresses: pod.addresses,
        identity: local.identity,
        class,
        audit: local.audit,
        incarnation: pod.incarnation(),
    }
}

pub(super) fn sidecars(
    resources: &Resources,
    pods: &BTreeMap<NamespacedName, Pod>,
) -> impl Iterator<Item = (u64, NetnsEntry)> {
    pods.iter().filter_map(|(name, pod)| {
        let local = resources.locals.get(name).filter(|local| local.sidecar)?;
        Some((pod.netns_cookie, NetnsEntry { captured: local.captured.clone() }))
    })
}

/// CIDRs that the kernel has an identity for.
fn local_cidrs(resources: &Resources, current: &Desired, dictionary: &Dictionary) -> Vec<IpNet> {
    let named: BTreeSet<u32> = dictionary.named().map(|(_, number)| number).collect();
    let is_node = |net: &IpNet| {
        resources.nodes.values().any(|node| node.all_addresses().any(|at| IpNet::from(at) == *net))
    };
    let local = current.identities.iter().filter(|(_, identity)| **identity & LOCAL != 0);
    // One that several prefixes have is no CIDR's.
    let local = local.filter(|(_, identity)| current.identities.count(**identity) == 1);
    let local = local.filter(|(net, identity)| !named.contains(identity) && !is_node(net));
    local.map(|(net, _)| *net).collect()
}

fn identities(
    resources: &Resources,
    pods: &BTreeMap<NamespacedName, Pod>,
    ground: &Ground,
    dictionary: &Dictionary,
) -> IdentityTable {
    let nets = ground.nets().into_iter();
    let mut table: IdentityTable =
        nets.filter_map(|net| Some((net, ground.identity(&net, dictionary)?))).collect();
    for workload in resources.addresses.values() {
        for address in &workload.addresses {
            table.insert((*address).into(), workload.identity);
        }
    }
    // The node knows best which pod has an address of its own: a view that lags must not give it to another.
    for (name, pod) in pods {
        for address in pod.addresses.iter() {
            match resources.locals.get(name) {
                Some(local) => table.insert(address.into(), local.identity),
                None => table.remove(&IpNet::from(address)),
            };
        }
    }
    table
}

/// Whatever identities this node's addresses have: a gateway may run on them.
pub(super) fn own_identities(ground: &Ground, table: &IdentityTable) -> BTreeSet<u32> {
    ground.own().map(|address| table.get(&IpNet::from(address)).copied().unwrap_or(HOST)).collect()
}
