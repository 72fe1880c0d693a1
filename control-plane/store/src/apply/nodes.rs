//! Nodes, and what they report of the workloads that run on them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use mesh_model::{
    records::{NodeFacts, NodeRecord, WorkloadBinding},
    resource::{Kind, NamespacedName, Object, ObjectKey, Workload, check_node_labels, is_label_value},
};

use super::{Done, address, authority, identities, transaction::Transaction, valid};
use crate::{
    Granted, Member, Refusal,
    limits::{MAX_ADDRESSES_PER_WORKLOAD, MAX_NODE_ADDRESSES, MAX_NODES, NODE_SLICE_BITS},
};

pub(super) fn register(
    tx: &mut Transaction<'_>,
    name: &str,
    address: IpAddr,
    address6: Option<Ipv6Addr>,
) -> Result<Done, Refusal> {
    valid::domain("node.name", name)?;
    for address in [address].into_iter().chain(address6.map(IpAddr::V6)) {
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(Refusal::invalid("node.address", address, "can't be another node's way to this one"));
        }
        if let Some(other) = tx.state().nodes.values().find(|node| node.is_at(address) && node.name != name) {
            return Err(Refusal::AddressHeld { address, holder: format!("node {}", other.name) });
        }
    }
    let registration = tx.state().cursors.registration + 1;
    tx.cursors().registration = registration;
    let node = match tx.state().nodes.get(name).map(|node| NodeRecord::clone(node)) {
        Some(node) => {
            // What it has told of its certificates was of the registration before.
            tx.set_confirmation(&Member::Node(name.to_owned()), None);
            NodeRecord { address, address6, registration, ..node }
        }
        None => {
            valid::at_most("nodes", tx.state().nodes.len() + 1, MAX_NODES)?;
            let pod_cidr = free_slice(tx)?;
            let facts = NodeFacts::default();
            NodeRecord { name: name.to_owned(), address, address6, pod_cidr, registration, facts }
        }
    };
    tx.set_node(name, Some(node.clone()));
    Ok(Granted::Node(node).into())
}

/// What a node tells of itself is told to every agent, and its addresses are known as a node's: so they must be its own.
pub(super) fn report(tx: &mut Transaction<'_>, name: &str, facts: &NodeFacts) -> Result<Done, Refusal> {
    let node = known_node(tx, name)?;
    valid::at_most("addresses of a node", facts.addresses.len(), MAX_NODE_ADDRESSES)?;
    check_node_labels(&facts.labels)
        .map_err(|fault| Refusal::invalid(format!("node.{}", fault.path), fault.value, fault.reason))?;
    for (field, text) in [("node.zone", &facts.zone), ("node.region", &facts.region)] {
        if !is_label_value(text) {
            return Err(Refusal::invalid(
                field,
                text.chars().take(80).collect::<String>(),
                "is no label value",
            ));
        }
    }
    let cluster = tx.cluster()?;
    for &address in &facts.addresses {
        let invalid = |problem: &str| Err(Refusal::invalid("node.addresses", address, problem));
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return invalid("can't be another node's way to this one");
        }
        if cluster.has_pods_at(address) || cluster.service_cidrs().any(|range| range.contains(&address)) {
            return invalid("is of the range of pods or services");
        }
        if let Some(other) = tx.state().nodes.values().find(|node| node.is_at(address) && node.name != name) {
            return Err(Refusal::AddressHeld { address, holder: format!("node {}", other.name) });
        }
        let elsewhere = |workload: &&NamespacedName| {
            tx.state().bindings.get(*workload).is_some_and(|binding| binding.node != name)
        };
        if let Some(other) = tx.state().index.bound_to(address).find(elsewhere) {
            return Err(Refusal::AddressHeld { address, holder: format!("workload {other}") });
        }
    }
    if node.facts != *facts {
        tx.set_node(name, Some(NodeRecord { facts: facts.clone(), ..node }));
    }
    Ok(Done::default())
}

pub(super) fn remove(tx: &mut Transaction<'_>, name: &str) -> Result<Done, Refusal> {
    let node = known_node(tx, name)?;
    let bound: Vec<NamespacedName> = tx
        .state()
        .bindings
        .iter()
        .filter(|(_, binding)| binding.node == name)
        .map(|(workload, _)| workload.clone())
        .collect();
    for workload in bound {
        tx.set_binding(&workload, None);
    }
    tx.set_node(name, None);
    authority::registration_ended(tx, name, node.registration);
    Ok(Done::default())
}

pub(super) fn bind(
    tx: &mut Transaction<'_>,
    name: &NamespacedName,
    binding: &WorkloadBinding,
) -> Result<Done, Refusal> {
    let node = known_node(tx, &binding.node)?;
    let key = ObjectKey { kind: Kind::Workload, name: name.clone() };
    let Some(Object::Workload(workload)) = tx.state().objects.get(&key).map(Arc::as_ref) else {
        return Err(Refusal::Unknown { what: "workload".to_owned(), name: name.to_string() });
    };
    check_addresses(tx, workload, &node, &binding.addresses)?;
    let bound = tx.state().bindings.get(name).map(Arc::as_ref);
    if let Some(bound) = bound.filter(|bound| bound.node != binding.node) {
        return Err(Refusal::BoundElsewhere { workload: name.to_string(), node: bound.node.clone() });
    }
    if bound != Some(binding) {
        tx.set_binding(name, Some(binding.clone()));
    }
    let granted = identities::number_of(tx, name).map_or(Granted::Nothing, Granted::Identity);
    Ok(granted.into())
}

pub(super) fn unbind(tx: &mut Transaction<'_>, name: &NamespacedName, node: &str) -> Result<Done, Refusal> {
    if tx.state().bindings.get(name).is_some_and(|binding| binding.node == node) {
        tx.set_binding(name, None);
    }
    Ok(Done::default())
}

/// A node speaks for its own addresses only: what it could claim beyond would be another workload's identity.
fn check_addresses(
    tx: &Transaction<'_>,
    workload: &Workload,
    node: &NodeRecord,
    addresses: &[IpAddr],
) -> Result<(), Refusal> {
    let name = &workload.meta.name;
    valid::at_most(&format!("addresses of workload {name}"), addresses.len(), MAX_ADDRESSES_PER_WORKLOAD)?;
    if addresses.is_empty() {
        return Err(Refusal::invalid(format!("workload {name}: addresses"), "[]", "is empty"));
    }
    let slices: Vec<IpNet> = tx.cluster()?.slices(node).collect();
    for &address in addresses {
        // What shares the host's network (a gateway) shares its address with others.
        if node.registered().any(|own| own == address) || workload.address == Some(address) {
            continue;
        }
        if !slices.iter().any(|slice| slice.contains(&address)) {
            return Err(Refusal::ForeignAddress {
                workload: name.to_string(),
                address,
                node: node.name.clone(),
                slice: node.pod_cidr,
            });
        }
        if let Some(other) = tx.state().index.bound_to(address).find(|other| *other != name) {
            return Err(Refusal::AddressHeld { address, holder: format!("workload {other}") });
        }
    }
    Ok(())
}

fn known_node(tx: &Transaction<'_>, name: &str) -> Result<NodeRecord, Refusal> {
    tx.state()
        .nodes
        .get(name)
        .map(|node| NodeRecord::clone(node))
        .ok_or_else(|| Refusal::Unknown { what: "node".to_owned(), name: name.chars().take(80).collect() })
}

fn free_slice(tx: &mut Transaction<'_>) -> Result<IpNet, Refusal> {
    let cidr = tx.cluster()?.pod_cidr;
    let exhausted = || Refusal::Exhausted { what: "slices for nodes".to_owned(), range: cidr.to_string() };
    let prefix = address::slice_prefix(&cidr, NODE_SLICE_BITS).ok_or_else(exhausted)?;
    let slices = address::slices(&cidr, prefix);
    let used: BTreeSet<IpNet> = tx.state().nodes.values().map(|node| node.pod_cidr).collect();
    for step in 0..slices {
        let n = (tx.state().cursors.node_slice + step) % slices;
        let Some(slice) = address::nth_slice(&cidr, prefix, n).filter(|slice| !used.contains(slice)) else {
            continue;
        };
        tx.cursors().node_slice = (n + 1) % slices;
        return Ok(slice);
    }
    Err(exhausted())
}
