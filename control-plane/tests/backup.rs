//! A backup over the real door, and a cluster made of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path, time::Duration};

use common::{Cluster, run};
use control_plane::{config::RestoreArgs, restore};
use mesh_model::resource::{Kind, NamespacedName, ObjectKey};
use mesh_store::backup;
use mesh_tls::grpc;
use xds_proto::isthmus::admin::v1::{
    BackupRequest, WatchRequest, admin_client::AdminClient, recovery_client::RecoveryClient,
};

const SERVICE: &str =
    "{apiVersion: v1, kind: Service, metadata: {name: NAME, namespace: shop}, spec: {ports: [{port: 80}]}}";

async fn back_up(socket: &Path) -> Vec<u8> {
    let mut recovery = RecoveryClient::new(grpc::connect_unix(socket).await.unwrap());
    let mut chunks = recovery.backup(BackupRequest {}).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        file.extend(chunk.data);
    }
    file
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        fs::copy(item.path(), to.join(item.file_name())).unwrap();
    }
}

/// Whether the bytes of a key file, or any long line of it, are in a backup.
fn holds(backup: &[u8], secret: &str) -> bool {
    let contains = |needle: &str| backup.windows(needle.len()).any(|window| window == needle.as_bytes());
    secret.lines().filter(|line| line.len() > 20 && !line.contains("-----")).any(contains)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_goes_on_with_its_objects_its_roots_and_revisions_that_nobody_has_seen() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(&SERVICE.replace("NAME", "kept")).await.unwrap();
    let data = cluster.folder().join("data");
    let sealed = async {
        while cluster.running.app.ca.is_founder() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(common::SOON, sealed).await.unwrap();
    let file = back_up(&cluster.folder().join("admin.sock")).await;
    let (header, state) = backup::read(&file[..]).unwrap();
    assert_eq!((header.cluster.as_str(), header.revision), ("west", state.revision));
    for secret in ["issuer.pem", "sealing.key"] {
        let text = fs::read_to_string(data.join("keys").join(secret)).unwrap();
        // A certificate is no secret, and the issuer's is in the same file as its key.
        let key = text.rsplit("-----BEGIN").find(|part| part.contains("PRIVATE")).unwrap_or(&text);
        assert!(!holds(&file, key), "{secret} is in the backup");
    }
    // What comes after the backup is lost, and its revision is not given out again.
    let lost = cluster.apply(&SERVICE.replace("NAME", "lost")).await.unwrap();
    let roots = cluster.running.app.ca.roots();

    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("west.backup");
    let args = RestoreArgs {
        data_dir: folder.path().join("data"),
        from: from.clone(),
        advertise: "127.0.0.1:9".to_owned(),
        new_authority: false,
    };
    for (damage, cut) in [(Some(file.len() / 2), file.len()), (None, file.len() - 1), (None, 0)] {
        let mut bad = file[..cut].to_vec();
        if let Some(at) = damage {
            bad[at] ^= 1;
        }
        fs::write(&from, bad).unwrap();
        let error = format!("{:#}", restore::run(&args).await.unwrap_err());
        assert!(error.contains("west.backup is not a good backup"), "{error}");
        assert!(!args.data_dir.exists(), "nothing was changed");
    }
    fs::write(&from, &file).unwrap();
    let error = format!("{:#}", restore::run(&args).await.unwrap_err());
    assert!(error.contains("--new-authority") && !args.data_dir.join("raft").exists(), "{error}");
    copy(&data.join("keys"), &args.data_dir.join("keys"));
    let told = restore::run(&args).await.unwrap();
    assert!(told.contains("as replica 10") && told.contains(" at 127.0.0.1:9"), "{told}");
    let error = format!("{:#}", restore::run(&args).await.unwrap_err());
    assert!(error.contains("there is a store already"), "{error}");

    let restored = run(folder.path(), &[]).await;
    let state = restored.app.replica.linearizable().await.unwrap();
    let key = |name: &str| ObjectKey { kind: Kind::Service, name: NamespacedName::new("shop", name) };
    assert!(state.objects.contains_key(&key("kept")) && !state.objects.contains_key(&key("lost")));
    assert!(state.revision > lost + 900_000);
    assert!(state.replicas.len() == 1 && state.replicas.keys().all(|id| *id > 1_000), "{:?}", state.replicas);
    assert_eq!(restored.app.ca.roots(), roots, "whoever trusted the cluster still does");
    restored.app.ca.active_root(&state).expect("it can admit others");
    let mut admin = AdminClient::new(grpc::connect_unix(folder.path().join("admin.sock")).await.unwrap());
    let watch = WatchRequest { kind: "svc".to_owned(), from_revision: lost, ..Default::default() };
    let compacted = admin.watch(watch).await.unwrap_err();
    assert!(compacted.message().contains(&format!("revision {lost} is compacted")), "{compacted}");
    restored.drain(Duration::from_secs(5)).await;
    // It was a start like any other.
    let again = run(folder.path(), &[]).await;
    assert!(again.app.replica.linearizable().await.unwrap().objects.contains_key(&key("kept")));
    again.drain(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_keys_are_lost_is_restored_under_a_new_root() {
    let mut cluster = Cluster::start("west").await;
    cluster.apply(&SERVICE.replace("NAME", "kept")).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("west.backup");
    fs::write(&from, back_up(&cluster.folder().join("admin.sock")).await).unwrap();
    let args = RestoreArgs {
        data_dir: folder.path().join("data"),
        from,
        advertise: "127.0.0.1:9".to_owned(),
        new_authority: true,
    };
    let told = restore::run(&args).await.unwrap();
    assert!(told.contains("Its roots are new"), "{told}");
    let restored = run(folder.path(), &[]).await;
    let state = restored.app.replica.linearizable().await.unwrap();
    assert_eq!(state.objects.len(), 1);
    let roots = restored.app.ca.roots();
    assert_eq!((roots.len(), roots == cluster.running.app.ca.roots()), (1, false));
    assert_eq!(state.cluster.as_ref().unwrap().roots, [roots[0].to_vec()]);
    restored.drain(Duration::from_secs(5)).await;
}
