//! The cluster's flows through Hubble's API.

use std::{sync::Arc, time::Duration};

use mesh_tls::ALPN_H2;
use rustls::{ClientConfig, RootCertStore};
use tonic::{Code, Streaming, transport::Channel};
use xds_proto::{
    hubble::{
        flow::{Flow, FlowFilter, Verdict},
        observer::{
            GetAgentEventsRequest, GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNodesRequest,
            ServerStatusRequest, get_flows_response::ResponseTypes, observer_client::ObserverClient,
        },
    },
    isthmus::bootstrap::v1::{Flow as Told, FlowPeer},
};

use crate::{common::Cluster, roles::administrator};

const SOON: Duration = Duration::from_secs(20);

/// One that a node's agent tells.
fn told(second: u64, verdict: &str) -> Told {
    let peer = |address: &str, workload: &str| {
        Some(FlowPeer {
            address: address.into(),
            identity: 300,
            workload: workload.into(),
            ..FlowPeer::default()
        })
    };
    Told {
        time_unix_nanos: second * 1_000_000_000,
        verdict: verdict.into(),
        direction: "EGRESS".into(),
        source: peer("10.1.0.5", "shop/web"),
        destination: peer("10.1.1.7", "bank/pay"),
        protocol: "UDP".into(),
        source_port: u32::try_from(second).unwrap(),
        policy: "networkpolicy/shop/out#egress[0]".into(),
        ..Told::default()
    }
}

async fn next(stream: &mut Streaming<GetFlowsResponse>) -> Option<Flow> {
    let response = tokio::time::timeout(SOON, stream.message()).await.unwrap().unwrap()?;
    match response.response_types {
        Some(ResponseTypes::Flow(flow)) => Some(flow),
        other => panic!("{other:?}"),
    }
}

fn second(flow: &Flow) -> i64 {
    flow.time.unwrap().seconds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_s_flows_are_read_with_labels_and_followed_without_a_gap() {
    let mut cluster = Cluster::start("west").await;
    cluster
        .apply("{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {}}")
        .await
        .unwrap();
    let flows = &cluster.running.app.flows;
    // As they come from several nodes: in no order.
    for (node, second, verdict) in
        [("n2", 20, "DROPPED"), ("n1", 10, "FORWARDED"), ("n1", 30, "DROPPED"), ("n2", 40, "AUDIT")]
    {
        flows.push(node, told(second, verdict));
    }
    let mut client = ObserverClient::new(cluster.admin_channel.clone());
    let labelled = FlowFilter { source_label: vec!["k8s:app=web".into()], ..FlowFilter::default() };
    let request =
        GetFlowsRequest { number: 3, follow: true, whitelist: vec![labelled], ..Default::default() };
    let mut stream = client.get_flows(request).await.unwrap().into_inner();
    for (expected, node, verdict) in [
        (20, "west/n2", Verdict::Dropped),
        (30, "west/n1", Verdict::Dropped),
        (40, "west/n2", Verdict::Audit),
    ] {
        let flow = next(&mut stream).await.unwrap();
        assert_eq!((second(&flow), flow.node_name.as_str(), flow.verdict()), (expected, node, verdict));
    }
    flows.push("n1", told(50, "FORWARDED"));
    let flow = next(&mut stream).await.unwrap();
    assert_eq!((second(&flow), flow.egress_allowed_by[0].name.as_str()), (50, "out"));
    drop(stream);

    let first = GetFlowsRequest { number: 1, first: true, ..Default::default() };
    let mut stream = client.get_flows(first).await.unwrap().into_inner();
    assert_eq!(second(&next(&mut stream).await.unwrap()), 10);
    assert_eq!(next(&mut stream).await, None);

    cluster.node("n1").await;
    let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.seen_flows, status.max_flows), (5, 5, 16_384));
    let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["west/n1"]);
    let spaces = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    let names: Vec<&str> = spaces.iter().map(|space| space.namespace.as_str()).collect();
    assert_eq!(names, ["bank", "shop"]);
    let events = client.get_agent_events(GetAgentEventsRequest::default()).await.unwrap_err();
    assert_eq!(events.code(), tonic::Code::Unimplemented);
}

/// A client that knows nothing of SPIFFE: it verifies the replica by the cluster's roots and a DNS name.
async fn verifying(
    cluster: &Cluster,
    name: &str,
    shown: Option<&mesh_tls::SharedIdentity>,
) -> Result<Channel, mesh_tls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(cluster.running.app.ca.roots());
    let builder = ClientConfig::builder_with_provider(mesh_tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match shown {
        Some(identity) => {
            let shown = identity.load_full().unwrap();
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)))
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![ALPN_H2.to_vec()];
    mesh_tls::grpc::connect(&cluster.door(), Arc::new(tls), name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_proves_its_name_to_clients_that_verify_by_it() {
    let cluster = Cluster::start("west").await;
    let name = "west.hubble-relay.mesh.local";
    let (kim, _) = administrator(&cluster, "kim").await;
    // It has the name as soon as there is a state that says what the cluster is called.
    let named = async {
        loop {
            match verifying(&cluster, name, Some(&kim)).await {
                Ok(channel) => break channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let channel = tokio::time::timeout(SOON, named).await.unwrap();
    let status = ObserverClient::new(channel).server_status(ServerStatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().max_flows, 16_384);
    let error = verifying(&cluster, "n1.west.hubble-grpc.mesh.local", Some(&kim)).await.unwrap_err();
    assert!(error.to_string().contains("not valid for name"), "{error}");
    let channel = verifying(&cluster, name, None).await.unwrap();
    let refused = ObserverClient::new(channel).server_status(ServerStatusRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
