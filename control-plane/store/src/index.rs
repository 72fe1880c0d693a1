//! What can be told from the rest of the state, kept at hand so that no command costs a walk over all of it.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use mesh_model::{
    records::{ServiceAllocation, WorkloadBinding},
    resource::{Kind, NamespacedName, Protocol},
};

use crate::State;

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Index {
    counts: OrdMap<Kind, usize>,
    virtual_ips: OrdMap<IpAddr, NamespacedName>,
    proxy_ports: OrdSet<u16>,
    node_ports: OrdMap<(u16, Protocol), NamespacedName>,
    addresses: OrdMap<IpAddr, OrdSet<NamespacedName>>,
    importers: OrdMap<NamespacedName, OrdSet<String>>,
}

impl Index {
    /// Builds it anew, after a snapshot.
    pub(crate) fn of(state: &State) -> Self {
        let mut index = Index::default();
        for key in state.objects.keys() {
            index.object(key.kind, false, true);
        }
        for (service, allocation) in &state.allocations {
            index.allocation(service, None, Some(allocation));
        }
        for (workload, binding) in &state.bindings {
            index.binding(workload, None, Some(binding));
        }
        for (cluster, peer) in &state.peers {
            for service in peer.imports.keys() {
                index.import(cluster, service, true);
            }
        }
        index
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    pub(crate) fn virtual_ip_holder(&self, address: IpAddr) -> Option<&NamespacedName> {
        self.virtual_ips.get(&address)
    }

    pub(crate) fn proxy_port_taken(&self, port: u16) -> bool {
        self.proxy_ports.contains(&port)
    }

    /// Who has a port at every node, be it for a service port or for health checks.
    pub(crate) fn node_port_holder(&self, port: u16, protocol: Protocol) -> Option<&NamespacedName> {
        self.node_ports.get(&(port, protocol))
    }

    /// Workloads that are bound to an address.
    pub(crate) fn bound_to(&self, address: IpAddr) -> impl Iterator<Item = &NamespacedName> {
        self.addresses.get(&address).into_iter().flatten()
    }

    /// Peers that export a service of this name.
    pub(crate) fn importers(&self, service: &NamespacedName) -> impl Iterator<Item = &String> {
        self.importers.get(service).into_iter().flatten()
    }

    pub(crate) fn object(&mut self, kind: Kind, before: bool, after: bool) {
        let count = self.counts.entry(kind).or_default();
        *count = *count + usize::from(after) - usize::from(before);
        if *count == 0 {
            self.counts.remove(&kind);
        }
    }

    pub(crate) fn allocation(
        &mut self,
        service: &NamespacedName,
        old: Option<&ServiceAllocation>,
        new: Option<&ServiceAllocation>,
    ) {
        if let Some(old) = old {
            for address in old.virtual_ip.iter().chain(&old.second_ip) {
                self.virtual_ips.remove(address);
            }
            for held in at_nodes(old) {
                self.node_ports.remove(&held);
            }
            for port in old.proxy_ports.values() {
                self.proxy_ports.remove(port);
            }
        }
        if let Some(new) = new {
            for address in new.virtual_ip.iter().chain(&new.second_ip) {
                self.virtual_ips.insert(*address, service.clone());
            }
            self.node_ports.extend(at_nodes(new).map(|held| (held, service.clone())));
            self.proxy_ports.extend(new.proxy_ports.values().copied());
        }
    }

    pub(crate) fn binding(
        &mut self,
        workload: &NamespacedName,
        old: Option<&WorkloadBinding>,
        new: Option<&WorkloadBinding>,
    ) {
        for address in old.iter().flat_map(|binding| &binding.addresses) {
            remove_from(&mut self.addresses, address, workload);
        }
        for address in new.iter().flat_map(|binding| &binding.addresses) {
            self.addresses.entry(*address).or_default().insert(workload.clone());
        }
    }

    pub(crate) fn import(&mut self, cluster: &str, service: &NamespacedName, present: bool) {
        if present {
            self.importers.entry(service.clone()).or_default().insert(cluster.to_owned());
        } else {
            remove_from(&mut self.importers, service, &cluster.to_owned());
        }
    }
}

/// Health checks are asked by TCP.
fn at_nodes(allocation: &ServiceAllocation) -> impl Iterator<Item = (u16, Protocol)> {
    let ports = allocation.node_ports.iter().map(|held| (held.node_port, held.protocol));
    ports.chain(allocation.health_check_port.map(|port| (port, Protocol::Tcp)))
}

fn remove_from<K: Ord + Clone, V: Ord + Clone>(map: &mut OrdMap<K, OrdSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
