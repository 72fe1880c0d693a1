//! Carries writes out. The agent knows the kernel by this trait only.

use ebpf_shared::{Direction, Metric, Reason};
use thiserror::Error;

use crate::desired::{Desired, MapOp};

mod kernel;
#[cfg(test)]
mod memory;
mod verify;

pub use kernel::KernelMaps;
#[cfg(test)]
pub(crate) use kernel::compiled;
#[cfg(test)]
pub(crate) use memory::MemoryMaps;
pub(crate) use verify::endpoint_value;
pub use verify::{Difference, Verified, fill, verify};

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
    /// What the maps hold, as the agent before this one left it. Classes come without their rules: a class that
    /// is not known is replaced, never trusted.
    ///
    /// # Errors
    /// A map can't be read.
    fn snapshot(&mut self) -> Result<Desired, MapError>;

    /// Carries out one write. After an error the map may hold the old or the new value.
    ///
    /// # Errors
    /// The kernel refused.
    fn execute(&mut self, op: &MapOp) -> Result<(), MapError>;

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

    /// Flow events that found no room, ever.
    fn lost_events(&mut self) -> u64;

    /// Packets and bytes by direction and what became of them, ever; what never happened may be left out.
    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)>;
}
