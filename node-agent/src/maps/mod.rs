//! Carries writes out. The agent knows the kernel by this trait only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ebpf_shared::{Direction, FlowKind, Metric, Reason, overlay::Hop};
use ipnet::IpNet;
use thiserror::Error;

use crate::desired::{Desired, Limits, MapOp};
use crate::kernel::Around;

mod kernel;
#[cfg(test)]
mod memory;
mod offline;
mod verify;

pub use kernel::KernelMaps;
#[cfg(test)]
pub(crate) use memory::MemoryMaps;
pub use offline::{OnPaper, verify_offline};
pub(crate) use verify::endpoint_value;
pub use verify::{Difference, Verified, fill, verify, verify_around};

/// A write or a call that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}: {reason}")]
pub struct MapError {
    /// What was tried.
    pub what: String,
    /// What the kernel said.
    pub reason: String,
}

/// The maps and programs of one node.
pub trait Maps: Send {
    /// What the maps hold, as the agent before this one left it, rulesets included: what is as it should be is not
    /// written again.
    ///
    /// # Errors
    /// A map can't be read.
    fn snapshot(&mut self) -> Result<Desired, MapError>;

    /// How much fits.
    fn limits(&self) -> Limits {
        Limits::KERNEL
    }

    /// The map that had no room for the write that was refused last, if that was why.
    fn full(&self) -> Option<&'static str> {
        None
    }

    /// Carries out writes in their order, up to the first that is refused. That one may or may not have been made.
    ///
    /// # Errors
    /// The kernel refused one: its place among them, and why.
    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)>;

    /// Attaches the programs to the host's end of a pod's link. From then on every packet of it is judged, so it
    /// is done before the link is up. Attaching twice is fine.
    ///
    /// # Errors
    /// No such link, or the kernel refused.
    fn attach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError>;

    /// Detaches them. That nothing is attached is fine.
    ///
    /// # Errors
    /// The kernel refused.
    fn detach(&mut self, interface: &str, ifindex: u32) -> Result<(), MapError>;

    /// Indices of the interfaces that have the programs.
    ///
    /// # Errors
    /// They can't be listed.
    fn attached(&mut self) -> Result<Vec<u32>, MapError>;

    /// The older map format whose programs still guard pods, until these are attached anew and the rest is
    /// [finished](Self::finish_migration).
    fn migrates_from(&self) -> Option<u32> {
        None
    }

    /// Replaces what is left of the older format's programs, and removes its maps.
    ///
    /// # Errors
    /// The kernel refused. The same once more goes on from there.
    fn finish_migration(&mut self) -> Result<(), MapError> {
        Ok(())
    }

    /// What the kernel is to hold beside what is [written](Self::execute), as far as that is known.
    fn around(&self) -> Around {
        Around::default()
    }

    /// Flow events that found no room, ever.
    fn lost_events(&mut self) -> u64;

    /// Packets and bytes by direction and what became of them, ever; what never happened may be left out.
    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)>;

    /// News that were counted and not told, by direction and reason, ever; what never happened may be left out.
    fn suppressed(&mut self) -> Vec<(Direction, Reason, Metric)> {
        Vec::new()
    }

    /// The same by kind of flow, of those that are remembered.
    fn flow_kinds(&mut self) -> BTreeMap<FlowKind, Metric> {
        BTreeMap::new()
    }

    /// Says which addresses are this node's own, and where the control plane listens: these and no others.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_host(
        &mut self,
        _locals: &BTreeSet<IpAddr>,
        _control: &BTreeSet<SocketAddr>,
    ) -> Result<(), MapError> {
        Ok(())
    }

    /// Says which node has which addresses, for the tunnel: these and no others.
    ///
    /// # Errors
    /// The kernel refused.
    fn set_hops(&mut self, _hops: &BTreeMap<IpNet, Hop>) -> Result<(), MapError> {
        Ok(())
    }
}
