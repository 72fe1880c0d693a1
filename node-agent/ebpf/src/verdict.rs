//! One packet at one pod's door: look who it is, judge, count, tell.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::Scene;
use ebpf_shared::{Addr, Direction, Endpoint, Kind, Packet, Reason, decide, overlay};

use crate::conntrack::KernelConntrack;
use crate::flow;
use crate::frame::{self, Frame, Ip};
use crate::maps::{ENDPOINTS, SCRATCH};
use crate::policy::KernelPolicy;
use crate::redirect::{self, KernelProxies};

/// Lets the next program on the interface, if there is one, have its say.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// Decides on a frame; `addressed` says why the endpoint may not send or be sent it, if so.
#[inline(always)]
pub fn at_door(
    ctx: &TcContext,
    direction: Direction,
    addressed: impl Fn(&Endpoint, &Ip) -> Option<Reason>,
) -> i32 {
    // SAFETY: the context is valid as long as the program runs.
    let (ifindex, mark) = unsafe { ((*ctx.skb.skb).ifindex, (*ctx.skb.skb).mark) };
    if matches!(direction, Direction::Egress) && redirect::come_aside(ctx, mark) {
        return NEXT;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let ip = match frame::classify(ctx, direction) {
        Ok(Frame::Ip(ip)) => ip,
        Ok(Frame::Link) => {
            flow::count(ctx, direction, Reason::Forwarded);
            return NEXT;
        }
        Err(reason) => return refuse(ctx, ifindex, direction, None, now, reason),
    };
    // SAFETY: an element that is replaced meanwhile stays readable and as it is until the end of the program (RCU), as
    // the map is not preallocated.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(ifindex) }) else {
        return refuse(ctx, ifindex, direction, Some(&ip), now, Reason::UnknownEndpoint);
    };
    let reason = addressed(endpoint, &ip);
    if ip.is_discovery && reason.is_none() {
        flow::count(ctx, direction, Reason::Forwarded);
        return NEXT;
    }
    if let Some(reason) = reason {
        return refuse(ctx, ifindex, direction, Some(&ip), now, reason);
    }
    let parsed = frame::parse(ctx, &ip, ifindex, direction);
    let parsed = parsed.and_then(|(packet, is_piece)| forget_how(packet, is_piece, direction, mark));
    let Seen { packet, claimed, is_piece } = match parsed {
        Ok(seen) => seen,
        Err(reason) => return refuse(ctx, ifindex, direction, Some(&ip), now, reason),
    };

    let from_proxy = matches!(direction, Direction::Ingress) && redirect::is_of_proxy(mark);
    let scene = Scene { ifindex, endpoint, direction, now, from_proxy, is_piece: is_piece != 0 };
    let policy = KernelPolicy { claimed };
    let mut proxies = KernelProxies { ctx, aside: false };
    let decision = decide(&policy, &mut KernelConntrack, &mut proxies, &scene, &packet);
    flow::count(ctx, direction, decision.ruling.reason);
    if decision.is_news {
        flow::tell(ctx, &policy, ifindex, endpoint, direction, &packet, now, &decision);
    }
    if !decision.ruling.passes() {
        return DROP;
    }
    if proxies.aside { redirect::set_aside(ctx, ifindex) } else { NEXT }
}

/// What the verdict is about.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Seen {
    pub packet: Packet,
    /// The identity that the overlay vouches for; 0: none.
    claimed: u32,
    /// 1: it is a piece of a datagram.
    is_piece: u32,
}

/// Has the verifier forget by which way a packet was parsed: what comes out of a map is unknown to it, so that it walks
/// the verdict once, and not once for each kind of packet: a quarter of the instructions.
#[inline(always)]
fn forget_how(packet: Packet, is_piece: bool, direction: Direction, mark: u32) -> Result<Seen, Reason> {
    // There always is one.
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return Err(Reason::Malformed) };
    // An error may be told by anybody on the way of the flow.
    let claimed = match (direction, packet.kind) {
        (Direction::Ingress, Kind::Plain | Kind::EchoReply) => overlay::claimed(mark),
        _ => 0,
    };
    // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU. Volatile, so that the
    // compiler does not remember either.
    unsafe {
        core::ptr::write_volatile(scratch, Seen { packet, claimed, is_piece: is_piece as u32 });
        Ok(core::ptr::read_volatile(scratch))
    }
}

#[inline(always)]
fn refuse(
    ctx: &TcContext,
    ifindex: u32,
    direction: Direction,
    ip: Option<&Ip>,
    now: u64,
    reason: Reason,
) -> i32 {
    flow::count(ctx, direction, reason);
    let (src, dst, protocol) = match ip {
        Some(ip) => (ip.src, ip.dst, ip.protocol),
        None => (Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0),
    };
    flow::tell_refused(ctx, ifindex, direction, src, dst, protocol, now, reason);
    DROP
}
