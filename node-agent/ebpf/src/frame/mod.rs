//! From an Ethernet frame to what the verdict needs. Everything read is copied out of the packet once, so
//! that nothing can change between check and use.

pub mod ipv4;
mod ipv6;
pub mod plain;
mod transport;

use aya_ebpf::programs::TcContext;
use ebpf_shared::decide::Message;
use ebpf_shared::fragment::{FragmentKey, Head};
use ebpf_shared::packet::{Kind, Packet, protocol, tcp};
use ebpf_shared::{Addr, Direction, Reason};

use self::ipv4::Ip4Header;
use self::ipv6::Ip6Header;
use crate::fragment;

/// Bytes of the Ethernet header.
pub const ETHERNET: usize = 14;
/// Where in it the sender's address is.
pub const SENDER: usize = 6;
const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;

/// What kind of frame it is.
pub enum Frame {
    /// Address resolution on the link between pod and host; goes no further.
    Link,
    Ip(Ip),
}

/// The header of either family.
#[repr(C)]
pub struct Ip {
    pub src: Addr,
    pub dst: Addr,
    /// IPv6: of the first header after this one.
    pub protocol: u8,
    /// IPv6 neighbour discovery between the link and one of the endpoint's own addresses, once those are looked at.
    pub is_discovery: bool,
    is_v4: bool,
    /// Bytes of the header; IPv4: below 20 if it is not valid.
    header: u8,
    /// As the header says; IPv4: with the header, IPv6: without.
    length: u16,
    /// IPv4: flags and offset.
    fragment: u16,
    identification: u16,
}

/// What is beyond the IP headers.
struct Upper {
    protocol: u8,
    /// Where in the frame it begins, and how many bytes of it there are.
    at: usize,
    payload: usize,
    /// Where in its datagram it begins, in units of 8 bytes.
    offset: u16,
    /// More pieces follow.
    more: bool,
    identification: u32,
}

/// Looks at the link layer.
#[inline(always)]
pub fn classify(ctx: &TcContext, direction: Direction) -> Result<Frame, Reason> {
    let skb = ctx.skb.skb;
    // A tag of no network, only of a priority (IEEE 802.1Q, section 6.9), is to the stack as if it were not there.
    // SAFETY: the context is valid as long as the program runs.
    let (has_vlan, ethertype) =
        unsafe { ((*skb).vlan_present != 0 && (*skb).vlan_tci & 0xfff != 0, (*skb).protocol) };
    if has_vlan {
        return Err(Reason::UnsupportedEthertype);
    }
    // The kernel has read it from the frame, or is about to write it there.
    match u16::from_be(ethertype as u16) {
        ARP => Ok(Frame::Link),
        IPV4 => match ctx.load::<Ip4Header>(ETHERNET) {
            Ok(header) => Ok(Frame::Ip(header.into_ip())),
            Err(_) => Err(Reason::Malformed),
        },
        IPV6 => match ctx.load::<Ip6Header>(ETHERNET) {
            Ok(header) => header.classify(ctx, direction),
            Err(_) => Err(Reason::Malformed),
        },
        _ => Err(Reason::UnsupportedEthertype),
    }
}

/// The ICMP message that a packet is, apart from the flow that it belongs to.
#[inline(always)]
pub fn message(ctx: &TcContext, ip: &Ip, placed: &Placed, direction: Direction) -> Message {
    let peer = match direction {
        Direction::Ingress => ip.src,
        Direction::Egress => ip.dst,
    };
    match ctx.load::<[u8; 2]>(placed.at) {
        Ok(head) if placed.has_upper => Message { peer, icmp: u16::from_be_bytes(head), is_whole: 1 },
        _ => Message { peer, icmp: 0, is_whole: 0 },
    }
}

/// Looks at the transport layer. With whether it is a piece of a datagram.
#[inline(always)]
pub fn parse(ctx: &TcContext, ip: &Ip, ifindex: u32, direction: Direction) -> Result<(Packet, bool), Reason> {
    let (packet, placed) = parse_placed(ctx, ip, ifindex, direction)?;
    Ok((packet, placed.is_piece))
}

/// Where a packet's transport layer is.
pub struct Placed {
    /// Where in the frame its header is, or would be.
    pub at: usize,
    /// Whether it is in this piece.
    pub has_upper: bool,
    pub is_piece: bool,
}

/// As [`parse`].
#[inline(always)]
pub fn parse_placed(
    ctx: &TcContext,
    ip: &Ip,
    ifindex: u32,
    direction: Direction,
) -> Result<(Packet, Placed), Reason> {
    let frame = ctx.len() as usize;
    let upper = if ip.is_v4 { ipv4::upper(ip, frame)? } else { ipv6::upper(ctx, ip, frame)? };
    let mut packet = Packet {
        src: ip.src,
        dst: ip.dst,
        src_port: 0,
        dst_port: 0,
        protocol: upper.protocol,
        tcp_flags: 0,
        kind: Kind::Plain,
    };
    let is_piece = upper.more || upper.offset != 0;
    // All pieces but the last are made of whole units, and none ends beyond what a length can say.
    let end = usize::from(upper.offset) * 8 + upper.payload;
    let is_odd = upper.payload == 0 || (upper.more && upper.payload % 8 != 0) || end > usize::from(u16::MAX);
    if is_piece && is_odd {
        return Err(Reason::Malformed);
    }
    let datagram = FragmentKey {
        ifindex,
        src: ip.src,
        dst: ip.dst,
        identification: upper.identification,
        protocol: if ip.is_v4 { ip.protocol } else { 0 },
        direction: direction as u8,
        padding: 0,
    };
    if upper.offset != 0 {
        let Some(head) = fragment::recall(&datagram) else { return Err(Reason::Fragment) };
        if upper.offset < head.end {
            return Err(Reason::Fragment);
        }
        packet.protocol = head.protocol;
        packet.src_port = head.src_port;
        packet.dst_port = head.dst_port;
        // Belongs to a segment that has been judged; opens and closes nothing.
        packet.tcp_flags = tcp::ACK;
        if head.is_echo_reply != 0 {
            packet.kind = Kind::EchoReply;
        }
        return Ok((packet, Placed { at: upper.at, has_upper: false, is_piece }));
    }
    transport(ctx, ip, &upper, direction, &mut packet)?;
    if upper.more {
        // An error quotes the head of a datagram, so it never needs pieces itself.
        if matches!(packet.kind, Kind::Error) {
            return Err(Reason::Fragment);
        }
        fragment::remember(&datagram, &Head::of(&packet, upper.payload));
    }
    Ok((packet, Placed { at: upper.at, has_upper: true, is_piece }))
}

#[inline(always)]
fn transport(
    ctx: &TcContext,
    ip: &Ip,
    upper: &Upper,
    direction: Direction,
    packet: &mut Packet,
) -> Result<(), Reason> {
    match upper.protocol {
        protocol::TCP => transport::tcp(ctx, upper, packet)?,
        protocol::UDP => transport::ports(ctx, upper, 8, packet)?,
        protocol::SCTP => transport::ports(ctx, upper, 12, packet)?,
        protocol::ICMP if ip.is_v4 => ipv4::icmp(ctx, upper, direction, packet)?,
        protocol::ICMPV6 if !ip.is_v4 => ipv6::icmp(ctx, upper, direction, packet)?,
        _ => return Err(Reason::UnsupportedProtocol),
    }
    if packet.has_impossible_flags() { Err(Reason::Malformed) } else { Ok(()) }
}
