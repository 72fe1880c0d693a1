//! A node's life over the real doors: token, certificate, endpoints, workload certificates, subscriptions. And
//! everything that must be refused on the way.

#![allow(clippy::unwrap_used)]

mod common;

use clustermesh::token::JoinToken;
use common::{Cluster, Node, SOON, register, spiffe_id};
use control_plane::ca::Ca;
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    csr,
    jwt::{self, JwtPublicKey},
};
use tokio::sync::mpsc;
use tonic::Code;
use xds_client::{Config, Subscription, Update};
use xds_proto::{
    envoy::config::listener::v3::Listener,
    isthmus::{
        admin::v1::{ApplyRequest, StatusRequest, admin_client::AdminClient},
        agent::v1::{LocalEndpoint, TrustBundle},
        bootstrap::v1::{
            RenewNodeRequest, ReportEndpointRequest, SignJwtRequest, SignWorkloadRequest,
            certificates_client::CertificatesClient, endpoints_client::EndpointsClient,
        },
    },
    type_url,
};

const SHOP: &str = "\
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: pay-1, namespace: shop, labels: {app: pay}}
spec: {serviceAccount: pay, proxy: sidecar, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop}
spec: {selector: {app: pay}, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
";

fn report(node: &Node, host: u8) -> ReportEndpointRequest {
    ReportEndpointRequest {
        namespace: "shop".to_owned(),
        workload: "pay-1".to_owned(),
        addresses: vec![node.address(host)],
        ready: true,
    }
}

fn sign(csr: Vec<u8>) -> SignWorkloadRequest {
    SignWorkloadRequest { namespace: "shop".to_owned(), workload: "pay-1".to_owned(), csr }
}

/// A request that asks for an administrator's name.
fn greedy_csr(cluster: &Cluster) -> Vec<u8> {
    csr::generate(&SpiffeId::admin(&cluster.trust_domain(), "root")).unwrap().0
}

/// Subscribes as a node, for itself or for one of its workloads, and hands over what comes.
fn subscribe(node: &Node, workload: Option<&str>, types: Vec<String>) -> mpsc::Receiver<Update> {
    let (updates, receiver) = mpsc::channel(64);
    let id = workload.map_or_else(|| format!("agent~{}", node.name), |w| format!("proxy~{w}"));
    let subscriptions = types.into_iter().map(Subscription::wildcard).collect();
    let mut config = Config::new(xds_client::node(id, "west"), subscriptions);
    if let Some(workload) = workload {
        config.metadata.insert("x-isthmus-workload", workload.parse().unwrap());
    }
    let channel = node.channel.clone();
    tokio::spawn(async move {
        let connect = || std::future::ready(Ok::<_, String>(channel.clone()));
        let handler = |update| updates.try_send(update).map_err(|e| e.to_string());
        let (_commands, receiver) = mpsc::channel(1);
        xds_client::run(config, connect, handler, receiver).await;
    });
    receiver
}

/// The first resource of that name.
async fn resource(updates: &mut mpsc::Receiver<Update>, name: &str) -> xds_client::Resource {
    let waiting = async {
        loop {
            let update = updates.recv().await.unwrap();
            if let Some(found) = update.added.into_iter().find(|r| r.name == name) {
                return found;
            }
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap()
}

#[tokio::test]
async fn a_node_registers_binds_signs_and_is_told_of_its_endpoint() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(SHOP).await.unwrap();
    let node = cluster.node("n1").await;
    assert_eq!(spiffe_id(&node.answer.chain).to_string(), "spiffe://west.example/isthmus/node/n1");
    assert_eq!(node.answer.replicas, [cluster.door()]);
    // Its flows are found by a name that it has whatever it asks for: now, and when it is renewed.
    let mut certificates = CertificatesClient::new(node.channel.clone());
    let request = RenewNodeRequest { csr: greedy_csr(&cluster) };
    let renewed = certificates.renew_node(request).await.unwrap().into_inner();
    for chain in [&node.answer.chain, &renewed.chain] {
        let names = mesh_tls::dns_names(&chain[0].clone().into());
        assert_eq!(names, ["n1.west.hubble-grpc.mesh.local"]);
    }

    let bound =
        EndpointsClient::new(node.channel.clone()).report(report(&node, 5)).await.unwrap().into_inner();
    assert_eq!(bound.spiffe_id, "spiffe://west.example/ns/shop/sa/pay");

    let request = sign(greedy_csr(&cluster));
    let signed =
        CertificatesClient::new(node.channel.clone()).sign_workload(request).await.unwrap().into_inner();
    assert_eq!(
        spiffe_id(&signed.chain).to_string(),
        bound.spiffe_id,
        "the model decides the name, not the request"
    );
    assert!(mesh_tls::dns_names(&signed.chain[0].clone().into()).is_empty());

    let mut agent = subscribe(&node, None, vec![type_url::<LocalEndpoint>()]);
    let endpoint: LocalEndpoint = resource(&mut agent, "shop/pay-1").await.decode().unwrap();
    assert_eq!(endpoint.identity, bound.identity);
    assert!(endpoint.sidecar && endpoint.captured_ports.iter().any(|p| p.port == 8080));

    let mut proxy = subscribe(&node, Some("shop/pay-1"), vec![type_url::<Listener>()]);
    let listener: Listener = resource(&mut proxy, "inbound|8080").await.decode().unwrap();
    let chain = listener.filter_chains[0].filter_chain_match.as_ref().unwrap();
    assert_eq!(chain.server_names, ["80.pay.shop.svc.mesh.local", "pay.shop", "pay.shop.svc.mesh.local"]);

    let (_, workloads) = cluster.list("workload").await;
    let status = &workloads[0]["status"];
    assert_eq!((status["node"].as_str(), status["ready"].as_bool()), (Some("n1"), Some(true)));
    let (_, services) = cluster.list("svc").await;
    assert_eq!(services[0]["status"]["endpoints"][0]["address"], format!("{}:8080", node.address(5)));
}

#[tokio::test]
async fn a_proxy_of_the_node_is_told_of_what_is_led_to_its_name_and_follows_it() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(SHOP).await.unwrap();
    let node = cluster.node("n1").await;
    let led = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: pay, namespace: shop, annotations: \
             {{isthmus.io/redirect: {name}}}}}\nspec: {{selector: {{app: pay}}, ports: [{{name: http, port: 80, \
             targetPort: 8080, appProtocol: http}}]}}\n"
        )
    };
    cluster.apply(&led("l7")).await.unwrap();
    let types = || vec![type_url::<Listener>()];
    let mut proxy = subscribe(&node, Some("~/l7"), types());
    let listener: Listener = resource(&mut proxy, "node-proxy").await.decode().unwrap();
    let matched = listener.filter_chains[0].filter_chain_match.as_ref().unwrap();
    assert_eq!(matched.destination_port.as_ref().map(|port| port.value), Some(80));
    assert_eq!(listener.filter_chains[0].name, "outbound|80|pay.shop|v4");
    // Led to another name, it is the other's.
    let mut other = subscribe(&node, Some("~/other"), types());
    cluster.apply(&led("other")).await.unwrap();
    resource(&mut other, "node-proxy").await;
    let gone =
        async { while !proxy.recv().await.unwrap().removed.iter().any(|name| name == "node-proxy") {} };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn an_apply_that_waits_returns_when_the_agent_has_taken_the_change() {
    let mut cluster = Cluster::start("west").await;
    let node = cluster.node("n1").await;
    let mut agent = subscribe(&node, None, vec![type_url::<xds_proto::isthmus::agent::v1::Service>()]);
    cluster.apply(SHOP).await.unwrap();
    resource(&mut agent, "shop/pay").await;
    let (_, services) = cluster.list("svc").await;
    let mut changed = services[0].clone();
    changed["spec"]["ports"][0]["port"] = 81.into();
    let request =
        ApplyRequest { objects: vec![changed.to_string().into_bytes()], wait: true, ..Default::default() };
    let answer = cluster.admin.apply(request).await.unwrap().into_inner();
    assert_eq!(answer.waiting_for, Vec::<String>::new());
    let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
    let plane = status.data_planes.iter().find(|p| p.id == "agent~n1").unwrap();
    assert!(plane.acked_revision >= answer.revision, "{plane:?}");
    assert_eq!((status.leader, status.answered_by), (1, 1));
}

#[tokio::test]
async fn bad_documents_are_refused_whole_with_the_path_of_the_field() {
    let mut cluster = Cluster::start("west").await;
    let before = cluster.revision().await;
    let unknown = SHOP.replace("selector:", "selektor:");
    let status = cluster.apply(&unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("objects[1]") && status.message().contains("selektor"), "{status}");
    let pods = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}";
    assert!(cluster.apply(pods).await.unwrap_err().message().contains("Pod"));
    assert_eq!(
        cluster.revision().await,
        before,
        "the workload beside the bad service must not be there either"
    );
}

#[tokio::test]
async fn tokens_that_are_wrong_expired_or_used_admit_nobody() {
    let mut cluster = Cluster::start("west").await;
    let good = cluster.token("node").await;
    let peer = cluster.token("peer").await;
    let forged = JoinToken { secret: [7; 32], ..JoinToken::decode(&good).unwrap() }.encode().unwrap();
    let expired = JoinToken { expires_unix: 1_000, ..JoinToken::decode(&good).unwrap() }.encode().unwrap();
    let before = cluster.revision().await;
    let door = cluster.door();
    for (token, words) in [(&forged, "unknown"), (&expired, "expired"), (&peer, "for a peer")] {
        let status = register(&door, token, "n1").await.map(drop).unwrap_err();
        assert!(status.message().contains(words), "{words}: {status}");
    }
    let status = register(&door, &good, "Node 1").await.map(drop).unwrap_err();
    assert!(status.message().contains("Node 1"), "{status}");
    assert_eq!(cluster.revision().await, before);
    register(&door, &good, "n1").await.unwrap();
    let used = cluster.revision().await;
    let status = register(&door, &good, "n2").await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("used by \"node n1\""), "{status}");
    assert_eq!(cluster.revision().await, used);
    let again = cluster.token("node").await;
    let (answer, _) = register(&door, &again, "n1").await.unwrap();
    assert_eq!(spiffe_id(&answer.chain).to_string(), "spiffe://west.example/isthmus/node/n1");
}

#[tokio::test]
async fn a_certificate_of_another_authority_opens_no_door() {
    let mut cluster = Cluster::start("west").await;
    let before = cluster.revision().await;
    let folder = tempfile::tempdir().unwrap();
    // The same names under another root.
    let now = std::time::SystemTime::now();
    Ca::create(folder.path(), "west", &cluster.trust_domain(), now).unwrap();
    let impostor = Ca::open(folder.path()).unwrap().unwrap();
    impostor.refresh(&mesh_store::State::default(), now, 0.0).unwrap();
    let refused = match cluster.connect(Some(impostor.own().clone())).await {
        // TLS 1.3: the server's verdict may arrive with the first request.
        Ok(channel) => {
            AdminClient::new(channel).status(StatusRequest {}).await.map(drop).unwrap_err().to_string()
        }
        Err(error) => error.to_string(),
    };
    assert!(!refused.is_empty());
    assert_eq!(cluster.revision().await, before);
}

#[tokio::test]
async fn a_node_has_no_say_over_another_nodes_workload_nor_over_the_cluster() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(SHOP).await.unwrap();
    let (one, two) = (cluster.node("n1").await, cluster.node("n2").await);
    EndpointsClient::new(one.channel.clone()).report(report(&one, 5)).await.unwrap();
    let before = cluster.revision().await;

    let request = sign(greedy_csr(&cluster));
    let status = CertificatesClient::new(two.channel.clone()).sign_workload(request).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("shop/pay-1") && status.message().contains("n2"), "{status}");

    let status = EndpointsClient::new(two.channel.clone()).report(report(&two, 6)).await.unwrap_err();
    assert!(status.message().contains("bound to node n1"), "{status}");

    let mut admin = AdminClient::new(two.channel.clone());
    let status = admin.apply(ApplyRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);

    let nobody = cluster.connect(None).await.unwrap();
    let status = AdminClient::new(nobody.clone()).status(StatusRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let request = sign(greedy_csr(&cluster));
    let status = CertificatesClient::new(nobody).sign_workload(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(cluster.revision().await, before);
}

#[tokio::test]
async fn an_oversized_message_and_a_malformed_request_end_in_a_sentence() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(SHOP).await.unwrap();
    let node = cluster.node("n1").await;
    EndpointsClient::new(node.channel.clone()).report(report(&node, 5)).await.unwrap();
    let before = cluster.revision().await;
    let large = ReportEndpointRequest { namespace: "x".repeat(2 << 20), ..report(&node, 5) };
    let status = EndpointsClient::new(node.channel.clone()).report(large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(status.message().contains("limit"), "{status}");
    let status =
        CertificatesClient::new(node.channel.clone()).sign_workload(sign(vec![1, 2, 3])).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("csr"), "{status}");
    let foreign = ReportEndpointRequest { addresses: vec!["203.0.113.9".to_owned()], ..report(&node, 5) };
    let status = EndpointsClient::new(node.channel.clone()).report(foreign).await.unwrap_err();
    assert!(status.message().contains("203.0.113.9"), "{status}");
    assert_eq!(cluster.revision().await, before);
}

#[tokio::test]
async fn a_node_gets_tokens_for_workloads_that_run_on_it_and_keys_to_verify_them() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(SHOP).await.unwrap();
    let (node, other) = (cluster.node("n1").await, cluster.node("n2").await);
    EndpointsClient::new(node.channel.clone()).report(report(&node, 5)).await.unwrap();
    let ask = |audiences: &[&str], ttl_seconds| SignJwtRequest {
        namespace: "shop".to_owned(),
        workload: "pay-1".to_owned(),
        audiences: audiences.iter().map(|&text| text.to_owned()).collect(),
        ttl_seconds,
    };
    let mut certificates = CertificatesClient::new(node.channel.clone());
    let state = cluster.running.app.replica.applied();
    assert!(state.authority.jwt_keys.is_empty(), "nobody has wanted a token");
    let signed = certificates.sign_jwt(ask(&["bank"], 0)).await.unwrap().into_inner();
    assert_eq!(signed.spiffe_id, "spiffe://west.example/ns/shop/sa/pay");
    let now = cluster.running.app.now_unix();
    assert!((now + 290..=now + 300).contains(&signed.expires_unix), "{} at {now}", signed.expires_unix);

    let mut agent = subscribe(&node, None, vec![type_url::<TrustBundle>()]);
    let bundle: TrustBundle = resource(&mut agent, "west.example").await.decode().unwrap();
    let keys: Vec<_> = bundle.jwt_keys.iter().map(|key| JwtPublicKey::from_point(key).unwrap()).collect();
    let known = |domain: &TrustDomain| (domain.as_str() == "west.example").then(|| keys.clone());
    let svid = jwt::verify(&signed.token, "bank", now, known).unwrap();
    assert_eq!(svid.id.to_string(), signed.spiffe_id);

    for (request, words) in
        [(ask(&[], 0), "audience"), (ask(&["a b"], 0), "audience"), (ask(&["bank"], 3_601), "ttl_seconds")]
    {
        let refused = certificates.sign_jwt(request).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(words), "{refused:?}");
    }
    let mut elsewhere = CertificatesClient::new(other.channel.clone());
    let refused = elsewhere.sign_jwt(ask(&["bank"], 0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    // The state has points, which anybody may know, and nothing else of a key.
    let state = cluster.running.app.replica.applied();
    assert_eq!(state.authority.jwt_keys.iter().map(|key| key.point.len()).collect::<Vec<_>>(), [65]);
}
