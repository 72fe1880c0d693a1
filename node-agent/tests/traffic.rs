//! Real packets between pods on one node: network namespaces, veth links as the CNI plugin makes them, and
//! the programs on the host side of each. Needs root.

mod support;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use ebpf_shared::packet::protocol::{ANY, TCP, UDP};
use ebpf_shared::{Class, Direction, Endpoint, Reason};
use nix::sched::{CloneFlags, setns, unshare};
use node_agent::kernel::rules::{Rule, compile};
use node_agent::kernel::{EventRing, Kernel};
use support::{Sandbox, in_sandbox, run};

/// A pod: a network namespace, and the index of its interface in ours.
struct Pod {
    addr: Ipv4Addr,
    netns: File,
    ifindex: u32,
}

impl Pod {
    /// Makes a pod with 10.1.0.`number`, guarded before its link is up.
    fn new(kernel: &mut Kernel, number: u8) -> Self {
        let addr = Ipv4Addr::new(10, 1, 0, number);
        let (host, inside) = (format!("host{number}"), format!("pod{number}"));
        run(&["ip", "link", "add", &host, "type", "veth", "peer", "name", &inside]);
        let ifindex = kernel.attach_pod(&host).expect("attachable");
        let mac = mac_of(&host);

        let (tell, told) = std::sync::mpsc::channel();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            tell.send(nix::unistd::gettid()).expect("waited for");
            // Until the link has been moved to where this thread is.
            let _ = finished.recv();
            run(&["ip", "link", "set", "lo", "up"]);
            run(&["ip", "addr", "add", &format!("{addr}/32"), "dev", &inside]);
            run(&["ip", "link", "set", &inside, "up"]);
            run(&["ip", "route", "add", "169.254.1.1", "dev", &inside, "scope", "link"]);
            run(&["ip", "route", "add", "default", "via", "169.254.1.1", "dev", &inside]);
            let neighbour =
                ["ip", "neigh", "add", "169.254.1.1", "lladdr", &mac, "dev", &inside, "nud", "permanent"];
            run(&neighbour);
            File::open("/proc/thread-self/ns/net").expect("proc is mounted")
        });
        let thread_id = told.recv().expect("told").to_string();
        run(&["ip", "link", "set", &format!("pod{number}"), "netns", &thread_id]);
        run(&["ip", "link", "set", &host, "up"]);
        run(&["ip", "route", "add", &format!("{addr}/32"), "dev", &host]);
        finish.send(()).expect("waited for");
        let netns = thread.join().expect("the pod is set up");
        Self { addr, netns, ifindex }
    }

    /// Does something in the pod.
    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let netns = self.netns.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("root may");
            work()
        })
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().expect("no panic")
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddrV4::new(self.addr, port).into()
    }
}

/// (Not from /sys, which shows the network namespace that it was mounted in.)
fn mac_of(ifname: &str) -> String {
    let output = std::process::Command::new("ip").args(["-o", "link", "show", ifname]).output().expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_once("link/ether ").expect("an Ethernet link").1[..17].to_owned()
}

struct Node {
    kernel: Kernel,
    events: EventRing,
    server: Pod,
    client: Pod,
    stranger: Pod,
}

const SERVER: u32 = 300;
const CLIENT: u32 = 301;
const STRANGER: u32 = 302;

impl Node {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let events = kernel.events().expect("not taken yet");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("our own namespace");
        let [server, client, stranger] = [5, 6, 7].map(|number| Pod::new(&mut kernel, number));
        let mut node = Self { kernel, events, server, client, stranger };
        node.kernel.put_class(1, &compile(Class::default(), &[])).expect("writable");
        for (pod, identity) in [(&node.server, SERVER), (&node.client, CLIENT), (&node.stranger, STRANGER)] {
            node.kernel.ipcache.upsert(&pod.addr.into(), identity).expect("writable");
            let endpoint = Endpoint { identity, class: 1, addr: pod.addr.into(), flags: 0 };
            node.kernel.endpoints.upsert(pod.ifindex, endpoint).expect("writable");
        }
        node
    }

    /// Isolates the server; `class` is a number that was not used before.
    fn let_in(&mut self, class: u32, identities: &[u32]) {
        let rules: Vec<Rule> = identities
            .iter()
            .map(|identity| Rule {
                direction: Direction::Ingress,
                allow: true,
                identity: *identity,
                protocol: ANY,
                ports: None,
                policy_id: 11,
            })
            .collect();
        let default = Class { flags: Class::DENY_INGRESS, ingress_policy: 12, egress_policy: 0 };
        self.kernel.put_class(class, &compile(default, &rules)).expect("writable");
        let endpoint = Endpoint { identity: SERVER, class, addr: self.server.addr.into(), flags: 0 };
        self.kernel.endpoints.upsert(self.server.ifindex, endpoint).expect("writable");
    }

    /// Whether an event with this reason and policy at the server's door is among those not read yet.
    fn was_told(&mut self, protocol: u8, reason: Reason, policy_id: u32) -> bool {
        let mut found = false;
        while let Some(event) = self.events.try_next() {
            found |= event.ifindex == self.server.ifindex
                && (event.protocol, event.reason, event.policy_id) == (protocol, reason as u8, policy_id);
        }
        found
    }
}

/// Sends back what it gets, to any number of connections.
fn echo_server(pod: &Pod, port: u16) {
    let addr = pod.at(port);
    let listener = pod.run(move || TcpListener::bind(addr)).expect("free");
    pod.spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// Sends so many bytes and reads them back.
fn exchange(stream: &TcpStream, bytes: usize) -> std::io::Result<()> {
    let sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || (&sender).write_all(&vec![7; bytes]));
    let mut back = vec![0; bytes];
    (&*stream).read_exact(&mut back)?;
    sending.join().expect("no panic")?;
    assert!(back.iter().all(|byte| *byte == 7));
    Ok(())
}

#[test]
fn bulk_traffic_flows_to_whom_policy_allows_and_nobody_else_is_answered() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        echo_server(&node.server, 8080);
        let addr = node.server.at(8080);
        // Large enough for segmentation offload: frames far beyond the link's MTU reach the programs.
        node.client.run(move || exchange(&TcpStream::connect(addr)?, 8 << 20)).expect("allowed");
        assert!(node.was_told(TCP, Reason::Forwarded, 11));
        let refused =
            node.stranger.run(move || TcpStream::connect_timeout(&addr, Duration::from_millis(300)));
        assert_eq!(refused.expect_err("dropped").kind(), ErrorKind::TimedOut);
        assert!(node.was_told(TCP, Reason::DefaultDeny, 12));
    });
}

#[test]
fn datagrams_in_pieces_arrive() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        let addr = node.server.at(5353);
        let socket = node.server.run(move || UdpSocket::bind(addr)).expect("free");
        let server = node.server.spawn(move || {
            let mut buffer = vec![0; 65536];
            let (length, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..length], from)
        });
        let client = node.client.addr;
        let back = node.client.run(move || {
            let socket = UdpSocket::bind((client, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.send_to(&[7; 9000], addr)?;
            socket.recv(&mut vec![0; 65536])
        });
        assert_eq!(back.expect("answered"), 9000);
        server.join().expect("no panic").expect("sent");
        assert!(node.was_told(UDP, Reason::Forwarded, 11));
    });
}

#[test]
fn an_open_connection_is_cut_when_policy_changes_and_goes_on_when_it_changes_back() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        echo_server(&node.server, 8080);
        let addr = node.server.at(8080);
        let stream = node.client.run(move || TcpStream::connect(addr)).expect("allowed");
        exchange(&stream, 1000).expect("allowed");

        node.let_in(3, &[]);
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("settable");
        let silence = exchange(&stream, 1000).expect_err("cut");
        assert_eq!(silence.kind(), ErrorKind::WouldBlock);
        assert!(node.was_told(TCP, Reason::DefaultDeny, 12));

        node.let_in(4, &[CLIENT]);
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
        // What was sent in between is sent again by TCP.
        (&stream).read_exact(&mut [0; 1000]).expect("goes on");
    });
}

#[test]
fn traffic_flows_while_the_agent_restarts() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        echo_server(&node.server, 8080);
        let addr = node.server.at(8080);
        let stream = node.client.run(move || TcpStream::connect(addr)).expect("allowed");
        let traffic = std::thread::spawn(move || exchange(&stream, 64 << 20));
        let Node { kernel, events, server: _server, client: _client, stranger: _stranger } = node;
        drop((kernel, events));
        for _ in 0..5 {
            let kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
            let dropped: u64 = kernel
                .metrics()
                .expect("readable")
                .iter()
                .filter(|(_, reason, _)| *reason != Reason::Forwarded)
                .map(|(_, _, metric)| metric.packets)
                .sum();
            assert_eq!(dropped, 0);
        }
        traffic.join().expect("no panic").expect("undisturbed");
    });
}
