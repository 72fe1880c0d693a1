//! Envoy as a sidecar: a store, its compiled views, the relay of an agent. Nothing is made by hand but YAML.

use std::{net::SocketAddr, time::Duration};

use control_plane::{
    app::App,
    xds::{Lagging, Subscriber, Views as _},
};
use mesh_model::resource::{NamespacedName, Object, PathMatch};
use mesh_store::Command;
use xds_proto::isthmus::admin::v1::StatusRequest;

use crate::{
    agent::{Agent, PODS},
    common::{self, Cluster},
    envoy::{self, Api, Backend, Envoy, PROMPT, eventually, get},
};

const WORKLOADS: [&str; 3] = ["shop/web", "shop/pay-1", "shop/pay-2"];

struct Shop {
    cluster: Cluster,
    agent: Agent,
    envoy: Envoy,
    /// Of the outbound listener.
    port: u16,
    ports: [u16; 2],
}

impl Shop {
    async fn start(api: Api) -> Option<Self> {
        let binary = envoy::binary()?;
        let mut cluster = Cluster::start_with("west", &PODS).await;
        let token = cluster.token("node").await;
        let agent = Agent::start(&token, "n1", Vec::new(), &WORKLOADS).await;
        let ports = [11, 12].map(|host| {
            let listener = std::net::TcpListener::bind((agent.address(host), 0)).unwrap();
            listener.local_addr().unwrap().port()
        });
        let yaml = [
            workload("web", "web", "sidecar", None),
            workload("pay-1", "pay", "none", Some(ports[0])),
            workload("pay-2", "pay", "none", Some(ports[1])),
            service("http"),
        ];
        cluster.apply(&yaml.join("\n---\n")).await.unwrap();
        for (host, name) in [(10, "shop/web"), (11, "shop/pay-1")] {
            agent.bind(name, host).await;
        }
        let state = cluster.running.app.replica.applied();
        let port = state.allocations[&NamespacedName::new("shop", "pay")].proxy_ports[&80];
        let envoy = Envoy::start_at(&binary, api, "shop/web", &agent.socket);
        Some(Self { cluster, agent, envoy, port, ports })
    }

    fn backend(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.agent.address([11, 12][number - 1]), self.ports[number - 1])
    }

    async fn answers(&self, expected: &str) {
        let answered = eventually(|| async { get(self.port).await.ok().filter(|body| body == expected) });
        assert!(answered.await.is_some(), "no answer from {expected}\n{}", self.envoy.log());
    }

    /// Everything up to the newest revision.
    async fn acked(&self, what: &str) {
        let app = &self.cluster.running.app;
        let lagging = lagging(app).await;
        assert!(lagging.is_empty(), "{what}: {lagging:?}\n{}", self.envoy.log());
    }

    fn listed(&self) -> Option<Subscriber> {
        self.cluster.running.app.subscribers.list().into_iter().find(|s| s.id == "envoy~shop/web")
    }
}

/// Who has not ACKed the newest revision, well before Envoy's own timers.
pub async fn lagging(app: &App) -> Vec<Lagging> {
    let revision = app.replica.applied().revision;
    // Whom a revision does not concern is known once the views have reached it.
    app.views.changed().wait_for(|reached| *reached >= revision).await.expect("it runs");
    app.subscribers.wait_acked(revision, PROMPT).await
}

fn workload(name: &str, app: &str, proxy: &str, port: Option<u16>) -> String {
    let ports = port.map_or(String::new(), |port| format!("{{name: http, port: {port}}}"));
    format!(
        "{{apiVersion: isthmus.io/v1, kind: Workload, \
          metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
          spec: {{serviceAccount: {app}, proxy: {proxy}, ports: [{ports}]}}}}"
    )
}

fn service(protocol: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: pay, namespace: shop}}, \
          spec: {{selector: {{app: pay}}, ports: [{{port: 80, targetPort: http, appProtocol: {protocol}}}]}}}}"
    )
}

fn route(pattern: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: pay, namespace: shop}}, \
          spec: {{parentRefs: [{{kind: Service, group: '', name: pay, port: 80}}], rules: [{{\
          matches: [{{path: {{type: RegularExpression, value: '{pattern}'}}}}], \
          backendRefs: [{{name: pay, port: 80}}]}}]}}}}"
    )
}

async fn sidecar(api: Api) {
    let _ports = common::proxy_ports();
    let Some(mut shop) = Shop::start(api).await else { return };
    let _a = Backend::start_at(shop.backend(1), "a").await;
    let _b = Backend::start_at(shop.backend(2), "b").await;
    shop.answers("a").await;
    shop.acked("the first configuration").await;

    // A pod moves.
    shop.agent.bind("shop/pay-2", 12).await;
    shop.agent.unbind("shop/pay-1").await;
    shop.answers("b").await;
    shop.acked("other endpoints").await;

    // An expression that RE2 does not take is refused when it is applied.
    let refusal = shop.cluster.apply(&route("/x{1001}")).await.unwrap_err();
    assert!(refusal.message().contains("repeats more than 1000 times"), "{refusal}");
    // Were one to get past that, Envoy would refuse the route, and go on with the one before.
    let value: serde_json::Value = serde_saphyr::from_str(&route("/.*")).unwrap();
    let mut object = Object::parse(&value).unwrap();
    if let Object::HttpRoute(route) = &mut object {
        route.rules[0].matches[0].path = PathMatch::Regex("/x{1001}".to_owned());
    }
    let command = Command::Apply { objects: vec![object], dry_run: false };
    shop.cluster.running.app.replica.write(command).await.unwrap();
    let refused = eventually(|| async { shop.listed().filter(|envoy| envoy.nacks > 0) }).await;
    assert!(refused.is_some(), "{:?}\n{}", shop.listed(), shop.envoy.log());
    shop.answers("b").await;
    let status = shop.cluster.admin.status(StatusRequest::default()).await.unwrap().into_inner();
    let row = status.data_planes.iter().find(|plane| plane.id == "envoy~shop/web").unwrap();
    assert_eq!((row.kind.as_str(), row.nacked), ("envoy", 1));
    let said = |part: &str| assert!(row.last_error.contains(part), "{part}: {:?}", row.last_error);
    said("outbound|80|pay.shop");
    said("regex '/x{1001}'");

    // Mended, by one that is longer than the 100 instructions which Envoy takes without being told.
    shop.cluster.apply(&route("(?i)/(?:api/v[12]/[0-9a-f-]{36}|.*)")).await.unwrap();
    shop.acked("a good expression").await;
    shop.answers("b").await;
    let listed = shop.listed().unwrap();
    assert_eq!((listed.nacks, listed.nacked_revision), (1, None), "{listed:?}");
}

/// The cluster becomes another and its endpoints move, again and again, and nobody waits for Envoy: endpoints change while
/// it warms the cluster that was sent before. None of it is lost, and nothing waits for Envoy's own timer.
async fn changes_while_warming(api: Api) {
    let _ports = common::proxy_ports();
    let Some(mut shop) = Shop::start(api).await else { return };
    let _a = Backend::start_at(shop.backend(1), "a").await;
    let _b = Backend::start_at(shop.backend(2), "b").await;
    shop.answers("a").await;
    for round in 0..11 {
        let odd = round % 2 == 1;
        shop.cluster.apply(&service(if odd { "http2" } else { "grpc" })).await.unwrap();
        let (come, gone) = if odd { ("shop/pay-1", "shop/pay-2") } else { ("shop/pay-2", "shop/pay-1") };
        let host = if odd { 11 } else { 12 };
        shop.agent.bind(come, host).await;
        shop.cluster.apply(&service("http")).await.unwrap();
        shop.agent.unbind(gone).await;
    }
    shop.acked("the last cluster and the last endpoints").await;
    shop.envoy.settled("cluster_manager.warming_clusters").await;
    shop.answers("b").await;
    for _ in 0..20 {
        assert_eq!(get(shop.port).await.as_deref(), Ok("b"), "{}", shop.envoy.log());
    }
    let stats = shop.envoy.admin("/stats?filter=init_fetch_timeout|cluster_manager.cluster_modified").await;
    let number = |line: &str| line.rsplit(' ').next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let of = |part: &str| stats.lines().filter(|line| line.contains(part)).map(number).sum::<u64>();
    assert!(of("cluster_modified") >= 2 && of("init_fetch_timeout") == 0, "{stats}");
    let listed = shop.listed().unwrap();
    assert_eq!(listed.nacks, 0, "{listed:?}");
}

/// The replica that serves it drains. The agent finds another one, and nothing is sent again.
async fn another_replica(api: Api) {
    let _ports = common::proxy_ports();
    let Some(binary) = envoy::binary() else { return };
    let mut cluster = Cluster::start_with("west", &PODS).await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut more = Vec::new();
    for folder in &folders {
        let token = cluster.token("replica").await;
        more.push(common::run(folder.path(), &["--join", &token]).await);
    }
    let doors = more.iter().map(|replica| replica.door.to_string()).collect();
    let token = cluster.token("node").await;
    let agent = Agent::start(&token, "n1", doors, &WORKLOADS).await;
    let port = std::net::TcpListener::bind((agent.address(11), 0)).unwrap().local_addr().unwrap().port();
    let yaml = [
        workload("web", "web", "sidecar", None),
        workload("pay-1", "pay", "none", Some(port)),
        service("http"),
    ];
    cluster.apply(&yaml.join("\n---\n")).await.unwrap();
    for (host, name) in [(10, "shop/web"), (11, "shop/pay-1")] {
        agent.bind(name, host).await;
    }
    let state = cluster.running.app.replica.applied();
    let outbound = state.allocations[&NamespacedName::new("shop", "pay")].proxy_ports[&80];
    let _a = Backend::start_at(SocketAddr::new(agent.address(11), port), "a").await;
    let envoy = Envoy::start_at(&binary, api, "shop/web", &agent.socket);
    let answered = || async { get(outbound).await.ok().filter(|body| body == "a") };
    assert!(eventually(answered).await.is_some(), "{}", envoy.log());
    let serves = |replica: &control_plane::start::Running| {
        let subscribers = replica.app.subscribers.list();
        subscribers.into_iter().find(|s| s.id == "envoy~shop/web" && s.acked.len() >= 4)
    };
    let first = eventually(|| async { more.iter().position(|replica| serves(replica).is_some()) }).await;
    let first = first.unwrap_or_else(|| panic!("nobody serves Envoy\n{}", envoy.log()));
    more.remove(first).drain(Duration::from_secs(5)).await;
    let moved = eventually(|| async { serves(&more[0]) }).await;
    let moved = moved.unwrap_or_else(|| panic!("Envoy has not moved\n{}", envoy.log()));
    assert_eq!((moved.sent_revision, moved.nacks), (0, 0), "something was sent again: {moved:?}");
    assert!(eventually(answered).await.is_some(), "{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_envoy_follows_a_whole_control_plane_by_state_of_the_world() {
    sidecar(Api::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_envoy_follows_a_whole_control_plane_by_delta() {
    sidecar(Api::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_endpoints_are_lost_that_change_while_a_cluster_warms_by_state_of_the_world() {
    changes_while_warming(Api::Sotw).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_endpoints_are_lost_that_change_while_a_cluster_warms_by_delta() {
    changes_while_warming(Api::Delta).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_envoy_moves_to_another_replica_and_is_sent_nothing_again() {
    another_replica(Api::Delta).await;
}
