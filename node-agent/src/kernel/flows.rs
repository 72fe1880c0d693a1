//! What the programs count of flows beside their events.

use std::collections::BTreeMap;

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use ebpf_shared::{Direction, FlowCell, FlowKind, Metric, Reason, limits, metrics};

use super::KernelError;

/// Every packet, by what became of it; and of those that are news, how many were not told and how many found no room.
pub struct FlowCounters {
    pub(super) metrics: PerCpuArray<MapData, Metric>,
    pub(super) suppressed: PerCpuArray<MapData, Metric>,
    pub(super) lost: PerCpuArray<MapData, u64>,
    pub(super) kinds: PerCpuHashMap<MapData, FlowKind, FlowCell>,
}

impl FlowCounters {
    /// Packets and bytes by direction and reason, ever; cells that never counted are left out.
    pub fn packets(&self) -> Result<Vec<(Direction, Reason, Metric)>, KernelError> {
        cells(|cell| sum("METRICS", &self.metrics, cell))
    }

    /// News that were counted and not told, ever: there were too many of their kind.
    pub fn suppressed(&self) -> Result<Vec<(Direction, Reason, Metric)>, KernelError> {
        cells(|cell| sum("SUPPRESSED", &self.suppressed, cell))
    }

    /// Events that found the ring full, ever; `packets` of each cell.
    pub fn lost(&self) -> Result<Vec<(Direction, Reason, Metric)>, KernelError> {
        cells(|cell| {
            let values =
                self.lost.get(&cell, 0).map_err(|source| KernelError::Map { name: "LOST", source })?;
            Ok(Metric { packets: values.iter().sum(), bytes: 0 })
        })
    }

    /// What was suppressed of each kind that is remembered, since it is; kinds of which all was told are left out.
    pub fn kinds(&self) -> Result<BTreeMap<FlowKind, Metric>, KernelError> {
        let mut kinds = BTreeMap::new();
        for kind in self.keys()? {
            let values = match self.kinds.get(&kind, 0) {
                Ok(values) => values,
                // Displaced meanwhile.
                Err(MapError::KeyNotFound) => continue,
                Err(source) => return Err(KernelError::Map { name: "FLOWS", source }),
            };
            let of = total(&values);
            if of.packets > 0 {
                kinds.insert(kind, of);
            }
        }
        Ok(kinds)
    }

    /// Forgets every kind, as if there had been no flow for a while.
    pub fn forget_kinds(&mut self) -> Result<(), KernelError> {
        for kind in self.keys()? {
            match self.kinds.remove(&kind) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(KernelError::Map { name: "FLOWS", source }),
            }
        }
        Ok(())
    }

    fn keys(&self) -> Result<Vec<FlowKind>, KernelError> {
        // The kernel begins again at the first key where the last one has been displaced.
        let keys = self.kinds.keys().take(2 * limits::FLOWS as usize);
        keys.collect::<Result<_, _>>().map_err(|source| KernelError::Map { name: "FLOWS", source })
    }
}

fn total(values: &PerCpuValues<FlowCell>) -> Metric {
    values.iter().fold(Metric::default(), |sum, cpu| Metric {
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
    })
}

fn sum(name: &'static str, map: &PerCpuArray<MapData, Metric>, cell: u32) -> Result<Metric, KernelError> {
    let values = map.get(&cell, 0).map_err(|source| KernelError::Map { name, source })?;
    Ok(values.iter().fold(Metric::default(), |sum, cpu| Metric {
        packets: sum.packets + cpu.packets,
        bytes: sum.bytes + cpu.bytes,
    }))
}

fn cells(
    read: impl Fn(u32) -> Result<Metric, KernelError>,
) -> Result<Vec<(Direction, Reason, Metric)>, KernelError> {
    let mut cells = Vec::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for reason in Reason::ALL {
            let metric = read(metrics::cell(direction, reason))?;
            if metric.packets > 0 {
                cells.push((direction, reason, metric));
            }
        }
    }
    Ok(cells)
}
