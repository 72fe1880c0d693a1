//! What the tests of this crate start from.

use std::{collections::BTreeMap, net::IpAddr};

use imbl::OrdMap;
use mesh_model::{
    identity::{SpiffeId, TrustDomain},
    records::{ClusterInfo, ImportedPort, ImportedService, PeerRecord, ReplicaRecord, WorkloadBinding},
    resource::{
        AppProtocol, Labels, Meta, NamespacedName, Object, PortRef, Protocol, ProxyMode, Service,
        ServicePort, Visibility, Workload,
    },
};

use crate::{
    Applied, Applying, Bytes16, Command, Envelope, Refusal, State, TokenPurpose, TokenRecord, apply,
};

/// Midday of some day, seconds.
pub(crate) const NOON: u64 = 1_700_000_000;

pub(crate) fn name(text: &str) -> NamespacedName {
    NamespacedName::parse(text).expect("<namespace>/<name>")
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn cluster() -> ClusterInfo {
    ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").expect("a trust domain"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().expect("a range"),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/24".parse().expect("a range"),
        roots: vec![vec![1, 2, 3]],
        trust: Default::default(),
    }
}

pub(crate) fn meta(text: &str) -> Meta {
    Meta { name: name(text), labels: Labels::new(), annotations: BTreeMap::new(), resource_version: None }
}

pub(crate) fn workload(text: &str) -> Workload {
    Workload {
        meta: meta(text),
        service_account: "default".to_owned(),
        proxy: ProxyMode::None,
        ports: Vec::new(),
        address: None,
        readiness: None,
    }
}

pub(crate) fn service(text: &str, ports: &[u16]) -> Service {
    let ports = ports
        .iter()
        .map(|&port| ServicePort {
            name: format!("p{port}"),
            port,
            target_port: PortRef::Number(port),
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
            node_port: None,
        })
        .collect();
    Service {
        meta: meta(text),
        selector: Labels::new(),
        ports,
        cluster_ip: None,
        headless: false,
        visibility: Visibility::Everywhere,
        exposure: Default::default(),
    }
}

pub(crate) fn imported(port: u16) -> ImportedService {
    ImportedService {
        entries: Vec::new(),
        ports: vec![ImportedPort {
            name: "http".to_owned(),
            port,
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
        }],
        spiffe_ids: vec![SpiffeId::parse("spiffe://east.example/ns/shop/sa/pay").expect("an id")],
        ready_endpoints: 1,
        exported_at_unix: NOON,
        visibility: Visibility::Everywhere,
    }
}

pub(crate) fn peer(cluster: &str) -> PeerRecord {
    PeerRecord {
        cluster: cluster.to_owned(),
        trust_domain: TrustDomain::parse(&format!("{cluster}.example")).expect("a trust domain"),
        mesh_domain: "mesh.local".to_owned(),
        roots: vec![vec![4, 5, 6]],
        trust: Default::default(),
        doors: vec!["10.0.1.1:9443".to_owned()],
        gateways: vec!["10.0.1.2:15443".to_owned()],
        origin_revision: 0,
        imports: OrdMap::new(),
    }
}

pub(crate) fn token(purpose: TokenPurpose) -> TokenRecord {
    TokenRecord {
        purpose,
        secret_sha256: "ab".repeat(32),
        expires_unix: NOON + 600,
        used_by: None,
        learner: false,
        asked_by: "administrator kim".to_owned(),
    }
}

pub(crate) fn put(objects: impl IntoIterator<Item = Object>) -> Command {
    Command::Apply { objects: objects.into_iter().collect(), dry_run: false }
}

/// A state with a driver that draws a new key for every command.
pub(crate) struct Store {
    pub(crate) state: State,
    pub(crate) now_unix_ms: u64,
    next: u128,
}

impl Store {
    pub(crate) fn empty() -> Self {
        Self { state: State::default(), now_unix_ms: NOON * 1000, next: 0 }
    }

    pub(crate) fn initialised() -> Self {
        let mut store = Self::empty();
        store.run(Command::Init(cluster())).expect("the first command");
        store
    }

    pub(crate) fn envelope(&mut self, command: Command) -> Envelope {
        self.next += 1;
        let bytes = Bytes16(self.next.to_be_bytes());
        Envelope { key: bytes, now_unix_ms: self.now_unix_ms, first_unix_ms: None, random: bytes, command }
    }

    pub(crate) fn apply(&mut self, command: Command) -> Applying {
        let envelope = self.envelope(command);
        apply(&mut self.state, &envelope)
    }

    pub(crate) fn run(&mut self, command: Command) -> Result<Applied, Refusal> {
        self.apply(command).outcome
    }

    /// Runs a command that is to be refused, and checks that it left no trace.
    pub(crate) fn refused(&mut self, command: Command) -> Refusal {
        let before = self.state.clone();
        let applying = self.apply(command);
        assert_eq!(self.state, before, "a refused command changed the state");
        assert!(applying.events.is_empty());
        applying.outcome.expect_err("the command is to be refused")
    }
}

/// One of everything.
pub(crate) fn populated() -> State {
    let mut store = Store::initialised();
    for command in [
        Command::PutReplica(ReplicaRecord { id: 1, address: "10.0.0.1:9443".to_owned(), learner: false }),
        put([Object::Workload(workload("shop/web")), Object::Service(service("shop/web", &[80, 443]))]),
        Command::RegisterNode { name: "n1".to_owned(), address: ip("10.0.0.11"), address6: None },
        Command::BindWorkload {
            workload: name("shop/web"),
            binding: WorkloadBinding { node: "n1".to_owned(), addresses: vec![ip("10.1.0.5")], ready: true },
        },
        Command::CreateToken { id: "t1".to_owned(), token: token(TokenPurpose::Peer) },
        Command::PutPeer(peer("east")),
        Command::ImportServices {
            cluster: "east".to_owned(),
            origin_revision: 7,
            upserts: vec![(name("shop/pay"), imported(8080))],
            removals: Vec::new(),
        },
    ] {
        store.run(command).expect("a good command");
    }
    store.state
}
