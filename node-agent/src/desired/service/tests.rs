//! What services become at each of their addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

use ebpf_shared::packet::protocol::{TCP, UDP};
use mesh_model::identity::SpiffeId;

use super::*;
use crate::subscribe::{BackendState, Frontend, HostPort, Local, NodeRoute};

const OWN: PodAddresses = PodAddresses {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
};

const SLOT: u16 = 9;

fn backend(address: &str) -> ServiceBackend {
    ServiceBackend { address: address.parse().unwrap(), port: 8080, weight: 1, ..ServiceBackend::default() }
}

/// With two backends here and two elsewhere, of both families.
fn service() -> Service {
    let backends = ["10.1.1.2", "10.1.2.2", "fd00:1:0:1::2", "fd00:1:0:2::2"].map(backend).to_vec();
    Service {
        addresses: vec!["10.101.0.1".parse().unwrap(), "fd00:2::1".parse().unwrap()],
        ports: vec![ServicePort {
            port: 80,
            protocol: TCP,
            proxy_port: 0,
            backends,
            ..ServicePort::default()
        }],
        ..Service::default()
    }
}

fn frontend(kind: FrontendKind, address: Option<&str>, port: u16) -> Frontend {
    let address = address.map(|text| text.parse().unwrap());
    Frontend { kind, address, port, service_port: 80, protocol: TCP }
}

fn pods() -> BTreeMap<NamespacedName, Pod> {
    let addresses =
        PodAddresses { v4: Ipv4Addr::new(10, 1, 1, 2), v6: Some(Ipv6Addr::new(0xfd00, 1, 0, 1, 0, 0, 0, 2)) };
    BTreeMap::from([(NamespacedName::new("shop", "pay-0"), Pod { addresses, ifindex: 7, netns_cookie: 7 })])
}

fn resources(service: Service) -> Resources {
    let mut resources = Resources::default();
    resources.services.insert(NamespacedName::new("shop", "pay"), service.into());
    resources
}

fn table(service: Service) -> Table {
    services(&resources(service), OWN, &pods(), &mut |_| SLOT)
}

fn at(table: &Table, address: &str, port: u16, scope: Scope) -> Option<ServiceEntry> {
    let address = address.parse().unwrap();
    table.get(&ServiceFrontend { address, port, protocol: TCP, scope }).cloned()
}

fn chosen(entry: &ServiceEntry) -> Vec<String> {
    let chosen = entry.backends.iter().filter(|(_, served)| served.chosen);
    chosen.map(|(at, _)| at.ip().to_string()).collect()
}

#[test]
fn a_virtual_address_leads_to_backends_of_its_own_family_and_only_from_within() {
    let table = table(service());
    assert_eq!(table.len(), 2);
    assert_eq!(chosen(&at(&table, "10.101.0.1", 80, Scope::Inside).unwrap()), ["10.1.1.2", "10.1.2.2"]);
    let six = at(&table, "fd00:2::1", 80, Scope::Inside).unwrap();
    assert_eq!(chosen(&six), ["fd00:1:0:1::2", "fd00:1:0:2::2"]);
    let here: Vec<_> = six.backends.values().map(|served| served.here).collect();
    assert_eq!(here, [true, false]);
}

#[test]
fn a_node_port_is_at_every_address_of_the_node() {
    let frontends = vec![frontend(FrontendKind::NodePort, None, 30080)];
    let table = table(Service { frontends, external_local: true, internal_local: true, ..service() });
    for (own, all, local) in [
        ("192.0.2.1", ["10.1.1.2", "10.1.2.2"], "10.1.1.2"),
        ("2001:db8:1::1", ["fd00:1:0:1::2", "fd00:1:0:2::2"], "fd00:1:0:1::2"),
    ] {
        assert_eq!(chosen(&at(&table, own, 30080, Scope::Inside).unwrap()), all, "whoever asks from within");
        let outside = at(&table, own, 30080, Scope::Outside).unwrap();
        assert_eq!(chosen(&outside), [local]);
    }
    assert_eq!(chosen(&at(&table, "10.101.0.1", 80, Scope::Inside).unwrap()), ["10.1.1.2"]);
}

#[test]
fn source_ranges_are_for_load_balancers_and_for_who_comes_from_outside() {
    let service = Service {
        frontends: vec![
            frontend(FrontendKind::LoadBalancer, Some("203.0.113.1"), 80),
            frontend(FrontendKind::ExternalIp, Some("203.0.113.2"), 80),
        ],
        source_ranges: vec!["198.51.100.0/24".parse().unwrap()],
        direct: true,
        ..service()
    };
    let table = table(service);
    let balancer = at(&table, "203.0.113.1", 80, Scope::Outside).unwrap();
    assert_eq!(balancer.sources.len(), 1);
    assert!(balancer.direct);
    let inside = at(&table, "203.0.113.1", 80, Scope::Inside).unwrap();
    assert!(inside.sources.is_empty() && !inside.direct);
    assert!(at(&table, "203.0.113.2", 80, Scope::Outside).unwrap().sources.is_empty());
}

#[test]
fn what_ends_and_what_is_not_ready_keep_their_connections_and_get_no_new_ones() {
    let mut service = service();
    service.ports[0].backends[0].state = BackendState::Terminating;
    service.ports[0].backends[2].state = BackendState::NotReady;
    let table = table(service);
    let four = at(&table, "10.101.0.1", 80, Scope::Inside).unwrap();
    assert_eq!((chosen(&four), four.backends.len()), (vec!["10.1.2.2".to_owned()], 2));
    let six = at(&table, "fd00:2::1", 80, Scope::Inside).unwrap();
    assert_eq!((chosen(&six), six.backends.len()), (vec!["fd00:1:0:2::2".to_owned()], 2));
}

#[test]
fn a_host_port_leads_to_its_pod_and_the_first_claim_on_an_address_counts() {
    let mut resources = resources(service());
    let told = |address: Option<&str>, host_port, protocol| HostPort {
        address: address.map(|text| text.parse().unwrap()),
        host_port,
        port: 9000,
        protocol,
    };
    let local = Local {
        identity: 300,
        spiffe_id: SpiffeId::parse("spiffe://west.example/ns/shop/sa/x").unwrap(),
        class: 1,
        captured: Default::default(),
        sidecar: false,
        audit: false,
        host_ports: vec![told(None, 9090, TCP), told(Some("10.101.0.1"), 80, TCP), told(None, 53, UDP)],
        readiness: None,
    };
    resources.locals.insert(NamespacedName::new("shop", "pay-0"), local);
    let table = services(&resources, OWN, &pods(), &mut |_| SLOT);
    for own in ["192.0.2.1", "2001:db8:1::1"] {
        for scope in [Scope::Inside, Scope::Outside] {
            let entry = at(&table, own, 9090, scope).unwrap();
            assert!(entry.backends.keys().all(|at| at.port() == 9000) && entry.backends.len() == 1);
        }
    }
    assert_eq!(chosen(&at(&table, "10.101.0.1", 80, Scope::Inside).unwrap()).len(), 2, "not taken over");
    assert_eq!(table.keys().filter(|key| key.protocol == UDP).count(), 4);
    // What the runtime asks for is the same, for pods that are here.
    resources.locals.clear();
    resources.host_ports.insert(NamespacedName::new("shop", "pay-0"), vec![told(None, 7070, TCP)]);
    resources.host_ports.insert(NamespacedName::new("shop", "gone"), vec![told(None, 7071, TCP)]);
    let table = services(&resources, OWN, &pods(), &mut |_| SLOT);
    assert_eq!(table.keys().filter(|key| key.port == 7070).count(), 4);
    assert!(!table.keys().any(|key| key.port == 7071));
}

#[test]
fn the_own_zone_is_the_one_that_the_control_plane_has_of_this_node() {
    let mut service = Service { prefer_same_zone: true, ..service() };
    service.ports[0].backends[1].zone = "b".into();
    let mut resources = resources(service);
    let node = NodeRoute {
        tunnel: None,
        address: OWN.v4,
        address6: None,
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
        zone: "b".into(),
    };
    resources.nodes.insert("n1".into(), node);
    let table = services(&resources, OWN, &pods(), &mut |_| SLOT);
    assert_eq!(chosen(&at(&table, "10.101.0.1", 80, Scope::Inside).unwrap()), ["10.1.2.2"]);
    // And its name is the one that hints mean.
    let mut hinted = (**resources.services.values().next().unwrap()).clone();
    for (backend, node) in hinted.ports[0].backends.iter_mut().zip(["n1", "n2"]) {
        backend.hint_nodes.insert(node.into());
    }
    let name = resources.services.keys().next().unwrap().clone();
    resources.services.insert(name, hinted.into());
    let table = services(&resources, OWN, &pods(), &mut |_| SLOT);
    assert_eq!(chosen(&at(&table, "10.101.0.1", 80, Scope::Inside).unwrap()), ["10.1.1.2"]);
}

#[test]
fn a_service_that_is_led_to_a_proxy_is_so_at_its_virtual_addresses_only() {
    let mut led = service();
    led.redirect = "l7".into();
    led.frontends = vec![frontend(FrontendKind::NodePort, None, 30_080)];
    let table = table(led);
    for (frontend, entry) in &table {
        let is_virtual = frontend.port == 80;
        assert_eq!(entry.redirect, if is_virtual { SLOT } else { NO_SLOT }, "{frontend:?}");
        assert!(!entry.backends.is_empty(), "policy is about them");
    }
    assert!(table.values().any(|entry| entry.redirect == SLOT));
}
