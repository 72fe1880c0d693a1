//! The service on its socket, with real clients.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, time::Duration};

use ebpf_shared::{Direction, FlowEvent, Reason, Verdict};
use futures::StreamExt;
use mesh_model::identity::SpiffeId;
use mesh_tls::TrustBundles;
use tonic::{Code, Streaming, transport::Channel};
use xds_proto::hubble::{
    flow::{Flow, FlowFilter, LostEvent},
    observer::{
        GetAgentEventsRequest, GetDebugEventsRequest, GetFlowsRequest, GetFlowsResponse,
        GetNamespacesRequest, GetNodesRequest, ServerStatusRequest, get_flows_response::ResponseTypes,
        observer_client::ObserverClient,
    },
};

use super::*;
use crate::{
    cni::{Registry, SharedRegistry},
    engine::Engine,
    flows::Record,
    identity::attest,
    maps::MemoryMaps,
    subscribe::update_fixture as update,
};

const SECOND: u64 = 1_000_000_000;
/// When the first flow was.
const BEGAN: u64 = 1_790_000_000;

pub(super) struct Node {
    pub(super) dir: tempfile::TempDir,
    pub(super) engine: Engine,
    pub(super) flows: NodeFlows,
    client: ObserverClient<Channel>,
}

impl Node {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(Ipv4Addr::new(192, 0, 2, 1), Box::new(MemoryMaps::default())).unwrap();
        let web = xds_proto::isthmus::agent::v1::WorkloadAddress {
            name: "shop/web".into(),
            addresses: vec!["10.1.0.5".into()],
            identity: 300,
            spiffe_id: "spiffe://west.example/ns/shop/sa/frontend".into(),
            ..Default::default()
        };
        engine.apply(&update(&[("shop/web", web)], &[])).unwrap();
        let registry = Registry::open(dir.path(), "10.1.0.0/24".parse().unwrap()).unwrap();
        let registry = SharedRegistry::new(registry);
        let flows = NodeFlows {
            node: "n1".into(),
            cluster: "west".into(),
            mesh_domain: "mesh.local".into(),
            trust_domain: TrustDomain::parse("west.example").unwrap(),
            address: "unix:///somewhere".into(),
            tls: false,
            ring: Ring::default(),
            namer: Namer::new("n1".into(), engine.clone(), registry.clone()),
            callers: Callers::new(registry, BTreeSet::new()).unwrap(),
            bundles: mesh_tls::shared_bundles(TrustBundles::new()),
            started: Instant::now(),
        };
        let socket = dir.path().join("hubble.sock");
        let listener = mesh_tls::grpc::bind_unix(&socket, 0o600).unwrap();
        let served = Server::builder().add_service(flows.clone().service());
        tokio::spawn(served.serve_with_incoming(attest(listener)));
        let channel = mesh_tls::grpc::connect_unix(&socket).await.unwrap();
        Self { dir, engine, flows, client: ObserverClient::new(channel) }
    }

    /// A flow in each second: even ports are dropped, odd ones pass.
    pub(super) fn flow(&self, port: u16) {
        let dropped = port.is_multiple_of(2);
        let event = FlowEvent {
            src: Ipv4Addr::new(10, 1, 0, 5).into(),
            dst: Ipv4Addr::new(192, 0, 2, 7).into(),
            src_identity: 300,
            dst_identity: 2,
            src_port: 40_000,
            dst_port: port,
            protocol: 6,
            tcp_flags: 2,
            direction: Direction::Egress as u8,
            verdict: if dropped { Verdict::Dropped } else { Verdict::Forwarded } as u8,
            reason: if dropped { Reason::DefaultDeny } else { Reason::Forwarded } as u8,
            ..FlowEvent::default()
        };
        let unix_nanos = (BEGAN + u64::from(port)) * SECOND;
        self.flows.ring.push(Entry::Flow(Record::one(unix_nanos, event)));
    }

    async fn open(&self, request: GetFlowsRequest) -> Result<Streaming<GetFlowsResponse>, Status> {
        Ok(self.client.clone().get_flows(request).await?.into_inner())
    }

    /// Ports of the flows of a request that ends.
    async fn ports(&self, request: GetFlowsRequest) -> Vec<u32> {
        let mut stream = self.open(request).await.unwrap();
        let mut ports = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(ResponseTypes::Flow(flow)) = response.response_types {
                ports.push(port(&flow));
            }
        }
        ports
    }
}

fn port(flow: &Flow) -> u32 {
    match flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref()) {
        Some(xds_proto::hubble::flow::layer4::Protocol::Tcp(tcp)) => tcp.destination_port,
        other => panic!("{other:?}"),
    }
}

async fn next(stream: &mut Streaming<GetFlowsResponse>) -> ResponseTypes {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
    message.expect("in time").unwrap().expect("goes on").response_types.unwrap()
}

fn at(port: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: i64::try_from(BEGAN + port).unwrap(), nanos: 0 })
}

fn dropped() -> Vec<FlowFilter> {
    vec![FlowFilter { verdict: vec![2], ..FlowFilter::default() }]
}

#[tokio::test]
async fn last_first_since_until_and_filters_pick_what_was_asked_for() {
    let node = Node::start().await;
    (1..=10).for_each(|port| node.flow(port));
    let all = GetFlowsRequest::default;
    for (request, expected) in [
        (all(), (1..=10).collect()),
        (GetFlowsRequest { number: 3, ..all() }, vec![8, 9, 10]),
        (GetFlowsRequest { number: 3, first: true, ..all() }, vec![1, 2, 3]),
        (GetFlowsRequest { number: 2, whitelist: dropped(), ..all() }, vec![8, 10]),
        (GetFlowsRequest { number: 2, first: true, blacklist: dropped(), ..all() }, vec![1, 3]),
        (GetFlowsRequest { since: at(9), ..all() }, vec![9, 10]),
        (GetFlowsRequest { until: at(2), ..all() }, vec![1, 2]),
        (GetFlowsRequest { since: at(3), until: at(6), number: 2, ..all() }, vec![5, 6]),
    ] {
        assert_eq!(node.ports(request.clone()).await, expected, "{request:?}");
    }
    let refused = node.open(GetFlowsRequest { first: true, follow: true, ..all() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let bad = vec![FlowFilter { source_ip: vec!["ten".into()], ..FlowFilter::default() }];
    let refused = node.open(GetFlowsRequest { whitelist: bad, ..all() }).await.unwrap_err();
    assert_eq!(refused.message(), "whitelist[0].source_ip: \"ten\" is neither an address nor a CIDR");
}

#[tokio::test]
async fn whoever_follows_has_every_flow_once_and_hears_of_what_the_kernel_lost() {
    let node = Node::start().await;
    (1..=4).for_each(|port| node.flow(port));
    let request = GetFlowsRequest { number: 1, follow: true, whitelist: dropped(), ..Default::default() };
    let mut stream = node.open(request).await.unwrap();
    let ResponseTypes::Flow(flow) = next(&mut stream).await else { panic!("not a flow") };
    assert_eq!((port(&flow), flow.node_name.as_str()), (4, "west/n1"));
    let source = flow.source.unwrap();
    assert_eq!((source.namespace.as_str(), source.pod_name.as_str()), ("shop", "web"));
    assert!(source.labels.contains(&"k8s:io.cilium.k8s.policy.serviceaccount=frontend".to_owned()));
    (5..=6).for_each(|port| node.flow(port));
    node.flows.ring.push(Entry::Lost(7));
    let ResponseTypes::Flow(flow) = next(&mut stream).await else { panic!("not a flow") };
    assert_eq!(port(&flow), 6);
    let source = LostEventSource::PerfEventRingBuffer.into();
    let lost = LostEvent { source, num_events_lost: 7, cpu: None };
    assert_eq!(next(&mut stream).await, ResponseTypes::LostEvents(lost));
}

#[tokio::test]
async fn a_slow_reader_is_told_how_many_it_has_lost() {
    let node = Node::start().await;
    let request = GetFlowsRequest { follow: true, ..Default::default() };
    let mut stream = node.open(request).await.unwrap();
    let sent = 4 * KEPT as u64;
    for turn in 0..sent {
        node.flow(u16::try_from(turn % 50_000 + 1).unwrap());
        if turn % 1_024 == 0 {
            tokio::task::yield_now().await;
        }
    }
    node.flow(60_001);
    let (mut flows, mut lost) = (0, 0);
    loop {
        match next(&mut stream).await {
            ResponseTypes::Flow(flow) if port(&flow) == 60_001 => break,
            ResponseTypes::Flow(_) => flows += 1,
            ResponseTypes::LostEvents(event) => {
                assert_eq!(event.source, LostEventSource::HubbleRingBuffer as i32);
                lost += event.num_events_lost;
            }
            ResponseTypes::NodeStatus(status) => panic!("{status:?}"),
        }
    }
    assert_eq!(flows + lost, sent);
    assert!(lost > 0, "{flows} were read in time");
}

#[tokio::test]
async fn readers_are_limited_and_leave_room_when_they_go() {
    let node = Node::start().await;
    let follow = GetFlowsRequest { follow: true, ..Default::default() };
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(node.open(follow.clone()).await.unwrap());
    }
    assert_eq!(node.open(follow.clone()).await.unwrap_err().code(), Code::ResourceExhausted);
    drop(streams);
    let again = async {
        while node.open(follow.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("room again");
}

#[tokio::test]
async fn the_other_methods_tell_of_the_node_and_say_what_is_not_served() {
    let node = Node::start().await;
    (1..=3).for_each(|port| node.flow(port));
    let mut client = node.client.clone();
    let status = client.server_status(ServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.num_flows, status.max_flows, status.seen_flows), (3, KEPT as u64, 3));
    assert_eq!((status.num_connected_nodes, status.num_unavailable_nodes), (Some(1), Some(0)));
    let nodes = client.get_nodes(GetNodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!((nodes.len(), nodes[0].name.as_str(), nodes[0].num_flows), (1, "west/n1", 3));
    let spaces = client.get_namespaces(GetNamespacesRequest {}).await.unwrap().into_inner().namespaces;
    let spaces: Vec<_> = spaces.into_iter().map(|space| (space.cluster, space.namespace)).collect();
    assert_eq!(spaces, [("west".to_owned(), "shop".to_owned())]);
    let agent = client.get_agent_events(GetAgentEventsRequest::default()).await.unwrap_err();
    let debug = client.get_debug_events(GetDebugEventsRequest::default()).await.unwrap_err();
    assert_eq!((agent.code(), debug.code()), (Code::Unimplemented, Code::Unimplemented));
    assert!(agent.message().contains("GetFlows"), "{agent:?}");
}

#[tokio::test]
async fn only_administrators_and_replicas_of_the_cluster_read_over_tls() {
    let node = Node::start().await;
    let ours = TrustDomain::parse("west.example").unwrap();
    let theirs = TrustDomain::parse("east.example").unwrap();
    let admit = |id: Option<SpiffeId>| node.flows.admit(&caller(id, None)).map_err(|status| status.code());
    assert_eq!(admit(Some(SpiffeId::admin(&ours, "ann"))), Ok(()));
    assert_eq!(admit(Some(SpiffeId::replica(&ours, 1))), Ok(()));
    for other in [
        SpiffeId::admin(&theirs, "ann"),
        SpiffeId::node(&ours, "n2"),
        SpiffeId::workload(&ours, "shop", "web"),
    ] {
        assert_eq!(admit(Some(other.clone())), Err(Code::PermissionDenied), "{other}");
    }
    assert_eq!(admit(None), Err(Code::Unauthenticated));
    assert!(node.flows.admit(&Extensions::new()).is_err());
}

fn caller(spiffe_id: Option<SpiffeId>, registration: Option<u64>) -> Extensions {
    let mut extensions = Extensions::new();
    let addr = "192.0.2.1:9".parse().unwrap();
    extensions.insert(PeerInfo { spiffe_id, registration, addr });
    extensions
}

#[tokio::test]
async fn an_administrator_that_is_withdrawn_reads_no_further_flow() {
    let node = Node::start().await;
    let ours = TrustDomain::parse("west.example").unwrap();
    let ann = caller(Some(SpiffeId::admin(&ours, "ann")), Some(7));
    let opened = node.flows.open(ann.clone(), Order::Oldest, true).await.unwrap();
    let mut live = opened.live.unwrap();
    node.flow(1);
    assert!(matches!(live.next().await, Some(Ok(Live::Flow(_)))));

    let root = mesh_tls::issue::Root::generate(ours.clone(), std::time::SystemTime::now()).unwrap();
    let mut bundles = TrustBundles::new();
    bundles.insert_but(ours, vec![root.certificate().clone()], [7].into()).unwrap();
    node.flows.bundles.store(bundles.into());
    node.flow(3);
    let refused = live.next().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("admin/ann was withdrawn"), "{refused:?}");
    assert!(node.flows.admit(&ann).is_err());
}

/// A client of gRPC's C-core that knows nothing but the numbers in docs/hubble.md. Needs what `make setup` installs
/// (`target/grpc-venv`). Fails without, unless `SKIP_CLIENTS=1`.
#[tokio::test]
async fn a_client_of_another_implementation_reads_flows_by_the_documented_numbers() {
    if std::env::var_os("SKIP_CLIENTS").is_some_and(|value| value == "1") {
        println!("skipped: SKIP_CLIENTS=1 is set");
        return;
    }
    let node = Node::start().await;
    (1..=10).for_each(|port| node.flow(port));
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = tokio::process::Command::new(here.join("../target/grpc-venv/bin/python"))
        .arg(here.join("tests/hubble/observe.py"))
        .arg(node.dir.path().join("hubble.sock"))
        .arg(here.join("../docs/hubble.md"))
        .args(["2", "2"])
        .output()
        .await
        .expect("`make setup` installs gRPC's Python client");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["kept"]), (3, &10.into()));
    assert_eq!(lines[0]["capacity"], KEPT);
    let flow = &lines[2];
    for (field, value) in [
        ("seconds", serde_json::json!(BEGAN + 10)),
        ("verdict", 2.into()),
        ("reason", 133.into()),
        ("source", "10.1.0.5".into()),
        ("destination", "192.0.2.7".into()),
        ("port", 10.into()),
        ("syn", 1.into()),
        ("identity", 300.into()),
        ("namespace", "shop".into()),
        ("pod", "web".into()),
        ("node", "west/n1".into()),
        ("direction", 2.into()),
        ("summary", "TCP Flags: SYN".into()),
    ] {
        assert_eq!(flow[field], value, "{field}: {flow}");
    }
}
