//! `Wait`: whom a change concerns, and what each of them has answered.

use std::time::Duration;

use mesh_tls::grpc;
use tonic::{Code, Streaming, transport::Channel};
use xds_proto::{
    isthmus::{
        admin::v1::{
            ApplyRequest, DeleteRequest, ObjectRef, StatusRequest, WaitProgress, WaitRequest,
            admin_client::AdminClient,
        },
        agent::v1::{Heartbeat, LocalEndpoint},
        bootstrap::v1::{ReportEndpointRequest, endpoints_client::EndpointsClient},
    },
    type_url,
};

use crate::{
    common::{Cluster, Node, SOON, run},
    raw::Raw,
};

/// A workload, without its sidecar if `proxy` is none: a change of that is a change of its node's view alone.
fn workload(name: &str, proxy: &str) -> String {
    format!(
        "apiVersion: isthmus.io/v1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{serviceAccount: {name}, proxy: {proxy}, ports: [{{name: http, port: 8080}}]}}\n"
    )
}

async fn bind(node: &Node, name: &str, host: u8) {
    let request = ReportEndpointRequest {
        namespace: "shop".to_owned(),
        workload: name.to_owned(),
        addresses: vec![node.address(host)],
        ready: true,
    };
    EndpointsClient::new(node.channel.clone()).report(request).await.unwrap();
}

/// Two nodes, each with one workload and an agent that is up to date.
async fn two_nodes() -> (Cluster, [(Node, Raw); 2]) {
    let mut cluster = Cluster::start("west").await;
    let mut agents = Vec::new();
    for (node, name) in [("n1", "a"), ("n2", "b")] {
        cluster.apply(&workload(name, "none")).await.unwrap();
        let node = cluster.node(node).await;
        bind(&node, name, 5).await;
        let agent = Raw::open(node.channel.clone(), &type_url::<LocalEndpoint>()).await.unwrap();
        agents.push((node, agent));
    }
    for (_, agent) in &mut agents {
        agent.catch_up().await;
    }
    (cluster, agents.try_into().unwrap_or_else(|_| panic!("two agents")))
}

async fn wait(admin: &mut AdminClient<Channel>, revision: u64, timeout_ms: u32) -> Streaming<WaitProgress> {
    admin.wait(WaitRequest { revision, timeout_ms }).await.unwrap().into_inner()
}

/// The first message for which something holds.
async fn until(stream: &mut Streaming<WaitProgress>, holds: impl Fn(&WaitProgress) -> bool) -> WaitProgress {
    let waiting = async {
        loop {
            let progress = stream.message().await.unwrap().expect("the wait goes on");
            if holds(&progress) {
                return progress;
            }
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("progress in time")
}

async fn last(stream: &mut Streaming<WaitProgress>) -> WaitProgress {
    until(stream, |progress| progress.state != "waiting").await
}

fn summary(progress: &WaitProgress) -> (&str, u32, u32) {
    (&progress.state, progress.acked, progress.concerned)
}

#[tokio::test]
async fn a_change_is_waited_for_where_the_view_changes_and_nowhere_else() {
    let (mut cluster, [(_n1, mut first), (_n2, mut second)]) = two_nodes().await;
    // The second agent is not up to date, with something else: its own workload.
    cluster.apply(&workload("b", "sidecar")).await.unwrap();
    let unanswered = second.next().await.unwrap();
    let revision = cluster.apply(&workload("a", "sidecar")).await.unwrap();
    let change = first.next().await.unwrap();
    let mut progress = wait(&mut cluster.admin, revision, 0).await;
    let waiting = until(&mut progress, |p| p.concerned == 1 && p.waiting_for.len() == 1).await;
    assert_eq!(
        (waiting.waiting_for[0].id.as_str(), waiting.waiting_for[0].state.as_str()),
        ("agent~n1", "pending")
    );
    assert!(waiting.waiting_for[0].acked_revision < revision && waiting.waiting_for[0].connected_unix_ms > 0);
    first.ack(&change).await;
    assert_eq!(summary(&last(&mut progress).await), ("done", 1, 1));
    second.ack(&unanswered).await;
}

#[tokio::test]
async fn a_refusal_ends_the_wait_at_once_with_the_clients_words() {
    let (mut cluster, [(_n1, mut first), _second]) = two_nodes().await;
    let revision = cluster.apply(&workload("a", "sidecar")).await.unwrap();
    let mut progress = wait(&mut cluster.admin, revision, 600_000).await;
    let change = first.next().await.unwrap();
    first.nack(&change, "no room for another port").await;
    let last = last(&mut progress).await;
    assert_eq!((summary(&last), last.refused), (("refused", 0, 1), 1));
    assert!(last.waiting_for[0].error.contains("no room for another port"), "{last:?}");
    let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
    let plane = status.data_planes.iter().find(|plane| plane.id == "agent~n1").unwrap();
    assert_eq!((plane.state.as_str(), plane.nacked, plane.protocol.as_str()), ("refused", 1, "delta"));
}

#[tokio::test]
async fn a_silent_data_plane_is_named_when_the_time_is_over() {
    let (mut cluster, [_first, _second]) = two_nodes().await;
    let revision = cluster.apply(&workload("a", "sidecar")).await.unwrap();
    let mut progress = wait(&mut cluster.admin, revision, 300).await;
    let last = last(&mut progress).await;
    assert_eq!(summary(&last), ("timed out", 0, 1));
    assert_eq!((last.waiting_for[0].id.as_str(), last.waiting_for[0].replica), ("agent~n1", 1));
    // The same by one call, for those who want no progress.
    let object: serde_json::Value = serde_saphyr::from_str(&workload("a", "sidecar")).unwrap();
    let again = ApplyRequest {
        objects: vec![object.to_string().into_bytes()],
        wait: true,
        wait_timeout_ms: 100,
        dry_run: false,
    };
    let answer = cluster.admin.apply(again).await.unwrap().into_inner();
    assert_eq!(answer.outcomes[0].outcome, "unchanged");
    assert_eq!(answer.wait_revision, revision, "a repeated apply waits for what it finds");
    assert!(answer.waiting_for[0].starts_with("agent~n1 (at revision "), "{answer:?}");
    let status = cluster.admin.status(StatusRequest {}).await.unwrap().into_inner();
    let plane = status.data_planes.iter().find(|plane| plane.id == "agent~n1").unwrap();
    assert_eq!(plane.state, "syncing");
    assert!(plane.lag_revisions >= 1 && plane.lag_ms >= 300, "{plane:?}");
}

#[tokio::test]
async fn a_data_plane_that_reconnects_goes_on_where_it_was() {
    let (mut cluster, [(n1, first), _second]) = two_nodes().await;
    let revision = cluster.apply(&workload("a", "sidecar")).await.unwrap();
    let mut progress = wait(&mut cluster.admin, revision, 0).await;
    until(&mut progress, |p| p.waiting_for.iter().any(|plane| plane.state == "pending")).await;
    drop(first);
    let gone =
        until(&mut progress, |p| p.waiting_for.iter().any(|plane| plane.state == "disconnected")).await;
    assert_eq!(summary(&gone), ("waiting", 0, 1));
    let mut again = Raw::open(n1.channel.clone(), &type_url::<LocalEndpoint>()).await.unwrap();
    again.catch_up().await;
    assert_eq!(summary(&last(&mut progress).await), ("done", 1, 1));
}

#[tokio::test]
async fn a_data_plane_at_another_replica_is_waited_for_too() {
    let (mut cluster, [(n1, first), _second]) = two_nodes().await;
    let token = cluster.token("replica").await;
    let folder = tempfile::tempdir().unwrap();
    let replica = run(folder.path(), &["--join", &token]).await;
    drop(first);
    let channel = cluster.connect_to(&replica.door.to_string(), Some(n1.identity.clone())).await.unwrap();
    let mut agent = Raw::open(channel, &type_url::<LocalEndpoint>()).await.unwrap();
    agent.catch_up().await;
    let revision = cluster.apply(&workload("a", "sidecar")).await.unwrap();
    let mut progress = wait(&mut cluster.admin, revision, 0).await;
    let waiting = until(&mut progress, |p| p.concerned == 1).await;
    assert_eq!(waiting.waiting_for[0].replica, 2, "{waiting:?}");
    agent.catch_up().await;
    assert_eq!(summary(&last(&mut progress).await), ("done", 1, 1));
    // Asked at the other replica, the answer is the same.
    let other = grpc::connect_unix(folder.path().join("admin.sock")).await.unwrap();
    let mut progress = wait(&mut AdminClient::new(other), revision, 0).await;
    assert_eq!(summary(&last(&mut progress).await), ("done", 1, 1));
    replica.drain(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_deletion_is_waited_for_like_any_change() {
    let (mut cluster, [(_n1, mut first), _second]) = two_nodes().await;
    let reference =
        ObjectRef { kind: "Workload".to_owned(), namespace: "shop".to_owned(), name: "a".to_owned() };
    let answer = cluster.admin.delete(DeleteRequest { objects: vec![reference] }).await.unwrap().into_inner();
    let mut progress = wait(&mut cluster.admin, answer.revision, 0).await;
    let removal = first.next().await.unwrap();
    assert_eq!(removal.removed_resources, ["shop/a"]);
    first.ack(&removal).await;
    // The other node's view loses an address with it; what its agent does not subscribe to needs no answer.
    assert_eq!(summary(&last(&mut progress).await), ("done", 2, 2));
}

#[tokio::test]
async fn a_revision_that_there_has_not_been_is_refused() {
    let mut cluster = Cluster::start("west").await;
    for revision in [0, 1_000_000] {
        let status = cluster.admin.wait(WaitRequest { revision, timeout_ms: 0 }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let revision = cluster.revision().await;
    let mut progress = wait(&mut cluster.admin, revision, 0).await;
    assert_eq!(summary(&last(&mut progress).await), ("done", 0, 0), "nobody is connected");
}

#[tokio::test]
async fn a_client_that_asks_for_heartbeats_gets_one_at_once_with_the_revisions_of_the_moment() {
    let mut cluster = Cluster::start("west").await;
    let node = cluster.node("n1").await;
    let revision = cluster.apply(&workload("a", "none")).await.unwrap();
    let mut raw = Raw::open(node.channel.clone(), &type_url::<Heartbeat>()).await.unwrap();
    let response = raw.next().await.unwrap();
    let beat: Heartbeat =
        xds_proto::Message::decode(response.resources[0].resource.as_ref().unwrap().value.as_slice())
            .unwrap();
    assert_eq!((beat.sequence, beat.sent_revision), (1, 0));
    assert!(beat.revision >= revision && beat.interval_ms > 0, "{beat:?}");
    raw.ack(&response).await;
    // It holds nobody up: the stream is up to date with every revision.
    let mut progress = wait(&mut cluster.admin, revision, 0).await;
    assert_eq!(last(&mut progress).await.state, "done");
}
