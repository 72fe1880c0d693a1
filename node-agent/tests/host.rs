//! Policy for the node itself: the loaded programs against the same lines without a kernel, and real packets of clients
//! outside, of pods of the node, and of the node. All of it in network namespaces made for the test. Needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ebpf_shared::host::{FOREIGN, INTERFACE};
use ebpf_shared::identity::{HOST, REMOTE_NODE, WORLD};
use ebpf_shared::nat::NodeConfig;
use ebpf_shared::overlay::{Hop, PORT};
use ebpf_shared::packet::protocol::{ANY, ICMP, ICMPV6, TCP, UDP};
use ebpf_shared::packet::tcp;
use ebpf_shared::{Addr, ConnEntry, ConnKey, Direction, Endpoint, Packet, Reason};
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::{Defaults, Rule};
use node_agent::kernel::verdict::Emulation;
use support::frames::{answer, echo, frame, packet, syn, udp};
use support::pods::{BOTH, Family, Netns, Pod, forward};
use support::policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults, rule};
use support::{Sandbox, in_sandbox, run};

use Direction::{Egress, Ingress};

/// The node's, another node's, a client's outside, a workload's.
struct Addresses {
    node: IpAddr,
    second: IpAddr,
    other: IpAddr,
    client: IpAddr,
    workload: IpAddr,
}

fn of(family: Family) -> Addresses {
    let [node, second, other, client, workload] = match family {
        Family::V4 => ["192.0.2.1", "192.0.2.11", "192.0.2.2", "192.0.2.9", "10.1.7.7"],
        Family::V6 => ["2001:db8:1::1", "2001:db8:1::11", "2001:db8:1::2", "2001:db8:1::9", "fd00:7::7"],
    }
    .map(|text| text.parse().expect("an address"));
    Addresses { node, second, other, client, workload }
}

const WORKLOAD: u32 = 300;

/// A node of which everything is known, and what the same lines say of it.
struct Twin {
    kernel: Kernel,
    writer: Writer,
    emulation: Emulation,
    now: u64,
}

impl Twin {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let mut emulation = Emulation::default();
        let mut locals = BTreeSet::new();
        for family in BOTH {
            let Addresses { node, second, other, workload, .. } = of(family);
            locals.extend([node, second]);
            for (address, identity) in [(other, REMOTE_NODE), (workload, WORKLOAD)] {
                kernel.identities.upsert(&address.into(), identity).expect("writable");
                emulation.policy.identities.insert(address.into(), identity);
            }
        }
        kernel.set_locals(&locals).expect("writable");
        Self { kernel, writer: Writer::default(), emulation, now: 1 }
    }

    fn select(&mut self, class: u32, flags: u32, rules: &[Rule], audit: bool) {
        let entry = self.writer.put(&mut self.kernel, class, &defaults(flags, 101, 102), rules);
        let entry = entry.clone();
        self.emulation.policy.put_class(class, &entry, &self.writer.sets);
        self.emulation.policy.epoch += 1;
        let [v4, v6] = BOTH.map(|family| Addr::from(of(family).node));
        let flags = if audit { Endpoint::AUDIT } else { 0 };
        let endpoint = Endpoint { identity: HOST, class, flags, v4, v6, ..Endpoint::default() };
        self.emulation.endpoints.insert(INTERFACE, endpoint);
        self.kernel.put_endpoint(INTERFACE, endpoint).expect("writable");
    }

    /// What the kernel does, which has to be what the same lines say.
    fn passes(&mut self, direction: Direction, packet: &Packet) -> bool {
        self.now += 1;
        let expected = self.emulation.decide(INTERFACE, direction, packet, self.now).ruling.passes();
        let found = self.kernel.try_host_frame(direction, &frame(packet)).expect("runs");
        assert_eq!(found, expected, "{direction:?} {packet:?}");
        found
    }

    fn kernel_passes(&self, direction: Direction, packet: &Packet) -> bool {
        self.kernel.try_host_frame(direction, &frame(packet)).expect("runs")
    }
}

fn icmp(family: Family) -> u8 {
    match family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    }
}

#[test]
fn the_node_is_judged_by_who_asks_and_everything_else_is_not() {
    in_sandbox(|sandbox| {
        let mut twin = Twin::new(sandbox);
        for family in BOTH {
            let Addresses { node, client, .. } = of(family);
            assert!(twin.kernel_passes(Ingress, &syn((client, 1), (node, 22))), "no policy selects it");
        }
        let rules = [
            rule(true, Ingress, REMOTE_NODE, TCP, Some((22, 22)), 11),
            rule(true, Ingress, WORKLOAD, ANY, None, 12),
            rule(true, Ingress, WORLD, UDP, Some((500, 510)), 13),
            rule(true, Ingress, WORLD, ICMP, None, 14),
            rule(true, Ingress, WORLD, ICMPV6, None, 15),
            rule(false, Ingress, WORKLOAD, TCP, Some((10_250, 10_250)), 16),
        ];
        twin.select(1, DENY_INGRESS, &rules, false);
        for family in BOTH {
            let Addresses { node, second, other, client, workload } = of(family);
            for (from, port, expected) in [
                (other, 22, true),
                (other, 23, false),
                (workload, 23, true),
                (workload, 10_250, false),
                (client, 22, false),
            ] {
                let asks = syn((from, 4_000), (node, port));
                assert_eq!(twin.passes(Ingress, &asks), expected, "{asks:?}");
                if expected {
                    assert!(twin.passes(Egress, &answer(&asks, tcp::SYN | tcp::ACK)));
                }
            }
            assert!(twin.passes(Ingress, &udp((client, 4_000), (node, 505))));
            assert!(!twin.passes(Ingress, &udp((client, 4_000), (node, 511))));
            assert!(twin.passes(Ingress, &echo(client, node, 7)));
            assert!(!twin.passes(Ingress, &echo(other, node, 7)), "{:?}", icmp(family));
            // The node asks, and is answered.
            let asks = udp((node, 4_000), (client, 53));
            assert!(twin.passes(Egress, &asks) && twin.passes(Ingress, &answer(&asks, 0)));
            // Another address of the node's is another connection.
            assert!(!twin.kernel_passes(Ingress, &answer(&udp((second, 4_000), (client, 53)), 0)));
            // What is not the node's is nobody's here.
            assert!(twin.kernel_passes(Ingress, &syn((client, 1), (workload, 22))));
            assert!(twin.kernel_passes(Egress, &syn((workload, 1), (client, 22))));
        }
        twin.select(
            2,
            DENY_INGRESS | DENY_EGRESS,
            &[rule(true, Egress, WORLD, TCP, Some((443, 443)), 21)],
            false,
        );
        for family in BOTH {
            let Addresses { node, client, .. } = of(family);
            assert!(!twin.passes(Ingress, &echo(client, node, 8)));
        }
        twin.select(3, DENY_INGRESS, &[], true);
        for family in BOTH {
            let Addresses { node, client, .. } = of(family);
            assert!(twin.passes(Ingress, &syn((client, 1), (node, 22))), "only told of");
        }
        assert!(
            twin.kernel.metrics().expect("readable").iter().any(|(_, reason, _)| *reason == Reason::Audited)
        );
        twin.kernel.remove_endpoint(INTERFACE).expect("removable");
        for family in BOTH {
            let Addresses { node, client, .. } = of(family);
            assert!(twin.kernel_passes(Ingress, &syn((client, 2), (node, 22))));
        }
    });
}

#[test]
fn nodes_and_the_control_plane_stay_within_reach_whatever_policy_says() {
    in_sandbox(|sandbox| {
        let mut twin = Twin::new(sandbox);
        twin.select(1, DENY_INGRESS | DENY_EGRESS, &[], false);
        let mut hops = BTreeMap::new();
        let mut control = BTreeSet::new();
        for family in BOTH {
            let Addresses { node, other, client, .. } = of(family);
            let outer = udp((other, 40_000), (node, PORT));
            assert!(!twin.kernel_passes(Ingress, &outer), "there is no tunnel");
            for at in [node, other] {
                let [v4, v6] = BOTH.map(|family| {
                    let of = of(family);
                    Addr::from(if at == node { of.node } else { of.other })
                });
                hops.insert(at.into(), Hop { v4, v6, ..Hop::default() });
            }
            control.extend([SocketAddr::new(other, 9443), SocketAddr::new(node, 9444)]);
            assert!(!twin.kernel_passes(Ingress, &syn((client, 1), (node, 9444))));
        }
        twin.kernel.nodes.set(&hops).expect("writable");
        twin.kernel.set_control(&control).expect("writable");
        for family in BOTH {
            let Addresses { node, other, client, .. } = of(family);
            assert!(twin.kernel_passes(Ingress, &udp((other, 40_000), (node, PORT))));
            assert!(!twin.kernel_passes(Ingress, &udp((client, 40_000), (node, PORT))), "who is no node");
            // To this node's replica, and to another's.
            assert!(twin.kernel_passes(Ingress, &syn((client, 1), (node, 9444))));
            assert!(twin.kernel_passes(Egress, &packet(TCP, (node, 9444), (client, 1), tcp::SYN | tcp::ACK)));
            assert!(twin.kernel_passes(Egress, &syn((node, 1), (other, 9443))));
            assert!(twin.kernel_passes(Ingress, &packet(TCP, (other, 9443), (node, 1), tcp::ACK)));
            // Nobody asks from there.
            assert!(!twin.kernel_passes(Ingress, &syn((other, 9443), (node, 22))));
        }
    });
}

/// A node with a pod and a client outside.
struct Scene {
    kernel: Kernel,
    writer: Writer,
    pod: Pod,
    client: Netns,
}

const BEFORE: Duration = Duration::from_secs(5);
/// What is dropped is waited for so long.
const AFTER: Duration = Duration::from_millis(700);

impl Scene {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        forward();
        let pod = Pod::new(&mut kernel, 5);
        let mut writer = Writer::default();
        writer.put(&mut kernel, 1, &Defaults::default(), &[]);
        kernel.endpoints.upsert(pod.ifindex, pod.endpoint(WORKLOAD, 1)).expect("writable");
        for family in BOTH {
            kernel.identities.upsert(&pod.addr(family).into(), WORKLOAD).expect("writable");
        }
        let client = Netns::new();
        run(&["ip", "link", "add", "net", "type", "veth", "peer", "name", "client"]);
        client.take("client");
        address("net", Family::V4, of(Family::V4).node);
        address("net", Family::V6, of(Family::V6).node);
        client.run(|| {
            address("client", Family::V4, of(Family::V4).client);
            address("client", Family::V6, of(Family::V6).client);
        });
        kernel.set_net(&["net".to_owned()], NodeConfig::default(), None).expect("attachable");
        kernel.set_locals(&BOTH.map(|family| of(family).node).into()).expect("writable");
        Self { kernel, writer, pod, client }
    }

    fn select(&mut self, class: u32, flags: u32, rules: &[Rule]) {
        self.writer.put(&mut self.kernel, class, &defaults(flags, 101, 102), rules);
        let [v4, v6] = BOTH.map(|family| Addr::from(of(family).node));
        let endpoint = Endpoint { identity: HOST, class, v4, v6, ..Endpoint::default() };
        self.kernel.put_endpoint(INTERFACE, endpoint).expect("writable");
    }
}

fn address(ifname: &str, family: Family, addr: IpAddr) {
    match family {
        Family::V4 => run(&["ip", "addr", "add", &format!("{addr}/24"), "dev", ifname]),
        Family::V6 => run(&["ip", "addr", "add", &format!("{addr}/64"), "dev", ifname, "nodad"]),
    }
    run(&["ip", "link", "set", ifname, "up"]);
}

/// Sends back what it gets.
fn serve(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

fn connect(at: SocketAddr, patience: Duration) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&at, patience)
}

fn says(mut stream: &TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).expect("a time");
    stream.write_all(b"x").is_ok() && stream.read(&mut [0; 1]).is_ok_and(|length| length == 1)
}

fn is_silent(result: std::io::Result<TcpStream>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::TimedOut)
}

/// Whether a datagram is answered.
fn asks(from: IpAddr, at: SocketAddr, patience: Duration) -> bool {
    let socket = UdpSocket::bind((from, 0)).expect("a port");
    socket.set_read_timeout(Some(patience)).expect("a time");
    socket.send_to(b"x", at).expect("sent");
    socket.recv_from(&mut [0; 4]).is_ok()
}

fn echo_datagrams(socket: UdpSocket) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
}

#[test]
fn real_packets_of_the_node_meet_its_policy_and_those_that_it_forwards_do_not() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        run(&[
            "nft",
            "add table inet m; add chain inet m out { type nat hook postrouting priority srcnat; }; \
              add rule inet m out oifname net ip saddr 10.1.0.0/16 masquerade; \
              add rule inet m out oifname net ip6 saddr fd00:1::/64 masquerade",
        ]);
        let mut kept = Vec::new();
        for family in BOTH {
            let Addresses { node, client, .. } = of(family);
            for port in [22, 80, 9443] {
                serve(TcpListener::bind((node, port)).expect("free"));
            }
            echo_datagrams(UdpSocket::bind((node, 80)).expect("free"));
            let (listener, socket) = scene.client.run(move || {
                (
                    TcpListener::bind((client, 443)).expect("free"),
                    UdpSocket::bind((client, 53)).expect("free"),
                )
            });
            serve(listener);
            echo_datagrams(socket);
            let pods = scene.pod.at(family, 8080);
            serve(scene.pod.run(move || TcpListener::bind(pods).expect("free")));
            let [forbidden, allowed] = [22, 80].map(|port| {
                let at = SocketAddr::new(node, port);
                scene.client.run(move || connect(at, BEFORE)).expect("no policy")
            });
            let opened = connect((client, 443).into(), BEFORE).expect("no policy");
            let pods = scene.pod.run(move || connect((client, 443).into(), BEFORE)).expect("masqueraded");
            for stream in [&forbidden, &allowed, &opened, &pods] {
                assert!(says(stream, BEFORE));
            }
            kept.push((forbidden, allowed, opened, pods));
        }
        scene
            .kernel
            .set_control(&BOTH.map(|family| SocketAddr::new(of(family).node, 9443)).into())
            .expect("ok");
        let rules = [
            rule(true, Ingress, WORLD, TCP, Some((80, 80)), 11),
            rule(true, Ingress, WORKLOAD, TCP, Some((22, 22)), 12),
        ];
        scene.select(2, DENY_INGRESS, &rules);
        for (family, (forbidden, allowed, opened, pods)) in BOTH.into_iter().zip(&kept) {
            let Addresses { node, client, .. } = of(family);
            let at = move |port| SocketAddr::new(node, port);
            // Connections from before, by who opened them.
            assert!(says(pods, BEFORE), "{family:?}: the pod's is not the node's");
            assert!(says(opened, BEFORE), "{family:?}: the node may ask anybody");
            assert!(says(allowed, BEFORE));
            assert!(!says(forbidden, AFTER), "{family:?}: nobody may ask for that");
            // New ones.
            assert!(is_silent(scene.client.run(move || connect(at(22), AFTER))));
            assert!(says(&scene.client.run(move || connect(at(80), BEFORE)).expect("allowed"), BEFORE));
            assert!(!scene.client.run(move || asks(client, at(80), AFTER)), "TCP only");
            assert!(says(&scene.client.run(move || connect(at(9443), BEFORE)).expect("spared"), BEFORE));
            assert!(says(&connect((client, 443).into(), BEFORE).expect("allowed"), BEFORE));
            assert!(asks(node, (client, 53).into(), BEFORE), "and is answered");
            // A pod of the node, and the node to it.
            assert!(says(&scene.pod.run(move || connect(at(22), BEFORE)).expect("allowed"), BEFORE));
            assert!(is_silent(scene.pod.run(move || connect(at(80), AFTER))));
            assert!(says(&connect(scene.pod.at(family, 8080), BEFORE).expect("allowed"), BEFORE));
            // A pod to outside, under the node's address.
            assert!(says(
                &scene.pod.run(move || connect((client, 443).into(), BEFORE)).expect("its own"),
                BEFORE
            ));
        }
        scene.select(3, DENY_INGRESS | DENY_EGRESS, &[rule(true, Egress, WORLD, UDP, Some((53, 53)), 21)]);
        for (family, (_, allowed, opened, pods)) in BOTH.into_iter().zip(&kept) {
            let Addresses { node, client, .. } = of(family);
            assert!(!says(allowed, AFTER) && !says(opened, AFTER), "{family:?}: cut");
            assert!(says(pods, BEFORE));
            assert!(is_silent(connect((client, 443).into(), AFTER)));
            assert!(asks(node, (client, 53).into(), BEFORE));
            assert!(is_silent(connect(scene.pod.at(family, 8080), AFTER)), "{family:?}");
            assert!(says(
                &scene.pod.run(move || connect((client, 443).into(), BEFORE)).expect("its own"),
                BEFORE
            ));
        }
        scene.kernel.remove_endpoint(INTERFACE).expect("removable");
        for family in BOTH {
            let at = SocketAddr::new(of(family).node, 22);
            assert!(says(&scene.client.run(move || connect(at, BEFORE)).expect("no policy"), BEFORE));
        }
    });
}

#[test]
fn what_passes_under_the_node_s_address_is_no_way_to_the_node() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        run(&[
            "nft",
            "add table inet m; add chain inet m out { type nat hook postrouting priority srcnat; }; \
              add rule inet m out oifname net ip saddr 10.1.0.0/16 masquerade; \
              add rule inet m out oifname net ip6 saddr fd00:1::/64 masquerade",
        ]);
        scene.select(2, DENY_INGRESS, &[]);
        const PORT: u16 = 7_777;
        for family in BOTH {
            let Addresses { node, client, .. } = of(family);
            let outside = scene.client.run(move || UdpSocket::bind((client, 53)).expect("free"));
            let at = scene.pod.at(family, PORT);
            let inside = scene.pod.run(move || UdpSocket::bind(at).expect("free"));
            for socket in [&outside, &inside] {
                socket.set_read_timeout(Some(BEFORE)).expect("a time");
            }
            inside.send_to(b"x", (client, 53)).expect("sent");
            let (_, from) = outside.recv_from(&mut [0; 4]).expect("masqueraded");
            assert_eq!(from, SocketAddr::new(node, PORT));
            let flow = |kernel: &Kernel| {
                let flows = kernel.conntrack.dump().expect("readable");
                let own = |key: &ConnKey| (key.peer, key.own_port) == (Addr::from(client), PORT);
                flows.into_iter().find(|(key, _)| own(key)).expect("noted")
            };
            let (key, entry) = flow(&scene.kernel);
            assert_eq!(entry.class, FOREIGN);
            let aged = |seconds: u64| ConnEntry { seen: entry.seen - seconds * 1_000_000_000, ..entry };
            scene.kernel.conntrack.upsert(key, aged(10)).expect("writable");
            outside.send_to(b"x", from).expect("sent");
            inside.recv_from(&mut [0; 4]).expect("an answer is the pod's");
            assert_eq!(flow(&scene.kernel).1.seen, aged(10).seen, "{family:?}: not kept up from outside");
            let answer = frame(&udp((client, 53), (node, PORT)));
            assert!(scene.kernel.try_host_frame(Ingress, &answer).expect("runs"), "{family:?}: still known");
            // The pod has been silent for so long that the stack would give its answers to the node.
            scene.kernel.conntrack.upsert(key, aged(26)).expect("writable");
            assert!(!scene.kernel.try_host_frame(Ingress, &answer).expect("runs"), "{family:?}: the node's");
            inside.send_to(b"x", (client, 53)).expect("sent");
            outside.recv_from(&mut [0; 4]).expect("as before");
            assert!(scene.kernel.try_host_frame(Ingress, &answer).expect("runs"), "{family:?}: known anew");
        }
    });
}
