//! Other addresses and ports in a packet, and the checksums that go with them (RFC 1624).

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::bpf_csum_diff;
use aya_ebpf::programs::TcContext;
use ebpf_shared::Addr;
use ebpf_shared::nat::Tuple;
use ebpf_shared::packet::protocol;

use crate::frame::ETHERNET;
use crate::frame::plain::{HEADER4, HEADER6, Plain};

/// Where things are.
#[derive(Clone, Copy)]
pub struct Layout {
    pub is_v4: bool,
    /// Of the transport header.
    pub upper: usize,
    /// Whether it is in this packet: not in later pieces of a datagram.
    pub has_upper: bool,
    pub protocol: u8,
}

type Done = Result<(), i64>;

const PSEUDO: u64 = BPF_F_PSEUDO_HDR as u64;
const MANGLED: u64 = BPF_F_MARK_MANGLED_0 as u64;

const ICMP_CHECKSUM: usize = 2;
const IPV4_CHECKSUM: usize = 10;
const FRAGMENT: u8 = 44;

/// Makes a packet go from one tuple to another.
#[inline(always)]
pub fn packet(ctx: &TcContext, layout: &Layout, from: &Tuple, to: &Tuple) -> Done {
    let change = addresses_changed(from, to);
    if layout.has_upper {
        let (checksum, mangled) = match layout.protocol {
            protocol::TCP => (layout.upper + 16, 0),
            // 0 says that there is none, and stays.
            _ => (layout.upper + 6, MANGLED),
        };
        ctx.l4_csum_replace(checksum, 0, change, PSEUDO | mangled)?;
        ctx.l4_csum_replace(checksum, ports(from), ports(to), 4 | mangled)?;
        ctx.store(layout.upper, &wire_ports(to), 0)?;
    }
    addresses(ctx, layout.is_v4, ETHERNET, change, to)
}

/// As [`packet`], of a frame whose headers follow on each other: addresses and ports are written at once.
#[inline(always)]
pub fn plain(ctx: &TcContext, packet: &Plain, to: &Tuple) -> Done {
    let change = addresses_differ(packet, to);
    let ports = [to.src_port.to_be(), to.dst_port.to_be()];
    let was = [packet.src_port, packet.dst_port];
    let is_v4 = packet.is_v4;
    let upper = ETHERNET + if is_v4 { HEADER4 } else { HEADER6 };
    let (checksum, mangled) = match packet.protocol {
        protocol::TCP => (upper + 16, 0),
        _ => (upper + 6, MANGLED),
    };
    ctx.l4_csum_replace(checksum, 0, u64::from(change), PSEUDO | mangled)?;
    if ports != was {
        let word = |ports: [u16; 2]| u64::from(ports[0]) | u64::from(ports[1]) << 16;
        ctx.l4_csum_replace(checksum, word(was), word(ports), 4 | mangled)?;
    }
    if is_v4 {
        let checksum = !folded(u32::from(!packet.checksum), change);
        let (src, dst) = (to.src.low().to_be(), to.dst.low().to_be());
        ctx.store(ETHERNET + IPV4_CHECKSUM, &Ends4 { checksum, src, dst, ports }, 0)
    } else {
        ctx.store(ETHERNET + 8, &Ends6 { src: to.src, dst: to.dst, ports }, 0)
    }
}

/// What lies at the end of an IPv4 header without options and after it.
#[repr(C, packed)]
struct Ends4 {
    checksum: u16,
    src: u32,
    dst: u32,
    ports: [u16; 2],
}

/// The same of IPv6.
#[repr(C)]
struct Ends6 {
    src: Addr,
    dst: Addr,
    ports: [u16; 2],
}

/// As [`addresses_changed`].
#[inline(always)]
fn addresses_differ(from: &Plain, to: &Tuple) -> u32 {
    let mut sum = 0_u64;
    for (was, is) in [(&from.src, &to.src), (&from.dst, &to.dst)] {
        let (was, is) = (was.words(), is.words());
        let mut differ = |word: usize| sum += u64::from(!was[word]) + u64::from(is[word]);
        differ(3);
        // (What IPv4 addresses have before that here is on both sides.)
        if !from.is_v4 {
            differ(0);
            differ(1);
            differ(2);
        }
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// The sum of two as checksums have it (RFC 1071), in 16 bits.
#[inline(always)]
const fn folded(a: u32, b: u32) -> u16 {
    let sum = a as u64 + b as u64;
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Makes an ICMP error about a packet of the other direction one about the packet as its sender knows it. `from` and `to`
/// are tuples of the error's own direction; whoever sent it keeps its address, unless it is the other end itself.
#[inline(always)]
pub fn error(ctx: &TcContext, layout: &Layout, outer: &Tuple, from: &Tuple, to: &Tuple) -> Done {
    let quoted = layout.upper + 8;
    let (from_quoted, to_quoted) = (from.reversed(), to.reversed());
    let inner_change = addresses_changed(&from_quoted, &to_quoted);
    let mut inner = quoted + if layout.is_v4 { usize::from(ctx.load::<u8>(quoted)? & 0xf) * 4 } else { 40 };
    if !layout.is_v4 && ctx.load::<u8>(quoted + 6)? == FRAGMENT {
        inner += 8;
    }
    let checksum = layout.upper + ICMP_CHECKSUM;
    ctx.l4_csum_replace(checksum, ports(&from_quoted), ports(&to_quoted), 4)?;
    ctx.store(inner, &wire_ports(&to_quoted), 0)?;
    addresses(ctx, layout.is_v4, quoted, inner_change, &to_quoted)?;
    let new_outer =
        Tuple { src: if outer.src == from.src { to.src } else { outer.src }, dst: to.dst, ..*outer };
    let outer_change = addresses_changed(outer, &new_outer);
    if !layout.is_v4 {
        // (In IPv4 the quoted header's own checksum makes up for its addresses, and there is no pseudo header.)
        ctx.l4_csum_replace(checksum, 0, inner_change, 0)?;
        ctx.l4_csum_replace(checksum, 0, outer_change, PSEUDO)?;
    }
    addresses(ctx, layout.is_v4, ETHERNET, outer_change, &new_outer)
}

/// One hop fewer to go. False if it was the last.
#[inline(always)]
pub fn hop(ctx: &TcContext, is_v4: bool) -> Result<bool, i64> {
    if is_v4 {
        let at = ETHERNET + 8;
        let before = ctx.load::<[u8; 2]>(at)?;
        if before[0] <= 1 {
            return Ok(false);
        }
        let after = [before[0] - 1, before[1]];
        let word = |bytes: [u8; 2]| u64::from(u16::from_ne_bytes(bytes));
        ctx.l3_csum_replace(ETHERNET + IPV4_CHECKSUM, word(before), word(after), 2)?;
        ctx.store(at, &after, 0)?;
    } else {
        let at = ETHERNET + 7;
        let before = ctx.load::<u8>(at)?;
        if before <= 1 {
            return Ok(false);
        }
        ctx.store(at, &(before - 1), 0)?;
    }
    Ok(true)
}

/// Writes the addresses of the IP header there.
#[inline(always)]
fn addresses(ctx: &TcContext, is_v4: bool, header: usize, change: u64, to: &Tuple) -> Done {
    if is_v4 {
        ctx.l3_csum_replace(header + IPV4_CHECKSUM, 0, change, 0)?;
        ctx.store(header + 12, &to.src.low(), 0)?;
        ctx.store(header + 16, &to.dst.low(), 0)
    } else {
        ctx.store(header + 8, &to.src, 0)?;
        ctx.store(header + 24, &to.dst, 0)
    }
}

/// What a checksum over the addresses changes by. (What IPv4 addresses have before them here is on both sides.)
#[inline(always)]
fn addresses_changed(from: &Tuple, to: &Tuple) -> u64 {
    const BYTES: u32 = 32;
    let words = |tuple: &Tuple| core::ptr::from_ref(tuple).cast::<u32>().cast_mut();
    // SAFETY: both begin with 32 bytes of addresses; the helper only reads.
    unsafe { bpf_csum_diff(words(from), BYTES, words(to), BYTES, 0) as u64 }
}

#[inline(always)]
fn wire_ports(tuple: &Tuple) -> [u16; 2] {
    [tuple.src_port.to_be(), tuple.dst_port.to_be()]
}

#[inline(always)]
fn ports(tuple: &Tuple) -> u64 {
    let [src, dst] = wire_ports(tuple);
    u64::from(src) | u64::from(dst) << 16
}
