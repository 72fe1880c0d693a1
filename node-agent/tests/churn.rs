//! Ten thousand identities that come and go while real packets flow. By itself, as its memory is looked at. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod support;
#[path = "faults/world.rs"]
mod world;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use node_agent::{
    desired::{Pod as Known, PodAddresses},
    engine::Engine,
    kernel::Kernel,
    maps::KernelMaps,
};
use xds_proto::isthmus::agent::v1 as wire;

use support::{
    in_sandbox,
    pods::{Family, Pod, forward},
};
use world::{address, class, local, name, rule, update};

const IDENTITIES: u32 = 10_000;
/// That come at once, and go when the next have come.
const BATCH: u32 = 100;

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn ten_thousand_identities_churn_and_no_packet_is_lost_or_let_in() {
    in_sandbox(|sandbox| {
        let mut kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        forward();
        let [server, client, stranger] = [5, 6, 7].map(|number| Pod::new(&mut kernel, number));
        let addresses = PodAddresses { v4: [192, 0, 2, 1].into(), v6: None };
        let engine = Engine::new(addresses, Box::new(KernelMaps::new(kernel))).unwrap();
        let pods = [("pay", &server, 7, 299), ("web", &client, 8, 300), ("evil", &stranger, 8, 301)];
        engine
            .apply(&update(
                &[(
                    "n1",
                    wire::Node {
                        address: "192.0.2.1".into(),
                        pod_cidrs: vec!["10.1.0.0/24".into()],
                        ..Default::default()
                    },
                )],
                &[],
            ))
            .unwrap();
        engine.apply(&update::<wire::Service>(&[], &[])).unwrap();
        engine.apply(&update::<wire::WorkloadAddress>(&[], &[])).unwrap();
        let let_in = |others: std::ops::Range<u32>| {
            let others = others.map(|identity| rule(true, identity, "", 9000));
            let rules = std::iter::once(rule(true, 300, "", 8080)).chain(others).collect();
            update(&[("7", class(7, rules)), ("8", class(8, vec![]))], &[])
        };
        engine.apply(&let_in(0..0)).unwrap();
        for (workload, pod, number, identity) in pods {
            let known = PodAddresses { v4: pod.v4, v6: Some(pod.v6) };
            let known =
                Known { addresses: known, ifindex: pod.ifindex, netns_cookie: 900 + u64::from(identity) };
            engine.add_pod(name(workload), known).unwrap();
            let local = wire::LocalEndpoint { identity, ..local(workload, number) };
            engine.apply(&update(&[(format!("shop/{workload}").as_str(), local)], &[])).unwrap();
        }
        let before = engine.kernel(|kernel, _| (kernel.identities.len(), kernel.rulesets.len()));

        let traffic = Traffic::begin(&server, &client, &stranger);
        let memory = resident();
        let mut times = Vec::new();
        let mut gone: Vec<String> = Vec::new();
        let began = Instant::now();
        for batch in 0..IDENTITIES / BATCH {
            let first = 1_000 + batch * BATCH;
            let come: Vec<(String, wire::WorkloadAddress)> = (first..first + BATCH)
                .map(|id| {
                    (format!("churn/w{id}"), address(&[&format!("10.9.{}.{}", id / 200, id % 200 + 1)], id))
                })
                .collect();
            let come_now: Vec<_> =
                come.iter().map(|(name, address)| (name.as_str(), address.clone())).collect();
            let go: Vec<_> = gone.iter().map(String::as_str).collect();
            let step = Instant::now();
            engine.apply(&let_in(first..first + BATCH)).unwrap();
            engine.apply(&update(&come_now, &go)).unwrap();
            times.push(step.elapsed());
            engine.collect().unwrap();
            gone = come.into_iter().map(|(name, _)| name).collect();
        }
        let took = began.elapsed();
        engine.apply(&let_in(0..0)).unwrap();
        let go: Vec<_> = gone.iter().map(String::as_str).collect();
        engine.apply(&update::<wire::WorkloadAddress>(&[], &go)).unwrap();
        for _ in 0..3 {
            engine.collect().unwrap();
        }
        let round_trips = traffic.end();
        times.sort();
        let grown = resident().saturating_sub(memory);
        println!(
            "{IDENTITIES} identities in {took:?}, a batch of {BATCH} in {:?} (at most {:?}), {round_trips} round trips, {} KiB more",
            times[times.len() / 2],
            times[times.len() - 1],
            grown >> 10
        );
        let after = engine.kernel(|kernel, _| (kernel.identities.len(), kernel.rulesets.len()));
        assert_eq!(after, before, "nothing of it is left");
        assert!(grown < 64 << 20, "{grown} bytes of memory more");
        assert!(times[times.len() - 1] < Duration::from_secs(2), "{times:?}");
    });
}

/// One connection that goes on all the time, new ones beside it, and a stranger who tries all the time.
struct Traffic {
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn begin(server: &Pod, client: &Pod, stranger: &Pod) -> Self {
        let target = server.at(Family::V4, 8080);
        let listener = server.run(move || TcpListener::bind(target).unwrap());
        server.spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        let (stop, echoed) = <(Arc<AtomicBool>, Arc<AtomicU64>)>::default();
        let (ended, count) = (stop.clone(), echoed.clone());
        let trip = |stream: &mut TcpStream, number: u64| {
            let mut back = [0; 8];
            stream.write_all(&number.to_ne_bytes()).unwrap();
            stream.read_exact(&mut back).expect("it is answered");
            assert_eq!(back, number.to_ne_bytes());
        };
        let old = client.spawn(move || {
            let mut stream = TcpStream::connect(target).unwrap();
            // A packet that is lost is sent again after 200 ms at least.
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            while !ended.load(SeqCst) {
                trip(&mut stream, count.fetch_add(1, SeqCst));
            }
            let lost = retransmissions(&stream);
            assert_eq!(lost, 0, "packets of the connection were sent again");
        });
        let ended = stop.clone();
        let new = client.spawn(move || {
            while !ended.load(SeqCst) {
                let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5)).expect("let in");
                // (Each connection that ends keeps its port for a minute.)
                (0..50).for_each(|number| trip(&mut stream, number));
            }
        });
        let ended = stop.clone();
        let refused = stranger.spawn(move || {
            while !ended.load(SeqCst) {
                let tried = TcpStream::connect_timeout(&target, Duration::from_millis(20));
                assert!(tried.is_err(), "the stranger was let in");
            }
        });
        Self { stop, echoed, threads: vec![old, new, refused] }
    }

    fn end(self) -> u64 {
        self.stop.store(true, SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.echoed.load(SeqCst)
    }
}

/// `tcpi_total_retrans` of tcp(7).
fn retransmissions(stream: &TcpStream) -> u32 {
    use std::os::fd::AsRawFd;
    // SAFETY: all zeros is a value of it.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` and `length` describe that many writable bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0);
    info.tcpi_total_retrans
}
