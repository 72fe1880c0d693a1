//! A node whose engine can be made to die, and whose verdicts can be asked.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use ebpf_shared::{Direction, Metric, Reason, overlay::Hop};
use ipnet::IpNet;
use mesh_model::resource::NamespacedName;
use node_agent::{
    desired::{Desired, Limits, MapOp, Pod, PodAddresses},
    engine::Engine,
    kernel::Kernel,
    maps::{KernelMaps, MapError, Maps, verify},
};
use xds_client::{Resource, Update};
use xds_proto::{isthmus::agent::v1 as wire, to_any};

use crate::support::{
    Sandbox,
    frames::{frame, syn},
};

/// The loopback interface, which test runs happen at.
pub const LO: u32 = 1;
pub const POD: [&str; 2] = ["10.1.1.2", "fd00:1::102"];

/// Who asks the pod, and at which port: what [`World::verdicts`] has a digit for each of.
const QUESTIONS: [(&str, u16); 6] = [
    ("10.1.2.2", 80),
    ("10.1.2.3", 80),
    ("198.51.100.7", 80),
    ("198.51.100.200", 80),
    ("fd00:1::202", 80),
    ("10.1.2.2", 81),
];

pub fn update<M: xds_proto::Name>(added: &[(&str, M)], removed: &[&str]) -> Update {
    let resource = |(name, message): &(&str, M)| Resource {
        name: (*name).into(),
        version: "1".into(),
        resource: to_any(message),
    };
    Update {
        type_url: M::type_url(),
        added: added.iter().map(resource).collect(),
        removed: removed.iter().map(|name| (*name).into()).collect(),
        nonce: "n".into(),
        system_version: "1".into(),
    }
}

/// The writes of one agent, which dies after so many.
struct Mortal {
    maps: Arc<Mutex<Option<KernelMaps>>>,
    left: Arc<Mutex<usize>>,
}

impl Mortal {
    fn with<T>(&self, look: impl FnOnce(&mut KernelMaps) -> T) -> T {
        look(self.maps.lock().unwrap().as_mut().expect("loaded"))
    }
}

impl Maps for Mortal {
    fn snapshot(&mut self) -> Result<Desired, MapError> {
        self.with(Maps::snapshot)
    }

    fn limits(&self) -> Limits {
        self.with(|maps| maps.limits())
    }

    fn full(&self) -> Option<&'static str> {
        self.with(|maps| maps.full())
    }

    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)> {
        let mut left = self.left.lock().unwrap();
        let made = ops.len().min(*left);
        self.with(|maps| maps.execute(&ops[..made]))?;
        *left -= made;
        if made < ops.len() {
            return Err((made, MapError { what: "the next write".into(), reason: "dead by now".into() }));
        }
        Ok(())
    }

    fn attach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.with(|maps| maps.attach(interface, ifindex))
    }

    fn detach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.with(|maps| maps.detach(interface, ifindex))
    }

    fn attached(&mut self) -> Result<Vec<u32>, MapError> {
        self.with(Maps::attached)
    }

    fn set_hops(&mut self, hops: &BTreeMap<IpNet, Hop>) -> Result<(), MapError> {
        self.with(|maps| maps.set_hops(hops))
    }

    fn set_host(
        &mut self,
        locals: &BTreeSet<IpAddr>,
        control: &BTreeSet<SocketAddr>,
    ) -> Result<(), MapError> {
        self.with(|maps| maps.set_host(locals, control))
    }

    fn lost_events(&mut self) -> u64 {
        self.with(Maps::lost_events)
    }

    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)> {
        self.with(Maps::packets)
    }
}

/// The kernel of a node, and what its agents were told.
pub struct World {
    bpffs: PathBuf,
    cgroup: PathBuf,
    maps: Arc<Mutex<Option<KernelMaps>>>,
    left: Arc<Mutex<usize>>,
    /// What every agent is told first.
    pub history: Vec<Update>,
}

impl World {
    pub fn new(sandbox: &Sandbox, sizes: &[(&'static str, u32)]) -> Self {
        let world = Self {
            bpffs: sandbox.bpffs(),
            cgroup: sandbox.cgroup.clone(),
            maps: Arc::default(),
            left: Arc::new(Mutex::new(usize::MAX)),
            history: beginning(),
        };
        world.load(sizes);
        world
    }

    fn load(&self, sizes: &[(&'static str, u32)]) {
        let mut maps = self.maps.lock().unwrap();
        // The one before goes first: its programs as well.
        *maps = None;
        let kernel = Kernel::load_sized(&self.bpffs, &self.cgroup, sizes).expect("the programs load");
        *maps = Some(KernelMaps::new(kernel));
    }

    /// Loads everything anew, as the next process does.
    pub fn reload(&self) {
        self.load(&[]);
    }

    pub fn maps(&self) -> MutexGuard<'_, Option<KernelMaps>> {
        self.maps.lock().unwrap()
    }

    /// An agent that begins with what the kernel holds, and was told all of the history, with the pod at the loopback
    /// interface.
    pub fn agent(&self) -> Engine {
        self.agent_told(&self.history)
    }

    pub fn agent_told(&self, history: &[Update]) -> Engine {
        self.live(usize::MAX);
        let engine = self.newborn();
        for update in history {
            engine.load(update).unwrap();
        }
        engine.load_pod(name("pay"), pod(2, LO));
        engine.synchronise().unwrap();
        engine
    }

    /// An agent that nobody has told anything.
    pub fn newborn(&self) -> Engine {
        let addresses = PodAddresses { v4: [192, 0, 2, 1].into(), v6: None };
        let maps = Mortal { maps: self.maps.clone(), left: self.left.clone() };
        Engine::new(addresses, Box::new(maps)).unwrap()
    }

    /// The agent dies after so many writes from now on.
    pub fn live(&self, writes: usize) {
        *self.left.lock().unwrap() = writes;
    }

    /// What the programs say of new flows to the pod: a digit for each of those who ask, `1` if they get through.
    pub fn verdicts(&self) -> String {
        let mut maps = self.maps();
        let kernel = maps.as_mut().unwrap().kernel();
        let ask = |(from, port): (&str, u16)| {
            let from: IpAddr = from.parse().unwrap();
            let to: IpAddr = POD[usize::from(from.is_ipv6())].parse().unwrap();
            // From another port each time, so that it is a new flow.
            static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(10_000);
            let own = 10_000 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 50_000;
            kernel.try_frame(Direction::Ingress, &frame(&syn((from, own), (to, port)))).unwrap()
        };
        QUESTIONS.into_iter().map(|question| if ask(question) { '1' } else { '0' }).collect()
    }

    /// Entries that are not as this agent wants them.
    pub fn wrong(&self, engine: &Engine) -> Vec<String> {
        let verified = engine.kernel(|desired, _| verify(&self.bpffs, desired)).unwrap();
        let all = verified.iter().flat_map(|map| map.differences.iter().map(move |each| (map.map, each)));
        all.map(|(map, each)| format!("{map} {each:?}")).collect()
    }
}

pub fn name(pod: &str) -> NamespacedName {
    NamespacedName::new("shop", pod)
}

pub fn pod(last: u8, ifindex: u32) -> Pod {
    let v6 = (ifindex == LO).then(|| POD[1].parse().unwrap());
    let addresses = PodAddresses { v4: Ipv4Addr::new(10, 1, 1, last), v6 };
    Pod { addresses, ifindex, netns_cookie: 900 + u64::from(ifindex) }
}

fn beginning() -> Vec<Update> {
    let node = |name: &str, last: u8| wire::Node {
        name: name.into(),
        address: format!("192.0.2.{last}"),
        pod_cidrs: vec![format!("10.1.{last}.0/24"), format!("fd00:1::{last}00/120")],
        ..Default::default()
    };
    vec![
        update(&[("n1", node("n1", 1)), ("n2", node("n2", 2))], &[]),
        update(
            &[
                ("shop/web", address(&["10.1.2.2", "fd00:1::202"], 300)),
                ("shop/evil", address(&["10.1.2.3"], 301)),
            ],
            &[],
        ),
        update(&[("7", class(7, vec![]))], &[]),
        update::<wire::Service>(&[], &[]),
        update(&[("shop/pay", local("pay", 7))], &[]),
    ]
}

pub fn address(addresses: &[&str], identity: u32) -> wire::WorkloadAddress {
    wire::WorkloadAddress {
        addresses: addresses.iter().map(|address| (*address).into()).collect(),
        identity,
        ..Default::default()
    }
}

pub fn local(pod: &str, class: u32) -> wire::LocalEndpoint {
    wire::LocalEndpoint {
        name: format!("shop/{pod}"),
        identity: 299,
        spiffe_id: format!("spiffe://west.example/ns/shop/sa/{pod}"),
        policy_class: class,
        ..Default::default()
    }
}

/// Without rules, everybody is let in; with some, nobody else than whom they let in.
pub fn class(id: u32, rules: Vec<wire::PolicyRule>) -> wire::PolicyClass {
    let provenance = "networkpolicy/shop/pay#default-deny-ingress";
    wire::PolicyClass {
        id,
        default_deny_ingress: !rules.is_empty(),
        ingress_provenance: if rules.is_empty() { String::new() } else { provenance.into() },
        rules,
        ..Default::default()
    }
}

pub fn rule(allow: bool, identity: u32, cidr: &str, port: u32) -> wire::PolicyRule {
    let action = if allow { wire::Action::Allow } else { wire::Action::Deny };
    wire::PolicyRule {
        direction: wire::Direction::Ingress as i32,
        action: action as i32,
        identity,
        cidr: cidr.into(),
        protocol: wire::Protocol::Tcp as i32,
        port,
        provenance: format!("networkpolicy/shop/pay#{identity}-{cidr}-{port}"),
        ..Default::default()
    }
}

pub fn service(number: u8, backends: u8, sources: u8) -> wire::Service {
    let backend = |last: u8| wire::Backend {
        address: format!("10.1.2.{}", 100 + last),
        port: 8080,
        weight: 1,
        ..Default::default()
    };
    wire::Service {
        addresses: vec![format!("10.101.0.{number}")],
        ports: vec![wire::ServicePort {
            port: 80,
            protocol: wire::Protocol::Tcp as i32,
            backends: (0..backends).map(backend).collect(),
            ..Default::default()
        }],
        frontends: (sources > 0)
            .then(|| wire::Frontend {
                kind: wire::frontend::Kind::LoadBalancer as i32,
                address: format!("203.0.113.{number}"),
                port: 80,
                service_port: 80,
                protocol: wire::Protocol::Tcp as i32,
            })
            .into_iter()
            .collect(),
        source_ranges: (0..sources).map(|last| format!("192.0.2.{last}/32")).collect(),
        ..Default::default()
    }
}
