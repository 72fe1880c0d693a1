//! The same rules in state of the world, which has no words for what does not exist.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use xds_proto::{
    envoy::{
        config::{
            cluster::v3::Cluster as ClusterMessage, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    },
    google::protobuf::Any,
    isthmus::agent::v1::LocalEndpoint,
};

use super::*;

/// The name of the roots.
const ROOTS: &str = "ROOTCA";

/// What a client has of one type.
#[derive(Default)]
struct Of {
    wanted: Vec<String>,
    nonce: String,
    version: String,
    held: BTreeSet<String>,
}

/// A stream that accepts whatever comes, and remembers it.
struct Sotw {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    types: BTreeMap<String, Of>,
}

fn name_of(any: &Any) -> String {
    let bytes = any.value.as_slice();
    match any.type_url.as_str() {
        kinds::CLUSTER => ClusterMessage::decode(bytes).unwrap().name,
        kinds::LISTENER => Listener::decode(bytes).unwrap().name,
        kinds::ROUTE => RouteConfiguration::decode(bytes).unwrap().name,
        kinds::ENDPOINT => ClusterLoadAssignment::decode(bytes).unwrap().cluster_name,
        kinds::SECRET => Secret::decode(bytes).unwrap().name,
        kinds::LOCAL_ENDPOINT => LocalEndpoint::decode(bytes).unwrap().name,
        other => panic!("{other} was not asked for"),
    }
}

impl Sotw {
    /// As a node, for itself or for one of its workloads.
    async fn open(node: &Node, id: &str, workload: Option<&str>) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(workload) = workload {
            request.metadata_mut().insert("x-isthmus-workload", workload.parse().unwrap());
        }
        let client = ClientNode { id: id.to_owned(), cluster: "west".to_owned(), ..Default::default() };
        // Of secrets an empty list wants nothing.
        let first =
            DiscoveryRequest { type_url: kinds::SECRET.to_owned(), node: Some(client), ..Default::default() };
        requests.send(first).await.unwrap();
        let mut ads = AggregatedDiscoveryServiceClient::new(node.channel.clone());
        let responses = ads.stream_aggregated_resources(request).await.unwrap().into_inner();
        Self { requests, responses, types: BTreeMap::new() }
    }

    /// The whole list, as it is from now on.
    async fn ask(&mut self, type_url: &str, names: &[&str]) {
        let of = self.types.entry(type_url.to_owned()).or_default();
        of.wanted = names.iter().map(ToString::to_string).collect();
        self.say(type_url).await;
    }

    async fn say(&mut self, type_url: &str) {
        let of = &self.types[type_url];
        let request = DiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names: of.wanted.clone(),
            response_nonce: of.nonce.clone(),
            version_info: of.version.clone(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    async fn next(&mut self) -> String {
        let message = tokio::time::timeout(SOON, self.responses.message()).await.expect("in time");
        let response = message.unwrap().expect("the stream goes on");
        let of = self.types.get_mut(&response.type_url).expect("it was asked for");
        let names = response.resources.iter().map(name_of);
        if [kinds::CLUSTER, kinds::LISTENER].contains(&response.type_url.as_str()) {
            of.held = names.collect();
        } else {
            of.held.extend(names);
        }
        (of.nonce, of.version) = (response.nonce, response.version_info);
        self.say(&response.type_url).await;
        response.type_url
    }

    /// Takes what comes until it has a name of a type, or, of listeners and clusters, has it no more.
    async fn until(&mut self, type_url: &str, name: &str, there: bool) {
        while self.types[type_url].held.contains(name) != there {
            self.next().await;
        }
    }

    fn names(&self, type_url: &str) -> Vec<&str> {
        self.types[type_url].held.iter().map(String::as_str).collect()
    }
}

#[tokio::test]
async fn sotw_clients_in_two_namespaces_are_told_what_each_may_use() {
    let (mut cluster, node) = mesh().await;
    let mut shop = Sotw::open(&node, "envoy~shop/web", Some("shop/web")).await;
    let mut bank = Sotw::open(&node, "envoy~bank/web", Some("bank/web")).await;
    for type_url in [kinds::CLUSTER, kinds::LISTENER] {
        shop.ask(type_url, &[]).await;
        shop.until(type_url, CART, true).await;
        assert_eq!(shop.names(type_url), [CART], "the Sidecar of its namespace lists no other");
        bank.ask(type_url, &[]).await;
        bank.until(type_url, PAY, true).await;
        assert_eq!(bank.names(type_url), [CART, LOG, PAY]);
    }
    // Beyond its scope by name; what its namespace may not know of, not even so.
    for type_url in [kinds::CLUSTER, kinds::LISTENER] {
        shop.ask(type_url, &["*", LOG, PAY]).await;
        shop.until(type_url, LOG, true).await;
        assert_eq!(shop.names(type_url), [CART, LOG]);
    }
    for type_url in [kinds::ROUTE, kinds::ENDPOINT] {
        shop.ask(type_url, &[LOG, PAY]).await;
        shop.until(type_url, LOG, true).await;
        assert_eq!(shop.names(type_url), [LOG]);
    }

    // It becomes visible: who has asked for it gets it, and nobody else does.
    cluster.apply(&service("bank", "pay", ".,shop")).await.unwrap();
    for type_url in [kinds::CLUSTER, kinds::LISTENER, kinds::ROUTE, kinds::ENDPOINT] {
        shop.until(type_url, PAY, true).await;
    }
    // And again not: it is taken away.
    cluster.apply(&service("bank", "pay", ".")).await.unwrap();
    shop.until(kinds::CLUSTER, PAY, false).await;
    shop.until(kinds::LISTENER, PAY, false).await;

    // Without the Sidecar everything that is visible comes by itself.
    cluster.apply(&service("ops", "trace", "*")).await.unwrap();
    cluster.delete("sidecar", "shop", "default").await;
    shop.until(kinds::CLUSTER, "outbound|80|trace.ops", true).await;
    assert!(!shop.names(kinds::CLUSTER).contains(&PAY));
}

#[tokio::test]
async fn a_sotw_grpc_client_gets_by_name_what_is_visible_to_its_namespace() {
    let (mut cluster, node) = mesh().await;
    let mut shop = Sotw::open(&node, "grpc~shop/web", Some("shop/web")).await;
    shop.ask(kinds::LISTENER, &["log.ops:80", "pay.bank:80", "pay.bank.svc.mesh.local:80"]).await;
    shop.until(kinds::LISTENER, "log.ops:80", true).await;
    shop.ask(kinds::CLUSTER, &[LOG, PAY]).await;
    shop.until(kinds::CLUSTER, LOG, true).await;
    assert_eq!((shop.names(kinds::LISTENER), shop.names(kinds::CLUSTER)), (vec!["log.ops:80"], vec![LOG]));
    let mut bank = Sotw::open(&node, "grpc~bank/web", Some("bank/web")).await;
    bank.ask(kinds::LISTENER, &["pay.bank:80"]).await;
    bank.until(kinds::LISTENER, "pay.bank:80", true).await;
    // What it asked for in vain is remembered.
    cluster.apply(&service("bank", "pay", ".,shop")).await.unwrap();
    shop.until(kinds::LISTENER, "pay.bank:80", true).await;
    shop.until(kinds::CLUSTER, PAY, true).await;
}

#[tokio::test]
async fn no_name_brings_a_sotw_client_the_secrets_of_another_node() {
    let (mut cluster, one) = mesh().await;
    cluster.apply(&workload("ops", "web")).await.unwrap();
    let two = cluster.node("n2").await;
    bind(&two, "ops/web", 7).await;
    cluster.revision().await;
    let mut sidecar = Sotw::open(&two, "envoy~ops/web", Some("ops/web")).await;
    let names = [
        "default",
        "shop/web",
        "spiffe://west.example/ns/shop/sa/web",
        "spiffe://west.example/isthmus/node/n1",
        "spiffe://west.example/isthmus/replica/1",
    ];
    sidecar.ask(kinds::SECRET, &[&names[..], &[ROOTS]].concat()).await;
    sidecar.until(kinds::SECRET, ROOTS, true).await;
    // Had there been more to say, it would have come before this.
    sidecar.ask(kinds::LOCAL_ENDPOINT, &["shop/web", "*"]).await;
    sidecar.ask(kinds::CLUSTER, &[]).await;
    sidecar.until(kinds::CLUSTER, CART, true).await;
    assert_eq!(sidecar.names(kinds::SECRET), [ROOTS], "the roots, which are no secret");
    assert_eq!(sidecar.names(kinds::LOCAL_ENDPOINT), [""; 0]);

    let mut agent = Sotw::open(&two, "agent~n1", None).await;
    agent.ask(kinds::SECRET, &names).await;
    agent.ask(kinds::LOCAL_ENDPOINT, &["*", "shop/web", "bank/web"]).await;
    agent.until(kinds::LOCAL_ENDPOINT, "ops/web", true).await;
    assert_eq!(agent.names(kinds::LOCAL_ENDPOINT), ["ops/web"], "its certificate says which node it is");
    assert_eq!(agent.names(kinds::SECRET), [""; 0]);
    let mut own = Sotw::open(&one, "agent~n1", None).await;
    own.ask(kinds::LOCAL_ENDPOINT, &["shop/web"]).await;
    own.until(kinds::LOCAL_ENDPOINT, "shop/web", true).await;
}
