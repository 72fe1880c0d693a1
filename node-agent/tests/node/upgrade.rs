//! The agent of another release, with traffic: this one's programs replace those that guard pods, and its maps theirs, while
//! connections go on and are begun, and somebody who may not come tries all the time.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::{
    maps::{Array, HashMap, Map, MapData},
    programs::{SchedClassifier, TcAttachType},
};
use ebpf_shared::{Endpoint, limits};
use node_agent::{cni::Netns, kernel::unload};
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    Host,
    control_plane::{State, eventually, eventually_within, identity},
    name, netns,
    old_format::{self, OldPod},
    only_web, run,
    support::in_sandbox,
};

const PORT: u16 = 8080;
/// Longer than any pause of a busy machine, and than a packet that is sent again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Round trips of each kind that are waited for.
const SOME: u64 = 20;

#[test]
fn an_agent_takes_over_from_another_release_s_without_a_wrong_verdict_or_a_lost_packet() {
    in_sandbox(|sandbox| {
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
        run(&["ip", "link", "set", "up0", "up"]);
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "up0"]);
        run(&["ip", "address", "add", "2001:db8::1/128", "dev", "lo"]);
        std::fs::create_dir_all("/run/netns").unwrap();
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        mesh_tls::install_provider();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State::new();
        runtime.spawn(state.clone().serve());
        let dir = tempfile::tempdir().unwrap();
        let mut host =
            Host { sandbox, dir: dir.path().to_owned(), token: state.token(), agent: None, more: &[] };
        story(&mut host, &state);
        let state_dir = dir.path().join("state");
        let (fine, text) = host.agent(&["cleanup", "--state-dir", state_dir.to_str().unwrap()]);
        assert!(fine, "{text}");
        for pod in ["web", "evil", "pay"] {
            run(&["ip", "netns", "delete", &name(pod)]);
        }
        let _ = std::fs::remove_dir(host.gateway_cgroup());
    });
}

fn story(host: &mut Host<'_>, state: &Arc<State>) {
    state.declare("mesh/gw");
    state.put(
        "n1",
        &wire::Node {
            address: "192.0.2.1".into(),
            address6: "2001:db8::1".into(),
            pod_cidrs: vec!["10.1.1.0/24".into(), "fd00:1::100/120".into()],
            ..Default::default()
        },
    );
    state.put("1", &wire::PolicyClass { id: 1, ..Default::default() });
    state.put("2", &policy());
    // Sockets change over when services are known.
    state.put("shop/none", &wire::Service { name: "shop/none".into(), ..Default::default() });
    for pod in ["web", "evil", "pay"] {
        state.declare(&format!("shop/{pod}"));
    }
    host.start();
    let pods = ["web", "evil", "pay"].map(|pod| (pod, host.add(pod)));
    let pay = pods[2].1;
    serve(pay);
    let traffic = Traffic::begin(pay);

    // The same maps, other programs.
    let before = pods.map(|(_, address)| programs_at(&link_of(address)));
    host.kill("-KILL");
    traffic.goes_on();
    host.start();
    for ((pod, address), before) in pods.iter().zip(&before) {
        let after = programs_at(&link_of(*address));
        assert!(after.len() == 6 && after.iter().all(|id| !before.contains(id)), "{pod}: {after:?}");
    }
    traffic.end();

    // Other maps.
    host.kill("-KILL");
    let bpffs = host.sandbox.bpffs();
    let incarnations = pods.map(|(_, address)| incarnation(host, &link_of(address)));
    unload(&bpffs).unwrap();
    let mut incarnations = incarnations.into_iter();
    let old = pods.map(|(pod, address)| OldPod {
        host: link_of(address),
        address,
        identity: identity(pod),
        incarnation: incarnations.next().unwrap(),
        class: if pod == "pay" { 2 } else { 1 },
    });
    old_format::leave(&bpffs, &old, identity("web"));
    let traffic = Traffic::begin(pay);
    let before = pods.map(|(_, address)| programs_at(&link_of(address)));
    assert!(before.iter().all(|programs| programs.len() == 2), "{before:?}");
    host.start();
    eventually("the maps have this release's format", || {
        let is_gone = |dir: &str| !bpffs.join(dir).exists();
        (format(host) == Some(limits::FORMAT) && is_gone("maps-next") && is_gone("maps-old")).then_some(())
    });
    for ((pod, address), before) in pods.iter().zip(&before) {
        let after = programs_at(&link_of(*address));
        assert!(after.len() == 6 && after.iter().all(|id| !before.contains(id)), "{pod}: {after:?}");
    }
    traffic.goes_on();
    let (fine, text) = host.agent(&["maps", "verify", "--socket", host.socket().to_str().unwrap()]);
    assert!(fine, "{text}");
    traffic.end();
    // Policy is what this release is told from now on.
    state.put("2", &wire::PolicyClass { rules: Vec::new(), ..policy() });
    eventually("nobody may come any more", || {
        let web = Netns::open(&netns("web")).unwrap();
        (!web.run(move || is_served(pay, Duration::from_millis(200))).unwrap()).then_some(())
    });
    assert_eq!(state.refused(), Vec::<String>::new());
    host.kill("-KILL");
}

/// Only `web` may come, and answers pass only because its connections are known.
fn policy() -> wire::PolicyClass {
    let mut policy = only_web();
    let datagrams = wire::PolicyRule { protocol: wire::Protocol::Udp as i32, ..policy.rules[0].clone() };
    policy.rules.push(datagrams);
    wire::PolicyClass {
        default_deny_egress: true,
        egress_provenance: "networkpolicy/shop/pay-callers#default-deny-egress".into(),
        ..policy
    }
}

/// The host's end of a pod's link.
fn link_of(address: Ipv4Addr) -> String {
    let output =
        std::process::Command::new("ip").args(["route", "get", &address.to_string()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split(' ').skip_while(|word| *word != "dev");
    words.nth(1).expect("a route").to_owned()
}

fn programs_at(ifname: &str) -> Vec<u32> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(|place| SchedClassifier::query_tcx(ifname, place).unwrap().1)
        .map(|program| program.id())
        .collect()
}

/// What the agent knows a pod's connections by.
fn incarnation(host: &Host<'_>, ifname: &str) -> u16 {
    let map = MapData::from_pin(host.sandbox.bpffs().join("maps/ENDPOINTS")).unwrap();
    let map: HashMap<MapData, u32, [u8; size_of::<Endpoint>()]> = Map::HashMap(map).try_into().unwrap();
    let value = map.get(&nix::net::if_::if_nametoindex(ifname).unwrap(), 0).unwrap();
    let at = std::mem::offset_of!(Endpoint, incarnation);
    u16::from_ne_bytes(value[at..at + 2].try_into().unwrap())
}

fn format(host: &Host<'_>) -> Option<u32> {
    let map = MapData::from_pin(host.sandbox.bpffs().join("maps/FORMAT")).ok()?;
    let map: Array<MapData, u32> = Map::Array(map).try_into().ok()?;
    map.get(&0, 0).ok()
}

/// Answers in the pod with what came, until the test ends.
fn serve(pay: Ipv4Addr) {
    let at = SocketAddr::new(IpAddr::V4(pay), PORT);
    let inside = Netns::open(&netns("pay")).unwrap();
    let (listener, socket) =
        inside.run(move || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 8];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..length], from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 8];
                while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
            });
        }
    });
}

/// Whether a new connection from here is served.
fn is_served(pay: Ipv4Addr, patience: Duration) -> bool {
    let served = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(pay.into(), PORT), patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        echoes(&mut stream, 7).then_some(())
    };
    served().is_some()
}

fn echoes(stream: &mut TcpStream, number: u64) -> bool {
    let mut back = [0; 8];
    let sent = stream.write_all(&number.to_ne_bytes());
    sent.is_ok() && stream.read_exact(&mut back).is_ok() && back == number.to_ne_bytes()
}

/// What goes on all the time, and how often it did.
struct Traffic {
    stop: Arc<AtomicBool>,
    made: BTreeMap<&'static str, Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn begin(pay: Ipv4Addr) -> Self {
        let at = SocketAddr::new(IpAddr::V4(pay), PORT);
        let inside = |pod: &str| Netns::open(&netns(pod)).unwrap();
        let (socket, mut stream) = inside("web")
            .run(move || {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket.connect(at).unwrap();
                (socket, TcpStream::connect(at).unwrap())
            })
            .unwrap();
        for timeout in [socket.set_read_timeout(Some(PATIENCE)), stream.set_read_timeout(Some(PATIENCE))] {
            timeout.unwrap();
        }
        let (web, evil) = (inside("web"), inside("evil"));
        let mut traffic = Self { stop: Arc::default(), made: BTreeMap::new(), threads: Vec::new() };
        // Nothing sends it again if it is lost.
        traffic.repeat("datagrams", move |number| {
            let mut back = [0; 8];
            socket.send(&number.to_ne_bytes()).unwrap();
            socket.recv(&mut back).expect("no datagram is lost");
            assert_eq!(u64::from_ne_bytes(back), number);
        });
        traffic.repeat("round trips", move |number| {
            assert!(echoes(&mut stream, number), "the connection lives")
        });
        traffic.repeat("connections", move |_| {
            assert!(web.run(move || is_served(pay, PATIENCE)).unwrap(), "who may come does");
        });
        traffic.repeat("attempts", move |_| {
            let patience = Duration::from_millis(20);
            assert!(!evil.run(move || is_served(pay, patience)).unwrap(), "who may not come does not");
        });
        traffic.goes_on();
        traffic
    }

    /// Does something again and again, each time counted, until it is to end.
    fn repeat(&mut self, what: &'static str, mut once: impl FnMut(u64) + Send + 'static) {
        let (stop, made) = (self.stop.clone(), self.made.entry(what).or_default().clone());
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(SeqCst) {
                once(made.load(SeqCst));
                made.fetch_add(1, SeqCst);
            }
        }));
    }

    /// Some more of all from now on.
    fn goes_on(&self) {
        for (what, made) in &self.made {
            let from = made.load(SeqCst);
            eventually_within(2 * PATIENCE, what, || (made.load(SeqCst) >= from + SOME).then_some(()));
        }
    }

    fn end(self) {
        self.goes_on();
        println!("{:?}", self.made);
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
