//! A node is revoked: its certificate opens no door any more, its open streams end, its workloads are unbound, and a
//! new token brings it back as another.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, SOON, anybodys_csr, pod, register};
use mesh_tls::{CertificateDer, PeerPolicy, Usage, registration, verify_peer};
use tonic::Code;
use xds_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    isthmus::{
        agent::v1::Node as NodeResource,
        bootstrap::v1::{
            FlowBatch, RenewNodeRequest, SignWorkloadRequest, certificates_client::CertificatesClient,
            endpoints_client::EndpointsClient,
        },
        ca::v1::{ListNodesRequest, NodeRequest, certificate_authority_client::CertificateAuthorityClient},
    },
    type_url,
};

const WEB: &str = "\
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: web, namespace: shop}
spec: {serviceAccount: web, proxy: sidecar}";

fn request() -> Vec<u8> {
    anybodys_csr().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_refused_at_every_door_at_once_and_comes_back_as_another() {
    let mut west = Cluster::start("west").await;
    west.apply(WEB).await.unwrap();
    let token = west.token("node").await;
    let (answer, identity) = register(&west.door(), &token, "n1").await.unwrap();
    let channel = west.connect(Some(identity.clone())).await.unwrap();
    let report = pod(&answer.pod_cidr, "web");
    EndpointsClient::new(channel.clone()).report(report.clone()).await.unwrap();
    let sign =
        SignWorkloadRequest { namespace: "shop".to_owned(), workload: "web".to_owned(), csr: request() };
    let signed =
        CertificatesClient::new(channel.clone()).sign_workload(sign.clone()).await.unwrap().into_inner();
    let workload: Vec<CertificateDer<'static>> = signed.chain.into_iter().map(Into::into).collect();
    let number = registration(&workload[0]).unwrap();
    assert_eq!(registration(&CertificateDer::from(answer.chain[0].clone())), Some(number));

    // Two streams that would stay open for ever.
    let (asks, asked) = tokio::sync::mpsc::channel(4);
    let first = DeltaDiscoveryRequest {
        type_url: type_url::<NodeResource>(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    asks.send(first).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut xds = AggregatedDiscoveryServiceClient::new(channel.clone())
        .delta_aggregated_resources(stream)
        .await
        .unwrap()
        .into_inner();
    xds.message().await.unwrap().unwrap();
    let (flows, batches) = tokio::sync::mpsc::channel::<FlowBatch>(4);
    let mut endpoints = EndpointsClient::new(channel.clone());
    let flowing = tokio::spawn(async move {
        endpoints.report_flows(tokio_stream::wrappers::ReceiverStream::new(batches)).await
    });
    flows.send(FlowBatch::default()).await.unwrap();

    let mut nodes = CertificateAuthorityClient::new(west.admin_channel.clone());
    let removed = nodes.remove_node(NodeRequest { name: "n1".to_owned() }).await.unwrap_err();
    assert!(removed.message().contains("runs shop/web"), "{removed}");
    let revoked = nodes.revoke_node(NodeRequest { name: "n1".to_owned() }).await.unwrap().into_inner();
    assert_eq!(revoked.unbound, ["shop/web"]);
    assert_eq!(nodes.list_nodes(ListNodesRequest {}).await.unwrap().into_inner().nodes, []);

    let ended = async {
        while xds.message().await?.is_some() {}
        Ok::<_, tonic::Status>(())
    };
    let status = tokio::time::timeout(SOON, ended).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let status = tokio::time::timeout(SOON, flowing).await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // On the connection that stands ...
    let mut certificates = CertificatesClient::new(channel.clone());
    let renewed = certificates.renew_node(RenewNodeRequest { csr: request() }).await.unwrap_err();
    assert_eq!(renewed.code(), Code::PermissionDenied, "{renewed}");
    assert!(certificates.sign_workload(sign).await.is_err());
    assert!(EndpointsClient::new(channel).report(report).await.is_err());
    // ... and by a new one: the handshake itself is refused.
    let bundles = west.running.app.bundles.load_full();
    let now = rustls::pki_types::UnixTime::now();
    for chain in [&workload, &identity.load().as_ref().unwrap().cert] {
        let refused =
            verify_peer(&bundles, &PeerPolicy::AnyMeshIdentity, chain, Usage::Client, now).unwrap_err();
        assert!(refused.to_string().contains("revoked"), "{refused}");
    }
    let late = match west.connect(Some(identity)).await {
        // TLS 1.3: the server's verdict may arrive with the first request.
        Ok(channel) => CertificatesClient::new(channel)
            .renew_node(RenewNodeRequest { csr: request() })
            .await
            .map(drop)
            .unwrap_err()
            .to_string(),
        Err(error) => error.to_string(),
    };
    assert!(!late.is_empty());

    assert!(register(&west.door(), &token, "n1").await.is_err(), "a token admits once");
    let fresh = west.token("node").await;
    let (answer, again) = register(&west.door(), &fresh, "n1").await.unwrap();
    let channel = west.connect(Some(again)).await.unwrap();
    // Another registration has another slice.
    EndpointsClient::new(channel).report(pod(&answer.pod_cidr, "web")).await.unwrap();
}
