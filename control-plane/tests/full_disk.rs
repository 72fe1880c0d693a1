//! A disk that is full, under the store alone: a replica on a small file system of its own stops with the name of a
//! folder, has lost nothing of what it acknowledged, and goes on once there is room.
//!
//! The replica runs in this very program, started again in a mount namespace of its own, which needs root; the file
//! system is gone with it. `disk_faults.rs` does the same to the whole program, with others to go on without it.

#[path = "common/privileged.rs"]
mod privileged;

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use control_plane::raft::{DialError, Dialer, RaftConfig, Replica};
use futures::FutureExt;
use mesh_model::{
    identity::TrustDomain,
    records::ClusterInfo,
    resource::{Labels, Meta, NamespacedName, Object, ProxyMode, Workload},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Names the folder in the process that fills it.
const ROLE: &str = "ISTHMUS_FULL_DISK";
/// Journal, database and some room.
const BYTES: &str = "size=96m";
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_full_disk_stops_the_replica_and_loses_nothing() {
    if let Ok(dir) = std::env::var(ROLE) {
        return fill(Path::new(&dir));
    }
    if !privileged::privileged("a file system of its own") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let child = Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "a_full_disk_stops_the_replica_and_loses_nothing",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program starts again");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("FULL AND WELL AGAIN"), "it did not get there: {said}");
}

fn fill(dir: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("root may");
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).expect("private");
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(BYTES)).expect("mounted");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let fill = async {
        let ballast = dir.join("ballast");
        std::fs::write(&ballast, vec![1; 34 << 20]).expect("there is room for it");
        let raft = dir.join("raft");
        let replica = open(&raft).await;
        replica.initialize().await.expect("the first member");
        replica.write(init()).await.expect("initialised");
        let mut acknowledged = 0;
        let error = loop {
            match replica.write(put(acknowledged)).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error.to_string(),
            }
            assert!(acknowledged < 100_000, "the disk is never full");
        };
        let reason = replica.stopped().await;
        println!("after {acknowledged} writes: {error}; {reason}");
        assert!(reason.contains("/raft/"), "the file is named: {reason}");
        assert!(reason.contains("No space left"), "the reason is told: {reason}");
        assert!(replica.write(put(0)).await.is_err(), "it does not go on as if nothing had happened");
        replica.shutdown().await;
        drop(replica);
        std::fs::remove_file(&ballast).expect("removed");
        let again = open(&raft).await;
        let state = again.linearizable().await.expect("it leads");
        assert!(state.objects.len() >= acknowledged, "{} of {acknowledged}", state.objects.len());
        again.write(put(200_000)).await.expect("there is room again");
        again.shutdown().await;
        println!("FULL AND WELL AGAIN");
    };
    let filled = runtime.expect("a runtime").block_on(async { tokio::time::timeout(PATIENCE, fill).await });
    filled.expect("in time");
}

async fn open(dir: &Path) -> Replica {
    let mut config = RaftConfig::new(1, "127.0.0.1:1", dir);
    // Snapshots need room too.
    config.snapshot_after = 200;
    config.keep_entries = 50;
    Replica::open(config, nobody()).await.expect("what was acknowledged is there")
}

fn nobody() -> Dialer {
    Arc::new(|id, address| {
        async move { Err(DialError { id, address, reason: "there is nobody else".to_owned() }) }.boxed()
    })
}

fn init() -> mesh_store::Command {
    mesh_store::Command::Init(ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").expect("a trust domain"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().expect("a range"),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/16".parse().expect("a range"),
        roots: vec![vec![1]],
        trust: Default::default(),
    })
}

fn put(number: usize) -> mesh_store::Command {
    let name = NamespacedName::new("test", format!("w{number}"));
    let note = [("note".to_owned(), "x".repeat(20_000))].into();
    let meta = Meta { name, labels: Labels::new(), annotations: note, resource_version: None };
    let workload = Workload {
        meta,
        service_account: "default".to_owned(),
        proxy: ProxyMode::None,
        ports: Vec::new(),
        address: None,
        readiness: None,
    };
    mesh_store::Command::Apply { objects: vec![Object::Workload(workload)], dry_run: false }
}
