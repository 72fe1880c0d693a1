//! A replica whose disk is damaged says so, takes no part, and comes back from the others under another number.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{Cluster, SOON, run};
use control_plane::{config, start};
use mesh_tls::grpc;
use tokio::io::AsyncReadExt;
use xds_proto::isthmus::admin::v1::{
    ApplyRequest, ListRequest, RejoinRequest, StatusRequest, StatusResponse, admin_client::AdminClient,
    recovery_client::RecoveryClient,
};

async fn status(socket: &Path) -> StatusResponse {
    let asking = async {
        loop {
            if let Ok(channel) = grpc::connect_unix(socket).await
                && let Ok(answer) = AdminClient::new(channel).status(StatusRequest {}).await
            {
                return answer.into_inner();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, asking).await.unwrap()
}

async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

/// Waits until the first replica sees these voters and nobody else.
async fn until_voters(cluster: &Cluster, wanted: &[u64]) {
    let replica = &cluster.running.app.replica;
    eventually(&format!("voters {wanted:?}"), async || {
        let members = replica.metrics().members;
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        ids == wanted && members.iter().all(|member| member.voter)
    })
    .await;
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    // In the header of the file.
    bytes[3] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_comes_back_by_itself_once_and_then_waits_to_be_told() {
    let mut cluster = Cluster::start("west").await;
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut others = Vec::new();
    for folder in &folders {
        let token = cluster.token("replica").await;
        others.push(run(folder.path(), &["--join", &token]).await);
    }
    until_voters(&cluster, &[1, 2, 3]).await;
    let second = others.remove(0);
    let (data, socket) = (folders[0].path().join("data"), folders[0].path().join("admin.sock"));
    let listen = second.door.to_string();
    eventually("the addresses are kept", async || {
        fs::read_to_string(data.join("replicas.json")).is_ok_and(|text| text.contains("\"3\""))
    })
    .await;
    second.drain(Duration::from_secs(5)).await;
    let object = |name: &str| {
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{{"ports":[{{"port":80}}]}}}}"#
        );
        ApplyRequest { objects: vec![json.into_bytes()], ..Default::default() }
    };
    cluster.admin.apply(object("while-away")).await.unwrap();

    // By itself, the first time.
    flip(&data.join("raft/journal"));
    let arguments = [
        "control-plane",
        "run",
        "--listen",
        &listen,
        "--data-dir",
        data.to_str().unwrap(),
        "--admin-socket",
        socket.to_str().unwrap(),
    ];
    let configured = || config::parse(arguments.iter().map(Into::into)).unwrap();
    let back = start::start(configured()).await.unwrap();
    tokio::time::timeout(SOON, back.ready()).await.unwrap();
    assert_eq!(back.app.ca.replica().id, 4, "the old number is never used again");
    let kept = |count: usize| {
        let names: Vec<String> = fs::read_dir(&data)
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("raft.damaged-"))
            .collect();
        assert_eq!(names.len(), count, "{names:?}");
        names
    };
    assert!(kept(1)[0].ends_with("-replica-2"), "the damaged store is kept");
    until_voters(&cluster, &[1, 3, 4]).await;
    let state = back.app.replica.linearizable().await.unwrap();
    assert!(state.objects.keys().any(|key| key.name.name == "while-away"));
    assert_eq!(state.replicas.keys().copied().collect::<Vec<_>>(), [1, 3, 4]);
    back.drain(Duration::from_secs(5)).await;

    // The second time somebody should look first.
    flip(&data.join("raft/journal"));
    let starting = tokio::spawn(start::start(configured()));
    let said = status(&socket).await;
    assert_eq!((said.answered_by, said.leader, said.replicas[0].role.as_str()), (4, 0, "damaged"));
    for word in ["replica 4 neither votes nor serves", "raft/journal", "clustermesh replica rejoin"] {
        assert!(said.failure.contains(word), "{word}: {}", said.failure);
    }
    // Its mesh door keeps nobody waiting.
    let mut stream = tokio::net::TcpStream::connect(&listen).await.unwrap();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
    assert!(matches!(end, Ok(Ok(0) | Err(_))), "{end:?}");
    let channel = grpc::connect_unix(&socket).await.unwrap();
    let refused = AdminClient::new(channel.clone()).list(ListRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("raft/journal"), "{refused}");
    cluster.admin.apply(object("without-it")).await.unwrap();
    let answer = RecoveryClient::new(channel).rejoin(RejoinRequest {}).await.unwrap().into_inner();
    assert_eq!((answer.old_id, answer.new_id), (4, 5));
    assert!(answer.kept.ends_with("-replica-4"), "{}", answer.kept);
    let back = tokio::time::timeout(SOON, starting).await.unwrap().unwrap().unwrap();
    tokio::time::timeout(SOON, back.ready()).await.unwrap();
    kept(2);
    until_voters(&cluster, &[1, 3, 5]).await;
    let state = back.app.replica.linearizable().await.unwrap();
    assert!(state.objects.keys().any(|key| key.name.name == "without-it"));
    let well = RecoveryClient::new(grpc::connect_unix(&socket).await.unwrap()).rejoin(RejoinRequest {}).await;
    assert!(well.unwrap_err().message().contains("is well"));
    back.drain(Duration::from_secs(5)).await;
    for other in others {
        other.drain(Duration::from_secs(5)).await;
    }
}
