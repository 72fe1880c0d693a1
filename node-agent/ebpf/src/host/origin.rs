//! Whose a packet under one of the node's addresses is, and who began a connection that was there before policy was.
//!
//! The node's packets have a socket where they go out; those that it forwards under its own address (pods that leave the
//! mesh, containers of other engines) have none. Such a flow is noted, so that its answers are known where they come in,
//! where nothing has translated them back yet. Only what goes out keeps that up (but for TCP, where nobody's answer is an
//! opening): else whoever is outside could go on with such a flow after the stack has forgotten it, and be at the node's own
//! socket at that port.
//!
//! A connection in its middle that nobody has noted began before policy selected the node. Its socket is asked for: if
//! another listens at its port, it was accepted there, else it was opened from here, and it is judged accordingly.

use aya_ebpf::bindings::{
    __sk_buff, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use ebpf_shared::host::{FOREIGN, INTERFACE};
use ebpf_shared::packet::{Kind, protocol};
use ebpf_shared::{ConnEntry, ConnKey, Direction};

use super::{HostStage, way};
use crate::maps::CONNTRACK;

const NO: u32 = 0;
const YES: u32 = 1;
/// linux/tcp_states.h: `TCP_LISTEN`.
const LISTEN: u32 = 10;
/// linux/bpf.h: `BPF_F_CURRENT_NETNS`.
const HERE: u64 = u64::MAX;

/// Whether a packet is none of the node's own. Notes who began it, if it is and that was not known.
///
/// # Safety
/// A context, and the stage.
#[inline(never)]
pub unsafe fn is_others(skb: *mut __sk_buff, stage: *mut HostStage, direction: u32) -> u32 {
    let direction = way(direction);
    // SAFETY: as the caller says.
    let this = unsafe { &*stage };
    let (packet, now) = (&this.packet, this.now);
    let is_error = matches!(packet.kind, Kind::Error);
    let went = if is_error { direction.opposite() } else { direction };
    let comes_in = matches!(direction, Direction::Ingress);
    // Nobody's answer is an opening.
    if comes_in && packet.opens() {
        return NO;
    }
    // SAFETY: as the caller says. Volatile, so that the field of the context is read whole.
    let is_sockless =
        !comes_in && unsafe { core::ptr::read_volatile(&raw const (*skb).__bindgen_anon_2.sk) }.is_null();
    let forward = ConnKey::of(INTERFACE, &this.endpoint, packet, went);
    if let Some(entry) = CONNTRACK.get_ptr_mut(&forward) {
        // SAFETY: valid until the program ends; see `crate::conntrack`.
        let entry = unsafe { &mut *entry };
        if entry.is_alive(now, packet.protocol) {
            if (comes_in && entry.class == FOREIGN) || is_sockless {
                if !comes_in || packet.protocol == protocol::TCP {
                    touch(entry, now);
                }
                return YES;
            }
            return NO;
        }
    }
    if let Some(entry) = CONNTRACK.get_ptr_mut(&forward.answered()) {
        // SAFETY: as above.
        let entry = unsafe { &mut *entry };
        if entry.is_alive(now, packet.protocol) {
            if (comes_in || is_sockless) && entry.class == FOREIGN {
                if !comes_in || packet.protocol == protocol::TCP {
                    touch(entry, now);
                }
                return YES;
            }
            return NO;
        }
    }
    if is_sockless {
        if !is_error {
            let mut entry = ConnEntry { answered: 1, ..ConnEntry::default() };
            touch(&mut entry, now);
            entry.seen = now;
            let _ = CONNTRACK.insert(&forward, &entry, 0);
        }
        return YES;
    }
    if packet.protocol != protocol::TCP || !matches!(packet.kind, Kind::Plain) || packet.opens() {
        return NO;
    }
    if comes_in {
        // SAFETY: as the caller says.
        match unsafe { socket(skb, stage, 0, 1) } {
            // For nobody on this node: what the stack translates back, or answers with a reset. Nothing is noted, as anybody
            // could send many of these.
            0 => return YES,
            LISTEN => return NO,
            _ => {}
        }
    }
    // SAFETY: as the caller says.
    let listens = unsafe { socket(skb, stage, u32::from(!comes_in), 0) } == LISTEN;
    let began = if listens { Direction::Ingress } else { Direction::Egress };
    let key = ConnKey { began: began as u8, ..forward };
    // Of no basis: it is judged with this packet.
    let entry = ConnEntry { seen: now, stamp: u64::MAX, answered: 1, ..ConnEntry::default() };
    let _ = CONNTRACK.insert(&key, &entry, 0);
    NO
}

#[inline(always)]
fn touch(entry: &mut ConnEntry, now: u64) {
    entry.class = FOREIGN;
    if now.saturating_sub(entry.seen) > ConnEntry::COARSENESS {
        entry.seen = now;
    }
}

/// The state of the TCP socket that a packet is for (or, where `leaves`, from), 0: there is none; without its `peer`, of the
/// one that listens there.
///
/// # Safety
/// A context, and the stage.
#[inline(never)]
unsafe fn socket(skb: *mut __sk_buff, stage: *mut HostStage, leaves: u32, peer: u32) -> u32 {
    // SAFETY: as the caller says.
    let packet = unsafe { &(*stage).packet };
    let (from, to, from_port, to_port) = if leaves == 0 {
        (&packet.src, &packet.dst, packet.src_port, packet.dst_port)
    } else {
        (&packet.dst, &packet.src, packet.dst_port, packet.src_port)
    };
    let sport = if peer == 0 { 0 } else { from_port.to_be() };
    let dport = to_port.to_be();
    // SAFETY: plain integers, for which all zeros is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let is_v4 = from.is_v4();
    if is_v4 {
        tuple.__bindgen_anon_1.ipv4 =
            Tuple4 { saddr: from.low().to_be(), daddr: to.low().to_be(), sport, dport };
    } else {
        tuple.__bindgen_anon_1.ipv6 = Tuple6 { saddr: from.words(), daddr: to.words(), sport, dport };
    }
    // SAFETY: context and tuple are valid, and the size is one of the two that the helper knows.
    let found = if is_v4 {
        unsafe { bpf_skc_lookup_tcp(skb.cast(), &mut tuple, size_of::<Tuple4>() as u32, HERE, 0) }
    } else {
        unsafe { bpf_skc_lookup_tcp(skb.cast(), &mut tuple, size_of::<Tuple6>() as u32, HERE, 0) }
    };
    if found.is_null() {
        return 0;
    }
    // SAFETY: not null, and released once.
    unsafe {
        let state = core::ptr::read_volatile(&raw const (*found).state);
        bpf_sk_release(found.cast());
        state
    }
}
