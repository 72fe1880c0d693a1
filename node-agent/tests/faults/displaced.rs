//! The programs' own maps, which forget what was used least recently when they are full: what that comes to.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ebpf_shared::{
    Addr, Direction, Endpoint, Packet, ServiceKey, nat::NodeConfig, packet::protocol::TCP, packet::tcp,
    service::scope,
};
use node_agent::{
    desired::{ServedBackend, ServiceEntry},
    kernel::{Kernel, rules::Rule},
};

use crate::{
    support::{
        Sandbox,
        frames::{ETHERNET, answer, frame, more, packet, piece, syn, transport, udp},
        in_sandbox,
        policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults, rule},
    },
    world::LO,
};
use Direction::{Egress, Ingress};

/// Entries of the maps that forget.
const FEW: u32 = 64;
/// More than enough to displace all of them.
const MANY: u16 = 1_000;
/// Flows that come one after the other and are looked up once more.
const GROUP: u16 = 20;
const FRIEND: u32 = 300;

/// A pod, a friend, and the service's and the node's own address, of a family.
struct Ends {
    pod: IpAddr,
    friend: IpAddr,
    service: IpAddr,
}

fn both() -> [Ends; 2] {
    let of = |[pod, friend, service]: [&str; 3]| {
        let [pod, friend, service] = [pod, friend, service].map(|text| text.parse().unwrap());
        Ends { pod, friend, service }
    };
    [of(["10.1.0.5", "10.1.0.9", "192.0.2.1"]), of(["fd00:1::5", "fd00:1::9", "2001:db8::1"])]
}

/// A node with a pod at the loopback interface.
struct Node {
    kernel: Kernel,
    writer: Writer,
}

impl Node {
    fn new(sandbox: &Sandbox, small: &[&'static str]) -> Self {
        let sizes: Vec<_> = small.iter().map(|map| (*map, FEW)).collect();
        let mut kernel =
            Kernel::load_sized(&sandbox.bpffs(), &sandbox.cgroup, &sizes).expect("the programs load");
        for ends in both() {
            kernel.identities.upsert(&ends.friend.into(), FRIEND).unwrap();
        }
        let mut node = Self { kernel, writer: Writer::default() };
        node.enforce(1, 0, &[]);
        node
    }

    fn enforce(&mut self, class: u32, flags: u32, rules: &[Rule]) {
        self.writer.put(&mut self.kernel, class, &defaults(flags, 101, 102), rules);
        let [v4, v6] = both().map(|ends| Addr::from(ends.pod));
        let endpoint = Endpoint { identity: 299, class, v4, v6, ..Endpoint::default() };
        self.kernel.endpoints.upsert(LO, endpoint).unwrap();
    }

    /// Established flows are looked up again, whatever their processor remembers.
    fn look_again(&mut self) {
        self.kernel.identities.upsert(&"198.51.100.0/24".parse().unwrap(), 5).unwrap();
    }

    /// Has others come until the connection from a friend's port is forgotten. The kernel keeps what is used, so they use theirs.
    fn forget_connection(&mut self, ends: &Ends, port: u16) {
        let who = (Addr::from(ends.friend), port);
        let is_known = |node: &Self| {
            node.kernel.conntrack.keys().unwrap().iter().any(|key| (key.peer, key.peer_port) == who)
        };
        assert!(is_known(self));
        for group in 0..MANY {
            let begun = |place| syn((ends.friend, 10_000 + GROUP * group + place), (ends.pod, 80));
            assert!(
                (0..GROUP).all(|place| self.passes(Ingress, &begun(place))),
                "new ones find room, always"
            );
            self.look_again();
            for place in 0..GROUP {
                self.passes(Ingress, &more(&begun(place), tcp::ACK));
            }
            if !is_known(self) {
                return;
            }
        }
        panic!("it is never forgotten");
    }

    fn passes(&self, direction: Direction, packet: &Packet) -> bool {
        self.kernel.try_frame(direction, &frame(packet)).unwrap()
    }

    /// What `from_net` makes of a packet: to whom it goes on.
    fn translated(&self, packet: &Packet) -> IpAddr {
        let (_, left) = self.kernel.run_program("from_net", &frame(packet)).unwrap();
        let header = &left[ETHERNET..];
        if packet.src.is_v4() {
            <[u8; 4]>::try_from(&header[16..20]).unwrap().into()
        } else {
            <[u8; 16]>::try_from(&header[24..40]).unwrap().into()
        }
    }
}

#[test]
fn a_connection_that_is_forgotten_is_judged_as_a_new_one_in_the_middle() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox, &["CONNTRACK"]);
        let allowed = rule(true, Ingress, FRIEND, TCP, Some((80, 80)), 1);
        for (class, ends) in (10..).step_by(10).zip(both()) {
            let begun = |port| syn((ends.friend, port), (ends.pod, 80));
            let (old, new) = (begun(4_000), begun(4_001));
            // Ingress is allowed by the rule; the pod itself may begin nothing.
            node.enforce(class, DENY_INGRESS | DENY_EGRESS, std::slice::from_ref(&allowed));
            assert!(node.passes(Ingress, &old) && node.passes(Egress, &answer(&old, tcp::SYN | tcp::ACK)));
            node.forget_connection(&ends, 4_000);
            assert!(node.passes(Ingress, &new));
            node.look_again();
            assert!(node.passes(Egress, &answer(&new, tcp::ACK)), "what is remembered goes on");
            assert!(node.passes(Ingress, &more(&new, tcp::ACK)));
            assert!(!node.passes(Egress, &answer(&old, tcp::ACK)), "nobody knows that it is an answer");
            assert!(!node.passes(Ingress, &more(&old, tcp::ACK)), "nor who began");
            assert!(node.passes(Ingress, &old), "it may be opened anew");
            // With policy that allows both ways it goes on in the middle.
            node.enforce(class + 1, DENY_INGRESS, std::slice::from_ref(&allowed));
            let other = begun(4_002);
            assert!(node.passes(Ingress, &other));
            node.forget_connection(&ends, 4_002);
            node.look_again();
            assert!(node.passes(Ingress, &more(&other, tcp::ACK)));
        }
    });
}

#[test]
fn pieces_of_a_datagram_that_is_forgotten_are_dropped_and_no_others() {
    in_sandbox(|sandbox| {
        let node = Node::new(sandbox, &["FRAGMENTS"]);
        for ends in both() {
            let datagram = udp((ends.friend, 4_000), (ends.pod, 53));
            let head = [transport(&datagram), vec![0; 8]].concat();
            let first = |id| node.kernel.try_frame(Ingress, &piece(&datagram, id, 0, true, &head)).unwrap();
            let last =
                |id| node.kernel.try_frame(Ingress, &piece(&datagram, id, 2, false, &[0; 16])).unwrap();
            for id in 1..=MANY {
                assert!(first(id), "new ones find room, always");
            }
            assert!(last(MANY) && !last(1));
        }
    });
}

/// A service with these backends, which are all here, at the node's own address.
fn serve(kernel: &mut Kernel, at: IpAddr, backends: &[IpAddr], affinity_seconds: u32) {
    let served = ServedBackend { weight: 1, chosen: true, here: true };
    let backends = backends.iter().map(|backend| (SocketAddr::new(*backend, 8080), served)).collect();
    let entry = ServiceEntry { affinity_seconds, backends, ..ServiceEntry::default() };
    kernel.services.put(ServiceKey::new(at.into(), 80, TCP, scope::OUTSIDE), &entry).unwrap();
}

/// So many backends beside each other, and a client by its number.
fn backends(ends: &Ends, count: u8) -> Vec<IpAddr> {
    (0..count).map(|number| numbered(ends.pod, 100 + u16::from(number))).collect()
}

fn numbered(like: IpAddr, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match like {
        IpAddr::V4(like) => {
            let [a, b, ..] = like.octets();
            [a, b, high, low].into()
        }
        IpAddr::V6(like) => {
            let mut bytes = like.octets();
            (bytes[14], bytes[15]) = (high, low);
            bytes.into()
        }
    }
}

fn with_net(sandbox: &Sandbox, small: &[&'static str]) -> Node {
    let mut node = Node::new(sandbox, small);
    let [v4, v6] = both().map(|ends| Addr::from(ends.service));
    let config = NodeConfig { v4, v6, first_port: 61_000, last_port: 61_999, ..NodeConfig::default() };
    node.kernel.set_net(&["lo".to_owned()], config, None).unwrap();
    node
}

#[test]
fn a_translation_that_is_forgotten_is_chosen_anew() {
    in_sandbox(|sandbox| {
        let mut node = with_net(sandbox, &["NAT"]);
        for ends in both() {
            let begun = |port| syn((ends.friend, port), (ends.service, 80));
            let few = backends(&ends, 8);
            let all = backends(&ends, 16);
            let is_known = |node: &Node, port: u16| {
                node.kernel
                    .nat
                    .keys()
                    .unwrap()
                    .iter()
                    .any(|key| key.tuple.src == Addr::from(ends.friend) && key.tuple.src_port == port)
            };
            let mut seen = [0, 0];
            for port in 4_000..4_010 {
                serve(&mut node.kernel, ends.service, &few, 0);
                let first = node.translated(&begun(port));
                assert!(few.contains(&first));
                // Others are chosen for new flows; this one keeps its own.
                serve(&mut node.kernel, ends.service, &all, 0);
                assert_eq!(node.translated(&more(&begun(port), tcp::ACK)), first);
                let forgotten = (0..MANY).any(|group| {
                    for place in 0..GROUP {
                        let other = begun(10_000 + GROUP * group + place);
                        assert!(all.contains(&node.translated(&other)), "new ones find room, always");
                        node.translated(&more(&other, tcp::ACK));
                    }
                    !is_known(&node, port)
                });
                assert!(forgotten, "it is never forgotten");
                let then = node.translated(&more(&begun(port), tcp::ACK));
                assert!(all.contains(&then));
                seen[usize::from(then == first)] += 1;
            }
            assert!(seen[0] > 0, "the backends are others, so some get another one");
        }
    });
}

#[test]
fn a_client_that_is_forgotten_is_served_by_some_backend_and_stays_with_that() {
    in_sandbox(|sandbox| {
        let mut node = with_net(sandbox, &["AFFINITY"]);
        for ends in both() {
            let all = backends(&ends, 8);
            serve(&mut node.kernel, ends.service, &all, 3_600);
            let mut seen = BTreeSet::new();
            let ask =
                |client, port| node.translated(&packet(TCP, (client, port), (ends.service, 80), tcp::SYN));
            for round in 0..20 {
                let first = ask(ends.friend, 1_000 + round);
                assert!(all.contains(&first));
                for port in 0..10 {
                    assert_eq!(ask(ends.friend, 10_000 + 100 * round + port), first, "it stays");
                }
                seen.insert(first);
                for number in 1_000..1_000 + MANY {
                    // Twice: the kernel keeps what is used.
                    let other = numbered(ends.friend, number);
                    let to = ask(other, 5_000 + round);
                    assert!(
                        all.contains(&to) && ask(other, 6_000 + round) == to,
                        "new ones find room, always"
                    );
                }
            }
            assert!(seen.len() > 1, "it was forgotten at times: {seen:?}");
        }
    });
}

/// `RECENT` and `KNOWN` have a place for each of some flows, and the last one to come has it.
#[test]
fn flows_that_share_a_place_are_judged_and_translated_as_if_they_had_one_each() {
    in_sandbox(|sandbox| {
        let mut node = with_net(sandbox, &[]);
        const FLOWS: u16 = 5_000;
        let allowed = rule(true, Ingress, FRIEND, TCP, Some((80, 80)), 1);
        for (class, ends) in (10..).step_by(10).zip(both()) {
            node.enforce(class, DENY_INGRESS, std::slice::from_ref(&allowed));
            let flow = |to, number| syn((ends.friend, 10_000 + number), (to, 80));
            // A friend's, and each time somebody else's, who may not.
            let stranger = |number| syn((numbered(ends.friend, 7), 10_000 + number), (ends.pod, 80));
            for number in 0..FLOWS {
                assert!(node.passes(Ingress, &flow(ends.pod, number)));
                assert!(!node.passes(Ingress, &stranger(number)));
            }
            for number in 0..FLOWS {
                assert!(node.passes(Ingress, &more(&flow(ends.pod, number), tcp::ACK)));
                assert!(!node.passes(Ingress, &more(&stranger(number), tcp::ACK)));
            }
            serve(&mut node.kernel, ends.service, &backends(&ends, 8), 0);
            let to: Vec<_> = (0..FLOWS).map(|number| node.translated(&flow(ends.service, number))).collect();
            serve(&mut node.kernel, ends.service, &backends(&ends, 16), 0);
            for (number, to) in (0..FLOWS).zip(to) {
                assert_eq!(node.translated(&more(&flow(ends.service, number), tcp::ACK)), to);
            }
            node.enforce(class + 1, DENY_INGRESS, &[]);
            for number in 0..FLOWS {
                assert!(!node.passes(Ingress, &more(&flow(ends.pod, number), tcp::ACK)));
            }
        }
    });
}
