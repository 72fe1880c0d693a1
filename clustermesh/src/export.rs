//! What this cluster offers to its peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use mesh_model::{
    compile::{MeshEndpoint, MeshModel, MeshService, MeshServicePort},
    limits::MAX_ENTRY_NODES,
    resource::{AppProtocol, NamespacedName, Protocol, Visibility},
};
use xds_proto::isthmus::federation::v1::{ClusterDescription, ExportedPort, ExportedService, PacketEntry};

use mesh_model::records::{ClusterInfo, NodePort};

/// What the store knows of an export and the compiled mesh does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportFacts {
    /// When the ServiceExport was created, seconds since 1970: the older export wins a conflict (KEP-1645).
    pub exported_at_unix: u64,
    /// Revision at which the service or its export last changed. Not the revision of the whole state: then
    /// every change anywhere would be sent to every peer.
    pub origin_revision: u64,
}

/// Every exported service, by its resource name `<namespace>/<service>`. A service that is only imported here
/// is not passed on: each cluster speaks for its own endpoints.
pub fn exported_services(
    model: &MeshModel,
    facts: impl Fn(&NamespacedName) -> ExportFacts,
) -> BTreeMap<String, ExportedService> {
    model
        .services
        .values()
        .filter(|service| service.exported)
        .filter_map(|service| exported_service(model, service, facts(&service.name)))
        .map(|exported| (format!("{}/{}", exported.namespace, exported.name), exported))
        .collect()
}

/// What peers may know of one service that is exported; None if they could not reach it.
pub fn exported_service(
    model: &MeshModel,
    service: &MeshService,
    facts: ExportFacts,
) -> Option<ExportedService> {
    let mut spiffe_ids = BTreeSet::new();
    let mut ready = BTreeSet::new();
    let mut ports = Vec::new();
    let mut entries = Vec::new();
    for port in &service.ports {
        let own = |id: &&mesh_model::identity::SpiffeId| id.trust_domain() == &model.cluster.trust_domain;
        let ids: Vec<_> = port.spiffe_ids.iter().filter(own).collect();
        // Peers come in through the gateway, which forwards TLS by SNI: what speaks no mesh TLS here, or has no identity
        // of ours, can't be reached from there, but at a node port, if the service has one.
        let by_gateway = port.protocol == Protocol::Tcp && !ids.is_empty();
        let by_packets = if by_gateway { Vec::new() } else { packet_entries(model, service, port) };
        if !by_gateway && by_packets.is_empty() {
            continue;
        }
        entries.extend(by_packets);
        spiffe_ids.extend(ids.iter().filter(|_| by_gateway).map(|id| id.to_string()));
        let local = |e: &&MeshEndpoint| e.cluster == model.cluster.name && e.ready && e.mtls == by_gateway;
        ready.extend(port.endpoints.iter().filter(local).map(|e| e.address.ip()));
        ports.push(ExportedPort {
            name: port.name.clone(),
            port: u32::from(port.port),
            app_protocol: app_protocol_text(port.app_protocol).to_owned(),
            protocol: protocol_text(port.protocol).to_owned(),
        });
    }
    (!ports.is_empty()).then(|| ExportedService {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        ports,
        spiffe_ids: spiffe_ids.into_iter().collect(),
        ready_endpoints: u32::try_from(ready.len()).unwrap_or(u32::MAX),
        origin_revision: facts.origin_revision,
        exported_at_unix: facts.exported_at_unix,
        export_to: export_to(&service.visibility),
        entries,
    })
}

/// Where nodes of this cluster take in packets to a port: of some nodes, as many as peers want to know.
fn packet_entries(model: &MeshModel, service: &MeshService, port: &MeshServicePort) -> Vec<PacketEntry> {
    let of_port = |held: &&NodePort| (held.port, held.protocol) == (port.port, port.protocol);
    let Some(held) = service.delivery.node_ports.iter().find(of_port) else { return Vec::new() };
    let local_only = service.delivery.exposure.external_local;
    let serves = |node: &str| {
        let mut ready = port.endpoints.iter().filter(|e| e.ready && e.cluster == model.cluster.name);
        ready.any(|e| e.place.node.as_deref() == Some(node))
    };
    let nodes = model.nodes.values().filter(|node| !local_only || serves(&node.name));
    let entry = |ip: IpAddr| PacketEntry {
        port: u32::from(port.port),
        protocol: protocol_text(port.protocol).to_owned(),
        at: SocketAddr::new(ip, held.node_port).to_string(),
    };
    let addresses = nodes
        .take(MAX_ENTRY_NODES)
        .flat_map(|node| [Some(node.address), node.address6.map(IpAddr::V6)].into_iter().flatten());
    addresses.map(entry).collect()
}

/// As the wire spells who may know of a service.
pub(crate) fn export_to(visibility: &Visibility) -> Vec<String> {
    let namespaces: Vec<String> = visibility.only().map(str::to_owned).collect();
    if namespaces.is_empty() && !visibility.is_everywhere() { vec![NOBODY.to_owned()] } else { namespaces }
}

/// Stands for no namespace at all.
pub(crate) const NOBODY: &str = "~";

/// How this cluster describes itself to a peer: never with a key.
pub fn describe_cluster(info: &ClusterInfo, doors: Vec<String>, gateways: Vec<String>) -> ClusterDescription {
    ClusterDescription {
        cluster: info.name.clone(),
        trust_domain: info.trust_domain.to_string(),
        mesh_domain: info.mesh_domain.clone(),
        roots: info.roots.clone(),
        doors,
        gateways,
        jwt_keys: info.trust.jwt_keys.clone(),
        revoked: info.trust.revoked.iter().copied().collect(),
    }
}

/// As the wire spells a protocol.
pub(crate) fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// As the wire spells an application protocol.
pub(crate) fn app_protocol_text(protocol: AppProtocol) -> &'static str {
    match protocol {
        AppProtocol::Http => "http",
        AppProtocol::Http2 => "http2",
        AppProtocol::Grpc => "grpc",
        AppProtocol::Tcp => "tcp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::{
        identity::{SpiffeId, TrustDomain},
        records::{NodeFacts, NodeRecord},
    };

    fn td(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn endpoint(address: &str, cluster: &str, ready: bool, mtls: bool) -> MeshEndpoint {
        MeshEndpoint {
            address: address.parse().unwrap(),
            weight: 1,
            priority: 0,
            cluster: cluster.to_owned(),
            ready,
            workload: None,
            mtls,
            place: Default::default(),
        }
    }

    fn port(number: u16, ids: &[SpiffeId], endpoints: Vec<MeshEndpoint>) -> MeshServicePort {
        MeshServicePort {
            name: format!("p{number}"),
            port: number,
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
            proxy_port: 0,
            sni: String::new(),
            endpoints,
            second_family: Vec::new(),
            spiffe_ids: ids.to_vec(),
            overflow: 0,
            routes: Vec::new(),
        }
    }

    fn model(exported: bool, ports: Vec<MeshServicePort>) -> MeshModel {
        let name = NamespacedName::new("shop", "pay");
        let visibility = Visibility::Everywhere;
        let service = MeshService {
            name: name.clone(),
            virtual_ip: None,
            second_ip: None,
            ports,
            exported,
            visibility,
            delivery: Default::default(),
        };
        let mut model = MeshModel::empty(std::sync::Arc::new(ClusterInfo {
            name: "west".to_owned(),
            trust_domain: td("west.example"),
            mesh_domain: "mesh.local".to_owned(),
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            pod_cidr6: None,
            service_cidr6: None,
            service_cidr: "10.101.0.0/16".parse().unwrap(),
            roots: vec![vec![1]],
            trust: Default::default(),
        }));
        model.revision = 9;
        model.services.insert(name, std::sync::Arc::new(service));
        model
    }

    fn facts(_: &NamespacedName) -> ExportFacts {
        ExportFacts { exported_at_unix: 100, origin_revision: 7 }
    }

    #[test]
    fn a_service_is_offered_with_its_own_identities_and_ready_endpoints_only() {
        let ours = SpiffeId::workload(&td("west.example"), "shop", "pay");
        let theirs = SpiffeId::workload(&td("east.example"), "shop", "pay");
        let endpoints = vec![
            endpoint("10.1.0.5:8080", "west", true, true),
            endpoint("10.1.0.6:8080", "west", false, true),
            endpoint("10.1.0.7:8080", "west", true, false),
            endpoint("192.0.2.3:15443", "east", true, true),
        ];
        let model = model(true, vec![port(8080, &[theirs, ours.clone()], endpoints)]);
        let all = exported_services(&model, facts);
        let exported = &all["shop/pay"];
        assert_eq!(exported.spiffe_ids, [ours.to_string()]);
        assert_eq!(exported.ready_endpoints, 1);
        assert_eq!((exported.exported_at_unix, exported.origin_revision), (100, 7));
        assert_eq!(exported.ports[0].app_protocol, "http");
    }

    #[test]
    fn what_speaks_no_mesh_tls_is_offered_at_its_node_ports_and_by_those_nodes_that_serve_it() {
        let mut here = endpoint("10.1.0.5:8080", "west", true, false);
        here.place.node = Some("n2".to_owned());
        let mut model = model(true, vec![port(8080, &[], vec![here])]);
        assert!(exported_services(&model, facts).is_empty(), "it has no node port");
        for (name, address, address6) in [("n1", "192.0.2.1", None), ("n2", "192.0.2.2", Some("2001:db8::2"))]
        {
            let node = NodeRecord {
                name: name.to_owned(),
                address: address.parse().unwrap(),
                address6: address6.map(|ip| ip.parse().unwrap()),
                pod_cidr: "10.1.0.0/24".parse().unwrap(),
                registration: 1,
                facts: NodeFacts::default(),
            };
            model.nodes.insert(name.to_owned(), std::sync::Arc::new(node));
        }
        let name = NamespacedName::new("shop", "pay");
        let mut service = MeshService::clone(&model.services[&name]);
        service.delivery.node_ports =
            vec![NodePort { port: 8080, protocol: Protocol::Tcp, node_port: 30_080 }];
        let mut told = |service: &MeshService| {
            model.services.insert(name.clone(), std::sync::Arc::new(service.clone()));
            let exported = exported_services(&model, facts).remove("shop/pay").unwrap();
            assert_eq!((exported.ready_endpoints, exported.spiffe_ids.len()), (1, 0));
            exported.entries.iter().map(|entry| entry.at.clone()).collect::<Vec<_>>()
        };
        assert_eq!(told(&service), ["192.0.2.1:30080", "192.0.2.2:30080", "[2001:db8::2]:30080"]);
        service.delivery.exposure.external_local = true;
        assert_eq!(told(&service), ["192.0.2.2:30080", "[2001:db8::2]:30080"]);
    }

    #[test]
    fn what_is_not_exported_or_only_imported_stays_here() {
        let ours = SpiffeId::workload(&td("west.example"), "shop", "pay");
        let theirs = SpiffeId::workload(&td("east.example"), "shop", "pay");
        assert!(exported_services(&model(false, vec![port(80, &[ours], vec![])]), facts).is_empty());
        assert!(exported_services(&model(true, vec![port(80, &[theirs], vec![])]), facts).is_empty());
    }
}
