//! The loaded programs against the same lines without a kernel, and those against an oracle that knows
//! nothing of tries, prefixes or lookup order: generated policies and packets. The kernel's part needs root.

#[path = "fixtures/strange.rs"]
mod strange;
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_shared::packet::icmp::{self, ECHO, ECHO6};
use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Direction, Endpoint, Kind, Packet, Reason, identity};
use ipnet::IpNet;
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::{DefaultDeny, Defaults, Rule, compile};
use node_agent::kernel::ruleset::RuleSets;
use node_agent::kernel::verdict::Emulation;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use strange::{header, mutate};
use support::frames::{
    answer, echo, error_about, extended, frame, icmp_of, listener, on_link, packet, piece, query, transport,
};
use support::policy::{Writer, defaults};
use support::reference::{Look, Pieces, look, message as message_of};
use support::{cases, in_sandbox};

const LO: u32 = 1;
const POD: [IpAddr; 2] = [v4([10, 1, 0, 5]), v6([0xfd00, 1, 0, 0, 0, 0, 0, 5])];
const OUTSIDE: [u32; 3] = [identity::LOCAL | 1, identity::LOCAL | 2, identity::LOCAL | 3];
/// Addresses and the identity that each has. No map knows the fourth.
const PEERS: [(IpAddr, u32); 9] = [
    (v4([10, 1, 0, 9]), 300),
    (v4([10, 2, 0, 9]), 301),
    (v4([198, 51, 100, 7]), OUTSIDE[0]),
    (v4([192, 0, 2, 1]), identity::WORLD),
    (v4([10, 1, 0, 77]), identity::UNMANAGED),
    (v6([0xfd00, 1, 0, 0, 0, 0, 0, 9]), 300),
    (v6([0xfd00, 1, 0, 0, 0, 0, 0, 0x77]), identity::UNMANAGED),
    (v6([0x2001, 0xdb8, 5, 0, 0, 0, 0, 7]), OUTSIDE[1]),
    (v6([0x2001, 0xdb8, 6, 0, 0, 0, 0, 7]), OUTSIDE[2]),
];

const fn v4(octets: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_octets(octets))
}

const fn v6(segments: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_segments(segments))
}

/// What makes them so: CIDRs that nest, and one of IPv6 around all of IPv4's mapped form.
fn identities() -> Vec<(IpNet, u32)> {
    [
        ("10.1.0.9/32", 300),
        ("10.2.0.9/32", 301),
        ("10.1.0.0/16", identity::UNMANAGED),
        ("198.51.100.0/24", OUTSIDE[0]),
        ("fd00:1::9/128", 300),
        ("fd00:1::/64", identity::UNMANAGED),
        ("2001:db8:5::/48", OUTSIDE[1]),
        ("::/0", OUTSIDE[2]),
    ]
    .map(|(net, identity)| (net.parse().expect("a CIDR"), identity))
    .into()
}

fn pod_for(peer: IpAddr) -> IpAddr {
    POD[usize::from(peer.is_ipv6())]
}

/// Few, and at the edges of prefixes, so that rules overlap.
const PORTS: [u16; 8] = [1, 79, 80, 81, 1023, 1024, 8080, 65535];

/// Types of ICMP of either family: queries and their answers, errors, and others.
const TYPES: [u8; 13] = [8, 13, 42, 0, 14, 3, 11, 40, 128, 129, 160, 2, 144];

#[derive(Clone, Debug)]
struct Policy {
    defaults: Defaults,
    rules: Vec<Rule>,
}

fn policy(rng: &mut StdRng) -> Policy {
    let rules = (0..rng.random_range(0..8)).map(|number| rule(rng, number + 1)).collect();
    let mut deny = |name: u32| DefaultDeny {
        enforced: rng.random_bool(0.5).then_some(name),
        audited: rng.random_bool(0.1).then_some(name + 2),
    };
    Policy { defaults: Defaults { ingress: deny(101), egress: deny(102) }, rules }
}

/// The same but for one rule.
fn little_change(rng: &mut StdRng, policy: &Policy) -> Policy {
    let mut changed = policy.clone();
    let at = rng.random_range(0..=changed.rules.len());
    changed.rules.truncate(at.max(1));
    changed.rules.push(rule(rng, 50 + at as u32));
    changed
}

fn rule(rng: &mut StdRng, policy_id: u32) -> Rule {
    let mut port = || *PORTS.choose(rng).expect("not empty");
    let (a, b) = (port(), port());
    let kind = u16::from(*TYPES.choose(rng).expect("not empty")) << 8;
    let ports = [
        None,
        Some(a..=a),
        Some(a.min(b)..=a.max(b)),
        Some(0..=b),
        Some(ECHO..=ECHO | 0xff),
        Some(ECHO6..=ECHO6),
        Some(kind..=kind | 0xff),
    ];
    Rule {
        direction: direction(rng),
        allow: rng.random_bool(0.7),
        audit: rng.random_bool(0.1),
        redirect: None,
        identity: *[0, 0, 300, 301, OUTSIDE[0], OUTSIDE[1], OUTSIDE[2], identity::WORLD, identity::WORKLOADS]
            .choose(rng)
            .expect("not empty"),
        protocol: *[protocol::ANY, protocol::TCP, protocol::UDP, protocol::ICMP, protocol::ICMPV6]
            .choose(rng)
            .expect("not empty"),
        ports: ports.choose(rng).expect("not empty").clone(),
        policy_id,
    }
}

/// Some of what is allowed, is so only by a proxy, which is not there.
fn led(rng: &mut StdRng, mut policy: Policy) -> Policy {
    for rule in policy.rules.iter_mut().filter(|rule| rule.allow) {
        rule.redirect = rng.random_bool(0.3).then_some(7);
    }
    policy
}

fn direction(rng: &mut StdRng) -> Direction {
    if rng.random_bool(0.5) { Direction::Ingress } else { Direction::Egress }
}

/// A packet at the pod's door: an opening, the middle of a connection, an answer; now and then with a false
/// address.
fn traffic(rng: &mut StdRng, direction: Direction) -> Packet {
    let peer = PEERS.choose(rng).expect("not empty").0;
    let false_pods = [v4([10, 1, 0, 6]), v6([0xfd00, 1, 0, 0, 0, 0, 0, 6])];
    let false_pod = false_pods[usize::from(peer.is_ipv6())];
    let pod = if rng.random_bool(0.02) { false_pod } else { pod_for(peer) };
    let (src, dst) = match direction {
        Direction::Ingress => (peer, pod),
        Direction::Egress => (pod, peer),
    };
    let mut port = || *PORTS.choose(rng).expect("not empty");
    let (from, to) = (port(), port());
    let flags = [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::FIN | tcp::ACK, tcp::RST];
    let flags = *flags.choose(rng).expect("not empty");
    // Identifiers may be what types look like.
    let from =
        if rng.random_bool(0.3) { u16::from(*TYPES.choose(rng).expect("not empty")) << 8 } else { from };
    match rng.random_range(0..10) {
        0 => echo(src, dst, from),
        1 => answer(&echo(dst, src, from), 0),
        8 => message(rng, src, dst, from),
        9 => {
            let asked = if dst.is_ipv4() { [8, 13, 15, 17, 42] } else { [128, 139, 160, 128, 139] };
            answer(&query(dst, src, *asked.choose(rng).expect("not empty"), from), 0)
        }
        2 | 3 => packet(protocol::UDP, (src, from), (dst, to), 0),
        4 => packet(protocol::SCTP, (src, from), (dst, to), 0),
        _ => packet(protocol::TCP, (src, from), (dst, to), flags),
    }
}

/// A query of any type, or a message that is neither an answer nor an error.
fn message(rng: &mut StdRng, src: IpAddr, dst: IpAddr, from: u16) -> Packet {
    loop {
        let kind = *TYPES.choose(rng).expect("not empty");
        match icmp::role(dst.is_ipv4(), kind) {
            icmp::QUERY => return query(src, dst, kind, from),
            icmp::MESSAGE => return query(src, dst, kind, 0),
            _ => {}
        }
    }
}

/// What the words of the policy say of a new flow, one rule after the other.
fn oracle(policy: &Policy, direction: Direction, identity: u32, protocol: u8, port: u16) -> Reason {
    let has_ports = [protocol::TCP, protocol::UDP, protocol::SCTP].contains(&protocol);
    let default = match direction {
        Direction::Ingress => policy.defaults.ingress,
        Direction::Egress => policy.defaults.egress,
    };
    let say = |with_audited: bool| {
        let matching = |rule: &&Rule| {
            rule.direction == direction
                && (with_audited || !rule.audit)
                && (rule.identity == 0
                    || rule.identity == identity
                    || rule.identity == identity::WORKLOADS && [300, 301].contains(&identity))
                && match rule.protocol {
                    protocol::ANY => has_ports || rule.ports.is_none(),
                    named => named == protocol,
                }
                && rule.ports.as_ref().is_none_or(|ports| ports.contains(&port))
        };
        let denies = default.enforced.is_some() || (with_audited && default.audited.is_some());
        if policy.rules.iter().filter(matching).any(|rule| !rule.allow) {
            Reason::PolicyDenied
        } else if policy.rules.iter().filter(matching).any(|rule| rule.allow) || !denies {
            Reason::Forwarded
        } else {
            Reason::DefaultDeny
        }
    };
    match (say(false), say(true)) {
        (Reason::Forwarded, Reason::Forwarded) => Reason::Forwarded,
        (Reason::Forwarded, _) => Reason::Audited,
        (denied, _) => denied,
    }
}

/// What policy calls the port of a packet that belongs to no flow.
fn asked(packet: &Packet) -> u16 {
    if packet.kind == Kind::EchoReply { icmp::answer_to(packet.src_port) } else { packet.dst_port }
}

fn emulation(policy: &Policy, class: u32) -> Emulation {
    let mut emulation = Emulation::default();
    emulation.policy.identities.extend(identities());
    put(&mut emulation, class, policy);
    emulation.endpoints.insert(LO, endpoint(class));
    emulation
}

fn put(emulation: &mut Emulation, class: u32, policy: &Policy) {
    let mut sets = RuleSets::recover(&emulation.policy.rulesets);
    let entry = compile(&policy.defaults, &policy.rules, &mut sets);
    emulation.policy.put_class(class, &entry, &sets);
    emulation.policy.epoch += 1;
}

fn endpoint(class: u32) -> Endpoint {
    Endpoint { identity: 299, class, v4: POD[0].into(), v6: POD[1].into(), ..Endpoint::default() }
}

#[test]
fn the_maps_say_of_new_flows_what_the_policy_says() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..cases(3_000) {
        let policy = policy(&mut rng);
        let rules: BTreeMap<u32, &Rule> = policy.rules.iter().map(|rule| (rule.policy_id, rule)).collect();
        let mut node = emulation(&policy, 7);
        for direction in [Direction::Ingress, Direction::Egress] {
            for (peer, identity) in PEERS {
                for (protocol, port) in [protocol::TCP, protocol::UDP, protocol::SCTP]
                    .into_iter()
                    .flat_map(|protocol| PORTS.map(|port| (protocol, port)))
                    .chain(TYPES.map(|kind| (icmp_of(&peer.into()), u16::from(kind) << 8)))
                {
                    let (src, dst) = match direction {
                        Direction::Ingress => ((peer, 40000), (pod_for(peer), port)),
                        Direction::Egress => ((pod_for(peer), 40000), (peer, port)),
                    };
                    let opening = packet(protocol, src, dst, tcp::SYN);
                    node.connections.0.clear();
                    let ruling = node.decide(LO, direction, &opening, 0).ruling;
                    let expected = oracle(&policy, direction, identity, protocol, port);
                    assert_eq!(ruling.reason, expected, "{opening:?} under {policy:#?}");
                    // Whoever is named did decide.
                    if let Some(rule) = rules.get(&ruling.policy_id).filter(|_| expected != Reason::Audited) {
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
    for _ in 0..cases(300) {
        let mut current = policy(&mut rng);
        let mut node = emulation(&current, 7);
        for _ in 0..80 {
            if rng.random_bool(0.05) {
                current = policy(&mut rng);
                put(&mut node, 7, &current);
            }
            let way = direction(&mut rng);
            let packet = traffic(&mut rng, way);
            let decision = node.decide(LO, way, &packet, 0);
            if !decision.ruling.passes() {
                continue;
            }
            let peer: IpAddr = match way {
                Direction::Ingress => packet.src.into(),
                Direction::Egress => packet.dst.into(),
            };
            let identity = PEERS.iter().find(|(addr, _)| *addr == peer).expect("a peer").1;
            let own = oracle(&current, way, identity, packet.protocol, asked(&packet));
            let answered = oracle(&current, way.opposite(), identity, packet.protocol, packet.src_port);
            // What asks answers nothing, whatever its identifier.
            assert!(!(decision.is_reply && packet.is_message()), "{way:?} {packet:?}");
            let allowed = if decision.is_reply { answered } else { own };
            assert!(allowed.passes(), "{way:?} {packet:?} under {current:#?}");
        }
    }
}

#[test]
fn the_kernel_decides_as_the_emulation_does() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let mut events = kernel.events().expect("not taken yet");
        for (net, identity) in identities() {
            kernel.identities.upsert(&net, identity).expect("writable");
        }
        let kept: BTreeMap<_, _> = identities().into_iter().collect();
        assert_eq!(kernel.identities.dump().expect("readable"), kept);
        let mut rng = StdRng::seed_from_u64(3);
        let mut class = 0;
        let mut writer = Writer::default();
        let mut judged = BTreeMap::<Reason, u32>::new();
        let (mut edited, mut moved) = (0, 0);
        for _ in 0..cases(90) {
            kernel.forget_connections(LO).expect("removable");
            for (net, identity) in identities() {
                kernel.identities.upsert(&net, identity).expect("writable");
            }
            let drawn = policy(&mut rng);
            let mut current = led(&mut rng, drawn);
            let mut node = emulation(&current, class + 1);
            let mut change = Some(current.clone());
            for turn in 0..100 {
                if turn % 50 == 0 {
                    // Fewer than a burst: every one is told by itself.
                    kernel.flows.forget_kinds().expect("removable");
                }
                match rng.random_range(0..50) {
                    0 => {
                        let drawn = policy(&mut rng);
                        change = Some(led(&mut rng, drawn));
                    }
                    1 | 2 => change = Some(little_change(&mut rng, &current)),
                    // An address becomes somebody else's, or nobody's.
                    3 => {
                        let net = identities().choose(&mut rng).expect("not empty").0;
                        let other = *[300, 301, OUTSIDE[0]].choose(&mut rng).expect("not empty");
                        if rng.random_bool(0.5) {
                            kernel.identities.upsert(&net, other).expect("writable");
                            node.policy.identities.insert(net, other);
                        } else {
                            kernel.identities.delete(&net).expect("removable");
                            node.policy.identities.remove(&net);
                        }
                        node.policy.epoch += 1;
                    }
                    4 => {
                        let flags = node.endpoints[&LO].flags ^ Endpoint::AUDIT;
                        let changed = Endpoint { flags, ..node.endpoints[&LO] };
                        kernel.endpoints.upsert(LO, changed).expect("writable");
                        node.endpoints.insert(LO, changed);
                    }
                    _ => {}
                }
                if let Some(policy) = change.take() {
                    let before = class;
                    if !writer.fits(class, &policy.defaults, &policy.rules) {
                        class += 1;
                    }
                    writer.put(&mut kernel, class, &policy.defaults, &policy.rules);
                    put(&mut node, class, &policy);
                    if class == before {
                        edited += 1;
                    }
                    if node.endpoints[&LO].class != class || class != before {
                        moved += 1;
                        let changed = Endpoint { class, ..node.endpoints[&LO] };
                        kernel.endpoints.upsert(LO, changed).expect("writable");
                        node.endpoints.insert(LO, changed);
                        if class != before {
                            writer.remove(&mut kernel, before);
                        }
                    }
                    current = policy;
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
        println!("{judged:?}, {edited} policies edited in place, {moved} times another class");
        assert!(edited > 30 && moved > 30);
        // The generator reaches every ruling it is meant to.
        let reached = [
            Reason::Forwarded,
            Reason::DefaultDeny,
            Reason::PolicyDenied,
            Reason::SpoofedSource,
            Reason::Audited,
            Reason::ProxyGone,
        ];
        for reason in reached {
            assert!(judged.get(&reason).is_some_and(|count| *count > 50), "{judged:?}");
        }
    });
}

/// A frame that is well-formed, of every kind that the parser knows.
fn honest(rng: &mut StdRng, way: Direction) -> Vec<u8> {
    let packet = traffic(rng, way);
    let kinds = if packet.src.is_v4() { [3, 11, 12, 5] } else { [1, 2, 3, 137] };
    let kind = *kinds.choose(rng).expect("not empty");
    match rng.random_range(0..10) {
        0 | 1 => frame(&packet),
        // About what went the other way.
        2 => error_about(IpAddr::from(packet.src), &answer(&packet, tcp::ACK), kind),
        3 => {
            let head = [transport(&packet), vec![0; 8 * rng.random_range(0..3)]].concat();
            let head = &head[..head.len() - head.len() % 8];
            piece(&packet, rng.random_range(0..4), 0, true, head)
        }
        4 => {
            let length = 8 * rng.random_range(0..3) + usize::from(rng.random_bool(0.1));
            let (offset, more) = (rng.random_range(0..6), rng.random_bool(0.5));
            piece(&packet, rng.random_range(0..4), offset, more, &vec![0; length])
        }
        _ if packet.src.is_v4() => frame(&packet),
        5 => {
            let to = ["ff02::1", "ff02::16", "fe80::2", "fd00:1::5"].choose(rng).expect("not empty");
            let from = ["fe80::1", "::", "fd00:1::5", "fd00:1::9"].choose(rng).expect("not empty");
            if rng.random_bool(0.5) {
                on_link(from, to, rng.random_range(128..140), 255)
            } else {
                listener(from, to, *[130, 131, 132, 143, 128].choose(rng).expect("not empty"))
            }
        }
        _ => {
            let headers: Vec<_> = (0..rng.random_range(1..8)).map(|place| header(rng, place)).collect();
            extended(&packet, &headers)
        }
    }
}

#[test]
fn frames_that_no_honest_host_sends_are_read_as_the_reference_reads_them() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let mut events = kernel.events().expect("not taken yet");
        for (net, identity) in identities() {
            kernel.identities.upsert(&net, identity).expect("writable");
        }
        let mut rng = StdRng::seed_from_u64(4);
        // Some pass and some don't: what is read wrongly is also judged wrongly.
        let rules = vec![
            Rule {
                direction: Direction::Ingress,
                allow: true,
                audit: false,
                redirect: None,
                identity: 0,
                protocol: protocol::ANY,
                ports: Some(0..=1023),
                policy_id: 1,
            },
            Rule {
                direction: Direction::Egress,
                allow: true,
                audit: false,
                redirect: None,
                identity: 300,
                protocol: protocol::ANY,
                ports: None,
                policy_id: 2,
            },
            Rule {
                direction: Direction::Ingress,
                allow: true,
                audit: false,
                redirect: None,
                identity: 301,
                protocol: protocol::ICMP,
                ports: Some(3 << 8..=3 << 8 | 0xff),
                policy_id: 3,
            },
        ];
        let policy = Policy { defaults: defaults(3, 101, 102), rules };
        let mut node = emulation(&policy, 7);
        Writer::default().put(&mut kernel, 7, &policy.defaults, &policy.rules);
        kernel.endpoints.upsert(LO, endpoint(7)).expect("writable");
        let mut pieces = Pieces::new();
        let mut met = BTreeMap::<String, u32>::new();
        for turn in 0..cases(20_000) {
            if turn % 50 == 0 {
                kernel.flows.forget_kinds().expect("removable");
            }
            let way = direction(&mut rng);
            let mut frame = honest(&mut rng, way);
            mutate(&mut rng, &mut frame);
            let passed = kernel.try_frame(way, &frame).expect("a test run");
            let told = events.try_next().map(|event| (event.reason, event.policy_id, event.is_reply != 0));
            let look = look(&frame, way, &endpoint(7), &mut pieces);
            let expected = match look {
                Look::Link => (true, None),
                Look::Refused(reason) => (false, Some((reason as u8, 0, false))),
                Look::Packet(packet) => {
                    let decision = match message_of(&frame, &packet, way) {
                        Some(message) => node.decide_message(LO, way, &packet, &message, 0),
                        None => node.decide(LO, way, &packet, 0),
                    };
                    let tells = (decision.ruling.reason as u8, decision.ruling.policy_id, decision.is_reply);
                    (decision.ruling.passes(), decision.is_news.then_some(tells))
                }
            };
            assert_eq!((passed, told), expected, "{way:?} {look:?} {frame:02x?}");
            let reason = told.and_then(|(reason, ..)| Reason::from_number(reason));
            *met.entry(reason.map_or("nothing told", Reason::name).to_owned()).or_default() += 1;
        }
        println!("{met:?}");
        for reason in [
            Reason::Forwarded,
            Reason::DefaultDeny,
            Reason::SpoofedSource,
            Reason::Fragment,
            Reason::Malformed,
            Reason::UnsupportedProtocol,
            Reason::ExtensionHeader,
            Reason::UnsupportedIcmp,
            Reason::UnrelatedIcmp,
        ] {
            assert!(met.get(reason.name()).is_some_and(|count| *count > 50), "{reason:?}: {met:?}");
        }
    });
}
