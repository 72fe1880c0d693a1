//! Services as the kernel balances them.

use std::net::IpAddr;

use mesh_model::{
    compile::{MeshEndpoint, MeshService, MeshServicePort},
    resource::IpFamily,
};
use xds_proto::isthmus::agent::v1::{self as wire, frontend::Kind};

use super::agent::protocol;

/// A service as the kernel balances it: by packets, so only to endpoints of this cluster.
pub fn service(service: &MeshService) -> wire::Service {
    let delivery = &service.delivery;
    let exposure = &delivery.exposure;
    wire::Service {
        name: service.name.to_string(),
        addresses: virtual_ips(service).map(|ip| ip.to_string()).collect(),
        ports: service.ports.iter().map(service_port).collect(),
        frontends: service.ports.iter().flat_map(|port| frontends(service, port)).collect(),
        affinity_seconds: exposure.affinity_seconds.unwrap_or(0),
        internal_local: exposure.internal_local,
        external_local: exposure.external_local,
        source_ranges: exposure.source_ranges.iter().map(ToString::to_string).collect(),
        prefer_same_zone: exposure.same_zone_first,
        prefer_same_node: exposure.same_node_first,
        forwarding: if exposure.dsr { wire::Forwarding::Dsr } else { wire::Forwarding::Snat } as i32,
        headless: delivery.headless,
        redirect: exposure.redirect.clone().unwrap_or_default(),
        publish_not_ready: exposure.publish_not_ready,
        health_check_port: delivery.health_check_port.unwrap_or(0).into(),
        exported: service.exported,
        imported: delivery.imported,
        named: delivery.named.iter().map(named).collect(),
    }
}

/// Of a headless service without ports.
fn named(endpoint: &MeshEndpoint) -> wire::Backend {
    let state = match endpoint.ready {
        true => wire::State::Active,
        false if endpoint.place.draining => wire::State::Terminating,
        false => wire::State::NotReady,
    };
    backend(endpoint, state)
}

fn virtual_ips(service: &MeshService) -> impl Iterator<Item = IpAddr> {
    service.virtual_ip.into_iter().chain(service.second_ip)
}

fn service_port(port: &MeshServicePort) -> wire::ServicePort {
    let first: Vec<&MeshEndpoint> = port.packet_backends().collect();
    let at_once = |e: &MeshEndpoint| first.iter().any(|other| std::ptr::eq(*other, e));
    let further = port.reachable().filter(|e| e.weight > 0 && !at_once(e)).map(|e| {
        let state = match e.ready {
            true => wire::State::Active,
            false if e.place.draining => wire::State::Terminating,
            // For those that are connected to it, and for who asks for its name.
            false => wire::State::NotReady,
        };
        backend(e, state)
    });
    wire::ServicePort {
        port: u32::from(port.port),
        protocol: protocol(port.protocol) as i32,
        proxy_port: u32::from(port.proxy_port),
        name: port.name.clone(),
        further: further.collect(),
        backends: first.iter().map(|e| backend(e, wire::State::Active)).collect(),
    }
}

fn backend(endpoint: &MeshEndpoint, state: wire::State) -> wire::Backend {
    let place = &endpoint.place;
    wire::Backend {
        address: endpoint.address.ip().to_string(),
        port: u32::from(endpoint.address.port()),
        weight: endpoint.weight,
        priority: endpoint.priority,
        zone: place.zone.clone().unwrap_or_default(),
        node: place.node.clone().unwrap_or_default(),
        state: state as i32,
        cluster: if place.elsewhere { endpoint.cluster.clone() } else { String::new() },
        hint_zones: place.hint_zones.clone(),
        hint_nodes: place.hint_nodes.clone(),
        hostname: place.hostname.clone().unwrap_or_default(),
    }
}

/// Every way in to one port.
fn frontends(service: &MeshService, port: &MeshServicePort) -> Vec<wire::Frontend> {
    let delivery = &service.delivery;
    let one = |kind: Kind, address: String, number: u16| wire::Frontend {
        kind: kind as i32,
        address,
        port: number.into(),
        service_port: port.port.into(),
        protocol: protocol(port.protocol) as i32,
    };
    // As kube-proxy does: what is of a family that the service has not leads nowhere.
    let families: Vec<IpFamily> = virtual_ips(service).map(IpFamily::of).collect();
    let spoken = |ip: &IpAddr| families.is_empty() || families.contains(&IpFamily::of(*ip));
    let external = delivery.exposure.external_ips.iter().copied().filter(spoken);
    let balanced = delivery.exposure.load_balancer_ips().filter(spoken);
    let node_ports =
        delivery.node_ports.iter().filter(|held| (held.port, held.protocol) == (port.port, port.protocol));
    virtual_ips(service)
        .map(|ip| one(Kind::ClusterIp, ip.to_string(), port.port))
        .chain(node_ports.map(|held| one(Kind::NodePort, String::new(), held.node_port)))
        .chain(external.map(|ip| one(Kind::ExternalIp, ip.to_string(), port.port)))
        .chain(balanced.map(|ip| one(Kind::LoadBalancer, ip.to_string(), port.port)))
        .collect()
}

#[cfg(test)]
mod tests {
    use mesh_model::{
        compile::{Delivery, Place},
        records::NodePort,
        resource::{AppProtocol, Exposure, NamespacedName, Protocol, ServiceType},
    };

    use super::*;

    fn endpoint(address: &str, ready: bool, priority: u32, place: Place) -> MeshEndpoint {
        MeshEndpoint {
            address: address.parse().unwrap(),
            weight: 1,
            priority,
            cluster: "west".to_owned(),
            ready,
            workload: None,
            mtls: false,
            place,
        }
    }

    fn plain(address: &str) -> MeshEndpoint {
        endpoint(address, true, 0, Place::default())
    }

    fn mesh_service(endpoints: Vec<MeshEndpoint>) -> MeshService {
        MeshService {
            name: NamespacedName::new("shop", "pay"),
            virtual_ip: Some("10.101.0.1".parse().unwrap()),
            second_ip: None,
            ports: vec![MeshServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: Protocol::Tcp,
                app_protocol: AppProtocol::Http,
                proxy_port: 16_384,
                sni: String::new(),
                endpoints,
                second_family: Vec::new(),
                spiffe_ids: Vec::new(),
                overflow: 0,
                routes: Vec::new(),
            }],
            exported: false,
            visibility: Default::default(),
            delivery: Delivery::default(),
        }
    }

    #[test]
    fn a_service_that_says_nothing_more_is_told_as_before_with_its_way_in() {
        let told = service(&mesh_service(vec![plain("10.1.1.3:8080")]));
        let backend =
            wire::Backend { address: "10.1.1.3".to_owned(), port: 8080, weight: 1, ..Default::default() };
        let port = wire::ServicePort {
            port: 80,
            protocol: wire::Protocol::Tcp as i32,
            proxy_port: 16_384,
            backends: vec![backend],
            further: Vec::new(),
            name: "http".to_owned(),
        };
        let frontend = wire::Frontend {
            kind: Kind::ClusterIp as i32,
            address: "10.101.0.1".to_owned(),
            port: 80,
            service_port: 80,
            protocol: wire::Protocol::Tcp as i32,
        };
        let expected = wire::Service {
            name: "shop/pay".to_owned(),
            addresses: vec!["10.101.0.1".to_owned()],
            ports: vec![port],
            frontends: vec![frontend],
            ..Default::default()
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn every_way_in_is_told_of_the_families_that_the_service_has() {
        let mut mesh = mesh_service(Vec::new());
        mesh.delivery = Delivery {
            exposure: Exposure {
                kind: ServiceType::LoadBalancer,
                external_ips: vec!["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
                load_balancer_ip: Some("203.0.113.2".parse().unwrap()),
                ingress_ips: vec!["203.0.113.2".parse().unwrap(), "203.0.113.3".parse().unwrap()],
                source_ranges: vec!["198.51.100.0/24".parse().unwrap()],
                affinity_seconds: Some(60),
                internal_local: true,
                external_local: true,
                same_zone_first: true,
                same_node_first: true,
                dsr: true,
                ..Exposure::default()
            },
            node_ports: vec![NodePort { port: 80, protocol: Protocol::Tcp, node_port: 30_080 }],
            health_check_port: Some(31_000),
            ..Delivery::default()
        };
        let told = service(&mesh);
        let ways: Vec<(Kind, &str, u32)> =
            told.frontends.iter().map(|f| (f.kind(), f.address.as_str(), f.port)).collect();
        assert_eq!(
            ways,
            [
                (Kind::ClusterIp, "10.101.0.1", 80),
                (Kind::NodePort, "", 30_080),
                (Kind::ExternalIp, "203.0.113.1", 80),
                (Kind::LoadBalancer, "203.0.113.2", 80),
                (Kind::LoadBalancer, "203.0.113.3", 80),
            ]
        );
        assert!(told.internal_local && told.external_local && told.prefer_same_zone);
        assert!(told.prefer_same_node);
        assert_eq!((told.affinity_seconds, told.health_check_port), (60, 31_000));
        assert_eq!((told.forwarding(), told.source_ranges.len()), (wire::Forwarding::Dsr, 1));
        mesh.second_ip = Some("fd00:2::1".parse().unwrap());
        let both = service(&mesh);
        assert!(both.frontends.iter().any(|f| f.address == "2001:db8::1"));
        assert_eq!(both.addresses, ["10.101.0.1", "fd00:2::1"]);
    }

    #[test]
    fn what_is_to_have_no_new_connections_is_told_apart_from_what_is_and_not_as_gone() {
        let place = |draining, zone: &str| Place {
            draining,
            zone: Some(zone.to_owned()),
            node: Some("n1".to_owned()),
            ..Place::default()
        };
        let gateway = Place { by_gateway: true, ..Place::default() };
        let mut mesh = mesh_service(vec![
            endpoint("10.1.1.3:8080", true, 0, place(false, "a")),
            endpoint("10.1.1.4:8080", false, 0, place(true, "a")),
            endpoint("10.1.1.5:8080", false, 0, place(false, "a")),
            endpoint("10.1.1.6:8080", true, 1, place(false, "b")),
            endpoint("198.51.100.7:15443", true, 2, gateway),
        ]);
        let told = service(&mesh);
        let port = &told.ports[0];
        let of = |list: &[wire::Backend]| {
            list.iter().map(|b| (b.address.clone(), b.state(), b.priority)).collect::<Vec<_>>()
        };
        assert_eq!(of(&port.backends), [("10.1.1.3".to_owned(), wire::State::Active, 0)]);
        assert_eq!(
            of(&port.further),
            [
                ("10.1.1.4".to_owned(), wire::State::Terminating, 0),
                ("10.1.1.5".to_owned(), wire::State::NotReady, 0),
                ("10.1.1.6".to_owned(), wire::State::Active, 1),
            ]
        );
        assert_eq!((port.backends[0].zone.as_str(), port.backends[0].node.as_str()), ("a", "n1"));
        // A peer's is told as one.
        let elsewhere = Place { elsewhere: true, ..Place::default() };
        mesh.ports[0].endpoints.push(endpoint("198.51.100.8:30080", true, 2, elsewhere));
        let clusters: Vec<_> = service(&mesh).ports[0].further.iter().map(|b| b.cluster.clone()).collect();
        assert_eq!(clusters, ["", "", "", "west"]);
    }
}
