//! Ways that take less than the interfaces at their ends, and ways out of the mesh.

use std::net::{IpAddr, SocketAddr};

use node_agent::tunnel::Mode;

use crate::mesh::{IDENTITY, Underlay, both, caller, mesh, pod4, pod6, talk, underlay4, underlay6};
use crate::support::{in_sandbox, run};

/// Pods believe in what the nodes' interfaces leave them, and a router between the nodes takes 1,400 bytes.
fn a_narrow_way_between_nodes_is_coped_with(mode: Mode) {
    in_sandbox(move |sandbox| {
        let (one, mut two, _) = mesh(sandbox, mode, Underlay::Router(1_400), mode.inner_mtu(1_500));
        two.let_in(&[IDENTITY[1]]);
        for at in both(2) {
            assert!(talk(&one.pod, &two.pod, at, 300_000), "{at} {mode:?}");
        }
    });
}

/// Routes want nodes on one network: there the interfaces themselves take less than pods believe.
#[test]
fn pods_learn_by_routes_what_the_way_takes() {
    in_sandbox(|sandbox| {
        let (one, mut two, _) = mesh(sandbox, Mode::Direct, Underlay::Bridge(1_400), 1_500);
        for address in [IpAddr::V4(pod4(1)), IpAddr::V6(pod6(1))] {
            two.know(address, IDENTITY[1]);
        }
        two.let_in(&[IDENTITY[1]]);
        for at in both(2) {
            assert!(talk(&one.pod, &two.pod, at, 300_000), "{at}");
        }
    });
}

#[test]
fn a_narrow_way_between_nodes_is_coped_with_by_the_tunnel() {
    a_narrow_way_between_nodes_is_coped_with(Mode::Vxlan);
}

#[test]
fn a_narrow_way_between_nodes_is_coped_with_by_the_tunnel_over_ipv6() {
    a_narrow_way_between_nodes_is_coped_with(Mode::VxlanIpv6);
}

fn what_leaves_the_mesh_is_masqueraded_but_for_what_is_excluded(mode: Mode) {
    in_sandbox(move |sandbox| {
        let (one, _two, outside) = mesh(sandbox, mode, Underlay::Bridge(1_500), 1_450);
        outside.run(|| {
            run(&["ip", "route", "add", "10.1.1.0/24", "via", &underlay4(1).to_string()]);
            run(&["ip", "-6", "route", "add", "fd00:1::1:0/112", "via", &underlay6(1).to_string()]);
        });
        let servers = [IpAddr::V4(underlay4(3)), IpAddr::V6(underlay6(3))];
        let own = [IpAddr::V4(pod4(1)), IpAddr::V6(pod6(1))];
        let node = [IpAddr::V4(underlay4(1)), IpAddr::V6(underlay6(1))];
        one.masquerade(&[]);
        for (server, node) in servers.into_iter().zip(node) {
            assert_eq!(caller(&one.pod, &outside, SocketAddr::new(server, 9_000)), Some(node), "{mode:?}");
        }
        one.masquerade(&["192.0.2.3/32", "2001:db8::3/128"].map(|net| net.parse().expect("a net")));
        for (server, own) in servers.into_iter().zip(own) {
            assert_eq!(caller(&one.pod, &outside, SocketAddr::new(server, 9_001)), Some(own), "{mode:?}");
        }
    });
}

#[test]
fn what_leaves_the_mesh_is_masqueraded_but_for_what_is_excluded_with_routes() {
    what_leaves_the_mesh_is_masqueraded_but_for_what_is_excluded(Mode::Direct);
}

#[test]
fn what_leaves_the_mesh_is_masqueraded_but_for_what_is_excluded_with_a_tunnel() {
    what_leaves_the_mesh_is_masqueraded_but_for_what_is_excluded(Mode::Vxlan);
}
