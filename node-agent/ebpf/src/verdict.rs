//! One packet at one pod's door: look who it is, judge, count, tell.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::Scene;
use ebpf_shared::{Direction, Endpoint, Ip4, Reason, decide};

use crate::conntrack::KernelConntrack;
use crate::flow;
use crate::frame::{self, Frame, Ip4Header};
use crate::maps::ENDPOINTS;
use crate::policy::{self, KernelPolicy};

/// Lets the next program on the interface, if there is one, have its say.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// Decides on a frame; `addressed` says why the endpoint may not send or be sent it, if so.
#[inline(always)]
pub fn at_door(
    ctx: &TcContext,
    direction: Direction,
    addressed: impl Fn(&Endpoint, &Ip4Header) -> Option<Reason>,
) -> i32 {
    // SAFETY: the context is valid as long as the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // First of all reads, also before the endpoint's: see `Scene::generation`.
    let generation = policy::generation();

    let ip = match frame::classify(ctx) {
        Ok(Frame::Ip4(ip)) => ip,
        Ok(Frame::Link) => {
            flow::count(ctx, direction, Reason::Forwarded);
            return NEXT;
        }
        Err(reason) => return refuse(ctx, ifindex, direction, None, now, reason),
    };
    // SAFETY: copied at once, see `KernelPolicy::class`.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(ifindex) }).copied() else {
        return refuse(ctx, ifindex, direction, Some(&ip), now, Reason::UnknownEndpoint);
    };
    if let Some(reason) = addressed(&endpoint, &ip) {
        return refuse(ctx, ifindex, direction, Some(&ip), now, reason);
    }
    let packet = match frame::parse(ctx, &ip, ifindex, direction) {
        Ok(packet) => packet,
        Err(reason) => return refuse(ctx, ifindex, direction, Some(&ip), now, reason),
    };

    let scene = Scene { ifindex, endpoint: &endpoint, direction, generation, now };
    let decision = decide(&KernelPolicy, &mut KernelConntrack, &scene, &packet);
    flow::count(ctx, direction, decision.ruling.reason);
    if decision.is_news {
        flow::tell(ifindex, &endpoint, direction, &packet, now, &decision);
    }
    if decision.ruling.passes() { NEXT } else { DROP }
}

#[inline(always)]
fn refuse(
    ctx: &TcContext,
    ifindex: u32,
    direction: Direction,
    ip: Option<&Ip4Header>,
    now: u64,
    reason: Reason,
) -> i32 {
    flow::count(ctx, direction, reason);
    let (src, dst, protocol) = match ip {
        Some(ip) => (ip.src, ip.dst, ip.protocol),
        None => (Ip4::UNSPECIFIED, Ip4::UNSPECIFIED, 0),
    };
    flow::tell_refused(ifindex, direction, src, dst, protocol, now, reason);
    DROP
}
