//! Calls that fail here overflow to a peer: a real Envoy reports its load by LRS, and is sent other endpoints.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use mesh_model::{
    identity::{SpiffeId, TrustDomain},
    records::{ImportedPort, ImportedService, PeerRecord},
    resource::{AppProtocol, NamespacedName, Protocol},
};
use mesh_store::Command;
use mesh_tls::{grpc, issue::Root};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_stream::wrappers::ReceiverStream;
use xds_proto::{
    envoy::{
        config::{
            core::v3::Locality,
            endpoint::v3::{ClusterStats, UpstreamLocalityStats},
        },
        service::load_stats::v3::{
            LoadStatsRequest, load_reporting_service_client::LoadReportingServiceClient,
        },
    },
    isthmus::admin::v1::{OverflowStatus, StatusRequest},
};

use crate::{
    agent::{Agent, PODS},
    common::{self, Cluster},
    envoy::{self, Api, Envoy, get},
};

const PAY: &str = "outbound|80|pay.shop";
/// Callers report every 10 s, the leader looks every 10 s, and the machine may be busy.
const SOME_LOOKS: Duration = Duration::from_secs(90);
const QUIET: &str = "'off'";
const WANTED: &str = "'on'";

fn yaml(port: u16) -> String {
    let sidecar = |name: &str| {
        format!(
            "{{apiVersion: isthmus.io/v1, kind: Workload, metadata: {{name: {name}, namespace: shop}}, \
              spec: {{serviceAccount: web, proxy: sidecar}}}}"
        )
    };
    [
        sidecar("web"),
        sidecar("web-2"),
        sidecar("web-3"),
        sidecar("web-4"),
        format!(
            "{{apiVersion: isthmus.io/v1, kind: Workload, metadata: {{name: pay-1, namespace: shop, labels: {{app: pay}}}}, \
              spec: {{serviceAccount: pay, proxy: none, ports: [{{name: http, port: {port}}}]}}}}"
        ),
        "{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceExport, metadata: {name: pay, namespace: shop}}"
            .to_owned(),
        service(WANTED),
    ]
    .join("\n---\n")
}

fn service(overflow: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, \
          metadata: {{name: pay, namespace: shop, annotations: {{isthmus.io/overflow: {overflow}}}}}, \
          spec: {{selector: {{app: pay}}, ports: [{{port: 80, targetPort: http, appProtocol: http}}]}}}}"
    )
}

/// A cluster that exports the same service. Nobody is there; that it could be called is all that is needed.
async fn join_east(cluster: &Cluster) {
    let domain = TrustDomain::parse("east.example").unwrap();
    let root = Root::generate(domain.clone(), SystemTime::now()).unwrap();
    let peer = PeerRecord {
        cluster: "east".to_owned(),
        trust_domain: domain.clone(),
        mesh_domain: "mesh.local".to_owned(),
        roots: vec![root.certificate().to_vec()],
        trust: Default::default(),
        doors: vec!["127.0.0.1:1".to_owned()],
        gateways: vec!["127.0.0.1:2".to_owned()],
        origin_revision: 0,
        imports: Default::default(),
    };
    let port = ImportedPort {
        name: "main".to_owned(),
        port: 80,
        protocol: Protocol::Tcp,
        app_protocol: AppProtocol::Http,
    };
    let pay = ImportedService {
        entries: Vec::new(),
        ports: vec![port],
        spiffe_ids: vec![SpiffeId::workload(&domain, "shop", "pay")],
        ready_endpoints: 1,
        exported_at_unix: 1,
        visibility: Default::default(),
    };
    let import = Command::ImportServices {
        cluster: "east".to_owned(),
        origin_revision: 7,
        upserts: vec![(NamespacedName::new("shop", "pay"), pay)],
        removals: Vec::new(),
    };
    for command in [Command::PutPeer(peer), import] {
        cluster.running.app.replica.write(command).await.unwrap();
    }
}

/// Answers every request with an error of the application, which is no reason to take an endpoint out.
async fn failing_backend(at: SocketAddr) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let answer =
                    b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await?;
                stream.shutdown().await
            });
        }
    })
}

/// Another caller's reports, over and over: its calls fail too.
fn complain(agent: &Agent, workload: &str) -> tokio::task::JoinHandle<()> {
    let (socket, node) = (agent.socket.clone(), format!("envoy~{workload}"));
    tokio::spawn(async move {
        let mut client = LoadReportingServiceClient::new(grpc::connect_unix(socket).await.unwrap());
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        let answers = client.stream_load_stats(ReceiverStream::new(receiver));
        let at = UpstreamLocalityStats {
            locality: Some(Locality { region: "west".into(), ..Default::default() }),
            total_issued_requests: 20,
            total_error_requests: 20,
            ..Default::default()
        };
        let stats = ClusterStats {
            cluster_name: PAY.into(),
            upstream_locality_stats: vec![at],
            ..Default::default()
        };
        let report =
            LoadStatsRequest { node: Some(xds_client::node(&node, "west")), cluster_stats: vec![stats] };
        let sending = async {
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                if requests.send(report.clone()).await.is_err() {
                    return;
                }
            }
        };
        let (ended, ()) = tokio::join!(answers, sending);
        drop(ended);
    })
}

/// What Envoy gives to the endpoints of this cluster: 100 less a share for the next priority, or 140 as nothing was said.
async fn told(envoy: &Envoy) -> Option<u64> {
    let dump = envoy.admin("/config_dump?include_eds").await;
    let dump: serde_json::Value = serde_json::from_str(&dump).ok()?;
    let configs = dump["configs"].as_array()?.iter();
    let assignments =
        configs.flat_map(|config| config["dynamic_endpoint_configs"].as_array().into_iter().flatten());
    let mut pay = assignments.map(|one| &one["endpoint_config"]).filter(|one| one["cluster_name"] == PAY);
    let factor = &pay.next()?["policy"]["overprovisioning_factor"];
    factor.as_u64()
}

async fn until(what: &str, envoy: &Envoy, wanted: impl AsyncFn() -> bool) {
    let end = Instant::now() + SOME_LOOKS;
    while !wanted().await {
        assert!(Instant::now() < end, "never: {what}\n{}", envoy.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_of_an_envoys_calls_goes_to_the_peer_while_most_callers_report_that_they_fail_here() {
    let _ports = common::proxy_ports();
    let Some(binary) = envoy::binary() else { return };
    let mut cluster = Cluster::start_with("west", &PODS).await;
    let [token, another] = [cluster.token("node").await, cluster.token("node").await];
    let agent = Agent::start(&token, "n1", Vec::new(), &["shop/web", "shop/web-2", "shop/pay-1"]).await;
    let others = ["shop/web-3", "shop/web-4"];
    let other = Agent::start_at("192.0.2.8", &another, "n2", Vec::new(), &others).await;
    let port = std::net::TcpListener::bind((agent.address(20), 0)).unwrap().local_addr().unwrap().port();
    join_east(&cluster).await;
    cluster.apply(&yaml(port)).await.unwrap();
    for (host, name) in [(10, "shop/web"), (11, "shop/web-2"), (20, "shop/pay-1")] {
        agent.bind(name, host).await;
    }
    for (host, name) in [(10, "shop/web-3"), (11, "shop/web-4")] {
        other.bind(name, host).await;
    }
    let _backend = failing_backend(SocketAddr::new(agent.address(20), port)).await;
    let state = cluster.running.app.replica.applied();
    let outbound = state.allocations[&NamespacedName::new("shop", "pay")].proxy_ports[&80];
    drop(state);
    let mut config =
        envoy::bootstrap_as(Api::Delta, "envoy~shop/web", vec![json!({"pipe": {"path": agent.socket}})]);
    config["cluster_manager"] = json!({"load_stats_config": {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "isthmus_agent"}}]
    }});
    let envoy = Envoy::with(&binary, &config);
    let fails = async || get(outbound).await.is_err_and(|answer| answer.starts_with("HTTP/1.1 500"));
    until("calls arrive here", &envoy, fails).await;
    let calls = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(50));
        loop {
            ticks.tick().await;
            let _ = get(outbound).await;
        }
    });
    // Three complain, which is not enough: without the other node's one is left, until Envoy says the same.
    let complaints = [(&agent, "shop/web-2"), (&other, "shop/web-3"), (&other, "shop/web-4")]
        .map(|(at, name)| complain(at, name));
    until("a share goes to the peer", &envoy, async || told(&envoy).await == Some(90)).await;
    let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
    let share = OverflowStatus { since_unix_ms: 0, ..status.overflow[0].clone() };
    let expected = OverflowStatus {
        service: "shop/pay".to_owned(),
        port: 80,
        percent: 10,
        failing: 4,
        callers: 4,
        since_unix_ms: 0,
    };
    assert_eq!((status.overflow.len(), share), (1, expected), "and status says why");
    let envoy_row = status.data_planes.iter().find(|plane| plane.id == "envoy~shop/web").unwrap();
    assert_eq!(envoy_row.nacked, 0, "{envoy_row:?}");

    cluster.apply(&service(QUIET)).await.unwrap();
    until("it is taken back", &envoy, async || told(&envoy).await == Some(140)).await;
    let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.overflow, []);
    calls.abort();
    complaints.iter().for_each(|complaint| complaint.abort());
}
