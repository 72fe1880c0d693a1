//! The service maps, as the shared choice reads them.

use aya_ebpf::maps::lpm_trie::Key;
use ebpf_shared::service::{AffinityKey, AffinityValue, SourceKey};
use ebpf_shared::{Backend, ServiceKey, ServiceMaps, ServiceValue};

use crate::maps::{AFFINITY, BACKENDS, MAGLEV, SERVICES, SOURCES};

pub struct KernelServices;

impl ServiceMaps for KernelServices {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        // SAFETY: the value is copied at once, and stays readable until the program ends (RCU, not preallocated).
        unsafe { SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn slot(&self, at: u32) -> u32 {
        match MAGLEV.get(at >> 1) {
            // SAFETY: a valid reference; volatile, as the agent may be writing: each slot is written whole.
            Some(slots) => unsafe {
                if at & 1 == 0 {
                    core::ptr::read_volatile(&raw const slots.0[0])
                } else {
                    core::ptr::read_volatile(&raw const slots.0[1])
                }
            },
            None => 0,
        }
    }

    #[inline(always)]
    fn backend(&self, number: u32) -> Option<Backend> {
        // SAFETY: see `service`.
        unsafe { BACKENDS.get(number) }.copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityValue> {
        // SAFETY: copied at once; an entry that is reused meanwhile names another client's backend, and whether that is
        // one of this service is looked at.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        // Without room, the next connection chooses anew.
        let _ = AFFINITY.insert(key, value, 0);
    }

    #[inline(always)]
    fn admits(&self, source: &SourceKey) -> bool {
        SOURCES.get(Key::new(SourceKey::BITS, *source)).is_some()
    }
}
