//! The policy maps, as the shared verdict reads them.

use aya_ebpf::maps::lpm_trie::Key;
use ebpf_shared::{Addr, Class, PolicyKey, PolicyMaps, PolicyValue, identity};

use crate::maps::{CIDRS, CLASSES, GENERATION, HOSTS, POLICY};

pub struct KernelPolicy {
    /// The peer's identity, if it came with the packet through the tunnel; 0: it did not.
    pub claimed: u32,
}

impl PolicyMaps for KernelPolicy {
    #[inline(always)]
    fn class(&self, class: u32) -> Option<Class> {
        // SAFETY: the value is copied at once; an element that is replaced meanwhile stays readable until
        // the end of the program (RCU), as the map is not preallocated.
        unsafe { CLASSES.get(class) }.copied()
    }

    #[inline(always)]
    fn rule(&self, key: &PolicyKey) -> Option<PolicyValue> {
        POLICY.get(Key::new(PolicyKey::BITS, *key)).copied()
    }

    #[inline(always)]
    fn identity(&self, addr: &Addr) -> u32 {
        if self.claimed != 0 {
            return self.claimed;
        }
        // SAFETY: copied at once, see `class`.
        if let Some(known) = unsafe { HOSTS.get(addr) } {
            return *known;
        }
        match CIDRS.get(Key::new(Addr::BITS, *addr)) {
            Some(known) => *known,
            None => identity::ANY,
        }
    }
}

/// The generation of everything that [`KernelPolicy`] reads.
#[inline(always)]
pub fn generation() -> u64 {
    match GENERATION.get(0) {
        // SAFETY: a valid reference; volatile, so that it is read here and not after the policy lookups.
        Some(generation) => unsafe { core::ptr::read_volatile(generation) },
        None => 0,
    }
}
