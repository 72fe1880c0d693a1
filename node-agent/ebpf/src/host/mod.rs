//! Policy for the node itself, at every way by which packets reach it or leave it: its own interfaces, the tunnel's device
//! and the doors of its pods. What services do to a packet comes before this where it comes in, and after it where it goes
//! out; what a pod's policy drops never gets here.
//!
//! Never judged: anything, while no policy selects the node; what is not from or to one of its addresses; what finds
//! neighbours and routers; the tunnel's outer packets between nodes; connections to where the control plane listens; what
//! was handed to a proxy of this node; and what only passes under its address (masqueraded pods, containers of others).

mod origin;

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::{Message, Scene, of_no_flow};
use ebpf_shared::host::INTERFACE;
use ebpf_shared::packet::{Kind, Packet, protocol};
use ebpf_shared::{Addr, Direction, Endpoint, NoProxies, Reason, SockAddr, decide, overlay};

use crate::conntrack::KernelConntrack;
use crate::flow;
use crate::frame::{self, ETHERNET, Frame, Ip};
use crate::maps::{CONTROL, ENDPOINTS, GUARDED, HOST_STAGE, LOCALS, NODES};
use crate::policy::KernelPolicy;

const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// What the steps of [`at_host`] tell each other. Each is a function of its own, as in `crate::nat`.
#[repr(C)]
pub struct HostStage {
    packet: Packet,
    /// The node's, with the number of the address that the packet is about.
    endpoint: Endpoint,
    /// The identity that the overlay vouches for; 0: none.
    claimed: u32,
    /// Of what answers or tells of a flow; else of an earlier packet.
    message: Message,
    now: u64,
}

/// What a step found.
const PASS: u32 = 0;
const REFUSE: u32 = 1;
const GO_ON: u32 = 2;

/// Packets that come in, from wherever.
#[classifier]
pub fn host_in(ctx: TcContext) -> i32 {
    at_host(&ctx, Direction::Ingress)
}

/// Packets that go out, to wherever.
#[classifier]
pub fn host_out(ctx: TcContext) -> i32 {
    at_host(&ctx, Direction::Egress)
}

#[inline(always)]
fn at_host(ctx: &TcContext, direction: Direction) -> i32 {
    match GUARDED.get(0) {
        // SAFETY: a valid reference; volatile, as the agent may be writing.
        Some(guarded) if unsafe { core::ptr::read_volatile(guarded) } != 0 => {}
        _ => return NEXT,
    }
    let Some(stage) = HOST_STAGE.get_ptr_mut(0) else { return NEXT };
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid as long as the program runs. The stage is this CPU's own, and programs of this type
    // don't interrupt each other on one CPU.
    unsafe {
        match look(skb, stage, direction as u32) {
            PASS => return NEXT,
            REFUSE => return DROP,
            _ => {}
        }
        if origin::is_others(skb, stage, direction as u32) != 0 {
            return NEXT;
        }
        judge(skb, stage, direction as u32) as i32
    }
}

#[inline(always)]
fn way(number: u32) -> Direction {
    if number == Direction::Egress as u32 { Direction::Egress } else { Direction::Ingress }
}

/// Whether a packet is the node's, and to be judged: parses it.
///
/// # Safety
/// A context, and the stage.
#[inline(never)]
unsafe fn look(skb: *mut __sk_buff, stage: *mut HostStage, direction: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let direction = way(direction);
    // SAFETY: as the caller says.
    let (stage, ifindex, mark) = unsafe { (&mut *stage, (*skb).ifindex, (*skb).mark) };
    // SAFETY: no preconditions.
    stage.now = unsafe { bpf_ktime_get_ns() };
    // For or from a proxy of this node: the pod's policy has decided. Marks end at a pod's door.
    if matches!(mark >> 24, 0xa2 | 0xa3) {
        return PASS;
    }
    let ip = match frame::classify(&ctx, direction) {
        Ok(Frame::Ip(ip)) => ip,
        // Address resolution, and what is no IP.
        Ok(Frame::Link) | Err(Reason::UnsupportedEthertype) => return PASS,
        Err(reason) => return refuse(&ctx, direction, None, stage.now, reason),
    };
    let own = match direction {
        Direction::Ingress => &ip.dst,
        Direction::Egress => &ip.src,
    };
    // SAFETY: an element that is replaced meanwhile stays readable until the end of the program (RCU, not preallocated).
    let (Some(number), Some(endpoint)) = (unsafe { LOCALS.get(own) }, unsafe { ENDPOINTS.get(INTERFACE) })
    else {
        return PASS;
    };
    stage.endpoint = Endpoint { incarnation: *number as u16, ..*endpoint };
    if ip.is_discovery || is_of_the_link(&ctx, &ip) {
        return PASS;
    }
    stage.packet = match frame::parse_placed(&ctx, &ip, ifindex, direction) {
        Ok((packet, placed)) => {
            if !matches!(packet.kind, Kind::Plain) {
                stage.message = frame::message(&ctx, &ip, &placed, direction);
            }
            packet
        }
        // A protocol without ports: judged by the addresses, as far as rules are about all protocols.
        Err(Reason::UnsupportedProtocol) => Packet {
            src: ip.src,
            dst: ip.dst,
            src_port: 0,
            dst_port: 0,
            protocol: ip.protocol,
            tcp_flags: 0,
            kind: Kind::Plain,
        },
        // As a router, the node tells of packets that were not to it.
        Err(Reason::UnrelatedIcmp) if matches!(direction, Direction::Egress) => return PASS,
        Err(reason) => return refuse(&ctx, direction, Some(&ip), stage.now, reason),
    };
    stage.claimed = match (direction, stage.packet.kind) {
        (Direction::Ingress, Kind::Plain | Kind::EchoReply) => overlay::claimed(mark),
        _ => 0,
    };
    if is_spared(&stage.packet) { PASS } else { GO_ON }
}

/// Neighbour and router discovery (RFC 4861): it can't come from further away than the link.
#[inline(always)]
fn is_of_the_link(ctx: &TcContext, ip: &Ip) -> bool {
    const HOP_LIMIT: usize = ETHERNET + 7;
    const ICMPV6_TYPE: usize = ETHERNET + 40;
    if ip.src.is_v4() || ip.protocol != protocol::ICMPV6 {
        return false;
    }
    let (Ok(hops), Ok(kind)) = (ctx.load::<u8>(HOP_LIMIT), ctx.load::<u8>(ICMPV6_TYPE)) else { return false };
    hops == 255 && kind >= 133 && kind <= 137
}

/// Whether it is between nodes of the overlay, or from or to where the control plane listens. (Of an error, what it is about.)
#[inline(always)]
fn is_spared(packet: &Packet) -> bool {
    if packet.protocol == protocol::UDP && packet.dst_port == overlay::PORT {
        return is_node(&packet.src) && is_node(&packet.dst);
    }
    if packet.protocol != protocol::TCP {
        return false;
    }
    // Who listens there opens nothing from there.
    is_control(&packet.dst, packet.dst_port) || (!packet.opens() && is_control(&packet.src, packet.src_port))
}

#[inline(always)]
fn is_node(addr: &Addr) -> bool {
    match NODES.get(Key::new(Addr::BITS, *addr)) {
        Some(hop) => (hop.is_here() || hop.is_tunnelled()) && hop.sends_from(addr),
        None => false,
    }
}

#[inline(always)]
fn is_control(addr: &Addr, port: u16) -> bool {
    let at = SockAddr::new(*addr, port);
    // SAFETY: only whether it is there is asked.
    unsafe { CONTROL.get(&at) }.is_some()
}

/// The verdict, as at a pod's door.
///
/// # Safety
/// A context, and the stage.
#[inline(never)]
unsafe fn judge(skb: *mut __sk_buff, stage: *mut HostStage, direction: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let direction = way(direction);
    // SAFETY: as the caller says. Volatile, for the reason that `crate::verdict` says.
    let (packet, stage) = unsafe { (core::ptr::read_volatile(&raw const (*stage).packet), &*stage) };
    // Policies for nodes lead to no proxies.
    let scene = Scene {
        ifindex: INTERFACE,
        endpoint: &stage.endpoint,
        direction,
        now: stage.now,
        from_proxy: false,
        is_piece: false,
    };
    let policy = KernelPolicy { claimed: stage.claimed, from_pod: false };
    let decision = decide(&policy, &mut KernelConntrack, &mut NoProxies, &scene, &packet);
    let decision = of_no_flow(&policy, &scene, &stage.message, decision);
    flow::count(&ctx, direction, decision.ruling.reason);
    if decision.is_news {
        flow::tell(&ctx, &policy, INTERFACE, &stage.endpoint, direction, &packet, stage.now, &decision, 0);
    }
    if decision.ruling.passes() { NEXT as u32 } else { DROP as u32 }
}

#[inline(always)]
fn refuse(ctx: &TcContext, direction: Direction, ip: Option<&Ip>, now: u64, reason: Reason) -> u32 {
    flow::count(ctx, direction, reason);
    let (src, dst, protocol) = match ip {
        Some(ip) => (ip.src, ip.dst, ip.protocol),
        None => (Addr::UNSPECIFIED, Addr::UNSPECIFIED, 0),
    };
    flow::tell_refused(ctx, INTERFACE, direction, src, dst, protocol, now, reason);
    REFUSE
}
