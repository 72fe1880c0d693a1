//! Egress to names: the real agent, its DNS proxy and the kernel, a pod, and a network outside with a DNS server.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use node_agent::cni::Netns;
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    Host,
    control_plane::{State, eventually, eventually_within},
    name, netns, run,
    support::in_sandbox,
};

const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 53));
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0x53));
pub const A: u16 = 1;
pub const AAAA: u16 = 28;
pub const REFUSED: u8 = 5;
const SERVER_FAILURE: u8 = 2;

/// The addresses of a host outside, by its number.
fn outside(n: u8) -> [IpAddr; 2] {
    [[198, 51, 100, n].into(), Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, n.into()).into()]
}

/// What the server knows: by name, the host, and for how many seconds that holds.
type Zone = Arc<Mutex<BTreeMap<String, (u8, u32)>>>;

#[test]
fn a_node_lets_pods_to_names_and_to_nothing_else() {
    in_sandbox(|sandbox| {
        let world = name("world");
        std::fs::create_dir_all("/run/netns").unwrap();
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        run(&["ip", "netns", "add", &world]);
        let at_once = "net.ipv6.conf.default.accept_dad=0";
        run(&["ip", "netns", "exec", &world, "sysctl", "-q", "-w", at_once]);
        let inside = |arguments: &[&str]| run(&[&["ip", "-n", &world], arguments].concat());
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", &world]);
        inside(&["link", "set", "lo", "up"]);
        for n in [1, 2, 3, 4, 53] {
            inside(&["address", "add", &format!("198.51.100.{n}/24"), "dev", "up1"]);
            inside(&["address", "add", &format!("2001:db8:5::{n:x}/64"), "dev", "up1", "nodad"]);
        }
        inside(&["address", "add", "2001:db8:5::53/64", "dev", "up1", "nodad"]);
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "up0"]);
        run(&["ip", "address", "add", "2001:db8::1/128", "dev", "up0", "nodad"]);
        run(&["ip", "link", "set", "up0", "up"]);
        inside(&["link", "set", "up1", "up"]);
        run(&["ip", "route", "add", "198.51.100.0/24", "dev", "up0"]);
        run(&["ip", "-6", "route", "add", "2001:db8:5::/64", "dev", "up0"]);
        inside(&["route", "add", "192.0.2.1", "dev", "up1"]);
        inside(&["-6", "route", "add", "2001:db8::1", "dev", "up1"]);
        mesh_tls::install_provider();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State::new();
        runtime.spawn(state.clone().serve());
        let dir = tempfile::tempdir().unwrap();
        let more = &["--dns-min-ttl", "3"];
        let mut host = Host { sandbox, dir: dir.path().to_owned(), token: state.token(), agent: None, more };
        let zone = Zone::default();
        serve(&zone);
        story(&mut host, &state, &zone);
        let state_dir = dir.path().join("state");
        let process = proxy(&host);
        if host.agent.is_some() {
            host.kill("-KILL");
        }
        let (fine, text) = host.agent(&["cleanup", "--state-dir", state_dir.to_str().unwrap()]);
        assert!(fine, "{text}");
        // One that nobody has waited for is there until somebody does, without a command line.
        let command = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        assert!(command.is_empty(), "the DNS proxy is removed as well");
        for namespace in ["world", "pay"] {
            run(&["ip", "netns", "delete", &name(namespace)]);
        }
        let _ = std::fs::remove_dir(host.gateway_cgroup());
    });
}

/// Ask only the two servers, for these names only, and go where two names, a pattern and a shared one lead.
fn policy() -> wire::PolicyClass {
    let provenance = |n: usize| format!("ciliumnetworkpolicy/shop/names#egress[{n}]");
    let patterns = ["www.example.com", "*.pat.example.com", "shared.example.net"];
    let wired = |text: &str| wire::NamePattern { pattern: text.into(), ..Default::default() };
    let mut rules = Vec::new();
    for cidr in ["198.51.100.53/32", "2001:db8:5::53/128"] {
        for protocol in [wire::Protocol::Udp, wire::Protocol::Tcp] {
            rules.push(wire::PolicyRule {
                direction: wire::Direction::Egress as i32,
                action: wire::Action::QualifiedAllow as i32,
                cidr: cidr.into(),
                protocol: protocol as i32,
                port: 53,
                l7: Some(wire::L7 { dns: patterns.map(wired).into(), ..Default::default() }),
                provenance: provenance(0),
                ..Default::default()
            });
        }
    }
    rules.extend(patterns.map(|text| wire::PolicyRule {
        direction: wire::Direction::Egress as i32,
        action: wire::Action::QualifiedAllow as i32,
        name: Some(wired(text)),
        protocol: wire::Protocol::Tcp as i32,
        port: 80,
        provenance: provenance(1),
        ..Default::default()
    }));
    wire::PolicyClass {
        id: 2,
        default_deny_egress: true,
        egress_provenance: "ciliumnetworkpolicy/shop/names#default-deny-egress".into(),
        rules,
        ..Default::default()
    }
}

fn story(host: &mut Host<'_>, state: &Arc<State>, zone: &Zone) {
    let know = |name: &str, host: u8, ttl: u32| {
        zone.lock().unwrap().insert(name.into(), (host, ttl));
    };
    know("www.example.com", 1, 1);
    know("evil.example.org", 2, 600);
    know("a.pat.example.com", 2, 600);
    know("shared.example.net", 3, 600);
    know("b.pat.example.com", 3, 1);
    state.declare("mesh/gw");
    state.declare("shop/pay");
    state.put("1", &wire::PolicyClass { id: 1, ..Default::default() });
    state.put("2", &policy());
    // Pods have their node's address outside, as soon as it is known what is inside.
    state.put(
        "n1",
        &wire::Node {
            name: "n1".into(),
            address: "192.0.2.1".into(),
            address6: "2001:db8::1".into(),
            pod_cidrs: vec!["10.1.1.0/24".into(), "fd00:1::100/120".into()],
            ..Default::default()
        },
    );
    host.start();
    host.add("pay");
    eventually("the DNS proxy runs", || {
        std::fs::read_to_string(lock(host)).ok().filter(|text| !text.is_empty())
    });

    // Nothing is open before it was asked for; then it is at once, over both families and both transports.
    assert_eq!(reaches(1), [false, false]);
    eventually("the proxy has its rules", || (ask(FOUR, "www.example.com", A, false)?.0 == 0).then_some(()));
    assert_eq!(ask(FOUR, "www.example.com", A, false).unwrap(), (0, vec![outside(1)[0]]));
    assert_eq!(reaches(1), [true, false]);
    assert_eq!(ask(SIX, "www.example.com", AAAA, true).unwrap(), (0, vec![outside(1)[1]]));
    assert_eq!(reaches(1), [true, true]);
    assert_eq!(ask(SIX, "a.pat.example.com", A, false).unwrap().1, [outside(2)[0]]);
    assert_eq!(ask(FOUR, "a.pat.example.com", AAAA, true).unwrap().1, [outside(2)[1]]);
    assert_eq!(reaches(2), [true, true]);

    // Who may not be asked for is not told of.
    assert_eq!(ask(FOUR, "evil.example.org", A, false).unwrap(), (REFUSED, vec![]));
    let refused = eventually("the refusal is told", || {
        let told = |flow: &xds_proto::isthmus::bootstrap::v1::Flow| {
            flow.dns.as_ref().is_some_and(|dns| dns.query == "evil.example.org")
        };
        state.flows().into_iter().find(told)
    });
    assert_eq!((refused.verdict.as_str(), refused.drop_reason.as_str()), ("DROPPED", "POLICY_DENIED"));
    assert_eq!(refused.policy, "ciliumnetworkpolicy/shop/names#egress[0]");
    assert_eq!(refused.source.unwrap().workload, "shop/pay");

    // Two names at one address; and a connection that outlives its name.
    for family in [A, AAAA] {
        assert_eq!(ask(FOUR, "shared.example.net", family, false).unwrap().0, 0);
        assert_eq!(ask(FOUR, "b.pat.example.com", family, false).unwrap().0, 0);
        assert_eq!(ask(FOUR, "www.example.com", family, false).unwrap().0, 0);
    }
    let mut connections = outside(1).map(|address| connect(address).expect("it was told"));
    eventually("the name has ended", || (reaches(1) == [false, false]).then_some(()));
    for connection in &mut connections {
        assert!(echoes(connection), "what is there goes on");
    }
    let lingering = |host: &Host<'_>| {
        let bpffs = host.sandbox.bpffs();
        let (fine, text) =
            host.agent(&["maps", "dump", "LINGERING", "-o", "json", "--bpffs", bpffs.to_str().unwrap()]);
        assert!(fine, "{text}");
        outside(1).map(|address| text.contains(&address.to_string()))
    };
    assert_eq!(lingering(host), [true, true]);
    drop(connections);
    // Twice the time for which a closed connection is remembered.
    eventually_within(Duration::from_secs(40), "nobody is connected any more", || {
        (lingering(host) == [false, false]).then_some(())
    });
    assert_eq!(reaches(3), [true, true], "by its other name");
    let (fine, text) = host.agent(&["maps", "verify", "--socket", host.socket().to_str().unwrap()]);
    assert!(fine, "{text}");

    without_agent(host, know);

    // The proxy's death is noticed, and does not last.
    let before = proxy(host);
    run(&["kill", "-KILL", &before.to_string()]);
    let began = Instant::now();
    eventually("queries are answered again", || {
        (ask(FOUR, "shared.example.net", A, false)?.0 == 0).then_some(())
    });
    println!("DNS proxy: answers {:?} after it was killed", began.elapsed());
    assert_ne!(proxy(host), before);
    let (fine, text) = host.agent(&["stop", "--socket", host.socket().to_str().unwrap()]);
    assert!(fine && text.contains("the DNS proxy, a process of its own"), "{text}");
    assert!(host.agent.take().unwrap().wait().unwrap().success());
}

/// The agent is away: names that are allowed go on, new ones do not; and it comes back.
fn without_agent(host: &mut Host<'_>, know: impl Fn(&str, u8, u32)) {
    let process = proxy(host);
    host.kill("-KILL");
    know("new.pat.example.com", 4, 600);
    eventually("the proxy sees it", || {
        (ask(FOUR, "new.pat.example.com", A, false)?.0 == SERVER_FAILURE).then_some(())
    });
    assert_eq!(ask(FOUR, "shared.example.net", A, false).unwrap(), (0, vec![outside(3)[0]]));
    assert_eq!(ask(SIX, "a.pat.example.com", AAAA, true).unwrap(), (0, vec![outside(2)[1]]));
    assert_eq!((reaches(3), reaches(2), reaches(4)), ([true; 2], [true; 2], [false; 2]));
    host.start();
    assert_eq!((reaches(3), reaches(2), reaches(1)), ([true; 2], [true; 2], [false; 2]));
    assert_eq!(proxy(host), process, "it was taken over");
    eventually("the proxy sees it", || (ask(FOUR, "new.pat.example.com", A, false)?.0 == 0).then_some(()));
    assert_eq!(reaches(4), [true, false]);
}

fn lock(host: &Host<'_>) -> PathBuf {
    host.dir.join("state/dns/dns.lock")
}

/// The number of the DNS proxy's process.
pub fn proxy(host: &Host<'_>) -> u32 {
    std::fs::read_to_string(lock(host)).unwrap().parse().unwrap()
}

fn in_pod<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    Netns::open(&netns("pay")).unwrap().run(work).unwrap()
}

fn connect(address: IpAddr) -> Option<TcpStream> {
    in_pod(move || {
        let at = SocketAddr::new(address, 80);
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_millis(500)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        echoes(&mut stream).then_some(stream)
    })
}

/// Whether a host outside answers, by either family.
fn reaches(n: u8) -> [bool; 2] {
    outside(n).map(|address| connect(address).is_some())
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut text = [0; 5];
    stream.write_all(b"hello").is_ok() && stream.read_exact(&mut text).is_ok() && text == *b"hello"
}

/// A DNS server and web servers outside.
fn serve(zone: &Zone) {
    let world = Netns::open(&netns("world")).unwrap();
    for address in [FOUR, SIX] {
        let at = SocketAddr::new(address, 53);
        let (udp, tcp) =
            world.run(move || (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap())).unwrap();
        let known = zone.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&answer(&buffer[..length], &known), from);
            }
        });
        let known = zone.clone();
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let known = known.clone();
                std::thread::spawn(move || {
                    while let Some(query) = framed(&mut stream) {
                        let answer = answer(&query, &known);
                        let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                        let _ = stream.write_all(&[&length, answer.as_slice()].concat());
                    }
                });
            }
        });
    }
    let web = world.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in web.incoming().flatten() {
            std::thread::spawn(move || {
                let mut text = [0; 5];
                while stream.read_exact(&mut text).is_ok() && stream.write_all(&text).is_ok() {}
            });
        }
    });
}

fn framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// RFC 1035: one question, and one answer to it if the name is known.
fn answer(query: &[u8], zone: &Zone) -> Vec<u8> {
    let (name, end) = labels(query, 12);
    let kind = u16::from_be_bytes([query[end], query[end + 1]]);
    let found = zone.lock().unwrap().get(&name).copied();
    let data = found.map(|(n, ttl)| {
        let [IpAddr::V4(four), IpAddr::V6(six)] = outside(n) else { unreachable!() };
        (if kind == A { four.octets().to_vec() } else { six.octets().to_vec() }, ttl)
    });
    let flags: u16 = if data.is_some() { 0x8180 } else { 0x8183 };
    let mut message = query[..2].to_vec();
    for field in [flags, 1, u16::from(data.is_some()), 0, 0] {
        message.extend(field.to_be_bytes());
    }
    message.extend(&query[12..end + 4]);
    if let Some((data, ttl)) = data {
        message.extend(0xc00c_u16.to_be_bytes());
        message.extend(kind.to_be_bytes());
        message.extend(1_u16.to_be_bytes());
        message.extend(ttl.to_be_bytes());
        message.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend(data);
    }
    message
}

/// A name without pointers, and where it ends.
fn labels(message: &[u8], mut at: usize) -> (String, usize) {
    let mut labels = Vec::new();
    while message[at] != 0 {
        let length = usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..at + 1 + length]).to_lowercase());
        at += 1 + length;
    }
    (labels.join("."), at + 1)
}

/// Asks from inside the pod: the response code and the addresses, if there is an answer.
pub fn ask(server: IpAddr, name: &str, kind: u16, tcp: bool) -> Option<(u8, Vec<IpAddr>)> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend(1_u16.to_be_bytes());
    let question = query.len();
    let message = in_pod(move || {
        let at = SocketAddr::new(server, 53);
        let patience = Duration::from_secs(3);
        if tcp {
            let mut stream = TcpStream::connect_timeout(&at, patience).ok()?;
            stream.set_read_timeout(Some(patience)).ok()?;
            let length = u16::try_from(query.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, query.as_slice()].concat()).ok()?;
            return framed(&mut stream);
        }
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Connected: what does not come from the server is not taken.
        socket.connect(at).ok()?;
        socket.set_read_timeout(Some(patience)).ok()?;
        socket.send(&query).ok()?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    })?;
    assert_eq!(message[..2], [0x12, 0x34]);
    let count = u16::from_be_bytes([message[6], message[7]]);
    let mut addresses = Vec::new();
    let mut at = question;
    for _ in 0..count {
        // A pointer, or a name in full.
        at = if message[at] >= 0xc0 { at + 2 } else { labels(&message, at).1 };
        let length = usize::from(u16::from_be_bytes([message[at + 8], message[at + 9]]));
        let data = &message[at + 10..at + 10 + length];
        match length {
            4 => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).unwrap())),
            16 => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).unwrap())),
            _ => {}
        }
        at += 10 + length;
    }
    Some((message[3] & 0xf, addresses))
}
