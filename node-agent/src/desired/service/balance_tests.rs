//! What the control plane tells, through what the kernel is to hold, to where a connection goes: the shared lines over
//! plain collections, compared with a slow reading of what was told.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ebpf_shared::balance::{Ask, Choice, balance};
use ebpf_shared::nat::{
    Arrival, NatKey, NatMaps, NatValue, NodeConfig, Outcome, Tuple, answer_for, go_on, loopback, place,
    translate, way,
};
use ebpf_shared::packet::protocol::{TCP, UDP};
use ebpf_shared::redirect::NO_SLOT;
use ebpf_shared::service::{AffinityKey, AffinityValue, AnswererKey, SourceKey};
use ebpf_shared::{Addr, Backend, Reason, ServiceKey, ServiceMaps, ServiceValue, SockAddr};
use proptest::prelude::*;

use super::*;
use crate::subscribe::{BackendState, Frontend, NodeRoute};

/// The maps, as `crate::kernel` fills them.
#[derive(Default)]
struct Emulation {
    services: BTreeMap<ServiceKey, ServiceValue>,
    slots: Vec<u32>,
    backends: BTreeMap<u32, Backend>,
    affinity: BTreeMap<AffinityKey, AffinityValue>,
    sources: Vec<(u32, IpNet)>,
    nat: BTreeMap<NatKey, NatValue>,
    node: NodeConfig,
    tunnelled: Vec<Addr>,
    other_nodes: Vec<Addr>,
}

impl Emulation {
    fn of(table: &Table) -> Self {
        let mut maps = Self::default();
        for (id, (frontend, entry)) in (1..).zip(table) {
            let mut turns = Vec::new();
            for (at, served) in &entry.backends {
                let number = 1 + maps.backends.len() as u32;
                let backend = Backend {
                    at: SockAddr::new(at.ip().into(), at.port()),
                    service: id,
                    weight: served.weight,
                    flags: if served.chosen { Backend::CHOSEN } else { 0 },
                };
                maps.backends.insert(number, backend);
                if served.chosen {
                    turns.push((*at, number, served.weight));
                }
            }
            let turns = maglev::turns(turns.into_iter());
            let mut value =
                ServiceValue { id, affinity_seconds: entry.affinity_seconds, ..ServiceValue::default() };
            if !entry.sources.is_empty() {
                value.flags = ServiceValue::SOURCES;
            }
            match turns.as_slice() {
                [] => {}
                [only] => (value.size, value.only) = (1, only.number),
                turns => {
                    let size = maglev::sizes(turns.len()).next().unwrap();
                    (value.table, value.size) = (maps.slots.len() as u32, size);
                    maps.slots.extend(maglev::table(turns, size));
                }
            }
            maps.sources.extend(entry.sources.iter().map(|net| (id, *net)));
            let scope = frontend.scope.number();
            let key = ServiceKey::new(frontend.address.into(), frontend.port, frontend.protocol, scope);
            maps.services.insert(key, value);
        }
        maps
    }
}

impl ServiceMaps for Emulation {
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        self.services.get(key).copied()
    }

    fn slot(&self, at: u32) -> u32 {
        self.slots.get(at as usize).copied().unwrap_or(0)
    }

    fn backend(&self, number: u32) -> Option<Backend> {
        self.backends.get(&number).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityValue> {
        self.affinity.get(key).copied()
    }

    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        self.affinity.insert(*key, *value);
    }

    fn admits(&self, source: &SourceKey) -> bool {
        let addr = IpAddr::from(source.addr);
        self.sources.iter().any(|(service, net)| *service == source.service && net.contains(&addr))
    }
}

impl NatMaps for Emulation {
    fn nat(&mut self, key: &NatKey) -> Option<&mut NatValue> {
        self.nat.get_mut(key)
    }

    fn set_nat(&mut self, key: &NatKey, value: &NatValue, is_new: bool) -> bool {
        if is_new && self.nat.contains_key(key) {
            return false;
        }
        self.nat.insert(*key, *value);
        true
    }

    fn remove_nat(&mut self, key: &NatKey) {
        self.nat.remove(key);
    }

    fn is_tunnelled(&self, addr: &Addr) -> bool {
        self.tunnelled.contains(addr)
    }

    fn is_other_node(&self, addr: &Addr) -> bool {
        self.other_nodes.contains(addr)
    }

    fn answers(&self, key: &AnswererKey) -> bool {
        let is = |backend: &Backend| backend.service == key.service && backend.at == key.at;
        self.backends.values().any(|backend| backend.flags & Backend::HERE != 0 && is(backend))
    }

    fn node(&self) -> NodeConfig {
        self.node
    }
}

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 101, 0, 1);
const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn backends() -> impl Strategy<Value = Vec<ServiceBackend>> {
    let one = (0_u32..3, 0_u32..3, 0_u8..3, 0_u8..3);
    proptest::collection::vec(one, 0..8).prop_map(|drawn| {
        let each = drawn.into_iter().zip(1_u8..);
        each.map(|((priority, weight, state, zone), last)| ServiceBackend {
            address: Ipv4Addr::new(10, 1, 1, last).into(),
            port: 8080,
            weight,
            priority,
            zone: ["", "a", "b"][usize::from(zone)].into(),
            state: [BackendState::Active, BackendState::Terminating, BackendState::NotReady]
                [usize::from(state)],
            ..ServiceBackend::default()
        })
        .collect()
    })
}

prop_compose! {
    fn told()(
        backends in backends(),
        internal_local in any::<bool>(),
        external_local in any::<bool>(),
        prefer_same_zone in any::<bool>(),
        affinity_seconds in prop_oneof![Just(0_u32), Just(60)],
        ranged in any::<bool>(),
    ) -> Service {
        Service {
            addresses: vec![VIP.into()],
            ports: vec![ServicePort { port: 80, protocol: TCP, proxy_port: 0, backends, ..ServicePort::default() }],
            frontends: vec![Frontend {
                kind: FrontendKind::LoadBalancer,
                address: Some(BALANCER.into()),
                port: 80,
                service_port: 80,
                protocol: TCP,
            }],
            affinity_seconds,
            internal_local,
            external_local,
            source_ranges: if ranged { vec!["198.51.100.0/24".parse().unwrap()] } else { Vec::new() },
            prefer_same_zone,
            ..Service::default()
        }
    }
}

/// Where a connection may go, said once more. `local`: this node's pod is the first backend.
fn allowed(service: &Service, local: bool) -> BTreeSet<IpAddr> {
    let first: IpAddr = Ipv4Addr::new(10, 1, 1, 1).into();
    let candidates: Vec<&ServiceBackend> =
        service.ports[0].backends.iter().filter(|one| !local || one.address == first).collect();
    let mut best: Vec<&ServiceBackend> = Vec::new();
    'found: for state in [BackendState::Active, BackendState::Terminating] {
        for tier in 0..3 {
            best =
                candidates.iter().filter(|one| one.state == state && one.priority == tier).copied().collect();
            if !best.is_empty() {
                break 'found;
            }
        }
    }
    if service.prefer_same_zone && best.iter().any(|one| one.zone == "a") {
        best.retain(|one| one.zone == "a");
    }
    if best.iter().any(|one| one.weight > 0) {
        best.retain(|one| one.weight > 0);
    }
    best.iter().map(|one| one.address).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_connection_goes_where_what_was_told_lets_it(service in told(), outside in any::<bool>()) {
        let mut resources = Resources::default();
        let route = NodeRoute { tunnel: None, address: OWN, address6: None, addresses: Vec::new(), pod_cidrs: Vec::new(), zone: "a".into() };
        resources.nodes.insert("n1".into(), route);
        resources.services.insert(NamespacedName::new("shop", "pay"), service.clone().into());
        let addresses = PodAddresses { v4: Ipv4Addr::new(10, 1, 1, 1), v6: None };
        let pod = Pod { addresses, ifindex: 1, netns_cookie: 1 };
        let pods = BTreeMap::from([(NamespacedName::new("shop", "pay-0"), pod)]);
        let mut maps = Emulation::of(&services(&resources, OWN.into(), &pods, &mut |_| NO_SLOT));

        let (address, scope) = if outside { (BALANCER, Scope::Outside) } else { (VIP, Scope::Inside) };
        let local = if outside { service.external_local } else { service.internal_local };
        let allowed = allowed(&service, local);
        let mut met = BTreeSet::new();
        for client in 0..200_u8 {
            let now = Cell::new(1);
            let mut ask = Ask {
                key: ServiceKey::new(address.into(), 80, TCP, scope.number()),
                client: Addr::from(Ipv4Addr::new(198, 51, 100, client)),
                hash: u32::from(client) * 0x0147_ae14,
                now: || now.get(),
                has_sidecar: || false,
            };
            match balance(&mut maps, &ask) {
                Choice::To(target) => {
                    let at = IpAddr::from(target.at.addr);
                    prop_assert!(allowed.contains(&at), "{at} of {allowed:?}");
                    met.insert(at);
                    ask.hash = !ask.hash;
                    let again = balance(&mut maps, &ask);
                    if service.affinity_seconds != 0 {
                        prop_assert_eq!(again, Choice::To(target));
                        now.set(now.get() + 61_000_000_000);
                        // Long after, by the hash again.
                        let fresh = balance(&mut Emulation { affinity: BTreeMap::new(), ..Emulation::of(&services(&resources, OWN.into(), &pods, &mut |_| NO_SLOT)) }, &ask);
                        prop_assert_eq!(balance(&mut maps, &ask), fresh);
                    }
                }
                choice => prop_assert_eq!((choice, allowed.len()), (Choice::NoBackend, 0)),
            }
        }
        prop_assert_eq!(&met, &allowed);
        let stranger = Ask {
            key: ServiceKey::new(BALANCER.into(), 80, TCP, Scope::Outside.number()),
            client: Addr::from(Ipv4Addr::new(192, 0, 2, 77)),
            hash: 7,
            now: || 1,
            has_sidecar: || false,
        };
        let refused = balance(&mut maps, &stranger) == Choice::SourceRange;
        prop_assert_eq!(refused, !service.source_ranges.is_empty());
    }
}

#[test]
fn what_is_swapped_while_a_program_reads_is_read_again() {
    /// Shows an old entry once.
    struct Swapped {
        maps: Emulation,
        old: std::cell::Cell<Option<ServiceValue>>,
    }
    impl ServiceMaps for Swapped {
        fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
            self.old.take().or_else(|| self.maps.service(key))
        }
        fn slot(&self, at: u32) -> u32 {
            self.maps.slot(at)
        }
        fn backend(&self, number: u32) -> Option<Backend> {
            self.maps.backend(number)
        }
        fn affinity(&self, key: &AffinityKey) -> Option<AffinityValue> {
            self.maps.affinity(key)
        }
        fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
            self.maps.set_affinity(key, value);
        }
        fn admits(&self, source: &SourceKey) -> bool {
            self.maps.admits(source)
        }
    }
    let key = ServiceKey::new(VIP.into(), 80, TCP, 0);
    let at = |last| SockAddr::new(Ipv4Addr::new(10, 1, 1, last).into(), 80);
    let mut maps = Emulation::default();
    let value = ServiceValue { id: 1, size: 1, only: 5, ..ServiceValue::default() };
    maps.services.insert(key, value);
    maps.backends.insert(5, Backend { at: at(5), service: 1, ..Backend::default() });
    // Another service has the slots now.
    maps.backends.insert(6, Backend { at: at(6), service: 2, ..Backend::default() });
    maps.slots = vec![6; 61];
    for old in [ServiceValue { only: 4, ..value }, ServiceValue { size: 61, table: 0, ..value }] {
        let mut swapped = Swapped { maps, old: std::cell::Cell::new(Some(old)) };
        let ask = Ask { key, client: Addr::UNSPECIFIED, hash: 9, now: || 1, has_sidecar: || false };
        let choice = balance(&mut swapped, &ask);
        assert!(matches!(choice, Choice::To(target) if target.at == at(5)), "{choice:?}");
        maps = swapped.maps;
    }
}

const SECOND: u64 = 1_000_000_000;
const PORTS: (u16, u16) = (61_000, 61_003);

/// A service with a backend here and one elsewhere, at a virtual address and at the node's.
fn node(backends: &[(u8, bool)]) -> Emulation {
    let mut maps = Emulation::default();
    (maps.node.v4, maps.node.first_port, maps.node.last_port) = (OWN.into(), PORTS.0, PORTS.1);
    for (number, (last, here)) in (1..).zip(backends) {
        let flags = Backend::CHOSEN | if *here { Backend::HERE } else { 0 };
        let at = SockAddr::new(Ipv4Addr::new(10, 1, 1, *last).into(), 8080);
        maps.backends.insert(number, Backend { at, service: 1, weight: 1, flags });
        maps.slots.push(number);
    }
    let size = maps.slots.len() as u32;
    let value = ServiceValue { id: 1, size, only: 1, ..ServiceValue::default() };
    for protocol in [TCP, UDP] {
        maps.services.insert(ServiceKey::new(VIP.into(), 80, protocol, 0), value);
        maps.services.insert(ServiceKey::new(OWN.into(), 80, protocol, 1), value);
    }
    maps
}

fn arrival(tuple: Tuple, protocol: u8, place: u8, now: u64) -> Arrival {
    Arrival {
        tuple,
        protocol,
        place,
        ifindex: 2,
        mac: [2; 6],
        is_error: false,
        opens: false,
        closes: false,
        now,
    }
}

fn from(client: [u8; 4], port: u16, to: Ipv4Addr) -> Tuple {
    Tuple { src: Ipv4Addr::from(client).into(), dst: to.into(), src_port: port, dst_port: 80 }
}

/// Where an answer to a packet that was translated like this is met.
fn answered_at(place: u8, way: u8) -> u8 {
    match (place, way) {
        (place::FROM_POD, way::ROUTED) => place::TO_POD,
        (place::FROM_NET, way::ROUTED) => place::TO_NET,
        (same, _) => same,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_answer_comes_back_as_the_answer_to_what_was_asked(
        asks in proptest::collection::vec((1_u8..6, 1_000_u16..1_004, any::<bool>(), any::<bool>()), 1..40)
    ) {
        let mut maps = node(&[(1, true), (2, false), (3, true)]);
        let mut answers: BTreeMap<(Tuple, u8, u8), Tuple> = BTreeMap::new();
        for (now, (last, port, is_tcp, is_pod)) in (1..).zip(asks) {
            let protocol = if is_tcp { TCP } else { UDP };
            let (place, tuple) = if is_pod {
                (place::FROM_POD, from([10, 1, 1, last], port, VIP))
            } else {
                (place::FROM_NET, from([198, 51, 100, last], port, OWN))
            };
            let outcome = translate(&mut maps, &arrival(tuple, protocol, place, now));
            let Outcome { tuple: real, way, .. } = outcome;
            if !outcome.is_translated() {
                // Four ports for one backend elsewhere.
                prop_assert_eq!(outcome, Outcome::drop(Reason::NatExhausted));
                continue;
            }
            let again = translate(&mut maps, &arrival(tuple, protocol, place, now));
            prop_assert_eq!(again, outcome, "a flow stays as it is");
            prop_assert_eq!(way == way::OUT, !is_pod && real.dst == Ipv4Addr::new(10, 1, 1, 2).into());
            let known = answers.insert((real.reversed(), protocol, answered_at(place, way)), tuple.reversed());
            prop_assert!(known.is_none_or(|known| known == tuple.reversed()), "two flows in one");
        }
        for ((answer, protocol, place), expected) in answers {
            let back = translate(&mut maps, &arrival(answer, protocol, place, 50));
            prop_assert!(back.is_translated() && back.tuple == expected, "{back:?}");
            let error = Arrival { is_error: true, ..arrival(answer, protocol, place, 50) };
            prop_assert_eq!(translate(&mut maps, &error), back);
        }
    }
}

#[test]
fn a_node_answers_only_by_addresses_of_a_service_that_has_the_backend() {
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    let mut maps = node(&[(1, true), (2, true)]);
    (maps.node.ifindex, maps.node.tunnel) = (3, 7);
    maps.other_nodes.push(OTHER.into());
    let direct = |id| ServiceValue { id, flags: ServiceValue::DIRECT, ..ServiceValue::default() };
    // A node port of the first backend, a load balancer of both, and one that is not answered directly.
    maps.services.insert(ServiceKey::new(OWN.into(), 80, TCP, 1), direct(2));
    maps.services.insert(ServiceKey::new(BALANCER.into(), 80, TCP, 1), direct(3));
    maps.services
        .insert(ServiceKey::new(BALANCER.into(), 81, TCP, 1), ServiceValue { flags: 0, ..direct(4) });
    let at = |last| SockAddr::new(Ipv4Addr::new(10, 1, 1, last).into(), 8080);
    for (number, (last, service)) in (10..).zip([(1, 2), (1, 3), (2, 3), (1, 4)]) {
        let backend = Backend { at: at(last), service, weight: 1, flags: Backend::HERE };
        maps.backends.insert(number, backend);
    }
    let to = |last, port| {
        let client = from([198, 51, 100, 1], 1_000, Ipv4Addr::new(10, 1, 1, last));
        arrival(Tuple { dst_port: port, ..client }, TCP, place::FROM_NET, 1)
    };
    let asked = |addr: Ipv4Addr, port| SockAddr::new(addr.into(), port);
    let strange = Ipv4Addr::new(8, 8, 8, 8);
    for (arrival, asked, expected) in [
        (to(1, 8080), asked(OTHER, 80), true),
        (to(1, 8080), asked(OWN, 80), true),
        (to(2, 8080), asked(BALANCER, 80), true),
        (to(1, 8080), asked(strange, 80), false),
        (to(1, 8080), asked(OTHER, 81), false),
        (to(1, 8080), asked(BALANCER, 81), false),
        // Others' backends, other ports of a backend.
        (to(2, 8080), asked(OTHER, 80), false),
        (to(3, 8080), asked(BALANCER, 80), false),
        (to(1, 22), asked(BALANCER, 80), false),
        (Arrival { ifindex: 7, ..to(1, 8080) }, asked(BALANCER, 80), false),
    ] {
        maps.nat.clear();
        assert_eq!(answer_for(&mut maps, &arrival, asked), expected, "{asked:?} of {:?}", arrival.tuple);
        assert_eq!(maps.nat.len(), usize::from(expected));
    }
    // Whom it is answering by one name, nobody has it answer by another.
    assert!(answer_for(&mut maps, &to(1, 8080), asked(OTHER, 80)));
    assert!(answer_for(&mut maps, &to(1, 8080), asked(OTHER, 80)), "the same once more");
    assert!(!answer_for(&mut maps, &to(1, 8080), asked(BALANCER, 80)));
    maps.nat.values_mut().for_each(|half| half.closed = 1);
    assert!(answer_for(&mut maps, &to(1, 8080), asked(BALANCER, 80)), "another connection");
}

#[test]
fn a_backend_behind_the_tunnel_is_asked_by_the_node_also_where_answers_are_to_be_direct() {
    const TUNNEL: u32 = 7;
    let mut maps = node(&[(2, false)]);
    (maps.node.ifindex, maps.node.tunnel) = (3, TUNNEL);
    let of_node = ServiceKey::new(OWN.into(), 80, TCP, 1);
    maps.services.get_mut(&of_node).unwrap().flags = ServiceValue::DIRECT;
    let tuple = from([198, 51, 100, 1], 1_000, OWN);
    let direct = translate(&mut maps, &arrival(tuple, TCP, place::FROM_NET, 1));
    assert_eq!((direct.way, direct.ifindex, direct.tuple.src), (way::DIRECT, 3, tuple.src));

    maps.tunnelled.push(Ipv4Addr::new(10, 1, 1, 2).into());
    let tuple = Tuple { src_port: 1_001, ..tuple };
    let asked = translate(&mut maps, &arrival(tuple, TCP, place::FROM_NET, 1));
    assert_eq!((asked.way, asked.ifindex, asked.tuple.src), (way::OUT, TUNNEL, OWN.into()));
    let answer = arrival(asked.tuple.reversed(), TCP, place::FROM_NET, 2);
    let answered = translate(&mut maps, &Arrival { ifindex: TUNNEL, ..answer });
    assert_eq!((answered.way, answered.ifindex, answered.tuple), (way::OUT, 2, tuple.reversed()));
    // Both halves are kept up by either: the way out stays the tunnel.
    let later = Arrival { ifindex: TUNNEL, now: 5_000_000_000, ..answer };
    maps.nat.retain(|key, _| key.tuple != tuple);
    assert!(translate(&mut maps, &later).is_translated());
    let again = translate(&mut maps, &arrival(tuple, TCP, place::FROM_NET, 6_000_000_000));
    assert_eq!((again.ifindex, again.tuple), (TUNNEL, asked.tuple));
}

#[test]
fn a_pod_that_chooses_itself_talks_to_a_loopback_address() {
    let mut maps = node(&[(1, true)]);
    let tuple = from([10, 1, 1, 1], 1_000, VIP);
    let outcome = translate(&mut maps, &arrival(tuple, TCP, place::FROM_POD, 1));
    let Outcome { tuple: real, way, .. } = outcome;
    assert_eq!(way, way::BACK);
    assert_eq!((real.src, real.dst), (loopback(true), tuple.src));
    let back = translate(&mut maps, &arrival(real.reversed(), TCP, place::FROM_POD, 2));
    assert_eq!((back.tuple, back.way), (tuple.reversed(), way::BACK));
}

#[test]
fn a_borrowed_port_is_free_again_some_time_after_the_connection_ended() {
    let mut maps = node(&[(2, false)]);
    let ask = |maps: &mut Emulation, port: u16, now: u64, closes: bool| {
        let tuple = from([198, 51, 100, 1], port, OWN);
        let opening = Arrival { opens: !closes, closes, ..arrival(tuple, TCP, place::FROM_NET, now) };
        translate(maps, &opening)
    };
    let answer = |maps: &mut Emulation, outcome: Outcome, now: u64| {
        let Outcome { tuple, .. } = outcome;
        let back = translate(maps, &arrival(tuple.reversed(), TCP, place::FROM_NET, now));
        assert!(back.is_translated(), "{back:?}");
    };
    // Attempts are at random places: whoever asks again has a port in the end.
    let mut open = Vec::new();
    for port in 0..1_000 {
        let outcome = ask(&mut maps, port, 1, false);
        if outcome.is_translated() {
            answer(&mut maps, outcome, 2);
            open.push(port);
        }
    }
    assert_eq!(open.len(), 4);
    let hour = 3_600 * SECOND;
    assert_eq!(ask(&mut maps, 5_000, hour, false), Outcome::drop(Reason::NatExhausted), "in use, if idle");
    for port in open {
        assert!(ask(&mut maps, port, hour, true).is_translated());
    }
    assert_eq!(ask(&mut maps, 5_000, hour + SECOND, false), Outcome::drop(Reason::NatExhausted));
    assert!(ask(&mut maps, 5_000, hour + 121 * SECOND, false).is_translated());
}

#[test]
fn a_flow_leaves_a_backend_that_is_gone_and_an_opening_one_that_ends() {
    let mut maps = node(&[(1, true), (3, true)]);
    let tuple = from([10, 1, 1, 9], 1_000, VIP);
    let next = |maps: &mut Emulation, opens: bool, now: u64| {
        let outcome = translate(maps, &Arrival { opens, ..arrival(tuple, TCP, place::FROM_POD, now) });
        let Outcome { tuple: real, .. } = outcome;
        maps.backends.iter().find(|(_, backend)| backend.at.addr == real.dst).map(|(number, _)| *number)
    };
    let first = next(&mut maps, true, 1).unwrap();
    let second = 3 - first;
    maps.backends.get_mut(&first).unwrap().flags = 0;
    maps.slots = vec![second; 2];
    assert_eq!(next(&mut maps, false, 2), Some(first), "goes on");
    assert_eq!(next(&mut maps, true, 3), Some(second), "a new connection from the same port does not");
    maps.backends.remove(&second);
    maps.backends.get_mut(&first).unwrap().flags = Backend::CHOSEN;
    maps.slots = vec![first; 2];
    assert_eq!(next(&mut maps, false, 4), Some(first));
}

#[test]
fn a_half_that_was_displaced_is_put_back_and_one_that_is_taken_is_given_up() {
    let mut maps = node(&[(2, false)]);
    let tuple = from([198, 51, 100, 1], 1_000, OWN);
    let ask = |maps: &mut Emulation, now: u64| {
        let outcome = translate(maps, &arrival(tuple, UDP, place::FROM_NET, now));
        assert!(outcome.is_translated());
        outcome.tuple
    };
    let real = ask(&mut maps, 1);
    let key = NatKey { tuple: real.reversed(), protocol: UDP, place: place::FROM_NET, padding: 0 };
    assert!(maps.nat.remove(&key).is_some());
    assert_eq!(ask(&mut maps, 3 * SECOND), real);
    assert!(maps.nat.contains_key(&key), "put back");
    maps.nat.get_mut(&key).unwrap().tuple.dst_port = 7;
    assert_ne!(ask(&mut maps, 6 * SECOND), real, "another flow has the port");
}

#[test]
fn a_connection_past_the_service_has_its_own_answers_once_the_one_through_it_is_closed() {
    for (place, back, client, asked) in [
        (place::FROM_POD, place::TO_POD, [10, 1, 1, 9], VIP),
        (place::FROM_NET, place::TO_NET, [198, 51, 100, 1], OWN),
    ] {
        let mut maps = node(&[(1, true)]);
        let tuple = from(client, 1_000, asked);
        let opening = Arrival { opens: true, ..arrival(tuple, TCP, place, 1) };
        let real = translate(&mut maps, &opening).tuple;
        let answer = arrival(real.reversed(), TCP, back, 2);
        let direct = |now| Arrival { opens: true, ..arrival(real, TCP, place, now) };
        assert_eq!(translate(&mut maps, &direct(2)), Outcome::PASS);
        assert!(translate(&mut maps, &answer).is_translated(), "while that is open, answers are its own");
        translate(&mut maps, &Arrival { closes: true, ..arrival(tuple, TCP, place, 3) });
        assert!(translate(&mut maps, &Arrival { now: 4, ..answer }).is_translated(), "the last ones as well");
        assert_eq!(translate(&mut maps, &direct(5)), Outcome::PASS);
        assert_eq!(translate(&mut maps, &Arrival { now: 6, ..answer }), Outcome::PASS);
        // And again through the service, from the same port.
        assert_eq!(translate(&mut maps, &Arrival { now: 7, ..opening }).tuple, real);
        assert_eq!(translate(&mut maps, &Arrival { now: 8, ..answer }).tuple, tuple.reversed());
    }
}

#[test]
fn what_is_translated_at_once_is_what_would_be_translated_with_nothing_noted() {
    let now = 100_000 * SECOND;
    let mut goes = 0;
    let ages = [0, SECOND, SECOND + 1, 121 * SECOND];
    for (age, bits) in ages.into_iter().flat_map(|age| (0..1 << 6).map(move |bits| (age, bits))) {
        let mut maps = node(&[(1, true)]);
        let bit = |at: u32| (bits >> at & 1) as u8;
        let protocol = if bit(0) == 0 { TCP } else { UDP };
        let forward = from([10, 1, 1, 9], 1_000, VIP);
        let real = translate(&mut maps, &arrival(forward, protocol, place::FROM_POD, 1)).tuple;
        let is_reply = bit(1) != 0;
        let (tuple, place) =
            if is_reply { (real.reversed(), place::TO_POD) } else { (forward, place::FROM_POD) };
        let key = NatKey { tuple, protocol, place, padding: 0 };
        let entry = maps.nat.get_mut(&key).unwrap();
        entry.seen = now - age;
        (entry.answered, entry.closed) = (bit(2), bit(3));
        entry.way = if bit(4) == 0 { way::ROUTED } else { way::OUT };
        if bit(5) != 0 {
            maps.nat.retain(|known, _| *known == key);
        }
        let entry = maps.nat[&key];
        if !entry.goes_on(now) {
            continue;
        }
        goes += 1;
        let before = maps.nat.clone();
        let outcome = go_on(&mut maps, &arrival(tuple, protocol, place, now));
        assert_eq!((outcome.way, outcome.tuple), (way::ROUTED, entry.tuple), "{entry:?}");
        assert_eq!(maps.nat, before, "{entry:?}");
    }
    assert!(goes > 20, "{goes}");
}

#[test]
fn a_service_that_is_led_to_a_proxy_is_not_translated_and_says_by_which_backend_it_is_judged() {
    const SLOT: u16 = 9;
    let mut maps = node(&[(1, true), (3, false)]);
    for service in maps.services.values_mut() {
        service.redirect = SLOT;
    }
    let tuple = from([10, 1, 1, 9], 1_000, VIP);
    let key = ServiceKey::new(VIP.into(), 80, TCP, Scope::Inside.number());
    let ask = Ask { key, client: tuple.src, hash: tuple.hash(TCP), now: || 1, has_sidecar: || false };
    let Choice::ByProxy(led) = balance(&mut maps, &ask) else { panic!("it is led") };
    assert_eq!(led.slot, SLOT);
    assert!(maps.backends.values().any(|backend| backend.at == led.backend));
    let asked = translate(&mut maps, &arrival(tuple, TCP, place::FROM_POD, 1));
    assert_eq!((asked.way, asked.ifindex), (way::LED, u32::from(SLOT)));
    assert_eq!(SockAddr::new(asked.tuple.dst, asked.tuple.dst_port), led.backend);
    assert!(!asked.is_translated() && maps.nat.is_empty());
    // Without a backend there is nobody to be judged by.
    maps.backends.clear();
    let asked = translate(&mut maps, &arrival(tuple, TCP, place::FROM_POD, 1));
    assert_eq!(asked, Outcome::drop(Reason::NoBackend));
}
