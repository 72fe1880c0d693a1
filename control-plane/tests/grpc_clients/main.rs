//! gRPC's own xDS clients against the whole way: a replica, its store, the relay and the secrets of a node's agent, and
//! the files of `node-agent grpc-bootstrap`. Only the kernel is missing: pods are processes at loopback addresses.
//!
//! Needs what `make setup` installs (`target/grpc-venv`, `target/grpc-js`). Fails without, unless `SKIP_CLIENTS=1`.

#![allow(clippy::unwrap_used)]

#[path = "../common/agent.rs"]
mod agent;
#[path = "../common/mod.rs"]
mod common;
#[path = "../envoy_ads/envoy.rs"]
mod envoy;
mod process;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use agent::Agent;
use common::Cluster;
use node_agent::grpc::{BOOTSTRAP, GrpcArgs, keep};
use process::{Calls, Client, Language, Server, free_port, skipped};
use tempfile::TempDir;
use tokio::task::JoinSet;

const WORKLOADS: [&str; 5] = ["shop/web", "shop/pay-1", "shop/pay-2", "shop/other", "shop/canary"];

/// A cluster, a node, and what is declared in it.
struct Mesh {
    cluster: Cluster,
    agent: Agent,
    folder: TempDir,
    ports: [u16; 2],
    /// What runs in pods.
    pods: JoinSet<anyhow::Result<()>>,
}

impl Mesh {
    /// A service `pay` with two pods, a service `canary` with one, and `web`, which calls them.
    async fn start(proxy: &str) -> Self {
        let mut cluster = Cluster::start_with("west", &agent::PODS).await;
        let token = cluster.token("node").await;
        let agent = Agent::start(&token, "n1", Vec::new(), &WORKLOADS).await;
        let ports = [free_port(agent.address(11)), free_port(agent.address(12))];
        let mut objects = vec![
            workload("web", "web", "none", None),
            workload("other", "other", "none", None),
            workload("canary", "canary", "none", Some(ports[1])),
            service("pay"),
            service("canary"),
        ];
        for (name, port) in ["pay-1", "pay-2"].into_iter().zip(ports) {
            objects.push(workload(name, "pay", proxy, Some(port)));
        }
        cluster.apply(&objects.join("\n---\n")).await.unwrap();
        for (host, name) in [(10, "shop/web"), (11, "shop/pay-1"), (12, "shop/pay-2"), (13, "shop/other")] {
            agent.bind(name, host).await;
        }
        Self { cluster, agent, folder: tempfile::tempdir().unwrap(), ports, pods: JoinSet::new() }
    }

    /// Where a pod of the service listens.
    fn pay(&self, number: usize) -> SocketAddr {
        let host = [11, 12][number - 1];
        SocketAddr::new(self.agent.address(host), self.ports[number - 1])
    }

    /// The files of a workload, as its pod would have them, once they are there.
    async fn files(&mut self, workload: &str) -> PathBuf {
        let dir = self.folder.path().join(workload.replace('/', "-"));
        let args = GrpcArgs {
            socket: self.agent.socket.clone(),
            dir: dir.clone(),
            workload: mesh_model::resource::NamespacedName::parse(workload),
            owner: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        self.pods.spawn(keep(args));
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        let there = async {
            while !dir.join(BOOTSTRAP).exists() {
                ticks.tick().await;
            }
        };
        tokio::time::timeout(common::SOON, there).await.unwrap();
        dir
    }

    async fn web(&mut self, language: Language) -> Client {
        Client::start(language, &self.files("shop/web").await.join(BOOTSTRAP))
    }

    /// Every gRPC client has taken everything that it was sent.
    async fn acked(&self) {
        let subscribers = &self.cluster.running.app.subscribers;
        let revision = self.cluster.running.app.replica.applied().revision;
        let lagging = subscribers.wait_acked(revision, Duration::from_secs(10)).await;
        assert!(lagging.is_empty(), "{lagging:?}");
        let refused: Vec<_> = subscribers.list().into_iter().filter(|s| s.nacks > 0).collect();
        assert!(refused.is_empty(), "{refused:?}");
        assert!(subscribers.list().iter().any(|s| s.kind == "grpc" && s.id == "grpc~shop/web"));
    }
}

fn workload(name: &str, app: &str, proxy: &str, port: Option<u16>) -> String {
    let ports = port.map_or(String::new(), |port| format!("{{name: grpc, port: {port}, appProtocol: grpc}}"));
    format!(
        "{{apiVersion: isthmus.io/v1, kind: Workload, \
          metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
          spec: {{serviceAccount: {app}, proxy: {proxy}, ports: [{ports}]}}}}"
    )
}

fn service(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{\
          selector: {{app: {name}}}, ports: [{{port: 80, targetPort: grpc, appProtocol: grpc}}]}}}}"
    )
}

fn only(name: &str) -> impl Fn(&Calls) -> bool + use<'_> {
    move |calls| calls.names() == [name] && calls.errors.is_empty()
}

async fn plain(language: Language) {
    if skipped() {
        return;
    }
    let mut mesh = Mesh::start("none").await;
    let _one = Server::start("one", mesh.pay(1), None).await;
    let _two = Server::start("two", mesh.pay(2), None).await;
    let mut web = mesh.web(language).await;

    // Both forms of the name; turns are taken.
    for target in ["xds:///pay.shop:80", "xds:///pay.shop.svc.mesh.local:80"] {
        web.open(target, false).await;
        web.until("both serve", target, 10, |calls| calls.answers.len() == 2).await;
        let calls = web.call(target, 40).await;
        assert!(calls.errors.is_empty() && calls.answers.values().all(|n| *n == 20), "{calls:?}");
    }
    mesh.acked().await;

    // A pod goes, and comes again, under calls: none fails.
    let target = "xds:///pay.shop:80";
    mesh.agent.unbind("shop/pay-2").await;
    let moved = web.until("traffic moves", target, 10, only("one")).await;
    assert!(moved.errors.is_empty(), "{moved:?}");
    mesh.agent.bind("shop/pay-2", 12).await;
    web.until("traffic comes back", target, 10, |c| c.answers.len() == 2 && c.errors.is_empty()).await;

    // A route by path, to another service.
    mesh.agent.unbind("shop/pay-2").await;
    mesh.agent.bind("shop/canary", 12).await;
    let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, \
        metadata: {name: pay, namespace: shop}, spec: {\
        parentRefs: [{kind: Service, group: '', name: pay, port: 80}], \
        rules: [{matches: [{path: {type: PathPrefix, value: /isthmus.test.Echo}}], \
                 backendRefs: [{name: canary, port: 80}]}]}}";
    mesh.cluster.apply(route).await.unwrap();
    web.until("the route is followed", target, 10, only("two")).await;
    mesh.acked().await;

    // The service is deleted: calls fail, and at once, because the listener was there before.
    mesh.cluster.delete("service", "shop", "pay").await;
    let gone = web.until("the service is gone", target, 1, |calls| calls.answers.is_empty()).await;
    assert!(gone.errors[0].starts_with("UNAVAILABLE"), "{gone:?}");

    // A name that nobody ever had: C-core gives up after 15 s, Node waits for as long as the call may.
    if language == Language::Python {
        web.open("xds:///nothing.shop:80", false).await;
        let calls = web.call("xds:///nothing.shop:80", 1).await;
        assert!(calls.answers.is_empty() && calls.errors[0].starts_with("UNAVAILABLE"), "{calls:?}");
    }
}

async fn mutual_tls(language: Language) {
    if skipped() {
        return;
    }
    let mut mesh = Mesh::start("sidecar").await;
    let files = mesh.files("shop/pay-1").await;
    let one = Server::start("one", mesh.pay(1), Some(&files)).await;
    mesh.agent.unbind("shop/pay-2").await;
    let mut web = mesh.web(language).await;
    let target = "xds:///pay.shop:80";
    web.open(target, true).await;
    web.until(
        "mTLS, and the server knows the caller",
        target,
        5,
        only("one spiffe://west.example/ns/shop/sa/web"),
    )
    .await;
    mesh.acked().await;

    // At the same address, somebody with a good certificate of the mesh who is not pay.
    drop(one);
    let other = mesh.files("shop/other").await;
    let _impostor = Server::start("impostor", mesh.pay(1), Some(&other)).await;
    let calls = web.until("calls fail", target, 3, |calls| calls.answers.is_empty()).await;
    let closed = |error: &String| error.starts_with("UNAVAILABLE") || error.starts_with("DEADLINE_EXCEEDED");
    assert!(calls.errors.iter().all(closed), "{calls:?}");
}

/// The server is an ordinary one behind a sidecar of ours: it chooses its chain by the name that gRPC sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_reach_a_server_behind_a_sidecar() {
    if skipped() {
        return;
    }
    let _ports = common::proxy_ports();
    let mut mesh = Mesh::start("sidecar").await;
    mesh.agent.unbind("shop/pay-2").await;
    let application = SocketAddr::from(([127, 0, 0, 1], mesh.ports[0]));
    let _one = Server::start("one", application, None).await;
    let sidecar = proxy::Proxy::start(proxy::Options {
        agent_socket: mesh.agent.socket.clone(),
        node_id: "proxy~shop/pay-1".to_owned(),
        cluster: String::new(),
        admin: None,
        ready_file: None,
        access_log: false,
    });
    let sidecar = sidecar.await.unwrap();
    tokio::time::timeout(common::SOON, sidecar.ready()).await.unwrap();
    for language in [Language::Python, Language::Node] {
        let mut web = mesh.web(language).await;
        for target in ["xds:///pay.shop:80", "xds:///pay.shop.svc.mesh.local:80"] {
            web.open(target, true).await;
            web.until("served behind the sidecar", target, 5, only("one")).await;
        }
        // In plain text nobody is let in.
        let plain = "xds:///pay.shop.svc.mesh.local:80";
        web.open(plain, false).await;
        let calls = web.call(plain, 1).await;
        assert!(calls.answers.is_empty() && calls.errors.len() == 1, "{calls:?}");
    }
    sidecar.drain(Duration::from_secs(1)).await;
}

/// The same with Envoy as the sidecar: keys and roots by SDS, callers of the mesh only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_core_reaches_a_server_behind_envoy() {
    let Some(binary) = envoy::binary() else { return };
    if skipped() {
        return;
    }
    let _ports = common::proxy_ports();
    let mut mesh = Mesh::start("sidecar").await;
    mesh.agent.unbind("shop/pay-2").await;
    let application = SocketAddr::from(([127, 0, 0, 1], mesh.ports[0]));
    let _one = Server::start("one", application, None).await;
    for api in [envoy::Api::Sotw, envoy::Api::Delta] {
        let envoy = envoy::Envoy::start_at(&binary, api, "shop/pay-1", &mesh.agent.socket);
        let mut web = mesh.web(Language::Python).await;
        let target = "xds:///pay.shop:80";
        web.open(target, true).await;
        web.until("served behind Envoy", target, 5, only("one")).await;
        let subscribers = mesh.cluster.running.app.subscribers.list();
        let refused: Vec<_> = subscribers.into_iter().filter(|s| s.nacks > 0).collect();
        assert!(refused.is_empty(), "{refused:?}\n{}", envoy.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_core_resolves_balances_and_follows_changes() {
    plain(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c_core_speaks_mutual_tls_and_refuses_whoever_is_not_the_service() {
    mutual_tls(Language::Python).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_resolves_balances_and_follows_changes() {
    plain(Language::Node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_speaks_mutual_tls_and_refuses_whoever_is_not_the_service() {
    mutual_tls(Language::Node).await;
}
