//! The kernel's half of the node: loads the programs of `node-agent/ebpf`, pins them so that traffic flows
//! while the agent restarts, and gives every map a typed handle.
//!
//! ## What lies below the bpffs directory
//!
//! | path | what | lives until |
//! |---|---|---|
//! | `maps/<NAME>` | every map | [`unload`] |
//! | `links/tc-<ifindex>-pod_asks`, `-from_pod`, `-to_pod`, `-pod_answered` | a pod's door | [`Kernel::detach_pod`], or the interface is gone |
//! | `links/tc-<ifindex>-host_in`, `-host_out` | the node itself, at pods and at its own interfaces | with the others there |
//! | `links/tc-<ifindex>-from_net`, `-to_net` | the node's own interfaces, and the tunnel's device | [`Kernel::set_net`], or the interface is gone |
//! | `links/xdp-<ifindex>-driver`, `-generic` | the short cut there | the same |
//! | `links/tunnel-<ifindex>-from_overlay`, `-to_overlay` | the tunnel's device | [`unload`], or the interface is gone |
//! | `links/cgroup-<inode>-<program>` | the socket hooks of one cgroup | [`unload`] |
//!
//! A link holds its program, so programs need no pins of their own, and a new agent replaces the program
//! behind each link in one step: every packet meets either the old or the new one. The maps are reused as
//! they are: connections survive. `maps/FORMAT` says which layout they have, and is written last, so a first
//! start that died half-way is recognised and begun again. Maps of an older format are replaced while its
//! programs go on (`migrate`), those of a newer one are refused ([`KernelError::Format`]): what they say is not known here,
//! so going back is for an operator to do on a drained node ([`unload`]).
//!
//! The directory has to be on a bpffs that outlives the agent's process; where it is not on one,
//! [`Kernel::load`] mounts one there, which is only as lasting as the mount namespace it is in.
//!
//! ## Order of writes
//!
//! Old or new, never neither: what one packet is judged by changes with one write, see [`ebpf_shared::policy`], and
//! [`crate::desired`] for the order of the others. A service is replaced in one write, its new backends being
//! there already: see [`Services`].

mod around;
mod classes;
mod connected;
pub mod dump;
mod endpoints;
mod epochs;
mod error;
mod events;
pub mod flatten;
mod flows;
mod grace;
mod host;
pub(crate) mod identities;
mod inventory;
mod links;
mod look;
mod mapped;
mod migrate;
mod nodes;
mod object;
mod pins;
pub mod rules;
pub mod ruleset;
mod services;
mod sidecars;
mod sight;
mod slab;
mod sys;
mod table;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use ebpf_shared::{Direction, Metric, Reason, limits};

pub use self::around::Around;
pub(crate) use self::around::{bare, miscounted, misshapen};
pub use self::connected::Connections;
pub use self::endpoints::Endpoints;
pub use self::error::KernelError;
pub use self::events::{EventRing, EventStream};
pub use self::flows::FlowCounters;
pub use self::grace::Grace;
pub use self::identities::{Cidr, Identities};
pub use self::inventory::{MapSize, ProgramSize};
pub use self::links::ShortCut;
pub(crate) use self::look::strayed;
pub use self::look::{Held, look};
pub use self::nodes::Nodes;
pub use self::pins::{Pins, is_bpffs, unload};
pub use self::ruleset::RulePrefix;
pub(crate) use self::services::flags as service_flags;
pub use self::services::{Gone, Services};
pub use self::sight::IdentitySight;
pub use self::table::{HashTable, TrieTable};
pub use ebpf_shared;

use self::epochs::Epochs;
use self::host::HostTables;
use self::mapped::{Counters, Mapped};
use self::migrate::Migration;
use self::services::ServiceTables;
use crate::reset::Resetter;
use ebpf_shared::nat::{NatKey, NatValue, NodeConfig};
use ebpf_shared::overlay::Hop;
use ebpf_shared::{CapturedKey, ConnEntry, ConnKey, Netns, PeerKey, Proxy, RuleValue, Sides, Unnamed};
use ipnet::IpNet;

/// The loaded programs and their maps.
///
/// Writes to `identities`, `endpoints` and policy raise epochs, by which established connections that they concern are
/// judged anew.
pub struct Kernel {
    pub identities: Identities,
    /// By index of the host-side interface. An interface without an entry has no traffic.
    pub endpoints: Endpoints,
    /// For looking; written by the loader and the programs only.
    pub conntrack: HashTable<ConnKey, ConnEntry>,
    host: HostTables,
    classes: HashTable<u32, Unnamed>,
    peers: HashTable<PeerKey, Sides>,
    rules: TrieTable<RulePrefix, RuleValue>,
    epochs: Arc<Epochs>,
    /// At every address that they have.
    pub services: Services,
    netns: HashTable<u64, Netns>,
    captured: HashTable<CapturedKey, u8>,
    /// By slot.
    pub proxies: HashTable<u32, Proxy>,
    /// Who is behind the tunnel.
    pub nodes: Nodes,
    /// For looking; written by the programs only.
    pub nat: HashTable<NatKey, NatValue>,
    config: Array<MapData, NodeConfig>,
    accelerated: PerCpuArray<MapData, u64>,
    /// What is counted of flows beside the events.
    pub flows: FlowCounters,
    events: Option<EventRing>,
    format: Array<MapData, u32>,
    programs: Ebpf,
    pins: Pins,
    cgroup: PathBuf,
    migration: Option<Migration>,
    grace: Grace,
    around: Around,
}

impl Kernel {
    /// Loads the programs, takes over what an earlier agent has pinned below `bpffs_dir`, and hooks the
    /// sockets of the processes in `cgroup_dir` and below.
    ///
    /// # Errors
    ///
    /// Built without programs, maps of another format, `cgroup_dir` is not a cgroup of its own (the root
    /// would hook every process of the machine), or the kernel refused: see [`KernelError`].
    pub fn load(bpffs_dir: &Path, cgroup_dir: &Path) -> Result<Self, KernelError> {
        Self::load_sized(bpffs_dir, cgroup_dir, &[])
    }

    /// The same with other sizes of maps than the usual ones, where the maps are not there yet.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn load_sized(
        bpffs_dir: &Path,
        cgroup_dir: &Path,
        sizes: &[(&'static str, u32)],
    ) -> Result<Self, KernelError> {
        let object = object::embedded()?;
        let cgroup = pins::open_cgroup(cgroup_dir)?;
        let (pins, older) = Pins::prepare(bpffs_dir)?;

        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for name in object::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut programs =
            loader.load(object).map_err(|source| KernelError::Load { source: Box::new(source) })?;

        let format = take(&mut programs, "FORMAT")?;
        let epochs = Arc::new(Epochs::open(&pins)?);
        // An agent that died between a write and its epoch leaves flows judged by what was before.
        epochs.raise_all();

        links::load_programs(&mut programs)?;
        let open = cgroup.clone();
        let migration = older.map(|from| Migration::new(from, cgroup.clone()));
        if migration.is_none() {
            links::take_over(&programs, &pins)?;
            links::hook_sockets(&mut programs, &pins, &cgroup)?;
        }

        let services = Services::recover(ServiceTables {
            services: HashTable::new("SERVICES", take(&mut programs, "SERVICES")?),
            backends: HashTable::new("BACKENDS", take(&mut programs, "BACKENDS")?),
            sources: TrieTable::new("SOURCES", take(&mut programs, "SOURCES")?),
            answerers: HashTable::new("ANSWERERS", take(&mut programs, "ANSWERERS")?),
            maglev: Mapped::open("MAGLEV", &pins.map("MAGLEV"), 2 * size(&pins, "MAGLEV")?)?,
            served: Mapped::open("SERVED", &pins.map("SERVED"), limits::SERVED_BITS / 32)?,
            epoch: Counters::open(&pins.map("BACKEND_EPOCH"), 2)?,
        })?;
        let mut kernel = Self {
            identities: Identities::new(
                HashTable::new("HOSTS", take(&mut programs, "HOSTS")?),
                HashTable::new("LINGERING", take(&mut programs, "LINGERING")?),
                TrieTable::new("CIDRS", take(&mut programs, "CIDRS")?),
                epochs.clone(),
            )?,
            endpoints: Endpoints::new(
                HashTable::new("ENDPOINTS", take(&mut programs, "ENDPOINTS")?),
                epochs.clone(),
            ),
            conntrack: HashTable::new("CONNTRACK", take(&mut programs, "CONNTRACK")?),
            host: HostTables::new(
                HashTable::new("LOCALS", take(&mut programs, "LOCALS")?),
                HashTable::new("CONTROL", take(&mut programs, "CONTROL")?),
                take(&mut programs, "GUARDED")?,
            ),
            classes: HashTable::new("CLASSES", take(&mut programs, "CLASSES")?),
            peers: HashTable::new("PEERS", take(&mut programs, "PEERS")?),
            rules: TrieTable::new("RULES", take(&mut programs, "RULES")?),
            epochs,
            services,
            netns: HashTable::new("NETNS", take(&mut programs, "NETNS")?),
            captured: HashTable::new("CAPTURED", take(&mut programs, "CAPTURED")?),
            proxies: HashTable::new("PROXIES", take(&mut programs, "PROXIES")?),
            nodes: Nodes::new(take(&mut programs, "NODES")?),
            nat: HashTable::new("NAT", take(&mut programs, "NAT")?),
            config: take(&mut programs, "CONFIG")?,
            accelerated: take(&mut programs, "ACCELERATED")?,
            flows: FlowCounters {
                metrics: take(&mut programs, "METRICS")?,
                suppressed: take(&mut programs, "SUPPRESSED")?,
                lost: take(&mut programs, "LOST")?,
                kinds: take(&mut programs, "FLOWS")?,
            },
            events: Some(EventRing::new(take(&mut programs, "EVENTS")?)),
            format,
            programs,
            pins,
            cgroup: cgroup_dir.to_owned(),
            migration,
            grace: Grace::off(),
            around: Around::default(),
        };
        kernel.guard_host()?;
        kernel.around.places = links::socket_links(&open).collect();
        if kernel.migration.is_none() {
            kernel.write_format()?;
        }
        Ok(kernel)
    }

    /// Says that the maps are of this format, and whole.
    fn write_format(&mut self) -> Result<(), KernelError> {
        let error = |source| KernelError::Map { name: "FORMAT", source };
        self.format.set(0, limits::FORMAT, 0).map_err(error)
    }

    /// Says whether the kernel may be asked to be quick while programs are attached; it is not unless this says so.
    pub fn set_grace(&mut self, grace: Grace) {
        self.grace = grace;
    }

    /// Puts the doors on a pod's host-side interface, which is looked up in the caller's network namespace.
    /// Until `endpoints` has an entry for it, nothing passes. Doors that are there already are kept.
    ///
    /// Returns the index of the interface. While an older format is replaced, this is what replaces the doors: its entries
    /// have to be there before.
    pub fn attach_pod(&mut self, ifname: &str) -> Result<u32, KernelError> {
        if self.migration.is_some() {
            return self.migrate_pod(ifname);
        }
        let _short = self.grace.shorten();
        links::attach_pod(&mut self.programs, &self.pins, ifname)
    }

    /// Puts the programs of the tunnel on its device, which is looked up in the caller's network namespace, and says its
    /// index. Those that are there already are kept.
    pub fn attach_tunnel(&mut self, ifname: &str) -> Result<u32, KernelError> {
        let ifindex = links::attach_tunnel(&mut self.programs, &self.pins, ifname)?;
        self.around.places.extend(links::tunnel_links(ifindex));
        Ok(ifindex)
    }

    /// Takes the doors off an interface; what is not there is no error. From then on its traffic is not
    /// judged: remove the interface first.
    pub fn detach_pod(&mut self, ifindex: u32) -> Result<(), KernelError> {
        let _short = self.grace.shorten();
        links::detach_pod(&self.pins, ifindex)
    }

    /// Serves clients outside the mesh at these of the node's own interfaces, which are looked up in the caller's network
    /// namespace, and no more at others. What `node` says is the source of packets to backends elsewhere, which are reached
    /// by the first of the interfaces, or by the tunnel: its device has to be [attached](Self::attach_tunnel) before.
    ///
    /// Returns the way of the short cut at each interface, `driver` or `generic`.
    pub fn set_net(
        &mut self,
        ifnames: &[String],
        node: NodeConfig,
        cut: Option<ShortCut>,
    ) -> Result<BTreeMap<String, &'static str>, KernelError> {
        let error = |source| KernelError::Map { name: "CONFIG", source };
        let first = ifnames.first().map(|ifname| links::index(ifname)).transpose()?;
        let node = NodeConfig { ifindex: first.unwrap_or(0), ..node };
        let tunnel = Some(node.tunnel).filter(|ifindex| *ifindex != 0 && first.is_some());
        self.around.config = Some(node);
        self.config.set(0, node, 0).map_err(error)?;
        for addr in [node.v4, node.v6].iter().filter(|addr| !addr.is_unspecified()) {
            self.services.watch(addr)?;
        }
        let mut keep = BTreeSet::new();
        for ifname in ifnames {
            let ifindex = links::attach_net(&mut self.programs, &self.pins, ifname)?;
            self.around.places.extend(links::net_links(ifindex));
            keep.insert(ifindex);
        }
        if let Some(tunnel) = tunnel {
            links::attach_net_of_tunnel(&mut self.programs, &self.pins, tunnel)?;
            self.around.places.extend(links::net_of_tunnel_links(tunnel));
            keep.insert(tunnel);
        }
        links::detach_net_all_but(&self.pins, &keep)?;
        links::detach_short_cuts_all_but(&self.pins, &keep, cut)?;
        let mut ways = BTreeMap::new();
        for (ifname, cut) in ifnames.iter().zip(cut.iter().cycle()) {
            let (way, link) = links::attach_short_cut(&mut self.programs, &self.pins, ifname, *cut)?;
            self.around.places.insert(link, links::NET_XDP);
            ways.insert(ifname.clone(), way);
        }
        Ok(ways)
    }

    /// Says which node has which addresses, for the tunnel: these and no others.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn set_hops(&mut self, hops: &BTreeMap<IpNet, Hop>) -> Result<(), KernelError> {
        self.around.hops = Some(hops.clone());
        self.nodes.set(hops)
    }

    /// How many entries fit into the maps that the agent writes, by name.
    pub fn sizes(&self) -> Result<BTreeMap<&'static str, u32>, KernelError> {
        WRITTEN.into_iter().map(|name| Ok((name, size(&self.pins, name)?))).collect()
    }

    /// Forgets all connections of a pod's interface.
    pub fn forget_connections(&mut self, ifindex: u32) -> Result<(), KernelError> {
        for key in self.conntrack.keys()? {
            if key.ifindex == ifindex {
                self.conntrack.delete(&key)?;
            }
        }
        self.epochs.raise_all();
        Ok(())
    }

    /// Packets that took the short cut, ever.
    pub fn accelerated(&self) -> Result<u64, KernelError> {
        let error = |source| KernelError::Map { name: "ACCELERATED", source };
        Ok(self.accelerated.get(&0, 0).map_err(error)?.iter().sum())
    }

    /// A look at the connections that does not keep anybody else from the kernel.
    pub fn connections(&self) -> Result<Connections, KernelError> {
        Connections::open(&self.pins)
    }

    /// What ends the connections of sockets to backends that are gone.
    pub fn resetter(&self) -> Result<Resetter, KernelError> {
        let error = |source| KernelError::Map { name: "REVERSE", source };
        let map = MapData::from_pin(self.pins.map("REVERSE")).map_err(error)?;
        let reverse = Map::LruHashMap(map).try_into().map_err(error)?;
        Ok(Resetter::new(reverse, self.cgroup.clone()))
    }

    /// The interfaces that have doors.
    pub fn attached_pods(&self) -> Result<BTreeSet<u32>, KernelError> {
        links::attached_pods(&self.pins)
    }

    /// The ring of flow events. There is one; a second call is an error.
    pub fn events(&mut self) -> Result<EventRing, KernelError> {
        self.events.take().ok_or(KernelError::EventsTaken)
    }

    /// Flow events that found the ring full, ever.
    pub fn lost(&self) -> Result<u64, KernelError> {
        Ok(self.flows.lost()?.iter().map(|(_, _, lost)| lost.packets).sum())
    }

    /// Packets and bytes by direction and reason; cells that never counted are left out.
    pub fn metrics(&self) -> Result<Vec<(Direction, Reason, Metric)>, KernelError> {
        self.flows.packets()
    }

    /// Whether a frame would pass the door of the endpoint with ifindex 1: runs the loaded program on it,
    /// with all its effects on conntrack, counters and events (`BPF_PROG_TEST_RUN`).
    pub fn try_frame(&self, direction: Direction, frame: &[u8]) -> Result<bool, KernelError> {
        self.time_frame(direction, frame, 1).map(|(passes, _)| passes)
    }

    /// As [`Self::try_frame`], so many times; the time is the mean of one run.
    pub fn time_frame(
        &self,
        direction: Direction,
        frame: &[u8],
        times: u32,
    ) -> Result<(bool, Duration), KernelError> {
        let (returned, time) = self.time_program(links::door(direction), frame, times)?;
        // What is sent elsewhere is a refusal, or an answer that a proxy waits for: neither goes on.
        Ok((returned != TC_ACT_SHOT && returned != TC_ACT_REDIRECT, time))
    }

    /// As [`Self::try_frame`], for the node itself.
    pub fn try_host_frame(&self, direction: Direction, frame: &[u8]) -> Result<bool, KernelError> {
        let (returned, _) = self.time_program(links::host_door(direction), frame, 1)?;
        Ok(returned != TC_ACT_SHOT)
    }

    /// Runs one of the programs of interfaces on a frame, so many times; says what it returned, and the mean of one run.
    pub fn time_program(
        &self,
        name: &'static str,
        frame: &[u8],
        times: u32,
    ) -> Result<(u32, Duration), KernelError> {
        let program = self.programs.program(name).ok_or(KernelError::Missing { what: "program", name })?;
        let program: &SchedClassifier =
            program.try_into().map_err(|source| KernelError::program(name, source))?;
        let result = program
            .test_run(TestRunOptions { data_in: Some(frame), repeat: times, ..TestRunOptions::default() })
            .map_err(|source| KernelError::program(name, source))?;
        Ok((result.return_value, result.duration))
    }
}

impl Kernel {
    /// Runs one of the programs of interfaces, the short cut among them, on a frame: what it returned, and the frame that it
    /// left.
    pub fn run_program(&self, name: &'static str, frame: &[u8]) -> Result<(u32, Vec<u8>), KernelError> {
        let program = self.programs.program(name).ok_or(KernelError::Missing { what: "program", name })?;
        // With room for what a program adds.
        let mut left = vec![0; frame.len() + 256];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut left), ..TestRunOptions::default() };
        let error = |source| KernelError::program(name, source);
        let result = match program {
            Program::Xdp(program) => program.test_run(options),
            Program::SchedClassifier(program) => program.test_run(options),
            _ => return Err(KernelError::Missing { what: "program of an interface", name }),
        }
        .map_err(error)?;
        left.truncate(result.data_size_out as usize);
        Ok((result.return_value, left))
    }
}

/// The interfaces that have doors, by the pins of an agent that need not run.
///
/// # Errors
/// The directory can't be read.
pub fn guarded(bpffs_dir: &Path) -> Result<BTreeSet<u32>, KernelError> {
    let pins = Pins::at(bpffs_dir);
    if pins.links().exists() { links::attached_pods(&pins) } else { Ok(BTreeSet::new()) }
}

const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// Maps that the agent writes entry by entry.
const WRITTEN: [&str; 12] = [
    "HOSTS",
    "LINGERING",
    "CIDRS",
    "ENDPOINTS",
    "CLASSES",
    "PEERS",
    "RULES",
    "SERVICES",
    "BACKENDS",
    "SOURCES",
    "NETNS",
    "CAPTURED",
];

/// How many entries fit into a map.
fn size(pins: &Pins, name: &'static str) -> Result<u32, KernelError> {
    let error = |source| KernelError::Map { name, source };
    let map = MapData::from_pin(pins.map(name)).map_err(error)?;
    Ok(map.info().map_err(error)?.max_entries())
}

/// Takes a map out of the object, as the type that its owner wants.
fn take<T>(programs: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = programs.take_map(name).ok_or(KernelError::Missing { what: "map", name })?;
    T::try_from(map).map_err(|source| KernelError::Map { name, source })
}
