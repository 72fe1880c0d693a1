//! Replicas in one process, connected by plain-text loopback.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use futures::FutureExt;
use ipnet::IpNet;
use mesh_model::{
    identity::TrustDomain,
    records::ClusterInfo,
    resource::{
        AppProtocol, Labels, Meta, NamespacedName, Object, PortRef, Protocol, ProxyMode, Service,
        ServicePort, Workload,
    },
};
use mesh_store::{Command, State};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::transport::{Endpoint, Server};

use super::{Authorize, DialError, Dialer, RaftConfig, Replica, Timings};

/// Longest wait for what is to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Connects without TLS.
pub(crate) fn plain_dialer() -> Dialer {
    Arc::new(|id, address| {
        async move {
            let fail = |reason: String| DialError { id, address: address.clone(), reason };
            let endpoint =
                Endpoint::from_shared(format!("http://{address}")).map_err(|e| fail(e.to_string()))?;
            endpoint.connect().await.map_err(|error| fail(error.to_string()))
        }
        .boxed()
    })
}

/// Lets everybody in.
pub(crate) fn anybody() -> Authorize {
    Arc::new(|_| Ok(None))
}

/// Faster than a LAN needs, slower than a busy test machine stumbles over.
pub(crate) fn timings() -> Timings {
    Timings {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(500),
    }
}

/// A replica that others can reach.
pub(crate) struct Running {
    pub(crate) replica: Arc<Replica>,
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    server: JoinHandle<()>,
}

impl Running {
    /// Starts a replica on a free port, or the one that it had.
    pub(crate) async fn start(
        id: u64,
        dir: &Path,
        address: Option<SocketAddr>,
        adjust: impl FnOnce(&mut RaftConfig),
    ) -> Self {
        Self::start_with(id, dir, address, adjust, plain_dialer()).await
    }

    /// The same, with a way of its own to the others.
    pub(crate) async fn start_with(
        id: u64,
        dir: &Path,
        address: Option<SocketAddr>,
        adjust: impl FnOnce(&mut RaftConfig),
        dialer: Dialer,
    ) -> Self {
        // Quiet unless RUST_LOG says otherwise; a second test finds it set.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = TcpListener::bind(address.unwrap_or(any)).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mut config = RaftConfig::new(id, address.to_string(), dir);
        config.timings = timings();
        adjust(&mut config);
        let replica = Arc::new(Replica::open(config, dialer).await.expect("a good folder"));
        let (stop, stopped) = oneshot::channel::<()>();
        let service = replica.service(anybody());
        let server = tokio::spawn(async move {
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let stopped = stopped.map(drop);
            let serving =
                Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stopped);
            serving.await.expect("it serves");
        });
        Self { replica, address, stop, server }
    }

    pub(crate) async fn stop(self) {
        // Open connections are told to go away, so that none leads to the stopped replica later.
        let _ = self.stop.send(());
        self.replica.shutdown().await;
        self.server.await.expect("it ended");
    }

    /// Waits until the applied state is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let mut changes = self.replica.changes();
        let reached = async {
            while !wanted(&self.replica.applied()) {
                changes.changed().await.expect("the replica runs");
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

/// Waits until the group is as wanted; polls, because views are made when asked for.
pub(crate) async fn eventually(what: &str, wanted: impl AsyncFn() -> bool) {
    let reached = async {
        while !wanted().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The first command of a cluster.
pub(crate) fn init() -> Command {
    let cidr = |text: &str| text.parse::<IpNet>().expect("a range");
    Command::Init(ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").expect("a trust domain"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: cidr("10.1.0.0/16"),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: cidr("10.101.0.0/16"),
        roots: vec![vec![1]],
        trust: Default::default(),
    })
}

/// A workload of some name.
pub(crate) fn name(text: &str) -> NamespacedName {
    NamespacedName::new("test", text)
}

/// Makes a workload.
pub(crate) fn put(text: &str) -> Command {
    let meta =
        Meta { name: name(text), labels: Labels::new(), annotations: Labels::new(), resource_version: None };
    let workload = Workload {
        meta,
        service_account: "default".to_owned(),
        proxy: ProxyMode::None,
        ports: Vec::new(),
        address: None,
        readiness: None,
    };
    Command::Apply { objects: vec![Object::Workload(workload)], dry_run: false }
}

/// Makes many services at once.
pub(crate) fn put_services(count: usize) -> Command {
    let service = |n: usize| {
        let meta = Meta {
            name: name(&format!("service-{n}")),
            labels: Labels::new(),
            annotations: Labels::new(),
            resource_version: None,
        };
        let port = ServicePort {
            name: "http".to_owned(),
            port: 80,
            target_port: PortRef::Number(8080),
            protocol: Protocol::Tcp,
            app_protocol: AppProtocol::Http,
            node_port: None,
        };
        let selector = Labels::from([("app".to_owned(), format!("app-{n}"))]);
        Object::Service(Service {
            meta,
            selector,
            ports: vec![port],
            cluster_ip: None,
            headless: false,
            visibility: Default::default(),
            exposure: Default::default(),
        })
    };
    Command::Apply { objects: (0..count).map(service).collect(), dry_run: false }
}

/// Whether a workload is there.
pub(crate) fn has(state: &State, text: &str) -> bool {
    let wanted = name(text);
    state.objects.keys().any(|key| key.name == wanted)
}

/// A group of three with one record each, all voters.
pub(crate) async fn three(dirs: &[tempfile::TempDir; 3], adjust: impl Fn(&mut RaftConfig)) -> [Running; 3] {
    three_with(dirs, adjust, |_| plain_dialer()).await
}

/// The same, each with a way of its own to the others.
pub(crate) async fn three_with(
    dirs: &[tempfile::TempDir; 3],
    adjust: impl Fn(&mut RaftConfig),
    dialer: impl Fn(u64) -> Dialer,
) -> [Running; 3] {
    let first = Running::start_with(1, dirs[0].path(), None, &adjust, dialer(1)).await;
    first.replica.initialize().await.expect("the first member");
    first.replica.write(init()).await.expect("initialised");
    let own = first.replica.add_replica(1, first.address.to_string()).await.expect("recorded");
    assert_eq!(own, 1);
    let second = Running::start_with(2, dirs[1].path(), None, &adjust, dialer(2)).await;
    let third = Running::start_with(3, dirs[2].path(), None, &adjust, dialer(3)).await;
    for (id, running) in [(2, &second), (3, &third)] {
        let given = first.replica.add_replica(0, running.address.to_string()).await.expect("added");
        assert_eq!(given, id);
    }
    eventually("three voters", async || {
        // While it changes, the two voters of before decide as well: losing one of them would be losing a quorum.
        let view = first.replica.metrics();
        view.members.len() == 3 && view.members.iter().all(|member| member.voter) && !view.changing
    })
    .await;
    [first, second, third]
}

/// Three empty folders.
pub(crate) fn folders() -> [tempfile::TempDir; 3] {
    [(); 3].map(|()| tempfile::tempdir().expect("a folder"))
}
