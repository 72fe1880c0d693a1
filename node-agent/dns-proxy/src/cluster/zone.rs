//! What there is to tell of services.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use mesh_model::resource::NamespacedName;

use super::SET_DOMAIN;

/// Below which domains services have names. In lower case, without the last dot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Domains {
    /// Usually `cluster.local`.
    pub cluster: String,
    /// The mesh's own.
    pub mesh: String,
    /// The cluster's name, by which its endpoints are told from those of others.
    pub cluster_id: String,
}

/// Whose names a domain has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Domain {
    Cluster,
    Set,
    Mesh,
}

/// A service, as far as it has names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NamedService {
    /// Virtual ones.
    pub addresses: Vec<IpAddr>,
    pub headless: bool,
    /// It is offered to peers.
    pub exported: bool,
    /// Only peers have it.
    pub imported: bool,
    pub ports: Vec<NamedPort>,
    /// Of a headless one without ports.
    pub endpoints: Vec<NamedEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NamedPort {
    /// Empty: it has none, and no SRV record.
    pub name: String,
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Of a headless service: those that are ready.
    pub endpoints: Vec<NamedEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct NamedEndpoint {
    pub address: IpAddr,
    pub hostname: Option<String>,
    /// 0: the service has none.
    pub port: u16,
}

impl NamedEndpoint {
    /// What it is called below its service.
    pub(super) fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(self.address))
    }
}

impl NamedService {
    /// Those of all ports. Empty unless it is headless.
    pub(super) fn all_endpoints(&self) -> impl Iterator<Item = &NamedEndpoint> {
        let all = self.ports.iter().flat_map(|port| &port.endpoints).chain(&self.endpoints);
        all.filter(|_| self.headless)
    }

    /// What its own name stands for, once each.
    pub(super) fn all_addresses(&self) -> Vec<IpAddr> {
        let endpoints: BTreeSet<IpAddr> = self.all_endpoints().map(|endpoint| endpoint.address).collect();
        self.addresses.iter().copied().chain(endpoints).collect()
    }

    pub(super) fn is_in(&self, domain: Domain) -> bool {
        match domain {
            Domain::Cluster => !self.imported,
            Domain::Set => self.exported || self.imported,
            Domain::Mesh => true,
        }
    }
}

impl Domains {
    /// The domain that a name is below, and how many labels the domain has. Where one is below another, the inner one.
    pub(super) fn of(&self, labels: &[String]) -> Option<(Domain, usize)> {
        let all = [
            (Domain::Cluster, self.cluster.as_str()),
            (Domain::Set, SET_DOMAIN),
            (Domain::Mesh, self.mesh.as_str()),
        ];
        let below = all.into_iter().filter_map(|(domain, text)| {
            let wanted: Vec<&str> = text.split('.').collect();
            let is_below = !text.is_empty()
                && labels.len() >= wanted.len()
                && labels.iter().rev().zip(wanted.iter().rev()).all(|(label, wanted)| label == wanted);
            is_below.then_some((domain, wanted.len()))
        });
        // Of equals the first: a cluster's domain that is the mesh's too is the cluster's.
        below.min_by_key(|(_, count)| std::cmp::Reverse(*count))
    }

    pub(super) fn text(&self, domain: Domain) -> &str {
        match domain {
            Domain::Cluster => &self.cluster,
            Domain::Set => SET_DOMAIN,
            Domain::Mesh => &self.mesh,
        }
    }
}

/// All services of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    services: BTreeMap<NamespacedName, NamedService>,
    /// Whose address it is.
    addresses: BTreeMap<IpAddr, BTreeSet<NamespacedName>>,
}

impl Zone {
    /// A service is there, or is another than before.
    pub fn put(&mut self, name: NamespacedName, service: NamedService) {
        self.remove(&name);
        for address in service.all_addresses() {
            self.addresses.entry(address).or_default().insert(name.clone());
        }
        self.services.insert(name, service);
    }

    /// A service is gone.
    pub fn remove(&mut self, name: &NamespacedName) {
        let Some(service) = self.services.remove(name) else { return };
        for address in service.all_addresses() {
            if let Some(names) = self.addresses.get_mut(&address) {
                names.remove(name);
                if names.is_empty() {
                    self.addresses.remove(&address);
                }
            }
        }
    }

    /// How many services there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.services.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    pub(super) fn service(&self, domain: Domain, namespace: &str, name: &str) -> Option<&NamedService> {
        let service = self.services.get(&NamespacedName::new(namespace, name));
        service.filter(|service| service.is_in(domain))
    }

    pub(super) fn has_namespace(&self, domain: Domain, namespace: &str) -> bool {
        let of_it = self.services.range(NamespacedName::new(namespace, "")..);
        of_it.take_while(|(name, _)| name.namespace == namespace).any(|(_, service)| service.is_in(domain))
    }

    /// Services that have an address, as a virtual IP or as an endpoint's.
    pub(super) fn at(&self, address: IpAddr) -> impl Iterator<Item = (&NamespacedName, &NamedService)> {
        let names = self.addresses.get(&address).into_iter().flatten();
        names.filter_map(|name| Some((name, self.services.get(name)?)))
    }
}

/// An address as a label.
pub(super) fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The reverse.
pub(super) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse().map(IpAddr::V6)).ok()
}
