//! What the programs tell and count under load, by running them on frames (`BPF_PROG_TEST_RUN`): needs root.

mod support;

use std::collections::BTreeMap;

use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{
    Addr, Direction, Endpoint, FlowCell, FlowEvent, Ip4, Metric, Packet, Reason, Verdict, limits,
};
use node_agent::kernel::{EventRing, Kernel};
use support::frames::{frame, packet};
use support::{Sandbox, in_sandbox};

/// The loopback interface, which test runs happen at.
const LO: u32 = 1;
const POD: [u8; 4] = [10, 1, 0, 5];
const PEER: [u8; 4] = [192, 0, 2, 1];
/// How many packets of drops are made in all.
const DROPS: u32 = 1_000_000;

fn address(octets: [u8; 4]) -> std::net::IpAddr {
    octets.into()
}

/// A pod whose policy is not there: whatever is sent to it is dropped.
fn node(sandbox: &Sandbox) -> (Kernel, EventRing) {
    let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
    let v4 = Addr::v4(Ip4::from(std::net::Ipv4Addr::from(POD)));
    let endpoint = Endpoint { identity: 299, class: 7, v4, ..Endpoint::default() };
    kernel.endpoints.upsert(LO, endpoint).expect("writable");
    let events = kernel.events().expect("not taken yet");
    (kernel, events)
}

fn syn(from: [u8; 4], to: [u8; 4], port: u16) -> Packet {
    packet(protocol::TCP, (address(from), 4000), (address(to), port), tcp::SYN)
}

type ByReason = BTreeMap<(u8, u8), u64>;

fn by_reason(cells: Vec<(Direction, Reason, Metric)>) -> ByReason {
    cells.into_iter().map(|(way, reason, metric)| ((way as u8, reason as u8), metric.packets)).collect()
}

fn read_all(events: &mut EventRing, told: &mut ByReason) -> u64 {
    let mut count = 0;
    while let Some(event) = events.try_next() {
        assert_eq!(event.verdict, Verdict::Dropped as u8, "{event:?}");
        *told.entry((event.direction, event.reason)).or_default() += 1;
        count += 1;
    }
    count
}

/// Told, suppressed and lost together are all that there were, for every direction and reason.
#[track_caller]
fn assert_exact(kernel: &Kernel, told: &ByReason) {
    let packets = by_reason(kernel.flows.packets().expect("readable"));
    let suppressed = by_reason(kernel.flows.suppressed().expect("readable"));
    let lost = by_reason(kernel.flows.lost().expect("readable"));
    let of = |cells: &ByReason, key| cells.get(key).copied().unwrap_or(0);
    for (key, all) in &packets {
        let sum = of(told, key) + of(&suppressed, key) + of(&lost, key);
        assert_eq!(sum, *all, "{key:?}: told {told:?}, suppressed {suppressed:?}, lost {lost:?}");
    }
    println!("{packets:?}\ntold {told:?}\nsuppressed {suppressed:?}\nlost {lost:?}");
}

#[test]
fn of_a_million_drops_each_is_told_or_counted() {
    in_sandbox(|sandbox| {
        let (kernel, mut events) = node(sandbox);
        let mut truncated = frame(&syn(PEER, POD, 80));
        truncated.truncate(14 + 24);
        let kinds = [
            (Direction::Ingress, frame(&syn(PEER, POD, 80))),
            (Direction::Ingress, frame(&syn(PEER, POD, 443))),
            (Direction::Ingress, frame(&syn(PEER, [10, 1, 0, 6], 80))),
            (Direction::Egress, frame(&syn(POD, PEER, 80))),
            (Direction::Egress, frame(&syn([10, 1, 0, 6], PEER, 80))),
            (Direction::Ingress, frame(&packet(protocol::UDP, (address(PEER), 53), (address(POD), 53), 0))),
            (Direction::Ingress, truncated),
            (Direction::Egress, frame(&packet(protocol::UDP, (address(POD), 53), (address(PEER), 53), 0))),
        ];
        let each = DROPS / kinds.len() as u32;
        let mut told = ByReason::new();
        for (way, frame) in &kinds {
            let (passed, time) = kernel.time_frame(*way, frame, each).expect("a test run");
            assert!(!passed);
            println!("a drop in {} ns", time.as_nanos());
            read_all(&mut events, &mut told);
        }
        let all: u64 = kernel.flows.packets().expect("readable").iter().map(|(_, _, m)| m.packets).sum();
        assert_eq!(all, u64::from(DROPS));
        let events: u64 = told.values().sum();
        assert!(events >= u64::from(FlowCell::BURST) * kinds.len() as u64, "each kind is told: {events}");
        assert!(events < all / 10, "and most of the packets are only counted: {events}");
        assert_exact(&kernel, &told);
        // None was displaced: what was suppressed of each kind adds up to the same.
        let suppressed: u64 =
            kernel.flows.suppressed().expect("readable").iter().map(|(_, _, m)| m.packets).sum();
        let by_kind = kernel.flows.kinds().expect("readable");
        assert_eq!(by_kind.values().map(|metric| metric.packets).sum::<u64>(), suppressed);
        assert_eq!(by_kind.len(), kinds.len());
        let web = by_kind.keys().find(|kind| kind.port == 443).expect("told by its port");
        assert_eq!((web.reason, web.verdict), (Reason::PolicyMissing as u8, Verdict::Dropped as u8));
    });
}

#[test]
fn events_that_find_the_ring_full_are_counted_by_reason() {
    in_sandbox(|sandbox| {
        let (kernel, mut events) = node(sandbox);
        let fits = limits::EVENTS as usize / (size_of::<FlowEvent>() + 8);
        // A kind for each port, so that none is suppressed.
        let burst = FlowCell::BURST;
        let ports = u16::try_from(fits / burst as usize + 2).expect("few enough");
        for port in 1..=ports {
            kernel.time_frame(Direction::Ingress, &frame(&syn(PEER, POD, port)), burst).expect("a test run");
        }
        let lost = kernel.lost().expect("readable");
        assert!(lost > 0);
        let mut told = ByReason::new();
        read_all(&mut events, &mut told);
        assert_exact(&kernel, &told);
        // Room again.
        kernel.time_frame(Direction::Ingress, &frame(&syn(PEER, POD, 9)), 1).expect("a test run");
        kernel.time_frame(Direction::Egress, &frame(&syn(POD, PEER, 9)), 1).expect("a test run");
        assert!(read_all(&mut events, &mut told) >= 1);
        assert_eq!(kernel.lost().expect("readable"), lost);
        assert_exact(&kernel, &told);
    });
}

#[test]
fn more_kinds_than_are_remembered_are_still_counted_exactly() {
    in_sandbox(|sandbox| {
        let (kernel, mut events) = node(sandbox);
        let mut told = ByReason::new();
        for port in 1..=u16::try_from(2 * limits::FLOWS).expect("few enough") {
            let scan = frame(&syn(PEER, POD, port));
            kernel.time_frame(Direction::Ingress, &scan, 70).expect("a test run");
            if port % 256 == 0 {
                read_all(&mut events, &mut told);
            }
        }
        read_all(&mut events, &mut told);
        assert_exact(&kernel, &told);
    });
}

#[test]
fn an_event_tells_bytes_icmp_type_and_verdict() {
    in_sandbox(|sandbox| {
        let (kernel, mut events) = node(sandbox);
        let ping = support::frames::echo(address(PEER), address(POD), 9);
        let bytes = frame(&ping);
        kernel.try_frame(Direction::Ingress, &bytes).expect("a test run");
        let event = events.try_next().expect("told");
        assert_eq!((event.icmp, event.bytes as usize), (8 << 8, bytes.len()));
        assert_eq!((event.verdict, event.reason), (Verdict::Dropped as u8, Reason::PolicyMissing as u8));
        assert_eq!((event.flags, event.service), (0, 0));
    });
}
