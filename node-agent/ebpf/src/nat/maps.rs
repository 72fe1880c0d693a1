//! The maps of translations, as the shared lines use them.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ebpf_shared::nat::{NatKey, NatMaps, NatValue, NodeConfig};
use ebpf_shared::service::{AffinityKey, AffinityValue, AnswererKey, SourceKey};
use ebpf_shared::{Addr, Backend, ServiceKey, ServiceMaps, ServiceValue};

use crate::balance::KernelServices;
use crate::maps::{ANSWERERS, BACKEND_EPOCH, CONFIG, NAT};
use crate::overlay;

const BPF_NOEXIST: u64 = 1;

pub struct KernelNat;

impl ServiceMaps for KernelNat {
    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceValue> {
        KernelServices.service(key)
    }

    #[inline(always)]
    fn slot(&self, at: u32) -> u32 {
        KernelServices.slot(at)
    }

    #[inline(always)]
    fn backend(&self, number: u32) -> Option<Backend> {
        KernelServices.backend(number)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityValue> {
        KernelServices.affinity(key)
    }

    #[inline(always)]
    fn set_affinity(&mut self, key: &AffinityKey, value: &AffinityValue) {
        KernelServices.set_affinity(key, value);
    }

    #[inline(always)]
    fn admits(&self, source: &SourceKey) -> bool {
        KernelServices.admits(source)
    }
}

impl NatMaps for KernelNat {
    #[inline(always)]
    fn nat(&mut self, key: &NatKey) -> Option<&mut NatValue> {
        match NAT.get_ptr_mut(key) {
            // SAFETY: the kernel keeps the memory valid until the program ends. Other CPUs may write to it at the same
            // time: each field is written whole. An entry that is evicted and reused under our hands costs one packet.
            Some(entry) => Some(unsafe { &mut *entry }),
            None => None,
        }
    }

    #[inline(always)]
    fn set_nat(&mut self, key: &NatKey, value: &NatValue, is_new: bool) -> bool {
        NAT.insert(key, value, if is_new { BPF_NOEXIST } else { 0 }).is_ok()
    }

    #[inline(always)]
    fn remove_nat(&mut self, key: &NatKey) {
        // One that was displaced meanwhile is gone as well.
        let _ = NAT.remove(key);
    }

    #[inline(always)]
    fn turn_over(&mut self) {
        if let Some(epoch) = BACKEND_EPOCH.get_ptr_mut(1) {
            // SAFETY: a valid pointer; volatile, as programs on other CPUs may be writing. The time is never what was there.
            unsafe { core::ptr::write_volatile(epoch, bpf_ktime_get_ns()) };
        }
    }

    #[inline(always)]
    fn node(&self) -> NodeConfig {
        match CONFIG.get(0) {
            Some(node) => *node,
            None => NodeConfig::default(),
        }
    }

    #[inline(always)]
    fn is_tunnelled(&self, addr: &Addr) -> bool {
        match overlay::hop(addr) {
            Some(hop) => hop.is_tunnelled(),
            None => false,
        }
    }

    #[inline(always)]
    fn is_other_node(&self, addr: &Addr) -> bool {
        match overlay::hop(addr) {
            Some(hop) => !hop.is_here() && hop.sends_from(addr),
            None => false,
        }
    }

    #[inline(always)]
    fn answers(&self, key: &AnswererKey) -> bool {
        // SAFETY: only whether it is there is asked.
        unsafe { ANSWERERS.get(key) }.is_some()
    }
}
