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

use super::{Delivery, Input, MeshEndpoint, MeshService, MeshServicePort, MeshWorkload, Place, routes};
use crate::{
    identity::SpiffeId,
    records::{ImportedPort, ImportedService, PeerRecord},
    resource::{
        AppProtocol, EndpointSlice, HttpRoute, IpFamily, Kind, NamespacedName, Object, PortRef, Protocol,
        Service, ServicePort, SliceEndpoint, Workload, is_dns_label,
    },
};

/// What is looked up for a service. Every list is in the order of names.
pub(super) trait Lookup<'a> {
    /// Declared workloads that a service's selector (not empty) selects.
    fn selected(&self, service: &Service) -> Vec<(&'a Workload, &'a MeshWorkload)>;
    fn slices(&self, service: &NamespacedName) -> Vec<&'a EndpointSlice>;
    /// The workload that has an address; of several the first.
    fn at(&self, address: IpAddr) -> Option<&'a MeshWorkload>;
    /// Imports of this name.
    fn offers(&self, service: &NamespacedName) -> Vec<Offer<'a>>;
    /// Routes that name the service as a parent.
    fn routes(&self, service: &NamespacedName) -> Vec<&'a HttpRoute>;
}

/// A peer with a service that it exports.
pub(super) type Offer<'a> = (&'a PeerRecord, &'a ImportedService);

/// One service. None: neither this cluster nor a peer has it.
pub(super) fn one<'a>(
    input: &'a Input,
    lookup: &dyn Lookup<'a>,
    name: &NamespacedName,
) -> Option<MeshService> {
    let mut offers = lookup.offers(name);
    // A peer of another mesh domain would not recognise our SNI.
    offers.retain(|(peer, _)| peer.mesh_domain == input.cluster.mesh_domain);
    offers.sort_by_key(|(peer, service)| (service.exported_at_unix, &peer.cluster));
    let builder = Builder { input, lookup };
    let mut service = match input.object(Kind::Service, name) {
        Some(Object::Service(service)) => {
            let exported = input.object(Kind::ServiceExport, name).is_some();
            builder.local(service, exported, &offers)
        }
        _ if offers.is_empty() => return None,
        _ => builder.imported(name, &offers),
    };
    let routes = lookup.routes(name);
    if !routes.is_empty() {
        routes::attach(input, &mut service, &routes);
    }
    Some(service)
}

struct Builder<'a, 'l> {
    input: &'a Input,
    lookup: &'l dyn Lookup<'a>,
}

impl<'a> Builder<'a, '_> {
    fn local(&self, service: &Service, exported: bool, offers: &[Offer<'a>]) -> MeshService {
        let name = &service.meta.name;
        let offers = if exported { offers } else { &[] };
        let members = if service.selector.is_empty() { Vec::new() } else { self.lookup.selected(service) };
        let slices = self.lookup.slices(name);
        let allocation = self.input.allocations.get(name).map(AsRef::as_ref);
        let allocated = allocation.and_then(|a| a.virtual_ip);
        let virtual_ip = if service.headless { None } else { allocated.or(service.cluster_ip) };
        let second_ip = virtual_ip.and(allocation.and_then(|a| a.second_ip));
        // Kubernetes: the endpoints of a service are of its own family (`ipFamilies`); a headless one has all.
        let wanted = Wanted {
            family: virtual_ip.map(IpFamily::of),
            second: second_ip.map(IpFamily::of),
            publish: service.exposure.publish_not_ready,
            headless: service.headless,
        };
        let mut ports: Vec<MeshServicePort> = Vec::new();
        for port in &service.ports {
            let mut local = self.local_endpoints(port, wanted, &members, &slices);
            let behind = local.endpoints.iter().map(|e| e.priority + 1).max().unwrap_or(1);
            let remote = self.remote_endpoints(offers, (port.port, port.protocol), behind, wanted.family);
            local.endpoints.extend(remote.endpoints);
            local.second_family.extend(remote.second_family);
            local.spiffe_ids.extend(remote.spiffe_ids);
            ports.push(self.port(name, &port.name, port.port, port.protocol, port.app_protocol, local));
        }
        let is_bare = service.headless && service.ports.is_empty();
        let named = if is_bare { self.named_endpoints(wanted, &members, &slices) } else { Vec::new() };
        self.add_imported_ports(name, offers, &mut ports);
        MeshService {
            name: name.clone(),
            virtual_ip,
            second_ip,
            ports,
            exported,
            visibility: service.visibility.clone(),
            delivery: Delivery {
                exposure: service.exposure.clone(),
                headless: service.headless,
                imported: false,
                named,
                node_ports: allocation.map(|a| a.node_ports.clone()).unwrap_or_default(),
                health_check_port: allocation.and_then(|a| a.health_check_port),
            },
        }
    }

    fn imported(&self, name: &NamespacedName, offers: &[Offer<'a>]) -> MeshService {
        let mut ports = Vec::new();
        self.add_imported_ports(name, offers, &mut ports);
        MeshService {
            name: name.clone(),
            virtual_ip: self.input.allocations.get(name).and_then(|a| a.virtual_ip),
            second_ip: None,
            ports,
            exported: false,
            delivery: Delivery { imported: true, ..Delivery::default() },
            // The same service there and here, so what the older export says of namespaces holds in both.
            visibility: offers.first().map(|(_, service)| service.visibility.clone()).unwrap_or_default(),
        }
    }

    /// Ports that only peers have. One that clashes with a port that is there already, by name or by number,
    /// is left out.
    fn add_imported_ports(
        &self,
        name: &NamespacedName,
        offers: &[Offer<'a>],
        ports: &mut Vec<MeshServicePort>,
    ) {
        // Gateways forward TLS over TCP, nothing else; node ports take packets.
        let offered = offers.iter().flat_map(|(_, s)| {
            let reached = |p: &&ImportedPort| {
                p.protocol == Protocol::Tcp || s.entries_of(p.port, p.protocol).next().is_some()
            };
            s.ports.iter().filter(reached)
        });
        let family = self.input.allocations.get(name).and_then(|a| a.virtual_ip).map(IpFamily::of);
        for ImportedPort { name: port_name, port, protocol, app_protocol } in offered {
            if ports.iter().any(|p| (p.port, p.protocol) == (*port, *protocol) || p.name == *port_name) {
                continue;
            }
            let places = self.remote_endpoints(offers, (*port, *protocol), 1, family);
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
        let allocation = self.input.allocations.get(service);
        // Both by number: what is not TCP goes through no proxy.
        let through_proxy = allocation.filter(|_| protocol == Protocol::Tcp);
        let proxy_port = through_proxy.and_then(|a| a.proxy_ports.get(&port)).copied().unwrap_or(0);
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
            second_family: places.second_family,
            spiffe_ids: places.spiffe_ids.into_iter().collect(),
            overflow: through_proxy.and_then(|a| a.overflow.get(&port)).map_or(0, |share| share.percent),
            routes: Vec::new(),
        }
    }

    fn local_endpoints(
        &self,
        port: &ServicePort,
        wanted: Wanted,
        members: &[(&Workload, &MeshWorkload)],
        slices: &[&EndpointSlice],
    ) -> Places {
        let mut found: BTreeMap<SocketAddr, MeshEndpoint> = BTreeMap::new();
        let mut second: BTreeMap<SocketAddr, MeshEndpoint> = BTreeMap::new();
        let mut spiffe_ids = BTreeSet::new();
        let mut draining: BTreeSet<SocketAddr> = BTreeSet::new();
        let endpoint =
            |address: SocketAddr, ready: bool, workload: Option<&MeshWorkload>, place: Place| MeshEndpoint {
                address,
                weight: 1,
                priority: 0,
                cluster: self.input.cluster.name.clone(),
                ready: ready || wanted.publish,
                workload: workload.map(|w| w.name.clone()),
                mtls: workload.is_some_and(|w| speaks_mtls(w, port.protocol, address.port())),
                place,
            };
        for (workload, compiled) in members {
            let Some(target) = target_port(port, workload) else { continue };
            if speaks_mtls(compiled, port.protocol, target) {
                // Also of workloads that are not bound yet: their certificates must be good at once.
                spiffe_ids.insert(compiled.spiffe_id.clone());
            }
            let Some(binding) = &compiled.binding else { continue };
            // A workload of two families is one backend; one that has only the other is better than none.
            let of = |family: Option<IpFamily>| {
                let fits = move |ip: &&IpAddr| family.is_none_or(|family| IpFamily::of(**ip) == family);
                binding.addresses.iter().filter(fits).copied().collect::<Vec<IpAddr>>()
            };
            let of_family = of(wanted.family);
            let first = if of_family.is_empty() { binding.addresses.clone() } else { of_family };
            let mut place = self.place_of(compiled);
            place.hostname =
                Some(&workload.meta.name.name).filter(|name| wanted.headless && is_dns_label(name)).cloned();
            let ends = workload.is_draining();
            let ready = binding.ready && !ends;
            place.draining = binding.ready && ends;
            for ip in &first {
                let address = SocketAddr::new(*ip, target);
                if ends {
                    draining.insert(address);
                }
                let made = || endpoint(address, ready, Some(compiled), place.clone());
                found.entry(address).or_insert_with(made);
            }
            let others = wanted.second.map(|family| of(Some(family))).unwrap_or_default();
            for ip in others.iter().filter(|ip| !first.contains(ip)) {
                let address = SocketAddr::new(*ip, target);
                if ends {
                    draining.insert(address);
                }
                let made = || endpoint(address, ready, Some(compiled), place.clone());
                second.entry(address).or_insert_with(made);
            }
        }
        let mut decided: BTreeSet<SocketAddr> = BTreeSet::new();
        for slice in slices {
            let same = |p: &&crate::resource::SlicePort| p.name == port.name && p.protocol == port.protocol;
            let Some(target) = slice.ports.iter().find(same).map(|p| p.port) else { continue };
            for listed in &slice.endpoints {
                for ip in &listed.addresses {
                    let workload = self.lookup.at(*ip);
                    if let Some(workload) = workload
                        && speaks_mtls(workload, port.protocol, target)
                    {
                        spiffe_ids.insert(workload.spiffe_id.clone());
                    }
                    let address = SocketAddr::new(*ip, target);
                    if !decided.insert(address) {
                        continue;
                    }
                    let of_second = wanted.second == Some(IpFamily::of(*ip)) && !found.contains_key(&address);
                    let map = if of_second { &mut second } else { &mut found };
                    let mut place = self.slice_place(listed, workload);
                    let mut ready = listed.ready;
                    // Of one that the selector finds the slice says how it is; that it ends, either may say.
                    if let Some(member) = map.get(&address) {
                        let ends = draining.contains(&address);
                        place.draining |= ready && ends;
                        ready &= !ends;
                        place.hostname = place.hostname.or_else(|| member.place.hostname.clone());
                    }
                    let made = MeshEndpoint {
                        priority: slice.priority.into(),
                        ..endpoint(address, ready, workload, place)
                    };
                    map.insert(address, made);
                }
            }
        }
        let endpoints: Vec<MeshEndpoint> = found.into_values().collect();
        Places { endpoints, second_family: second.into_values().collect(), spiffe_ids }
    }

    /// Endpoints of a service without ports, for their names alone.
    fn named_endpoints(
        &self,
        wanted: Wanted,
        members: &[(&Workload, &MeshWorkload)],
        slices: &[&EndpointSlice],
    ) -> Vec<MeshEndpoint> {
        let mut found: BTreeMap<IpAddr, MeshEndpoint> = BTreeMap::new();
        let endpoint =
            |ip: IpAddr, ready: bool, workload: Option<&MeshWorkload>, place: Place| MeshEndpoint {
                address: SocketAddr::new(ip, 0),
                weight: 1,
                priority: 0,
                cluster: self.input.cluster.name.clone(),
                ready: ready || wanted.publish,
                workload: workload.map(|w| w.name.clone()),
                mtls: false,
                place,
            };
        for (workload, compiled) in members {
            let Some(binding) = &compiled.binding else { continue };
            let hostname = Some(&workload.meta.name.name).filter(|name| is_dns_label(name)).cloned();
            let place = Place { hostname, ..self.place_of(compiled) };
            for ip in &binding.addresses {
                let made = || endpoint(*ip, binding.ready, Some(compiled), place.clone());
                found.entry(*ip).or_insert_with(made);
            }
        }
        for listed in slices.iter().flat_map(|slice| &slice.endpoints) {
            for ip in &listed.addresses {
                let workload = self.lookup.at(*ip);
                let place = self.slice_place(listed, workload);
                found.entry(*ip).or_insert_with(|| endpoint(*ip, listed.ready, workload, place));
            }
        }
        found.into_values().collect()
    }

    fn place_of(&self, workload: &MeshWorkload) -> Place {
        let node = workload.binding.as_ref().map(|binding| &binding.node).filter(|node| !node.is_empty());
        let record = node.and_then(|node| self.input.nodes.get(node));
        Place {
            node: node.cloned(),
            zone: record.map(|node| node.facts.zone.clone()).filter(|zone| !zone.is_empty()),
            ..Place::default()
        }
    }

    /// What a slice says of an endpoint goes before what is known of the workload.
    fn slice_place(&self, listed: &SliceEndpoint, workload: Option<&MeshWorkload>) -> Place {
        let known = workload.map(|workload| self.place_of(workload)).unwrap_or_default();
        Place {
            draining: !listed.ready && listed.terminating && listed.serving.unwrap_or(false),
            node: listed.node.clone().or(known.node),
            zone: listed.zone.clone().or(known.zone),
            hint_zones: listed.hint_zones.clone(),
            hint_nodes: listed.hint_nodes.clone(),
            hostname: listed.hostname.clone(),
            by_gateway: false,
            elsewhere: false,
        }
    }

    /// A remote endpoint is the peer's gateway; the SNI tells it which service is meant. Or, where nobody speaks mesh TLS
    /// there, it is a node of the peer's, at a node port of the service.
    /// Peers come after every endpoint that is here.
    fn remote_endpoints(
        &self,
        offers: &[Offer<'a>],
        (port, protocol): (u16, Protocol),
        priority: u32,
        family: Option<IpFamily>,
    ) -> Places {
        let mut places = Places::default();
        for (peer, service) in offers {
            let offers_port = service.ports.iter().any(|p| p.port == port && p.protocol == protocol);
            if !offers_port {
                continue;
            }
            let made = |address: SocketAddr, mtls: bool| MeshEndpoint {
                address,
                weight: 1,
                priority,
                cluster: peer.cluster.clone(),
                ready: service.ready_endpoints > 0,
                workload: None,
                mtls,
                place: Place { by_gateway: mtls, elsewhere: true, ..Place::default() },
            };
            let mut by_packets = false;
            for at in service.entries_of(port, protocol) {
                by_packets = true;
                let is_first = IpFamily::of(at.ip()) == family.unwrap_or(IpFamily::V4);
                let list = if is_first { &mut places.endpoints } else { &mut places.second_family };
                list.push(made(at, false));
            }
            if by_packets || protocol != Protocol::Tcp {
                continue;
            }
            // A peer vouches for its own trust domain only: else it could name one of ours.
            let own = service.spiffe_ids.iter().filter(|id| *id.trust_domain() == peer.trust_domain);
            places.spiffe_ids.extend(own.cloned());
            // Names would need DNS, which endpoints have not: those gateways are left out.
            let gateways: BTreeSet<SocketAddr> =
                peer.gateways.iter().filter_map(|g| g.parse().ok()).collect();
            places.endpoints.extend(gateways.into_iter().map(|address| made(address, true)));
        }
        places
    }
}

/// What a service asks of its endpoints.
#[derive(Clone, Copy)]
struct Wanted {
    /// Of its first virtual IP.
    family: Option<IpFamily>,
    second: Option<IpFamily>,
    /// Also those that are not ready, as if they were.
    publish: bool,
    headless: bool,
}

/// Where a service port is served, and by whom.
#[derive(Default)]
struct Places {
    endpoints: Vec<MeshEndpoint>,
    second_family: Vec<MeshEndpoint>,
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
