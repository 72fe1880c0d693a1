//! Replicas of one cluster, over their real doors: admission by token, writes on any of them, one view of status.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Cluster, SOON, run};
use control_plane::start::{self, Running};
use mesh_model::resource::{Kind, NamespacedName, ObjectKey};
use mesh_tls::grpc;
use tempfile::TempDir;
use xds_proto::isthmus::admin::v1::{ApplyRequest, StatusRequest, admin_client::AdminClient};

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
    let data = folder.path().join("data");
    let socket = folder.path().join("admin.sock");
    let arguments = [
        "control-plane",
        "run",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data.to_str().unwrap(),
        "--admin-socket",
        socket.to_str().unwrap(),
        "--join",
        &token,
    ];
    let config = control_plane::config::parse(arguments.iter().map(Into::into)).unwrap();
    let error = start::start(config).await.unwrap_err();
    assert!(error.to_string().contains("for a node, not for a replica"), "{error:#}");
    assert!(!data.join("keys/replica.json").exists());
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
