//! Virtual IPs and proxy ports, for local and imported services alike.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_model::{
    records::ServiceAllocation,
    resource::{Kind, NamespacedName, Object, ObjectKey, Service},
};

use super::{address, transaction::Transaction};
use crate::{
    Refusal,
    limits::{MAX_PROXY_PORT, MIN_PROXY_PORT},
};

/// Makes a service's allocation what its object and its imports call for.
///
/// What is held already is kept, so that no change of a service moves its address or its ports.
pub(super) fn reallocate(tx: &mut Transaction<'_>, name: &NamespacedName) -> Result<(), Refusal> {
    let held = tx.state().allocations.get(name).map(|held| ServiceAllocation::clone(held));
    let Some(wanted) = Wanted::of(tx, name) else {
        if held.is_some() {
            tx.set_allocation(name, None);
        }
        return Ok(());
    };
    let held_ip = held.as_ref().and_then(|allocation| allocation.virtual_ip);
    let virtual_ip = match wanted.virtual_ip {
        VirtualIp::None => None,
        VirtualIp::Requested(address) if held_ip == Some(address) => held_ip,
        VirtualIp::Requested(address) => Some(requested(tx, name, address)?),
        VirtualIp::Any => Some(held_ip.map_or_else(|| free_address(tx), Ok)?),
    };
    let mut proxy_ports = held.as_ref().map(|allocation| allocation.proxy_ports.clone()).unwrap_or_default();
    proxy_ports.retain(|port, _| wanted.ports.contains(port));
    allocate_ports(tx, &mut proxy_ports, &wanted.ports)?;
    let mut overflow = held.as_ref().map(|allocation| allocation.overflow.clone()).unwrap_or_default();
    overflow.retain(|port, _| wanted.ports.contains(port));
    let allocation = ServiceAllocation { virtual_ip, proxy_ports, overflow };
    if held.as_ref() != Some(&allocation) {
        tx.set_allocation(name, Some(allocation));
    }
    Ok(())
}

/// A service that has an address can't be told to have another one (as in Kubernetes): clients hold the old one.
pub(super) fn check_fixed(tx: &Transaction<'_>, new: &Service, old: &Service) -> Result<(), Refusal> {
    let name = &new.meta.name;
    let current = tx.state().allocations.get(name).and_then(|allocation| allocation.virtual_ip);
    match (new.cluster_ip, current) {
        (Some(wanted), Some(current)) if wanted != current && !old.headless => {
            Err(Refusal::AddressFixed { service: format!("service/{name}"), current })
        }
        _ => Ok(()),
    }
}

enum VirtualIp {
    None,
    Any,
    Requested(IpAddr),
}

struct Wanted {
    virtual_ip: VirtualIp,
    ports: BTreeSet<u16>,
}

impl Wanted {
    /// None if there is no such service any more, here or at a peer.
    fn of(tx: &Transaction<'_>, name: &NamespacedName) -> Option<Wanted> {
        let state = tx.state();
        let key = ObjectKey { kind: Kind::Service, name: name.clone() };
        let mut ports: BTreeSet<u16> = BTreeSet::new();
        let mut imported = false;
        for cluster in state.index.importers(name) {
            if let Some(import) = state.peers.get(cluster).and_then(|peer| peer.imports.get(name)) {
                ports.extend(import.ports.iter().map(|port| port.port));
                imported = true;
            }
        }
        let virtual_ip = match state.objects.get(&key).map(|o| o.as_ref()) {
            Some(Object::Service(local)) => {
                ports.extend(local.ports.iter().map(|port| port.port));
                match local.cluster_ip {
                    _ if local.headless => VirtualIp::None,
                    Some(address) => VirtualIp::Requested(address),
                    None => VirtualIp::Any,
                }
            }
            _ if imported => VirtualIp::Any,
            _ => return None,
        };
        Some(Wanted { virtual_ip, ports })
    }
}

fn requested(tx: &Transaction<'_>, name: &NamespacedName, address: IpAddr) -> Result<IpAddr, Refusal> {
    let cidr = tx.cluster()?.service_cidr;
    let service = format!("service/{name}");
    if !usable(&cidr, address) {
        return Err(Refusal::AddressOutside { service, address, cidr });
    }
    match tx.state().index.virtual_ip_holder(address) {
        Some(holder) if holder != name => {
            Err(Refusal::AddressTaken { service, address, holder: format!("service/{holder}") })
        }
        _ => Ok(address),
    }
}

/// Neither the network's own address nor IPv4's broadcast address.
fn usable(cidr: &IpNet, address: IpAddr) -> bool {
    let broadcast = matches!(cidr, IpNet::V4(net) if IpAddr::V4(net.broadcast()) == address);
    cidr.contains(&address) && address != cidr.network() && !broadcast
}

fn free_address(tx: &mut Transaction<'_>) -> Result<IpAddr, Refusal> {
    let cidr = tx.cluster()?.service_cidr;
    let size = address::size(&cidr);
    for step in 0..size {
        let offset = (tx.state().cursors.virtual_ip + step) % size;
        let candidate = address::nth_address(&cidr, offset);
        if usable(&cidr, candidate) && tx.state().index.virtual_ip_holder(candidate).is_none() {
            tx.cursors().virtual_ip = (offset + 1) % size;
            return Ok(candidate);
        }
    }
    Err(Refusal::Exhausted { what: "virtual IPs".to_owned(), range: cidr.to_string() })
}

fn allocate_ports(
    tx: &mut Transaction<'_>,
    held: &mut BTreeMap<u16, u16>,
    wanted: &BTreeSet<u16>,
) -> Result<(), Refusal> {
    // Ports of this very service are not in the index until its allocation is set.
    let mut fresh: BTreeSet<u16> = BTreeSet::new();
    for port in wanted {
        if held.contains_key(port) {
            continue;
        }
        let proxy_port = free_port(tx, &fresh)?;
        fresh.insert(proxy_port);
        held.insert(*port, proxy_port);
    }
    Ok(())
}

fn free_port(tx: &mut Transaction<'_>, besides: &BTreeSet<u16>) -> Result<u16, Refusal> {
    let size = MAX_PROXY_PORT - MIN_PROXY_PORT + 1;
    for step in 0..size {
        let offset = (tx.state().cursors.proxy_port + step) % size;
        let candidate = MIN_PROXY_PORT + offset;
        if !tx.state().index.proxy_port_taken(candidate) && !besides.contains(&candidate) {
            tx.cursors().proxy_port = (offset + 1) % size;
            return Ok(candidate);
        }
    }
    Err(Refusal::Exhausted {
        what: "proxy ports (one per service port)".to_owned(),
        range: format!("{MIN_PROXY_PORT}-{MAX_PROXY_PORT}"),
    })
}
