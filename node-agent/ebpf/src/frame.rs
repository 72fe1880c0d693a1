//! From an Ethernet frame to what the verdict needs. Everything read is copied out of the packet once, so
//! that nothing can change between check and use.

use aya_ebpf::programs::TcContext;
use ebpf_shared::fragment::FragmentKey;
use ebpf_shared::packet::{Kind, Packet, protocol, tcp};
use ebpf_shared::{Direction, Ip4, Reason};

use crate::fragment;

const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// RFC 791, section 3.1; every field as on the wire.
#[repr(C)]
pub struct Ip4Header {
    version_and_length: u8,
    tos: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    pub protocol: u8,
    checksum: u16,
    pub src: Ip4,
    pub dst: Ip4,
}

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ip4Header {
    /// Length in bytes, options included; below 20 if the header is not valid.
    #[inline(always)]
    fn length(&self) -> usize {
        if self.version_and_length >> 4 != 4 {
            return 0;
        }
        usize::from(self.version_and_length & 0xf) * 4
    }

    #[inline(always)]
    fn fragment(&self) -> u16 {
        u16::from_be(self.fragment)
    }
}

/// What kind of frame it is.
pub enum Frame {
    /// Address resolution on the link between pod and host; goes no further.
    Link,
    Ip4(Ip4Header),
}

/// Looks at the link layer.
#[inline(always)]
pub fn classify(ctx: &TcContext) -> Result<Frame, Reason> {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid as long as the program runs.
    let (has_vlan, ethertype) = unsafe { ((*skb).vlan_present != 0, (*skb).protocol) };
    if has_vlan {
        return Err(Reason::UnsupportedEthertype);
    }
    // The kernel has read it from the frame, or is about to write it there.
    match u16::from_be(ethertype as u16) {
        ARP => Ok(Frame::Link),
        IPV4 => match ctx.load::<Ip4Header>(ETHERNET) {
            Ok(header) => Ok(Frame::Ip4(header)),
            Err(_) => Err(Reason::Malformed),
        },
        IPV6 => neighbour_discovery(ctx),
        _ => Err(Reason::UnsupportedEthertype),
    }
}

/// RFC 8200, section 3.
#[repr(C)]
struct Ip6Header {
    version_class_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

/// Lets pass what every IPv6 stack says on a link, even one without IPv6 beyond it: router solicitation,
/// neighbour solicitation and advertisement (RFC 4861), multicast listener reports (RFC 3810), never off the
/// link. Router advertisements and redirects would change the host's or the pod's routes, so they don't pass.
#[inline(always)]
fn neighbour_discovery(ctx: &TcContext) -> Result<Frame, Reason> {
    const HOP_BY_HOP: u8 = 0;
    const ICMPV6: u8 = 58;
    /// ff02::16, where multicast listener reports go; they begin with a router alert option.
    const REPORTS: [u32; 4] = [0xff02_0000_u32.to_be(), 0, 0, 0x16_u32.to_be()];
    let Ok(header) = ctx.load::<Ip6Header>(ETHERNET) else { return Err(Reason::Malformed) };
    let Ok(kind) = ctx.load::<u8>(ETHERNET + size_of::<Ip6Header>()) else { return Err(Reason::Ipv6) };
    let from = u32::from_be(header.src[0]);
    let to = u32::from_be(header.dst[0]);
    let on_link = from >> 22 == 0xfe80 >> 6 || header.src == [0; 4];
    let to_link = to >> 22 == 0xfe80 >> 6 || to >> 16 == 0xff02;
    if header.next_header == HOP_BY_HOP && header.hop_limit == 1 && on_link && header.dst == REPORTS {
        return Ok(Frame::Link);
    }
    let solicits = kind == 133 || kind == 135 || kind == 136;
    if header.next_header == ICMPV6 && header.hop_limit == 255 && on_link && to_link && solicits {
        return Ok(Frame::Link);
    }
    Err(Reason::Ipv6)
}

/// Looks at the transport layer.
#[inline(always)]
pub fn parse(ctx: &TcContext, ip: &Ip4Header, ifindex: u32, direction: Direction) -> Result<Packet, Reason> {
    let header = ip.length();
    let total = usize::from(u16::from_be(ip.total_length));
    let frame = ctx.len() as usize;
    // A segment that the kernel has not cut up yet may be longer than the field can say; it then says 0.
    let total = if total == 0 && frame > usize::from(u16::MAX) { frame - ETHERNET } else { total };
    if header < size_of::<Ip4Header>() || total < header || total > frame - ETHERNET {
        return Err(Reason::Malformed);
    }
    let payload = total - header;
    let at = ETHERNET + header;
    let mut packet = Packet {
        src: ip.src,
        dst: ip.dst,
        src_port: 0,
        dst_port: 0,
        protocol: ip.protocol,
        tcp_flags: 0,
        kind: Kind::Plain,
    };

    let fragment = ip.fragment();
    let datagram = FragmentKey {
        ifindex,
        src: ip.src,
        dst: ip.dst,
        identification: ip.identification,
        protocol: ip.protocol,
        direction: direction as u8,
    };
    let offset = fragment & FRAGMENT_OFFSET;
    if offset != 0 {
        if offset == 1 && ip.protocol == protocol::TCP {
            return Err(Reason::Fragment);
        }
        let Some(head) = fragment::recall(&datagram) else { return Err(Reason::Fragment) };
        packet.src_port = head.src_port;
        packet.dst_port = head.dst_port;
        // Belongs to a segment that has been judged; opens and closes nothing.
        packet.tcp_flags = tcp::ACK;
        if head.is_echo_reply != 0 {
            packet.kind = Kind::EchoReply;
        }
        return Ok(packet);
    }

    match ip.protocol {
        protocol::TCP => tcp_header(ctx, at, payload, &mut packet)?,
        protocol::UDP => ports(ctx, at, payload, 8, &mut packet)?,
        protocol::SCTP => ports(ctx, at, payload, 12, &mut packet)?,
        protocol::ICMP => icmp(ctx, at, payload, direction, &mut packet)?,
        _ => return Err(Reason::UnsupportedProtocol),
    }
    if packet.has_impossible_flags() {
        return Err(Reason::Malformed);
    }
    if fragment & MORE_FRAGMENTS != 0 {
        // An error quotes the head of a datagram, so it never needs pieces itself.
        if matches!(packet.kind, Kind::Error) {
            return Err(Reason::Fragment);
        }
        fragment::remember(&datagram, packet.src_port, packet.dst_port, packet.kind);
    }
    Ok(packet)
}

/// The first 16 bytes of a TCP header (RFC 9293, section 3.1).
#[repr(C)]
struct TcpHeader {
    ports: [u16; 2],
    sequence: u32,
    acknowledgment: u32,
    offset: u8,
    flags: u8,
    window: u16,
}

#[inline(always)]
fn tcp_header(ctx: &TcContext, at: usize, payload: usize, packet: &mut Packet) -> Result<(), Reason> {
    const LEAST: usize = 20;
    if payload < LEAST {
        return Err(Reason::Malformed);
    }
    let Ok(header) = ctx.load::<TcpHeader>(at) else { return Err(Reason::Malformed) };
    let length = usize::from(header.offset >> 4) * 4;
    if length < LEAST || length > payload {
        return Err(Reason::Malformed);
    }
    packet.src_port = u16::from_be(header.ports[0]);
    packet.dst_port = u16::from_be(header.ports[1]);
    packet.tcp_flags = header.flags;
    Ok(())
}

/// Reads the ports of a transport header of at least `least` bytes.
#[inline(always)]
fn ports(
    ctx: &TcContext,
    at: usize,
    payload: usize,
    least: usize,
    packet: &mut Packet,
) -> Result<(), Reason> {
    if payload < least {
        return Err(Reason::Malformed);
    }
    let Ok([src, dst]) = ctx.load::<[u16; 2]>(at) else { return Err(Reason::Malformed) };
    packet.src_port = u16::from_be(src);
    packet.dst_port = u16::from_be(dst);
    Ok(())
}

/// RFC 792: an echo is a flow of its own, an error belongs to the flow that it quotes.
#[inline(always)]
fn icmp(
    ctx: &TcContext,
    at: usize,
    payload: usize,
    direction: Direction,
    packet: &mut Packet,
) -> Result<(), Reason> {
    const HEADER: usize = 8;
    if payload < HEADER {
        return Err(Reason::Malformed);
    }
    let Ok(kind) = ctx.load::<u8>(at) else { return Err(Reason::Malformed) };
    match kind {
        8 | 0 => {
            let Ok(identifier) = ctx.load::<u16>(at + 4) else { return Err(Reason::Malformed) };
            echo(kind == 0, u16::from_be(identifier), packet);
            Ok(())
        }
        // Destination unreachable, time exceeded, parameter problem.
        3 | 11 | 12 => quoted(ctx, at + HEADER, payload - HEADER, direction, packet),
        _ => Err(Reason::UnsupportedIcmp),
    }
}

#[inline(always)]
fn echo(is_reply: bool, identifier: u16, packet: &mut Packet) {
    if is_reply {
        packet.dst_port = identifier;
        packet.kind = Kind::EchoReply;
    } else {
        packet.src_port = identifier;
    }
}

/// Reads the head of the packet that an error quotes: its IP header and 8 bytes more.
#[inline(always)]
fn quoted(
    ctx: &TcContext,
    at: usize,
    payload: usize,
    direction: Direction,
    packet: &mut Packet,
) -> Result<(), Reason> {
    let Ok(ip) = ctx.load::<Ip4Header>(at) else { return Err(Reason::Malformed) };
    let header = ip.length();
    if header < size_of::<Ip4Header>() || payload < header + 8 {
        return Err(Reason::Malformed);
    }
    // Whoever is told of an error is told of a packet of its own.
    let told = match direction {
        Direction::Ingress => packet.dst == ip.src,
        Direction::Egress => packet.src == ip.dst,
    };
    // A later piece has no ports to find its flow by.
    if !told || ip.fragment() & FRAGMENT_OFFSET != 0 {
        return Err(Reason::UnrelatedIcmp);
    }
    packet.src = ip.src;
    packet.dst = ip.dst;
    packet.protocol = ip.protocol;
    match ip.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let Ok([src, dst]) = ctx.load::<[u16; 2]>(at + header) else { return Err(Reason::Malformed) };
            packet.src_port = u16::from_be(src);
            packet.dst_port = u16::from_be(dst);
        }
        protocol::ICMP => {
            let Ok(kind) = ctx.load::<u8>(at + header) else { return Err(Reason::Malformed) };
            let Ok(identifier) = ctx.load::<u16>(at + header + 4) else { return Err(Reason::Malformed) };
            if kind != 8 && kind != 0 {
                return Err(Reason::UnrelatedIcmp);
            }
            echo(kind == 0, u16::from_be(identifier), packet);
        }
        _ => return Err(Reason::UnrelatedIcmp),
    }
    packet.kind = Kind::Error;
    Ok(())
}
