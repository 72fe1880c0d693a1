//! Pods of two nodes that talk through the tunnel: real packets of both families, over both families; nodes and pods of
//! other nodes; packets of somebody who is no node. Needs root.

mod mesh;
mod nodes;
mod paths;
#[path = "../support/mod.rs"]
mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ebpf_shared::overlay::{FROM_MAC, MAC, PORT};
use ebpf_shared::packet::protocol::{TCP, UDP};
use ebpf_shared::{Addr, FlowEvent, Reason};
use mesh::{IDENTITY, Place, Underlay, both, is_refused, mesh, pod4, talk, underlay4};
use node_agent::cni::HostNet;
use node_agent::tunnel::{self, DEVICE, Mode};
use support::frames::{frame, packet};
use support::in_sandbox;

/// Both inner families over one outer one; identities come with the packets, and the pods' MTU is too large on purpose.
fn pods_talk_through_the_tunnel(mode: Mode) {
    in_sandbox(move |sandbox| {
        // 1,400 of the underlay leave 1,350 or 1,330, and the pods believe in 1,500.
        let (one, mut two, _) = mesh(sandbox, mode, Underlay::Bridge(1_400), 1_500);
        for at in both(2) {
            assert!(is_refused(&one.pod, &two.pod, at), "{at}: nobody is let in yet");
        }
        let refused = two.events();
        assert!(refused.iter().any(|event| event.reason == Reason::DefaultDeny as u8), "{refused:?}");
        // Node 2 does not know who has the address of node 1's pod.
        two.let_in(&[IDENTITY[1]]);
        for at in both(2) {
            assert!(talk(&one.pod, &two.pod, at, 300_000), "{at} {mode:?}");
        }
        let events = two.events();
        let begun = events.iter().find(|event| event.reason == 0 && event.dst_port == 8080).expect("told");
        assert_eq!(
            (begun.src_identity, begun.flags & FlowEvent::FROM_TUNNEL),
            (IDENTITY[1], FlowEvent::FROM_TUNNEL)
        );
        assert_eq!(two.dropped(Reason::TunnelSource), 0);
    });
}

#[test]
fn pods_talk_over_ipv4() {
    pods_talk_through_the_tunnel(Mode::Vxlan);
}

#[test]
fn pods_talk_over_ipv6() {
    pods_talk_through_the_tunnel(Mode::VxlanIpv6);
}

/// A VXLAN datagram with this frame of IPv4, whose header gets its checksum (RFC 791, section 3.1).
fn datagram(identity: u32, inner: &[u8]) -> Vec<u8> {
    let mut inner = inner.to_vec();
    let words = inner[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
    inner[24..26].copy_from_slice(&folded.to_be_bytes());
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((identity << 8).to_be_bytes());
    bytes.extend(inner);
    bytes[8..14].copy_from_slice(&MAC);
    bytes[14..20].copy_from_slice(&FROM_MAC);
    bytes
}

#[test]
fn what_comes_from_no_node_or_for_another_node_s_pod_is_dropped_and_told() {
    in_sandbox(|sandbox| {
        let (one, mut two, stranger) = mesh(sandbox, Mode::Vxlan, Underlay::Bridge(1_500), 1_450);
        two.let_in(&[IDENTITY[1]]);
        let inbox = two.pod.run(|| UdpSocket::bind((pod4(2), 53)).expect("free"));
        inbox.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
        let say = |from: Ipv4Addr, to: Ipv4Addr| {
            frame(&packet(UDP, (IpAddr::V4(from), 4_000), (IpAddr::V4(to), 53), 0))
        };
        let to = SocketAddr::new(underlay4(2).into(), PORT);
        let send = |place: &Place, bytes: Vec<u8>| {
            place.run(|| {
                let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a port");
                socket.send_to(&bytes, to).expect("sent");
            });
        };
        // By a stranger with the identity that is let in, and the address of a pod that has it.
        send(&stranger, datagram(IDENTITY[1], &say(pod4(1), pod4(2))));
        // By a node in the name of another's pod, of this node's own, and of nobody's.
        for from in [pod4(2), underlay4(2), Ipv4Addr::new(10, 9, 9, 9)] {
            send(&one.place, datagram(IDENTITY[1], &say(from, pod4(2))));
        }
        // By a node for somebody who is not here.
        send(&one.place, datagram(IDENTITY[1], &say(pod4(1), underlay4(3))));
        // By a node as it should be: the only one that arrives.
        send(&one.place, datagram(IDENTITY[1], &say(pod4(1), pod4(2))));
        let mut buffer = [0; 2_048];
        let (_, from) = inbox.recv_from(&mut buffer).expect("arrives");
        assert_eq!(from, SocketAddr::new(pod4(1).into(), 4_000));
        inbox.set_nonblocking(true).expect("settable");
        assert_eq!(inbox.recv_from(&mut buffer).expect_err("nothing else").kind(), ErrorKind::WouldBlock);
        assert_eq!((two.dropped(Reason::TunnelSource), two.dropped(Reason::TunnelTarget)), (4, 1));
        let told = two.events();
        let forged = told.iter().find(|event| event.reason == Reason::TunnelSource as u8).expect("told");
        assert_eq!((forged.src, forged.dst), (Addr::from(pod4(1)), Addr::from(pod4(2))));
        // A pod's own identity that means nothing elsewhere gives nobody anything.
        send(&one.place, datagram(1, &say(pod4(1), pod4(2))));
        send(&one.place, datagram(0, &say(pod4(1), pod4(2))));
        // TCP, so that it is no part of the flow that was let in.
        let syn = frame(&packet(TCP, (IpAddr::V4(pod4(1)), 4_000), (IpAddr::V4(pod4(2)), 53), 2));
        send(&one.place, datagram(1, &syn));
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while two.dropped(Reason::DefaultDeny) == 0 {
            assert!(std::time::Instant::now() < until, "judged by its address");
            std::thread::yield_now();
        }
    });
}

#[test]
fn the_device_is_removed_by_its_name() {
    in_sandbox(|_| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let host = HostNet::new().expect("netlink");
            tunnel::ensure(&host, 1_450, false).await.expect("a device");
            tunnel::remove(&host).await.expect("removed");
            tunnel::remove(&host).await.expect("gone already");
            assert_eq!(host.index(DEVICE).await.expect("readable"), None);
        });
    });
}
