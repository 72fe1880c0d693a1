//! Which service the client of a flow asked for, where a pod's packets only say which backend it was given.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::{NatKey, Tuple, place};
use ebpf_shared::packet::{Kind, protocol};
use ebpf_shared::{Direction, Packet, ReverseKey, ServiceKey, SockAddr};

use crate::maps::{NAT, REVERSE, SCRATCH};

/// Notes in `SCRATCH` what stands for its address; 0: none. Of news only, as it costs two lookups.
///
/// # Safety
/// A context, and `SCRATCH` is written.
#[inline(never)]
pub unsafe fn note(skb: *mut __sk_buff, direction: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: as the caller says; this CPU's own, see `crate::verdict`.
    unsafe {
        if core::ptr::read_volatile(&raw const (*scratch).decision.is_news) {
            let is_reply = core::ptr::read_volatile(&raw const (*scratch).decision.is_reply);
            let service = service(skb, &(*scratch).seen.packet, direction, u32::from(is_reply));
            core::ptr::write_volatile(&raw mut (*scratch).service, service);
        }
    }
    0
}

/// # Safety
/// A context.
#[inline(always)]
unsafe fn service(skb: *mut __sk_buff, packet: &Packet, direction: u32, is_reply: u32) -> u32 {
    let has_ports = matches!(packet.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
    if !has_ports || !matches!(packet.kind, Kind::Plain) {
        return 0;
    }
    let is_egress = direction == Direction::Egress as u32;
    if is_egress && is_reply == 0 {
        let ctx = TcContext::new(skb);
        // SAFETY: the context is valid as long as the program runs; 0: no socket of this host.
        let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        let real = SockAddr::new(packet.dst, packet.dst_port);
        // SAFETY: copied at once; if the entry is reused meanwhile the address is another of this node's services.
        if let Some(value) = unsafe { REVERSE.get(ReverseKey::new(socket, real)) } {
            let SockAddr { addr, port, .. } = value.believed;
            return ServiceKey::told(&addr, port, packet.protocol);
        }
    }
    // By what answers become.
    let tuple =
        Tuple { src: packet.src, dst: packet.dst, src_port: packet.src_port, dst_port: packet.dst_port };
    let answer = if is_reply == 0 { tuple.reversed() } else { tuple };
    // Of the client's pod, or of the server's where the client is outside.
    let at_client = is_egress == (is_reply == 0);
    let place = if at_client { place::TO_POD } else { place::TO_NET };
    let key = NatKey { tuple: answer, protocol: packet.protocol, place, padding: 0 };
    // SAFETY: as above.
    match unsafe { NAT.get(key) } {
        // SAFETY: no preconditions.
        Some(entry) if entry.is_alive(unsafe { bpf_ktime_get_ns() }, packet.protocol) => {
            ServiceKey::told(&entry.tuple.src, entry.tuple.src_port, packet.protocol)
        }
        _ => 0,
    }
}
