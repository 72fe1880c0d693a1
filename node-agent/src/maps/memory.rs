//! Maps that are only remembered, for tests of what is above them.

use std::collections::BTreeSet;

use ebpf_shared::{Direction, Metric, Reason};

use super::{MapError, Maps};
use crate::desired::{Desired, Limits, MapOp};

/// Remembers what it was told.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryMaps {
    /// What the maps hold.
    pub(crate) held: Desired,
    /// Interfaces that have the programs.
    pub(crate) attached: BTreeSet<u32>,
    /// The next so many writes fail.
    pub(crate) failures: u32,
    /// The next so many writes of services fail.
    pub(crate) service_failures: u32,
    /// How much fits, if it is not what fits in the kernel.
    pub(crate) limits: Option<Limits>,
}

impl Maps for MemoryMaps {
    fn snapshot(&mut self) -> Result<Desired, MapError> {
        Ok(self.held.clone())
    }

    fn limits(&self) -> Limits {
        self.limits.unwrap_or(Limits::KERNEL)
    }

    fn execute(&mut self, ops: &[MapOp]) -> Result<(), (usize, MapError)> {
        for (place, op) in ops.iter().enumerate() {
            if self.failures > 0 {
                self.failures -= 1;
                return Err((place, MapError { what: format!("{op:?}"), reason: "told to fail".into() }));
            }
            if op.is_of_service() && self.service_failures > 0 {
                self.service_failures -= 1;
                return Err((place, MapError { what: format!("{op:?}"), reason: "told to fail".into() }));
            }
            op.apply(&mut self.held);
        }
        Ok(())
    }

    fn attach(&mut self, _interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.attached.insert(ifindex);
        Ok(())
    }

    fn detach(&mut self, _interface: &str, ifindex: u32) -> Result<(), MapError> {
        self.attached.remove(&ifindex);
        Ok(())
    }

    fn attached(&mut self) -> Result<Vec<u32>, MapError> {
        Ok(self.attached.iter().copied().collect())
    }

    fn lost_events(&mut self) -> u64 {
        0
    }

    fn suppressed(&mut self) -> Vec<(Direction, Reason, Metric)> {
        vec![(Direction::Ingress, Reason::DefaultDeny, Metric { packets: 1, bytes: 60 })]
    }

    fn packets(&mut self) -> Vec<(Direction, Reason, Metric)> {
        let dropped = Metric { packets: 2, bytes: 120 };
        vec![(Direction::Ingress, Reason::DefaultDeny, dropped)]
    }
}
