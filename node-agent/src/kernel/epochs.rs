//! The counters that tell conntrack entries whether what they were judged by has changed: see [`ebpf_shared::epochs`].

use ebpf_shared::{Addr, epochs};

use super::KernelError;
use super::mapped::Counters;
use super::pins::Pins;

/// The array, in this process's memory: raising one is no system call. Like the write that it follows, it is seen by
/// programs after that write.
pub(super) struct Epochs(Counters);

impl Epochs {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        Counters::open(&pins.map("EPOCHS"), epochs::COUNT).map(Self)
    }

    /// What they are to be.
    pub(super) fn noted(&self) -> Vec<u64> {
        self.0.noted()
    }

    /// Has every established flow judged again on its next packet. Like the others, to be called *after* the write.
    pub(super) fn raise_all(&self) {
        self.0.increment(epochs::GLOBAL);
    }

    /// Those of a class.
    pub(super) fn raise_class(&self, class: u32) {
        self.0.increment(epochs::of_class(class));
    }

    /// Those with a peer of this address, and of few others.
    pub(super) fn raise_peer(&self, addr: &Addr) {
        self.0.increment(epochs::of_peer(addr));
    }
}
