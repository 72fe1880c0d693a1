//! The real Envoy as a client of our xDS server, SotW and delta: of resources made by hand, over plain HTTP/2 on
//! loopback; and in [`real`] and [`rbac`] of a whole control plane, through a node's agent.
//!
//! Needs the Envoy binary: `ENVOY_BIN`, or the one that `make test` installs below the target folder. Fails without it,
//! unless `SKIP_ENVOY=1`.

#![allow(clippy::unwrap_used)]

#[path = "../common/agent.rs"]
mod agent;
#[path = "../common/mod.rs"]
mod common;
mod envoy;
mod overflow;
mod rbac;
mod real;
mod resources;
mod ttl;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use control_plane::xds::{
    Client, PeerIdentity, ProxyKind, ResourceSet, Subscriber, Subscribers, Views, XdsServer,
    kinds::ROUTE,
    server::{Options, keepalive},
};
use envoy::{Api, Backend, Envoy, PROMPT, eventually, get};
use resources::Mesh;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;

/// Nothing here takes long; what does is stuck.
const WAIT: Duration = Duration::from_secs(30);

struct OneView {
    set: Mutex<Arc<ResourceSet>>,
    revision: watch::Sender<u64>,
}

impl OneView {
    fn publish(&self, revision: u64, mesh: &Mesh) {
        let mut set = mesh.resources(revision);
        let mut current = self.set.lock().unwrap();
        set.share_with(&current);
        *current = Arc::new(set);
        drop(current);
        self.revision.send_replace(revision);
    }
}

impl Views for OneView {
    fn resources(&self, _: &Client) -> Arc<ResourceSet> {
        self.set.lock().unwrap().clone()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn authorize(&self, _: &PeerIdentity, node: &str, _: Option<&str>) -> Result<Client, tonic::Status> {
        let workload =
            node.strip_prefix("envoy~").ok_or_else(|| tonic::Status::permission_denied("no Envoy"))?;
        Ok(Client::Proxy { workload: workload.to_owned(), kind: ProxyKind::Envoy })
    }
}

struct Story {
    views: Arc<OneView>,
    subscribers: Arc<Subscribers>,
    servers: Vec<XdsServer<OneView>>,
    envoy: Envoy,
    port: u16,
}

impl Story {
    /// Serves from so many replicas and starts an Envoy that knows them all.
    async fn start(api: Api, mesh: &Mesh, replicas: usize) -> Option<Self> {
        let binary = envoy::binary()?;
        let views = Arc::new(OneView { set: Mutex::default(), revision: watch::Sender::new(0) });
        views.publish(1, mesh);
        let (mut servers, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..replicas {
            let server = XdsServer::new(views.clone(), Arc::default(), Options::new("test"));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let serving = keepalive(tonic::transport::Server::builder()).add_routes(server.routes());
            tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
            servers.push(server);
        }
        let envoy = Envoy::start(&binary, api, &addresses);
        let subscribers = servers[0].subscribers().clone();
        Some(Self { views, subscribers, servers, envoy, port: mesh.port })
    }

    /// Looks at the registry of the replica that Envoy has connected to, once it has; the replica's number.
    async fn connected(&mut self) -> usize {
        let connected = |server: &XdsServer<OneView>| !server.subscribers().list().is_empty();
        let servers = &self.servers;
        let found = eventually(|| async { servers.iter().position(connected) }).await;
        let found = found.unwrap_or_else(|| panic!("Envoy does not connect\n{}", self.envoy.log()));
        self.subscribers = self.servers[found].subscribers().clone();
        found
    }

    async fn acked(&self, revision: u64, what: &str) {
        let begun = Instant::now();
        let lagging = self.subscribers.wait_acked(revision, WAIT).await;
        assert!(lagging.is_empty(), "{what}: {lagging:?}\n{}", self.envoy.log());
        let took = begun.elapsed();
        assert!(took < PROMPT, "{what}: ACKed only after {took:?}\n{}", self.envoy.log());
    }

    /// The registry's entry, once it is as expected.
    async fn until(&self, what: &str, expected: impl Fn(&Subscriber) -> bool) -> Subscriber {
        let found = eventually(|| async {
            self.subscribers.list().into_iter().find(|subscriber| expected(subscriber))
        });
        match found.await {
            Some(subscriber) => subscriber,
            None => panic!("{what}: {:?}\n{}", self.subscribers.list(), self.envoy.log()),
        }
    }

    async fn answers(&self, expected: &str) {
        let answered =
            eventually(|| async { get(self.port).await.ok().filter(|body| body == expected) }).await;
        assert!(answered.is_some(), "no answer from {expected}\n{}", self.envoy.log());
    }
}

async fn story(api: Api) {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut mesh = Mesh::new(envoy::free_port(), a.port);
    let Some(story) = Story::start(api, &mesh, 1).await else { return };

    story.until("Envoy fetches everything", |envoy| envoy.acked.get(ROUTE) == Some(&1)).await;
    story.answers("a").await;
    story.acked(1, "the first configuration").await;
    let listed = story.until("one Envoy is listed", |envoy| envoy.acked_revision == 1).await;
    assert_eq!((listed.id.as_str(), listed.kind, listed.nacks), ("envoy~shop/web", "envoy", 0));

    // A bad route is refused, the old one keeps serving, and the registry says who, what and why.
    mesh.bad_route = true;
    story.views.publish(2, &mesh);
    let refused = story.until("the bad route is refused", |envoy| envoy.nacks == 1).await;
    assert_eq!((refused.acked_revision, refused.nacked_revision), (1, Some(2)));
    let error = refused.last_error.unwrap();
    assert!(error.starts_with("RouteConfiguration web: ") && error.contains("Domains"), "{error}");
    let lagging = story.subscribers.wait_acked(2, WAIT).await;
    assert!(lagging[0].to_string().starts_with("envoy~shop/web (refused: "), "{lagging:?}");
    story.answers("a").await;

    // Endpoints change while the bad route stands, and take effect.
    mesh.endpoint = b.port;
    story.views.publish(3, &mesh);
    story.acked(3, "an endpoint change that is not the refused revision").await;
    story.answers("b").await;
    mesh.bad_route = false;
    story.views.publish(4, &mesh);
    story.acked(4, "the good route").await;

    // A changed cluster does not stay warming though its endpoints are the same.
    mesh.connect_timeout = 7;
    story.views.publish(5, &mesh);
    story.acked(5, "a changed cluster with unchanged endpoints").await;
    story.envoy.settled("cluster_manager.warming_clusters").await;
    story.answers("b").await;

    // Nor a changed listener whose route is the same.
    mesh.stat_prefix = "changed";
    story.views.publish(6, &mesh);
    story.acked(6, "a changed listener with an unchanged route").await;
    story.envoy.settled("listener_manager.total_listeners_warming").await;
    story.answers("b").await;

    // The route moves to a new cluster and the old cluster goes away, in one revision, under traffic: nothing fails.
    let traffic = Traffic::start(mesh.port);
    traffic.flowing(20).await;
    mesh.cluster = "second";
    mesh.endpoint = a.port;
    story.views.publish(7, &mesh);
    story.acked(7, "a route moves to a new cluster").await;
    story.answers("a").await;
    traffic.flowing(20).await;
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}\n{}", story.envoy.log());
    let clusters = story.envoy.admin("/clusters").await;
    assert!(clusters.contains("second::") && !clusters.contains("first::"), "{clusters}");
    let last = story.until("all of it is ACKed", |envoy| envoy.acked_revision == 7).await;
    assert_eq!((last.nacks, last.nacked_revision), (1, None));
}

/// The replica that Envoy is connected to goes away. Envoy finds the other; what it has is in force all the while,
/// and in delta nothing is sent again.
async fn move_between_replicas(api: Api) {
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut mesh = Mesh::new(envoy::free_port(), a.port);
    let Some(mut story) = Story::start(api, &mesh, 2).await else { return };
    let first = story.connected().await;
    let up_to_date = |envoy: &Subscriber| envoy.acked.get(ROUTE) == Some(&1) && envoy.acked_revision == 1;
    story.until("Envoy fetches everything", up_to_date).await;
    story.answers("a").await;

    let traffic = Traffic::start(mesh.port);
    traffic.flowing(5).await;
    story.servers.remove(first).drain();
    story.connected().await;
    let listed = story.until("Envoy subscribes to everything again", up_to_date).await;
    if matches!(api, Api::Delta) {
        assert_eq!(listed.sent_revision, 0, "something was sent again");
    }
    mesh.endpoint = b.port;
    story.views.publish(2, &mesh);
    story.acked(2, "a change after the move").await;
    story.answers("b").await;
    traffic.flowing(5).await;
    let failures = traffic.stop().await;
    assert!(failures.is_empty(), "{failures:?}\n{}", story.envoy.log());
}

/// Requests one after the other, each on a connection of its own.
struct Traffic {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Traffic {
    fn start(port: u16) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), served.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match get(port).await {
                    Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failures.push(error),
                }
            }
            failures
        });
        Self { stop, served, task }
    }

    /// So many more have been served.
    async fn flowing(&self, more: u64) {
        let target = self.served.load(Ordering::Relaxed) + more;
        let flows = || async { (self.served.load(Ordering::Relaxed) >= target).then_some(()) };
        assert!(eventually(flows).await.is_some(), "traffic does not flow");
    }

    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_is_served_by_state_of_the_world() {
    story(Api::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_is_served_by_delta() {
    story(Api::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_moves_to_another_replica_by_state_of_the_world() {
    move_between_replicas(Api::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_moves_to_another_replica_by_delta_and_is_sent_nothing_again() {
    move_between_replicas(Api::Delta).await;
}
