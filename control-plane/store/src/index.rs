//! What can be told from the rest of the state, kept at hand so that no command costs a walk over all of it.

use std::net::IpAddr;

use imbl::{OrdMap, OrdSet};
use mesh_model::{
    records::{ServiceAllocation, WorkloadBinding},
    resource::{Kind, NamespacedName},
};

use crate::State;

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Index {
    counts: OrdMap<Kind, usize>,
    virtual_ips: OrdMap<IpAddr, NamespacedName>,
    proxy_ports: OrdSet<u16>,
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
            if let Some(address) = old.virtual_ip {
                self.virtual_ips.remove(&address);
            }
            for port in old.proxy_ports.values() {
                self.proxy_ports.remove(port);
            }
        }
        if let Some(new) = new {
            if let Some(address) = new.virtual_ip {
                self.virtual_ips.insert(address, service.clone());
            }
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

fn remove_from<K: Ord + Clone, V: Ord + Clone>(map: &mut OrdMap<K, OrdSet<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}
