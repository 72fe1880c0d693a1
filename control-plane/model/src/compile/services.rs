//! Services: local, imported, and both at once.
//!
//! Namespace sameness (KEP-1645): a service of the same namespace and name in another cluster is the same service,
//! if both clusters export it. A local service that is not exported stays as it is, whatever peers export; and
//! where peers disagree with the local definition of a port, the local one stands, so that joining a cluster
//! changes no local traffic. Among peers the older export wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{Input, MeshEndpoint, MeshService, MeshServicePort, MeshWorkload, workloads::declared};
use crate::{
    identity::SpiffeId,
    records::{ImportedPort, ImportedService, PeerRecord},
    resource::{
        AppProtocol, EndpointSlice, Kind, NamespacedName, Object, ObjectKey, PortRef, Protocol, Service,
        ServicePort, Workload, matches_labels,
    },
};

/// Endpoints in this cluster.
const LOCAL: u32 = 0;
/// Endpoints in peers, used when no local one is ready.
const REMOTE: u32 = 1;

pub(super) fn compile(
    input: &Input,
    workloads: &BTreeMap<NamespacedName, MeshWorkload>,
) -> BTreeMap<NamespacedName, MeshService> {
    let index = Index::new(input, workloads);
    let mut services = BTreeMap::new();
    for object in input.objects.values() {
        if let Object::Service(service) = object.as_ref() {
            let export = ObjectKey { kind: Kind::ServiceExport, name: service.meta.name.clone() };
            let exported = input.objects.contains_key(&export);
            services.insert(service.meta.name.clone(), index.local(service, exported));
        }
    }
    for name in index.imports.keys() {
        if !services.contains_key(*name) {
            services.insert((*name).clone(), index.imported(name));
        }
    }
    services
}

/// Everything that is looked up once per service.
struct Index<'a> {
    input: &'a Input,
    workloads: &'a BTreeMap<NamespacedName, MeshWorkload>,
    by_namespace: BTreeMap<&'a str, Vec<&'a Workload>>,
    by_address: BTreeMap<IpAddr, &'a MeshWorkload>,
    slices: BTreeMap<NamespacedName, Vec<&'a EndpointSlice>>,
    /// Oldest export first.
    imports: BTreeMap<&'a NamespacedName, Vec<(&'a PeerRecord, &'a ImportedService)>>,
}

impl<'a> Index<'a> {
    fn new(input: &'a Input, workloads: &'a BTreeMap<NamespacedName, MeshWorkload>) -> Self {
        let mut by_namespace: BTreeMap<&str, Vec<&Workload>> = BTreeMap::new();
        for workload in declared(input) {
            by_namespace.entry(&workload.meta.name.namespace).or_default().push(workload);
        }
        let mut by_address = BTreeMap::new();
        for workload in workloads.values() {
            for ip in workload.binding.iter().flat_map(|b| &b.addresses) {
                by_address.entry(*ip).or_insert(workload);
            }
        }
        let mut slices: BTreeMap<NamespacedName, Vec<&EndpointSlice>> = BTreeMap::new();
        for object in input.objects.values() {
            if let Object::EndpointSlice(slice) = object.as_ref() {
                let service = NamespacedName::new(&slice.meta.name.namespace, &slice.service);
                slices.entry(service).or_default().push(slice);
            }
        }
        let mut imports: BTreeMap<&NamespacedName, Vec<(&PeerRecord, &ImportedService)>> = BTreeMap::new();
        // A peer of another mesh domain would not recognise our SNI.
        for peer in input.peers.values().filter(|p| p.mesh_domain == input.cluster.mesh_domain) {
            for (name, service) in &peer.imports {
                imports.entry(name).or_default().push((peer, service));
            }
        }
        for offers in imports.values_mut() {
            offers.sort_by_key(|(peer, service)| (service.exported_at_unix, &peer.cluster));
        }
        Self { input, workloads, by_namespace, by_address, slices, imports }
    }

    fn offers(&self, name: &NamespacedName) -> &[(&'a PeerRecord, &'a ImportedService)] {
        self.imports.get(name).map_or(&[][..], Vec::as_slice)
    }

    fn local(&self, service: &Service, exported: bool) -> MeshService {
        let name = &service.meta.name;
        let offers = if exported { self.offers(name) } else { &[] };
        let mut ports: Vec<MeshServicePort> = Vec::new();
        for port in &service.ports {
            let mut local = self.local_endpoints(service, port);
            let remote = self.remote_endpoints(offers, port.port, port.protocol);
            local.endpoints.extend(remote.endpoints);
            local.spiffe_ids.extend(remote.spiffe_ids);
            ports.push(self.port(name, &port.name, port.port, port.protocol, port.app_protocol, local));
        }
        self.add_imported_ports(name, offers, &mut ports);
        let allocated = self.input.allocations.get(name).and_then(|a| a.virtual_ip);
        MeshService {
            name: name.clone(),
            virtual_ip: if service.headless { None } else { allocated.or(service.cluster_ip) },
            ports,
            exported,
        }
    }

    fn imported(&self, name: &NamespacedName) -> MeshService {
        let mut ports = Vec::new();
        self.add_imported_ports(name, self.offers(name), &mut ports);
        MeshService {
            name: name.clone(),
            virtual_ip: self.input.allocations.get(name).and_then(|a| a.virtual_ip),
            ports,
            exported: false,
        }
    }

    /// Ports that only peers have. One that clashes with a port that is there already, by name or by number,
    /// is left out.
    fn add_imported_ports(
        &self,
        name: &NamespacedName,
        offers: &[(&PeerRecord, &ImportedService)],
        ports: &mut Vec<MeshServicePort>,
    ) {
        // Gateways forward TLS over TCP, nothing else.
        let offered = offers.iter().flat_map(|(_, s)| &s.ports).filter(|p| p.protocol == Protocol::Tcp);
        for ImportedPort { name: port_name, port, protocol, app_protocol } in offered {
            if ports.iter().any(|p| (p.port, p.protocol) == (*port, *protocol) || p.name == *port_name) {
                continue;
            }
            let places = self.remote_endpoints(offers, *port, *protocol);
            ports.push(self.port(name, port_name, *port, *protocol, *app_protocol, places));
        }
    }

    fn port(
        &self,
        service: &NamespacedName,
        name: &str,
        port: u16,
        protocol: Protocol,
        app_protocol: AppProtocol,
        places: Places,
    ) -> MeshServicePort {
        let proxy_ports = self.input.allocations.get(service).map(|a| &a.proxy_ports);
        let proxy_port = match protocol {
            Protocol::Tcp => proxy_ports.and_then(|ports| ports.get(&port)).copied().unwrap_or(0),
            Protocol::Udp | Protocol::Sctp => 0,
        };
        MeshServicePort {
            name: name.to_owned(),
            port,
            protocol,
            app_protocol,
            proxy_port,
            sni: format!(
                "{port}.{}.{}.svc.{}",
                service.name, service.namespace, self.input.cluster.mesh_domain
            ),
            endpoints: places.endpoints,
            spiffe_ids: places.spiffe_ids.into_iter().collect(),
            routes: Vec::new(),
        }
    }

    fn local_endpoints(&self, service: &Service, port: &ServicePort) -> Places {
        let mut found: BTreeMap<SocketAddr, MeshEndpoint> = BTreeMap::new();
        let mut spiffe_ids = BTreeSet::new();
        let mut add = |address: SocketAddr, ready: bool, workload: Option<&MeshWorkload>| {
            found.entry(address).or_insert_with(|| MeshEndpoint {
                address,
                weight: 1,
                priority: LOCAL,
                cluster: self.input.cluster.name.clone(),
                ready,
                workload: workload.map(|w| w.name.clone()),
                mtls: workload.is_some_and(|w| speaks_mtls(w, port.protocol, address.port())),
            });
        };
        if !service.selector.is_empty() {
            let namespace = service.meta.name.namespace.as_str();
            for workload in self.by_namespace.get(namespace).into_iter().flatten() {
                if !matches_labels(&service.selector, &workload.meta.labels) {
                    continue;
                }
                let Some(target) = target_port(port, workload) else { continue };
                let Some(compiled) = self.workloads.get(&workload.meta.name) else { continue };
                if speaks_mtls(compiled, port.protocol, target) {
                    // Also of workloads that are not bound yet: their certificates must be good at once.
                    spiffe_ids.insert(compiled.spiffe_id.clone());
                }
                let Some(binding) = &compiled.binding else { continue };
                for ip in &binding.addresses {
                    add(SocketAddr::new(*ip, target), binding.ready, Some(compiled));
                }
            }
        }
        for slice in self.slices.get(&service.meta.name).into_iter().flatten() {
            let same = |p: &&crate::resource::SlicePort| p.name == port.name && p.protocol == port.protocol;
            let Some(target) = slice.ports.iter().find(same).map(|p| p.port) else { continue };
            for endpoint in &slice.endpoints {
                for ip in &endpoint.addresses {
                    let workload = self.by_address.get(ip).copied();
                    if let Some(workload) = workload
                        && speaks_mtls(workload, port.protocol, target)
                    {
                        spiffe_ids.insert(workload.spiffe_id.clone());
                    }
                    add(SocketAddr::new(*ip, target), endpoint.ready, workload);
                }
            }
        }
        Places { endpoints: found.into_values().collect(), spiffe_ids }
    }

    /// A remote endpoint is the peer's gateway; the SNI tells it which service is meant.
    fn remote_endpoints(
        &self,
        offers: &[(&PeerRecord, &ImportedService)],
        port: u16,
        protocol: Protocol,
    ) -> Places {
        let mut places = Places::default();
        for (peer, service) in offers {
            let offers_port = service.ports.iter().any(|p| p.port == port && p.protocol == protocol);
            if protocol != Protocol::Tcp || !offers_port {
                continue;
            }
            // A peer vouches for its own trust domain only: else it could name one of ours.
            let own = service.spiffe_ids.iter().filter(|id| *id.trust_domain() == peer.trust_domain);
            places.spiffe_ids.extend(own.cloned());
            // Names would need DNS, which endpoints have not: those gateways are left out.
            let gateways: BTreeSet<SocketAddr> =
                peer.gateways.iter().filter_map(|g| g.parse().ok()).collect();
            places.endpoints.extend(gateways.into_iter().map(|address| MeshEndpoint {
                address,
                weight: 1,
                priority: REMOTE,
                cluster: peer.cluster.clone(),
                ready: service.ready_endpoints > 0,
                workload: None,
                mtls: true,
            }));
        }
        places
    }
}

/// Where a service port is served, and by whom.
#[derive(Default)]
struct Places {
    endpoints: Vec<MeshEndpoint>,
    spiffe_ids: BTreeSet<SpiffeId>,
}

fn speaks_mtls(workload: &MeshWorkload, protocol: Protocol, port: u16) -> bool {
    protocol == Protocol::Tcp && workload.captured_ports.contains(&port)
}

fn target_port(port: &ServicePort, workload: &Workload) -> Option<u16> {
    match &port.target_port {
        PortRef::Number(number) => Some(*number),
        PortRef::Name(name) => workload
            .ports
            .iter()
            .find(|p| p.name.as_ref() == Some(name) && p.protocol == port.protocol)
            .map(|p| p.port),
    }
}
