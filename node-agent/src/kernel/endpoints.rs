//! Who is behind which interface: `ENDPOINTS`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ebpf_shared::Endpoint;

use super::epochs::Epochs;
use super::{HashTable, KernelError};

/// The endpoints of this node. A packet that its flow lets pass may not have had its endpoint looked at
/// (`ebpf/src/established.rs`), so a change raises the epoch of the class that the endpoint had.
pub struct Endpoints {
    table: HashTable<u32, Endpoint>,
    epochs: Arc<Epochs>,
}

impl Endpoints {
    pub(super) fn new(table: HashTable<u32, Endpoint>, epochs: Arc<Epochs>) -> Self {
        Self { table, epochs }
    }

    /// What is behind an interface.
    ///
    /// # Errors
    /// It can't be read.
    pub fn get(&self, ifindex: &u32) -> Result<Option<Endpoint>, KernelError> {
        self.table.get(ifindex)
    }

    /// Opens an interface, or changes what is behind it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn upsert(&mut self, ifindex: u32, endpoint: Endpoint) -> Result<(), KernelError> {
        let before = self.table.get(&ifindex)?;
        self.table.upsert(ifindex, endpoint)?;
        if let Some(before) = before.filter(|before| *before != endpoint) {
            self.epochs.raise_class(before.class);
        }
        Ok(())
    }

    /// Closes an interface; returns whether it was open.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn delete(&mut self, ifindex: &u32) -> Result<bool, KernelError> {
        let before = self.table.get(ifindex)?;
        let was_there = self.table.delete(ifindex)?;
        if let Some(before) = before {
            self.epochs.raise_class(before.class);
        }
        Ok(was_there)
    }

    /// Everything in the map.
    ///
    /// # Errors
    /// It can't be read.
    pub fn dump(&self) -> Result<BTreeMap<u32, Endpoint>, KernelError> {
        self.table.dump()
    }
}
