//! An upgrade over a map format, with traffic: the programs and maps of format 2, as its release has left them, and this
//! release beside and then in place of them. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[path = "support/old_format.rs"]
mod old_format;
mod support;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use ebpf_shared::{Addr, Direction, Endpoint, limits};
use node_agent::cni::Netns;
use node_agent::kernel::Kernel;
use node_agent::kernel::rules::Defaults;
use old_format::OldPod;
use support::policy::{DENY_EGRESS, DENY_INGRESS, Writer, defaults, rule};
use support::{Sandbox, in_sandbox, run};

const SERVER: Pod = Pod { number: 5, identity: 300 };
const CLIENT: Pod = Pod { number: 6, identity: 301 };
const STRANGER: Pod = Pod { number: 7, identity: 302 };
const ALL: [Pod; 3] = [SERVER, CLIENT, STRANGER];

#[derive(Clone, Copy)]
struct Pod {
    number: u8,
    identity: u32,
}

impl Pod {
    fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, 0, self.number)
    }

    fn host(self) -> String {
        format!("host{}", self.number)
    }

    fn netns(self) -> String {
        format!("isthmus-migrate-{}-{}", std::process::id(), self.number)
    }

    fn ifindex(self) -> u32 {
        nix::net::if_::if_nametoindex(self.host().as_str()).unwrap()
    }

    /// The server denies by default, both ways: answers pass only because the connection is known.
    fn class(self) -> u32 {
        if self.number == SERVER.number { 2 } else { 1 }
    }

    fn make(self) {
        run(&["ip", "netns", "add", &self.netns()]);
        let (host, address) = (self.host(), self.address().to_string());
        run(&["ip", "link", "add", &host, "type", "veth", "peer", "name", "eth0", "netns", &self.netns()]);
        let inside = |arguments: &[&str]| run(&[&["ip", "-n", &self.netns()], arguments].concat());
        inside(&["address", "add", &format!("{address}/32"), "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
        inside(&["route", "add", "169.254.1.1", "dev", "eth0", "scope", "link"]);
        inside(&["route", "add", "default", "via", "169.254.1.1"]);
        run(&["ip", "link", "set", &host, "up"]);
        run(&["ip", "address", "add", "169.254.1.1/32", "dev", &host]);
        run(&["ip", "route", "add", &address, "dev", &host]);
    }

    fn inside<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        Netns::open(&format!("/run/netns/{}", self.netns())).unwrap().run(work).unwrap()
    }
}

/// What the release with format 2 leaves in the kernel.
fn old_release(sandbox: &Sandbox) {
    let bpffs = sandbox.bpffs();
    std::fs::create_dir_all(&bpffs).unwrap();
    run(&["mount", "-t", "bpf", "bpf", bpffs.to_str().unwrap()]);
    let pods = ALL.map(|pod| OldPod {
        host: pod.host(),
        address: pod.address(),
        identity: pod.identity,
        incarnation: 0,
        class: pod.class(),
    });
    old_format::leave(&bpffs, &pods, CLIENT.identity);
}

/// The same in this release's maps.
fn fill_new(kernel: &mut Kernel) {
    let rule = rule(true, Direction::Ingress, CLIENT.identity, 0, None, 1);
    let mut writer = Writer::default();
    writer.put(kernel, 1, &Defaults::default(), &[]);
    writer.put(kernel, 2, &defaults(DENY_INGRESS | DENY_EGRESS, 0, 0), &[rule]);
    for pod in ALL {
        kernel.identities.upsert(&std::net::IpAddr::V4(pod.address()).into(), pod.identity).unwrap();
        let endpoint = Endpoint {
            identity: pod.identity,
            class: pod.class(),
            v4: pod.address().into(),
            ..Endpoint::default()
        };
        kernel.endpoints.upsert(pod.ifindex(), endpoint).unwrap();
    }
}

fn load(sandbox: &Sandbox) -> Kernel {
    Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).unwrap()
}

fn programs_at(pod: Pod) -> Vec<u32> {
    [TcAttachType::Ingress, TcAttachType::Egress]
        .into_iter()
        .flat_map(|place| SchedClassifier::query_tcx(&pod.host(), place).unwrap().1)
        .map(|program| program.id())
        .collect()
}

fn format(sandbox: &Sandbox) -> u32 {
    let map = MapData::from_pin(sandbox.bpffs().join("maps/FORMAT")).unwrap();
    let map: Array<MapData, u32> = Map::Array(map).try_into().unwrap();
    map.get(&0, 0).unwrap()
}

/// Round trips that were made.
#[derive(Default)]
struct Trips {
    count: Mutex<u64>,
    one_more: Condvar,
}

impl Trips {
    fn made(&self) -> u64 {
        *self.count.lock().unwrap()
    }

    fn another(&self) {
        *self.count.lock().unwrap() += 1;
        self.one_more.notify_all();
    }

    /// Waits for so many in all.
    fn reaches(&self, wanted: u64, patience: Duration) -> bool {
        let count = self.count.lock().unwrap();
        let (count, _) = self.one_more.wait_timeout_while(count, patience, |count| *count < wanted).unwrap();
        *count >= wanted
    }
}

/// One connection that goes on all the time, and a stranger who tries all the time.
struct Traffic {
    stop: Arc<AtomicBool>,
    echoed: Arc<Trips>,
    intruded: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn begin() -> Self {
        let (stop, echoed, intruded) = <(Arc<AtomicBool>, Arc<Trips>, Arc<AtomicU64>)>::default();
        let listener = SERVER.inside(|| TcpListener::bind(("0.0.0.0", 8080)).unwrap());
        let serving = std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut bytes = [0; 8];
                    while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
                });
            }
        });
        drop(serving);
        let target = SocketAddr::from((SERVER.address(), 8080));
        let mut stream = CLIENT.inside(move || TcpStream::connect(target).unwrap());
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (ended, count) = (stop.clone(), echoed.clone());
        let client = std::thread::spawn(move || {
            while !ended.load(SeqCst) {
                let number = count.made().to_ne_bytes();
                let mut back = [0; 8];
                stream.write_all(&number).unwrap();
                stream.read_exact(&mut back).expect("the connection lives");
                assert_eq!(back, number);
                count.another();
            }
        });
        let (ended, count) = (stop.clone(), intruded.clone());
        let stranger = std::thread::spawn(move || {
            while !ended.load(SeqCst) {
                let patience = Duration::from_millis(20);
                if STRANGER.inside(move || TcpStream::connect_timeout(&target, patience).is_ok()) {
                    count.fetch_add(1, SeqCst);
                }
            }
        });
        let traffic = Self { stop, echoed, intruded, threads: vec![client, stranger] };
        traffic.goes_on();
        traffic
    }

    /// Some more round trips from now on.
    fn goes_on(&self) {
        let from = self.echoed.made();
        assert!(self.echoed.reaches(from + 20, Duration::from_secs(10)), "the connection hangs");
    }

    fn end(self) {
        self.goes_on();
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        assert_eq!(self.intruded.load(SeqCst), 0, "the stranger was never let in");
    }
}

/// Names of what lies below the directory of pins.
fn dirs(sandbox: &Sandbox) -> Vec<PathBuf> {
    let mut names: Vec<_> =
        std::fs::read_dir(sandbox.bpffs()).unwrap().flatten().map(|dir| dir.path()).collect();
    // (The kernel has files of its own on each bpffs: `maps.debug`, `progs.debug`.)
    names.retain(|path| path.is_dir());
    names.sort();
    // Names with dots are the kernel's own.
    let names = names.into_iter().map(|path| PathBuf::from(path.file_name().unwrap()));
    names.filter(|name| name.extension().is_none()).collect()
}

fn upgraded(sandbox: &Sandbox, old: &[Vec<u32>; 3]) {
    assert_eq!((format(sandbox), dirs(sandbox)), (limits::FORMAT, vec!["links".into(), "maps".into()]));
    for (pod, before) in ALL.into_iter().zip(old) {
        let after = programs_at(pod);
        assert!(after.len() == 6 && after.iter().all(|program| !before.contains(program)), "{after:?}");
    }
}

fn in_old_world(test: impl FnOnce(&Sandbox, &Traffic, &[Vec<u32>; 3]) + Send + 'static) {
    in_sandbox(|sandbox| {
        std::fs::create_dir_all("/run/netns").unwrap();
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        ALL.into_iter().for_each(Pod::make);
        old_release(sandbox);
        let traffic = Traffic::begin();
        let old = ALL.map(programs_at);
        test(sandbox, &traffic, &old);
        traffic.end();
        ALL.into_iter().for_each(|pod| run(&["ip", "netns", "delete", &pod.netns()]));
    });
}

#[test]
fn an_upgrade_lets_nobody_in_and_cuts_no_connection() {
    in_old_world(|sandbox, traffic, old| {
        let mut kernel = load(sandbox);
        assert_eq!(kernel.migrates_from(), Some(2));
        traffic.goes_on();
        assert_eq!(&ALL.map(programs_at), old, "the old programs go on until the new maps are filled");
        fill_new(&mut kernel);
        for pod in ALL {
            kernel.attach_pod(&pod.host()).unwrap();
            traffic.goes_on();
        }
        kernel.finish_migration().unwrap();
        kernel.finish_migration().unwrap();
        assert_eq!(kernel.migrates_from(), None);
        upgraded(sandbox, old);
        traffic.goes_on();
        // The next agent finds nothing left to do.
        drop(kernel);
        assert_eq!(load(sandbox).migrates_from(), None);
        traffic.goes_on();
    });
}

#[test]
fn an_upgrade_that_dies_at_any_point_is_gone_on_with() {
    in_old_world(|sandbox, traffic, old| {
        // Before anything was swapped: begun again.
        fill_new(&mut load(sandbox));
        traffic.goes_on();
        let mut kernel = load(sandbox);
        assert_eq!(kernel.endpoints.dump().unwrap().len(), 0);
        fill_new(&mut kernel);
        // With one pod swapped.
        kernel.attach_pod(&SERVER.host()).unwrap();
        drop(kernel);
        traffic.goes_on();
        let mut kernel = load(sandbox);
        assert_eq!((kernel.migrates_from(), kernel.endpoints.dump().unwrap().len()), (Some(2), 3));
        for pod in ALL {
            kernel.attach_pod(&pod.host()).unwrap();
        }
        // With all swapped, and between the two renames of the directories.
        drop(kernel);
        let at = |name: &str| sandbox.bpffs().join(name);
        std::fs::rename(at("maps"), at("maps-old")).unwrap();
        traffic.goes_on();
        let kernel = load(sandbox);
        assert_eq!(kernel.migrates_from(), None);
        upgraded(sandbox, old);
        traffic.goes_on();
    });
}

#[test]
fn connections_are_the_same_ones_after_the_upgrade() {
    in_old_world(|sandbox, traffic, _| {
        let mut kernel = load(sandbox);
        fill_new(&mut kernel);
        for pod in ALL {
            kernel.attach_pod(&pod.host()).unwrap();
        }
        kernel.finish_migration().unwrap();
        traffic.goes_on();
        let all = kernel.conntrack.dump().unwrap();
        let server = SERVER.ifindex();
        let of_server =
            all.iter().find(|(key, _)| key.ifindex == server && Addr::from(CLIENT.address()) == key.peer);
        let (key, entry) = of_server.expect("known");
        assert_eq!((key.own_port, key.began, entry.answered, entry.midstream), (8080, 0, 1, 0));
    });
}
