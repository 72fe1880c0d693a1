//! Replicas of one cluster, over their real doors: admission by token, writes on any of them, one view of status.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "common/agent.rs"]
mod agent;
mod common;

use std::{net::SocketAddr, time::Duration};

use agent::{Agent, PODS};
use common::{Cluster, SOON, configured, run};
use control_plane::{
    start::{self, Running},
    xds::{Views as _, kinds},
};
use mesh_model::resource::{Kind, NamespacedName, ObjectKey};
use mesh_tls::grpc;
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use xds_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    isthmus::admin::v1::{
        ApplyRequest, SetReplicaRoleRequest, StatusRequest, admin_client::AdminClient,
        replicas_client::ReplicasClient,
    },
};

async fn add(cluster: &mut Cluster) -> (Running, TempDir) {
    let token = cluster.token("replica").await;
    let folder = tempfile::tempdir().unwrap();
    let running = run(folder.path(), &["--join", &token]).await;
    (running, folder)
}

#[tokio::test]
async fn a_second_replica_is_admitted_takes_writes_and_is_listed() {
    let mut cluster = Cluster::start("west").await;
    let (second, folder) = add(&mut cluster).await;
    assert_eq!(second.app.ca.replica().id, 2);
    let mut admin = AdminClient::new(grpc::connect_unix(folder.path().join("admin.sock")).await.unwrap());
    let object = br#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","namespace":"shop"},"spec":{"ports":[{"port":80}]}}"#;
    let request = ApplyRequest { objects: vec![object.to_vec()], wait: true, ..Default::default() };
    let answer = admin.apply(request).await.unwrap().into_inner();
    assert_eq!(answer.waiting_for, Vec::<String>::new());
    let key = ObjectKey { kind: Kind::Service, name: NamespacedName::new("shop", "a") };
    let first = cluster.running.app.replica.linearizable().await.unwrap();
    assert!(first.objects.contains_key(&key));

    let both = async {
        loop {
            let status = admin.status(StatusRequest {}).await.unwrap().into_inner();
            let roles: Vec<&str> = status.replicas.iter().map(|r| r.role.as_str()).collect();
            if roles == ["leader", "follower"] {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    let status = tokio::time::timeout(SOON, both).await.unwrap();
    assert_eq!((status.leader, status.answered_by), (1, 2));
    let own = |id: &str| status.certificates.iter().any(|c| c.subject.ends_with(id));
    assert!(own("/replica/1") && own("/replica/2"), "{:?}", status.certificates);
    second.drain(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_replica_without_a_good_token_leaves_no_trace_on_either_side() {
    let mut cluster = Cluster::start("west").await;
    let token = cluster.token("node").await;
    let before = cluster.revision().await;
    let folder = tempfile::tempdir().unwrap();
    let error = start::start(configured(folder.path(), &["--join", &token])).await.unwrap_err();
    assert!(error.to_string().contains("for a node, not for a replica"), "{error:#}");
    assert!(!folder.path().join("data/keys/replica.json").exists());
    assert_eq!(cluster.revision().await, before);
}

#[tokio::test]
async fn a_replica_that_was_stopped_comes_back_as_itself_with_its_state() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--name", "west", "--trust-domain", "west.example"];
    let first = run(folder.path(), &flags).await;
    let roots = first.app.ca.roots().to_vec();
    let revision = first.app.replica.applied().revision;
    first.drain(Duration::from_secs(5)).await;
    let again = run(folder.path(), &flags).await;
    assert_eq!(again.app.ca.roots(), roots);
    let state = again.app.replica.linearizable().await.unwrap();
    assert!(state.revision >= revision && state.cluster.is_some());
    // The port was the kernel's choice, so the address is another one now.
    assert_eq!(state.replicas[&1].address, again.door.to_string());
}

/// A way for connections that can be cut and mended.
struct Link {
    address: SocketAddr,
    /// Where it leads; None: it is cut.
    to: watch::Sender<Option<SocketAddr>>,
}

impl Link {
    async fn lay() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, leads) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut leads = leads.clone();
                let Some(target) = *leads.borrow_and_update() else { continue };
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = leads.changed() => {}
                    }
                });
            }
        });
        Self { address, to }
    }

    fn lead_to(&self, target: SocketAddr) {
        self.to.send_replace(Some(target));
    }

    fn cut(&self) {
        self.to.send_replace(None);
    }
}

fn service(name: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
          spec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
    )
}

const WEB: &str = "{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: web, namespace: shop, labels: {app: web}}, \
     spec: {serviceAccount: web, proxy: sidecar, ports: [{port: 8080}]}}";

const LOG: &str = "outbound|80|log.shop";

/// As an Envoy that knows nothing of an earlier stream.
async fn delta_of(
    channel: Channel,
    id: &str,
    type_url: &str,
) -> (mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>) {
    let (requests, receiver) = mpsc::channel(8);
    let first = DeltaDiscoveryRequest {
        node: Some(xds_client::node(id, "west")),
        type_url: type_url.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..Default::default()
    };
    requests.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    (requests, responses.into_inner())
}

async fn sotw_clusters(
    channel: Channel,
    id: &str,
) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let (requests, receiver) = mpsc::channel(8);
    let node = Some(xds_client::node(id, "west"));
    let type_url = kinds::CLUSTER.to_owned();
    requests.send(DiscoveryRequest { node, type_url, ..Default::default() }).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let responses = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    (requests, responses.into_inner())
}

async fn message<T>(responses: &mut Streaming<T>) -> T {
    tokio::time::timeout(SOON, responses.message()).await.unwrap().unwrap().expect("the stream goes on")
}

fn has(response: &DeltaDiscoveryResponse, name: &str) -> bool {
    response.resources.iter().any(|resource| resource.name == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_whose_agent_goes_to_a_replica_that_is_behind_is_served_nothing_older_than_it_has() {
    let mut cluster = Cluster::start_with("west", &PODS).await;
    let (to_first, to_second) = (Link::lay().await, Link::lay().await);
    to_first.lead_to(cluster.running.door);

    // The second one is heard of by way of the link, and is a learner: the first goes on without it.
    let token = cluster.token("replica").await;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--advertise", &to_second.address.to_string(), "--join", &token];
    let second = start::start(configured(folder.path(), &flags)).await.unwrap();
    to_second.lead_to(second.door);
    tokio::time::timeout(SOON, second.ready()).await.unwrap();
    let mut replicas = ReplicasClient::new(cluster.admin_channel.clone());
    replicas.set_role(SetReplicaRoleRequest { id: 2, learner: true }).await.unwrap();
    let learns = async {
        loop {
            let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
            if status.replicas.iter().map(|replica| replica.role.as_str()).eq(["leader", "learner"]) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, learns).await.unwrap();

    cluster.apply(&[WEB, &service("cart")].join("\n---\n")).await.unwrap();
    let token = cluster.token("node").await;
    let ways = vec![to_first.address.to_string(), second.door.to_string()];
    let agent = Agent::start(&token, "n1", ways, &["shop/web"]).await;
    agent.bind("shop/web", 10).await;
    let other = cluster.node("n2").await;
    let revision = cluster.revision().await;
    second.app.views.changed().wait_for(|reached| *reached >= revision).await.unwrap();
    to_second.cut();

    let relayed = || async { grpc::connect_unix(&agent.socket).await.unwrap() };
    let id = "envoy~shop/web";
    cluster.apply(&service("log")).await.unwrap();
    // Acknowledged is not yet compiled.
    let revision = cluster.revision().await;
    cluster.running.app.views.changed().wait_for(|reached| *reached >= revision).await.unwrap();
    let (_requests, mut first) = delta_of(relayed().await, id, kinds::CLUSTER).await;
    let had = message(&mut first).await;
    assert!(has(&had, "outbound|80|cart.shop") && has(&had, LOG));

    to_first.cut();
    let lost = tokio::time::timeout(SOON, first.message()).await.unwrap().unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable);

    // The second one serves whoever has seen no more than it has.
    let door = second.door.to_string();
    let behind = || async {
        let channel = cluster.connect_to(&door, Some(other.identity.clone())).await.unwrap();
        let (_requests, mut services) = delta_of(channel, "agent~n2", kinds::SERVICE).await;
        let services = message(&mut services).await;
        has(&services, "shop/cart") && !has(&services, "shop/log")
    };
    assert!(behind().await);
    let (_requests, mut delta) = delta_of(relayed().await, id, kinds::CLUSTER).await;
    let (_others, mut sotw) = sotw_clusters(relayed().await, id).await;
    assert!(behind().await, "it answers, and not the proxy");
    assert!(tokio::time::timeout(Duration::ZERO, delta.message()).await.is_err());
    assert!(tokio::time::timeout(Duration::ZERO, sotw.message()).await.is_err());

    to_second.lead_to(second.door);
    let (now, whole) = (message(&mut delta).await, message(&mut sotw).await);
    assert!(has(&now, LOG), "{now:?}");
    assert!(
        whole
            .resources
            .iter()
            .any(|resource| memchr::memmem::find(&resource.value, LOG.as_bytes()).is_some())
    );
    second.drain(Duration::from_secs(5)).await;
}
