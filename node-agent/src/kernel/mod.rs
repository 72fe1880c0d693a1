//! The kernel's half of the node: loads the programs of `node-agent/ebpf`, pins them so that traffic flows
//! while the agent restarts, and gives every map a typed handle.
//!
//! ## What lies below the bpffs directory
//!
//! | path | what | lives until |
//! |---|---|---|
//! | `maps/<NAME>` | every map | [`unload`] |
//! | `links/tc-<ifindex>-from_pod`, `-to_pod` | a pod's doors | [`Kernel::detach_pod`], or the interface is gone |
//! | `links/cgroup-<inode>-<program>` | the socket hooks of one cgroup | [`unload`] |
//!
//! A link holds its program, so programs need no pins of their own, and a new agent replaces the program
//! behind each link in one step: every packet meets either the old or the new one. The maps are reused as
//! they are: connections survive. `maps/FORMAT` says which layout they have, and is written last, so a first
//! start that died half-way is recognised and begun again. Maps of another format are refused
//! ([`KernelError::Format`]): replacing them under running pods would forget connections and policy, so that
//! is for an operator to do on a drained node ([`unload`]).
//!
//! The directory has to be on a bpffs that outlives the agent's process; where it is not on one,
//! [`Kernel::load`] mounts one there, which is only as lasting as the mount namespace it is in.
//!
//! ## Order of writes
//!
//! Old or new, never neither: a class of policy is never edited in place. [`Kernel::put_class`] writes a
//! changed one beside the old under another number, rules first; then each endpoint is moved by one write;
//! then [`Kernel::remove_class`] removes the old. A service is replaced in one write, its new backends being
//! there already: see [`Services`].

mod classes;
mod error;
mod events;
mod generation;
mod identities;
mod links;
mod mapped;
mod object;
mod pins;
pub mod rules;
mod services;
mod sidecars;
mod sight;
mod slab;
mod sys;
mod table;
pub mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use ebpf_shared::{Direction, Metric, Reason, limits, metrics};

pub use self::error::KernelError;
pub use self::events::{EventRing, EventStream};
pub use self::identities::Identities;
pub use self::pins::{Pins, unload};
pub use self::rules::RulePrefix;
pub use self::services::{Gone, Services};
pub use self::sight::IdentitySight;
pub use self::table::{HashTable, TrieTable};
pub use ebpf_shared;

use self::generation::Generation;
use self::mapped::Mapped;
use self::services::ServiceTables;
use ebpf_shared::{CapturedKey, Class, ConnEntry, ConnKey, Endpoint, Netns, PolicyValue};

/// The loaded programs and their maps.
///
/// Writes to `identities`, `endpoints` and policy raise the generation, by which established connections are
/// judged anew.
pub struct Kernel {
    pub identities: Identities,
    /// By index of the host-side interface. An interface without an entry has no traffic.
    pub endpoints: HashTable<u32, Endpoint>,
    /// For looking; written by the loader and the programs only.
    pub conntrack: HashTable<ConnKey, ConnEntry>,
    classes: HashTable<u32, Class>,
    policy: TrieTable<RulePrefix, PolicyValue>,
    /// Rules of each class, so that removing a class need not read all policy.
    installed: BTreeMap<u32, Vec<RulePrefix>>,
    /// At every address that they have.
    pub services: Services,
    netns: HashTable<u64, Netns>,
    captured: HashTable<CapturedKey, u8>,
    lost: PerCpuArray<MapData, u64>,
    metrics: PerCpuArray<MapData, Metric>,
    events: Option<EventRing>,
    programs: Ebpf,
    pins: Pins,
}

/// What the verifier and the JIT made of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    pub name: String,
    /// Instructions that the verifier walked, all paths added up; its limit is a million.
    pub verified_instructions: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
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
        let object = object::embedded()?;
        let cgroup = pins::open_cgroup(cgroup_dir)?;
        let pins = Pins::prepare(bpffs_dir)?;

        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for name in object::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut programs =
            loader.load(object).map_err(|source| KernelError::Load { source: Box::new(source) })?;

        let mut format: Array<MapData, u32> = take(&mut programs, "FORMAT")?;
        format.set(0, limits::FORMAT, 0).map_err(|source| KernelError::Map { name: "FORMAT", source })?;
        let generation = Arc::new(Generation::new(take(&mut programs, "GENERATION")?));
        // An agent that died between a write and its generation leaves flows judged by what was before.
        generation.raise()?;

        links::load_programs(&mut programs)?;
        links::take_over(&programs, &pins)?;
        links::hook_sockets(&mut programs, &pins, &cgroup)?;

        let judged = Some(&generation);
        let policy = TrieTable::new("POLICY", take(&mut programs, "POLICY")?, judged);
        let installed = classes::installed(&policy)?;
        let services = Services::recover(ServiceTables {
            services: HashTable::new("SERVICES", take(&mut programs, "SERVICES")?, None),
            backends: HashTable::new("BACKENDS", take(&mut programs, "BACKENDS")?, None),
            sources: TrieTable::new("SOURCES", take(&mut programs, "SOURCES")?, None),
            maglev: Mapped::open("MAGLEV", &pins.map("MAGLEV"), limits::MAGLEV)?,
            served: Mapped::open("SERVED", &pins.map("SERVED"), limits::SERVED_BITS / 32)?,
        })?;
        Ok(Self {
            identities: Identities::new(
                HashTable::new("HOSTS", take(&mut programs, "HOSTS")?, judged),
                TrieTable::new("CIDRS", take(&mut programs, "CIDRS")?, judged),
            )?,
            endpoints: HashTable::new("ENDPOINTS", take(&mut programs, "ENDPOINTS")?, judged),
            conntrack: HashTable::new("CONNTRACK", take(&mut programs, "CONNTRACK")?, None),
            classes: HashTable::new("CLASSES", take(&mut programs, "CLASSES")?, judged),
            policy,
            installed,
            services,
            netns: HashTable::new("NETNS", take(&mut programs, "NETNS")?, None),
            captured: HashTable::new("CAPTURED", take(&mut programs, "CAPTURED")?, None),
            lost: take(&mut programs, "LOST")?,
            metrics: take(&mut programs, "METRICS")?,
            events: Some(EventRing::new(take(&mut programs, "EVENTS")?)),
            programs,
            pins,
        })
    }

    /// Puts the doors on a pod's host-side interface, which is looked up in the caller's network namespace.
    /// Until `endpoints` has an entry for it, nothing passes. Doors that are there already are kept.
    ///
    /// Returns the index of the interface.
    pub fn attach_pod(&mut self, ifname: &str) -> Result<u32, KernelError> {
        links::attach_pod(&mut self.programs, &self.pins, ifname)
    }

    /// Takes the doors off an interface; what is not there is no error. From then on its traffic is not
    /// judged: remove the interface first.
    pub fn detach_pod(&mut self, ifindex: u32) -> Result<(), KernelError> {
        links::detach_pod(&self.pins, ifindex)
    }

    /// Forgets all connections of a pod's interface.
    pub fn forget_connections(&mut self, ifindex: u32) -> Result<(), KernelError> {
        for key in self.conntrack.keys()? {
            if key.ifindex == ifindex {
                self.conntrack.delete(&key)?;
            }
        }
        Ok(())
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
        let values = self.lost.get(&0, 0).map_err(|source| KernelError::Map { name: "LOST", source })?;
        Ok(values.iter().sum())
    }

    /// Packets and bytes by direction and reason; cells that never counted are left out.
    pub fn metrics(&self) -> Result<Vec<(Direction, Reason, Metric)>, KernelError> {
        let mut cells = Vec::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for reason in Reason::ALL {
                let per_cpu = self
                    .metrics
                    .get(&metrics::cell(direction, reason), 0)
                    .map_err(|source| KernelError::Map { name: "METRICS", source })?;
                let sum = per_cpu.iter().fold(Metric::default(), |sum, cpu| Metric {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                });
                if sum.packets > 0 {
                    cells.push((direction, reason, sum));
                }
            }
        }
        Ok(cells)
    }

    /// How much of the verifier's and the machine's means each program takes.
    pub fn program_sizes(&self) -> Result<Vec<ProgramSize>, KernelError> {
        let mut sizes = Vec::new();
        for (name, program) in self.programs.programs() {
            let info = program.info().map_err(|source| KernelError::program(name, source))?;
            sizes.push(ProgramSize {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
                machine_code: info.size_jitted(),
            });
        }
        sizes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(sizes)
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
        let name = links::door(direction);
        let program = self.programs.program(name).ok_or(KernelError::Missing { what: "program", name })?;
        let program: &SchedClassifier =
            program.try_into().map_err(|source| KernelError::program(name, source))?;
        let result = program
            .test_run(TestRunOptions { data_in: Some(frame), repeat: times, ..TestRunOptions::default() })
            .map_err(|source| KernelError::program(name, source))?;
        Ok((result.return_value != TC_ACT_SHOT, result.duration))
    }
}

const TC_ACT_SHOT: u32 = 2;

/// Takes a map out of the object, as the type that its owner wants.
fn take<T>(programs: &mut Ebpf, name: &'static str) -> Result<T, KernelError>
where
    T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = programs.take_map(name).ok_or(KernelError::Missing { what: "map", name })?;
    T::try_from(map).map_err(|source| KernelError::Map { name, source })
}
