//! A short cut at the node's interface, for packets of clients outside to backends on other nodes, and for the answers:
//! flows that `from_net` knows are translated and sent back out before the stack has made anything of them. Whatever is
//! not the plain middle of such a flow (its opening and closing, options, pieces, errors, and a packet each second, by which
//! `from_net` keeps the flow) passes on to it: so the result is the same without.

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_ktime_get_ns};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use ebpf_shared::Addr;
use ebpf_shared::nat::{NatKey, Tuple, is_short_cut, place};
use ebpf_shared::packet::{protocol, tcp};

use crate::frame::ipv4::Ip4Header;
use crate::frame::{ETHERNET, IPV4, IPV6};
use crate::maps::{ACCELERATED, BACKENDS, NAT};

#[repr(C)]
struct Ethernet {
    dst: [u8; 6],
    src: [u8; 6],
    kind: u16,
}

/// RFC 8200.
#[repr(C)]
struct Ip6Header {
    version_class_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    src: [u16; 8],
    dst: [u16; 8],
}

#[repr(C)]
struct Tcp {
    ports: [u16; 2],
    numbers: [u16; 4],
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

#[repr(C)]
struct Udp {
    ports: [u16; 2],
    length: u16,
    checksum: u16,
}

/// More fragments, and the offset.
const PIECE: u16 = 0x3fff;
const SIMPLE: u8 = 0x45;

#[xdp]
pub fn net_xdp(ctx: XdpContext) -> u32 {
    short_cut(&ctx).unwrap_or(XDP_PASS)
}

/// What lies there, if the packet is long enough.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<&mut T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, which is this program's own; everything in it is of 16 bits at most, or packed alike.
    Some(unsafe { &mut *(start as *mut T) })
}

/// `None`: it goes the usual way.
#[inline(always)]
fn short_cut(ctx: &XdpContext) -> Option<u32> {
    match u16::from_be(at::<Ethernet>(ctx, 0)?.kind) {
        IPV4 => {
            let ip = at::<Ip4Header>(ctx, ETHERNET)?;
            if ip.version_and_length != SIMPLE || u16::from_be(ip.fragment) & PIECE != 0 || ip.ttl <= 1 {
                return None;
            }
            let payload = usize::from(u16::from_be(ip.total_length)).checked_sub(20)?;
            let ends = Ends { src: Addr::v4(ip.src), dst: Addr::v4(ip.dst) };
            let key = key(ctx, ETHERNET + 20, payload, ip.protocol, &ends)?;
            let cut = find(ctx, &key)?;
            let change = cut.change(true);
            let ip = at::<Ip4Header>(ctx, ETHERNET)?;
            ip.src = cut.to.src.low();
            ip.dst = cut.to.dst.low();
            // The hop is one of the words as well: the upper half of its own.
            let hop = (!u16::from_ne_bytes([ip.ttl, 0]), u16::from_ne_bytes([ip.ttl - 1, 0]));
            ip.ttl -= 1;
            ip.checksum = fold(ip.checksum, change + u64::from(hop.0) + u64::from(hop.1));
            send(ctx, ETHERNET + 20, &cut)
        }
        IPV6 => {
            let ip = at::<Ip6Header>(ctx, ETHERNET)?;
            let ends = Ends { src: addr(&ip.src), dst: addr(&ip.dst) };
            // An IPv4 address in IPv6's clothes is nobody's here either.
            let is_v6 = u32::from_be(ip.version_class_flow) >> 28 == 6;
            if !is_v6 || ip.hop_limit <= 1 || ends.src.is_v4() || ends.dst.is_v4() {
                return None;
            }
            let payload = usize::from(u16::from_be(ip.payload_length));
            let key = key(ctx, ETHERNET + 40, payload, ip.next_header, &ends)?;
            let cut = find(ctx, &key)?;
            let ip = at::<Ip6Header>(ctx, ETHERNET)?;
            ip.src = halves(&cut.to.src);
            ip.dst = halves(&cut.to.dst);
            ip.hop_limit -= 1;
            send(ctx, ETHERNET + 40, &cut)
        }
        _ => None,
    }
}

/// How a packet is translated.
struct Cut {
    from: Tuple,
    to: Tuple,
    protocol: u8,
    /// Of who gets it next.
    mac: [u8; 6],
}

impl Cut {
    /// What a checksum over the addresses (and, unless left out, the ports) changes by.
    #[inline(always)]
    fn change(&self, without_ports: bool) -> u64 {
        let (mut from, mut to) = (words(&self.from), words(&self.to));
        if without_ports {
            (from[8], to[8]) = (0, 0);
        }
        // SAFETY: both are of 36 bytes; the helper only reads.
        let change = unsafe { bpf_csum_diff(from.as_mut_ptr(), 36, to.as_mut_ptr(), 36, 0) };
        change as u32 as u64
    }
}

struct Ends {
    src: Addr,
    dst: Addr,
}

/// What a packet is found by, if it is whole: `payload` is what the IP header says of bytes from `upper` on.
#[inline(always)]
fn key(ctx: &XdpContext, upper: usize, payload: usize, proto: u8, ends: &Ends) -> Option<NatKey> {
    let frame = ctx.data_end() - ctx.data();
    // SAFETY: a valid reference. Volatile, so that no pointer is compared by it: the verifier follows those of fixed offsets.
    if upper + payload > unsafe { core::ptr::read_volatile(&frame) } {
        return None;
    }
    let ports = match proto {
        protocol::TCP => {
            let head = at::<Tcp>(ctx, upper)?;
            let header = usize::from(head.offset >> 4) * 4;
            let is_plain = head.flags & (tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK) == tcp::ACK;
            if !is_plain || header < size_of::<Tcp>() || header > payload {
                return None;
            }
            head.ports
        }
        protocol::UDP if payload >= size_of::<Udp>() => at::<Udp>(ctx, upper)?.ports,
        _ => return None,
    };
    let Ends { src, dst } = *ends;
    let tuple = Tuple { src, dst, src_port: u16::from_be(ports[0]), dst_port: u16::from_be(ports[1]) };
    Some(NatKey { tuple, protocol: proto, place: place::FROM_NET, padding: 0 })
}

#[inline(always)]
fn find(ctx: &XdpContext, key: &NatKey) -> Option<Cut> {
    // SAFETY: the kernel keeps the memory valid until the program ends; what is reused meanwhile costs one packet.
    let entry = unsafe { NAT.get(key) }?;
    // SAFETY: the context is valid as long as the program runs.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if !is_short_cut(entry, ifindex, now) {
        return None;
    }
    // SAFETY: only its presence is used.
    if entry.is_reply == 0 && unsafe { BACKENDS.get(entry.backend) }.is_none() {
        return None;
    }
    Some(Cut { from: key.tuple, to: entry.tuple, protocol: key.protocol, mac: entry.mac })
}

/// The transport header and the Ethernet header.
#[inline(always)]
fn send(ctx: &XdpContext, upper: usize, cut: &Cut) -> Option<u32> {
    let ports = [cut.to.src_port.to_be(), cut.to.dst_port.to_be()];
    let change = cut.change(false);
    if cut.protocol == protocol::TCP {
        let head = at::<Tcp>(ctx, upper)?;
        head.ports = ports;
        head.checksum = fold(head.checksum, change);
    } else {
        let head = at::<Udp>(ctx, upper)?;
        head.ports = ports;
        // 0: there is none, and none comes out.
        if head.checksum != 0 {
            let checksum = fold(head.checksum, change);
            head.checksum = if checksum == 0 { !0 } else { checksum };
        }
    }
    let frame = at::<Ethernet>(ctx, 0)?;
    frame.src = frame.dst;
    frame.dst = cut.mac;
    if let Some(count) = ACCELERATED.get_ptr_mut(0) {
        // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
        unsafe { *count += 1 };
    }
    Some(XDP_TX)
}

/// RFC 1624, equation 3.
#[inline(always)]
fn fold(checksum: u16, change: u64) -> u16 {
    let mut sum = u64::from(!checksum) + (change & 0xffff_ffff) + (change >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[inline(always)]
fn words(tuple: &Tuple) -> [u32; 9] {
    let ([a, b, c, d], [e, f, g, h]) = (tuple.src.words(), tuple.dst.words());
    [a, b, c, d, e, f, g, h, u32::from(tuple.src_port.to_be()) | u32::from(tuple.dst_port.to_be()) << 16]
}

#[inline(always)]
fn addr(halves: &[u16; 8]) -> Addr {
    let word = |at: usize| u32::from(halves[at]) | u32::from(halves[at + 1]) << 16;
    Addr::from_words([word(0), word(2), word(4), word(6)])
}

#[inline(always)]
fn halves(addr: &Addr) -> [u16; 8] {
    let [a, b, c, d] = addr.words().map(|word| [word as u16, (word >> 16) as u16]);
    [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
}
