//! What only IPv6 has: its link, its extension headers, its fragments, and IPv4 in its clothes.

use std::net::{IpAddr, Ipv6Addr};

use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Addr, Endpoint, Packet, Reason};

use super::support::frames::{
    DESTINATION, ETHERNET, FRAGMENT, HOP_BY_HOP, ROUTING, echo, error_with, ethernet, extended, fragment,
    frame, ipv6, listener, on_link, packet, padding, piece, syn, transport, udp,
};
use super::support::in_sandbox;
use super::support::policy::{DENY_EGRESS, DENY_INGRESS};
use super::{Egress, FRIEND_IDENTITY, Ingress, LO, Node, TCP, UDP, V4, V6, allow};

#[test]
fn on_the_link_neighbours_are_found_and_nobody_plays_the_router() {
    in_sandbox(|sandbox| {
        let mut node = Node::with_policy(sandbox, DENY_INGRESS | DENY_EGRESS, &[]);
        for direction in [Ingress, Egress] {
            let not_addressed =
                if direction == Egress { Reason::SpoofedSource } else { Reason::WrongDestination };
            for (src, dst, kind) in [
                ("fe80::1", "ff02::1", 135),
                ("::", "ff02::1:ff00:5", 135),
                ("fe80::1", "fe80::2", 136),
                ("fe80::1", "ff02::2", 133),
            ] {
                assert_eq!(node.told(direction, &on_link(src, dst, kind, 255)), None, "{src} {dst} {kind}");
                node.expect(direction, &on_link(src, dst, kind, 64), not_addressed);
            }
            // Router advertisement, redirect, echo: by a link-local address, nothing but discovery.
            for kind in [134, 137, 128] {
                node.expect(direction, &on_link("fe80::1", "ff02::1", kind, 255), not_addressed);
            }
            for kind in [131, 132, 143] {
                assert_eq!(node.told(direction, &listener("fe80::1", "ff02::16", kind)), None);
            }
            node.expect(direction, &listener("fe80::1", "ff02::16", 128), not_addressed);
            node.expect(direction, &listener("fe80::1", "fe80::2", 143), not_addressed);
        }
        let pod = V6.pod.to_string();
        // With the pod's own address: its questions, and the host's answers.
        assert_eq!(node.told(Egress, &on_link(&pod, "ff02::1:ff00:1", 135, 255)), None);
        assert_eq!(node.told(Ingress, &on_link("fe80::1", &pod, 136, 255)), None);
        let friend = V6.friend.to_string();
        node.expect(Egress, &on_link(&friend, "ff02::1:ff00:1", 135, 255), Reason::SpoofedSource);
        node.expect(Ingress, &on_link("fe80::1", &friend, 136, 255), Reason::WrongDestination);
        for kind in [134, 137] {
            node.expect(Egress, &on_link(&pod, "fe80::1", kind, 255), Reason::UnsupportedIcmp);
            node.expect(Ingress, &on_link("fe80::1", &pod, kind, 255), Reason::UnsupportedIcmp);
        }
        // From beyond the link.
        node.expect(Ingress, &on_link(&friend, &pod, 135, 255), Reason::UnsupportedIcmp);
        // Only the host asks for reports.
        assert_eq!(node.told(Ingress, &listener("fe80::1", "ff02::1", 130)), None);
        node.expect(Egress, &listener("fe80::1", "ff02::1", 130), Reason::SpoofedSource);
    });
}

#[test]
fn extension_headers_are_walked_and_those_that_mislead_refused() {
    in_sandbox(|sandbox| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, Some((80, 80)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let good = syn((V6.friend, 4000), (V6.pod, 80));
        let bad = syn((V6.friend, 4000), (V6.pod, 81));
        let options = |units| padding(DESTINATION, units);
        let routing = |kind, left| (ROUTING, vec![0, kind, left, 0, 0, 0, 0]);
        node.expect(Ingress, &frame(&good), Reason::Forwarded);
        for headers in [
            vec![padding(HOP_BY_HOP, 0)],
            vec![padding(HOP_BY_HOP, 3), options(0)],
            vec![options(255)],
            vec![options(0), routing(2, 0), options(1)],
            vec![
                padding(HOP_BY_HOP, 0),
                options(0),
                routing(2, 0),
                fragment(0, false, 7),
                options(1),
                options(0),
            ],
        ] {
            assert_eq!(node.told(Ingress, &extended(&good, &headers)), None, "{headers:?}");
            node.expect(Ingress, &extended(&bad, &headers), Reason::DefaultDeny);
        }
        for headers in [
            vec![options(0), padding(HOP_BY_HOP, 0)],
            vec![padding(HOP_BY_HOP, 0), padding(HOP_BY_HOP, 0)],
            vec![routing(0, 0)],
            vec![routing(4, 1)],
            vec![padding(50, 0)],
            vec![padding(51, 1)],
            vec![padding(135, 0)],
            vec![fragment(0, false, 1), fragment(0, false, 1)],
            vec![options(0); 7],
        ] {
            node.expect(Ingress, &extended(&good, &headers), Reason::ExtensionHeader);
        }
        node.expect(Ingress, &extended(&good, &[padding(59, 0)]), Reason::UnsupportedProtocol);
        // Headers that end behind the packet.
        node.expect(
            Ingress,
            &extended(&good, &[(DESTINATION, vec![4, 0, 0, 0, 0, 0, 0])]),
            Reason::Malformed,
        );
        let bare = ipv6(&good, DESTINATION, &[6]);
        node.expect(Ingress, &ethernet(0x86dd, &bare), Reason::Malformed);
        // The other family's ICMP is none.
        let mut foreign = echo(V6.friend, V6.pod, 7);
        foreign.protocol = protocol::ICMP;
        node.expect(Ingress, &frame(&foreign), Reason::UnsupportedProtocol);
        let mut foreign = echo(V4.friend, V4.pod, 7);
        foreign.protocol = protocol::ICMPV6;
        node.expect(Ingress, &frame(&foreign), Reason::UnsupportedProtocol);
    });
}

#[test]
fn an_ipv4_address_cannot_be_borrowed_by_ipv6() {
    in_sandbox(|sandbox| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, TCP, None, 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let mapped = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        for (src, dst) in [(V4.friend, V6.pod), (V4.friend, V4.pod), (V6.friend, V4.pod)] {
            let mut disguised = frame(&syn((V6.friend, 4000), (V6.pod, 80)));
            disguised[ETHERNET + 8..ETHERNET + 24].copy_from_slice(&mapped(src).octets());
            disguised[ETHERNET + 24..ETHERNET + 40].copy_from_slice(&mapped(dst).octets());
            node.expect(Ingress, &disguised, Reason::Malformed);
        }
        // Neither by an error that quotes it: the IPv4 flow with these ports is known.
        let opening = syn((V4.friend, 4000), (V4.pod, 80));
        node.expect(Ingress, &frame(&opening), Reason::Forwarded);
        let about = packet(TCP, (V6.pod, 80), (mapped(V4.friend), 4000), tcp::ACK);
        let quoted = [
            vec![0x60, 0, 0, 0, 0, 20, TCP, 64],
            mapped(V6.pod).octets().to_vec(),
            mapped(V4.friend).octets().to_vec(),
            transport(&about),
        ];
        let about = packet(TCP, (V6.pod, 80), (V6.friend, 4000), tcp::ACK);
        node.expect(Ingress, &error_with(V6.router, &about, 1, &quoted.concat()), Reason::UnrelatedIcmp);
        // An IPv6 range around the mapped addresses says nothing of IPv4.
        node.kernel.identities.upsert(&"::/0".parse().unwrap(), FRIEND_IDENTITY).expect("writable");
        node.expect(Ingress, &frame(&syn((V4.stranger, 4000), (V4.pod, 80))), Reason::DefaultDeny);
        node.expect(Ingress, &frame(&syn((V6.stranger, 4000), (V6.pod, 80))), Reason::Forwarded);
        let all: ipnet::IpNet = "0.0.0.0/0".parse().unwrap();
        node.kernel.identities.upsert(&all, FRIEND_IDENTITY).expect("writable");
        node.expect(Ingress, &frame(&syn((V4.stranger, 4000), (V4.pod, 80))), Reason::Forwarded);
        assert_eq!(node.kernel.identities.dump().expect("readable").get(&all), Some(&FRIEND_IDENTITY));
        assert!(node.kernel.identities.delete(&all).expect("removable"));
        assert!(!node.kernel.identities.delete(&all).expect("twice is fine"));
        node.expect(Ingress, &frame(&syn((V4.stranger, 4001), (V4.pod, 80))), Reason::DefaultDeny);
    });
}

#[test]
fn a_piece_that_could_replace_what_was_judged_is_dropped_and_a_lone_one_is_whole() {
    in_sandbox(|sandbox| {
        let rules = [allow(Ingress, FRIEND_IDENTITY, UDP, Some((53, 53)), 1)];
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &rules);
        let good = udp((V6.friend, 4000), (V6.pod, 53));
        let bad = udp((V6.friend, 4000), (V6.pod, 54));
        let head = [transport(&good), vec![0; 24]].concat();
        node.expect(Ingress, &piece(&good, 1, 0, true, &head), Reason::Forwarded);
        for offset in 1..4 {
            node.expect(Ingress, &piece(&good, 1, offset, false, &[0; 16]), Reason::Fragment);
        }
        assert_eq!(node.told(Ingress, &piece(&good, 1, 4, false, &[0; 16])), None);
        // Later pieces may call what follows as they like (RFC 8200, section 4.5).
        let renamed = Packet { protocol: DESTINATION, ..good };
        assert_eq!(node.told(Ingress, &piece(&renamed, 1, 6, false, &[0; 16])), None);
        // Not a whole number of units, nothing at all, beyond what a length can say.
        node.expect(Ingress, &piece(&good, 2, 0, true, &head[..31]), Reason::Malformed);
        node.expect(Ingress, &piece(&good, 1, 5, false, &[]), Reason::Malformed);
        node.expect(Ingress, &piece(&good, 1, 8191, false, &[0; 16]), Reason::Malformed);
        // Without its ports, a first piece can't be judged (RFC 7112).
        let segment = syn((V6.friend, 4000), (V6.pod, 80));
        node.expect(Ingress, &piece(&segment, 3, 0, true, &transport(&segment)[..16]), Reason::Malformed);
        // A datagram in one piece: neither remembered nor in need of another.
        assert_eq!(node.told(Ingress, &extended(&good, &[fragment(0, false, 9)])), None);
        node.expect(Ingress, &extended(&bad, &[fragment(0, false, 9)]), Reason::DefaultDeny);
        node.expect(Ingress, &piece(&good, 9, 4, false, &[0; 16]), Reason::Fragment);
        // Discovery in pieces (RFC 6980) is none.
        let mut solicitation = on_link("fe80::1", &V6.pod.to_string(), 135, 255);
        let message = solicitation.split_off(ETHERNET + 40);
        solicitation[ETHERNET + 6] = FRAGMENT;
        solicitation[ETHERNET + 5] += 8;
        solicitation.extend([58, 0, 0, 0, 0, 0, 0, 1]);
        solicitation.extend(message);
        node.expect(Ingress, &solicitation, Reason::UnsupportedIcmp);
    });
}

#[test]
fn an_error_about_a_datagram_in_pieces_finds_its_flow() {
    in_sandbox(|sandbox| {
        let mut node = Node::with_policy(sandbox, DENY_INGRESS, &[]);
        let query = udp((V6.pod, 5000), (V6.friend, 53));
        node.expect(Egress, &frame(&query), Reason::Forwarded);
        let quoting = |offset: u16| {
            let (_, rest) = fragment(offset, true, 7);
            let bytes = [vec![UDP], rest, transport(&query)].concat();
            // Packet too big.
            error_with(V6.router, &query, 2, &ipv6(&query, FRAGMENT, &bytes))
        };
        assert_eq!(node.told(Ingress, &quoting(0)), None);
        node.expect(Ingress, &quoting(3), Reason::UnrelatedIcmp);
    });
}

#[test]
fn an_endpoint_of_one_family_has_no_traffic_in_the_other() {
    in_sandbox(|sandbox| {
        let mut node = Node::with_policy(sandbox, 0, &[]);
        let before = node.kernel.endpoints.get(&LO).expect("readable").expect("there");
        node.kernel.endpoints.upsert(LO, Endpoint { v6: Addr::UNSPECIFIED, ..before }).expect("writable");
        node.expect(Egress, &frame(&syn((V4.pod, 4000), (V4.friend, 80))), Reason::Forwarded);
        node.expect(Egress, &frame(&syn((V6.pod, 4000), (V6.friend, 80))), Reason::SpoofedSource);
        node.expect(Ingress, &frame(&syn((V6.friend, 4000), (V6.pod, 80))), Reason::WrongDestination);
        let nobody = Ipv6Addr::UNSPECIFIED;
        node.expect(Egress, &frame(&syn((nobody, 4000), (V6.friend, 80))), Reason::SpoofedSource);
        node.expect(Ingress, &frame(&syn((V6.friend, 4000), (nobody, 80))), Reason::WrongDestination);
    });
}

#[test]
fn truncated_and_contradicting_packets_of_ipv6_are_dropped() {
    in_sandbox(|sandbox| {
        let mut node = Node::with_policy(sandbox, 0, &[]);
        let good = frame(&syn((V6.friend, 4000), (V6.pod, 80)));
        for length in [14 + 40, 14 + 44, 14 + 59] {
            node.expect(Ingress, &good[..length], Reason::Malformed);
        }
        let spoilt: [(usize, u8); 5] = [
            (14, 0x45),           // version 4
            (14 + 5, 0),          // nothing in it
            (14 + 5, 19),         // ends within the TCP header
            (14 + 5, 21),         // longer than the frame
            (14 + 40 + 12, 0x40), // a TCP header of 16 bytes
        ];
        for (at, value) in spoilt {
            let mut bad = good.clone();
            bad[at] = value;
            node.expect(Ingress, &bad, Reason::Malformed);
        }
        for flags in [0, tcp::SYN | tcp::FIN, tcp::SYN | tcp::RST, 0x29] {
            node.expect(
                Ingress,
                &frame(&packet(TCP, (V6.friend, 4000), (V6.pod, 80), flags)),
                Reason::Malformed,
            );
        }
        assert!(node.kernel.conntrack.dump().expect("readable").is_empty());
    });
}
