//! Packets that are not about a service, and those of the middle of a translated flow: nearly all, and told at once.
//!
//! A translated flow is in [`KNOWN`], a small table of this processor's own, or is looked up in `NAT` where it goes on with nothing
//! to be noted ([`NatValue::goes_on`]). What the table says holds while no backend has been removed and no flow is
//! translated otherwise than it was (`BACKEND_EPOCH`), and for a fraction of a second: see `crate::established`.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::{NatKey, NatMaps, Tuple, loopback, place};
use ebpf_shared::service::address_bit;
use ebpf_shared::{Addr, ServiceKey, ServiceMaps};

use super::maps::KernelNat;
use super::{NEXT, is_owner, is_served, is_translated, rewrite};
use crate::established;
use crate::frame::plain::{self, Plain};
use crate::maps::{BACKEND_EPOCH, KNOWN};

/// Flows of each processor, of both directions: a power of two.
pub const FLOWS: u32 = 1_024;

/// A packet that was translated: value of `KNOWN`.
#[repr(C)]
pub struct Known {
    src: Addr,
    dst: Addr,
    /// In network order.
    src_port: u16,
    dst_port: u16,
    ifindex: u32,
    /// Of `BACKEND_EPOCH`.
    epoch: u64,
    /// When the flow was looked up.
    tick: u64,
    to: Tuple,
    protocol: u8,
    place: u8,
    padding: u16,
}

/// Neither: the packet is to be looked at.
pub const ASK: u32 = 0x100;

/// What becomes of a packet.
///
/// # Safety
/// A context.
#[inline(never)]
pub unsafe fn translate<const PLACE: u8>(skb: *mut __sk_buff) -> u32 {
    // SAFETY: as the caller says.
    let (packet, ifindex) = unsafe { (plain::read(skb), (*skb).ifindex) };
    let Some(packet) = packet else { return ASK };
    if PLACE == place::TO_POD {
        if !is_translated(ifindex) {
            return NEXT as u32;
        }
    } else {
        let asked = if PLACE == place::TO_NET { &packet.src } else { &packet.dst };
        // Said twice, as most of the hash of an IPv4 address is a constant.
        let bit = if packet.is_v4 { address_bit(&Addr::v4(asked.low())) } else { address_bit(asked) };
        if !is_served(bit) {
            // One that opens may have the ends of what was translated before.
            let is_past = PLACE == place::FROM_POD && !packet.is_of_the_middle() && is_translated(ifindex);
            return if is_past { ASK } else { NEXT as u32 };
        }
    }
    if !packet.is_of_the_middle() {
        return ASK;
    }
    let Some(known) = KNOWN.get_ptr_mut(slot(&packet, PLACE)) else { return ASK };
    // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
    let known = unsafe { &mut *known };
    // SAFETY: no preconditions.
    let (tick, epoch) = (unsafe { bpf_jiffies64() }, epoch());
    let is_known = known.is_of(&packet, ifindex, PLACE)
        && tick.wrapping_sub(known.tick) < established::TICKS
        && known.epoch == epoch;
    if !is_known {
        let to = match look(&packet, ifindex, PLACE) {
            Found::To(to) => to,
            // What begins is looked at where it comes from.
            Found::Nothing if PLACE == place::TO_POD || PLACE == place::TO_NET => return NEXT as u32,
            Found::Nothing | Found::Doubt => return ASK,
        };
        *known = Known {
            src: packet.src,
            dst: packet.dst,
            src_port: packet.src_port,
            dst_port: packet.dst_port,
            ifindex,
            epoch,
            tick,
            to,
            protocol: packet.protocol,
            place: PLACE,
            padding: 0,
        };
    }
    match rewrite::plain(&TcContext::new(skb), &packet, &known.to) {
        Ok(()) => NEXT as u32,
        Err(_) => TC_ACT_SHOT as u32,
    }
}

impl Known {
    #[inline(always)]
    fn is_of(&self, packet: &Plain, ifindex: u32, place: u8) -> bool {
        established::is_between(packet, &self.src, &self.dst)
            && self.src_port == packet.src_port
            && self.dst_port == packet.dst_port
            && self.ifindex == ifindex
            && self.protocol == packet.protocol
            && self.place == place
    }
}

#[inline(always)]
fn slot(packet: &Plain, place: u8) -> u32 {
    (established::spread(packet) ^ u32::from(place).wrapping_mul(0x55)) & (FLOWS - 1)
}

/// What is known of a packet's flow.
enum Found {
    To(Tuple),
    /// It is not translated so far.
    Nothing,
    /// That is not said.
    Doubt,
}

#[inline(always)]
fn look(packet: &Plain, ifindex: u32, place: u8) -> Found {
    let (src_port, dst_port) = (u16::from_be(packet.src_port), u16::from_be(packet.dst_port));
    let served = |addr: Addr, port: u16| is_served(ServiceKey::new(addr, port, packet.protocol, 0).bit());
    let concerns = match place {
        place::FROM_POD => {
            is_owner(ifindex, &packet.src)
                && (packet.dst == loopback(packet.dst.is_v4()) || served(packet.dst, dst_port))
        }
        place::FROM_NET => served(packet.dst, dst_port),
        place::TO_NET => served(packet.src, src_port),
        _ => true,
    };
    if !concerns {
        return Found::Doubt;
    }
    let tuple = Tuple { src: packet.src, dst: packet.dst, src_port, dst_port };
    let key = NatKey { tuple, protocol: packet.protocol, place, padding: 0 };
    // SAFETY: no preconditions. Some milliseconds late, which the lifetimes of flows don't mind.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let mut maps = KernelNat;
    let Some(entry) = maps.nat(&key) else { return Found::Nothing };
    if !entry.goes_on(now) {
        return Found::Doubt;
    }
    let (to, is_reply, backend) = (entry.tuple, entry.is_reply != 0, entry.backend);
    if is_reply || KernelNat.backend(backend).is_some() { Found::To(to) } else { Found::Doubt }
}

#[inline(always)]
fn epoch() -> u64 {
    let read = |at: u32| match BACKEND_EPOCH.get(at) {
        // SAFETY: a valid reference; volatile, so that it is read here and not after the flow is looked up.
        Some(epoch) => unsafe { core::ptr::read_volatile(epoch) },
        None => 0,
    };
    read(0).wrapping_add(read(1))
}
