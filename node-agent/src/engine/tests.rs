//! What reaches the kernel, and what keeps it from there.

use super::*;
use std::net::Ipv4Addr;

use crate::{maps::MemoryMaps, subscribe::update_fixture as update};
use xds_proto::isthmus::agent::v1 as wire;

fn name() -> NamespacedName {
    NamespacedName::new("shop", "pay")
}

fn engine(failures: u32) -> Engine {
    let maps = MemoryMaps { failures, ..MemoryMaps::default() };
    Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(maps)).unwrap()
}

fn local() -> wire::LocalEndpoint {
    wire::LocalEndpoint {
        name: "shop/pay".into(),
        identity: 300,
        spiffe_id: "spiffe://west.example/ns/shop/sa/pay".into(),
        policy_class: 7,
        ..Default::default()
    }
}

#[test]
fn a_pod_has_traffic_only_once_its_endpoint_and_its_class_have_come() {
    let engine = engine(0);
    let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 5, netns_cookie: 9 };
    engine.add_pod(name(), pod).unwrap();
    assert_eq!(engine.enforced(&name()), None);
    engine.apply(&update(&[("shop/pay", local())], &[])).unwrap();
    assert!(engine.enforced(&name()).is_none() && !engine.is_current(&name()));
    engine.apply(&update(&[("7", wire::PolicyClass { id: 7, ..Default::default() })], &[])).unwrap();
    assert_eq!(engine.enforced(&name()).unwrap().identity, 300);
    assert!(engine.is_current(&name()));
    engine.remove_pod(&name()).unwrap();
    assert_eq!(engine.enforced(&name()), None);
}

#[test]
fn an_answer_is_let_through_when_the_kernel_has_it_and_not_before() {
    let engine = engine(0);
    let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 5, netns_cookie: 9 };
    engine.add_pod(name(), pod).unwrap();
    engine.apply(&update(&[("shop/pay", local())], &[])).unwrap();
    let rule = wire::PolicyRule {
        direction: wire::Direction::Egress as i32,
        action: wire::Action::QualifiedAllow as i32,
        name: Some(wire::NamePattern { pattern: "*.example.com".into(), ..Default::default() }),
        ..Default::default()
    };
    let class =
        wire::PolicyClass { id: 7, default_deny_egress: true, rules: vec![rule], ..Default::default() };
    engine.apply(&update(&[("7", class)], &[])).unwrap();
    // Until workloads were told of, what the kernel knows of addresses stays.
    engine.apply(&update::<wire::WorkloadAddress>(&[], &["shop/gone"])).unwrap();
    let at = |n: u8| (IpAddr::from([198, 51, 100, n]), Duration::from_secs(60));
    let held = |n: u8| engine.kernel(|kernel, _| kernel.identities.get(&IpNet::from(at(n).0)).copied());
    let asks: IpAddr = [10, 1, 1, 2].into();
    engine.admit(asks, "www.example.com", &[at(1)], 1_000).unwrap();
    for n in 2..200 {
        engine.admit(asks, &format!("{n}.example.org"), &[at(n)], 1_000).unwrap();
    }
    assert!(held(1).is_some() && held(2).is_none(), "nobody names the other ones");
    assert_eq!(engine.names_known(), (1, 0, 0), "and none is remembered");
    // When its time is over it is of use to what is there alone, and then to nothing.
    assert_eq!(engine.lapse_names(1_060).unwrap(), [at(1).0].into());
    let lingering = || engine.kernel(|kernel, _| kernel.lingering.keys().copied().collect::<Vec<_>>());
    assert_eq!((held(1), lingering()), (None, vec![at(1).0]));
    engine.forget_names(&[at(1).0].into()).unwrap();
    assert_eq!((lingering(), engine.names_known()), (vec![], (0, 0, 0)));
}

fn service(last: u8, backends: u8) -> wire::Service {
    let backend = |last: u8| wire::Backend {
        address: format!("10.1.2.{last}"),
        port: 8080,
        weight: 1,
        ..Default::default()
    };
    let port = wire::ServicePort {
        port: 80,
        protocol: wire::Protocol::Tcp as i32,
        backends: (0..backends).map(backend).collect(),
        ..Default::default()
    };
    wire::Service { addresses: vec![format!("10.101.0.{last}")], ports: vec![port], ..Default::default() }
}

#[test]
fn an_answer_that_has_no_room_in_the_kernel_is_refused_and_keeps_no_policy_out() {
    let limits = crate::desired::Limits { hosts: 3, ..crate::desired::Limits::KERNEL };
    let maps = MemoryMaps { limits: Some(limits), ..MemoryMaps::default() };
    let engine = Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(maps)).unwrap();
    let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 5, netns_cookie: 9 };
    engine.add_pod(name(), pod).unwrap();
    engine.apply(&update(&[("shop/pay", local())], &[])).unwrap();
    let rule = wire::PolicyRule {
        direction: wire::Direction::Egress as i32,
        action: wire::Action::QualifiedAllow as i32,
        name: Some(wire::NamePattern { pattern: "*".into(), ..Default::default() }),
        ..Default::default()
    };
    let class = |deny| wire::PolicyClass {
        id: 7,
        default_deny_egress: true,
        default_deny_ingress: deny,
        rules: vec![rule.clone()],
        ..Default::default()
    };
    engine.apply(&update(&[("7", class(false))], &[])).unwrap();
    engine.apply(&update::<wire::WorkloadAddress>(&[], &["shop/gone"])).unwrap();
    let at = |n: u8| (IpAddr::from([198, 51, 100, n]), Duration::from_secs(3_600));
    let asks: IpAddr = [10, 1, 1, 2].into();
    engine.admit(asks, "a.test", &[at(1)], 1_000).unwrap();
    let many: Vec<_> = (1..9).map(at).collect();
    let refused = engine.admit(asks, "a.test", &many, 1_000).unwrap_err().to_string();
    assert!(refused.contains("HOSTS"), "{refused}");
    assert_eq!((engine.names_known().0, engine.is_behind()), (1, false), "what was told before is known");
    engine.apply(&update(&[("7", class(true))], &[])).unwrap();
    assert!(engine.is_current(&name()) && !engine.is_behind());
}

#[test]
fn a_service_that_does_not_fit_keeps_out_neither_policy_nor_pods_nor_other_services() {
    let limits = crate::desired::Limits { services: 2, backends: 4, ..crate::desired::Limits::KERNEL };
    let maps = MemoryMaps { limits: Some(limits), ..MemoryMaps::default() };
    let engine = Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(maps)).unwrap();
    let served = || {
        engine
            .kernel(|kernel, _| kernel.services.keys().map(|key| key.address.to_string()).collect::<Vec<_>>())
    };
    let many = [
        ("shop/a", service(1, 5)),
        ("shop/b", service(2, 2)),
        ("shop/c", service(3, 1)),
        ("shop/d", service(4, 1)),
    ];
    let nack = engine.apply(&update(&many, &[])).unwrap_err();
    assert!(
        nack.contains("10.101.0.1:80") && nack.contains("BACKENDS") && nack.contains("1 further"),
        "{nack}"
    );
    assert_eq!(served(), ["10.101.0.2", "10.101.0.3"]);
    assert_eq!(
        (engine.full_map(), engine.is_behind(), engine.is_policy_behind()),
        (Some("BACKENDS"), true, false)
    );
    // What is in the kernel is acknowledged, whatever else is not.
    engine.apply(&update(&[("shop/b", service(2, 1))], &[])).unwrap();
    let nack = engine.apply(&update(&[("shop/d", service(4, 1))], &[])).unwrap_err();
    assert!(nack.contains("10.101.0.4:80") && nack.contains("SERVICES"), "{nack}");
    let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 5, netns_cookie: 9 };
    engine.add_pod(name(), pod).unwrap();
    engine.apply(&update(&[("7", wire::PolicyClass { id: 7, ..Default::default() })], &[])).unwrap();
    engine.apply(&update(&[("shop/pay", local())], &[])).unwrap();
    assert!(engine.is_current(&name()));
    let deny = wire::PolicyClass { id: 7, default_deny_ingress: true, ..Default::default() };
    engine.apply(&update(&[("7", deny)], &[])).unwrap();
    let open = engine.kernel(|kernel, _| kernel.classes[&kernel.endpoints[&5].class].clone());
    engine.apply(&update(&[("7", wire::PolicyClass { id: 7, ..Default::default() })], &[])).unwrap();
    assert_ne!(open, engine.kernel(|kernel, _| kernel.classes[&kernel.endpoints[&5].class].clone()));
    assert!(engine.is_behind());
    // What goes makes room within the same change, and what waits has its turn.
    engine.apply(&update(&[("shop/e", service(5, 1))], &["shop/a", "shop/b", "shop/d"])).unwrap();
    assert_eq!(
        (served(), engine.is_behind()),
        (vec!["10.101.0.3".to_owned(), "10.101.0.5".to_owned()], false)
    );
    // A host port is a service as well: the pod is there without it.
    engine.remove_pod(&name()).unwrap();
    let leads = HostPort { address: None, host_port: 8080, port: 80, protocol: 6 };
    engine.lead_ports(name(), vec![leads]);
    engine.add_pod(name(), pod).unwrap();
    assert!(engine.is_current(&name()) && engine.full_map() == Some("SERVICES"));
    engine.apply(&update::<wire::Service>(&[], &["shop/c", "shop/e"])).unwrap();
    assert_eq!((served().len(), engine.is_behind()), (2, false));
}

#[test]
fn services_that_the_kernel_refuses_are_tried_again_and_the_rest_is_written() {
    let maps = MemoryMaps { service_failures: 1, ..MemoryMaps::default() };
    let engine = Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(maps)).unwrap();
    let two = [("shop/a", service(1, 1)), ("shop/b", service(2, 1))];
    let nack = engine.apply(&update(&two, &[])).unwrap_err();
    assert!(nack.contains("told to fail"), "{nack}");
    assert_eq!((engine.kernel(|kernel, _| kernel.services.len()), engine.is_policy_behind()), (1, false));
    engine.retry().unwrap();
    assert_eq!((engine.kernel(|kernel, _| kernel.services.len()), engine.is_behind()), (2, false));
}

#[test]
fn a_write_that_the_kernel_refuses_is_a_nack_and_is_tried_again() {
    let engine = engine(1);
    let address = wire::WorkloadAddress {
        name: "shop/web".into(),
        addresses: vec!["10.1.2.2".into()],
        identity: 301,
        ..Default::default()
    };
    let refused = engine.apply(&update(&[("shop/web", address)], &[])).unwrap_err();
    assert!(refused.contains("told to fail"), "{refused}");
    let net = "10.1.2.2/32".parse().unwrap();
    assert_eq!(engine.kernel(|kernel, _| kernel.identities.get(&net).copied()), None);
    engine.synchronise().unwrap();
    assert_eq!(engine.kernel(|kernel, _| kernel.identities.get(&net).copied()), Some(301));
}
