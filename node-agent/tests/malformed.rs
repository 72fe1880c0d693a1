//! Frames that no honest host sends, at every program that meets frames (those of a pod's door that judge: see
//! `equivalence.rs`): none passes what denies everything, and none is translated that is not understood. Needs root.

#[path = "fixtures/strange.rs"]
mod strange;
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_shared::host::INTERFACE;
use ebpf_shared::nat::{NatKey, NatValue, NodeConfig, Tuple, place, way};
use ebpf_shared::overlay::Hop;
use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::service::scope;
use ebpf_shared::{Addr, Direction, Endpoint, Packet, Reason, ServiceKey, identity};
use ipnet::IpNet;
use node_agent::desired::{ServedBackend, ServiceEntry};
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::Defaults;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use strange::{header, mutate};
use support::frames::{answer, echo, error_about, extended, frame, packet, piece, transport};
use support::policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults};
use support::reference::{Look, Pieces, look};
use support::{cases, in_sandbox};

/// The loopback interface, which test runs happen at.
const LO: u32 = 1;
const NEXT: u32 = u32::MAX;
const SHOT: u32 = 2;

type Pair = [IpAddr; 2];

const fn pair(v4: [u8; 4], v6: [u16; 8]) -> Pair {
    [IpAddr::V4(Ipv4Addr::from_octets(v4)), IpAddr::V6(Ipv6Addr::from_segments(v6))]
}

const NODE: Pair = pair([192, 0, 2, 1], [0x2001, 0xdb8, 1, 0, 0, 0, 0, 1]);
const POD: Pair = pair([10, 1, 0, 5], [0xfd00, 1, 0, 0, 0, 0, 0, 5]);
/// A pod of another node.
const FAR: Pair = pair([10, 2, 0, 9], [0xfd00, 2, 0, 0, 0, 0, 0, 9]);
const VIP: Pair = pair([10, 101, 0, 1], [0xfd00, 3, 0, 0, 0, 0, 0, 1]);
const CLIENT: Pair = pair([198, 51, 100, 7], [0x2001, 0xdb8, 9, 0, 0, 0, 0, 7]);

/// Few, so that flows meet again.
const PORTS: [u16; 4] = [80, 8080, 4000, 61_000];

/// A frame of any kind between two hosts, spoilt or not.
fn strange(rng: &mut StdRng, from: &Pair, to: &Pair) -> Vec<u8> {
    let family = rng.random_range(0..2);
    let (src, dst) = (from[family], to[family]);
    let mut port = || *PORTS.choose(rng).expect("not empty");
    let (here, there) = (port(), port());
    let flags =
        *[tcp::SYN, tcp::ACK, tcp::SYN | tcp::ACK, tcp::FIN | tcp::ACK].choose(rng).expect("not empty");
    let packet = match rng.random_range(0..6) {
        0 => echo(src, dst, here),
        1 | 2 => packet(protocol::UDP, (src, here), (dst, there), 0),
        3 => packet(protocol::SCTP, (src, here), (dst, there), 0),
        _ => packet(protocol::TCP, (src, here), (dst, there), flags),
    };
    let mut bytes = match rng.random_range(0..8) {
        0 => {
            let errors: [u8; 3] = if family == 0 { [3, 11, 12] } else { [1, 2, 4] };
            error_about(src, &answer(&packet, tcp::ACK), *errors.choose(rng).expect("not empty"))
        }
        1 => {
            let head = [transport(&packet), vec![0; 16]].concat();
            piece(&packet, rng.random_range(0..4), 0, true, &head[..head.len() - head.len() % 8])
        }
        2 => piece(&packet, rng.random_range(0..4), rng.random_range(0..6), rng.random_bool(0.5), &[0; 16]),
        3 if family == 1 => {
            let headers: Vec<_> = (0..rng.random_range(1..8)).map(|place| header(rng, place)).collect();
            extended(&packet, &headers)
        }
        _ => frame(&packet),
    };
    mutate(rng, &mut bytes);
    bytes
}

/// Both ends, as the bytes have them at the usual places. `None`: no frame of IP.
fn ends(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v6 = |at: usize| IpAddr::V6(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("sixteen").into());
    let v4 = |at: usize| IpAddr::V4(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four").into());
    match (frame[12], frame[13]) {
        (0x08, 0x00) => Some((v4(26), v4(30))),
        (0x86, 0xdd) => Some((v6(22), v6(38))),
        _ => None,
    }
}

/// How a frame is read by whoever it is for (or, going out, from).
fn read(frame: &[u8], direction: Direction, pieces: &mut Pieces) -> Look {
    let Some((src, dst)) = ends(frame) else { return Look::Refused(Reason::UnsupportedEthertype) };
    let own = Addr::from(if direction == Direction::Ingress { dst } else { src });
    look(frame, direction, &Endpoint { v4: own, v6: own, ..Endpoint::default() }, pieces)
}

/// Neighbour discovery, which is not judged.
fn is_discovery(frame: &[u8]) -> bool {
    frame[12] == 0x86
        && frame[20] == 58
        && frame[21] == 255
        && frame.len() > 54
        && (133..=137).contains(&frame[54])
}

#[test]
fn nothing_to_or_from_the_node_passes_a_policy_that_denies_everything() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        kernel.set_locals(&NODE.into()).expect("writable");
        Writer::default().put(&mut kernel, 1, &defaults(DENY_INGRESS | DENY_EGRESS, 101, 102), &[]);
        let [v4, v6] = NODE.map(Addr::from);
        let own = Endpoint { identity: identity::HOST, class: 1, v4, v6, ..Endpoint::default() };
        kernel.put_endpoint(INTERFACE, own).expect("writable");
        let mut rng = StdRng::seed_from_u64(11);
        let mut pieces = Pieces::new();
        let (mut dropped, mut refused) = (0, 0);
        for _ in 0..cases(10_000) {
            let direction = if rng.random_bool(0.5) { Direction::Ingress } else { Direction::Egress };
            let bytes = match direction {
                Direction::Ingress => strange(&mut rng, &CLIENT, &NODE),
                Direction::Egress => strange(&mut rng, &NODE, &CLIENT),
            };
            let passes = kernel.try_host_frame(direction, &bytes).expect("runs");
            let is_own = ends(&bytes).is_some_and(|(src, dst)| {
                NODE.contains(if direction == Direction::Ingress { &dst } else { &src })
            });
            let told = read(&bytes, direction, &mut pieces);
            let is_spared = match told {
                Look::Link => true,
                // As a router, the node tells of packets that were not to it.
                Look::Refused(Reason::UnrelatedIcmp) => direction == Direction::Egress,
                Look::Refused(_) => is_discovery(&bytes),
                // For no socket: the stack resets it.
                Look::Packet(packet) => is_discovery(&bytes) || is_middle(&packet, direction),
            };
            if is_own && !is_spared {
                assert!(!passes, "{direction:?} {told:?} {bytes:02x?}");
                dropped += 1;
                refused += u32::from(matches!(told, Look::Refused(_)));
            }
        }
        println!("{dropped} dropped, {refused} of them not understood");
        assert!(dropped > 3_000 && refused > 500);
    });
}

fn is_middle(packet: &Packet, direction: Direction) -> bool {
    direction == Direction::Ingress && packet.protocol == protocol::TCP && !packet.opens()
}

#[test]
fn nothing_gets_through_the_tunnel_but_between_pods_of_nodes() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let nets = |[v4, v6]: Pair| {
            [IpNet::new(v4, 16), IpNet::new(v6, 64)].map(|net| net.expect("a prefix").trunc())
        };
        let hop = |last, flags| Hop { v4: Ipv4Addr::new(192, 0, 2, last).into(), flags, ..Hop::default() };
        let here = nets(POD).map(|net| (net, hop(1, Hop::HERE)));
        let there = nets(FAR).map(|net| (net, hop(2, 0)));
        let routed = nets(CLIENT).map(|net| (net, hop(3, Hop::ROUTED)));
        kernel.nodes.set(&here.into_iter().chain(there).chain(routed).collect()).expect("writable");
        let mut rng = StdRng::seed_from_u64(12);
        let hosts = [POD, FAR, CLIENT, NODE];
        let mut passed = 0;
        for _ in 0..cases(10_000) {
            let [from, to] = [0, 1].map(|_| hosts.choose(&mut rng).expect("not empty"));
            let bytes = strange(&mut rng, from, to);
            let (code, _) = kernel.run_program("from_overlay", &bytes).expect("runs");
            assert_eq!(code, SHOT, "from no node: {bytes:02x?}");
            let (code, left) = kernel.run_program("to_overlay", &bytes).expect("runs");
            assert!(code == SHOT || code == NEXT, "{code}");
            if code == NEXT {
                let (src, dst) = ends(&bytes).expect("IP");
                let within = |nets: &[IpNet], at| nets.iter().any(|net| net.contains(at));
                assert!(within(&nets(POD), &src) && within(&nets(FAR), &dst), "{bytes:02x?}");
                // (The test run drops what is behind the packet's end no more than the program does.)
                assert_eq!(left[12..], bytes[12..], "as it was, but for the link");
                passed += 1;
            }
        }
        assert!(passed > 300, "{passed}");
    });
}

/// A service at a port of an address, with this backend of its family.
fn serve(kernel: &mut Kernel, at: IpAddr, port: u16, scope: u8, backend: IpAddr, here: bool) {
    let served = ServedBackend { weight: 1, chosen: true, here };
    let backends = BTreeMap::from([((backend, 8080).into(), served)]);
    for protocol in [protocol::TCP, protocol::UDP] {
        let key = ServiceKey::new(at.into(), port, protocol, scope);
        let entry = ServiceEntry { backends: backends.clone(), ..ServiceEntry::default() };
        kernel.services.put(key, &entry).expect("writable");
    }
}

/// As the programs read it.
fn monotonic() -> u64 {
    // SAFETY: all zeros is a value.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: writes to a value that outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0, "always there");
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Flows that may take the short cut at this moment.
fn cut_short(kernel: &mut Kernel) {
    for family in [0, 1] {
        for protocol in [protocol::TCP, protocol::UDP] {
            for port in PORTS {
                let ends = |src: IpAddr, dst: IpAddr| Tuple {
                    src: src.into(),
                    dst: dst.into(),
                    src_port: port,
                    dst_port: 4000,
                };
                let key = NatKey {
                    tuple: ends(CLIENT[family], NODE[family]),
                    protocol,
                    place: place::FROM_NET,
                    padding: 0,
                };
                let value = NatValue {
                    seen: monotonic(),
                    tuple: ends(NODE[family], FAR[family]),
                    way: way::OUT,
                    is_reply: 1,
                    answered: 1,
                    ifindex: LO,
                    mac: [2; 6],
                    ..NatValue::default()
                };
                kernel.nat.upsert(key, value).expect("writable");
            }
        }
    }
}

#[test]
fn what_is_not_understood_is_not_translated_and_what_is_translated_is_understood() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let [v4, v6] = NODE.map(Addr::from);
        let node = NodeConfig { v4, v6, first_port: 61_000, last_port: 61_100, ..NodeConfig::default() };
        kernel.set_net(&["lo".to_owned()], node, None).expect("attachable");
        Writer::default().put(&mut kernel, 1, &Defaults::default(), &[]);
        let [v4, v6] = POD.map(Addr::from);
        kernel
            .endpoints
            .upsert(LO, Endpoint { identity: 300, class: 1, v4, v6, ..Endpoint::default() })
            .expect("writable");
        for family in [0, 1] {
            serve(&mut kernel, VIP[family], 80, scope::INSIDE, FAR[family], false);
            serve(&mut kernel, NODE[family], 80, scope::OUTSIDE, POD[family], true);
            serve(&mut kernel, NODE[family], 8080, scope::OUTSIDE, FAR[family], false);
        }
        let mut rng = StdRng::seed_from_u64(13);
        let mut pieces = Pieces::new();
        let mut translated = BTreeMap::<&str, u32>::new();
        let (mut refused, mut cut) = (0, 0);
        let places: [(&'static str, &Pair, &Pair); 6] = [
            ("pod_asks", &POD, &VIP),
            ("pod_answered", &FAR, &POD),
            ("from_net", &CLIENT, &NODE),
            ("from_net", &FAR, &NODE),
            ("to_net", &POD, &CLIENT),
            ("net_xdp", &CLIENT, &NODE),
        ];
        for turn in 0..cases(20_000) {
            if turn % 200 == 0 {
                cut_short(&mut kernel);
            }
            let (name, from, to) = *places.choose(&mut rng).expect("not empty");
            let bytes = strange(&mut rng, from, to);
            let (code, left) = kernel.run_program(name, &bytes).expect("runs");
            let is_xdp = name == "net_xdp";
            let pass = if is_xdp { 2 } else { NEXT };
            match read(&bytes, Direction::Ingress, &mut pieces) {
                Look::Packet(packet) if left != bytes => {
                    *translated.entry(name).or_default() += 1;
                    cut += u32::from(is_xdp && code == 3);
                    match read(&left, Direction::Ingress, &mut Pieces::new()) {
                        Look::Packet(after) => assert_eq!(
                            (after.protocol, after.kind, after.tcp_flags),
                            (packet.protocol, packet.kind, packet.tcp_flags)
                        ),
                        // Later pieces: the first has gone by the same way.
                        Look::Refused(Reason::Fragment) => {}
                        other => panic!("{name} made {other:?} of {packet:?}: {bytes:02x?} {left:02x?}"),
                    }
                }
                Look::Packet(_) => {}
                told => {
                    assert_eq!((code, &left), (pass, &bytes), "{name}: {told:?}");
                    refused += 1;
                }
            }
        }
        println!("{translated:?}, {cut} by the short cut, {refused} not understood");
        assert!(translated.len() == 5 && translated.values().all(|count| *count > 50), "{translated:?}");
        assert!(cut > 50 && refused > 2_000);
    });
}
