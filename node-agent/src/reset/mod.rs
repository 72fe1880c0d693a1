//! Connections to backends that are gone are reset, so that clients connect anew at once, to another one, and do not wait
//! for what can't answer any more.
//!
//! Sockets were given their backend by the kernel programs, which noted it in `REVERSE`: by socket, so a connection that
//! a client made to a backend's own address is left alone. A socket can only be looked for within its network namespace;
//! those are found by the processes of the hooked cgroup.

mod diag;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
};

use aya::maps::{HashMap, MapData};
use ebpf_shared::{ReverseKey, service::ReverseValue};

use crate::{
    cni::{Netns, NetnsError},
    kernel::Gone,
};

/// Directories of cgroups that are looked at, at most: a node runs a few hundred pods, of a few containers each.
const MAX_CGROUPS: usize = 65_536;
/// Of `REVERSE`, twice: programs write to it while it is read.
const MAX_ENTRIES: usize = 2 * ebpf_shared::limits::REVERSE as usize;

/// Finds the sockets that talk to backends, and ends their connections.
pub struct Resetter {
    reverse: HashMap<MapData, ReverseKey, ReverseValue>,
    cgroup: PathBuf,
}

/// Cookies of sockets, and what each is connected to.
type Sockets = BTreeSet<(u64, u8, SocketAddr)>;

impl Resetter {
    /// Of the sockets of the processes in and below `cgroup`.
    pub(crate) fn new(reverse: HashMap<MapData, ReverseKey, ReverseValue>, cgroup: PathBuf) -> Self {
        Self { reverse, cgroup }
    }

    /// Ends the connections to these backends; returns how many sockets had one.
    ///
    /// # Errors
    /// The processes can't be listed, or the kernel refused.
    pub fn reset(&self, gone: &[Gone]) -> io::Result<usize> {
        let mut namespaces = self.sockets(gone)?;
        let mut done = 0;
        let mut seen = BTreeSet::new();
        for process in processes(&self.cgroup)? {
            if namespaces.is_empty() {
                break;
            }
            let Ok(netns) = Netns::of_process(process) else { continue };
            if !seen.insert(netns.id()) {
                continue;
            }
            let Some(sockets) = netns.cookie().ok().and_then(|cookie| namespaces.remove(&cookie)) else {
                continue;
            };
            done += netns.run(move || diag::destroy(&sockets)).map_err(enter)??;
        }
        Ok(done)
    }

    /// By the cookie of their namespace.
    fn sockets(&self, gone: &[Gone]) -> io::Result<BTreeMap<u64, Sockets>> {
        let gone: BTreeMap<u32, Gone> = gone.iter().map(|each| (each.number, *each)).collect();
        let mut namespaces: BTreeMap<u64, Sockets> = BTreeMap::new();
        for entry in self.reverse.iter().take(MAX_ENTRIES) {
            let (key, value) = entry.map_err(io::Error::other)?;
            if let Some(gone) = gone.get(&value.backend) {
                namespaces.entry(value.netns).or_default().insert((key.socket, gone.protocol, gone.at));
            }
        }
        Ok(namespaces)
    }

    /// Goes on resetting, on a thread of its own: it must not hold up the writes that come next. Ends with the sender.
    ///
    /// # Errors
    /// There can be no thread.
    pub fn start(self) -> io::Result<Sender<Vec<Gone>>> {
        let (send, receive) = channel();
        std::thread::Builder::new().name("reset".to_owned()).spawn(move || self.work(&receive))?;
        Ok(send)
    }

    fn work(self, receive: &Receiver<Vec<Gone>>) {
        while let Ok(mut gone) = receive.recv() {
            // One walk for all that came while the last one went on.
            gone.extend(receive.try_iter().flatten());
            match self.reset(&gone) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "connections to backends that are gone were reset"),
                Err(error) => tracing::warn!(%error, "connections to backends that are gone go on"),
            }
        }
    }
}

fn enter(error: NetnsError) -> io::Error {
    io::Error::other(error)
}

/// The processes of a cgroup and all below it. What ends meanwhile is left out.
fn processes(cgroup: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut next = vec![cgroup.to_owned()];
    let mut count = 0;
    while let Some(dir) = next.pop() {
        count += 1;
        if count > MAX_CGROUPS {
            return Err(io::Error::other(format!("{}: more than {MAX_CGROUPS} cgroups", cgroup.display())));
        }
        let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) else { continue };
        // 0: in a process namespace that can't be seen from here.
        found
            .extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|process| *process != 0));
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
    }
    Ok(found)
}
