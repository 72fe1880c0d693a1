//! Services by packets, with real ones: pods whose sockets no hook sees, clients outside the mesh at the node's own
//! interface, a backend on another host. All of it in network namespaces made for the test. Needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ebpf_shared::nat::{NatKey, NodeConfig};
use ebpf_shared::overlay::Hop;
use ebpf_shared::packet::protocol::{TCP, UDP};
use ebpf_shared::service::scope;
use ebpf_shared::{Reason, ServiceKey};
use ipnet::IpNet;
use node_agent::desired::{ServedBackend, ServiceEntry};
use node_agent::kernel::rules::Defaults;
use node_agent::kernel::{Kernel, ShortCut};
use support::frames::{DESTINATION, extended, frame, syn};
use support::pods::{BOTH, Family, Netns, Pod, forward};
use support::policy::Writer;
use support::{Sandbox, in_sandbox, run};
use tokio::net::TcpSocket;

const PORT: u16 = 8080;
const NODE_PORT: u16 = 30_080;
/// Ports that packets to backends elsewhere have.
const BORROWED: std::ops::RangeInclusive<u16> = 61_000..=61_999;

/// By family: the service's virtual address, the node's, a client's outside, another host's, a load balancer's.
struct Addresses {
    vip: IpAddr,
    node: IpAddr,
    client: IpAddr,
    other: IpAddr,
    balancer: IpAddr,
}

fn of(family: Family) -> Addresses {
    let [vip, node, client, other, balancer] = match family {
        Family::V4 => ["10.101.0.1", "192.0.2.1", "192.0.2.9", "192.0.2.2", "203.0.113.1"],
        Family::V6 => ["fd00:2::1", "2001:db8:1::1", "2001:db8:1::9", "2001:db8:1::2", "2001:db8:5::1"],
    }
    .map(|text| text.parse().expect("an address"));
    Addresses { vip, node, client, other, balancer }
}

/// A node with two pods, and two hosts beside it on one wire.
struct Scene {
    kernel: Kernel,
    one: Pod,
    two: Pod,
    client: Netns,
    other: Netns,
    wire: Netns,
}

impl Scene {
    fn new(sandbox: &Sandbox) -> Self {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        forward();
        let [one, two] = [5, 6].map(|number| Pod::new(&mut kernel, number));
        Writer::default().put(&mut kernel, 1, &Defaults::default(), &[]);
        for pod in [&one, &two] {
            kernel.endpoints.upsert(pod.ifindex, pod.endpoint(300, 1)).expect("writable");
        }
        let wire = Netns::new();
        wire.run(|| {
            run(&["ip", "link", "add", "wire", "type", "bridge"]);
            run(&["ip", "link", "set", "wire", "up"]);
        });
        let (client, other) = (Netns::new(), Netns::new());
        let ends = [("net", None), ("client", Some(&client)), ("other", Some(&other))];
        for (name, netns) in ends {
            let end = format!("{name}-end");
            run(&["ip", "link", "add", name, "type", "veth", "peer", "name", &end]);
            wire.take(&end);
            wire.run(move || run(&["ip", "link", "set", &end, "master", "wire", "up"]));
            if let Some(netns) = netns {
                netns.take(name);
            }
        }
        address("net", of(Family::V4).node, of(Family::V6).node);
        client.run(|| {
            address("client", of(Family::V4).client, of(Family::V6).client);
            for family in BOTH {
                route(of(family).balancer, of(family).node);
                // Nobody outside is told of these; if they were, it would be for nothing.
                route(of(family).vip, of(family).node);
            }
        });
        other.run(|| address("other", of(Family::V4).other, of(Family::V6).other));
        let node = config(of(Family::V4).node, of(Family::V6).node);
        kernel.set_net(&["net".to_owned()], node, None).expect("attachable");
        Self { kernel, one, two, client, other, wire }
    }

    fn put(&mut self, at: IpAddr, port: u16, scope: u8, entry: &ServiceEntry) {
        for protocol in [TCP, UDP] {
            let key = ServiceKey::new(at.into(), port, protocol, scope);
            self.kernel.services.put(key, entry).expect("writable");
        }
    }

    fn dropped(&self, reason: Reason) -> u64 {
        let metrics = self.kernel.metrics().expect("readable");
        metrics.iter().filter(|(_, known, _)| *known == reason).map(|(.., metric)| metric.packets).sum()
    }
}

fn config(v4: IpAddr, v6: IpAddr) -> NodeConfig {
    NodeConfig {
        v4: v4.into(),
        v6: v6.into(),
        first_port: *BORROWED.start(),
        last_port: *BORROWED.end(),
        ..NodeConfig::default()
    }
}

fn address(ifname: &str, v4: IpAddr, v6: IpAddr) {
    run(&["ip", "addr", "add", &format!("{v4}/24"), "dev", ifname]);
    run(&["ip", "addr", "add", &format!("{v6}/64"), "dev", ifname, "nodad"]);
    run(&["ip", "link", "set", ifname, "up"]);
}

fn route(to: IpAddr, via: IpAddr) {
    run(&["ip", "route", "add", &to.to_string(), "via", &via.to_string()]);
}

/// A node without a tunnel to it.
fn routed(at: fn(Addresses) -> IpAddr) -> BTreeMap<IpNet, Hop> {
    let [v4, v6] = BOTH.map(|family| at(of(family)));
    let hop = Hop { v4: v4.into(), v6: v6.into(), flags: Hop::ROUTED, padding: 0 };
    [v4, v6].map(|at| (at.into(), hop)).into()
}

/// A service of backends with equal shares.
fn served(backends: &[(SocketAddr, bool)]) -> ServiceEntry {
    let each =
        backends.iter().map(|(at, here)| (*at, ServedBackend { weight: 1, chosen: true, here: *here }));
    ServiceEntry { backends: each.collect(), ..ServiceEntry::default() }
}

/// Who asked whom, as told by servers.
type Asked = Receiver<SocketAddr>;

/// Sends back what it gets, and tells from whom.
fn serve(netns: &Netns, at: SocketAddr) -> Asked {
    let (tell, told) = channel();
    let (listener, socket) =
        netns.run(move || (TcpListener::bind(at).expect("free"), UdpSocket::bind(at).expect("free")));
    let tell_too = tell.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.peer_addr().map(|from| tell.send(from));
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = tell_too.send(from);
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    told
}

/// Asks by TCP and by UDP, and is answered by whom it asked.
fn ask(netns: &Netns, at: SocketAddr) {
    let stream = connect(netns, at).unwrap_or_else(|error| panic!("{at}: {error}"));
    exchange(&stream, 1_000).unwrap_or_else(|error| panic!("{at}: {error}"));
    let length = netns.run(move || ask_by_datagram(at, 500)).unwrap_or_else(|error| panic!("{at}: {error}"));
    assert_eq!(length, 500);
}

/// (A link's first neighbours of IPv6 take a second to be found.)
fn connect(netns: &Netns, at: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = netns.run(move || TcpStream::connect_timeout(&at, Duration::from_secs(10)))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

fn exchange(stream: &TcpStream, bytes: usize) -> std::io::Result<()> {
    let sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || (&sender).write_all(&vec![7; bytes]));
    let mut back = vec![0; bytes];
    (&*stream).read_exact(&mut back)?;
    sending.join().expect("no panic")
}

fn ask_by_datagram(at: SocketAddr, bytes: usize) -> std::io::Result<usize> {
    let socket = UdpSocket::bind(if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(at)?;
    socket.send(&vec![7; bytes])?;
    socket.recv(&mut [0; 2_048])
}

#[test]
fn a_pod_whose_sockets_no_hook_sees_reaches_a_service_by_packets() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = scene.two.at(family, PORT);
            let asked = serve(&scene.two.netns, backend);
            let vip = of(family).vip;
            scene.put(vip, 80, scope::INSIDE, &served(&[(backend, true)]));
            ask(&scene.one.netns, SocketAddr::new(vip, 80));
            let callers: Vec<IpAddr> = asked.try_iter().map(|from| from.ip()).collect();
            assert_eq!(callers, [scene.one.addr(family); 2], "as themselves");
            // Large enough for segmentation offload.
            let stream = connect(&scene.one.netns, SocketAddr::new(vip, 80)).expect("served");
            exchange(&stream, 4 << 20).expect("answered");
            assert_eq!(stream.peer_addr().expect("connected"), SocketAddr::new(vip, 80));
        }
        assert_eq!(scene.dropped(Reason::SpoofedSource), 0);
    });
}

/// Asks from this port, and ends the connection.
fn ask_from(netns: &Netns, from: SocketAddr, at: SocketAddr) {
    let connected = netns.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(from)?;
            let stream = tokio::time::timeout(Duration::from_secs(10), socket.connect(at)).await??;
            stream.into_std()
        })
    });
    let stream = connected.unwrap_or_else(|error| panic!("{from} to {at}: {error}"));
    stream.set_nonblocking(false).expect("settable");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("settable");
    exchange(&stream, 1_000).unwrap_or_else(|error| panic!("{from} to {at}: {error}"));
    stream.shutdown(Shutdown::Write).expect("connected");
    assert_eq!((&stream).read(&mut [0; 16]).expect("ended by the other side as well"), 0);
}

#[test]
fn whoever_asks_a_backend_itself_from_the_port_of_an_ended_connection_to_its_service_is_answered_by_it() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = scene.two.at(family, PORT);
            let asked = serve(&scene.two.netns, backend);
            for (vip, scope) in [(of(family).vip, scope::INSIDE), (of(family).node, scope::OUTSIDE)] {
                scene.put(vip, NODE_PORT, scope, &served(&[(backend, true)]));
            }
            scene.client.run(move || route(backend.ip(), of(family).node));
            let inside = (&scene.one.netns, scene.one.at(family, 4_000), of(family).vip);
            let outside = (&scene.client, SocketAddr::new(of(family).client, 4_000), of(family).node);
            for (netns, from, service) in [inside, outside] {
                for _ in 0..2 {
                    ask_from(netns, from, SocketAddr::new(service, NODE_PORT));
                    ask_from(netns, from, backend);
                }
                assert_eq!(asked.try_iter().collect::<Vec<_>>(), [from; 4]);
            }
        }
    });
}

#[test]
fn an_event_says_which_service_was_asked_and_of_a_call_to_a_pod_none() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let mut events = scene.kernel.events().expect("not taken yet");
        for family in BOTH {
            let Addresses { vip, node, client, .. } = of(family);
            let backend = scene.two.at(family, PORT);
            let _asked = serve(&scene.two.netns, backend);
            scene.put(vip, 80, scope::INSIDE, &served(&[(backend, true)]));
            scene.put(node, NODE_PORT, scope::OUTSIDE, &served(&[(backend, true)]));
            while events.try_next().is_some() {}
            let doors = [scene.one.ifindex, scene.two.ifindex];
            let number = |at: IpAddr, port| ServiceKey::told(&at.into(), port, TCP);
            let mut told = |from: IpAddr| {
                let all: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
                let tcp = all.iter().filter(|event| event.protocol == TCP && IpAddr::from(event.src) == from);
                doors.map(|door| tcp.clone().find(|event| event.ifindex == door).map(|event| event.service))
            };
            let (one, own) = (&scene.one.netns, scene.one.addr(family));
            ask(one, backend);
            assert_eq!(told(own), [Some(0), Some(0)], "{family:?}: the pod itself");
            ask(one, SocketAddr::new(vip, 80));
            assert_eq!(told(own)[0], Some(number(vip, 80)), "{family:?}: by packets");
            ask_by_hooked_socket(sandbox, one, SocketAddr::new(vip, 80));
            assert_eq!(told(own)[0], Some(number(vip, 80)), "{family:?}: by a socket");
            ask_by_hooked_socket(sandbox, one, backend);
            assert_eq!(told(own)[0], Some(0), "{family:?}: the pod itself by a socket");
            ask(&scene.client, SocketAddr::new(node, NODE_PORT));
            assert_eq!(told(client), [None, Some(number(node, NODE_PORT))], "{family:?}: from outside");
        }
    });
}

/// A process of the hooked cgroup asks from somewhere, and is answered.
fn ask_by_hooked_socket(sandbox: &Sandbox, netns: &Netns, at: SocketAddr) {
    let procs = sandbox.cgroup.join("cgroup.procs");
    let script =
        format!("exec 3<>/dev/tcp/{}/{} && echo x >&3 && read -r -t 5 answer <&3", at.ip(), at.port());
    let status = netns.run(move || {
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &script]);
        // SAFETY: between fork and exec only one small file is written; the path was allocated before.
        unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
        command.status()
    });
    assert!(status.expect("bash starts").success(), "{at}");
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = scene.one.at(family, PORT);
            let asked = serve(&scene.one.netns, backend);
            scene.put(of(family).vip, 80, scope::INSIDE, &served(&[(backend, true)]));
            ask(&scene.one.netns, SocketAddr::new(of(family).vip, 80));
            for from in asked.try_iter() {
                assert_eq!(from.ip(), IpAddr::from(ebpf_shared::nat::loopback(backend.is_ipv4())));
            }
        }
    });
}

#[test]
fn a_service_without_backends_is_refused_and_that_is_told() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for (family, count) in BOTH.into_iter().zip(1..) {
            scene.put(of(family).vip, 80, scope::INSIDE, &served(&[]));
            let at = SocketAddr::new(of(family).vip, 80);
            let netns = &scene.one.netns;
            let refused = netns.run(move || TcpStream::connect_timeout(&at, Duration::from_millis(300)));
            assert_eq!(refused.expect_err("nobody there").kind(), ErrorKind::TimedOut);
            assert!(scene.dropped(Reason::NoBackend) >= count);
        }
    });
}

#[test]
fn flows_stay_with_a_backend_that_ends_and_leave_one_that_is_gone() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let vip = SocketAddr::new(of(family).vip, 80);
            let (first, second) = (scene.two.at(family, PORT), scene.two.at(family, PORT + 1));
            let [asked, asked_next] = [first, second].map(|at| serve(&scene.two.netns, at));
            scene.put(vip.ip(), 80, scope::INSIDE, &served(&[(first, true)]));
            let stream = connect(&scene.one.netns, vip).expect("served");
            exchange(&stream, 100).expect("answered");

            let mut draining = served(&[(first, true), (second, true)]);
            draining.backends.get_mut(&first).expect("there").chosen = false;
            scene.put(vip.ip(), 80, scope::INSIDE, &draining);
            exchange(&stream, 100).expect("goes on");
            asked.try_iter().for_each(drop);
            ask(&scene.one.netns, vip);
            assert_eq!((asked.try_iter().count(), asked_next.try_iter().count()), (0, 2), "no new ones");

            scene.put(vip.ip(), 80, scope::INSIDE, &served(&[(second, true)]));
            let error = exchange(&stream, 100).expect_err("to another, who does not know it");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn clients_outside_reach_backends_of_the_node_as_themselves() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = scene.one.at(family, PORT);
            let asked = serve(&scene.one.netns, backend);
            let entry = served(&[(backend, true)]);
            for (at, port) in [(of(family).node, NODE_PORT), (of(family).balancer, 80)] {
                scene.put(at, port, scope::OUTSIDE, &entry);
                ask(&scene.client, SocketAddr::new(at, port));
                let callers: Vec<IpAddr> = asked.try_iter().map(|from| from.ip()).collect();
                assert_eq!(callers, [of(family).client; 2]);
            }
            let stream = connect(&scene.client, SocketAddr::new(of(family).node, NODE_PORT)).expect("served");
            exchange(&stream, 4 << 20).expect("answered");
        }
    });
}

#[test]
fn clients_outside_reach_backends_of_other_nodes_through_this_one() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = SocketAddr::new(of(family).other, PORT);
            let asked = serve(&scene.other, backend);
            let at = SocketAddr::new(of(family).node, NODE_PORT);
            scene.put(at.ip(), at.port(), scope::OUTSIDE, &served(&[(backend, false)]));
            ask(&scene.client, at);
            let callers: Vec<SocketAddr> = asked.try_iter().collect();
            assert_eq!(callers.len(), 2);
            for from in callers {
                assert_eq!(from.ip(), of(family).node);
                assert!(BORROWED.contains(&from.port()), "{from}");
            }
            let stream = connect(&scene.client, at).expect("served");
            exchange(&stream, 4 << 20).expect("answered");
            // Two halves each; what is done gives its port back soon.
            let halves = scene.kernel.nat.dump().expect("readable");
            assert_eq!(halves.keys().filter(|key| key.tuple.dst.is_v4() == at.is_ipv4()).count(), 6);
        }
    });
}

#[test]
fn errors_about_translated_packets_reach_whom_they_concern() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let at = SocketAddr::new(of(family).node, NODE_PORT);
            // Nobody listens: the port is told to be unreachable by the host elsewhere, and by the pod.
            let elsewhere = (SocketAddr::new(of(family).other, 9), false);
            let here = (scene.one.at(family, 9), true);
            for backend in [elsewhere, here] {
                scene.put(at.ip(), at.port(), scope::OUTSIDE, &served(&[backend]));
                let error = scene.client.run(move || ask_by_datagram(at, 10)).expect_err("nobody there");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{backend:?}");
            }
            let vip = SocketAddr::new(of(family).vip, 80);
            scene.put(vip.ip(), 80, scope::INSIDE, &served(&[(scene.two.at(family, 9), true)]));
            let error = scene.one.run(move || ask_by_datagram(vip, 10)).expect_err("nobody there");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        // A way that takes less than the client sends tells so, by the node itself.
        run(&["ip", "link", "set", "host5", "mtu", "1400"]);
        for family in BOTH {
            let backend = scene.one.at(family, PORT);
            let _asked = serve(&scene.one.netns, backend);
            let at = SocketAddr::new(of(family).node, NODE_PORT);
            scene.put(at.ip(), at.port(), scope::OUTSIDE, &served(&[(backend, true)]));
            let stream = connect(&scene.client, at).expect("served");
            exchange(&stream, 1 << 20).expect("learnt");
        }
    });
}

#[test]
fn a_load_balancer_serves_its_source_ranges_only() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = scene.one.at(family, PORT);
            let _asked = serve(&scene.one.netns, backend);
            let at = SocketAddr::new(of(family).balancer, 80);
            let mut entry = served(&[(backend, true)]);
            let range = |text: &str| text.parse().expect("a CIDR");
            entry.sources = [range("198.51.100.0/24"), range("2001:db8:9::/48")].into();
            scene.put(at.ip(), 80, scope::OUTSIDE, &entry);
            let netns = &scene.client;
            let refused = netns.run(move || TcpStream::connect_timeout(&at, Duration::from_millis(300)));
            assert_eq!(refused.expect_err("dropped").kind(), ErrorKind::TimedOut);
            assert!(scene.dropped(Reason::SourceRange) > 0);
            entry.sources.extend([range("192.0.2.0/24"), range("2001:db8:1::/64")]);
            scene.put(at.ip(), 80, scope::OUTSIDE, &entry);
            ask(&scene.client, at);
        }
    });
}

#[test]
fn a_virtual_address_is_no_service_to_clients_outside_and_the_rest_of_the_traffic_is_left_alone() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let backend = scene.one.at(family, PORT);
            let _asked = serve(&scene.one.netns, backend);
            scene.put(of(family).vip, 80, scope::INSIDE, &served(&[(backend, true)]));
            scene.put(of(family).node, NODE_PORT, scope::OUTSIDE, &served(&[(backend, true)]));
            let vip = SocketAddr::new(of(family).vip, 80);
            let netns = &scene.client;
            netns
                .run(move || TcpStream::connect_timeout(&vip, Duration::from_millis(300)))
                .expect_err("nobody");
            // The host's own servers, also at ports of the borrowed range.
            for port in [22, *BORROWED.start()] {
                let own = SocketAddr::new(of(family).node, port);
                let listener = TcpListener::bind(own).expect("free");
                connect(&scene.client, own).expect("not translated");
                drop(listener);
            }
            // And back out.
            let outside = SocketAddr::new(of(family).client, PORT);
            let _asked = serve(&scene.client, outside);
            let stream = TcpStream::connect(outside).expect("not translated");
            exchange(&stream, 100).expect("answered");
        }
        assert!(scene.kernel.nat.dump().expect("readable").is_empty());
    });
}

#[test]
fn the_next_agent_goes_on_with_the_flows_and_lets_go_of_interfaces_that_it_is_not_told() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let backend = SocketAddr::new(of(Family::V4).other, PORT);
        let _asked = serve(&scene.other, backend);
        let at = SocketAddr::new(of(Family::V4).node, NODE_PORT);
        scene.put(at.ip(), at.port(), scope::OUTSIDE, &served(&[(backend, false)]));
        let stream = connect(&scene.client, at).expect("served");
        exchange(&stream, 100).expect("answered");
        let Scene { kernel, one: _one, two: _two, client, other: _other, wire: _kept } = scene;
        drop(kernel);
        exchange(&stream, 100).expect("nobody is needed");
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        exchange(&stream, 100).expect("goes on");
        assert_eq!(kernel.attached_pods().expect("listed").len(), 2, "the node's interface is no pod's");
        kernel.set_net(&[], NodeConfig::default(), None).expect("detachable");
        let refused = client.run(move || TcpStream::connect_timeout(&at, Duration::from_millis(500)));
        assert_eq!(refused.expect_err("no service any more").kind(), ErrorKind::ConnectionRefused);
    });
}

/// The host beside the node becomes a node too, with a pod of its own.
fn second_node(sandbox: &Sandbox, netns: &Netns) -> (Kernel, Pod) {
    let (bpffs, cgroup) = (sandbox.bpffs().join("second"), sandbox.cgroup.clone());
    netns.run(move || {
        let mut kernel = Kernel::load(&bpffs, &cgroup).expect("the programs load");
        forward();
        let pod = Pod::new(&mut kernel, 7);
        Writer::default().put(&mut kernel, 1, &Defaults::default(), &[]);
        kernel.endpoints.upsert(pod.ifindex, pod.endpoint(301, 1)).expect("writable");
        let node = config(of(Family::V4).other, of(Family::V6).other);
        kernel.set_net(&["other".to_owned()], node, None).expect("attachable");
        (kernel, pod)
    })
}

#[test]
fn a_backend_of_another_node_answers_by_itself_where_the_service_asks_for_that() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        let (mut second, pod) = second_node(sandbox, &scene.other);
        second.nodes.set(&routed(|at| at.node)).expect("writable");
        for family in BOTH {
            route(pod.addr(family), of(family).other);
            let backend = pod.at(family, PORT);
            let asked = serve(&pod.netns, backend);
            let direct = |here| ServiceEntry { direct: true, ..served(&[(backend, here)]) };
            let node_port = (of(family).node, NODE_PORT, of(family).other);
            let balancer = (of(family).balancer, 80, of(family).balancer);
            for (at, port, at_second) in [node_port, balancer] {
                scene.put(at, port, scope::OUTSIDE, &direct(false));
                let key = ServiceKey::new(at_second.into(), port, TCP, scope::OUTSIDE);
                let at = SocketAddr::new(at, port);
                // A node that does not know the service does not answer in its name.
                let netns = &scene.client;
                let strange = netns.run(move || TcpStream::connect_timeout(&at, Duration::from_millis(300)));
                assert!(strange.is_err());
                second.services.put(key, &direct(true)).expect("writable");
                let stream = connect(&scene.client, at).expect("served");
                assert_eq!(stream.peer_addr().expect("connected"), at);
                exchange(&stream, 4 << 20).expect("answered");
                let caller = asked.try_iter().last();
                assert_eq!(caller.map(|from| from.ip()), Some(of(family).client), "as itself");
                assert!(second.services.remove(&key).expect("removable").is_some());
            }
            // Datagrams go by the node that was asked.
            let at = SocketAddr::new(of(family).node, NODE_PORT);
            assert_eq!(scene.client.run(move || ask_by_datagram(at, 500)).expect("answered"), 500);
        }
        let halves = scene.kernel.nat.dump().expect("readable");
        assert!(halves.iter().filter(|(key, _)| key.protocol == TCP).all(|(_, half)| half.is_reply == 0));
    });
}

/// A segment that opens a connection, and says whom its sender has asked first.
fn telling(client: SocketAddr, backend: SocketAddr, asked: SocketAddr) -> Vec<u8> {
    let opening = syn((client.ip(), client.port()), (backend.ip(), backend.port()));
    match asked.ip() {
        IpAddr::V4(addr) => {
            let mut bytes = frame(&opening);
            let option = [&[0x9a, 8], &asked.port().to_be_bytes()[..], &addr.octets()].concat();
            bytes.splice(34..34, option);
            (bytes[14], bytes[17]) = (0x47, bytes[17] + 8);
            bytes
        }
        IpAddr::V6(addr) => {
            let rest = [&[2, 0x1e, 18], &addr.octets()[..], &asked.port().to_be_bytes(), &[1, 0]].concat();
            extended(&opening, &[(DESTINATION, rest)])
        }
    }
}

/// By what address a backend answers whoever says that they asked there first, if by any but its own.
fn said(kernel: &Kernel, client: (IpAddr, u16), backend: SocketAddr, asked: (IpAddr, u16)) -> Option<IpAddr> {
    let frame = telling(client.into(), backend, asked.into());
    kernel.time_program("from_net", &frame, 1).expect("runs");
    let halves = kernel.nat.dump().expect("readable");
    let of_client = |key: &NatKey| (IpAddr::from(key.tuple.dst), key.tuple.dst_port) == client;
    let half = halves.iter().find(|(key, _)| of_client(key));
    half.map(|(_, half)| half.tuple.src.into())
}

#[test]
fn nobody_has_a_node_answer_by_another_address_than_a_service_s() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        for family in BOTH {
            let Addresses { node, other, client, balancer, .. } = of(family);
            scene.kernel.nodes.set(&BTreeMap::new()).expect("writable");
            let (backend, stranger) = (scene.one.at(family, PORT), scene.two.at(family, PORT));
            scene.put(
                node,
                NODE_PORT,
                scope::OUTSIDE,
                &ServiceEntry { direct: true, ..served(&[(backend, true)]) },
            );
            // Both are served, so that both are looked at.
            scene.put(balancer, 80, scope::OUTSIDE, &served(&[(backend, true), (stranger, true)]));
            assert_eq!(
                said(&scene.kernel, (client, 1), backend, (other, NODE_PORT)),
                None,
                "{family:?}: nobody knows that it is a node"
            );
            assert_eq!(
                said(&scene.kernel, (client, 3), backend, (balancer, 80)),
                None,
                "{family:?}: is not answered directly"
            );
            assert_eq!(
                said(&scene.kernel, (client, 4), backend, (node, NODE_PORT)),
                Some(node),
                "{family:?}: its own"
            );
            scene.kernel.nodes.set(&routed(|at| at.other)).expect("writable");
            assert_eq!(
                said(&scene.kernel, (client, 5), backend, (other, NODE_PORT)),
                Some(other),
                "{family:?}"
            );
            assert_eq!(
                said(&scene.kernel, (client, 6), stranger, (other, NODE_PORT)),
                None,
                "{family:?}: no backend of the service"
            );
            assert_eq!(
                said(&scene.kernel, (client, 7), backend, (client, NODE_PORT)),
                None,
                "{family:?}: no node"
            );
        }
    });
}

/// Has an interface of this thread's namespace send whole packets with whole checksums, as they come from a wire: what
/// stays on one machine has neither.
fn as_from_a_wire(ifname: &str) {
    // Checksums, scatter-gather and segmentation.
    ethtool(ifname, &[0x17, 0x19, 0x1f, 0x24], 0);
}

/// Has one end of a link take what the driver of the other end sends by itself: it does if it has a program of its own.
fn as_a_wire(sandbox: &Sandbox, wire: &Netns) -> Kernel {
    let (bpffs, cgroup) = (sandbox.bpffs().join("wire"), sandbox.cgroup.clone());
    wire.run(move || {
        let mut kernel = Kernel::load(&bpffs, &cgroup).expect("the programs load");
        let nobody = NodeConfig::default();
        kernel.set_net(&["net-end".to_owned()], nobody, Some(ShortCut::Driver)).expect("attachable");
        kernel
    })
}

/// Switches features by the commands of linux/ethtool.h.
fn ethtool(ifname: &str, commands: &[u32], data: u32) {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("free");
    for command in commands {
        let mut value = Value { command: *command, data };
        // SAFETY: all zero is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: the request names an interface and a value that outlive the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        assert_eq!(result, 0, "{command:#x}: {}", std::io::Error::last_os_error());
    }
}

#[test]
fn the_short_cut_changes_nothing_but_the_way() {
    short_cut(ShortCut::Generic);
}

#[test]
fn neither_does_the_one_in_the_driver() {
    short_cut(ShortCut::Driver);
}

fn short_cut(cut: ShortCut) {
    in_sandbox(move |sandbox| {
        let mut scene = Scene::new(sandbox);
        let _kept = matches!(cut, ShortCut::Driver).then(|| as_a_wire(sandbox, &scene.wire));
        scene.client.run(|| as_from_a_wire("client"));
        scene.other.run(|| as_from_a_wire("other"));
        let node = config(of(Family::V4).node, of(Family::V6).node);
        scene.kernel.set_net(&["net".to_owned()], node, Some(cut)).expect("attachable");
        for family in BOTH {
            let backend = SocketAddr::new(of(family).other, PORT);
            let asked = serve(&scene.other, backend);
            let at = SocketAddr::new(of(family).node, NODE_PORT);
            scene.put(at.ip(), at.port(), scope::OUTSIDE, &served(&[(backend, false)]));
            ask(&scene.client, at);
            let stream = connect(&scene.client, at).expect("served");
            let before = scene.kernel.accelerated().expect("readable");
            // Its first second goes the usual way.
            let until = std::time::Instant::now() + Duration::from_secs(3);
            while std::time::Instant::now() < until {
                exchange(&stream, 100_000).expect("answered");
            }
            let after = scene.kernel.accelerated().expect("readable");
            assert!(after - before > 1_000, "{family:?}: {before} to {after}");
            let from = asked.try_iter().last().expect("somebody");
            assert_eq!(from.ip(), of(family).node);
            // As one that is gone is left, there as here.
            scene.put(at.ip(), at.port(), scope::OUTSIDE, &served(&[]));
            stream.set_read_timeout(Some(Duration::from_millis(300))).expect("settable");
            exchange(&stream, 100).expect_err("nobody is left");
        }
        scene.kernel.set_net(&["net".to_owned()], node, None).expect("detachable");
        let links = std::fs::read_dir(sandbox.bpffs().join("links")).expect("there").flatten();
        assert!(!links.into_iter().any(|link| link.file_name().to_string_lossy().starts_with("xdp-")));
    });
}

/// A bridge has no driver that takes programs; a virtual link has.
#[test]
fn an_interface_has_the_short_cut_by_the_best_way_that_it_takes() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        run(&["ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
        run(&["ip", "link", "add", "bridge0", "type", "bridge"]);
        let both = ["veth0", "bridge0"].map(str::to_owned);
        let links = || -> BTreeSet<String> {
            let all = std::fs::read_dir(sandbox.bpffs().join("links")).expect("there").flatten();
            let names = all.map(|link| link.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.starts_with("xdp-")).collect()
        };
        let set = |kernel: &mut Kernel, cut| kernel.set_net(&both, NodeConfig::default(), cut);
        let [veth, bridge] =
            both.each_ref().map(|name| nix::net::if_::if_nametoindex(&**name).expect("there"));
        let of = |ways: [&str; 2]| -> BTreeSet<String> {
            [format!("xdp-{veth}-{}", ways[0]), format!("xdp-{bridge}-{}", ways[1])].into()
        };
        let generic = set(&mut kernel, Some(ShortCut::Generic)).expect("any interface takes it");
        assert_eq!((generic["veth0"], generic["bridge0"]), ("generic", "generic"));
        assert_eq!(links(), of(["generic", "generic"]));
        // Twice: the next agent finds it there.
        for _ in 0..2 {
            let best = set(&mut kernel, Some(ShortCut::Best)).expect("one way or the other");
            assert_eq!((best["veth0"], best["bridge0"]), ("driver", "generic"));
            assert_eq!(links(), of(["driver", "generic"]));
        }
        let refused = set(&mut kernel, Some(ShortCut::Driver)).expect_err("the bridge has no such driver");
        assert!(refused.to_string().contains("net_xdp"), "{refused}");
        assert_eq!(set(&mut kernel, None).expect("detachable"), BTreeMap::new());
        assert_eq!(links(), BTreeSet::new());
    });
}

#[test]
fn who_asks_for_a_node_port_without_backends_is_told_so_at_once() {
    in_sandbox(|sandbox| {
        let mut scene = Scene::new(sandbox);
        scene.kernel.set_locals(&BOTH.map(|family| of(family).node).into()).expect("writable");
        for family in BOTH {
            let node = of(family).node;
            for scope in [scope::INSIDE, scope::OUTSIDE] {
                scene.put(node, NODE_PORT, scope, &served(&[]));
            }
            let at = SocketAddr::new(node, NODE_PORT);
            for netns in [&scene.client, &scene.one.netns] {
                let refused = connect(netns, at).expect_err("nobody serves it");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{at}");
                let refused = netns.run(move || ask_by_datagram(at, 5)).expect_err("nobody serves it");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{at}");
            }
        }
        assert!(scene.dropped(Reason::NoBackend) >= 8);
    });
}
