//! Pods with a proxy in their network namespace.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_shared::{CapturedKey, Netns};

use super::{Kernel, KernelError};

/// A port and its protocol (IANA number).
pub type Port = (u16, u8);

impl Kernel {
    /// Marks a network namespace (`SO_NETNS_COOKIE`) as one with a sidecar that listens on `captured` in
    /// place of the application. To be called before the application binds.
    pub fn put_sidecar(&mut self, netns: u64, captured: &BTreeSet<Port>) -> Result<(), KernelError> {
        for (port, protocol) in captured {
            self.captured.upsert(CapturedKey::new(netns, *port, *protocol), 1)?;
        }
        self.netns.upsert(netns, Netns { flags: Netns::SIDECAR })?;
        self.release(netns, captured)
    }

    /// Forgets a network namespace; what is not there is no error.
    pub fn remove_sidecar(&mut self, netns: u64) -> Result<(), KernelError> {
        self.netns.delete(&netns)?;
        self.release(netns, &BTreeSet::new())
    }

    /// All network namespaces with a sidecar, and the ports it has taken over.
    pub fn sidecars(&self) -> Result<BTreeMap<u64, BTreeSet<Port>>, KernelError> {
        Ok(sidecars_of(self.netns.dump()?, self.captured.dump()?))
    }

    /// Gives back the ports of a namespace other than `kept`.
    fn release(&mut self, netns: u64, kept: &BTreeSet<Port>) -> Result<(), KernelError> {
        for (key, _) in self.captured.dump()? {
            if key.netns == netns && !kept.contains(&(key.port, key.protocol)) {
                self.captured.delete(&key)?;
            }
        }
        Ok(())
    }
}

pub(super) fn sidecars_of(
    netns: BTreeMap<u64, Netns>,
    captured: BTreeMap<CapturedKey, u8>,
) -> BTreeMap<u64, BTreeSet<Port>> {
    let mut sidecars: BTreeMap<u64, BTreeSet<Port>> =
        netns.into_keys().map(|netns| (netns, BTreeSet::new())).collect();
    for key in captured.into_keys() {
        if let Some(ports) = sidecars.get_mut(&key.netns) {
            ports.insert((key.port, key.protocol));
        }
    }
    sidecars
}
