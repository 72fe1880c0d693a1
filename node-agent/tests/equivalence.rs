//! The loaded programs against the same lines without a kernel, and those against an oracle that knows
//! nothing of tries, prefixes or lookup order: generated policies and packets. The kernel's part needs root.

mod support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Class, Direction, Endpoint, Packet, Reason};
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::{Rule, compile};
use node_agent::kernel::verdict::Emulation;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use support::frames::{answer, echo, frame, packet};
use support::in_sandbox;

const LO: u32 = 1;
const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
/// Addresses and the identity that each has; the last is unknown to the ipcache.
const PEERS: [(Ipv4Addr, u32); 4] = [
    (Ipv4Addr::new(10, 1, 0, 9), 300),
    (Ipv4Addr::new(10, 2, 0, 9), 301),
    (Ipv4Addr::new(198, 51, 100, 7), ebpf_shared::identity::LOCAL | 1),
    (Ipv4Addr::new(192, 0, 2, 1), ebpf_shared::identity::WORLD),
];
/// Few, and at the edges of prefixes, so that rules overlap.
const PORTS: [u16; 8] = [1, 79, 80, 81, 1023, 1024, 8080, 65535];

#[derive(Clone, Debug)]
struct Policy {
    class: Class,
    rules: Vec<Rule>,
}

fn policy(rng: &mut StdRng) -> Policy {
    let rules = (0..rng.random_range(0..8)).map(|number| rule(rng, number + 1)).collect();
    let class = Class { flags: rng.random_range(0..4), ingress_policy: 101, egress_policy: 102 };
    Policy { class, rules }
}

fn rule(rng: &mut StdRng, policy_id: u32) -> Rule {
    let mut port = || *PORTS.choose(rng).expect("not empty");
    let (a, b) = (port(), port());
    let ports = [None, Some(a..=a), Some(a.min(b)..=a.max(b)), Some(0..=b)];
    Rule {
        direction: direction(rng),
        allow: rng.random_bool(0.7),
        identity: *[0, 300, 301, PEERS[2].1, PEERS[3].1].choose(rng).expect("not empty"),
        protocol: *[protocol::ANY, protocol::TCP, protocol::UDP, protocol::ICMP]
            .choose(rng)
            .expect("not empty"),
        ports: ports.choose(rng).expect("not empty").clone(),
        policy_id,
    }
}

fn direction(rng: &mut StdRng) -> Direction {
    if rng.random_bool(0.5) { Direction::Ingress } else { Direction::Egress }
}

/// A packet at the pod's door: an opening, the middle of a connection, an answer; now and then with a false
/// address.
fn traffic(rng: &mut StdRng, direction: Direction) -> Packet {
    let peer = PEERS.choose(rng).expect("not empty").0;
    let pod = if rng.random_bool(0.02) { Ipv4Addr::new(10, 1, 0, 6) } else { POD };
    let (src, dst) = match direction {
        Direction::Ingress => (peer, pod),
        Direction::Egress => (pod, peer),
    };
    let mut port = || *PORTS.choose(rng).expect("not empty");
    let (from, to) = (port(), port());
    let flags = [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST];
    let flags = *flags.choose(rng).expect("not empty");
    match rng.random_range(0..8) {
        0 => echo(src, dst, from),
        1 => answer(&echo(dst, src, from), 0),
        2 | 3 => packet(protocol::UDP, (src, from), (dst, to), 0),
        4 => packet(protocol::SCTP, (src, from), (dst, to), 0),
        _ => packet(protocol::TCP, (src, from), (dst, to), flags),
    }
}

/// What the words of the policy say of a new flow, one rule after the other.
fn oracle(policy: &Policy, direction: Direction, identity: u32, protocol: u8, port: u16) -> Reason {
    let matching = |rule: &&Rule| {
        rule.direction == direction
            && (rule.identity == 0 || rule.identity == identity)
            && (rule.protocol == protocol::ANY || rule.protocol == protocol)
            && rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    };
    let deny = match direction {
        Direction::Ingress => Class::DENY_INGRESS,
        Direction::Egress => Class::DENY_EGRESS,
    };
    if policy.rules.iter().filter(matching).any(|rule| !rule.allow) {
        Reason::PolicyDenied
    } else if policy.rules.iter().filter(matching).any(|rule| rule.allow) || policy.class.flags & deny == 0 {
        Reason::Forwarded
    } else {
        Reason::DefaultDeny
    }
}

fn emulation(policy: &Policy, class: u32) -> Emulation {
    let mut emulation = Emulation::default();
    for (addr, identity) in &PEERS[..3] {
        emulation.policy.ipcache.insert((*addr).into(), *identity);
    }
    emulation.policy.put_class(class, &compile(policy.class, &policy.rules));
    emulation.endpoints.insert(LO, endpoint(class));
    emulation
}

fn endpoint(class: u32) -> Endpoint {
    Endpoint { identity: 299, class, addr: POD.into(), flags: 0 }
}

#[test]
fn the_maps_say_of_new_flows_what_the_policy_says() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..400 {
        let policy = policy(&mut rng);
        let rules: BTreeMap<u32, &Rule> = policy.rules.iter().map(|rule| (rule.policy_id, rule)).collect();
        let node = emulation(&policy, 7);
        for direction in [Direction::Ingress, Direction::Egress] {
            for (peer, identity) in PEERS {
                for (protocol, port) in [protocol::TCP, protocol::UDP, protocol::SCTP]
                    .into_iter()
                    .flat_map(|protocol| PORTS.map(|port| (protocol, port)))
                    .chain([(protocol::ICMP, 0)])
                {
                    let (src, dst) = match direction {
                        Direction::Ingress => ((peer, 40000), (POD, port)),
                        Direction::Egress => ((POD, 40000), (peer, port)),
                    };
                    let opening = packet(protocol, src, dst, tcp::SYN);
                    let ruling = node.clone().decide(LO, direction, &opening, 0).ruling;
                    let expected = oracle(&policy, direction, identity, protocol, port);
                    assert_eq!(ruling.reason, expected, "{opening:?} under {policy:#?}");
                    // Whoever is named did decide.
                    if let Some(rule) = rules.get(&ruling.policy_id) {
                        assert_eq!(
                            rule.allow,
                            ruling.passes(),
                            "{ruling:?} of {opening:?} under {policy:#?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_connection_outlives_neither_its_permission_nor_its_end() {
    // The slow, obvious statement of what conntrack is for: at any moment, a packet that passes is one that
    // policy allows as a new flow in its own direction, or answers a flow of the other side that policy
    // allows *now*.
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..300 {
        let mut current = policy(&mut rng);
        let mut node = emulation(&current, 7);
        for _ in 0..80 {
            if rng.random_bool(0.05) {
                current = policy(&mut rng);
                node.policy.put_class(7, &compile(current.class, &current.rules));
                node.generation += 1;
            }
            let way = direction(&mut rng);
            let packet = traffic(&mut rng, way);
            let decision = node.decide(LO, way, &packet, 0);
            if !decision.ruling.passes() {
                continue;
            }
            let peer: Ipv4Addr = match way {
                Direction::Ingress => packet.src.into(),
                Direction::Egress => packet.dst.into(),
            };
            let identity = PEERS.iter().find(|(addr, _)| *addr == peer).expect("a peer").1;
            let port = |port| if packet.protocol == protocol::ICMP { 0 } else { port };
            let own = oracle(&current, way, identity, packet.protocol, port(packet.dst_port));
            let answered = oracle(&current, way.opposite(), identity, packet.protocol, port(packet.src_port));
            let allowed = if decision.is_reply { answered } else { own };
            assert_eq!(allowed, Reason::Forwarded, "{way:?} {packet:?} under {current:#?}");
        }
    }
}

#[test]
fn the_kernel_decides_as_the_emulation_does() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let mut events = kernel.events().expect("not taken yet");
        for (addr, identity) in &PEERS[..3] {
            kernel.ipcache.upsert(&(*addr).into(), *identity).expect("writable");
        }
        let mut rng = StdRng::seed_from_u64(3);
        let mut class = 0;
        let mut judged = BTreeMap::<Reason, u32>::new();
        for _ in 0..60 {
            kernel.forget_connections(LO).expect("removable");
            let first = policy(&mut rng);
            let mut node = emulation(&first, class + 1);
            let mut change = Some(first);
            for _ in 0..100 {
                if rng.random_bool(0.04) {
                    change = Some(policy(&mut rng));
                }
                if let Some(policy) = change.take() {
                    class += 1;
                    let compiled = compile(policy.class, &policy.rules);
                    kernel.put_class(class, &compiled).expect("writable");
                    kernel.endpoints.upsert(LO, endpoint(class)).expect("writable");
                    kernel.remove_class(class - 1).expect("removable");
                    node.policy.put_class(class, &compiled);
                    node.endpoints.insert(LO, endpoint(class));
                    node.generation += 1;
                }
                let way = direction(&mut rng);
                let packet = traffic(&mut rng, way);
                let passed = kernel.try_frame(way, &frame(&packet)).expect("a test run");
                let event = events.try_next();
                let decision = node.decide(LO, way, &packet, 0);
                assert_eq!(passed, decision.ruling.passes(), "{way:?} {packet:?}: {event:?}, {decision:?}");
                let told = event.map(|event| (event.reason, event.policy_id, event.is_reply != 0));
                let tells = (decision.ruling.reason as u8, decision.ruling.policy_id, decision.is_reply);
                assert_eq!(told, decision.is_news.then_some(tells), "{way:?} {packet:?}");
                *judged.entry(decision.ruling.reason).or_default() += 1;
            }
        }
        println!("{judged:?}");
        // The generator reaches every ruling it is meant to.
        for reason in [Reason::Forwarded, Reason::DefaultDeny, Reason::PolicyDenied, Reason::SpoofedSource] {
            assert!(judged.get(&reason).is_some_and(|count| *count > 50), "{judged:?}");
        }
    });
}
