//! One packet at one pod's door: look who it is, judge, count, tell.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::{Message, Scene, of_no_flow, settle, weigh};
use ebpf_shared::redirect::NO_SLOT;
use ebpf_shared::{Addr, Decision, Direction, Endpoint, Kind, Packet, Reason, Ruling, overlay};

use crate::asked;
use crate::conntrack::KernelConntrack;
use crate::established;
use crate::flow;
use crate::frame::{self, Frame, Ip};
use crate::maps::{ENDPOINTS, SCRATCH};
use crate::policy::KernelPolicy;
use crate::redirect::{self, KernelProxies};
use crate::refuse;

/// Lets the next program on the interface, if there is one, have its say.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// No verdict yet: [`conclude`] is to find it.
const UNSETTLED: u32 = 0x100;
/// Dropped, and the pod is to be told so.
const REFUSED: u32 = 0x101;
/// It is looked at no further than its addresses: [`read`] and [`judge`] are to go on.
const ADDRESSED: u32 = 0x102;

/// Decides on a frame; `addressed` says why the endpoint may not send or be sent it, if so.
#[inline(always)]
pub fn at_door(
    ctx: &TcContext,
    direction: Direction,
    addressed: impl Fn(&Endpoint, &Ip) -> Option<Reason>,
) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid as long as the program runs.
    unsafe {
        let passes = match direction {
            Direction::Ingress => established::passes::<false>(skb),
            // What is for a proxy is judged by another address than it bears.
            Direction::Egress if is_led(skb) => 0,
            Direction::Egress => established::passes::<true>(skb),
        };
        if passes != 0 {
            return NEXT;
        }
        let verdict = match direction {
            Direction::Ingress => meet::<false>(skb, addressed),
            Direction::Egress => meet::<true>(skb, addressed),
        };
        let verdict = if verdict == ADDRESSED {
            let is_read = read(skb, direction as u32);
            judge(skb, direction as u32, is_read)
        } else {
            verdict
        };
        let verdict = if verdict == UNSETTLED { conclude(skb, direction as u32) } else { verdict };
        if matches!(direction, Direction::Egress) && verdict == REFUSED {
            return refuse::answer(skb) as i32;
        }
        verdict as i32
    }
}

/// Whose packet it is, and whether that may be. This, [`read`], [`judge`] and [`conclude`] are functions of their own, so that
/// each has the stack, which is short, to itself, and the verifier walks the next without regard to what it came from: all that
/// one leaves to another lies in [`SCRATCH`]. In one piece they are three times as many instructions to it.
///
/// # Safety
/// A context.
#[inline(never)]
unsafe fn meet<const IS_EGRESS: bool>(
    skb: *mut __sk_buff,
    addressed: impl Fn(&Endpoint, &Ip) -> Option<Reason>,
) -> u32 {
    let direction = if IS_EGRESS { Direction::Egress } else { Direction::Ingress };
    // SAFETY: as the caller says.
    unsafe { look(&TcContext::new(skb), direction, addressed) as u32 }
}

#[inline(always)]
unsafe fn look(
    ctx: &TcContext,
    direction: Direction,
    addressed: impl Fn(&Endpoint, &Ip) -> Option<Reason>,
) -> i32 {
    // SAFETY: the context is valid as long as the program runs.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    let ip = match frame::classify(ctx, direction) {
        Ok(Frame::Ip(ip)) => ip,
        Ok(Frame::Link) => {
            flow::count(ctx, direction, Reason::Forwarded);
            return NEXT;
        }
        Err(reason) => return refuse(ctx, ifindex, direction, None, reason),
    };
    // SAFETY: an element that is replaced meanwhile stays readable and as it is until the end of the program (RCU), as
    // the map is not preallocated.
    let Some(endpoint) = (unsafe { ENDPOINTS.get(ifindex) }) else {
        return refuse(ctx, ifindex, direction, Some(&ip), Reason::UnknownEndpoint);
    };
    let reason = addressed(endpoint, &ip);
    if ip.is_discovery && reason.is_none() {
        flow::count(ctx, direction, Reason::Forwarded);
        return NEXT;
    }
    if let Some(reason) = reason {
        return refuse(ctx, ifindex, direction, Some(&ip), reason);
    }
    if matches!(direction, Direction::Egress) {
        note_led(ctx);
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return DROP };
    // SAFETY: this CPU's own, see `forget_how`.
    unsafe {
        core::ptr::write_volatile(&raw mut (*scratch).ip, ip);
        core::ptr::write_volatile(&raw mut (*scratch).endpoint, *endpoint);
    }
    ADDRESSED as i32
}

/// Leaves what is beyond the IP headers. If there is nothing that can be judged, it leaves the reason, and this is 0.
///
/// # Safety
/// A context, and `SCRATCH` has the addresses.
#[inline(never)]
unsafe fn read(skb: *mut __sk_buff, way: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let direction = if way == Direction::Egress as u32 { Direction::Egress } else { Direction::Ingress };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: as the caller says; this CPU's own.
    let (ifindex, mark, ip) = unsafe { ((*skb).ifindex, (*skb).mark, &(*scratch).ip) };
    let parsed = frame::parse_placed(&ctx, ip, ifindex, direction).and_then(|(packet, placed)| {
        if !matches!(packet.kind, Kind::Plain) {
            note_message(&frame::message(&ctx, ip, &placed, direction));
        }
        forget_how(packet, placed.is_piece, direction, mark)
    });
    let Err(reason) = parsed else { return 1 };
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*scratch).decision.ruling.reason, reason) };
    0
}

/// The verdict as far as packets have one mostly.
///
/// # Safety
/// A context, and `SCRATCH` has what [`read`] leaves.
#[inline(never)]
unsafe fn judge(skb: *mut __sk_buff, way: u32, is_read: u32) -> u32 {
    let ctx = &TcContext::new(skb);
    let direction = if way == Direction::Egress as u32 { Direction::Egress } else { Direction::Ingress };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return DROP as u32 };
    // SAFETY: as the caller says; this CPU's own.
    let (ifindex, mark, endpoint) = unsafe { ((*skb).ifindex, (*skb).mark, &(*scratch).endpoint) };
    if is_read == 0 {
        // SAFETY: as above.
        let (ip, reason) = unsafe {
            (&(*scratch).ip, core::ptr::read_volatile(&raw const (*scratch).decision.ruling.reason))
        };
        return refuse(ctx, ifindex, direction, Some(ip), reason) as u32;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above; volatile, for the verifier.
    let Seen { packet, claimed, is_piece } = unsafe { core::ptr::read_volatile(&raw const (*scratch).seen) };
    let from_proxy = matches!(direction, Direction::Ingress) && redirect::is_of_proxy(mark);
    let scene = Scene { ifindex, endpoint, direction, now, from_proxy, is_piece: is_piece != 0 };
    let policy = KernelPolicy { claimed, from_pod: matches!(direction, Direction::Egress) };
    let decision = weigh(&policy, &mut KernelConntrack, &scene, &packet);
    if decision.is_settled() {
        flow::count(ctx, direction, decision.ruling.reason);
        return NEXT as u32;
    }
    // SAFETY: this CPU's own, see `forget_how`.
    unsafe {
        (*scratch).now = now;
        core::ptr::write_volatile(&raw mut (*scratch).decision, decision);
    }
    UNSETTLED
}

/// Carries a decision out, and tells of it.
///
/// # Safety
/// A context, and `SCRATCH` is written.
#[inline(never)]
unsafe fn conclude(skb: *mut __sk_buff, way: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return DROP as u32 };
    // SAFETY: as the caller says; this CPU's own.
    let (ifindex, mark, now) = unsafe { ((*skb).ifindex, (*skb).mark, (*scratch).now) };
    // SAFETY: as above.
    let (seen, endpoint) = unsafe { (&(*scratch).seen, &(*scratch).endpoint) };
    // SAFETY: as above; volatile, for the verifier.
    let decision = unsafe { core::ptr::read_volatile(&raw const (*scratch).decision) };
    let direction = if way == Direction::Egress as u32 { Direction::Egress } else { Direction::Ingress };
    let from_proxy = matches!(direction, Direction::Ingress) && redirect::is_of_proxy(mark);
    let scene = Scene { ifindex, endpoint, direction, now, from_proxy, is_piece: seen.is_piece != 0 };
    let mut proxies = KernelProxies { ctx: &ctx };
    let decision = settle(&mut KernelConntrack, &mut proxies, &scene, &seen.packet, decision);
    // SAFETY: as above. By way of the map, so that what follows is walked once.
    let decision = unsafe {
        core::ptr::write_volatile(&raw mut (*scratch).decision, decision);
        judge_message(skb, way);
        asked::note(skb, way);
        core::ptr::read_volatile(&raw const (*scratch).decision)
    };
    let policy = KernelPolicy { claimed: seen.claimed, from_pod: false };
    flow::count(&ctx, direction, decision.ruling.reason);
    if decision.is_news {
        // SAFETY: as above.
        let service = unsafe { core::ptr::read_volatile(&raw const (*scratch).service) };
        flow::tell(&ctx, &policy, ifindex, endpoint, direction, &seen.packet, now, &decision, service);
    }
    if !decision.ruling.passes() {
        let is_told = matches!(direction, Direction::Egress)
            && matches!(decision.ruling.reason, Reason::ProxyGone)
            && matches!(seen.packet.kind, Kind::Plain);
        return if is_told { REFUSED } else { DROP as u32 };
    }
    // Redirected without a slot: an answer to what a proxy asked.
    let is_aside = matches!(direction, Direction::Ingress)
        && matches!(decision.ruling.reason, Reason::Redirected)
        && decision.ruling.proxy == NO_SLOT
        && !from_proxy;
    if is_aside { redirect::set_aside(&ctx) as u32 } else { NEXT as u32 }
}

#[inline(always)]
fn note_message(message: &Message) {
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: this CPU's own, see `forget_how`.
        unsafe { core::ptr::write_volatile(&raw mut (*scratch).message, *message) };
    }
}

/// Decides anew on what answers or tells of a flow that nobody knows.
///
/// # Safety
/// A context, and `SCRATCH` is written.
#[inline(never)]
unsafe fn judge_message(skb: *mut __sk_buff, way: u32) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    let direction = if way == Direction::Egress as u32 { Direction::Egress } else { Direction::Ingress };
    // SAFETY: as the caller says; this CPU's own.
    unsafe {
        let scene = Scene {
            ifindex: (*skb).ifindex,
            endpoint: &(*scratch).endpoint,
            direction,
            now: 0,
            from_proxy: false,
            is_piece: false,
        };
        let message = core::ptr::read_volatile(&raw const (*scratch).message);
        let before = core::ptr::read_volatile(&raw const (*scratch).decision);
        if !matches!(before.ruling.reason, Reason::UnrelatedIcmp) {
            return 0;
        }
        // Who an address is says the map: anybody may tell of a flow.
        let after = of_no_flow(&KernelPolicy { claimed: 0, from_pod: false }, &scene, &message, before);
        core::ptr::write_volatile(&raw mut (*scratch).decision, after);
    }
    0
}

/// What lies in [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// When the verdict was begun.
    now: u64,
    /// Of the packet's headers.
    ip: Ip,
    pub seen: Seen,
    pub ruling: Ruling,
    /// [`ebpf_shared::Led::words`], of what a pod sends.
    pub led: [u32; 5],
    pub decision: Decision,
    endpoint: Endpoint,
    /// Of news: [`ebpf_shared::FlowEvent::service`].
    pub service: u32,
    /// Of what answers or tells of a flow; else of an earlier packet.
    message: Message,
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
fn forget_how(packet: Packet, is_piece: bool, direction: Direction, mark: u32) -> Result<(), Reason> {
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
        core::ptr::write_volatile(
            &raw mut (*scratch).seen,
            Seen { packet, claimed, is_piece: is_piece as u32 },
        );
    }
    Ok(())
}

/// Whether a packet goes to a service that a proxy has.
///
/// # Safety
/// A context.
#[inline(always)]
unsafe fn is_led(skb: *mut __sk_buff) -> bool {
    // SAFETY: as the caller says.
    unsafe { core::ptr::read_volatile((&raw const (*skb).cb).cast::<u32>()) != 0 }
}

/// Keeps what `pod_asks` has told of the service that a packet goes to.
#[inline(always)]
fn note_led(ctx: &TcContext) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: the context is valid as long as the program runs; the other is this CPU's own, see `forget_how`. (Field by field:
    // the context can't be read otherwise.)
    unsafe {
        let (from, to) = (&raw const (*ctx.skb.skb).cb, &raw mut (*scratch).led);
        let word = |at: usize| core::ptr::read_volatile(from.cast::<u32>().add(at));
        let first = word(0);
        core::ptr::write_volatile(&raw mut (*to)[0], first);
        if first != 0 {
            core::ptr::write_volatile(&raw mut (*to)[1], word(1));
            core::ptr::write_volatile(&raw mut (*to)[2], word(2));
            core::ptr::write_volatile(&raw mut (*to)[3], word(3));
            core::ptr::write_volatile(&raw mut (*to)[4], word(4));
        }
    }
}

#[inline(always)]
fn refuse(ctx: &TcContext, ifindex: u32, direction: Direction, ip: Option<&Ip>, reason: Reason) -> i32 {
    flow::count(ctx, direction, reason);
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let (src, dst, protocol) = match ip {
        Some(ip) => (ip.src, ip.dst, ip.protocol),
        None => (Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0),
    };
    flow::tell_refused(ctx, ifindex, direction, src, dst, protocol, now, reason);
    DROP
}
