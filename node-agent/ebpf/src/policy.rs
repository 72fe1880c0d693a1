//! The policy maps, as the shared verdict reads them.

use aya_ebpf::maps::lpm_trie::Key;
use ebpf_shared::redirect::NO_SLOT;
use ebpf_shared::{
    Addr, Led, Packet, PeerKey, PolicyMaps, RuleKey, RuleValue, Ruling, ServiceMaps, Sides, epochs, identity,
    maglev,
};

use crate::balance::KernelServices;
use crate::maps::{BACKENDS, CIDRS, CLASSES, EPOCHS, HOSTS, LINGERING, PEERS, RULES, SCRATCH, SERVICES};
use crate::nat;

pub struct KernelPolicy {
    /// The peer's identity, if it came with the packet through the tunnel; 0: it did not.
    pub claimed: u32,
}

impl PolicyMaps for KernelPolicy {
    #[inline(always)]
    fn stamp(&self, class: u32, peer: &Addr) -> u64 {
        epoch(epochs::GLOBAL) + epoch(epochs::of_class(class)) + epoch(epochs::of_peer(peer))
    }

    #[inline(always)]
    fn class(&self, class: u32) -> Option<Sides> {
        // SAFETY: the value is copied at once; an element that is replaced meanwhile stays readable until
        // the end of the program (RCU), as the map is not preallocated.
        unsafe { CLASSES.get(class) }.copied()
    }

    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<Sides> {
        // SAFETY: copied at once, see `class`.
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
        // SAFETY: copied at once, see `class`.
        if let Some(known) = unsafe { HOSTS.get(addr) } {
            return *known;
        }
        match CIDRS.get(Key::new(Addr::BITS, *addr)) {
            Some(known) => *known,
            None => identity::ANY,
        }
    }

    #[inline(always)]
    fn led(&self, _: &Packet, is_reply: bool) -> Led {
        if find_led(is_reply as u32) == NO_SLOT.into() {
            return Led::NOWHERE;
        }
        // There always is one.
        let Some(scratch) = SCRATCH.get_ptr(0) else { return Led::NOWHERE };
        // SAFETY: this CPU's own, see `forget_why`.
        unsafe { core::ptr::read_volatile(&raw const (*scratch).led) }
    }

    #[inline(always)]
    fn forget_why(&self, ruling: Ruling) -> Ruling {
        // There always is one.
        let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return ruling };
        // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
        unsafe {
            (*scratch).ruling.write(&ruling);
            (*scratch).ruling.read()
        }
    }

    #[inline(always)]
    fn lingering(&self, addr: &Addr) -> u32 {
        if self.claimed != 0 {
            return identity::ANY;
        }
        // SAFETY: copied at once, see `class`.
        match unsafe { LINGERING.get(addr) } {
            Some(known) => *known,
            None => identity::ANY,
        }
    }
}

/// Looks for the service that the packet in `SCRATCH` goes to, if pods reach it by a proxy, writes there what it is, and says
/// its slot. A function of its own, because the verdict has no stack left.
#[inline(never)]
fn find_led(is_reply: u32) -> u32 {
    const NOWHERE: u32 = NO_SLOT as u32;
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return NOWHERE };
    // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
    let scratch = unsafe { &mut *scratch };
    let packet = &scratch.seen.packet;
    (scratch.asked.addr, scratch.asked.port) =
        if is_reply != 0 { (packet.src, packet.src_port) } else { (packet.dst, packet.dst_port) };
    scratch.asked.protocol = packet.protocol;
    if !nat::is_served(scratch.asked.bit()) {
        return NOWHERE;
    }
    // SAFETY: stays readable until the program ends (RCU, not preallocated).
    let Some(service) = (unsafe { SERVICES.get(&scratch.asked) }) else { return NOWHERE };
    if service.redirect == NO_SLOT {
        return NOWHERE;
    }
    scratch.led = Led { slot: service.redirect, ..Led::NOWHERE };
    let number = match service.size {
        0 => 0,
        1 => service.only,
        size => KernelServices.slot(service.table.wrapping_add(maglev::slot(scratch.asked.bit(), size))),
    };
    // SAFETY: as above.
    if let Some(backend) = unsafe { BACKENDS.get(number) }
        && backend.service == service.id
    {
        scratch.led.backend = backend.at;
    }
    service.redirect.into()
}

#[inline(always)]
fn epoch(at: u32) -> u64 {
    match EPOCHS.get(at) {
        // SAFETY: a valid reference; volatile, so that it is read here and not after the policy lookups.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    }
}
