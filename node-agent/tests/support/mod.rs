//! A place where kernel programs can be tried without touching the machine: a thread with a network namespace
//! and a mount namespace of its own (so nothing that is pinned outlives it, even after a crash), and a cgroup
//! that is removed after.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod frames;
pub mod pods;
pub mod policy;
pub mod proxy;
pub mod reference;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// How many cases a test draws: `EQUIVALENCE_CASES`, or so many if that is less or not set.
pub fn cases(usual: usize) -> usize {
    let wanted = std::env::var("EQUIVALENCE_CASES").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(0).max(usual)
}

/// Where a test may pin, and which cgroup it may hook.
pub struct Sandbox {
    dir: tempfile::TempDir,
    pub cgroup: PathBuf,
}

impl Sandbox {
    pub fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    fn make() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("isthmus-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cgroup = cgroup2_root().join(name);
        fs::create_dir(&cgroup).expect("root may make a cgroup");
        Self { dir: tempfile::tempdir().expect("a temporary directory"), cgroup }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // With the mount goes what is pinned on it, and with that the links.
        let _ = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
        remove_cgroup(&self.cgroup);
    }
}

/// With those inside, which a test that fails leaves behind.
fn remove_cgroup(dir: &Path) {
    for inner in fs::read_dir(dir).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&inner.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Runs a test in a sandbox. Says so and does nothing if `SKIP_PRIVILEGED=1`.
pub fn in_sandbox(test: impl FnOnce(&Sandbox) + Send + 'static) {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root and eBPF, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
            .expect("needs root; set SKIP_PRIVILEGED=1 to do without these tests");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("a mount namespace of our own is ours to change");
        speak_at_once();
        run(&["ip", "link", "set", "lo", "up"]);
        test(&Sandbox::make());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Interfaces of this thread's network namespace may use their link-local addresses as soon as they are up, as those that the
/// agent makes: else they can't ask for their neighbours for the seconds that duplicates are looked for, and after three
/// questions that it could not ask the kernel drops what waits for the answer.
pub fn speak_at_once() {
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").expect("our own namespace");
}

/// Runs a command in this thread's namespaces.
pub fn run(command: &[&str]) {
    let status = std::process::Command::new(command[0]).args(&command[1..]).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
}

/// Where the cgroup v2 hierarchy is mounted.
fn cgroup2_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup v2 is mounted");
    // proc(5): the fifth field is the mount point.
    Path::new(line.split(' ').nth(4).expect("proc(5)")).to_owned()
}
