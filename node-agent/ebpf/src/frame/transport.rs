//! Transport headers, of a packet and of the packet that an error quotes.

use aya_ebpf::programs::TcContext;
use ebpf_shared::packet::{Kind, Packet, icmp, protocol};
use ebpf_shared::{Direction, Reason};

use super::Upper;

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
pub fn tcp(ctx: &TcContext, upper: &Upper, packet: &mut Packet) -> Result<(), Reason> {
    const LEAST: usize = 20;
    if upper.payload < LEAST {
        return Err(Reason::Malformed);
    }
    let Ok(header) = ctx.load::<TcpHeader>(upper.at) else { return Err(Reason::Malformed) };
    let length = usize::from(header.offset >> 4) * 4;
    if length < LEAST || length > upper.payload {
        return Err(Reason::Malformed);
    }
    packet.src_port = u16::from_be(header.ports[0]);
    packet.dst_port = u16::from_be(header.ports[1]);
    packet.tcp_flags = header.flags;
    Ok(())
}

/// Reads the ports of a transport header of at least `least` bytes.
#[inline(always)]
pub fn ports(ctx: &TcContext, upper: &Upper, least: usize, packet: &mut Packet) -> Result<(), Reason> {
    if upper.payload < least {
        return Err(Reason::Malformed);
    }
    read_ports(ctx, upper.at, packet)
}

#[inline(always)]
fn read_ports(ctx: &TcContext, at: usize, packet: &mut Packet) -> Result<(), Reason> {
    let Ok([src, dst]) = ctx.load::<[u16; 2]>(at) else { return Err(Reason::Malformed) };
    packet.src_port = u16::from_be(src);
    packet.dst_port = u16::from_be(dst);
    Ok(())
}

/// Bytes of an ICMP header, of both families.
pub const ICMP: usize = 8;

/// Reads an ICMP message. True: it is an error, and what it quotes is still to be read.
#[inline(always)]
pub fn icmp(ctx: &TcContext, upper: &Upper, is_v4: bool, packet: &mut Packet) -> Result<bool, Reason> {
    if upper.payload < ICMP {
        return Err(Reason::Malformed);
    }
    let Ok([kind, code]) = ctx.load::<[u8; 2]>(upper.at) else { return Err(Reason::Malformed) };
    match icmp::role(is_v4, kind) {
        icmp::ERROR => return Ok(true),
        icmp::LINK => return Err(Reason::UnsupportedIcmp),
        icmp::QUERY => query(ctx, upper.at, kind, false, packet)?,
        icmp::ANSWER => query(ctx, upper.at, kind, true, packet)?,
        _ => packet.dst_port = u16::from(kind) << 8 | u16::from(code),
    }
    Ok(false)
}

/// Reads a query's identifier, at the same place in all of them.
#[inline(always)]
fn query(ctx: &TcContext, at: usize, kind: u8, is_answer: bool, packet: &mut Packet) -> Result<(), Reason> {
    let Ok(identifier) = ctx.load::<u16>(at + 4) else { return Err(Reason::Malformed) };
    let identifier = icmp::identifier(u16::from_be(identifier));
    if is_answer {
        packet.src_port = icmp::asked_by(kind);
        packet.dst_port = identifier;
        packet.kind = Kind::EchoReply;
    } else {
        packet.src_port = identifier;
        packet.dst_port = u16::from(kind) << 8;
    }
    Ok(())
}

/// Reads the first 8 bytes of the transport header that an error quotes; addresses and protocol of the quoted packet
/// have been written to `packet`.
#[inline(always)]
pub fn quoted(ctx: &TcContext, at: usize, is_v4: bool, packet: &mut Packet) -> Result<(), Reason> {
    let of_family = if is_v4 { protocol::ICMP } else { protocol::ICMPV6 };
    match packet.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => read_ports(ctx, at, packet)?,
        messages if messages == of_family => {
            let Ok(kind) = ctx.load::<u8>(at) else { return Err(Reason::Malformed) };
            match icmp::role(is_v4, kind) {
                icmp::QUERY => query(ctx, at, kind, false, packet)?,
                icmp::ANSWER => query(ctx, at, kind, true, packet)?,
                _ => return Err(Reason::UnrelatedIcmp),
            }
        }
        _ => return Err(Reason::UnrelatedIcmp),
    }
    packet.kind = Kind::Error;
    Ok(())
}

/// Whether an error tells one of its own packets to whom it is sent: whoever sends one is the other side.
#[inline(always)]
pub fn tells_its_sender(
    packet: &Packet,
    src: &ebpf_shared::Addr,
    dst: &ebpf_shared::Addr,
    direction: Direction,
) -> bool {
    match direction {
        Direction::Ingress => packet.dst == *src,
        Direction::Egress => packet.src == *dst,
    }
}
