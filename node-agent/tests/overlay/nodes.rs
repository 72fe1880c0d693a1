//! Nodes and pods of other nodes, and services of one node whose backends are on another.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ebpf_shared::packet::protocol::TCP;
use ebpf_shared::service::scope;
use ebpf_shared::{Reason, ServiceKey, identity};
use node_agent::desired::{ServedBackend, ServiceEntry};
use node_agent::tunnel::Mode;

use crate::mesh::{
    IDENTITY, Node, Underlay, both, is_refused, mesh, nets, pod4, pod6, talk, underlay4, underlay6,
};
use crate::support::{in_sandbox, run};

const NODE_PORT: u16 = 30_080;

fn of_node(number: u8, port: u16) -> [SocketAddr; 2] {
    [IpAddr::V4(underlay4(number)), IpAddr::V6(underlay6(number))]
        .map(|address| SocketAddr::new(address, port))
}

fn of_pod(number: u8) -> [IpAddr; 2] {
    [IpAddr::V4(pod4(number)), IpAddr::V6(pod6(number))]
}

/// The underlay carries packets of nodes only, as clouds do.
fn carry_nodes_only() {
    for (family, [first, second]) in [("ip", [nets(1)[0], nets(2)[0]]), ("ip6", [nets(1)[1], nets(2)[1]])] {
        let rules = format!(
            "add table bridge only{family}; add chain bridge only{family} f {{ type filter hook forward priority 0; }}; \
             add rule bridge only{family} f {family} saddr {{ {first}, {second} }} counter drop; \
             add rule bridge only{family} f {family} daddr {{ {first}, {second} }} counter drop"
        );
        run(&["nft", &rules]);
    }
}

fn know_each_other(nodes: [&mut Node; 2]) {
    for node in nodes {
        let other = 3 - node.number;
        for address in of_node(other, 0) {
            node.know(address.ip(), identity::REMOTE_NODE);
        }
    }
}

fn nodes_and_pods_reach_each_other(mode: Mode) {
    in_sandbox(move |sandbox| {
        let (mut one, mut two, _) = mesh(sandbox, mode, Underlay::Bridge(1_500), mode.inner_mtu(1_500));
        if mode.is_tunnel() {
            carry_nodes_only();
        }
        one.masquerade(&[]);
        two.masquerade(&[]);
        know_each_other([&mut one, &mut two]);
        for at in both(2) {
            assert!(is_refused(&one.place, &two.pod, at), "{at}: no node is let in yet");
        }
        two.let_in(&[identity::REMOTE_NODE]);
        for at in both(2) {
            assert!(talk(&one.place, &two.pod, at, 300_000), "{at} {mode:?}: a node calls another's pod");
        }
        assert_eq!(two.dropped(Reason::TunnelSource), 0);
        // A pod is known to another node by its own address.
        for at in of_node(1, 8081) {
            let caller = crate::mesh::caller(&two.pod, &one.place, at);
            assert_eq!(caller, Some(of_pod(2)[usize::from(at.is_ipv6())]), "{at} {mode:?}");
            assert!(talk(&two.pod, &one.place, at, 300_000), "{at} {mode:?}: a pod calls another node");
        }
        // Its own node as ever, and nodes each other.
        for at in of_node(2, 8082) {
            assert!(talk(&two.pod, &two.place, at, 1_000), "{at} {mode:?}");
            assert!(talk(&one.place, &two.place, at, 1_000), "{at} {mode:?}");
        }
    });
}

#[test]
fn nodes_and_pods_of_others_reach_each_other_through_the_tunnel() {
    nodes_and_pods_reach_each_other(Mode::Vxlan);
}

#[test]
fn nodes_and_pods_of_others_reach_each_other_through_the_tunnel_over_ipv6() {
    nodes_and_pods_reach_each_other(Mode::VxlanIpv6);
}

#[test]
fn nodes_and_pods_of_others_reach_each_other_by_routes() {
    nodes_and_pods_reach_each_other(Mode::Direct);
}

fn served(backend: SocketAddr, here: bool, direct: bool) -> ServiceEntry {
    let one = ServedBackend { weight: 1, chosen: true, here };
    ServiceEntry { backends: BTreeMap::from([(backend, one)]), direct, ..ServiceEntry::default() }
}

fn node_ports_lead_to_pods_of_other_nodes(mode: Mode, direct: bool) {
    in_sandbox(move |sandbox| {
        let (mut one, mut two, client) = mesh(sandbox, mode, Underlay::Bridge(1_500), mode.inner_mtu(1_500));
        carry_nodes_only();
        one.masquerade(&[]);
        two.masquerade(&[]);
        know_each_other([&mut one, &mut two]);
        two.let_in(&[identity::REMOTE_NODE, IDENTITY[1]]);
        for (at, backend) in of_node(1, NODE_PORT).into_iter().zip(both(2)) {
            let key = ServiceKey::new(at.ip().into(), NODE_PORT, TCP, scope::OUTSIDE);
            one.kernel.services.put(key, &served(backend, false, direct)).expect("writable");
            let from = crate::mesh::caller_through(&client, &two.pod, at, backend);
            assert_eq!(
                from,
                Some(of_node(1, 0)[usize::from(at.is_ipv6())].ip()),
                "{at} {mode:?}: by the node"
            );
            assert!(crate::mesh::talk_through(&client, &two.pod, at, backend, 300_000), "{at} {mode:?}");
        }
        // And the other way round: a pod asks at another node for what is there, as itself.
        one.let_in(&[IDENTITY[2]]);
        for (at, backend) in of_node(1, NODE_PORT + 1).into_iter().zip(both(1)) {
            let key = ServiceKey::new(at.ip().into(), at.port(), TCP, scope::OUTSIDE);
            one.kernel.services.put(key, &served(backend, true, direct)).expect("writable");
            let from = crate::mesh::caller_through(&two.pod, &one.pod, at, backend);
            assert_eq!(from, Some(of_pod(2)[usize::from(at.is_ipv6())]), "{at} {mode:?}");
        }
        assert_eq!((one.dropped(Reason::TunnelSource), one.dropped(Reason::TunnelTarget)), (0, 0));
        assert_eq!((two.dropped(Reason::TunnelSource), two.dropped(Reason::TunnelTarget)), (0, 0));
    });
}

#[test]
fn node_ports_lead_through_the_tunnel_to_pods_of_other_nodes() {
    node_ports_lead_to_pods_of_other_nodes(Mode::Vxlan, false);
}

#[test]
fn node_ports_lead_through_the_tunnel_over_ipv6_to_pods_of_other_nodes() {
    node_ports_lead_to_pods_of_other_nodes(Mode::VxlanIpv6, false);
}

#[test]
fn nobody_answers_directly_through_the_tunnel() {
    node_ports_lead_to_pods_of_other_nodes(Mode::Vxlan, true);
}
