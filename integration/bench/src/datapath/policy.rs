//! A revision arrives at the node with a class of many rules of which one is another: until a packet is judged by it.
//!
//! Twice: the agent as it runs, told by a control plane over mTLS, with datagrams that come or stop coming; and the
//! agent's engine alone, from the message to the last write.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use ebpf_shared::packet::protocol::{TCP, UDP};
use mesh_model::resource::NamespacedName;
use node_agent::{desired::Pod, engine::Engine, kernel::Kernel, maps::KernelMaps};
use xds_client::{Resource, Update};
use xds_proto::{isthmus::agent::v1 as wire, to_any, type_url};

use super::{agent::Agent, area::Scale, control_plane::identity, count, nanoseconds, support::Sandbox};
use crate::{
    report::{Goal, Row},
    stats::quantile,
};

const PORT: u16 = 8080;
/// Between two datagrams: often enough for what is measured, and seldom enough to leave the processors to it.
const PACE: Duration = Duration::from_micros(100);
/// So long without one, and so many sent meanwhile, says that they are dropped.
const QUIET: Duration = Duration::from_millis(20);
const DROPPED: u64 = 100;
const NEVER: Duration = Duration::from_secs(10);
const GOAL: Goal = Goal::AtMost(5.0);

/// So many rules, and one for the client or none.
fn class(rules: usize, client: Option<u32>) -> wire::PolicyClass {
    let rule = |identity: u32, protocol: u8, of: usize| wire::PolicyRule {
        direction: wire::Direction::Ingress as i32,
        action: wire::Action::Allow as i32,
        identity,
        protocol: i32::from(protocol),
        port: PORT.into(),
        provenance: format!("networkpolicy/shop/callers-{of}#ingress[0]"),
        ..Default::default()
    };
    // A hundred policies.
    let others = (0..rules).map(|number| rule(100_000 + number as u32, TCP, number % 100));
    wire::PolicyClass {
        id: 2,
        default_deny_ingress: true,
        ingress_provenance: "networkpolicy/shop/callers-0#default-deny-ingress".into(),
        rules: others.chain(client.map(|client| rule(client, UDP, 0))).collect(),
        ..Default::default()
    }
}

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    says(format!("policy: the engine, {} rules", count(scale.rules)));
    let engine = engine(sandbox, scale);
    says(format!("policy: the agent, {} rules", count(scale.rules)));
    let [allowed, denied] = agent(sandbox, scale);
    let mut rows = Vec::new();
    let mut row = |what: &str, times: &[f64], goal: Option<Goal>| {
        let name = format!("{what}, {} rules", count(scale.rules));
        rows.push(Row::alone(format!("{name}, p50"), "ms", times, None));
        rows.push(Row::alone(format!("{name}, p99"), "ms", &[quantile(times, 0.99)], goal));
    };
    row("revision to the first packet that is let in", &allowed, Some(GOAL));
    row("revision to the last packet that is let in", &denied, Some(GOAL));
    row("message to the last write, in the agent", &engine, Some(GOAL));
    rows
}

fn engine(sandbox: &Sandbox, scale: &Scale) -> Vec<f64> {
    let kernel = Kernel::load(&sandbox.bpffs().join("engine"), &sandbox.cgroup).expect("the programs load");
    let engine =
        Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(KernelMaps::new(kernel))).expect("readable");
    let name = NamespacedName::new("shop", "pay");
    let pod = Pod { addresses: Ipv4Addr::new(10, 1, 1, 2).into(), ifindex: 1, netns_cookie: 1 };
    engine.add_pod(name, pod).expect("writable");
    let local = wire::LocalEndpoint {
        name: "shop/pay".into(),
        identity: identity("pay"),
        spiffe_id: "spiffe://west.example/ns/shop/sa/pay".into(),
        policy_class: 2,
        ..Default::default()
    };
    let told = |name: &str, message: xds_proto::google::protobuf::Any, version: usize| {
        let update = Update {
            type_url: message.type_url.clone(),
            added: vec![Resource { name: name.into(), version: version.to_string(), resource: message }],
            removed: Vec::new(),
            nonce: version.to_string(),
            system_version: version.to_string(),
        };
        nanoseconds(|| engine.apply(&update).expect("fine")) / 1e6
    };
    for url in [type_url::<wire::WorkloadAddress>(), type_url::<wire::Service>(), type_url::<wire::Node>()] {
        let none = Update {
            type_url: url,
            added: Vec::new(),
            removed: Vec::new(),
            nonce: "1".into(),
            system_version: "1".into(),
        };
        engine.apply(&none).expect("fine");
    }
    told("shop/pay", to_any(&local), 1);
    let classes = [None, Some(identity("web"))].map(|client| to_any(&class(scale.rules, client)));
    told("2", classes[0].clone(), 2);
    (0..scale.changes).map(|change| told("2", classes[(change + 1) % 2].clone(), change + 3)).collect()
}

/// Milliseconds until the client's datagrams come, and until they come no more.
fn agent(sandbox: &Sandbox, scale: &Scale) -> [Vec<f64>; 2] {
    let classes = [None, Some(identity("web"))].map(|client| to_any(&class(scale.rules, client)));
    let mut agent = Agent::start(sandbox, |_| ());
    agent.state.put_all([("2".to_owned(), classes[0].clone())]);
    let server = SocketAddr::new(agent.add("pay").into(), PORT);
    agent.add("web");
    let mut talk = Talk::new(&agent, server);
    // What came before the policy was there.
    talk.last(Instant::now());
    let mut found = [Vec::new(), Vec::new()];
    for change in 0..scale.changes {
        let is_allowed = change % 2 == 0;
        let class = classes[usize::from(is_allowed)].clone();
        let told = Instant::now();
        agent.state.put_all([("2".to_owned(), class)]);
        let judged = if is_allowed { talk.first() } else { talk.last(told) };
        found[usize::from(!is_allowed)].push(judged.saturating_duration_since(told).as_secs_f64() * 1e3);
        if is_allowed {
            talk.settle();
        }
    }
    agent.process.check().expect("it still runs");
    assert_eq!(agent.state.refused(), Vec::<String>::new());
    found
}

/// Datagrams from `web` to `pay`, one after the other.
struct Talk {
    arrivals: Receiver<Instant>,
    sent: Arc<AtomicU64>,
    /// Its end is the sender's.
    _end: Sender<()>,
}

impl Talk {
    fn new(agent: &Agent, server: SocketAddr) -> Self {
        let socket =
            agent.inside("pay").run(move || UdpSocket::bind(server)).expect("entered").expect("free");
        let (tell, arrivals) = channel();
        std::thread::spawn(
            move || {
                while socket.recv(&mut [0; 8]).is_ok() && tell.send(Instant::now()).is_ok() {}
            },
        );
        let client =
            agent.inside("web").run(|| UdpSocket::bind("0.0.0.0:0")).expect("entered").expect("free");
        client.connect(server).expect("a route");
        let (end, ended) = channel::<()>();
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        std::thread::spawn(move || {
            while matches!(ended.recv_timeout(PACE), Err(RecvTimeoutError::Timeout)) {
                if client.send(&[7]).is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { arrivals, sent, _end: end }
    }

    /// When the next one arrives.
    fn first(&mut self) -> Instant {
        self.arrivals.recv_timeout(NEVER).expect("the policy is enforced")
    }

    /// When the last one arrived, if any did since then.
    fn last(&mut self, since: Instant) -> Instant {
        let (start, mut last) = (Instant::now(), since);
        let mut sent = self.sent.load(Ordering::Relaxed);
        loop {
            match self.arrivals.recv_timeout(QUIET) {
                Ok(arrival) => (last, sent) = (arrival, self.sent.load(Ordering::Relaxed)),
                Err(_) if self.sent.load(Ordering::Relaxed) >= sent + DROPPED => return last,
                Err(_) => {}
            }
            assert!(start.elapsed() < NEVER, "the policy is not enforced");
        }
    }

    /// Has some more arrive.
    fn settle(&mut self) {
        let until = Instant::now() + QUIET;
        while self.arrivals.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
    }
}
