//! Nodes with a pod each, connected as the agent connects them, on an underlay of the test's own.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use ebpf_shared::nat::NodeConfig;
use ebpf_shared::packet::protocol::ANY;
use ebpf_shared::{Direction, Endpoint, FlowEvent, Reason};
use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use node_agent::cni::HostNet;
use node_agent::desired::PodAddresses;
use node_agent::kernel::{EventRing, Kernel};
use node_agent::masquerade;
use node_agent::routes::RouteKeeper;
use node_agent::subscribe::{NodeRoute, Resources};
use node_agent::tunnel::{self, DEVICE, Mode};

use crate::support::policy::{DENY_INGRESS, Writer, defaults, rule};
use crate::support::{Sandbox, run, speak_at_once};

/// The identity of the pod of each node, by the node's number.
pub const IDENTITY: [u32; 3] = [0, 301, 302];

/// A network namespace.
pub struct Place(File);

impl Place {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may");
            speak_at_once();
            run(&["ip", "link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").expect("proc is mounted")
        });
        Self(made.join().expect("made"))
    }

    /// Does something there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may");
                work()
            });
            there.join().expect("no panic")
        })
    }

    /// Takes an interface of the caller's namespace.
    pub fn take(&self, interface: &str) {
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

pub fn underlay4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

pub fn underlay6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into())
}

pub fn pod4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, node, 5)
}

pub fn pod6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, node.into(), 5)
}

pub fn nets(node: u8) -> [IpNet; 2] {
    [format!("10.1.{node}.0/24"), format!("fd00:1::{node}:0/112")].map(|net| net.parse().expect("a net"))
}

/// What nodes stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// One network: a bridge; every interface has this MTU.
    Bridge(u32),
    /// A router between any two, which sends on no packet longer than this; their own interfaces take 1,500 bytes.
    Router(u32),
}

impl Underlay {
    /// Of the nodes' interfaces.
    fn mtu(self) -> u32 {
        match self {
            Self::Bridge(mtu) => mtu,
            Self::Router(_) => 1_500,
        }
    }

    /// What agents take for it. Packets of the tunnel over IPv6 are never in pieces, so of a router that takes less they
    /// have to be told (`--underlay-mtu`).
    fn told(self, mode: Mode) -> u32 {
        match self {
            Self::Router(mtu) if mode == Mode::VxlanIpv6 => mtu,
            other => other.mtu(),
        }
    }
}

/// What every agent has been told of the nodes.
pub fn told() -> Resources {
    let mut resources = Resources::default();
    for number in [1, 2] {
        let node = NodeRoute {
            tunnel: None,
            address: underlay4(number),
            address6: Some(underlay6(number)),
            pod_cidrs: nets(number).into(),
            addresses: Vec::new(),
            zone: String::new(),
        };
        resources.nodes.insert(name(number), node);
    }
    resources
}

fn name(number: u8) -> String {
    format!("n{number}")
}

/// A node with one pod.
pub struct Node {
    pub number: u8,
    pub place: Place,
    pub pod: Place,
    pub kernel: Kernel,
    events: EventRing,
    writer: Writer,
    /// Number of its pod's class.
    class: u32,
    ifindex: u32,
}

impl Node {
    fn new(sandbox: &Sandbox, number: u8, mode: Mode, underlay: Underlay, pod_mtu: u32) -> Self {
        let place = Place::new();
        let pod = Place::new();
        let uplink = format!("under{number}");
        place.take(&uplink);
        let bpffs = sandbox.bpffs().join(format!("node{number}"));
        std::fs::create_dir_all(&bpffs).expect("writable");
        let (host, inside) = (format!("host{number}"), format!("pod{number}"));
        let mut kernel = place.run(|| Kernel::load(&bpffs, &sandbox.cgroup).expect("the programs load"));
        let events = kernel.events().expect("not taken yet");
        let ifindex = place.run(|| {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("our own namespace");
            }
            run(&["ip", "link", "set", &uplink, "mtu", &underlay.mtu().to_string(), "up"]);
            let (v4, v6) = (underlay4(number), underlay6(number));
            if matches!(underlay, Underlay::Bridge(_)) {
                run(&["ip", "addr", "add", &format!("{v4}/24"), "dev", &uplink]);
                run(&["ip", "addr", "add", &format!("{v6}/64"), "dev", &uplink, "nodad"]);
            } else {
                run(&["ip", "addr", "add", &format!("{v4}/32"), "dev", &uplink]);
                run(&["ip", "addr", "add", &format!("{v6}/128"), "dev", &uplink, "nodad"]);
                for (gateway, family) in
                    [(underlay4(254).to_string(), "-4"), (underlay6(254).to_string(), "-6")]
                {
                    run(&["ip", family, "route", "add", &gateway, "dev", &uplink]);
                    run(&["ip", family, "route", "add", "default", "via", &gateway, "dev", &uplink]);
                }
            }
            run(&["ip", "link", "add", &host, "type", "veth", "peer", "name", &inside]);
            let ifindex = kernel.attach_pod(&host).expect("attachable");
            let mac = mac_of(&host);
            pod.take(&inside);
            let mtu = pod_mtu.to_string();
            pod.run(|| {
                run(&["ip", "addr", "add", &format!("{}/32", pod4(number)), "dev", &inside]);
                run(&["ip", "addr", "add", &format!("{}/128", pod6(number)), "dev", &inside, "nodad"]);
                run(&["ip", "link", "set", &inside, "mtu", &mtu, "up"]);
                run(&["ip", "route", "add", "169.254.1.1", "dev", &inside, "scope", "link"]);
                run(&["ip", "route", "add", "default", "via", "169.254.1.1", "dev", &inside]);
                let to = ["lladdr", &mac, "dev", &inside, "nud", "permanent"];
                run(&[&["ip", "neigh", "add", "169.254.1.1"], &to[..]].concat());
                run(&[&["ip", "-6", "neigh", "add", "fe80::1"], &to[..]].concat());
                run(&["ip", "-6", "route", "add", "default", "via", "fe80::1", "dev", &inside]);
            });
            run(&["ip", "link", "set", &host, "mtu", &mtu, "up"]);
            let of_agent = ["proto", "77"];
            run(&[&["ip", "route", "add", &format!("{}/32", pod4(number)), "dev", &host], &of_agent[..]]
                .concat());
            run(&[
                &["ip", "-6", "route", "add", &format!("{}/128", pod6(number)), "dev", &host],
                &of_agent[..],
            ]
            .concat());
            ifindex
        });
        let mut node =
            Self { number, place, pod, kernel, writer: Writer::default(), events, class: 0, ifindex };
        node.connect(mode, underlay.told(mode));
        node
    }

    pub fn uplink(&self) -> String {
        format!("under{}", self.number)
    }

    fn addresses(&self) -> PodAddresses {
        PodAddresses { v4: underlay4(self.number), v6: Some(underlay6(self.number)) }
    }

    /// As the agent does it: a tunnel or not, routes, and what leaves the mesh.
    fn connect(&mut self, mode: Mode, underlay_mtu: u32) {
        let (own, resources) = (nets(self.number), told());
        let hops = tunnel::hops(&resources, &name(self.number), self.addresses(), &own, mode);
        self.kernel.nodes.set(&hops).expect("writable");
        let (addresses, name, uplink) = (self.addresses(), name(self.number), self.uplink());
        let kernel = &mut self.kernel;
        self.place.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let host = HostNet::new().expect("netlink");
                let mut tunnel = None;
                if mode.is_tunnel() {
                    let mtu = mode.inner_mtu(underlay_mtu);
                    let index = tunnel::ensure(&host, mtu, true).await.expect("a device");
                    // Twice is once.
                    assert_eq!(tunnel::ensure(&host, mtu, true).await.expect("kept"), index);
                    assert_eq!(kernel.attach_tunnel(DEVICE).expect("attachable"), index);
                    assert_eq!(kernel.attach_tunnel(DEVICE).expect("attached"), index);
                    tunnel::open(&host, index).await.expect("up");
                    tunnel = Some(index);
                }
                let config = NodeConfig {
                    v4: addresses.v4.into(),
                    v6: addresses.v6.expect("both").into(),
                    first_port: 61_000,
                    last_port: 61_999,
                    tunnel: tunnel.unwrap_or(0),
                    ..NodeConfig::default()
                };
                for _ in 0..2 {
                    kernel.set_net(std::slice::from_ref(&uplink), config, None).expect("attachable");
                }
                let keeper = RouteKeeper { node: name, addresses, own_pods: own.into(), tunnel };
                let wanted = keeper.wanted(&resources);
                for _ in 0..2 {
                    keeper.synchronise(&host, &wanted).await.expect("routed");
                }
            });
        });
    }

    /// As the agent does it, with these left out.
    pub fn masquerade(&self, excluded: &[IpNet]) {
        let rules = masquerade::ruleset(&nets(self.number), &masquerade::spared(&told(), excluded));
        self.place.run(|| {
            let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
            nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("read");
            assert!(nft.wait().expect("waited for").success(), "{rules}");
        });
    }

    /// Who has an address, as the agent would know.
    pub fn know(&mut self, address: IpAddr, identity: u32) {
        self.kernel.identities.upsert(&address.into(), identity).expect("writable");
    }

    /// Who may reach its pod; the pod itself may reach anybody.
    pub fn let_in(&mut self, identities: &[u32]) {
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

    pub fn events(&mut self) -> Vec<FlowEvent> {
        std::iter::from_fn(|| self.events.try_next()).collect()
    }

    pub fn dropped(&self, reason: Reason) -> u64 {
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

/// Two nodes and a third machine on one underlay. The pods believe in links of this MTU.
pub fn mesh(sandbox: &Sandbox, mode: Mode, underlay: Underlay, pod_mtu: u32) -> (Node, Node, Place) {
    let middle = match underlay {
        Underlay::Bridge(_) => {
            run(&["ip", "link", "add", "underlay", "type", "bridge"]);
            run(&["ip", "link", "set", "underlay", "up"]);
            None
        }
        Underlay::Router(mtu) => Some(mtu),
    };
    for number in [1, 2, 3] {
        let (port, under) = (format!("port{number}"), format!("under{number}"));
        run(&["ip", "link", "add", &port, "type", "veth", "peer", "name", &under]);
        if let Some(mtu) = middle {
            run(&["ip", "link", "set", &port, "up"]);
            route_to(&port, number, mtu);
        } else {
            run(&["ip", "link", "set", &port, "master", "underlay", "up"]);
        }
    }
    let nodes = [1, 2].map(|number| {
        let mut node = Node::new(sandbox, number, mode, underlay, pod_mtu);
        node.let_in(&[]);
        node
    });
    let stranger = Place::new();
    stranger.take("under3");
    stranger.run(|| {
        run(&["ip", "addr", "add", &format!("{}/24", underlay4(3)), "dev", "under3"]);
        run(&["ip", "addr", "add", &format!("{}/64", underlay6(3)), "dev", "under3", "nodad"]);
        run(&["ip", "link", "set", "under3", "up"]);
    });
    let [one, two] = nodes;
    (one, two, stranger)
}

/// The caller's namespace is the router.
fn route_to(port: &str, number: u8, mtu: u32) {
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("our own namespace");
    }
    let mtu = mtu.to_string();
    run(&["ip", "addr", "add", &format!("{}/32", underlay4(254)), "dev", port]);
    run(&["ip", "addr", "add", &format!("{}/128", underlay6(254)), "dev", port, "nodad"]);
    run(&["ip", "route", "add", &underlay4(number).to_string(), "dev", port, "mtu", &mtu]);
    run(&["ip", "-6", "route", "add", &underlay6(number).to_string(), "dev", port, "mtu", &mtu]);
}

/// Sends so much by TCP to a server, which sends it back; false if no connection comes about.
pub fn talk(client: &Place, server: &Place, at: SocketAddr, bytes: usize) -> bool {
    talk_through(client, server, at, at, bytes)
}

/// Whether a server that listens is out of reach.
pub fn is_refused(client: &Place, server: &Place, at: SocketAddr) -> bool {
    let _listener = server.run(|| TcpListener::bind(at).expect("free"));
    client.run(|| TcpStream::connect_timeout(&at, Duration::from_millis(700)).is_err())
}

/// The same by another address, which leads to the server.
pub fn talk_through(client: &Place, server: &Place, asked: SocketAddr, at: SocketAddr, bytes: usize) -> bool {
    exchange(client, server, asked, at, bytes).is_some()
}

/// Whom a server takes its client for.
pub fn caller(client: &Place, server: &Place, at: SocketAddr) -> Option<IpAddr> {
    exchange(client, server, at, at, 1_000)
}

/// The same by another address, which leads to the server.
pub fn caller_through(client: &Place, server: &Place, asked: SocketAddr, at: SocketAddr) -> Option<IpAddr> {
    exchange(client, server, asked, at, 1_000)
}

fn exchange(
    client: &Place,
    server: &Place,
    asked: SocketAddr,
    at: SocketAddr,
    bytes: usize,
) -> Option<IpAddr> {
    let listener = server.run(|| TcpListener::bind(at).expect("free"));
    std::thread::scope(|scope| {
        let served = scope.spawn(move || serve(&listener, bytes));
        let asked = client.run(|| ask(asked, bytes).inspect_err(|error| eprintln!("{asked}: {error}")));
        let caller = served.join().expect("no panic");
        caller.filter(|_| asked.is_ok())
    })
}

/// Serves one client.
fn serve(listener: &TcpListener, bytes: usize) -> Option<IpAddr> {
    listener.set_nonblocking(true).expect("settable");
    let until = std::time::Instant::now() + Duration::from_secs(5);
    let (mut stream, from) = loop {
        match listener.accept() {
            Ok(found) => break found,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if std::time::Instant::now() > until {
                    return None;
                }
                std::thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    };
    stream.set_nonblocking(false).expect("settable");
    stream.set_read_timeout(Some(Duration::from_secs(8))).expect("settable");
    stream.set_write_timeout(Some(Duration::from_secs(8))).expect("settable");
    let mut all = vec![0; bytes];
    stream.read_exact(&mut all).ok()?;
    stream.write_all(&all).ok()?;
    Some(from.ip())
}

fn ask(at: SocketAddr, bytes: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(4))?;
    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
    stream.set_write_timeout(Some(Duration::from_secs(8)))?;
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let mut back = vec![0; bytes];
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.write_all(&sent));
        stream.read_exact(&mut back)?;
        writing.join().expect("no panic")
    })?;
    if back == sent { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

pub fn both(node: u8) -> [SocketAddr; 2] {
    [IpAddr::V4(pod4(node)), IpAddr::V6(pod6(node))].map(|address| SocketAddr::new(address, 8080))
}
