//! Transport headers, of a packet and of the packet that an error quotes.

use aya_ebpf::programs::TcContext;
use ebpf_shared::packet::{Kind, Packet, protocol};
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

/// The type of an ICMP message.
#[inline(always)]
pub fn icmp_type(ctx: &TcContext, upper: &Upper) -> Result<u8, Reason> {
    if upper.payload < ICMP {
        return Err(Reason::Malformed);
    }
    ctx.load::<u8>(upper.at).map_err(|_| Reason::Malformed)
}

/// An echo's identifier, at the same place in both families.
#[inline(always)]
pub fn echo(ctx: &TcContext, at: usize, is_reply: bool, packet: &mut Packet) -> Result<(), Reason> {
    let Ok(identifier) = ctx.load::<u16>(at + 4) else { return Err(Reason::Malformed) };
    let identifier = u16::from_be(identifier);
    if is_reply {
        packet.dst_port = identifier;
        packet.kind = Kind::EchoReply;
    } else {
        packet.src_port = identifier;
    }
    Ok(())
}

/// The types of an echo and of its reply.
pub struct EchoTypes {
    pub protocol: u8,
    pub request: u8,
    pub reply: u8,
}

/// Reads the first 8 bytes of the transport header that an error quotes; addresses and protocol of the quoted packet
/// have been written to `packet`.
#[inline(always)]
pub fn quoted(ctx: &TcContext, at: usize, icmp: &EchoTypes, packet: &mut Packet) -> Result<(), Reason> {
    match packet.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => read_ports(ctx, at, packet)?,
        echoes if echoes == icmp.protocol => {
            let Ok(kind) = ctx.load::<u8>(at) else { return Err(Reason::Malformed) };
            if kind != icmp.request && kind != icmp.reply {
                return Err(Reason::UnrelatedIcmp);
            }
            echo(ctx, at, kind == icmp.reply, packet)?;
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
