//! Real packets by a proxy of the node: pods, a host outside, and a transparent proxy, in network namespaces. Needs root.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ebpf_shared::packet::protocol::{ANY, TCP, UDP};
use ebpf_shared::service::scope;
use ebpf_shared::{Direction, FlowEvent, Proxy as Value, Reason, ServiceKey, Verdict};
use node_agent::cni::{HostNet, prepare_host};
use node_agent::desired::{ServedBackend, ServiceEntry};
use node_agent::kernel::rules::{Defaults, Rule};
use node_agent::kernel::{EventRing, Kernel};
use node_agent::routes::to_proxy;
use support::pods::{BOTH, Family, Netns, Pod, forward};
use support::policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults, rule};
use support::proxy::Proxy;
use support::{Sandbox, in_sandbox, run};

const SERVER: u32 = 300;
const CLIENT: u32 = 301;
const SLOT: u16 = 7;
/// Where servers listen, with either transport.
const PORT: u16 = 8080;
/// As long as nothing is waited for that is to come.
const SOON: Duration = Duration::from_millis(400);
/// As long as something that is to come may take.
const PATIENCE: Duration = Duration::from_secs(10);

struct Node {
    kernel: Kernel,
    writer: Writer,
    events: EventRing,
    server: Pod,
    client: Pod,
    world: Netns,
    /// Of classes.
    last: u32,
    reached: Arc<AtomicUsize>,
}

/// Outside.
fn world(family: Family) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    SocketAddr::new(ip, PORT)
}

impl Node {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let events = kernel.events().expect("not taken yet");
        forward();
        prepare_host().expect("our own namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let host = HostNet::new().expect("netlink");
            // Twice: the second agent finds it there.
            for _ in 0..2 {
                to_proxy::ensure(&host, true).await.expect("root may");
            }
        });
        let [server, client] = [5, 6].map(|number| Pod::new(&mut kernel, number));
        let world = outside();
        let reached = Arc::new(AtomicUsize::new(0));
        for family in BOTH {
            serve(&world, self::world(family), &reached);
            serve(&server.netns, server.at(family, PORT), &reached);
        }
        let writer = Writer::default();
        let mut node = Self { kernel, writer, events, server, client, world, last: 1, reached };
        node.writer.put(&mut node.kernel, 1, &Defaults::default(), &[]);
        for (pod, identity) in [(&node.server, SERVER), (&node.client, CLIENT)] {
            for family in BOTH {
                node.kernel.identities.upsert(&pod.addr(family).into(), identity).expect("writable");
            }
            node.kernel.endpoints.upsert(pod.ifindex, pod.endpoint(identity, 1)).expect("writable");
        }
        node
    }

    /// What the client may do.
    fn client_may(&mut self, rules: &[Rule]) {
        self.last += 1;
        self.writer.put(&mut self.kernel, self.last, &defaults(DENY_EGRESS, 0, 22), rules);
        let endpoint = self.client.endpoint(CLIENT, self.last);
        self.kernel.endpoints.upsert(self.client.ifindex, endpoint).expect("writable");
    }

    /// Whom the server lets in.
    fn server_admits(&mut self, identity: u32) {
        self.last += 1;
        let rules = [rule(true, Direction::Ingress, identity, ANY, None, 33)];
        self.writer.put(&mut self.kernel, self.last, &defaults(DENY_INGRESS, 34, 0), &rules);
        let endpoint = self.server.endpoint(SERVER, self.last);
        self.kernel.endpoints.upsert(self.server.ifindex, endpoint).expect("writable");
    }

    fn by_proxy(&mut self) {
        self.client_may(&[by_proxy()]);
    }

    fn listens(&mut self, port: Option<u16>) {
        let flags = if port.is_some() { Value::ALIVE | Value::TCP | Value::UDP } else { 0 };
        let port = port.unwrap_or_default();
        self.kernel
            .proxies
            .upsert(SLOT.into(), Value { name: 1, v4: port, v6: port, flags })
            .expect("writable");
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.client.run(move || TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Is not answered.
    fn connect_in_vain(&self, to: SocketAddr) {
        let error = self.client.run(move || TcpStream::connect_timeout(&to, SOON)).expect_err("dropped");
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{to}");
    }

    fn ask(&self, to: SocketAddr) -> std::io::Result<String> {
        self.client.run(move || ask(&UdpSocket::bind(unspecified(to))?, to, PATIENCE))
    }

    /// Is not answered.
    fn ask_in_vain(&self, to: SocketAddr) {
        let answer = self.client.run(move || ask(&UdpSocket::bind(unspecified(to))?, to, SOON));
        answer.expect_err("nobody answers");
    }

    /// Both transports are told at once that nobody is there, and so are we.
    #[track_caller]
    fn expect_refused(&mut self, to: SocketAddr) {
        let error = self.connect(to).expect_err("there is no proxy");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        self.expect_told(TCP, Reason::ProxyGone);
        let error = self.client.run(move || {
            let socket = UdpSocket::bind(unspecified(to))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            socket.recv(&mut [0])
        });
        assert_eq!(error.expect_err("there is no proxy").kind(), ErrorKind::ConnectionRefused, "{to}");
        self.expect_told(UDP, Reason::ProxyGone);
    }

    fn told(&mut self) -> Vec<FlowEvent> {
        std::iter::from_fn(|| self.events.try_next()).collect()
    }

    #[track_caller]
    fn expect_told(&mut self, protocol: u8, reason: Reason) {
        let deadline = Instant::now() + PATIENCE;
        let mut told = Vec::new();
        while Instant::now() < deadline {
            told.extend(self.told());
            if told.iter().any(|event| (event.protocol, event.reason) == (protocol, reason as u8)) {
                return;
            }
            std::thread::yield_now();
        }
        panic!("{reason:?} of {protocol}: {told:?}");
    }
}

fn by_proxy() -> Rule {
    Rule { redirect: Some(SLOT), ..plain() }
}

fn plain() -> Rule {
    rule(true, Direction::Egress, 0, ANY, None, 11)
}

fn unspecified(like: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(ip, 0)
}

/// A host that the node routes to.
fn outside() -> Netns {
    run(&["ip", "link", "add", "wire", "type", "veth", "peer", "name", "eth0"]);
    let world = Netns::new();
    world.take("eth0");
    run(&["ip", "link", "set", "wire", "up"]);
    run(&["ip", "addr", "add", "192.0.2.254/24", "dev", "wire"]);
    run(&["ip", "addr", "add", "2001:db8::fe/64", "dev", "wire", "nodad"]);
    world.run(|| {
        run(&["ip", "link", "set", "eth0", "up"]);
        run(&["ip", "addr", "add", "192.0.2.1/24", "dev", "eth0"]);
        run(&["ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad"]);
        run(&["ip", "route", "add", "default", "via", "192.0.2.254"]);
        run(&["ip", "-6", "route", "add", "default", "via", "2001:db8::fe"]);
    });
    world
}

/// Tells whoever asks by which address it came, and then sends back what it gets.
fn serve(netns: &Netns, at: SocketAddr, reached: &Arc<AtomicUsize>) {
    let (listener, socket) =
        netns.run(move || (TcpListener::bind(at).expect("free"), UdpSocket::bind(at).expect("free")));
    let count = reached.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let from = stream.peer_addr()?.ip();
                writeln!(&stream, "{from}")?;
                std::io::copy(&mut &stream, &mut &stream)
            });
        }
    });
    let count = reached.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
}

fn ask(socket: &UdpSocket, to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    socket.set_read_timeout(Some(patience))?;
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer)?;
    assert_eq!(from, to, "who was asked, answers");
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Reads by which address the server was reached.
fn greeting(stream: &TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        (&*stream).read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

fn echo(stream: &TcpStream, bytes: usize) -> std::io::Result<()> {
    let mut sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || sender.write_all(&vec![7; bytes]));
    let mut back = vec![0; bytes];
    (&*stream).read_exact(&mut back)?;
    sending.join().expect("no panic")
}

#[test]
fn both_sides_see_each_other_by_their_own_addresses_through_the_proxy() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7001);
        node.listens(Some(proxy.port));
        node.by_proxy();
        node.server_admits(CLIENT);
        for family in BOTH {
            let client = node.client.addr(family);
            for to in [world(family), node.server.at(family, PORT)] {
                let stream = node.connect(to).expect("by the proxy");
                let own = stream.local_addr().expect("connected");
                assert_eq!(stream.peer_addr().expect("connected"), to);
                assert_eq!(greeting(&stream).expect("greeted"), client.to_string(), "{to}");
                echo(&stream, 1 << 20).expect("carried both ways");
                assert_eq!(proxy.seen.recv().expect("seen"), (own, to));
                let event = node.told().into_iter().find(|event| event.dst == to.ip().into());
                let event = event.expect("told");
                assert_eq!(Verdict::from_number(event.verdict), Some(Verdict::Redirected), "{event:?}");

                assert_eq!(node.ask(to).expect("answered"), client.to_string(), "{to}");
                assert_eq!(proxy.seen.recv().expect("seen").1, to);
            }
        }
    });
}

#[test]
fn what_a_proxy_asks_in_a_pod_s_name_is_judged_as_the_pod_s() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7002);
        node.listens(Some(proxy.port));
        node.by_proxy();
        node.server_admits(SERVER);
        for family in BOTH {
            let to = node.server.at(family, PORT);
            let stream = node.connect(to).expect("with the proxy");
            stream.set_read_timeout(Some(SOON)).expect("settable");
            assert!(greeting(&stream).is_err(), "the server does not admit the client");
            node.ask_in_vain(to);
            node.expect_told(TCP, Reason::DefaultDeny);
        }
        assert_eq!(node.reached.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn without_the_proxy_nothing_passes_until_it_is_back() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7003);
        node.listens(Some(proxy.port));
        node.by_proxy();
        for family in BOTH {
            greeting(&node.connect(world(family)).expect("by the proxy")).expect("greeted");
        }
        let reached = node.reached.load(Ordering::SeqCst);
        node.told();
        // Its sockets are closed, and nobody has said so yet.
        drop(proxy);
        // Who takes its port is not a proxy.
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:7003"), UdpSocket::bind("127.0.0.1:7003"));
        let (tcp, udp) = (tcp.expect("free"), udp.expect("free"));
        tcp.set_nonblocking(true).expect("settable");
        udp.set_nonblocking(true).expect("settable");
        for family in BOTH {
            node.expect_refused(world(family));
        }
        assert_eq!(tcp.accept().expect_err("nothing").kind(), ErrorKind::WouldBlock);
        assert_eq!(udp.recv(&mut [0]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
        assert_eq!(node.reached.load(Ordering::SeqCst), reached, "nothing got out");

        let proxy = Proxy::start(7004);
        node.listens(Some(proxy.port));
        for family in BOTH {
            let client = node.client.addr(family).to_string();
            assert_eq!(greeting(&node.connect(world(family)).expect("again")).expect("greeted"), client);
            assert_eq!(node.ask(world(family)).expect("again"), client);
        }
        // It is there, but says that it is not.
        node.listens(None);
        for family in BOTH {
            node.expect_refused(world(family));
        }
    });
}

#[test]
fn a_connection_does_not_change_over_and_datagrams_do() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7005);
        node.listens(Some(proxy.port));
        for family in BOTH {
            let (to, client) = (world(family), node.client.addr(family).to_string());
            node.client_may(&[plain()]);
            let direct = node.connect(to).expect("direct");
            assert_eq!(greeting(&direct).expect("greeted"), client);
            let socket = node.client.run(move || UdpSocket::bind(unspecified(to)).expect("free"));
            assert_eq!(ask(&socket, to, PATIENCE).expect("direct"), client);
            assert!(proxy.seen.try_recv().is_err());

            node.by_proxy();
            assert_eq!(ask(&socket, to, PATIENCE).expect("by the proxy"), client);
            assert_eq!(proxy.seen.recv().expect("seen").1, to);
            let error = echo(&direct, 10).expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "and told so by the proxy's listener");
            let carried = node.connect(to).expect("by the proxy");
            assert_eq!(greeting(&carried).expect("greeted"), client);

            node.client_may(&[plain()]);
            node.told();
            carried.set_read_timeout(Some(SOON)).expect("settable");
            echo(&carried, 10).expect_err("cut");
            node.expect_told(TCP, Reason::ProxyGone);
            assert_eq!(ask(&socket, to, PATIENCE).expect("direct"), client);
            assert_eq!(greeting(&node.connect(to).expect("direct")).expect("greeted"), client);
            while proxy.seen.try_recv().is_ok() {}
        }
    });
}

#[test]
fn a_datagram_in_pieces_is_not_handed_to_a_proxy_and_not_passed_by() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7006);
        node.listens(Some(proxy.port));
        node.by_proxy();
        for family in BOTH {
            let to = world(family);
            let before = node.reached.load(Ordering::SeqCst);
            let client = node.client.run(move || {
                let socket = UdpSocket::bind(unspecified(to)).expect("free");
                socket.send_to(&[7; 9000], to).expect("sent");
                socket.set_read_timeout(Some(SOON)).expect("settable");
                socket.recv(&mut [0; 100]).map(drop)
            });
            client.expect_err("dropped");
            node.expect_told(UDP, Reason::Fragment);
            assert_eq!(node.reached.load(Ordering::SeqCst), before);
            // A whole one of the same flow passes.
            node.ask(to).expect("answered");
        }
    });
}

#[test]
fn the_other_side_cannot_answer_past_the_proxy() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7007);
        node.listens(Some(proxy.port));
        node.by_proxy();
        for family in BOTH {
            let to = SocketAddr::new(world(family).ip(), 9);
            let own = node.client.at(family, 0);
            let socket = node.client.run(move || UdpSocket::bind(own).expect("free"));
            socket.send_to(b"?", to).expect("sent");
            proxy.seen.recv().expect("it went to the proxy");
            let client = socket.local_addr().expect("bound");
            node.world.run(move || UdpSocket::bind(to).expect("free").send_to(b"!", client).expect("sent"));
            socket.set_read_timeout(Some(SOON)).expect("settable");
            socket.recv(&mut [0; 100]).expect_err("dropped");
            node.expect_told(UDP, Reason::ProxyGone);
        }
    });
}

#[test]
fn answers_from_outside_reach_the_proxy_where_pods_leave_by_the_node_s_address() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let own = ["10.1.0.0/24", "fd00:1::/64"].map(|net| net.parse().expect("a prefix"));
        let rules = node_agent::masquerade::ruleset(&own, &own.into());
        let file = sandbox.bpffs().with_extension("nft");
        std::fs::write(&file, rules).expect("writable");
        run(&["nft", "-f", &file.to_string_lossy()]);
        let proxy = Proxy::start(7008);
        node.listens(Some(proxy.port));
        node.by_proxy();
        for (family, own) in [(Family::V4, "192.0.2.254"), (Family::V6, "2001:db8::fe")] {
            for _ in 0..3 {
                let stream = node.connect(world(family)).expect("by the proxy");
                assert_eq!(greeting(&stream).expect("greeted"), own);
                echo(&stream, 1 << 20).expect("carried both ways");
                assert_eq!(node.ask(world(family)).expect("answered"), own);
            }
            let to = node.server.at(family, PORT);
            assert_eq!(
                node.ask(to).expect("answered"),
                node.client.addr(family).to_string(),
                "not between pods"
            );
        }
    });
}

#[test]
fn a_proxy_may_ask_from_the_very_port_from_which_the_pod_did() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        let proxy = Proxy::start(7010);
        node.listens(Some(proxy.port));
        node.by_proxy();
        for family in BOTH {
            let (to, own) = (world(family), node.client.at(family, 7777));
            let client = node.client.addr(family).to_string();
            let pod = node.client.run(move || UdpSocket::bind(own).expect("free"));
            assert_eq!(ask(&pod, to, PATIENCE).expect("by the proxy"), client);
            let in_its_name = support::proxy::datagrams_as(own);
            assert_eq!(ask(&in_its_name, to, PATIENCE).expect("answered"), client);
            assert_eq!(ask(&pod, to, PATIENCE).expect("by the proxy, still"), client);
        }
    });
}

/// Of a service.
fn virtual_ip(family: Family) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(10, 101, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1).into(),
    };
    SocketAddr::new(ip, 80)
}

/// What the proxy makes of a service's address: the server pod.
fn backend(to: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match to.ip() {
        IpAddr::V4(_) => Ipv4Addr::new(10, 1, 0, 5).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 5).into(),
    };
    SocketAddr::new(ip, PORT)
}

#[test]
fn a_service_may_be_reached_by_the_proxy_only_as_far_as_policy_lets_to_its_backends() {
    in_sandbox(|sandbox| {
        let mut node = Node::new(sandbox);
        for family in BOTH {
            let at = virtual_ip(family);
            let served = ServedBackend { weight: 1, chosen: true, here: true };
            let entry = ServiceEntry {
                redirect: SLOT,
                backends: [(backend(at), served)].into(),
                ..ServiceEntry::default()
            };
            for protocol in [TCP, UDP] {
                let key = ServiceKey::new(at.ip().into(), at.port(), protocol, scope::INSIDE);
                node.kernel.services.put(key, &entry).expect("writable");
            }
        }
        node.server_admits(CLIENT);
        // Policy speaks of backends and their ports.
        node.client_may(&[rule(true, Direction::Egress, SERVER, ANY, Some((PORT, PORT)), 11)]);
        for family in BOTH {
            node.expect_refused(virtual_ip(family));
        }
        let proxy = Proxy::leading(7009, backend);
        node.listens(Some(proxy.port));
        for family in BOTH {
            let (at, client) = (virtual_ip(family), node.client.addr(family).to_string());
            let stream = node.connect(at).expect("by the proxy");
            assert_eq!(stream.peer_addr().expect("connected"), at);
            assert_eq!(greeting(&stream).expect("greeted"), client);
            echo(&stream, 1 << 20).expect("carried both ways");
            assert_eq!(proxy.seen.recv().expect("seen").1, at);
            assert_eq!(node.ask(at).expect("answered"), client);
            assert_eq!(proxy.seen.recv().expect("seen").1, at);
        }
        node.client_may(&[rule(true, Direction::Egress, SERVER, ANY, Some((80, 80)), 11)]);
        node.told();
        for family in BOTH {
            node.connect_in_vain(virtual_ip(family));
            node.expect_told(TCP, Reason::DefaultDeny);
        }
        assert!(proxy.seen.try_recv().is_err());
        // Its proxy dies: the service is refused at once, and its backends are not asked.
        node.client_may(&[plain()]);
        let reached = node.reached.load(Ordering::SeqCst);
        drop(proxy);
        for family in BOTH {
            node.expect_refused(virtual_ip(family));
        }
        assert_eq!(node.reached.load(Ordering::SeqCst), reached);
    });
}
