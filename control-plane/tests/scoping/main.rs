//! Through the real doors: what workloads of two namespaces are told of services, unasked and by name, and that nobody
//! is told another's secrets, whatever name they ask for.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod sotw;

use std::collections::BTreeSet;

use common::{Cluster, Node, SOON, until};
use control_plane::xds::kinds;
use mesh_model::resource::NamespacedName;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};
use xds_proto::{
    envoy::{
        config::core::v3::Node as ClientNode,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    isthmus::bootstrap::v1::{ReportEndpointRequest, endpoints_client::EndpointsClient},
};

/// A delta stream that answers whatever comes, and remembers it.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    held: BTreeSet<(String, String)>,
    /// What was said not to exist, once.
    denied: BTreeSet<(String, String)>,
}

impl Stream {
    /// As a node, for itself or for one of its workloads.
    async fn open(node: &Node, id: &str, workload: Option<&str>) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(workload) = workload {
            request.metadata_mut().insert("x-isthmus-workload", workload.parse().unwrap());
        }
        let client = ClientNode { id: id.to_owned(), cluster: "west".to_owned(), ..Default::default() };
        let first = DeltaDiscoveryRequest {
            type_url: kinds::SECRET.to_owned(),
            node: Some(client),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut ads = AggregatedDiscoveryServiceClient::new(node.channel.clone());
        let responses = ads.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self { requests, responses, held: BTreeSet::new(), denied: BTreeSet::new() })
    }

    async fn ask(&mut self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> Result<(), Status> {
        let message = tokio::time::timeout(SOON, self.responses.message()).await.expect("in time")?;
        let response = message.ok_or_else(|| Status::unavailable("the stream has ended"))?;
        let key = |name: &str| (response.type_url.clone(), name.to_owned());
        for resource in &response.resources {
            // An authority that nothing serves is answered by a resource without contents.
            let (there, gone) = match resource.resource {
                Some(_) => (&mut self.held, &mut self.denied),
                None => (&mut self.denied, &mut self.held),
            };
            there.insert(key(&resource.name));
            gone.remove(&key(&resource.name));
        }
        for name in &response.removed_resources {
            self.held.remove(&key(name));
            self.denied.insert(key(name));
        }
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        Ok(())
    }

    /// Takes what comes until a name of a type is there, or is said not to be.
    async fn until(&mut self, type_url: &str, name: &str, there: bool) {
        let key = (type_url.to_owned(), name.to_owned());
        while !(if there { &self.held } else { &self.denied }).contains(&key) {
            self.next().await.unwrap_or_else(|status| panic!("{name}: {status}"));
        }
    }

    fn names(&self, type_url: &str) -> Vec<&str> {
        self.held.iter().filter(|(kind, _)| kind == type_url).map(|(_, name)| name.as_str()).collect()
    }
}

fn workload(namespace: &str, name: &str) -> String {
    format!(
        "{{apiVersion: isthmus.io/v1, kind: Workload, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, \
         spec: {{serviceAccount: {name}, proxy: sidecar, ports: [{{name: http, port: 8080}}]}}}}"
    )
}

fn service(namespace: &str, name: &str, export_to: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}, \
         annotations: {{networking.istio.io/exportTo: '{export_to}'}}}}, \
         spec: {{selector: {{app: {name}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}"
    )
}

const SIDECAR: &str = "{apiVersion: networking.istio.io/v1beta1, kind: Sidecar, metadata: {name: default, namespace: shop}, \
     spec: {egress: [{hosts: ['./*']}]}}";

async fn bind(node: &Node, name: &str, host: u8) {
    let name = NamespacedName::parse(name).unwrap();
    let request = ReportEndpointRequest {
        namespace: name.namespace.clone(),
        workload: name.name.clone(),
        addresses: vec![node.address(host)],
        ready: true,
    };
    EndpointsClient::new(node.channel.clone()).report(request).await.unwrap();
}

/// A caller in `shop`, one in `bank`, and a service in each of three namespaces.
async fn mesh() -> (Cluster, Node) {
    let mut cluster = Cluster::start("west").await;
    let objects = [
        workload("shop", "web"),
        workload("bank", "web"),
        service("shop", "cart", "*"),
        service("ops", "log", "*"),
        service("bank", "pay", "."),
        SIDECAR.to_owned(),
    ];
    cluster.apply(&objects.join("\n---\n")).await.unwrap();
    let node = cluster.node("n1").await;
    bind(&node, "shop/web", 5).await;
    bind(&node, "bank/web", 6).await;
    cluster.revision().await;
    (cluster, node)
}

const CART: &str = "outbound|80|cart.shop";
const LOG: &str = "outbound|80|log.ops";
const PAY: &str = "outbound|80|pay.bank";

#[tokio::test]
async fn clients_in_two_namespaces_are_told_what_each_may_use() {
    let (mut cluster, node) = mesh().await;
    let mut shop = Stream::open(&node, "envoy~shop/web", Some("shop/web")).await.unwrap();
    let mut bank = Stream::open(&node, "envoy~bank/web", Some("bank/web")).await.unwrap();
    for (stream, last) in [(&mut shop, CART), (&mut bank, PAY)] {
        for type_url in [kinds::CLUSTER, kinds::LISTENER] {
            stream.ask(type_url, &["*"]).await;
            stream.until(type_url, last, true).await;
        }
    }
    for type_url in [kinds::CLUSTER, kinds::LISTENER] {
        assert_eq!(shop.names(type_url), [CART], "the Sidecar of its namespace lists no other");
        assert_eq!(bank.names(type_url), [CART, LOG, PAY]);
    }
    // Beyond its scope by name; what its namespace may not know of, not even so.
    for type_url in [kinds::CLUSTER, kinds::LISTENER, kinds::ROUTE, kinds::ENDPOINT] {
        shop.ask(type_url, &[LOG, PAY]).await;
        shop.until(type_url, LOG, true).await;
        shop.until(type_url, PAY, false).await;
    }
    for authority in ["pay.bank", "pay.bank.svc.mesh.local:80", "*"] {
        let name = format!("{PAY}/{authority}");
        shop.ask(kinds::VIRTUAL_HOST, &[&name]).await;
        shop.until(kinds::VIRTUAL_HOST, &name, false).await;
    }
    assert_eq!(shop.names(kinds::VIRTUAL_HOST), [""; 0]);

    // It becomes visible: who has asked for it gets it, and nobody else does.
    cluster.apply(&service("bank", "pay", ".,shop")).await.unwrap();
    shop.until(kinds::CLUSTER, PAY, true).await;
    // And again not: it is taken away.
    cluster.apply(&service("bank", "pay", ".")).await.unwrap();
    shop.until(kinds::CLUSTER, PAY, false).await;

    // Without the Sidecar everything that is visible comes by itself.
    cluster.apply(&service("ops", "trace", "*")).await.unwrap();
    cluster.delete("sidecar", "shop", "default").await;
    shop.until(kinds::CLUSTER, "outbound|80|trace.ops", true).await;
    assert!(!shop.names(kinds::CLUSTER).contains(&PAY));
    let (_, sidecars) = cluster.list("sidecars").await;
    assert!(sidecars.is_empty());
}

#[tokio::test]
async fn a_grpc_client_gets_by_name_what_is_visible_to_its_namespace() {
    let (_cluster, node) = mesh().await;
    let mut shop = Stream::open(&node, "grpc~shop/web", Some("shop/web")).await.unwrap();
    shop.ask(kinds::LISTENER, &["log.ops:80", "pay.bank:80", "pay.bank.svc.mesh.local:80"]).await;
    shop.until(kinds::LISTENER, "log.ops:80", true).await;
    shop.until(kinds::LISTENER, "pay.bank:80", false).await;
    shop.until(kinds::LISTENER, "pay.bank.svc.mesh.local:80", false).await;
    shop.ask(kinds::CLUSTER, &[PAY]).await;
    shop.until(kinds::CLUSTER, PAY, false).await;
    let mut bank = Stream::open(&node, "grpc~bank/web", Some("bank/web")).await.unwrap();
    bank.ask(kinds::LISTENER, &["pay.bank:80"]).await;
    bank.until(kinds::LISTENER, "pay.bank:80", true).await;
}

#[tokio::test]
async fn what_a_sidecar_object_does_is_seen_in_the_lists() {
    let (mut cluster, _node) = mesh().await;
    let (_, sidecars) = cluster.list("sidecar").await;
    assert_eq!(sidecars[0]["apiVersion"], "networking.istio.io/v1");
    assert_eq!(sidecars[0]["status"]["workloads"], 1);
    let (_, workloads) = cluster.list("workload").await;
    let of = |namespace: &str| {
        workloads.iter().find(|w| w["metadata"]["namespace"] == namespace).unwrap()["status"]["sidecar"]
            .clone()
    };
    assert_eq!((of("shop"), of("bank")), ("shop/default".into(), serde_json::Value::Null));
    let (_, services) = cluster.list("service").await;
    let pay = services.iter().find(|service| service["metadata"]["name"] == "pay").unwrap();
    assert_eq!(pay["status"]["visibleTo"], serde_json::json!(["bank"]));
}

#[tokio::test]
async fn a_peer_is_told_in_which_namespaces_a_service_is_visible() {
    let (mut west, mut east) = (Cluster::start("west").await, Cluster::start("east").await);
    let export = "{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceExport, metadata: {name: pay, namespace: bank}}";
    let objects = [workload("bank", "pay"), service("bank", "pay", "."), export.to_owned()];
    east.apply(&objects.join("\n---\n")).await.unwrap();
    let token = east.token("peer").await;
    let request = xds_proto::isthmus::admin::v1::JoinRequest { token };
    west.admin.join(request).await.unwrap();
    let visible_to = |state: &mesh_store::State, namespace: &str| {
        let import =
            state.peers.get("east").and_then(|peer| peer.imports.get(&NamespacedName::new("bank", "pay")));
        import.is_some_and(|import| import.visibility.includes(namespace))
    };
    until(&west, "visible to its namespace only", |state| {
        visible_to(state, "bank") && !visible_to(state, "shop")
    })
    .await;
    east.apply(&service("bank", "pay", ".,shop")).await.unwrap();
    until(&west, "visible to another", |state| visible_to(state, "shop")).await;
}

#[tokio::test]
async fn no_name_brings_a_client_the_secrets_of_another_node() {
    let (mut cluster, one) = mesh().await;
    cluster.apply(&workload("ops", "web")).await.unwrap();
    let two = cluster.node("n2").await;
    bind(&two, "ops/web", 7).await;
    cluster.revision().await;
    let names = [
        "default",
        "shop/web",
        "spiffe://west.example/ns/shop/sa/web",
        "spiffe://west.example/ns/bank/sa/web",
        "spiffe://west.example/isthmus/node/n1",
        "spiffe://west.example/isthmus/replica/1",
    ];
    let mut agent = Stream::open(&two, "agent~n2", None).await.unwrap();
    let mut sidecar = Stream::open(&two, "envoy~ops/web", Some("ops/web")).await.unwrap();
    // Beside roots, which are no secret, the control plane has no key to tell: those are on the nodes.
    for stream in [&mut agent, &mut sidecar] {
        stream.ask(kinds::SECRET, &names).await;
        for name in names {
            stream.until(kinds::SECRET, name, false).await;
        }
        stream.ask(kinds::LOCAL_ENDPOINT, &["shop/web", "bank/web"]).await;
        stream.until(kinds::LOCAL_ENDPOINT, "shop/web", false).await;
        stream.until(kinds::LOCAL_ENDPOINT, "bank/web", false).await;
    }
    assert!(agent.names(kinds::SECRET).is_empty());
    // What a workload serves is told to its own node alone, whoever asks as it.
    for id in ["envoy~shop/web", "grpc~shop/web", "agent~n1"] {
        let refused = match Stream::open(&two, id, Some("shop/web")).await {
            Ok(mut stream) => stream.next().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    // The certificate says which node it is, not the id.
    let mut impostor = Stream::open(&two, "agent~n1", None).await.unwrap();
    impostor.ask(kinds::LOCAL_ENDPOINT, &["shop/web"]).await;
    impostor.until(kinds::LOCAL_ENDPOINT, "shop/web", false).await;
    let mut own = Stream::open(&one, "agent~n1", None).await.unwrap();
    own.ask(kinds::LOCAL_ENDPOINT, &["shop/web"]).await;
    own.until(kinds::LOCAL_ENDPOINT, "shop/web", true).await;
}
