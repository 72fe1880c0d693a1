//! The real Envoy asks for what it needs when it needs it: virtual hosts by VHDS, clusters by on-demand CDS; and
//! reports its load by LRS.
//!
//! Needs the Envoy binary: see `envoy_ads`.

#![allow(clippy::unwrap_used, dead_code)]

#[path = "../envoy_ads/envoy.rs"]
mod envoy;
mod resources;
mod scoped;
#[path = "../common/world.rs"]
mod world;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use control_plane::xds::{
    Client, PeerIdentity, ProxyKind, ResourceSet, Subscribers, Views, XdsServer,
    csds::{matcher::Matchers, service::of_replica},
    server::{Options, keepalive},
};
use envoy::{Api, Backend, Envoy, bootstrap};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_stream::wrappers::TcpListenerStream;
use xds_proto::envoy::service::status::v3::ConfigStatus;

/// Envoy's own timers for what does not come are 15 s: below that it was answered.
const PROMPT: Duration = Duration::from_secs(8);

struct OneView {
    set: Mutex<Arc<ResourceSet>>,
    revision: watch::Sender<u64>,
}

impl OneView {
    fn publish(&self, mut set: ResourceSet) {
        let mut current = self.set.lock().unwrap();
        set.share_with(&current);
        let revision = set.revision;
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

    fn authorize(&self, _: &PeerIdentity, _: &str, _: Option<&str>) -> Result<Client, tonic::Status> {
        Ok(Client::Proxy { workload: "shop/web".to_owned(), kind: ProxyKind::Envoy })
    }
}

struct Story {
    views: Arc<OneView>,
    subscribers: Arc<Subscribers>,
    envoy: Envoy,
    port: u16,
}

impl Story {
    async fn start(api: Api, port: u16, set: ResourceSet) -> Option<Self> {
        let binary = envoy::binary()?;
        let views = Arc::new(OneView { set: Mutex::default(), revision: watch::Sender::new(0) });
        views.publish(set);
        let mut options = Options::new("test");
        options.load_interval = Duration::from_secs(1);
        let server = XdsServer::new(views.clone(), Arc::default(), options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = keepalive(tonic::transport::Server::builder()).add_routes(server.routes());
        tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
        let mut config = bootstrap(api, &[address]);
        config["cluster_manager"] = json!({"load_stats_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "isthmus_agent"}}]
        }});
        let envoy = Envoy::with(&binary, &config);
        Some(Self { views, subscribers: server.subscribers().clone(), envoy, port })
    }

    /// What Envoy answers, once it answers so.
    async fn answers(&self, host: &str, cluster: &str, status: u16, body: &str) {
        let wanted = (status, body.to_owned());
        let got = Mutex::new(None);
        let asked = eventually(|| async {
            let answer = get(self.port, host, cluster).await.ok();
            let right = answer.as_ref() == Some(&wanted);
            *got.lock().unwrap() = answer;
            right.then_some(())
        });
        assert!(
            asked.await.is_some(),
            "{host}: {:?} and not {wanted:?}\n{}",
            got.lock().unwrap(),
            self.envoy.log()
        );
    }

    async fn acked(&self, revision: u64) {
        let lagging = self.subscribers.wait_acked(revision, PROMPT).await;
        assert!(lagging.is_empty(), "{lagging:?}\n{}", self.envoy.log());
    }
}

async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> Option<T> {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let asking = async {
        loop {
            ticks.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PROMPT * 2, asking).await.ok()
}

/// Status and body of one request, with the header that names a cluster.
async fn get(port: u16, host: &str, cluster: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        let head =
            format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-cluster: {cluster}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await?;
        let response = String::from_utf8_lossy(&response).into_owned();
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        // The backend's answers are short: one chunk, if it is chunked.
        let body = if head.contains("chunked") { body.lines().nth(1).unwrap_or("") } else { body };
        Ok((status, body.to_owned()))
    };
    tokio::time::timeout(PROMPT, exchange).await?
}

async fn virtual_hosts(api: Api) {
    let backend = Backend::start("a").await;
    let port = envoy::free_port();
    let hosts = |revision: u64, hosts: &[(&str, &[&str])]| {
        let mut set = resources::mesh(revision, port, backend.port, resources::Routes::OnDemand);
        hosts.iter().for_each(|(name, domains)| set.insert_named(resources::host(name, domains)));
        set
    };
    let first: &[(&str, &[&str])] =
        &[("web/shop", &["web.shop", "www.shop"]), ("web/any", &["*.example.com"])];
    let Some(story) = Story::start(api, port, hosts(1, first)).await else { return };
    story.answers("web.shop", "", 200, "a").await;
    story.answers("www.shop", "", 200, "a").await;
    story.answers("a.example.com", "", 200, "a").await;

    // Nobody serves it, and Envoy says so at once. The request before has shown that everything is up.
    let begun = Instant::now();
    story.answers("ghost.shop", "", 404, "").await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    story.answers("ghost.shop", "", 404, "").await;

    // Now somebody does.
    let more: &[(&str, &[&str])] = &[("web/shop", &["web.shop", "www.shop"]), ("web/ghost", &["ghost.shop"])];
    story.views.publish(hosts(2, more));
    story.answers("ghost.shop", "", 200, "a").await;

    // And no longer.
    story.views.publish(hosts(3, &[("web/ghost", &["ghost.shop"])]));
    story.answers("web.shop", "", 404, "").await;
    story.answers("ghost.shop", "", 200, "a").await;
    story.acked(3).await;
    let refused = story.subscribers.list().iter().map(|subscriber| subscriber.nacks).sum::<u32>();
    assert_eq!(refused, 0, "{:?}", story.subscribers.list());
}

async fn clusters(api: Api) {
    let (near, far) = (Backend::start("near").await, Backend::start("far").await);
    let port = envoy::free_port();
    let set = |revision: u64, with_far: bool| {
        let mut set = resources::mesh(revision, port, near.port, resources::Routes::ByHeader);
        if with_far {
            set.insert_named(resources::cluster("far"));
            set.insert_named(resources::endpoints("far", far.port));
        }
        set
    };
    let Some(story) = Story::start(api, port, set(1, true)).await else { return };
    story.answers("web.shop", "near", 200, "near").await;
    let before = story.envoy.admin("/clusters").await;
    assert!(!before.contains("far::"), "it was not asked for: {before}");
    story.answers("web.shop", "far", 200, "far").await;

    let begun = Instant::now();
    story.answers("web.shop", "ghost", 503, "").await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    story.views.publish(set(2, false));
    let gone =
        eventually(|| async { (!story.envoy.admin("/clusters").await.contains("far::")).then_some(()) });
    assert!(gone.await.is_some(), "{}", story.envoy.log());
    story.answers("web.shop", "near", 200, "near").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_asks_for_virtual_hosts_when_it_needs_them_by_delta() {
    virtual_hosts(Api::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_asks_for_virtual_hosts_when_it_needs_them_with_the_rest_in_state_of_the_world() {
    virtual_hosts(Api::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_asks_for_clusters_outside_of_its_view_when_it_needs_them() {
    clusters(Api::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_asks_for_services_outside_of_its_sidecar_objects_scope_and_gets_those_that_are_visible() {
    let backend = Backend::start("log").await;
    let port = envoy::free_port();
    let mut mesh = scoped::Mesh::new(backend.port);
    let view = |mesh: &scoped::Mesh| {
        let mut set = mesh.view();
        resources::front(&mut set, port);
        set
    };
    let Some(story) = Story::start(Api::Delta, port, view(&mesh)).await else { return };
    story.answers("web.shop", "outbound|80|log.ops", 200, "log").await;
    let asked = story.envoy.admin("/clusters").await;
    assert!(asked.contains("log.ops") && !asked.contains("trace.ops"), "only what it asked for: {asked}");
    let begun = Instant::now();
    story.answers("web.shop", "outbound|80|pay.ops", 503, "").await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());

    // It becomes visible, and another request for it finds it.
    mesh.service("pay", "*");
    story.views.publish(view(&mesh));
    story.answers("web.shop", "outbound|80|pay.ops", 200, "log").await;

    // Without the Sidecar everything is there unasked.
    mesh.unscope();
    story.views.publish(view(&mesh));
    let all =
        eventually(|| async { story.envoy.admin("/clusters").await.contains("trace.ops").then_some(()) });
    assert!(all.await.is_some(), "{}", story.envoy.log());
    let refused = story.subscribers.list().iter().map(|subscriber| subscriber.nacks).sum::<u32>();
    assert_eq!(refused, 0, "{:?}", story.subscribers.list());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_reports_its_load_and_is_seen_to_have_accepted_what_it_was_sent() {
    let backend = Backend::start("a").await;
    let port = envoy::free_port();
    let set = resources::mesh(1, port, backend.port, resources::Routes::ByHeader);
    let Some(story) = Story::start(Api::Delta, port, set).await else { return };
    story.answers("web.shop", "near", 200, "a").await;
    // Envoy counts from the moment at which it is asked to.
    let reported = eventually(|| async {
        get(port, "web.shop", "near").await.ok()?;
        let loads = story.subscribers.loads().report(Instant::now());
        loads.into_iter().find(|load| load.cluster == "near" && load.totals.issued >= 5)
    });
    let load = reported.await.unwrap_or_else(|| panic!("no load is reported\n{}", story.envoy.log()));
    assert_eq!(load.locality.to_string(), "eu/a");
    // One may be under way when Envoy reports.
    assert!(load.totals.failed == 0 && load.totals.issued - load.totals.succeeded <= 1, "{:?}", load.totals);

    story.acked(1).await;
    let everybody = Arc::new(Matchers::default());
    let clients = of_replica(story.subscribers.inspectors(), &everybody, false, &mut 0).await.unwrap();
    assert!(clients[0].node.as_ref().unwrap().user_agent_name.contains("envoy"));
    let synced = |name: &str| {
        let config = clients[0].generic_xds_configs.iter().find(|config| config.name == name);
        config.is_some_and(|config| config.config_status() == ConfigStatus::Synced)
    };
    assert!(synced("near") && synced("web"), "{clients:?}");
}
