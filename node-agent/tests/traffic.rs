//! Real packets between pods on one node: network namespaces, veth links as the CNI plugin makes them, and
//! the programs on the host side of each. Needs root.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ebpf_shared::packet::protocol::{ANY, TCP, UDP};
use ebpf_shared::{Direction, Reason};
use node_agent::kernel::rules::{Defaults, Rule};
use node_agent::kernel::{EventRing, Kernel};
use support::pods::{BOTH, Family, Pod, forward};
use support::policy::{DENY_INGRESS, Writer, defaults, rule};
use support::{Sandbox, in_sandbox, run};

struct Node {
    kernel: Kernel,
    writer: Writer,
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
        forward();
        let [server, client, stranger] = [5, 6, 7].map(|number| Pod::new(&mut kernel, number));
        let mut node = Self { kernel, writer: Writer::default(), events, server, client, stranger };
        node.writer.put(&mut node.kernel, 1, &Defaults::default(), &[]);
        for (pod, identity) in [(&node.server, SERVER), (&node.client, CLIENT), (&node.stranger, STRANGER)] {
            for family in BOTH {
                node.kernel.identities.upsert(&pod.addr(family).into(), identity).expect("writable");
            }
            node.kernel.endpoints.upsert(pod.ifindex, pod.endpoint(identity, 1)).expect("writable");
        }
        node
    }

    /// Isolates the server; `class` is a number that was not used before.
    fn let_in(&mut self, class: u32, identities: &[u32]) {
        let rules: Vec<Rule> = identities
            .iter()
            .map(|identity| rule(true, Direction::Ingress, *identity, ANY, None, 11))
            .collect();
        self.writer.put(&mut self.kernel, class, &defaults(DENY_INGRESS, 12, 0), &rules);
        let endpoint = self.server.endpoint(SERVER, class);
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
fn echo_server(pod: &Pod, addr: SocketAddr) {
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
        for family in BOTH {
            let addr = node.server.at(family, 8080);
            echo_server(&node.server, addr);
            // Large enough for segmentation offload: frames far beyond the link's MTU reach the programs.
            node.client.run(move || exchange(&TcpStream::connect(addr)?, 8 << 20)).expect("allowed");
            assert!(node.was_told(TCP, Reason::Forwarded, 11));
            let refused =
                node.stranger.run(move || TcpStream::connect_timeout(&addr, Duration::from_millis(300)));
            assert_eq!(refused.expect_err("dropped").kind(), ErrorKind::TimedOut);
            assert!(node.was_told(TCP, Reason::DefaultDeny, 12));
        }
    });
}

#[test]
fn datagrams_in_pieces_arrive() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        for family in BOTH {
            let addr = node.server.at(family, 5353);
            let socket = node.server.run(move || UdpSocket::bind(addr)).expect("free");
            let server = node.server.spawn(move || {
                let mut buffer = vec![0; 65536];
                let (length, from) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..length], from)
            });
            let client = node.client.addr(family);
            let back = node.client.run(move || {
                let socket = UdpSocket::bind((client, 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send_to(&[7; 9000], addr)?;
                socket.recv(&mut vec![0; 65536])
            });
            assert_eq!(back.expect("answered"), 9000, "{family:?}");
            server.join().expect("no panic").expect("sent");
            assert!(node.was_told(UDP, Reason::Forwarded, 11));
        }
    });
}

#[test]
fn an_open_connection_is_cut_when_policy_changes_and_goes_on_when_it_changes_back() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        for (family, class) in BOTH.into_iter().zip([2, 5]) {
            node.let_in(class, &[CLIENT]);
            let addr = node.server.at(family, 8080);
            echo_server(&node.server, addr);
            let stream = node.client.run(move || TcpStream::connect(addr)).expect("allowed");
            exchange(&stream, 1000).expect("allowed");

            node.let_in(class + 1, &[]);
            stream.set_read_timeout(Some(Duration::from_millis(300))).expect("settable");
            let silence = exchange(&stream, 1000).expect_err("cut");
            assert_eq!(silence.kind(), ErrorKind::WouldBlock);
            assert!(node.was_told(TCP, Reason::DefaultDeny, 12));

            node.let_in(class + 2, &[CLIENT]);
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("settable");
            // What was sent in between is sent again by TCP.
            (&stream).read_exact(&mut [0; 1000]).expect("goes on");
        }
    });
}

#[test]
fn a_packet_that_is_too_big_for_the_way_is_told_to_its_sender() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        // The node's end of the server's link takes less than the client sends. The server itself knows, or a link would
        // drop what it sends; but it does not tell the client in its handshake.
        run(&["ip", "link", "set", "host5", "mtu", "1400"]);
        node.server.run(|| {
            let known = ["dev", "pod5", "mtu", "1400", "advmss", "1440"];
            run(&[&["ip", "route", "replace", "default", "via", "169.254.1.1"][..], &known].concat());
            run(&[&["ip", "-6", "route", "replace", "default", "via", "fe80::1"][..], &known].concat());
        });
        for family in BOTH {
            let addr = node.server.at(family, 8080);
            echo_server(&node.server, addr);
            // TCP learns it by the error, which passes the client's door as a part of its flow.
            node.client.run(move || exchange(&TcpStream::connect(addr)?, 1 << 20)).expect("learnt");
        }
    });
}

#[test]
fn a_pod_cannot_borrow_another_ones_address() {
    in_sandbox(|sandbox| {
        let node = Node::new(sandbox);
        let borrowed = node.client.v6;
        node.stranger.run(move || {
            run(&["ip", "addr", "add", &format!("{borrowed}/128"), "dev", "pod7", "nodad"]);
        });
        let server = node.server.at(Family::V6, 5353);
        let socket = node.server.run(move || UdpSocket::bind(server)).expect("free");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("settable");
        node.stranger.run(move || UdpSocket::bind((borrowed, 0))?.send_to(b"?", server)).expect("sent");
        assert_eq!(socket.recv(&mut [0; 8]).expect_err("dropped").kind(), ErrorKind::WouldBlock);
        let spoofed = node.kernel.metrics().expect("readable");
        assert!(spoofed.iter().any(|(_, reason, _)| *reason == Reason::SpoofedSource));
    });
}

#[test]
fn traffic_flows_while_the_agent_restarts() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        node.let_in(2, &[CLIENT]);
        let traffic = BOTH.map(|family| {
            let addr = node.server.at(family, 8080);
            echo_server(&node.server, addr);
            let stream = node.client.run(move || TcpStream::connect(addr)).expect("allowed");
            std::thread::spawn(move || exchange(&stream, 32 << 20))
        });
        let Node { kernel, events, server: _server, client: _client, stranger: _stranger, .. } = node;
        drop((kernel, events));
        for _ in 0..5 {
            let kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
            let dropped: Vec<_> = kernel
                .metrics()
                .expect("readable")
                .into_iter()
                .filter(|(_, reason, _)| !matches!(reason, Reason::Forwarded | Reason::SpoofedSource))
                .collect();
            assert!(dropped.is_empty(), "{dropped:?}");
        }
        for each in traffic {
            each.join().expect("no panic").expect("undisturbed");
        }
    });
}
