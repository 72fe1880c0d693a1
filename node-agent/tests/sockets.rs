//! The socket hooks, with real sockets of a process in a hooked cgroup, on the loopback interface of a
//! network namespace made for the test. Needs root.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ebpf_shared::ServiceKey;
use ebpf_shared::packet::protocol::{TCP, UDP};
use ebpf_shared::service::scope;
use node_agent::desired::{ServedBackend, ServiceEntry};
use node_agent::kernel::Kernel;
use support::{Sandbox, in_sandbox, run};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 101, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);
const PORT: u16 = 80;

fn key(protocol: u8) -> ServiceKey {
    ServiceKey::new(VIP.into(), PORT, protocol, scope::INSIDE)
}

/// The same service at an IPv6 address.
fn key6(protocol: u8) -> ServiceKey {
    ServiceKey::new(VIP6.into(), PORT, protocol, scope::INSIDE)
}

/// A service of equal backends.
fn of(at: impl IntoIterator<Item = SocketAddr>) -> ServiceEntry {
    let served = ServedBackend { weight: 1, chosen: true, here: true };
    let backends = at.into_iter().map(|at| (at, served)).collect();
    ServiceEntry { backends, ..ServiceEntry::default() }
}

fn at4(ports: &[u16]) -> ServiceEntry {
    of(ports.iter().map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), *port)))
}

fn at6(ports: &[u16]) -> ServiceEntry {
    of(ports.iter().map(|port| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), *port)))
}

fn load(sandbox: &Sandbox) -> Kernel {
    Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load")
}

/// Does one thing in a process of the hooked cgroup (see [`child_process`]) and returns what it said of it.
fn in_cgroup(sandbox: &Sandbox, what: &str) -> String {
    let procs = sandbox.cgroup.join("cgroup.procs");
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["child_process", "--exact", "--nocapture"])
        .env("ISTHMUS_TEST_DO", what)
        .stderr(Stdio::inherit());
    // SAFETY: between fork and exec only one small file is written; the path was allocated before.
    unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
    let output = command.output().expect("the child starts");
    let output = String::from_utf8(output.stdout).expect("text");
    let said = output.lines().find_map(|line| line.split_once("SAID ").map(|(_, said)| said.to_owned()));
    said.unwrap_or_else(|| panic!("{what}: the child said nothing: {output}"))
}

/// Not a test of its own: what [`in_cgroup`] runs.
#[test]
fn child_process() {
    let Ok(what) = std::env::var("ISTHMUS_TEST_DO") else { return };
    let (verb, addr) = what.split_once(' ').expect("verb and address");
    let addr: SocketAddr = addr.parse().expect("an address");
    let said = match verb {
        "connect" => connect(addr),
        "bind" => {
            TcpListener::bind(addr).and_then(|listener| listener.local_addr()).map(|addr| addr.to_string())
        }
        "datagram" => datagram(addr, false),
        "connected-datagram" => datagram(addr, true),
        "hold" => hold(addr),
        "hammer" => hammer(addr),
        "hold-datagrams" => hold_datagrams(addr),
        "outnumber" => outnumber(addr),
        other => panic!("{other}"),
    };
    println!("SAID {}", said.unwrap_or_else(|error| format!("{:?}", error.kind())));
}

/// The greeting of whoever answers, and whom the socket believes to be connected to.
fn connect(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting)?;
    Ok(format!("{greeting} as {}", stream.peer_addr()?))
}

/// Connects again and again; says how often it was, and what went wrong.
fn hammer(addr: SocketAddr) -> std::io::Result<String> {
    const TIMES: usize = 4_000;
    let failures: Vec<_> = (0..TIMES).filter_map(|_| connect(addr).err()).map(|error| error.kind()).collect();
    Ok(format!("{TIMES} times, {failures:?}"))
}

/// Connects, says so to the other side, and waits for what never comes.
fn hold(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"?")?;
    stream.read(&mut [0]).map(|length| format!("read {length}"))
}

/// Connects, and many others after it; says whom the first and the last of these sockets believe to be connected to, and
/// what comes of the first one.
fn outnumber(addr: SocketAddr) -> std::io::Result<String> {
    let mut first = TcpStream::connect(addr)?;
    let others: std::io::Result<Vec<_>> = (0..500).map(|_| TcpStream::connect(addr)).collect();
    let last = others?.last().map(TcpStream::peer_addr).transpose()?;
    // (Whoever is asked about is not forgotten so soon.)
    let after = first.peer_addr()?;
    first.write_all(b"?")?;
    first.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut greeting = [0; 5];
    first.read_exact(&mut greeting)?;
    Ok(format!("{after}, {last:?}, {}", String::from_utf8_lossy(&greeting)))
}

fn hold_datagrams(addr: SocketAddr) -> std::io::Result<String> {
    let socket = UdpSocket::bind(if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.connect(addr)?;
    socket.send(b"?")?;
    socket.recv(&mut [0]).map(|length| format!("read {length}"))
}

fn datagram(addr: SocketAddr, connected: bool) -> std::io::Result<String> {
    let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    if connected {
        socket.connect(addr)?;
        socket.send(b"?")?;
    } else {
        socket.send_to(b"?", addr)?;
    }
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let mut said = format!("{} from {from}", String::from_utf8_lossy(&buffer[..length]));
    if connected {
        said += &format!(" as {}", socket.peer_addr()?);
    }
    Ok(said)
}

/// Greets every TCP connection with `name`, for as long as the test's process lives. Returns its port.
fn serve(name: &'static str) -> u16 {
    serve_at(Ipv4Addr::LOCALHOST.into(), name)
}

fn serve_at(address: IpAddr, name: &'static str) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(name.as_bytes());
        }
    });
    port
}

/// Answers every datagram with `name`.
fn serve_datagrams(name: &'static str) -> u16 {
    serve_datagrams_at(Ipv4Addr::LOCALHOST.into(), name)
}

fn serve_datagrams_at(address: IpAddr, name: &'static str) -> u16 {
    let socket = UdpSocket::bind((address, 0)).expect("a free port");
    let port = socket.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    port
}

fn netns_cookie() -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes 8 bytes to `cookie` and their number to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    cookie
}

#[test]
fn a_service_is_reached_by_its_address_and_seen_at_its_address() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let service = at4(&[serve("one"), serve("two")]);
        kernel.services.put(key(TCP), &service).expect("writable");
        assert_eq!(kernel.services.entries().get(&key(TCP)), Some(&service));
        let mut answers = BTreeSet::new();
        for _ in 0..24 {
            answers.insert(in_cgroup(sandbox, "connect 10.101.0.1:80"));
        }
        let both = ["one as 10.101.0.1:80", "two as 10.101.0.1:80"];
        assert_eq!(answers.into_iter().collect::<Vec<_>>(), both);
        let mapped = in_cgroup(sandbox, "connect [::ffff:10.101.0.1]:80");
        assert!(mapped.ends_with(" as [::ffff:10.101.0.1]:80"), "{mapped}");
    });
}

#[test]
fn a_service_without_backends_refuses_and_one_that_is_removed_is_an_address_like_any_other() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let port = serve("one");
        kernel.services.put(key(TCP), &at4(&[port])).expect("writable");
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "one as 10.101.0.1:80");
        kernel.services.put(key(TCP), &ServiceEntry::default()).expect("writable");
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "ConnectionRefused");
        assert_eq!(in_cgroup(sandbox, "connect [::ffff:10.101.0.1]:80"), "ConnectionRefused");
        assert!(kernel.services.remove(&key(TCP)).expect("removable").is_some());
        assert!(kernel.services.remove(&key(TCP)).expect("twice is fine").is_none());
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "NetworkUnreachable");
        // Nobody outside the cgroup is concerned.
        kernel.services.put(key(TCP), &at4(&[port])).expect("writable");
        let outside = TcpStream::connect((VIP, PORT)).expect_err("not translated");
        assert_eq!(outside.kind(), std::io::ErrorKind::NetworkUnreachable);
    });
}

#[test]
fn datagrams_go_to_a_backend_and_answers_come_from_the_service() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let service = at4(&[serve_datagrams("one")]);
        kernel.services.put(key(UDP), &service).expect("writable");
        assert_eq!(in_cgroup(sandbox, "datagram 10.101.0.1:80"), "one from 10.101.0.1:80");
        assert_eq!(
            in_cgroup(sandbox, "connected-datagram 10.101.0.1:80"),
            "one from 10.101.0.1:80 as 10.101.0.1:80"
        );
        assert_eq!(in_cgroup(sandbox, "datagram [::ffff:10.101.0.1]:80"), "one from [::ffff:10.101.0.1]:80");
        assert_eq!(
            in_cgroup(sandbox, "connected-datagram [::ffff:10.101.0.1]:80"),
            "one from [::ffff:10.101.0.1]:80 as [::ffff:10.101.0.1]:80"
        );
        kernel.services.put(key(UDP), &ServiceEntry::default()).expect("writable");
        assert_eq!(in_cgroup(sandbox, "datagram 10.101.0.1:80"), "ConnectionRefused");
    });
}

#[test]
fn a_service_of_ipv6_is_reached_and_seen_at_its_address() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let here = IpAddr::from(Ipv6Addr::LOCALHOST);
        let service = at6(&[serve_at(here, "one"), serve_at(here, "two")]);
        kernel.services.put(key6(TCP), &service).expect("writable");
        assert_eq!(kernel.services.entries().get(&key6(TCP)), Some(&service));
        let answers: BTreeSet<_> = (0..24).map(|_| in_cgroup(sandbox, "connect [fd00:2::1]:80")).collect();
        let both = ["one as [fd00:2::1]:80", "two as [fd00:2::1]:80"];
        assert_eq!(answers.into_iter().collect::<Vec<_>>(), both);

        let service = at6(&[serve_datagrams_at(here, "three")]);
        kernel.services.put(key6(UDP), &service).expect("writable");
        assert_eq!(in_cgroup(sandbox, "datagram [fd00:2::1]:80"), "three from [fd00:2::1]:80");
        assert_eq!(
            in_cgroup(sandbox, "connected-datagram [fd00:2::1]:80"),
            "three from [fd00:2::1]:80 as [fd00:2::1]:80"
        );
        for protocol in [TCP, UDP] {
            kernel.services.put(key6(protocol), &ServiceEntry::default()).expect("writable");
        }
        for verb in ["connect", "datagram", "connected-datagram"] {
            assert_eq!(in_cgroup(sandbox, &format!("{verb} [fd00:2::1]:80")), "ConnectionRefused", "{verb}");
        }
    });
}

#[test]
fn with_a_sidecar_a_service_is_reached_through_the_proxy() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let service = ServiceEntry { proxy_port: serve("proxy"), ..at4(&[serve("backend")]) };
        kernel.services.put(key(TCP), &service).expect("writable");
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "backend as 10.101.0.1:80");
        kernel.put_sidecar(netns_cookie(), &BTreeSet::new()).expect("writable");
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "proxy as 10.101.0.1:80");
        // The same listener serves the service's other family.
        kernel
            .services
            .put(key6(TCP), &ServiceEntry { backends: BTreeMap::new(), ..service.clone() })
            .expect("writable");
        assert_eq!(in_cgroup(sandbox, "connect [fd00:2::1]:80"), "proxy as [fd00:2::1]:80");
        // The proxy answers for backends, not the kernel.
        let service = ServiceEntry { backends: BTreeMap::new(), ..service };
        kernel.services.put(key(TCP), &service).expect("writable");
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "proxy as 10.101.0.1:80");
        kernel.remove_sidecar(netns_cookie()).expect("removable");
        assert_eq!(in_cgroup(sandbox, "connect 10.101.0.1:80"), "ConnectionRefused");
    });
}

#[test]
fn a_service_that_is_led_to_a_proxy_of_the_node_is_left_to_the_program_at_the_pod_s_door() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        run(&["ip", "addr", "add", "10.101.0.1/32", "dev", "lo"]);
        run(&["ip", "addr", "add", "fd00:2::1/128", "dev", "lo", "nodad"]);
        // As if the door had it: whoever is asked for is met.
        let at: [IpAddr; 2] = [VIP.into(), VIP6.into()];
        for address in at {
            let listener = TcpListener::bind((address, PORT)).expect("free");
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.write_all(b"untouched");
                }
            });
        }
        let services = [at4(&[serve("backend")]), at6(&[serve_at(Ipv6Addr::LOCALHOST.into(), "backend")])];
        for ((key, service), address) in [key(TCP), key6(TCP)].into_iter().zip(services).zip(at) {
            let to = SocketAddr::new(address, PORT);
            kernel.services.put(key, &service).expect("writable");
            assert_eq!(in_cgroup(sandbox, &format!("connect {to}")), format!("backend as {to}"));
            let led = ServiceEntry { redirect: 7, ..service };
            kernel.services.put(key, &led).expect("writable");
            assert_eq!(kernel.services.entries().get(&key), Some(&led));
            assert_eq!(in_cgroup(sandbox, &format!("connect {to}")), format!("untouched as {to}"));
        }
    });
}

#[test]
fn an_application_with_a_sidecar_listens_on_loopback_only() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let captured = BTreeSet::from([(8080, TCP), (8081, UDP)]);
        kernel.put_sidecar(netns_cookie(), &captured).expect("writable");
        for (wanted, got) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::ffff:127.0.0.1]:8080"),
            ("[::ffff:0.0.0.0]:8080", "[::ffff:127.0.0.1]:8080"),
            // Neither captured, nor the wildcard, nor TCP.
            ("0.0.0.0:8081", "0.0.0.0:8081"),
            ("[::]:8081", "[::]:8081"),
            ("127.0.0.2:8080", "127.0.0.2:8080"),
        ] {
            assert_eq!(in_cgroup(sandbox, &format!("bind {wanted}")), got, "{wanted}");
        }
        assert_eq!(kernel.sidecars().expect("readable").get(&netns_cookie()), Some(&captured));
        kernel.put_sidecar(netns_cookie(), &BTreeSet::from([(9090, TCP)])).expect("writable");
        assert_eq!(in_cgroup(sandbox, "bind 0.0.0.0:8080"), "0.0.0.0:8080", "given back");
        kernel.remove_sidecar(netns_cookie()).expect("removable");
        assert_eq!(in_cgroup(sandbox, "bind 0.0.0.0:9090"), "0.0.0.0:9090");
        let outside = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9090)).expect("free");
        assert_eq!(outside.local_addr().expect("bound").ip(), Ipv4Addr::UNSPECIFIED);
    });
}

#[test]
fn a_client_stays_with_its_backend_while_the_service_asks_for_it() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let here = IpAddr::from(Ipv6Addr::LOCALHOST);
        let names = ["one", "two", "three", "four"];
        let (four, six) = (names.map(serve), names.map(|name| serve_at(here, name)));
        for (key, service, ask) in [
            (key(TCP), at4(&four), "connect 10.101.0.1:80"),
            (key6(TCP), at6(&six), "connect [fd00:2::1]:80"),
        ] {
            let sticky = ServiceEntry { affinity_seconds: 600, ..service.clone() };
            kernel.services.put(key, &sticky).expect("writable");
            let answers: BTreeSet<_> = (0..12).map(|_| in_cgroup(sandbox, ask)).collect();
            assert_eq!(answers.len(), 1, "{answers:?}");
            // Not to one that new connections don't go to any more.
            let name =
                answers.first().and_then(|answer| answer.split(' ').next()).expect("a name").to_owned();
            let left = names.iter().position(|each| *each == name).expect("one of them");
            let mut draining = sticky.clone();
            for (at, served) in &mut draining.backends {
                served.chosen = ![four[left], six[left]].contains(&at.port());
            }
            kernel.services.put(key, &draining).expect("writable");
            let next: BTreeSet<_> = (0..12).map(|_| in_cgroup(sandbox, ask)).collect();
            assert!(next.len() == 1 && next != answers, "{next:?} after {answers:?}");
            // Nor when it has been away for long enough.
            kernel
                .services
                .put(key, &ServiceEntry { affinity_seconds: 1, ..service.clone() })
                .expect("writable");
            let (first, began) = (in_cgroup(sandbox, ask), Instant::now());
            while in_cgroup(sandbox, ask) == first {
                assert!(began.elapsed() < Duration::from_secs(60), "always {first}");
                std::thread::sleep(Duration::from_millis(1_100));
            }
            kernel.services.put(key, &service).expect("writable");
            let answers: BTreeSet<_> = (0..24).map(|_| in_cgroup(sandbox, ask)).collect();
            assert!(answers.len() > 1, "{answers:?}");
        }
    });
}

#[test]
fn what_is_not_chosen_gets_no_new_connections_and_the_rest_is_shared_by_weight() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let mut service = at4(&[serve("one"), serve("two"), serve("three")]);
        let ports: Vec<_> = service.backends.keys().copied().collect();
        service.backends.get_mut(&ports[0]).expect("there").chosen = false;
        service.backends.get_mut(&ports[1]).expect("there").weight = 0;
        kernel.services.put(key(TCP), &service).expect("writable");
        let answers: BTreeSet<_> = (0..12).map(|_| in_cgroup(sandbox, "connect 10.101.0.1:80")).collect();
        assert_eq!(answers.len(), 1);
        let all_zero = service.backends.values_mut().map(|served| served.weight = 0).count();
        kernel.services.put(key(TCP), &service).expect("writable");
        let answers: BTreeSet<_> = (0..24).map(|_| in_cgroup(sandbox, "connect 10.101.0.1:80")).collect();
        assert_eq!((all_zero, answers.len()), (3, 2), "none is preferred");
    });
}

#[test]
fn the_next_agent_finds_services_as_they_are_and_what_was_left_unfinished_goes() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let mut service = at4(&[serve("one"), serve("two"), serve("three")]);
        service.sources = ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().expect("a CIDR")).into();
        kernel.services.put(key(TCP), &service).expect("writable");
        let other = ServiceEntry { affinity_seconds: 7, direct: true, ..at6(&[1, 2]) };
        kernel.services.put(key6(TCP), &other).expect("writable");
        drop(kernel);
        let mut kernel = load(sandbox);
        let entries = kernel.services.entries();
        assert_eq!(entries, BTreeMap::from([(key(TCP), service.clone()), (key6(TCP), other)]));
        // Nothing has to be written twice, and a change finds its way.
        assert_eq!(kernel.services.put(key(TCP), &service).expect("writable"), []);
        let fewer = at4(&[service.backends.keys().next().expect("one").port()]);
        assert_eq!(kernel.services.put(key(TCP), &fewer).expect("writable").len(), 2);
        assert!(in_cgroup(sandbox, "connect 10.101.0.1:80").ends_with(" as 10.101.0.1:80"));
    });
}

/// Accepts one connection and tells when its first byte is there; keeps it open.
fn keep(address: IpAddr, tell: std::sync::mpsc::Sender<()>) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let streams: Vec<_> = listener
            .incoming()
            .flatten()
            .map(|mut stream| {
                let _ = stream.read_exact(&mut [0]);
                let _ = tell.send(());
                stream
            })
            .collect();
        drop(streams);
    });
    port
}

fn keep_datagrams(address: IpAddr, tell: std::sync::mpsc::Sender<()>) -> u16 {
    let socket = UdpSocket::bind((address, 0)).expect("a free port");
    let port = socket.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        while socket.recv(&mut [0; 64]).is_ok() {
            let _ = tell.send(());
        }
    });
    port
}

#[test]
fn connections_to_a_backend_that_goes_are_reset_and_no_others() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let resetter = kernel.resetter().expect("the map is pinned");
        let (four, six) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        for (key, here, service, verb) in [
            (key(TCP), four, "10.101.0.1:80", "hold"),
            (key(TCP), four, "[::ffff:10.101.0.1]:80", "hold"),
            (key6(TCP), six, "[fd00:2::1]:80", "hold"),
            (key(UDP), four, "10.101.0.1:80", "hold-datagrams"),
            (key6(UDP), six, "[fd00:2::1]:80", "hold-datagrams"),
        ] {
            let (tell, told) = std::sync::mpsc::channel();
            let port = if verb == "hold" { keep(here, tell) } else { keep_datagrams(here, tell) };
            kernel.services.put(key, &of([SocketAddr::new(here, port)])).expect("writable");
            let entries = kernel.services.entries();
            let other = of([SocketAddr::new(here, 9)]);
            std::thread::scope(|scope| {
                let by_service = scope.spawn(|| in_cgroup(sandbox, &format!("{verb} {service}")));
                told.recv().expect("connected");
                // Somebody who knows the backend's own address is not the service's client.
                let direct = SocketAddr::new(here, port);
                let outside = TcpStream::connect(direct);
                let gone = kernel.services.put(key, &other).expect("writable");
                assert_eq!(gone.len(), entries[&key].backends.len());
                assert_eq!(resetter.reset(&gone).expect("allowed"), 1, "{verb} {service}");
                assert_eq!(by_service.join().expect("no panic"), "ConnectionAborted", "{verb} {service}");
                if let Ok(mut outside) = outside {
                    outside.write_all(b"?").expect("left alone");
                    told.recv().expect("still read");
                }
            });
            assert_eq!(resetter.reset(&[]).expect("allowed"), 0);
        }
    });
}

#[test]
fn a_socket_that_is_forgotten_says_its_backend_and_is_not_reset_with_it() {
    in_sandbox(|sandbox| {
        let mut kernel =
            Kernel::load_sized(&sandbox.bpffs(), &sandbox.cgroup, &[("REVERSE", 64)]).expect("they load");
        let resetter = kernel.resetter().expect("the map is pinned");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
        let backend = listener.local_addr().expect("bound");
        kernel.services.put(key(TCP), &of([backend])).expect("writable");
        std::thread::scope(|scope| {
            let said = scope.spawn(|| in_cgroup(sandbox, "outnumber 10.101.0.1:80"));
            let (mut first, _) = listener.accept().expect("the first one");
            let others: Vec<_> = (0..500).map(|_| listener.accept().expect("another")).collect();
            first.read_exact(&mut [0]).expect("it asks");
            drop(others);
            let gone = kernel.services.put(key(TCP), &of([])).expect("writable");
            resetter.reset(&gone).expect("allowed");
            first.write_all(b"hello").expect("it is there");
            let said = said.join().expect("no panic");
            assert_eq!(said, format!("{backend}, Some(10.101.0.1:80), hello"));
        });
    });
}

#[test]
fn a_connection_outlives_the_readiness_of_its_backend_and_ends_with_the_service() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let resetter = kernel.resetter().expect("the map is pinned");
        let (four, six) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
        for (key, here, service, verb) in [
            (key(TCP), four, "10.101.0.1:80", "hold"),
            (key6(TCP), six, "[fd00:2::1]:80", "hold"),
            (key6(UDP), six, "[fd00:2::1]:80", "hold-datagrams"),
        ] {
            let (tell, told) = std::sync::mpsc::channel();
            let port = if verb == "hold" { keep(here, tell) } else { keep_datagrams(here, tell) };
            let mut service_of_one = of([SocketAddr::new(here, port)]);
            kernel.services.put(key, &service_of_one).expect("writable");
            std::thread::scope(|scope| {
                let by_service = scope.spawn(|| in_cgroup(sandbox, &format!("{verb} {service}")));
                told.recv().expect("connected");
                service_of_one.backends.values_mut().for_each(|served| served.chosen = false);
                let gone = kernel.services.put(key, &service_of_one).expect("writable");
                assert_eq!(gone.len(), 0, "{verb} {service}: it is not ready, and there");
                if verb == "hold" {
                    assert_eq!(in_cgroup(sandbox, &format!("connect {service}")), "ConnectionRefused");
                }
                assert!(!by_service.is_finished(), "{verb} {service}: nothing has ended it");
                let gone = kernel.services.remove(&key).expect("removable").expect("it was there");
                assert_eq!(resetter.reset(&gone).expect("allowed"), 1, "{verb} {service}");
                assert_eq!(by_service.join().expect("no panic"), "ConnectionAborted", "{verb} {service}");
            });
        }
    });
}

#[test]
fn nobody_is_refused_while_what_a_service_is_made_of_is_swapped() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let names = ["a", "b", "c", "d", "e", "f"];
        let ports = names.map(serve);
        // Tables of their own, none at all, and with others' slots in between.
        let contents: Vec<_> = [0..1, 1..3, 2..6, 3..4, 0..6, 4..6].map(|some| at4(&ports[some])).into();
        let neighbour = ServiceKey::new(VIP.into(), PORT + 1, TCP, scope::INSIDE);
        kernel.services.put(key(TCP), &contents[0]).expect("writable");
        let mut swaps = 0;
        std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..2).map(|_| scope.spawn(|| in_cgroup(sandbox, "hammer 10.101.0.1:80"))).collect();
            while !clients.iter().all(|client| client.is_finished()) {
                for (content, other) in contents.iter().zip(contents.iter().rev()) {
                    kernel.services.put(key(TCP), content).expect("writable");
                    kernel.services.put(neighbour, other).expect("writable");
                    swaps += 1;
                }
            }
            for client in clients {
                assert_eq!(client.join().expect("no panic"), "4000 times, []", "after {swaps} swaps");
            }
        });
        assert!(swaps > 100, "{swaps}");
        println!("{swaps} swaps under 8,000 connections");
    });
}

#[test]
fn ten_thousand_services_fit_and_the_last_is_found_by_the_next_agent() {
    in_sandbox(|sandbox| {
        let mut kernel = load(sandbox);
        let service = at4(&[serve("one"), serve("two"), serve("three")]);
        let vip = |number: u32| IpAddr::from(Ipv4Addr::from_bits(VIP.to_bits() + number));
        let key = |number: u32| ServiceKey::new(vip(number).into(), PORT, TCP, scope::INSIDE);
        let began = std::time::Instant::now();
        for number in 0..10_000 {
            kernel.services.put(key(number), &service).expect("there is room");
        }
        println!("10,000 services of 3 backends written in {:?}", began.elapsed());
        drop(kernel);
        let began = std::time::Instant::now();
        let mut kernel = load(sandbox);
        println!("taken over in {:?}", began.elapsed());
        assert_eq!(kernel.services.entries().len(), 10_000);
        let last = format!("{}:{PORT}", vip(9_999));
        let said = in_cgroup(sandbox, &format!("connect {last}"));
        assert!(said.ends_with(&format!(" as {last}")), "{said}");
        for number in 0..10_000 {
            assert!(kernel.services.remove(&key(number)).expect("removable").is_some());
        }
        assert_eq!(in_cgroup(sandbox, &format!("connect {last}")), "NetworkUnreachable");
    });
}
