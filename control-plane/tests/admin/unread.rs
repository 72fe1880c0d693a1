//! Streams whose reader does not read, or may not read any more: nothing of them outlasts the replica's end or the caller's
//! rights, and what they ask is counted.

use std::{sync::Arc, time::Duration};

use control_plane::{
    admin::{barrier, outlet::Outlet},
    authz::Caller,
};
use serde_json::json;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use xds_proto::{
    envoy::service::status::v3::{
        ClientStatusRequest, client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
    isthmus::{
        admin::v1::{
            ApplyRequest, BackupRequest, ObserveRequest, WatchRequest, admin_client::AdminClient,
            recovery_client::RecoveryClient,
        },
        agent::v1::Service,
        bootstrap::v1::{Flow, FlowBatch, FlowSource},
        ca::v1::{RevokeAdministratorRequest, certificate_authority_client::CertificateAuthorityClient},
    },
    type_url,
};

use crate::{
    common::{Cluster, SOON, run},
    raw::Raw,
    roles::administrator,
};

/// More than all buffers between a stream and a reader that does not read: 10 MB.
async fn fill(cluster: &mut Cluster) -> u64 {
    let mut revision = 0;
    for part in 0..2 {
        let objects = (0..24).map(|number| {
            let object = json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": format!("s{part}-{number}"),
                    "namespace": "shop",
                    "annotations": {"note": format!("{part}{number}").repeat(80_000)},
                },
                "spec": {"ports": [{"port": 80}]},
            });
            serde_json::to_vec(&object).unwrap()
        });
        let request = ApplyRequest { objects: objects.collect(), ..Default::default() };
        revision = cluster.admin.apply(request).await.unwrap().into_inner().revision;
    }
    revision
}

async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON / 3, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_ends_with_its_callers_rights() {
    let mut cluster = Cluster::start("west").await;
    fill(&mut cluster).await;
    let (kim, _) = administrator(&cluster, "kim").await;
    let mut recovery = RecoveryClient::new(cluster.connect(Some(kim)).await.unwrap());
    let mut backup = recovery.backup(BackupRequest {}).await.unwrap().into_inner();
    assert!(backup.message().await.unwrap().is_some());
    let mut authority = CertificateAuthorityClient::new(cluster.admin_channel.clone());
    authority.revoke_administrator(RevokeAdministratorRequest { name: "kim".to_owned() }).await.unwrap();
    let ended = async {
        loop {
            match backup.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("all of it was sent"),
                Err(status) => return status,
            }
        }
    };
    let status = tokio::time::timeout(SOON, ended).await.unwrap();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_read_takes_a_place_until_the_replica_stops_and_not_longer() {
    let mut cluster =
        Cluster::start_with("west", &["--limit", "backups=1", "--limit", "watch-backlog=1"]).await;
    let revision = fill(&mut cluster).await;
    let app = cluster.running.app.clone();
    let mut recovery = RecoveryClient::new(cluster.admin_channel.clone());
    let _backup = recovery.backup(BackupRequest {}).await.unwrap().into_inner();
    let refused = recovery.backup(BackupRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("is at the limit backups: 1 at once"), "{refused}");
    let services = WatchRequest { kind: "svc".to_owned(), ..Default::default() };
    let _watch = cluster.admin.watch(services).await.unwrap().into_inner();
    assert_eq!(app.gate.open().1, 1);

    // A data plane that does not answer keeps a wait going, whose reader does not read.
    let node = cluster.node("n1").await;
    let mut silent = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    silent.next().await.unwrap();
    let (outlet, _answers) = Outlet::new(1, &app.stop);
    let waited = app.clone();
    let waiting = tokio::spawn(async move {
        barrier::wait(&waited, revision, Duration::from_secs(600), |progress| outlet.send(progress)).await
    });

    app.stop.cancel();
    soon("the backup's thread has ended", || app.gate.backup(&Caller::LocalRoot).is_ok()).await;
    soon("the watch has ended", || app.gate.open().1 == 0).await;
    assert!(tokio::time::timeout(SOON / 3, waiting).await.unwrap().unwrap().is_none());
}

/// What is not read by the deadline of a wait is not waited for: there is one more word to be said, the last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_is_not_read_comes_to_its_end() {
    let mut cluster = Cluster::start("west").await;
    let node = cluster.node("n1").await;
    let mut silent = Raw::open(node.channel.clone(), &type_url::<Service>()).await.unwrap();
    silent.next().await.unwrap();
    let revision = cluster
        .apply("{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 80}]}}")
        .await
        .unwrap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = told.clone();
    // Whoever is told takes no word but the last.
    let wait = barrier::wait(&cluster.running.app, revision, Duration::from_millis(300), |progress| {
        let (heard, last) = (heard.clone(), progress.state != "waiting");
        async move {
            if !last {
                std::future::pending::<()>().await;
            }
            heard.lock().unwrap().push(progress);
            Ok::<_, ()>(())
        }
    });
    let last = tokio::time::timeout(SOON / 3, wait).await.expect("it ends").unwrap();
    assert_eq!(told.lock().unwrap().as_slice(), [last]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_question_about_clients_is_counted_and_so_is_each_stream_of_them() {
    let limits = ["--limit", "admin-requests=1", "--limit", "watches-per-client=1"];
    let cluster = Cluster::start_with("west", &limits).await;
    let (kim, _) = administrator(&cluster, "kim").await;
    let mut clients = ClientStatusDiscoveryServiceClient::new(cluster.connect(Some(kim)).await.unwrap());
    let questions = tokio_stream::iter(vec![ClientStatusRequest::default(); 20]);
    let mut answers = clients.stream_client_status(questions).await.unwrap().into_inner();
    let status = loop {
        match tokio::time::timeout(SOON, answers.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("all were answered"),
            Err(status) => break status,
        }
    };
    assert!(status.message().contains("is at the limit admin-requests: 1"), "{status}");

    // The local administrator may ask as often as it likes, on so many streams.
    let mut clients = ClientStatusDiscoveryServiceClient::new(cluster.admin_channel.clone());
    let (asks, asked) = tokio::sync::mpsc::channel(1);
    let mut held = clients.stream_client_status(ReceiverStream::new(asked)).await.unwrap().into_inner();
    for _ in 0..20 {
        asks.send(ClientStatusRequest::default()).await.unwrap();
        held.message().await.unwrap().unwrap();
    }
    let refused = clients.stream_client_status(tokio_stream::empty()).await.unwrap_err();
    assert!(refused.message().contains("is at the limit watches-per-client: 1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_flows_are_missing_is_named_and_heard_again_when_it_is_back() {
    let mut cluster = Cluster::start("west").await;
    let token = cluster.token("replica").await;
    let folder = tempfile::tempdir().unwrap();
    let other = run(folder.path(), &["--join", &token]).await;
    let everything = ObserveRequest { follow: true, ..Default::default() };
    let mut flows = cluster.admin.observe(everything).await.unwrap().into_inner();
    other.drain(Duration::from_secs(5)).await;
    let mut next = async || tokio::time::timeout(SOON, flows.message()).await.unwrap().unwrap().unwrap();
    let FlowBatch { sources, .. } = next().await;
    let [FlowSource { replica: 2, silent, .. }] = sources.as_slice() else { panic!("{sources:?}") };
    assert!(!silent.is_empty());

    let again = run(folder.path(), &[]).await;
    let FlowBatch { sources, .. } = next().await;
    assert!(
        matches!(sources.as_slice(), [source] if source.replica == 2 && source.silent.is_empty()),
        "{sources:?}"
    );
    again.app.flows.push("n9", Flow { verdict: "DROPPED".to_owned(), ..Default::default() });
    assert_eq!(next().await.flows[0].node, "n9");
    // Who does not follow is told as well.
    again.drain(Duration::from_secs(5)).await;
    let once = ObserveRequest { last: 1, ..Default::default() };
    let mut flows = AdminClient::new(cluster.admin_channel.clone()).observe(once).await.unwrap().into_inner();
    let mut missing = Vec::new();
    while let Some(batch) = tokio::time::timeout(SOON, flows.message()).await.unwrap().unwrap() {
        missing.extend(batch.sources.into_iter().map(|source| source.replica));
    }
    assert_eq!(missing, [2]);
}
