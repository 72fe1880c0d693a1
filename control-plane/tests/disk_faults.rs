//! Whole replicas on disks that fail: the real program, on a file system that really is full, and under a kernel that
//! answers EIO. What was acknowledged is there afterwards, nothing is acknowledged that is not on a disk, and the replica
//! ends with the name of the file instead of going on.
//!
//! What is real: the program, the full file system (tmpfs), the error codes at the system calls. What is not: after the
//! injected EIO (strace does it, between program and kernel) the pages are on their way to the disk all the same, where a
//! broken one would have lost them. What such a loss does to the files is what `damage_tests` and `rejoin.rs` cut and flip.

#![allow(clippy::unwrap_used)]

#[path = "common/privileged.rs"]
mod privileged;
#[path = "common/process.rs"]
mod process;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use process::{Replica, WEST, apply, apply_large, names, token, until, voters, well};

/// Of one object, so that a disk is full soon.
const LARGE: usize = 20_000;
/// Far more objects than any of these disks holds.
const MANY: usize = 20_000;

/// A small file system of a replica's own, in a mount namespace that ends with it.
struct SmallDisk {
    /// Keeps the namespace while no replica runs in it.
    holder: Child,
    at: PathBuf,
}

impl SmallDisk {
    fn new(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let mounting =
            r#"mount -t tmpfs -o mode=700,size=$1 tmpfs "$0" && echo mounted && exec sleep infinity"#;
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--kill-child", "--fork", "sh", "-c", mounting])
            .arg(&at)
            .arg(size)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "mounted\n");
        Self { holder, at }
    }

    /// The process in the namespace: the child of the one that made it.
    fn inside(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.holder.id());
        std::fs::read_to_string(children).unwrap().trim().parse().unwrap()
    }

    /// What starts a program on it.
    fn through(&self) -> Vec<String> {
        let inside = self.inside().to_string();
        ["nsenter", "--mount", "--target", &inside].map(str::to_owned).to_vec()
    }

    /// A file of it, as seen from outside.
    fn path(&self, name: &str) -> PathBuf {
        let within = self.at.strip_prefix("/").unwrap().join(name);
        Path::new(&format!("/proc/{}/root", self.inside())).join(within)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The sentence with which it ended.
fn last_words(replica: &Replica) -> String {
    replica.said().lines().last().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_ends_by_name_the_others_go_on_and_with_room_it_is_one_of_them_again() {
    if !privileged::privileged("a file system of its own") {
        return;
    }
    let mut first = Replica::new();
    let disk = SmallDisk::new(first.data(), "96m");
    first.through = disk.through();
    first.start(&WEST, None);
    let home = first.socket();
    until(&home, "the first leads", |status| status.leader == 1).await;
    let mut others = Vec::new();
    for count in [2, 3] {
        others.push(Replica::first_start(&[], Some(&token(&home, false).await)));
        until(&home, "it votes", |status| voters(status) == count).await;
    }
    until(&home, "three voters", |status| well(status, 3)).await;
    std::fs::write(disk.path("ballast"), vec![1; 34 << 20]).unwrap();

    let mut acknowledged = BTreeSet::new();
    let asked = others[0].socket();
    for n in 0..MANY {
        if !first.is_running() {
            break;
        }
        let name = format!("w{n}");
        if apply_large(&asked, &name, LARGE).await.is_ok() {
            acknowledged.insert(name);
        }
    }
    assert_eq!(first.ended().await, Some(1));
    let said = last_words(&first);
    assert!(said.contains("this replica has stopped") && said.contains("No space left"), "{said}");
    assert!(said.contains("/data/raft/"), "the file is named: {said}");
    println!("full after {} writes: {said}", acknowledged.len());
    let seen = until(&asked, "another leads", |status| ![0, 1].contains(&status.leader)).await;
    assert!(seen.no_quorum.is_none());
    until(&asked, "they say that it is gone", |status| {
        status.replicas.iter().any(|r| r.id == 1 && !r.reachable)
    })
    .await;
    for n in 0..20 {
        apply(&asked, &format!("without{n}")).await.unwrap();
        acknowledged.insert(format!("without{n}"));
    }
    // Started again it finds no more room than before, and does not pretend to.
    first.start(&[], None);
    assert_eq!(first.ended().await, Some(1));
    assert!(first.said().lines().last().unwrap().contains("No space left"), "{}", last_words(&first));

    std::fs::remove_file(disk.path("ballast")).unwrap();
    first.start(&[], None);
    let seen = until(&asked, "it is back", |status| well(status, 3)).await;
    assert!(seen.replicas.iter().any(|replica| replica.id == 1), "without a rejoin: {seen:?}");
    for replica in [&first, &others[0], &others[1]] {
        let names: BTreeSet<String> = names(&replica.socket()).await.into_iter().collect();
        let lost: Vec<&String> = acknowledged.difference(&names).collect();
        assert!(lost.is_empty(), "{}: lost {lost:?}", replica.door);
    }
    apply(&home, "by-way-of-it").await.unwrap();
}

/// From this sync of one thread on, all fail.
const GOOD_SYNCS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_fails_ends_the_replica_and_what_waited_for_it_is_not_acknowledged() {
    if !privileged::privileged("faults in the kernel's answers") {
        return;
    }
    let mut only = Replica::new();
    // A replica that outlived its tracer would outlive the test.
    only.through =
        ["strace", "-f", "-qqq", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("inject=fdatasync:error=EIO:when={GOOD_SYNCS}+")])
            .chain(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned))
            .collect();
    only.start(&WEST, None);
    until(&only.socket(), "it leads", |status| status.leader == 1).await;
    let mut acknowledged = BTreeSet::new();
    let mut refused = None;
    for n in 0..MANY {
        let name = format!("w{n}");
        match apply(&only.socket(), &name).await {
            Ok(_) => drop(acknowledged.insert(name)),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("the disk fails");
    assert_eq!(only.ended().await, Some(1));
    let said = last_words(&only);
    println!("{} writes, then {refused}; {said}", acknowledged.len());
    assert!(said.contains("this replica has stopped") && said.contains("Input/output error"), "{said}");
    assert!(said.contains("/data/raft/"), "the file is named: {said}");
    // More syncs than that many writes would be acknowledged without.
    assert!(acknowledged.len() < GOOD_SYNCS, "{} acknowledged", acknowledged.len());
    // A write that failed is not tried again on the same file: whatever is there after a new start is what counts.
    only.through.clear();
    only.start(&[], None);
    until(&only.socket(), "it leads again", |status| status.leader == 1).await;
    let names: BTreeSet<String> = names(&only.socket()).await.into_iter().collect();
    let lost: Vec<&String> = acknowledged.difference(&names).collect();
    assert!(lost.is_empty(), "lost {lost:?}");
    assert!(names.len() <= acknowledged.len() + 1, "one was open: {} of {}", names.len(), acknowledged.len());
    apply(&only.socket(), "again").await.unwrap();
}
