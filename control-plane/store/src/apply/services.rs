//! Virtual IPs and proxy ports, for local and imported services alike. Ports at the nodes are in [`node_ports`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use mesh_model::{
    records::{ClusterInfo, ServiceAllocation},
    resource::{FamilyPolicy, IpFamily, Kind, NamespacedName, Object, ObjectKey, Protocol, Service},
};

use super::{address, node_ports, transaction::Transaction};
use crate::{
    Refusal,
    limits::{MAX_PROXY_PORT, MIN_PROXY_PORT},
};

/// Makes a service's allocation what its object and its imports call for.
///
/// What is held already is kept, so that no change of a service moves its addresses or its ports.
pub(super) fn reallocate(tx: &mut Transaction<'_>, name: &NamespacedName) -> Result<(), Refusal> {
    let held = tx.state().allocations.get(name).map(|held| ServiceAllocation::clone(held));
    let Some(wanted) = Wanted::of(tx, name)? else {
        if held.is_some() {
            tx.set_allocation(name, None);
        }
        return Ok(());
    };
    let held_ip = held.as_ref().and_then(|allocation| allocation.virtual_ip);
    let virtual_ip = address(tx, name, &wanted.first, held_ip)?;
    let held_ip = held.as_ref().and_then(|allocation| allocation.second_ip);
    let second_ip = address(tx, name, &wanted.second, held_ip)?;
    let mut proxy_ports = held.as_ref().map(|allocation| allocation.proxy_ports.clone()).unwrap_or_default();
    proxy_ports.retain(|port, _| wanted.ports.contains(port));
    allocate_ports(tx, &mut proxy_ports, &wanted.ports)?;
    let mut overflow = held.as_ref().map(|allocation| allocation.overflow.clone()).unwrap_or_default();
    overflow.retain(|port, _| wanted.ports.contains(port));
    let (node_ports, health_check_port) = match &wanted.local {
        Some(service) => node_ports::allocate(tx, service, held.as_ref())?,
        None => (Vec::new(), None),
    };
    let allocation =
        ServiceAllocation { virtual_ip, second_ip, node_ports, health_check_port, proxy_ports, overflow };
    if held.as_ref() != Some(&allocation) {
        tx.set_allocation(name, Some(allocation));
    }
    Ok(())
}

fn address(
    tx: &mut Transaction<'_>,
    name: &NamespacedName,
    wanted: &VirtualIp,
    held: Option<IpAddr>,
) -> Result<Option<IpAddr>, Refusal> {
    Ok(match wanted {
        VirtualIp::None => None,
        VirtualIp::Requested(address) if held == Some(*address) => held,
        VirtualIp::Requested(address) => Some(requested(tx, name, *address)?),
        VirtualIp::Any(family) => {
            let held = held.filter(|address| IpFamily::of(*address) == *family);
            Some(held.map_or_else(|| free_address(tx, *family), Ok)?)
        }
    })
}

/// It asks for an address or a port by number.
pub(super) fn requests(service: &Service) -> bool {
    let exposure = &service.exposure;
    service.cluster_ip.is_some()
        || exposure.second_ip.is_some()
        || exposure.health_check_node_port.is_some()
        || service.ports.iter().any(|port| port.node_port.is_some())
}

/// The ports of nodes that it asks for.
pub(super) fn requested_node_ports(service: &Service) -> impl Iterator<Item = (u16, Protocol)> {
    let ports = service.ports.iter().filter_map(|port| Some((port.node_port?, port.protocol)));
    ports.chain(service.exposure.health_check_node_port.map(|port| (port, Protocol::Tcp)))
}

/// A service that has an address can't be told to have another one (as in Kubernetes): clients hold the old one.
pub(super) fn check_fixed(tx: &Transaction<'_>, new: &Service, old: &Service) -> Result<(), Refusal> {
    let name = &new.meta.name;
    let held = tx.state().allocations.get(name);
    let pairs = [
        (new.cluster_ip, held.and_then(|held| held.virtual_ip)),
        (new.exposure.second_ip, held.and_then(|held| held.second_ip)),
    ];
    for pair in pairs {
        if let (Some(wanted), Some(current)) = pair
            && wanted != current
            && !old.headless
        {
            return Err(Refusal::AddressFixed { service: format!("service/{name}"), current });
        }
    }
    let first = held.and_then(|held| held.virtual_ip).map(IpFamily::of);
    if let (Some(first), Some(wanted)) = (first, new.exposure.families.listed.first())
        && first != *wanted
        && !new.headless
    {
        let field = format!("service/{name}: spec.ipFamilies[0]");
        let problem = format!("can't take the place of {}: delete the service first", first.as_str());
        return Err(Refusal::invalid(field, wanted.as_str(), problem));
    }
    Ok(())
}

/// What comes from outside can't take the addresses of pods or of services: traffic to them would go astray.
pub(super) fn check_outside(tx: &Transaction<'_>, service: &Service) -> Result<(), Refusal> {
    let cluster = tx.cluster()?;
    let inside = |address: IpAddr| {
        cluster.pod_cidrs().chain(cluster.service_cidrs()).find(|range| range.contains(&address))
    };
    let external = service.exposure.external_ips.iter().map(|ip| ("spec.externalIPs", *ip));
    let balanced = service.exposure.load_balancer_ip.iter().map(|ip| ("spec.loadBalancerIP", *ip));
    for (field, address) in external.chain(balanced) {
        if let Some(range) = inside(address) {
            let field = format!("service/{}: {field}", service.meta.name);
            return Err(Refusal::invalid(field, address, format!("is of the cluster's own range {range}")));
        }
    }
    Ok(())
}

enum VirtualIp {
    None,
    Any(IpFamily),
    Requested(IpAddr),
}

struct Wanted {
    first: VirtualIp,
    second: VirtualIp,
    ports: BTreeSet<u16>,
    /// The service's object, if it is one of this cluster.
    local: Option<Service>,
}

impl Wanted {
    /// None if there is no such service any more, here or at a peer.
    fn of(tx: &Transaction<'_>, name: &NamespacedName) -> Result<Option<Wanted>, Refusal> {
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
        let local = match state.objects.get(&key).map(|o| o.as_ref()) {
            Some(Object::Service(local)) => Some(local.clone()),
            _ => None,
        };
        let (first, second) = match &local {
            Some(local) => {
                ports.extend(local.ports.iter().map(|port| port.port));
                addresses(tx.cluster()?, local)?
            }
            None if imported => (VirtualIp::Any(families(tx.cluster()?).0), VirtualIp::None),
            None => return Ok(None),
        };
        Ok(Some(Wanted { first, second, ports, local }))
    }
}

/// The family of the service CIDR, and the other one if the cluster has it.
fn families(cluster: &ClusterInfo) -> (IpFamily, Option<IpFamily>) {
    (IpFamily::of(cluster.service_cidr.addr()), cluster.service_cidr6.map(|_| IpFamily::V6))
}

/// What a service of this cluster is to have.
fn addresses(cluster: &ClusterInfo, service: &Service) -> Result<(VirtualIp, VirtualIp), Refusal> {
    if service.headless {
        return Ok((VirtualIp::None, VirtualIp::None));
    }
    let (own, other) = families(cluster);
    let has = |family: IpFamily| family == own || Some(family) == other;
    let said = &service.exposure.families;
    let refused = |field: &str, value: &str, problem: &str| {
        Err(Refusal::invalid(format!("service/{}: spec.{field}", service.meta.name), value, problem))
    };
    if let Some(family) = said.listed.iter().find(|family| !has(**family)) {
        return refused(
            "ipFamilies",
            family.as_str(),
            "is none of the cluster's: it has no service CIDR of it",
        );
    }
    let first = service.cluster_ip.map(IpFamily::of).or(said.listed.first().copied()).unwrap_or(own);
    let second = [own].into_iter().chain(other).find(|family| *family != first);
    let second = match (said.policy, second) {
        (FamilyPolicy::SingleStack, _) | (FamilyPolicy::PreferDualStack, None) => VirtualIp::None,
        (FamilyPolicy::RequireDualStack, None) => {
            let problem = "is not possible: the cluster has service CIDRs of one family";
            return refused("ipFamilyPolicy", said.policy.as_str(), problem);
        }
        (_, Some(family)) => service.exposure.second_ip.map_or(VirtualIp::Any(family), VirtualIp::Requested),
    };
    Ok((service.cluster_ip.map_or(VirtualIp::Any(first), VirtualIp::Requested), second))
}

/// The service CIDR of a family, or the first one.
fn range(cluster: &ClusterInfo, family: IpFamily) -> IpNet {
    let of_family = |range: &IpNet| IpFamily::of(range.addr()) == family;
    cluster.service_cidrs().find(of_family).unwrap_or(cluster.service_cidr)
}

fn requested(tx: &Transaction<'_>, name: &NamespacedName, address: IpAddr) -> Result<IpAddr, Refusal> {
    let cidr = range(tx.cluster()?, IpFamily::of(address));
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

fn free_address(tx: &mut Transaction<'_>, family: IpFamily) -> Result<IpAddr, Refusal> {
    let cluster = tx.cluster()?;
    let cidr = range(cluster, family);
    let first = cidr == cluster.service_cidr;
    let size = address::size(&cidr);
    let cursors = tx.state().cursors;
    let cursor = if first { cursors.virtual_ip } else { cursors.virtual_ip6 };
    for step in 0..size {
        let offset = (cursor + step) % size;
        let candidate = address::nth_address(&cidr, offset);
        if usable(&cidr, candidate) && tx.state().index.virtual_ip_holder(candidate).is_none() {
            let cursors = tx.cursors();
            *if first { &mut cursors.virtual_ip } else { &mut cursors.virtual_ip6 } = (offset + 1) % size;
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
