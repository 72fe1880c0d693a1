//! Several hosts on one machine: network namespaces on a bridge, control planes, agents and pods in them.
//!
//! One API for tests, demo and benchmarks. Nothing outside the namespaces that it makes is touched: not even the
//! bridge is in the machine's own namespace.

pub mod ledger;
pub mod plan;
pub mod process;
pub mod traffic;

mod cluster;
mod envoy;
mod pod;

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
pub use cluster::Cluster;
use ledger::{Ledger, Made, run};
use nix::fcntl::{Flock, FlockArg};
pub use plan::ClusterPlan;
pub use pod::{DataPlane, Pod, PodPlan};
pub use process::{Place, Process, wait_until};

/// All that a testbed has on disk.
const FOLDER: &str = "/run/isthmus-testbed";
/// Beside the folder, so that it outlives it.
const LEDGER: &str = "/run/isthmus-testbed.ledger";
const LOCK: &str = "/run/isthmus-testbed.lock";

/// A running testbed. Dropping it removes all that it made.
#[derive(Debug)]
pub struct Testbed {
    /// What was made, for removal.
    pub ledger: Ledger,
    /// Where the binaries are.
    pub binaries: PathBuf,
    cgroup: PathBuf,
    keep: bool,
    // Last: the next testbed may start only when everything above is gone.
    _lock: Flock<File>,
}

impl Testbed {
    /// Removes a stale testbed, then makes the underlay of a new one. Only one exists at a time on a machine: a
    /// second caller waits.
    ///
    /// # Errors
    /// Names what the machine lacks.
    pub fn start() -> Result<Self> {
        let lacking = lacking();
        if !lacking.is_empty() {
            bail!("this machine can't run the testbed: {}", lacking.join("; "));
        }
        let lock = lock()?;
        clean_up()?;
        let ledger = Ledger::at(LEDGER.into());
        ledger.note(&Made::Folder(FOLDER.into()))?;
        fs::create_dir_all(FOLDER)?;
        let cgroup = cgroup2()?.join("isthmus-testbed");
        ledger.note(&Made::Cgroup(cgroup.clone()))?;
        fs::create_dir_all(&cgroup)?;
        let bed = Self { ledger, binaries: binaries()?, cgroup, keep: false, _lock: lock };
        let underlay = plan::underlay_namespace();
        bed.add_namespace(&underlay)?;
        ip(&["-n", &underlay, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &underlay, "link", "set", "br0", "up"])?;
        Ok(bed)
    }

    /// Leaves everything running when this value is dropped; the next testbed, or `clean_up`, removes it.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// The folder of the testbed, for logs and sockets.
    pub fn folder(&self) -> &'static Path {
        Path::new(FOLDER)
    }

    /// A program that was built with this one.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// A namespace with its loopback up. Its interfaces do not look for duplicates of their link-local addresses, without
    /// which they could not ask for their neighbours for the first seconds.
    fn add_namespace(&self, name: &str) -> Result<()> {
        self.ledger.note(&Made::Namespace(name.to_owned()))?;
        ip(&["netns", "add", name])?;
        let at_once = ["-q", "-w", "net.ipv6.conf.default.accept_dad=0"].map(str::to_owned);
        run(&mut Place::namespace(name).command(Path::new("sysctl"), &at_once))?;
        ip(&["-n", name, "link", "set", "lo", "up"])
    }

    /// A host on the underlay: a namespace with one interface, `eth0`; `port` is its end at the bridge.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn add_host(
        &self,
        namespace: &str,
        port: &str,
        address: Ipv4Addr,
        address6: Option<Ipv6Addr>,
    ) -> Result<()> {
        let underlay = plan::underlay_namespace();
        self.add_namespace(namespace)?;
        ip(&[
            "link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", port, "netns",
            &underlay,
        ])?;
        ip(&["-n", &underlay, "link", "set", port, "master", "br0", "up"])?;
        ip(&["-n", namespace, "address", "add", &format!("{address}/16"), "dev", "eth0"])?;
        if let Some(address) = address6 {
            ip(&["-n", namespace, "address", "add", &format!("{address}/64"), "dev", "eth0", "nodad"])?;
        }
        ip(&["-n", namespace, "link", "set", "eth0", "up"])
    }

    /// From now on the underlay carries no packet that is from or to an address of these, as the networks of clouds carry
    /// none of pods.
    ///
    /// # Errors
    /// The kernel has no filters for bridges.
    pub fn refuse_on_underlay(&self, nets: &[&str]) -> Result<()> {
        let mut rules = "add table bridge underlay\n\
             add chain bridge underlay passing { type filter hook forward priority 0; }\n"
            .to_owned();
        for net in nets {
            let family = if net.contains(':') { "ip6" } else { "ip" };
            for end in ["saddr", "daddr"] {
                let _ = writeln!(rules, "add rule bridge underlay passing {family} {end} {net} counter drop");
            }
        }
        let place = Place::namespace(plan::underlay_namespace());
        run(&mut place.command(Path::new("nft"), &[rules])).map(drop)
    }

    /// A cgroup of a node: its pods' processes live in it.
    fn add_cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(name);
        self.ledger.note(&Made::Cgroup(path.clone()))?;
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if !self.keep {
            for left in self.ledger.undo() {
                eprintln!("testbed: left behind: {left}");
            }
        }
    }
}

/// Removes what an earlier testbed left, by the names in its ledger.
///
/// # Errors
/// Names what could not be removed.
pub fn clean_up() -> Result<()> {
    let left = Ledger::at(LEDGER.into()).undo();
    if !left.is_empty() {
        bail!("an earlier testbed could not be removed: {}", left.join("; "));
    }
    Ok(())
}

/// What a testbed needs and this machine lacks, each a sentence. Empty: all is there.
pub fn lacking() -> Vec<String> {
    let mut lacking = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        lacking.push("it needs root: run it as root or with sudo".to_owned());
    }
    for program in ["ip", "nsenter", "nft"] {
        if Command::new(program).arg("--version").output().is_err()
            && Command::new(program).arg("-V").output().is_err()
        {
            lacking.push(format!("it needs the program {program}: run `make setup`"));
        }
    }
    if !fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("\tbpf\n") {
        lacking.push("the kernel has no BPF file system: use a kernel with CONFIG_BPF_SYSCALL".to_owned());
    }
    if cgroup2().is_err() {
        lacking.push(
            "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup`"
                .to_owned(),
        );
    }
    lacking
}

fn lock() -> Result<Flock<File>> {
    let file = File::create(LOCK).with_context(|| format!("opening {LOCK}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| e)
        .context("waiting for another testbed to end")
}

/// Where cgroup v2 is mounted.
fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup v2 hierarchy is mounted")
}

/// The folder of the binaries that were built together with the running one.
fn binaries() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let mut folder = exe.parent().context("the running program has no folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("target folder")?;
    }
    for name in ["control-plane", "node-agent", "isthmus-cni", "proxy", "clustermesh", "shop"] {
        if !folder.join(name).exists() {
            bail!("{} is not built: run `cargo build --workspace --bins` first", folder.join(name).display());
        }
    }
    Ok(folder.to_owned())
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args)).map(drop)
}
