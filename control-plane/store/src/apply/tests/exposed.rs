//! What services ask for besides a virtual IP, and what nodes tell of themselves.

use mesh_model::{
    records::{ClusterInfo, NodeFacts, NodePort, WorkloadBinding},
    resource::{FamilyPolicy, IpFamily, Kind, NODE_PORTS, Object, Protocol, Service, ServiceType},
};

use super::{key, wl};
use crate::{
    Command, Refusal,
    fixtures::{Store, cluster, ip, name, put, service},
};

fn at_nodes(text: &str, ports: &[(u16, Option<u16>)]) -> Service {
    let mut service = service(text, &ports.iter().map(|(port, _)| *port).collect::<Vec<_>>());
    service.exposure.kind = ServiceType::NodePort;
    for (port, (_, requested)) in service.ports.iter_mut().zip(ports) {
        port.node_port = *requested;
    }
    service
}

fn node_ports(store: &Store, service: &str) -> Vec<u16> {
    let held = store.state.allocations.get(&name(service));
    held.into_iter().flat_map(|held| &held.node_ports).map(|held| held.node_port).collect()
}

fn apply(store: &mut Store, service: Service) {
    store.run(put([Object::Service(service)])).expect("applied");
}

#[test]
fn a_node_port_is_kept_until_the_service_has_none_any_more() {
    let mut store = Store::initialised();
    apply(&mut store, at_nodes("a/b", &[(80, None), (443, None)]));
    let first = NODE_PORTS.0;
    assert_eq!(node_ports(&store, "a/b"), [first, first + 1]);
    let again = store.run(put([Object::Service(at_nodes("a/b", &[(80, None), (443, None)]))]));
    assert_eq!(again.expect("the same").revision, store.state.revision);
    apply(&mut store, at_nodes("a/b", &[(443, None), (8080, None)]));
    assert_eq!(node_ports(&store, "a/b"), [first + 1, first + 2], "443 has what it had");
    apply(&mut store, service("a/b", &[443]));
    assert_eq!(node_ports(&store, "a/b"), [0; 0]);
    apply(&mut store, at_nodes("a/other", &[(80, Some(first + 1))]));
    store.run(Command::Delete { keys: vec![key(Kind::Service, "a/other")] }).expect("deleted");
    apply(&mut store, at_nodes("a/third", &[(80, Some(first + 1))]));
}

#[test]
fn a_node_port_that_another_service_has_is_refused_by_its_name() {
    let mut store = Store::initialised();
    apply(&mut store, at_nodes("a/b", &[(80, Some(30_080))]));
    let refusal = store.refused(put([Object::Service(at_nodes("a/c", &[(80, Some(30_080))]))]));
    assert_eq!(
        refusal.to_string(),
        "service/a/c: spec.ports[].nodePort 30080/TCP is already that of service/a/b"
    );
    let mut datagrams = at_nodes("a/c", &[(53, Some(30_080))]);
    datagrams.ports[0].protocol = Protocol::Udp;
    apply(&mut store, datagrams);
    // What is asked for in the same request is nobody else's either, whichever comes first.
    let first = NODE_PORTS.0;
    store
        .run(put([
            Object::Service(at_nodes("a/any", &[(80, None)])),
            Object::Service(at_nodes("a/that", &[(80, Some(first))])),
        ]))
        .expect("both");
    assert_eq!((node_ports(&store, "a/any"), node_ports(&store, "a/that")), (vec![first + 1], vec![first]));
}

#[test]
fn the_ports_of_one_service_may_change_places() {
    let mut store = Store::initialised();
    apply(&mut store, at_nodes("a/b", &[(80, Some(30_001)), (81, Some(30_002))]));
    apply(&mut store, at_nodes("a/b", &[(80, Some(30_002)), (81, None)]));
    let held = &store.state.allocations[&name("a/b")].node_ports;
    let tcp = |port, node_port| NodePort { port, protocol: Protocol::Tcp, node_port };
    assert_eq!(held[0], tcp(80, 30_002));
    assert_ne!(held[1].node_port, 30_002, "it is 80's now");
}

#[test]
fn a_load_balancer_with_local_traffic_has_a_port_for_health_checks() {
    let mut store = Store::initialised();
    let mut balanced = at_nodes("a/b", &[(80, None)]);
    balanced.exposure.kind = ServiceType::LoadBalancer;
    balanced.exposure.external_local = true;
    balanced.exposure.health_check_node_port = Some(31_000);
    apply(&mut store, balanced.clone());
    assert_eq!(store.state.allocations[&name("a/b")].health_check_port, Some(31_000));
    let refusal = store.refused(put([Object::Service(at_nodes("a/c", &[(80, Some(31_000))]))]));
    assert!(matches!(refusal, Refusal::NodePortTaken { .. }), "{refusal}");
    balanced.ports[0].node_port = Some(31_000);
    assert!(store.refused(put([Object::Service(balanced.clone())])).to_string().contains("one of its ports"));
    balanced.ports[0].node_port = None;
    balanced.exposure.without_node_ports = true;
    apply(&mut store, balanced);
    assert_eq!(node_ports(&store, "a/b"), [0; 0]);
}

#[test]
fn node_ports_are_used_up_one_day_and_it_is_said() {
    let mut store = Store::initialised();
    let all: Vec<u16> = (1..=64).collect();
    let (first, last) = NODE_PORTS;
    let mut left = usize::from(last - first) + 1;
    for n in 0.. {
        let ports: Vec<_> = all.iter().map(|port| (*port, None)).collect();
        if left < ports.len() {
            let refusal = store.refused(put([Object::Service(at_nodes("a/more", &ports))]));
            assert_eq!(refusal.to_string(), "node ports are used up: none is left of 30000-32767");
            return;
        }
        apply(&mut store, at_nodes(&format!("a/s{n}"), &ports));
        left -= ports.len();
    }
}

#[test]
fn a_service_has_the_families_that_it_asks_for_and_the_cluster_has() {
    let both = |text: &str, policy, listed: &[IpFamily]| {
        let mut service = service(text, &[80]);
        service.exposure.families.policy = policy;
        service.exposure.families.listed = listed.to_vec();
        service
    };
    let addresses = |store: &Store, service: &str| {
        let held = &store.state.allocations[&name(service)];
        held.virtual_ip.into_iter().chain(held.second_ip).map(|ip| ip.to_string()).collect::<Vec<_>>()
    };
    let mut single = Store::initialised();
    apply(&mut single, both("a/prefer", FamilyPolicy::PreferDualStack, &[]));
    assert_eq!(addresses(&single, "a/prefer"), ["10.101.0.1"]);
    let refusal = single.refused(put([Object::Service(both("a/b", FamilyPolicy::RequireDualStack, &[]))]));
    assert!(refusal.to_string().contains("service/a/b: spec.ipFamilyPolicy"), "{refusal}");
    let refusal =
        single.refused(put([Object::Service(both("a/b", FamilyPolicy::SingleStack, &[IpFamily::V6]))]));
    assert!(refusal.to_string().contains("service/a/b: spec.ipFamilies"), "{refusal}");

    let mut store = Store::empty();
    let info = ClusterInfo { service_cidr6: Some("fd00:2::/112".parse().expect("a range")), ..cluster() };
    store.run(Command::Init(info)).expect("initialised");
    apply(&mut store, service("a/plain", &[80]));
    assert_eq!(addresses(&store, "a/plain"), ["10.101.0.1"]);
    apply(&mut store, both("a/prefer", FamilyPolicy::PreferDualStack, &[]));
    assert_eq!(addresses(&store, "a/prefer"), ["10.101.0.2", "fd00:2::1"]);
    apply(&mut store, both("a/six", FamilyPolicy::SingleStack, &[IpFamily::V6]));
    assert_eq!(addresses(&store, "a/six"), ["fd00:2::2"]);
    apply(&mut store, both("a/turned", FamilyPolicy::RequireDualStack, &[IpFamily::V6, IpFamily::V4]));
    assert_eq!(addresses(&store, "a/turned"), ["fd00:2::3", "10.101.0.3"]);
    // The second comes and goes; the first stays.
    apply(&mut store, both("a/plain", FamilyPolicy::PreferDualStack, &[]));
    assert_eq!(addresses(&store, "a/plain"), ["10.101.0.1", "fd00:2::4"]);
    apply(&mut store, service("a/plain", &[80]));
    assert_eq!(addresses(&store, "a/plain"), ["10.101.0.1"]);
    let turned = both("a/plain", FamilyPolicy::SingleStack, &[IpFamily::V6]);
    assert!(store.refused(put([Object::Service(turned)])).to_string().contains("spec.ipFamilies[0]"));
    let mut asking = both("a/asking", FamilyPolicy::RequireDualStack, &[]);
    (asking.cluster_ip, asking.exposure.second_ip) = (Some(ip("10.101.0.9")), Some(ip("fd00:2::1")));
    let refusal = store.refused(put([Object::Service(asking.clone())]));
    assert!(
        matches!(&refusal, Refusal::AddressTaken { holder, .. } if holder == "service/a/prefer"),
        "{refusal}"
    );
    asking.exposure.second_ip = Some(ip("fd00:2::99"));
    apply(&mut store, asking);
    assert_eq!(addresses(&store, "a/asking"), ["10.101.0.9", "fd00:2::99"]);
}

#[test]
fn a_range_of_services_that_can_not_be_the_second_is_refused() {
    for range in ["fd00:2::1/112", "fd00:1::/120", "fd00:2::/127"] {
        let info = ClusterInfo {
            pod_cidr6: Some("fd00:1::/112".parse().expect("a range")),
            service_cidr6: Some(range.parse().expect("a range")),
            ..cluster()
        };
        let refusal = Store::empty().refused(Command::Init(info));
        assert!(refusal.to_string().starts_with("serviceCIDR6"), "{refusal}");
    }
}

#[test]
fn what_comes_from_outside_has_no_address_of_the_cluster() {
    let mut store = Store::initialised();
    for inside in ["10.1.7.7", "10.101.0.200"] {
        let mut service = service("a/b", &[80]);
        service.exposure.external_ips = vec![ip("203.0.113.1"), ip(inside)];
        let refusal = store.refused(put([Object::Service(service)]));
        assert!(refusal.to_string().starts_with("service/a/b: spec.externalIPs"), "{refusal}");
    }
    let mut service = service("a/b", &[80]);
    service.exposure.external_ips = vec![ip("203.0.113.1")];
    apply(&mut store, service);
}

#[test]
fn a_node_tells_of_itself_and_of_nobody_else() {
    let mut store = Store::initialised();
    for (node, address) in [("n1", "10.0.0.11"), ("n2", "10.0.0.12")] {
        let register = Command::RegisterNode { name: node.to_owned(), address: ip(address), address6: None };
        store.run(register).expect("registered");
    }
    let report = |node: &str, facts: NodeFacts| Command::ReportNode { name: node.to_owned(), facts };
    let facts = NodeFacts {
        labels: [("rack".to_owned(), "7".to_owned())].into(),
        zone: "a".to_owned(),
        region: "north".to_owned(),
        addresses: vec![ip("192.0.2.11"), ip("2001:db8::11")],
        ..NodeFacts::default()
    };
    let told = store.run(report("n1", facts.clone())).expect("told");
    assert_eq!(store.state.nodes["n1"].facts, facts);
    assert_eq!(store.run(report("n1", facts.clone())).expect("the same").revision, told.revision);
    assert!(matches!(store.refused(report("n9", facts.clone())), Refusal::Unknown { .. }));
    assert!(matches!(store.refused(report("n2", facts.clone())), Refusal::AddressHeld { .. }));
    for bad in ["127.0.0.1", "10.1.0.9", "10.101.0.9", "0.0.0.0"] {
        let facts = NodeFacts { addresses: vec![ip(bad)], ..NodeFacts::default() };
        assert!(store.refused(report("n2", facts)).to_string().starts_with("node.addresses"), "{bad}");
    }
    let labels = [("-".to_owned(), String::new())].into();
    let facts6 = NodeFacts { labels, ..NodeFacts::default() };
    assert!(store.refused(report("n2", facts6)).to_string().starts_with("node.labels"));
    let half = [("isthmus.io/audit".to_owned(), "half".to_owned())].into();
    let half = NodeFacts { labels: half, ..NodeFacts::default() };
    assert!(store.refused(report("n2", half)).to_string().starts_with("node.labels[isthmus.io/audit]"));
    let unzoned = NodeFacts { zone: "a b".to_owned(), ..NodeFacts::default() };
    assert!(store.refused(report("n2", unzoned)).to_string().starts_with("node.zone"));
    let many =
        NodeFacts { addresses: (0..40).map(|n| ip(&format!("192.0.3.{n}"))).collect(), ..facts.clone() };
    assert!(matches!(store.refused(report("n2", many)), Refusal::Limit { .. }));

    // An address that a node tells of gives it no right to a workload there.
    store.run(put([wl("a/one")])).expect("declared");
    let binding = WorkloadBinding { node: "n1".to_owned(), addresses: vec![ip("192.0.2.11")], ready: true };
    let bind = Command::BindWorkload { workload: name("a/one"), binding };
    assert!(matches!(store.refused(bind), Refusal::ForeignAddress { .. }));
    // Whoever registers again has told nothing that was untrue.
    let register = Command::RegisterNode { name: "n1".to_owned(), address: ip("10.0.0.11"), address6: None };
    store.run(register).expect("registered");
    assert_eq!(store.state.nodes["n1"].facts, facts);
}
