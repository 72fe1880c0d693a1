//! Packets to services, and their answers, translated. In the chain of a pod's door this comes before the verdict on
//! what the pod sends, and after the one on what it gets: policy is about backends, whichever way one was asked.

mod direct;
pub mod known;
mod maps;
mod rewrite;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::{
    Arrival, NatMaps, Outcome, Tuple, answer_for, begin as begin_with, go_on as go_on_with, loopback, place,
    supersede, way,
};
use ebpf_shared::packet::{Kind, Packet, protocol};
use ebpf_shared::service::address_bit;
use ebpf_shared::{Addr, Direction, Led, Reason, ServiceKey, SockAddr, limits};

use self::maps::KernelNat;
use self::rewrite::Layout;
use crate::flow;
use crate::frame::{self, Frame};
use crate::maps::{ENDPOINTS, LOCALS, SERVED, STAGE, TRANSLATED};

/// Lets the next program on the interface, or the stack, go on with it.
const NEXT: i32 = TC_ACT_UNSPEC;

/// A packet on its way through the steps of [`at_place`]. Each is a function of its own, so that each has the stack, which is
/// short, to itself; what they tell each other lies here.
#[repr(C)]
pub struct Stage {
    arrival: Arrival,
    outcome: Outcome,
    outer: Tuple,
    layout: Layout,
}

const NO: u32 = 0;
const YES: u32 = 1;
/// It is not, but it opens a connection.
const PAST: u32 = 2;

/// All that is done with a packet at one of [`place`].
#[inline(always)]
pub fn at_place<const PLACE: u8>(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    if PLACE == place::FROM_POD {
        // SAFETY: the context is valid as long as the program runs.
        unsafe { lead(skb, &Led::NOWHERE) };
    }
    // SAFETY: as above.
    let known = unsafe { known::translate::<PLACE>(skb) };
    if known != known::ASK {
        return known as i32;
    }
    let Some(stage) = STAGE.get_ptr_mut(0) else { return NEXT };
    // SAFETY: as above. The stage is this CPU's own, and programs of this type don't interrupt each other on one CPU.
    unsafe {
        let is_asked = look(skb, stage, u32::from(PLACE));
        if is_asked == NO {
            return NEXT;
        }
        if is_asked == PAST || (go_on(stage) == NO && begin(stage) == NO) {
            go_past(stage);
            return NEXT;
        }
        finish(skb, stage) as i32
    }
}

/// Whether a packet may be a service's: parses it.
///
/// # Safety
/// A context, and the stage.
#[inline(never)]
unsafe fn look(skb: *mut __sk_buff, stage: *mut Stage, place: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let place = place as u8;
    // SAFETY: as the caller says.
    let (stage, ifindex) = unsafe { (&mut *stage, (*skb).ifindex) };
    if place == place::TO_POD && !is_translated(ifindex) {
        return NO;
    }
    // Which way it goes matters to nothing that is looked at here: whoever sends an error sends it to the sender of
    // what it quotes, and that is asked for what comes in.
    let Ok(Frame::Ip(ip)) = frame::classify(&ctx, Direction::Ingress) else { return NO };
    let asked = if place == place::TO_NET { &ip.src } else { &ip.dst };
    let is_served = place == place::TO_POD || is_served(address_bit(asked));
    if !is_served && !(place == place::FROM_POD && is_translated(ifindex)) {
        return NO;
    }
    // A borrowed address: the verdict drops it.
    if place == place::FROM_POD && !is_owner(ifindex, &ip.src) {
        return NO;
    }
    let Ok((packet, placed)) = frame::parse_placed(&ctx, &ip, ifindex, Direction::Ingress) else {
        return NO;
    };
    let frame::Placed { at: upper, has_upper, .. } = placed;
    let is_v4 = packet.dst.is_v4();
    let Ok(mac) = ctx.load::<[u8; 6]>(frame::SENDER) else { return NO };
    // SAFETY: no preconditions.
    stage.arrival = Arrival::of(&packet, place, ifindex, mac, unsafe { bpf_ktime_get_ns() });
    let known = packet.protocol == protocol::TCP || packet.protocol == protocol::UDP;
    if !known || !is_served || !concerns(place, &packet) {
        return if packet.opens() { PAST } else { NO };
    }
    stage.outer = Tuple { src: ip.src, dst: ip.dst, src_port: 0, dst_port: 0 };
    stage.layout = Layout { is_v4, upper, has_upper, protocol: packet.protocol };
    if place == place::FROM_NET && packet.opens() && direct::has_option(is_v4, upper) {
        let asked = direct::asked(&ctx, is_v4);
        if asked.port != 0 && answer_for(&mut KernelNat, &stage.arrival, asked) {
            return NO;
        }
    }
    YES
}

/// Whether it belongs to a flow that is known.
///
/// # Safety
/// The stage.
#[inline(never)]
unsafe fn go_on(stage: *mut Stage) -> u32 {
    // SAFETY: as the caller says.
    let stage = unsafe { &mut *stage };
    stage.outcome = go_on_with(&mut KernelNat, &stage.arrival);
    if stage.outcome.way == way::PASS { NO } else { YES }
}

/// Whether it begins one.
///
/// # Safety
/// The stage.
#[inline(never)]
unsafe fn begin(stage: *mut Stage) -> u32 {
    // SAFETY: as the caller says.
    let stage = unsafe { &mut *stage };
    stage.outcome = begin_with(&mut KernelNat, &stage.arrival);
    if stage.outcome.way == way::PASS { NO } else { YES }
}

/// Of what is about no service: it may have the ends of what was.
///
/// # Safety
/// The stage.
#[inline(never)]
unsafe fn go_past(stage: *mut Stage) {
    // SAFETY: as the caller says.
    supersede(&mut KernelNat, unsafe { &(*stage).arrival });
}

/// Changes the packet, and says where it goes.
///
/// # Safety
/// A context, and the stage.
#[inline(never)]
unsafe fn finish(skb: *mut __sk_buff, stage: *mut Stage) -> u32 {
    let ctx = TcContext::new(skb);
    // SAFETY: as the caller says.
    let (stage, ifindex) = unsafe { (&*stage, (*skb).ifindex) };
    let Stage { arrival, outer, layout, outcome } = stage;
    let Outcome { tuple: to, way, ifindex: out, .. } = outcome;
    let way = *way;
    if way == way::LED {
        let led = Led { backend: SockAddr::new(to.dst, to.dst_port), slot: *out as u16 };
        // SAFETY: as the caller says.
        unsafe { lead(skb, &led) };
        return NEXT as u32;
    }
    if !outcome.is_translated() {
        return refuse(&ctx, ifindex, arrival, outer, outcome.reason);
    }
    if arrival.place == place::FROM_POD {
        note_translated(ifindex);
    }
    let is_sent = way == way::OUT || (way == way::DIRECT && arrival.place == place::FROM_NET);
    if is_sent && !matches!(rewrite::hop(&ctx, layout.is_v4), Ok(true)) {
        return TC_ACT_SHOT as u32;
    }
    let done = if arrival.is_error {
        rewrite::error(&ctx, layout, outer, &arrival.tuple, to)
    } else {
        rewrite::packet(&ctx, layout, &arrival.tuple, to)
    };
    if done.is_err() {
        return TC_ACT_SHOT as u32;
    }
    if is_sent
        && way == way::DIRECT
        && arrival.opens
        && direct::tell(&ctx, layout.is_v4, &arrival.tuple).is_err()
    {
        return TC_ACT_SHOT as u32;
    }
    match way {
        // Into the pod, past its door: nobody needs leave to talk to himself.
        // SAFETY: no preconditions.
        way::BACK => unsafe { bpf_redirect_peer(ifindex, 0) as u32 },
        // The neighbour is found, and asked for, by the kernel: where to is in the packet.
        // SAFETY: no parameters.
        _ if is_sent => unsafe { bpf_redirect_neigh(*out, core::ptr::null_mut(), 0, 0) as u32 },
        _ => NEXT as u32,
    }
}

/// Tells the program behind this one which service a packet goes to, if a proxy of the node has it.
///
/// # Safety
/// A context.
#[inline(always)]
unsafe fn lead(skb: *mut __sk_buff, led: &Led) {
    let [first, a, b, c, d] = led.words();
    // SAFETY: as the caller says; word by word, as the kernel wants it.
    unsafe {
        let at = (&raw mut (*skb).cb).cast::<u32>();
        core::ptr::write_volatile(at, first);
        if first != 0 {
            core::ptr::write_volatile(at.add(1), a);
            core::ptr::write_volatile(at.add(2), b);
            core::ptr::write_volatile(at.add(3), c);
            core::ptr::write_volatile(at.add(4), d);
        }
    }
}

/// Whether a packet may be a service's, as far as that can be told at once.
#[inline(always)]
fn concerns(place: u8, packet: &Packet) -> bool {
    if matches!(packet.kind, Kind::Error) {
        return true;
    }
    let bit = |addr: Addr, port: u16| is_served(ServiceKey::new(addr, port, packet.protocol, 0).bit());
    match place {
        place::FROM_POD => packet.dst == loopback(packet.dst.is_v4()) || bit(packet.dst, packet.dst_port),
        place::FROM_NET => bit(packet.dst, packet.dst_port) || packet.dst_port >= KernelNat.node().first_port,
        place::TO_NET => bit(packet.src, packet.src_port),
        _ => true,
    }
}

#[inline(always)]
fn is_served(bit: u32) -> bool {
    match SERVED.get(bit / 64) {
        // SAFETY: a valid reference; volatile, as the agent may be writing.
        Some(word) => unsafe { core::ptr::read_volatile(word) & (1 << (bit % 64)) != 0 },
        None => false,
    }
}

/// Whether the pod behind an interface has ever asked for a service by packets: hardly any does.
#[inline(always)]
fn is_translated(ifindex: u32) -> bool {
    match TRANSLATED.get(ifindex % limits::TRANSLATED) {
        // SAFETY: a valid reference; volatile, as programs on other CPUs may be writing.
        Some(known) => unsafe { core::ptr::read_volatile(known) != 0 },
        None => false,
    }
}

#[inline(always)]
fn note_translated(ifindex: u32) {
    if is_translated(ifindex) {
        return;
    }
    if let Some(known) = TRANSLATED.get_ptr_mut(ifindex % limits::TRANSLATED) {
        // SAFETY: a valid pointer; whoever writes, writes the same.
        unsafe { core::ptr::write_volatile(known, 1) };
    }
}

#[inline(always)]
fn is_owner(ifindex: u32, addr: &Addr) -> bool {
    // SAFETY: an element that is replaced meanwhile stays readable until the end of the program (RCU, not preallocated).
    match unsafe { ENDPOINTS.get(ifindex) } {
        Some(endpoint) => endpoint.owns(addr),
        None => false,
    }
}

#[inline(always)]
fn refuse(ctx: &TcContext, ifindex: u32, arrival: &Arrival, outer: &Tuple, reason: Reason) -> u32 {
    let from_pod = arrival.place == place::FROM_POD;
    let direction = if from_pod { Direction::Egress } else { Direction::Ingress };
    flow::count(ctx, direction, reason);
    let Tuple { src, dst, .. } = *outer;
    flow::tell_refused(ctx, ifindex, direction, src, dst, arrival.protocol, arrival.now, reason);
    // At an address of its own, the node's stack says that nobody is there: a reset, or an ICMP error.
    // SAFETY: only whether it is there is asked.
    if matches!(reason, Reason::NoBackend) && unsafe { LOCALS.get(&outer.dst) }.is_some() {
        return NEXT as u32;
    }
    TC_ACT_SHOT as u32
}
