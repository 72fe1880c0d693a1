//! Pods of two nodes that talk through the tunnel: real packets of both families, over both families; and packets of
//! somebody who is no node. Needs root.

mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ebpf_shared::overlay::{FROM_MAC, Hop, MAC, PORT};
use ebpf_shared::packet::protocol::{ANY, TCP, UDP};
use ebpf_shared::{Addr, Direction, Endpoint, FlowEvent, Reason};
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use node_agent::cni::HostNet;
use node_agent::kernel::{EventRing, Kernel};
use node_agent::tunnel::{self, DEVICE, Mode};
use support::frames::{frame, packet};
use support::policy::{DENY_INGRESS, Writer, defaults, rule};
use support::{Sandbox, in_sandbox, run};

/// The identity of the pod of each node, by the node's number.
const IDENTITY: [u32; 3] = [0, 301, 302];

/// A network namespace.
struct Place(File);

impl Place {
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            run(&["ip", "link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").expect("proc is mounted")
        });
        Self(made.join().expect("made"))
    }

    /// Does something there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may");
                work()
            });
            there.join().expect("no panic")
        })
    }

    /// Takes an interface of the caller's namespace.
    fn take(&self, interface: &str) {
        let (tell, told) = std::sync::mpsc::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may");
                tell.send(nix::unistd::gettid()).expect("waited for");
                let _ = finished.recv();
            });
            let thread = told.recv().expect("told").to_string();
            run(&["ip", "link", "set", interface, "netns", &thread]);
            finish.send(()).expect("waited for");
        });
    }
}

fn underlay4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

fn underlay6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
}

fn pod4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, node, 5)
}

fn pod6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, node.into(), 5)
}

fn nets(node: u8) -> [IpNet; 2] {
    [format!("10.1.{node}.0/24"), format!("fd00:1::{node}:0/112")].map(|net| net.parse().expect("a net"))
}

/// A node with one pod.
struct Node {
    number: u8,
    place: Place,
    pod: Place,
    kernel: Kernel,
    events: EventRing,
    writer: Writer,
    /// Number of its pod's class.
    class: u32,
    ifindex: u32,
}

impl Node {
    fn new(sandbox: &Sandbox, number: u8, mode: Mode, underlay_mtu: u32) -> Self {
        let place = Place::new();
        let pod = Place::new();
        let underlay = format!("under{number}");
        place.take(&underlay);
        let bpffs = sandbox.bpffs().join(format!("node{number}"));
        std::fs::create_dir_all(&bpffs).expect("writable");
        let (host, inside) = (format!("host{number}"), format!("pod{number}"));
        let mut kernel = place.run(|| Kernel::load(&bpffs, &sandbox.cgroup).expect("the programs load"));
        let events = kernel.events().expect("not taken yet");
        let ifindex = place.run(|| {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("our own namespace");
            }
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{underlay}/accept_dad"), "0").expect("ours");
            run(&["ip", "addr", "add", &format!("{}/24", underlay4(number)), "dev", &underlay]);
            run(&["ip", "addr", "add", &format!("{}/64", underlay6(number)), "dev", &underlay, "nodad"]);
            run(&["ip", "link", "set", &underlay, "mtu", &underlay_mtu.to_string(), "up"]);
            run(&["ip", "link", "add", &host, "type", "veth", "peer", "name", &inside]);
            let ifindex = kernel.attach_pod(&host).expect("attachable");
            let mac = mac_of(&host);
            pod.take(&inside);
            // As large as the underlay's usual frames: too large for the tunnel.
            pod.run(|| {
                run(&["ip", "addr", "add", &format!("{}/32", pod4(number)), "dev", &inside]);
                run(&["ip", "addr", "add", &format!("{}/128", pod6(number)), "dev", &inside, "nodad"]);
                run(&["ip", "link", "set", &inside, "up"]);
                run(&["ip", "route", "add", "169.254.1.1", "dev", &inside, "scope", "link"]);
                run(&["ip", "route", "add", "default", "via", "169.254.1.1", "dev", &inside]);
                let to = ["lladdr", &mac, "dev", &inside, "nud", "permanent"];
                run(&[&["ip", "neigh", "add", "169.254.1.1"], &to[..]].concat());
                run(&[&["ip", "-6", "neigh", "add", "fe80::1"], &to[..]].concat());
                run(&["ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", &inside]);
            });
            run(&["ip", "link", "set", &host, "up"]);
            run(&["ip", "route", "add", &format!("{}/32", pod4(number)), "dev", &host]);
            run(&["ip", "-6", "route", "add", &format!("{}/128", pod6(number)), "dev", &host]);
            ifindex
        });
        let mut node =
            Self { number, place, pod, kernel, writer: Writer::default(), events, class: 0, ifindex };
        node.open_tunnel(mode, underlay_mtu);
        node
    }

    /// As the agent does it.
    fn open_tunnel(&mut self, mode: Mode, underlay_mtu: u32) {
        let own = self.number;
        let by = if mode == Mode::VxlanIpv6 { Hop::BY_IPV6 } else { 0 };
        let mut hops = BTreeMap::new();
        for number in [1, 2] {
            let flags = by | if number == own { Hop::HERE } else { 0 };
            let hop = Hop { v4: underlay4(number).into(), v6: underlay6(number).into(), flags, padding: 0 };
            let own = [IpAddr::V4(underlay4(number)), IpAddr::V6(underlay6(number))].map(IpNet::from);
            hops.extend(nets(number).into_iter().chain(own).map(|net| (net, hop)));
        }
        self.kernel.nodes.set(&hops).expect("writable");
        let kernel = &mut self.kernel;
        self.place.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let host = HostNet::new().expect("netlink");
                let index =
                    tunnel::ensure(&host, mode.inner_mtu(underlay_mtu), true).await.expect("a device");
                // Twice is once.
                assert_eq!(
                    tunnel::ensure(&host, mode.inner_mtu(underlay_mtu), true).await.expect("kept"),
                    index
                );
                assert_eq!(kernel.attach_tunnel(DEVICE).expect("attachable"), index);
                assert_eq!(kernel.attach_tunnel(DEVICE).expect("attached"), index);
                tunnel::open(&host, index).await.expect("up");
            });
            for net in nets(3 - own) {
                let family = if net.addr().is_ipv4() { "-4" } else { "-6" };
                run(&["ip", family, "route", "add", &net.to_string(), "dev", DEVICE]);
            }
        });
    }

    /// Who may reach its pod; the pod itself may reach anybody.
    fn let_in(&mut self, identities: &[u32]) {
        let allow = |identity: &u32| rule(true, Direction::Ingress, *identity, ANY, None, 11);
        let rules: Vec<_> = identities.iter().map(allow).collect();
        self.class += 1;
        self.writer.put(&mut self.kernel, self.class, &defaults(DENY_INGRESS, 12, 0), &rules);
        let endpoint = Endpoint {
            identity: IDENTITY[usize::from(self.number)],
            class: self.class,
            v4: pod4(self.number).into(),
            v6: pod6(self.number).into(),
            ..Endpoint::default()
        };
        self.kernel.endpoints.upsert(self.ifindex, endpoint).expect("writable");
        for address in [IpAddr::V4(pod4(self.number)), IpAddr::V6(pod6(self.number))] {
            let who = IDENTITY[usize::from(self.number)];
            self.kernel.identities.upsert(&address.into(), who).expect("writable");
        }
    }

    fn events(&mut self) -> Vec<FlowEvent> {
        std::iter::from_fn(|| self.events.try_next()).collect()
    }

    fn dropped(&self, reason: Reason) -> u64 {
        let all = self.kernel.metrics().expect("readable");
        all.iter().filter(|(_, why, _)| *why == reason).map(|(_, _, metric)| metric.packets).sum()
    }
}

/// (Not from /sys, which shows the network namespace that it was mounted in.)
fn mac_of(ifname: &str) -> String {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", ifname]).output().expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_once("link/ether ").expect("an Ethernet link").1[..17].to_owned()
}

/// Two nodes and a third machine on one underlay: a bridge in the caller's namespace.
fn mesh(sandbox: &Sandbox, mode: Mode, underlay_mtu: u32) -> (Node, Node, Place) {
    run(&["ip", "link", "add", "underlay", "type", "bridge"]);
    run(&["ip", "link", "set", "underlay", "up"]);
    for number in [1, 2, 3] {
        let (port, under) = (format!("port{number}"), format!("under{number}"));
        run(&["ip", "link", "add", &port, "type", "veth", "peer", "name", &under]);
        run(&["ip", "link", "set", &port, "master", "underlay", "up"]);
    }
    let nodes = [1, 2].map(|number| {
        let mut node = Node::new(sandbox, number, mode, underlay_mtu);
        node.let_in(&[]);
        node
    });
    let stranger = Place::new();
    stranger.take("under3");
    stranger.run(|| {
        run(&["ip", "addr", "add", &format!("{}/24", underlay4(3)), "dev", "under3"]);
        run(&["ip", "link", "set", "under3", "up"]);
    });
    let [one, two] = nodes;
    (one, two, stranger)
}

/// Sends so much by TCP from one pod to another, which sends it back; false if no connection comes about.
fn talk(client: &Place, server: &Place, at: SocketAddr, bytes: usize) -> bool {
    let listener = server.run(|| TcpListener::bind(at).expect("free"));
    std::thread::scope(|scope| {
        let served = scope.spawn(move || {
            listener.set_nonblocking(true).expect("settable");
            let until = std::time::Instant::now() + Duration::from_millis(2_500);
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if std::time::Instant::now() > until {
                            return;
                        }
                        std::thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            stream.set_nonblocking(false).expect("settable");
            let mut all = vec![0; bytes];
            stream.read_exact(&mut all).expect("whole");
            stream.write_all(&all).expect("read");
        });
        let passed = client.run(|| {
            let Ok(mut stream) = TcpStream::connect_timeout(&at, Duration::from_millis(1_500)) else {
                return false;
            };
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("settable");
            let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
            let mut back = vec![0; bytes];
            let mut writer = stream.try_clone().expect("a descriptor");
            std::thread::scope(|scope| {
                scope.spawn(|| writer.write_all(&sent).expect("read"));
                stream.read_exact(&mut back).expect("whole");
            });
            back == sent
        });
        served.join().expect("no panic");
        passed
    })
}

fn both(node: u8) -> [SocketAddr; 2] {
    [IpAddr::V4(pod4(node)), IpAddr::V6(pod6(node))].map(|address| SocketAddr::new(address, 8080))
}

/// Both inner families over one outer one; identities come with the packets, and the pods' MTU is too large on purpose.
fn pods_talk_through_the_tunnel(mode: Mode) {
    in_sandbox(move |sandbox| {
        // 1,400 of the underlay leave 1,350 or 1,330, and the pods believe in 1,500.
        let (one, mut two, _) = mesh(sandbox, mode, 1_400);
        for at in both(2) {
            assert!(!talk(&one.pod, &two.pod, at, 10), "{at}: nobody is let in yet");
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
        let (one, mut two, stranger) = mesh(sandbox, Mode::Vxlan, 1_500);
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
