//! Resources and pods to the contents of the maps.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::{
    Direction,
    identity::{ANY, HOST, UNMANAGED},
};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use xds_proto::isthmus::agent::v1 as wire;

use super::{
    ClassRules, Desired, Dictionary, EndpointEntry, NetnsEntry, Pod, PodAddresses, RuleEntry,
    service::services,
};
use crate::subscribe::{Class, Peer, Resources};

/// Named by flows that pass because they come from, or go to, the pod's own node.
const HOST_PROVENANCE: &str = "builtin/own-node";

/// What the kernel is to hold. `current` is what it holds now: unchanged classes keep their number, and an
/// endpoint whose new class has not arrived yet keeps what it has.
pub fn compute(
    resources: &Resources,
    node: PodAddresses,
    pods: &BTreeMap<NamespacedName, Pod>,
    current: &Desired,
    dictionary: &mut Dictionary,
) -> Desired {
    let mut desired = Desired::default();
    let cidrs = policy_cidrs(resources);
    dictionary.keep_cidrs(|cidr| cidrs.contains(cidr));
    desired.identities = identities(resources, node, pods, &cidrs, dictionary);
    if !resources.heard::<wire::WorkloadAddress>() {
        for (net, identity) in &current.identities {
            desired.identities.entry(*net).or_insert(*identity);
        }
    }
    // Whatever identity the own addresses have: a gateway may run on them.
    let own: BTreeSet<u32> = node
        .iter()
        .map(|address| desired.identities.get(&IpNet::from(address)).copied().unwrap_or(HOST))
        .collect();

    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    for (name, pod) in pods {
        let Some(local) = resources.locals.get(name) else {
            if !resources.heard::<wire::LocalEndpoint>() {
                keep(pod, current, &mut desired);
            }
            continue;
        };
        if let Some(class) = resources.class(local.class) {
            let number = *numbers.entry(local.class).or_insert_with(|| {
                let rules = class_rules(class, &own, &cidrs, dictionary);
                let number = dictionary.class(&rules, &current.classes, &desired.classes);
                desired.classes.insert(number, rules);
                number
            });
            let entry = EndpointEntry {
                addresses: pod.addresses,
                identity: local.identity,
                class: number,
                incarnation: pod.incarnation(),
            };
            desired.endpoints.insert(pod.ifindex, entry);
        } else {
            keep(pod, current, &mut desired);
        }
        if local.sidecar {
            desired.netns.insert(pod.netns_cookie, NetnsEntry { captured: local.captured.clone() });
        }
    }
    desired.services = if resources.heard::<wire::Service>() {
        services(resources, node, pods)
    } else {
        current.services.clone()
    };
    desired
}

/// The pod keeps what it has, until its new policy is here.
fn keep(pod: &Pod, current: &Desired, desired: &mut Desired) {
    if let Some(entry) = current.endpoints.get(&pod.ifindex)
        && entry.addresses == pod.addresses
        && entry.incarnation == pod.incarnation()
        && let Some(rules) = current.classes.get(&entry.class)
    {
        desired.classes.insert(entry.class, rules.clone());
        desired.endpoints.insert(pod.ifindex, *entry);
        if let Some(netns) = current.netns.get(&pod.netns_cookie) {
            desired.netns.insert(pod.netns_cookie, netns.clone());
        }
    }
}

/// Every CIDR that a rule names.
fn policy_cidrs(resources: &Resources) -> BTreeSet<IpNet> {
    let named: BTreeSet<u32> = resources.locals.values().map(|local| local.class).collect();
    let classes = named.iter().filter_map(|number| resources.class(*number));
    let rules = classes.flat_map(|class| &class.rules);
    let cidrs = rules.filter_map(|rule| match rule.peer {
        Peer::Cidr(cidr) => Some(cidr),
        Peer::Any | Peer::Identity(_) | Peer::Nobody => None,
    });
    cidrs.collect()
}

fn identities(
    resources: &Resources,
    own: PodAddresses,
    pods: &BTreeMap<NamespacedName, Pod>,
    cidrs: &BTreeSet<IpNet>,
    dictionary: &mut Dictionary,
) -> BTreeMap<IpNet, u32> {
    let mut table = BTreeMap::new();
    let pod_cidrs: BTreeSet<IpNet> =
        resources.nodes.values().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
    for cidr in cidrs {
        // A rule about addresses outside the mesh says nothing of pods, known or not.
        if !pod_cidrs.iter().any(|pods| pods.contains(cidr)) {
            table.insert(*cidr, dictionary.cidr(*cidr));
        }
    }
    for cidr in pod_cidrs {
        table.insert(cidr, UNMANAGED);
    }
    // Other nodes are addresses outside the mesh like any other, so that a CIDR rule may name them.
    for address in own.iter() {
        table.insert(address.into(), HOST);
    }
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

fn class_rules(
    class: &Class,
    own: &BTreeSet<u32>,
    cidrs: &BTreeSet<IpNet>,
    dictionary: &mut Dictionary,
) -> ClassRules {
    let mut rules = BTreeSet::new();
    for rule in &class.rules {
        let identities: Vec<u32> = match rule.peer {
            Peer::Any => vec![ANY],
            Peer::Identity(identity) => vec![identity],
            // The kernel answers with the narrowest CIDR, so a rule holds for those inside its own as well.
            Peer::Cidr(outer) => {
                let inside = cidrs.iter().filter(|inner| outer.contains(*inner));
                inside.map(|inner| dictionary.cidr(*inner)).collect()
            }
            Peer::Nobody => continue,
        };
        let policy_id = dictionary.policy(&rule.provenance);
        let ports = rule.ports.unwrap_or((0, u16::MAX));
        rules.extend(identities.into_iter().map(|identity| RuleEntry {
            direction: rule.direction,
            identity,
            protocol: rule.protocol,
            ports,
            allow: rule.allow,
            policy_id,
        }));
    }
    // Kubernetes: "Traffic to and from the node where a Pod is running is always allowed".
    for direction in [Direction::Ingress, Direction::Egress] {
        let policy_id = dictionary.policy(HOST_PROVENANCE);
        let ports = (0, u16::MAX);
        rules.extend(own.iter().map(|own| RuleEntry {
            direction,
            identity: *own,
            protocol: 0,
            ports,
            allow: true,
            policy_id,
        }));
    }
    ClassRules {
        deny_ingress: class.deny_ingress.as_deref().map(|name| dictionary.policy(name)),
        deny_egress: class.deny_egress.as_deref().map(|name| dictionary.policy(name)),
        rules,
    }
}
