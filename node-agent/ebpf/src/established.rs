//! What nearly all packets are: another one of a flow that is known, and that nothing has happened to since it was judged.
//! They pass here, in one of two ways. Whatever neither can say yes to, [`crate::verdict`] is to decide; and whatever one
//! says yes to, that would let pass as well, without a word ([`ConnEntry::goes_on`]).
//!
//! 1. The flow is in [`RECENT`], a small table of this processor's own. What it says holds for as long as nothing that
//!    a verdict rests on has changed, which the epochs tell (an endpoint's change raises that of its class), and for a
//!    fraction of a second at most: then the flow is looked up again, so that it is not forgotten while it goes on, and what
//!    has become of it meanwhile by packets on other processors is seen.
//! 2. Else the pod and the flow are looked up.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::TcContext;
use ebpf_shared::conntrack::Basis;
use ebpf_shared::{Addr, ConnEntry, ConnKey, Direction, PolicyMaps, Reason};

use crate::flow;
use crate::frame::plain::{self, Plain};
use crate::maps::{CONNTRACK, ENDPOINTS, RECENT};
use crate::policy::KernelPolicy;

/// Flows of each processor, of both directions: a power of two.
pub const FLOWS: u32 = 2_048;
/// Ticks for which what [`RECENT`] says holds: of the kernel's, of which there are 100 to 1,000 in a second.
pub const TICKS: u64 = 100;

/// A packet that has passed, and what it has passed by: value of `RECENT`.
#[repr(C)]
pub struct Recent {
    src: Addr,
    dst: Addr,
    /// In network order.
    src_port: u16,
    dst_port: u16,
    ifindex: u32,
    /// See [`PolicyMaps::stamp`].
    stamp: u64,
    /// When the flow was looked up.
    tick: u64,
    class: u32,
    protocol: u8,
    padding: [u8; 3],
}

/// Whether a packet passes a pod's door, because its flow does; 0: that is not said. Counts it, if so. A function of its own,
/// for the stack, see `verdict::begin`.
///
/// # Safety
/// A context.
#[inline(never)]
pub unsafe fn passes<const IS_EGRESS: bool>(skb: *mut __sk_buff) -> u32 {
    let direction = if IS_EGRESS { Direction::Egress } else { Direction::Ingress };
    // SAFETY: as the caller says.
    let goes_on = unsafe { goes_on(skb, direction) };
    if goes_on {
        flow::count(&TcContext::new(skb), direction, Reason::Forwarded);
    }
    goes_on as u32
}

/// # Safety
/// A context.
#[inline(always)]
unsafe fn goes_on(skb: *mut __sk_buff, direction: Direction) -> bool {
    // SAFETY: as the caller says.
    let Some(packet) = (unsafe { plain::read(skb) }) else { return false };
    // SAFETY: as the caller says.
    let ifindex = unsafe { (*skb).ifindex };
    let place = place(&packet, direction);
    let Some(recent) = RECENT.get_ptr_mut(place) else { return false };
    // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
    let recent = unsafe { &mut *recent };
    if !packet.is_of_the_middle() {
        // Whatever becomes of the flow by this, in either direction.
        recent.tick = 0;
        if let Some(other) = RECENT.get_ptr_mut(place ^ 1) {
            // SAFETY: as above.
            unsafe { (*other).tick = 0 };
        }
        return false;
    }
    let peer = match direction {
        Direction::Ingress => &packet.src,
        Direction::Egress => &packet.dst,
    };
    // SAFETY: no preconditions.
    let tick = unsafe { bpf_jiffies64() };
    let policy = KernelPolicy { claimed: 0, from_pod: false };
    let is_recent = recent.is_of(&packet, ifindex)
        && tick.wrapping_sub(recent.tick) < TICKS
        && recent.stamp == policy.stamp(recent.class, peer);
    if is_recent {
        return true;
    }
    match look(&packet, peer, ifindex, direction) {
        Some(basis) => {
            *recent = Recent {
                src: packet.src,
                dst: packet.dst,
                src_port: packet.src_port,
                dst_port: packet.dst_port,
                ifindex,
                stamp: basis.stamp,
                tick,
                class: basis.number,
                protocol: packet.protocol,
                padding: [0; 3],
            };
            true
        }
        None => false,
    }
}

impl Recent {
    #[inline(always)]
    fn is_of(&self, packet: &Plain, ifindex: u32) -> bool {
        is_between(packet, &self.src, &self.dst)
            && self.src_port == packet.src_port
            && self.dst_port == packet.dst_port
            && self.ifindex == ifindex
            && self.protocol == packet.protocol
    }
}

/// Whether a packet goes from one address to the other: equality without a branch for each word.
#[inline(always)]
pub fn is_between(packet: &Plain, src: &Addr, dst: &Addr) -> bool {
    let differ = |a: &Addr, b: &Addr| {
        let (a, b) = (a.words(), b.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])
    };
    differ(&packet.src, src) | differ(&packet.dst, dst) == 0
}

/// Where in [`RECENT`] a packet's flow is; that of the packets of the other direction is beside it.
#[inline(always)]
fn place(packet: &Plain, direction: Direction) -> u32 {
    spread(packet) % (FLOWS / 2) << 1 | direction as u32
}

/// A hash of a packet's ends, the same for both directions: 16 bits.
#[inline(always)]
pub fn spread(packet: &Plain) -> u32 {
    const SPREAD: u32 = 0x9e37_79b1;
    let end = |addr: &Addr, port: u16| {
        let [a, b, c, d] = addr.words();
        let rest = if packet.is_v4 { 0 } else { a ^ b.rotate_left(7) ^ c.rotate_left(14) };
        (rest ^ d ^ u32::from(port)).wrapping_mul(SPREAD)
    };
    let sum = end(&packet.src, packet.src_port).wrapping_add(end(&packet.dst, packet.dst_port));
    (sum ^ sum >> 15).wrapping_mul(SPREAD) >> 16
}

/// What a flow was judged by.
struct Judged {
    stamp: u64,
    /// The endpoint's class.
    number: u32,
}

/// What the flow of a packet was judged by, if that goes on. `None`: that is not said.
#[inline(always)]
fn look(packet: &Plain, peer: &Addr, ifindex: u32, direction: Direction) -> Option<Judged> {
    // SAFETY: stays readable and as it is until the end of the program (RCU, not preallocated).
    let endpoint = unsafe { ENDPOINTS.get(ifindex) }?;
    let (own, own_port, peer_port) = match direction {
        Direction::Ingress => (&packet.dst, packet.dst_port, packet.src_port),
        Direction::Egress => (&packet.src, packet.src_port, packet.dst_port),
    };
    if !endpoint.owns(own) {
        return None;
    }
    let stamp = KernelPolicy { claimed: 0, from_pod: false }.stamp(endpoint.class, peer);
    let basis = Basis { stamp, class: endpoint.judged_as() };
    let (own_port, peer_port) = (u16::from_be(own_port), u16::from_be(peer_port));
    // Clients' ports are mostly the higher ones.
    let began = if own_port > peer_port { Direction::Egress } else { Direction::Ingress };
    let mut key = ConnKey {
        ifindex,
        peer: *peer,
        own_port,
        peer_port,
        protocol: packet.protocol,
        began: began as u8,
        incarnation: endpoint.incarnation,
    };
    let entry = match find(&key) {
        Some(entry) => entry,
        None => {
            key = key.answered();
            find(&key)?
        }
    };
    // SAFETY: no preconditions. Some milliseconds late, which the lifetimes of flows don't mind.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let goes_on = entry.goes_on(basis, key.began != direction as u8, now);
    if goes_on { Some(Judged { stamp, number: endpoint.class }) } else { None }
}

#[inline(always)]
fn find(key: &ConnKey) -> Option<&'static ConnEntry> {
    // SAFETY: see `crate::conntrack`.
    unsafe { CONNTRACK.get(key) }
}
