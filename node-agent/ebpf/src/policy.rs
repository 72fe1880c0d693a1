//! The policy maps, as the shared verdict reads them.

use aya_ebpf::maps::lpm_trie::Key;
use ebpf_shared::{Addr, Led, PeerKey, PolicyMaps, RuleKey, RuleValue, Ruling, Sides, epochs, identity};

use crate::maps::{CIDRS, CLASSES, EPOCHS, HOSTS, LINGERING, PEERS, RULES, SCRATCH};

pub struct KernelPolicy {
    /// The peer's identity, if it came with the packet through the tunnel; 0: it did not.
    pub claimed: u32,
    /// It is asked about what a pod sends: then `SCRATCH` says which service that goes to.
    pub from_pod: bool,
}

impl PolicyMaps for KernelPolicy {
    #[inline(always)]
    fn stamp(&self, class: u32, peer: &Addr) -> u64 {
        epoch(epochs::GLOBAL) + epoch(epochs::of_class(class)) + epoch(epochs::of_peer(peer))
    }

    #[inline(always)]
    fn unnamed(&self, key: &PeerKey) -> Option<Sides> {
        // SAFETY: the value is copied at once; an element that is replaced meanwhile stays readable until
        // the end of the program (RCU), as the map is not preallocated.
        match unsafe { CLASSES.get(key.class) } {
            Some(class) => Some(*class.of(key.identity)),
            None => None,
        }
    }

    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<Sides> {
        // SAFETY: copied at once, see `unnamed`.
        unsafe { PEERS.get(key) }.copied()
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<RuleValue> {
        RULES.get(Key::new(RuleKey::BITS, *key)).copied()
    }

    #[inline(always)]
    fn identity(&self, addr: &Addr) -> u32 {
        if self.claimed != 0 {
            return self.claimed;
        }
        // SAFETY: copied at once, see `unnamed`.
        if let Some(known) = unsafe { HOSTS.get(addr) } {
            return *known;
        }
        match CIDRS.get(Key::new(Addr::BITS, *addr)) {
            Some(known) => *known,
            None => identity::ANY,
        }
    }

    #[inline(always)]
    fn led(&self) -> Led {
        if !self.from_pod {
            return Led::NOWHERE;
        }
        // There always is one.
        let Some(scratch) = SCRATCH.get_ptr(0) else { return Led::NOWHERE };
        // SAFETY: this CPU's own, see `forget_why`.
        Led::of_words(unsafe { core::ptr::read_volatile(&raw const (*scratch).led) })
    }

    #[inline(always)]
    fn forget_why(&self, ruling: Ruling) -> Ruling {
        // There always is one.
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return ruling };
        // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
        unsafe {
            let place = &raw mut (*scratch).ruling;
            core::ptr::write_volatile(place, ruling);
            core::ptr::read_volatile(place)
        }
    }

    #[inline(always)]
    fn lingering(&self, addr: &Addr) -> u32 {
        if self.claimed != 0 {
            return identity::ANY;
        }
        // SAFETY: copied at once, see `unnamed`.
        match unsafe { LINGERING.get(addr) } {
            Some(known) => *known,
            None => identity::ANY,
        }
    }
}

#[inline(always)]
fn epoch(at: u32) -> u64 {
    match EPOCHS.get(at) {
        // SAFETY: a valid reference; volatile, so that it is read here and not after the policy lookups.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    }
}
