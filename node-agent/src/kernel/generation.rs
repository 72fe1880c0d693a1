//! The number that tells conntrack entries which policy they were judged under.

use std::sync::{Mutex, PoisonError};

use aya::maps::{Array, MapData};

use super::KernelError;

pub(super) struct Generation {
    map: Mutex<Array<MapData, u64>>,
}

impl Generation {
    pub(super) fn new(map: Array<MapData, u64>) -> Self {
        Self { map: Mutex::new(map) }
    }

    /// Has every established flow judged again on its next packet. Called *after* a write: see
    /// `ebpf_shared::decide`.
    pub(super) fn raise(&self) -> Result<(), KernelError> {
        let error = |source| KernelError::Map { name: "GENERATION", source };
        // A panic elsewhere can't have left the number half-written.
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = map.get(&0, 0).map_err(error)?;
        map.set(0, generation.wrapping_add(1), 0).map_err(error)
    }
}
