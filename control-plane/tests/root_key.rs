//! The root's private key: sealed to each replica, in clear nowhere, and good for as long as any replica is left.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{SOON, run};
use control_plane::start::Running;
use mesh_tls::grpc;
use tempfile::TempDir;
use xds_proto::isthmus::admin::v1::{
    BackupRequest, CreateTokenRequest, admin_client::AdminClient, recovery_client::RecoveryClient,
};

/// The private scalar of a P-256 key in PEM: what must not be found, whatever is around it.
fn scalar(pem: &str) -> Vec<u8> {
    let text = pem.split("-----BEGIN PRIVATE KEY-----").nth(1).unwrap();
    let text: String = text.split("-----END").next().unwrap().split_whitespace().collect();
    let der = STANDARD.decode(text).unwrap();
    // OCTET STRING of 32 bytes (RFC 5915).
    let at = der.windows(2).position(|w| w == [0x04, 0x20]).unwrap() + 2;
    der[at..at + 32].to_vec()
}

/// Every way in which bytes are written anywhere here.
fn writings(secret: &[u8]) -> Vec<Vec<u8>> {
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let list: Vec<String> = secret.iter().map(u8::to_string).collect();
    let mut all = vec![secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    all.push(list.join(",").into_bytes());
    all.push(list.join(", ").into_bytes());
    // Base64 of something longer, at each alignment, without the ends that its neighbours decide.
    for skip in 0..3 {
        let whole = &secret[skip..skip + (secret.len() - skip) / 3 * 3];
        all.push(STANDARD.encode(whole).into_bytes());
    }
    all
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

fn holders(folder: &Path, secret: &[u8]) -> Vec<PathBuf> {
    let writings = writings(secret);
    let holds = |path: &PathBuf| {
        // A file that went away meanwhile holds nothing.
        let bytes = std::fs::read(path).unwrap_or_default();
        // PEM has line ends within its base64.
        let joined: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'\n').collect();
        let within = |bytes: &[u8], w: &[u8]| memchr::memmem::find(bytes, w).is_some();
        writings.iter().any(|w| within(&bytes, w) || within(&joined, w))
    };
    files(folder).into_iter().filter(holds).collect()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

async fn token(folder: &TempDir) -> String {
    let channel = grpc::connect_unix(folder.path().join("admin.sock")).await.unwrap();
    let request = CreateTokenRequest { purpose: "replica".to_owned(), ..Default::default() };
    AdminClient::new(channel).create_token(request).await.unwrap().into_inner().token
}

async fn backup(folder: &TempDir) -> Vec<u8> {
    let channel = grpc::connect_unix(folder.path().join("admin.sock")).await.unwrap();
    let mut chunks = RecoveryClient::new(channel).backup(BackupRequest {}).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        file.extend(chunk.data);
    }
    file
}

async fn joined(by: &TempDir) -> (Running, TempDir) {
    let (token, folder) = (token(by).await, tempfile::tempdir().unwrap());
    (run(folder.path(), &["--join", &token]).await, folder)
}

fn sealed_to(running: &Running, count: usize) -> bool {
    running.app.replica.applied().authority.roots.values().all(|root| root.sealed.len() == count)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_key_is_only_sealed_and_outlives_the_replica_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("data/keys");
    let first = run(folder.path(), &["--name", "west", "--trust-domain", "west.example"]).await;
    let state = first.app.replica.applied();
    let pem = first.app.ca.active_root(&state).unwrap().to_pem();
    let root_key = scalar(&pem);
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("key"), &pem).unwrap();
    let found = holders(elsewhere.path(), &root_key);
    assert_eq!(found, [elsewhere.path().join("key")], "the search finds what is there");

    until("the file of the root's key is removed", || !keys.join("root.pem").exists()).await;
    let (second, two) = joined(&folder).await;
    let (third, three) = joined(&folder).await;
    until("a copy is sealed to each", || sealed_to(&third, 3)).await;
    for running in [&first, &second, &third] {
        running.app.replica.snapshot().await;
    }
    for folder in [&folder, &two, &three] {
        let snapshot = || files(folder.path()).iter().any(|path| path.to_string_lossy().contains("snapshot"));
        until("a snapshot is there", snapshot).await;
        assert_eq!(holders(folder.path(), &root_key), Vec::<PathBuf>::new());
        // Nor is any other private key anywhere but in its own file.
        let issuer = folder.path().join("data/keys/issuer.pem");
        assert_eq!(holders(folder.path(), &scalar(&std::fs::read_to_string(&issuer).unwrap())), [issuer]);
    }

    // Nor is any in a backup, whichever replica makes it: not the root's, no issuer's, none that opens sealed copies.
    let backups = tempfile::tempdir().unwrap();
    for (number, by) in [&folder, &two, &three].into_iter().enumerate() {
        std::fs::write(backups.path().join(number.to_string()), backup(by).await).unwrap();
    }
    let mut secrets = vec![root_key.clone()];
    for folder in [&folder, &two, &three] {
        let file = |name: &str| std::fs::read_to_string(folder.path().join("data/keys").join(name)).unwrap();
        secrets.push(scalar(&file("issuer.pem")));
        let private = file("sealing.key").lines().nth(1).unwrap().to_owned();
        let byte = |at: usize| u8::from_str_radix(&private[at..at + 2], 16).unwrap();
        secrets.push((0..private.len()).step_by(2).map(byte).collect());
    }
    for secret in &secrets {
        assert_eq!(secret.len(), 32);
        assert_eq!(holders(backups.path(), secret), Vec::<PathBuf>::new());
    }
    // The sealed copies are in it, so it is no wonder that a backup can be restored.
    let (_, state) = mesh_store::backup::read(&*backup(&two).await).unwrap();
    assert!(state.authority.roots.values().all(|root| root.sealed.len() == 3));

    first.drain(Duration::from_secs(5)).await;
    drop(folder);
    let (fourth, _four) = joined(&two).await;
    assert_eq!(fourth.app.ca.replica().id, 4);
    until("a copy is sealed to the newcomer", || {
        let state = second.app.replica.applied();
        state.authority.roots.values().all(|root| root.sealed.contains_key(&4))
    })
    .await;
    fourth.drain(Duration::from_secs(5)).await;
    third.drain(Duration::from_secs(5)).await;
    second.drain(Duration::from_secs(5)).await;
}
