//! What the kernel is to hold beside what resources and pods say: how this node is set up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use ebpf_shared::nat::NodeConfig;
use ebpf_shared::overlay::Hop;
use ipnet::IpNet;

use super::mapped::Counters;
use super::pins::Pins;
use super::services::Misshapen;
use super::{Kernel, KernelError, links, look, sys};

/// `None`: that is not known here, as without an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Around {
    /// `NODES`; not known where there is no tunnel either.
    pub hops: Option<BTreeMap<IpNet, Hop>>,
    /// `LOCALS`.
    pub locals: Option<BTreeSet<IpAddr>>,
    /// `CONTROL`.
    pub control: Option<BTreeSet<SocketAddr>>,
    /// `CONFIG`.
    pub config: Option<NodeConfig>,
    /// Interfaces of pods, which are to have the programs of a door.
    pub pods: BTreeSet<u32>,
    /// Other places of programs, by the name of their pin.
    pub places: BTreeMap<String, &'static str>,
    /// Numbers of the programs that are to be there.
    pub programs: BTreeMap<String, u32>,
    /// The first numbers of `EPOCHS` and of `BACKEND_EPOCH`: all that only the agent adds to.
    pub epochs: BTreeMap<&'static str, Vec<u64>>,
}

impl Kernel {
    /// What this agent has set up.
    pub fn around(&self) -> Around {
        let id = |(name, program): (&str, &aya::programs::Program)| {
            Some((name.to_owned(), program.info().ok()?.id()))
        };
        let epochs = [("EPOCHS", self.epochs.noted()), ("BACKEND_EPOCH", self.services.epochs_noted())];
        Around {
            programs: self.programs.programs().filter_map(id).collect(),
            epochs: epochs.into(),
            ..self.around.clone()
        }
    }
}

/// A place without the program that is to be there: its pin, what is there, what is to be.
pub(crate) type Bare = (String, String, String);

/// How many places are to have a program, and those that have not.
pub(crate) fn bare(bpffs_dir: &Path, around: &Around) -> (usize, Vec<Bare>) {
    let pins = Pins::at(bpffs_dir);
    let mut places = around.places.clone();
    places.extend(around.pods.iter().flat_map(|ifindex| links::door_links(*ifindex)));
    let lacks = |(link, program): (&String, &&'static str)| {
        let found = match found(&pins, link, program, around.programs.get(*program)) {
            Ok(()) => return None,
            Err(found) => found,
        };
        Some((link.clone(), found, format!("program {program}")))
    };
    (places.len(), places.iter().filter_map(lacks).collect())
}

/// What is there instead.
fn found(pins: &Pins, link: &str, program: &str, number: Option<&u32>) -> Result<(), String> {
    let pinned = sys::open_pinned(&pins.link(link)).map_err(|_| "nothing".to_owned())?;
    let info = sys::link_info(pinned.as_fd()).map_err(|error| error.to_string())?;
    if !info.is_attached() {
        return Err("nothing: it is detached".to_owned());
    }
    let there = aya::programs::loaded_programs().flatten().find(|there| there.id() == info.program);
    let name = there.and_then(|there| there.name_as_str().map(str::to_owned)).unwrap_or_default();
    if name != program {
        return Err(format!("program {name}"));
    }
    match number {
        Some(number) if *number != info.program => Err(format!("another agent's program {name}")),
        _ => Ok(()),
    }
}

/// A counter, what it is, and what it is to be.
pub(crate) type Miscounted = (u32, u64, u64);

/// A map of counters, how many, and those that are wrong.
pub(crate) type Counted = (&'static str, usize, Vec<Miscounted>);

/// Counters by which flows know whether they are to be judged anew, and which are not what the agent has made of them:
/// had one gone back, a flow could go on by a policy that is no more.
///
/// # Errors
/// A map can't be read.
pub(crate) fn miscounted(bpffs_dir: &Path, around: &Around) -> Result<Vec<Counted>, KernelError> {
    let pins = Pins::at(bpffs_dir);
    let one = |(name, wanted): (&&'static str, &Vec<u64>)| {
        let found = Counters::look(&pins.map(name), u32::try_from(wanted.len()).unwrap_or(u32::MAX))?.noted();
        let differ = (0..).zip(found.into_iter().zip(wanted)).filter(|(_, (found, wanted))| found != *wanted);
        Ok((*name, wanted.len(), differ.map(|(at, (found, wanted))| (at, found, *wanted)).collect()))
    };
    around.epochs.iter().map(one).collect()
}

/// Services whose table is none that their backends make.
pub(crate) fn misshapen(bpffs_dir: &Path) -> Result<Vec<Misshapen>, KernelError> {
    Ok(look::services(&Pins::at(bpffs_dir))?.misshapen())
}
