//! Packets that go into the tunnel to another node, and packets that come out of it: the hooks of the tunnel's device.

use aya_ebpf::bindings::{
    BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_tunnel_key,
};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use ebpf_shared::overlay::{self, Hop};
use ebpf_shared::{Addr, Direction, Ip4, PolicyMaps, Reason};

use crate::flow;
use crate::frame::{self, Frame, Ip};
use crate::maps::NODES;
use crate::policy::KernelPolicy;

const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;
/// Where the source is in an Ethernet header.
const SOURCE_MAC: usize = 6;
const KEY: u32 = size_of::<bpf_tunnel_key>() as u32;

/// The egress hook of the tunnel's device: says to which node, and who it is from.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    // What is said on a link concerns nobody at the other end of this one.
    let ip = match frame::classify(&ctx, Direction::Egress) {
        Ok(Frame::Ip(ip)) if !ip.dst.is_link_multicast() && !ip.src.is_link_local() => ip,
        Ok(_) => return DROP,
        Err(reason) => return refuse(&ctx, Direction::Egress, None, reason),
    };
    let Some(here) = hop(&ip.src) else {
        return refuse(&ctx, Direction::Egress, Some(&ip), Reason::TunnelSource);
    };
    let Some(there) = hop(&ip.dst) else {
        return refuse(&ctx, Direction::Egress, Some(&ip), Reason::TunnelTarget);
    };
    if !here.is_here() {
        return refuse(&ctx, Direction::Egress, Some(&ip), Reason::TunnelSource);
    }
    if !there.is_tunnelled() {
        return refuse(&ctx, Direction::Egress, Some(&ip), Reason::TunnelTarget);
    }
    // SAFETY: plain integers, for which all zeros is a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = overlay::carried(KernelPolicy { claimed: 0, from_pod: false }.identity(&ip.src));
    key.tunnel_ttl = 64;
    let flags = if there.is_by_ipv6() {
        key.__bindgen_anon_1.remote_ipv6 = there.v6.words();
        key.__bindgen_anon_3.local_ipv6 = here.v6.words();
        BPF_F_TUNINFO_IPV6
    } else {
        // The helper wants these in host order.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(there.v4.low().to_be());
        key.__bindgen_anon_3.local_ipv4 = u32::from_be(here.v4.low().to_be());
        BPF_F_ZERO_CSUM_TX
    };
    // SAFETY: the context and the key are valid, and the size is the key's.
    let set = unsafe { bpf_skb_set_tunnel_key(ctx.skb.skb, &mut key, KEY, u64::from(flags)) };
    if set != 0 || ctx.store(SOURCE_MAC, &overlay::FROM_MAC, 0).is_err() {
        return refuse(&ctx, Direction::Egress, Some(&ip), Reason::TunnelTarget);
    }
    NEXT
}

/// The ingress hook of the tunnel's device: lets in only what comes from the node that it says it is from.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    // SAFETY: as above.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: as above.
    let outer = if unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, &mut key, KEY, 0) } == 0 {
        // SAFETY: the helper has filled in an IPv4 key, in host order.
        Addr::v4(Ip4::from_be(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be()))
    // SAFETY: as above.
    } else if unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, &mut key, KEY, u64::from(BPF_F_TUNINFO_IPV6)) }
        == 0
    {
        // SAFETY: the helper has filled in an IPv6 key.
        Addr::from_words(unsafe { key.__bindgen_anon_1.remote_ipv6 })
    } else {
        return refuse(&ctx, Direction::Ingress, None, Reason::TunnelSource);
    };
    let ip = match frame::classify(&ctx, Direction::Ingress) {
        Ok(Frame::Ip(ip)) => ip,
        Ok(Frame::Link) => return DROP,
        Err(reason) => return refuse(&ctx, Direction::Ingress, None, reason),
    };
    match hop(&ip.src) {
        Some(there) if there.is_tunnelled() && there.sends_from(&outer) => {}
        _ => return refuse(&ctx, Direction::Ingress, Some(&ip), Reason::TunnelSource),
    }
    match hop(&ip.dst) {
        Some(here) if here.is_here() => {}
        _ => return refuse(&ctx, Direction::Ingress, Some(&ip), Reason::TunnelTarget),
    }
    ctx.set_mark(overlay::mark(key.tunnel_id));
    NEXT
}

/// Who has an address, if it is a node's or a pod's.
#[inline(always)]
pub fn hop(addr: &Addr) -> Option<&'static Hop> {
    NODES.get(Key::new(Addr::BITS, *addr))
}

#[inline(always)]
fn refuse(ctx: &TcContext, direction: Direction, ip: Option<&Ip>, reason: Reason) -> i32 {
    // SAFETY: the context is valid as long as the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    flow::count(ctx, direction, reason);
    let (src, dst, protocol) = match ip {
        Some(ip) => (ip.src, ip.dst, ip.protocol),
        None => (Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0),
    };
    flow::tell_refused(ctx, ifindex, direction, src, dst, protocol, now, reason);
    DROP
}
