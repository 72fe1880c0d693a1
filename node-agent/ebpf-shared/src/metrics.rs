//! Packet counters.

use crate::{Direction, Reason};

/// One cell of `METRICS`, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Metric {
    pub packets: u64,
    /// Frame lengths, Ethernet header included.
    pub bytes: u64,
}

/// Number of cells: one by direction and reason.
pub const CELLS: u32 = 2 * Reason::COUNT;

/// The cell of a direction and a reason.
#[inline(always)]
pub const fn cell(direction: Direction, reason: Reason) -> u32 {
    direction as u32 * Reason::COUNT + reason as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_direction_and_reason_has_a_cell_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for direction in [Direction::Ingress, Direction::Egress] {
            for reason in Reason::ALL {
                assert!(seen.insert(cell(direction, reason)));
            }
        }
        assert_eq!(seen.len() as u32, CELLS);
        assert_eq!(seen.last().copied(), Some(CELLS - 1));
    }
}
