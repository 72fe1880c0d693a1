//! Services, from what the control plane tells to what the kernel is to hold of each of their addresses. PURE.

#[cfg(test)]
mod balance_tests;
mod eligible;
pub mod maglev;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ebpf_shared::{redirect::NO_SLOT, service::scope};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;

pub use self::eligible::{Here, Wishes, eligible};
use super::{Pod, PodAddresses};
use crate::subscribe::{FrontendKind, Resources, Service, ServiceBackend, ServicePort};

/// An address of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct ServiceFrontend {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: u8,
    pub scope: Scope,
}

impl ServiceFrontend {
    /// Address and port.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// For whom an address is one of the service's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Sockets and pods of this node.
    Inside,
    /// What comes in by the node's own interface.
    Outside,
}

impl Scope {
    /// As the kernel has it.
    pub fn number(self) -> u8 {
        match self {
            Self::Inside => scope::INSIDE,
            Self::Outside => scope::OUTSIDE,
        }
    }

    /// The reverse.
    pub fn from_number(number: u8) -> Self {
        if number == scope::OUTSIDE { Self::Outside } else { Self::Inside }
    }
}

/// What one address of a service stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceEntry {
    /// Loopback port of the sidecar's listener; 0: none.
    pub proxy_port: u16,
    /// Slot of the proxy by which pods reach it; 0: they reach its backends themselves.
    pub redirect: u16,
    /// A client stays with its backend for so long; 0: it does not.
    pub affinity_seconds: u32,
    /// A backend elsewhere answers the client by itself.
    pub direct: bool,
    /// Who may ask; empty: anybody.
    pub sources: BTreeSet<IpNet>,
    /// All of the address's family. Those that are not chosen keep the connections that they have.
    pub backends: BTreeMap<SocketAddr, ServedBackend>,
}

/// A backend, for one address of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServedBackend {
    /// Its share among those that are chosen.
    pub weight: u32,
    /// New connections go there.
    pub chosen: bool,
    /// It runs on this node.
    pub here: bool,
}

/// Every address of every service. Where two services claim one, the virtual address wins before others, then the
/// name that comes first. `slot` knows the slots of proxies.
pub fn services(
    resources: &Resources,
    own: PodAddresses,
    pods: &BTreeMap<NamespacedName, Pod>,
    slot: &mut dyn FnMut(&str) -> u16,
) -> BTreeMap<ServiceFrontend, ServiceEntry> {
    some(resources.services.values().map(Arc::as_ref), resources, own, pods, slot)
}

/// The same if there were no other services than these, which are in the order of their names.
fn some<'a>(
    services: impl Iterator<Item = &'a Service> + Clone,
    resources: &Resources,
    own: PodAddresses,
    pods: &BTreeMap<NamespacedName, Pod>,
    slot: &mut dyn FnMut(&str) -> u16,
) -> Table {
    let here = here(resources, own, pods);
    let mut table = BTreeMap::new();
    for service in services.clone() {
        let redirect = if service.redirect.is_empty() { NO_SLOT } else { slot(&service.redirect) };
        virtual_addresses(service, redirect, &here, &mut table);
    }
    for service in services {
        other_addresses(service, own, &here, &mut table);
    }
    host_ports(resources, own, pods, &mut table);
    table
}

/// Address, port and protocol.
type Claim = (IpAddr, u16, u8);

/// Which services claim an address: what one service's change concerns is found here.
#[derive(Debug, Clone, Default)]
pub(super) struct Claims(HashMap<Claim, BTreeSet<NamespacedName>>);

impl Claims {
    /// Of all services.
    pub(super) fn new(resources: &Resources, own: PodAddresses) -> Self {
        let mut all = Self::default();
        for (name, service) in &resources.services {
            all.add(name, service, own);
        }
        all
    }

    fn add(&mut self, name: &NamespacedName, service: &Service, own: PodAddresses) {
        for claim in claims(service, own) {
            self.0.entry(claim).or_default().insert(name.clone());
        }
    }

    /// Takes in that services changed: each as it was before. The addresses that may lead elsewhere now, and the services
    /// that claim them or have claimed them.
    pub(super) fn note(
        &mut self,
        before: &BTreeMap<NamespacedName, Option<Arc<Service>>>,
        resources: &Resources,
        own: PodAddresses,
    ) -> (BTreeSet<Claim>, BTreeSet<NamespacedName>) {
        let mut concerned = BTreeSet::new();
        for (name, before) in before {
            for claim in before.iter().flat_map(|service| claims(service, own)) {
                if let Some(names) = self.0.get_mut(&claim) {
                    names.remove(name);
                    if names.is_empty() {
                        self.0.remove(&claim);
                    }
                }
                concerned.insert(claim);
            }
            if let Some(now) = resources.services.get(name) {
                self.add(name, now, own);
                concerned.extend(claims(now, own));
            }
        }
        let names = concerned.iter().filter_map(|claim| self.0.get(claim)).flatten().cloned().collect();
        (concerned, names)
    }
}

/// What changes of services where nothing has changed but these: see [`Claims::note`].
pub(super) fn changed(
    (concerned, names): &(BTreeSet<Claim>, BTreeSet<NamespacedName>),
    current: &BTreeMap<ServiceFrontend, ServiceEntry>,
    resources: &Resources,
    own: PodAddresses,
    pods: &BTreeMap<NamespacedName, Pod>,
    slot: &mut dyn FnMut(&str) -> u16,
) -> BTreeMap<ServiceFrontend, Option<ServiceEntry>> {
    let found = names.iter().filter_map(|name| resources.services.get(name)).map(Arc::as_ref);
    let mut table = some(found, resources, own, pods, slot);
    let mut changes = BTreeMap::new();
    for (address, port, protocol) in concerned {
        for scope in [Scope::Inside, Scope::Outside] {
            let frontend = ServiceFrontend { address: *address, port: *port, protocol: *protocol, scope };
            let after = table.remove(&frontend);
            if current.get(&frontend) != after.as_ref() {
                changes.insert(frontend, after);
            }
        }
    }
    changes
}

/// Address, port and protocol of all that leads to a service.
pub fn claims(service: &Service, own: PodAddresses) -> Vec<(IpAddr, u16, u8)> {
    let addresses = service.addresses.iter();
    let of = |address: &IpAddr| {
        let address = *address;
        service.ports.iter().map(move |port| (address, port.port, port.protocol))
    };
    let others = service.frontends.iter().flat_map(|told| {
        let at: Vec<IpAddr> = told.address.map_or_else(|| own.iter().collect(), |address| vec![address]);
        at.into_iter().map(|address| (address, told.port, told.protocol))
    });
    addresses.flat_map(of).chain(others).collect()
}

type Table = BTreeMap<ServiceFrontend, ServiceEntry>;

fn here(resources: &Resources, own: PodAddresses, pods: &BTreeMap<NamespacedName, Pod>) -> Here {
    let addresses = pods.values().flat_map(|pod| pod.addresses.iter()).chain(own.iter()).collect();
    let me = resources.nodes.iter().find(|(_, node)| node.address == own.v4);
    let (node, zone) = me.map(|(name, node)| (name.clone(), node.zone.clone())).unwrap_or_default();
    Here { addresses, node, zone }
}

fn wishes(service: &Service, local_only: bool) -> Wishes {
    Wishes { local_only, same_zone: service.prefer_same_zone, same_node: service.prefer_same_node }
}

fn virtual_addresses(service: &Service, redirect: u16, here: &Here, table: &mut Table) {
    let wishes = wishes(service, service.internal_local);
    for address in &service.addresses {
        for port in &service.ports {
            let frontend = ServiceFrontend {
                address: *address,
                port: port.port,
                protocol: port.protocol,
                scope: Scope::Inside,
            };
            table
                .entry(frontend)
                .or_insert_with(|| ServiceEntry { redirect, ..entry(service, port, *address, wishes, here) });
        }
    }
}

/// What a service can be reached at besides its virtual addresses: from within by any backend, from outside as its
/// external policy says.
fn other_addresses(service: &Service, own: PodAddresses, here: &Here, table: &mut Table) {
    for told in &service.frontends {
        let Some(port) = service
            .ports
            .iter()
            .find(|port| (port.port, port.protocol) == (told.service_port, told.protocol))
        else {
            continue;
        };
        let addresses: Vec<IpAddr> = match told.address {
            Some(address) => vec![address],
            None => own.iter().collect(),
        };
        for address in addresses {
            for scope in [Scope::Inside, Scope::Outside] {
                let outside = scope == Scope::Outside;
                let wishes = wishes(service, outside && service.external_local);
                let frontend = ServiceFrontend { address, port: told.port, protocol: told.protocol, scope };
                table.entry(frontend).or_insert_with(|| {
                    let mut entry = entry(service, port, address, wishes, here);
                    entry.direct = outside && service.direct;
                    if outside && told.kind == FrontendKind::LoadBalancer {
                        entry.sources = service.source_ranges.iter().copied().collect();
                    }
                    entry
                });
            }
        }
    }
}

fn entry(
    service: &Service,
    port: &ServicePort,
    address: IpAddr,
    wishes: Wishes,
    here: &Here,
) -> ServiceEntry {
    // A packet reaches addresses of its own family. What is not ready keeps its connections, as in Kubernetes: a probe
    // that fails may mean no more than that it is busy with them.
    let same: Vec<&ServiceBackend> =
        port.backends.iter().filter(|to| to.address.is_ipv4() == address.is_ipv4()).collect();
    let chosen: BTreeSet<SocketAddr> =
        eligible(&same, wishes, here).iter().map(|to| SocketAddr::new(to.address, to.port)).collect();
    let backends = same.iter().map(|to| {
        let at = SocketAddr::new(to.address, to.port);
        let served = ServedBackend {
            weight: to.weight,
            chosen: chosen.contains(&at),
            here: here.addresses.contains(&to.address),
        };
        (at, served)
    });
    ServiceEntry {
        proxy_port: port.proxy_port,
        redirect: NO_SLOT,
        affinity_seconds: service.affinity_seconds,
        direct: false,
        sources: BTreeSet::new(),
        backends: backends.collect(),
    }
}

/// Ports of this node that lead to one of its pods.
fn host_ports(
    resources: &Resources,
    own: PodAddresses,
    pods: &BTreeMap<NamespacedName, Pod>,
    table: &mut Table,
) {
    for (name, pod) in pods {
        let told = resources.locals.get(name).map(|local| &local.host_ports);
        let asked = resources.host_ports.get(name);
        for told in told.into_iter().chain(asked).flatten() {
            let addresses: Vec<IpAddr> = match told.address {
                Some(address) => vec![address],
                None => own.iter().collect(),
            };
            for address in addresses {
                let Some(to) = pod.addresses.iter().find(|to| to.is_ipv4() == address.is_ipv4()) else {
                    continue;
                };
                let served = ServedBackend { weight: 1, chosen: true, here: true };
                let entry = ServiceEntry {
                    backends: BTreeMap::from([(SocketAddr::new(to, told.port), served)]),
                    ..ServiceEntry::default()
                };
                for scope in [Scope::Inside, Scope::Outside] {
                    let frontend =
                        ServiceFrontend { address, port: told.host_port, protocol: told.protocol, scope };
                    table.entry(frontend).or_insert_with(|| entry.clone());
                }
            }
        }
    }
}
