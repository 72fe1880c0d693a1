//! IPv4 and ICMP.

use aya_ebpf::programs::TcContext;
use ebpf_shared::packet::Packet;
use ebpf_shared::{Addr, Direction, Ip4, Reason};

use super::transport;
use super::{ETHERNET, Ip, Upper};

/// RFC 791, section 3.1; every field as on the wire.
#[repr(C)]
pub struct Ip4Header {
    pub version_and_length: u8,
    pub tos: u8,
    pub total_length: u16,
    pub identification: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub src: Ip4,
    pub dst: Ip4,
}

/// Bytes of a header without options.
const LEAST: usize = size_of::<Ip4Header>();
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ip4Header {
    /// Length in bytes, options included; below 20 if the header is not valid.
    #[inline(always)]
    fn length(&self) -> u8 {
        if self.version_and_length >> 4 != 4 {
            return 0;
        }
        (self.version_and_length & 0xf) * 4
    }

    #[inline(always)]
    pub fn into_ip(self) -> Ip {
        Ip {
            src: Addr::v4(self.src),
            dst: Addr::v4(self.dst),
            protocol: self.protocol,
            is_discovery: false,
            is_v4: true,
            header: self.length(),
            length: u16::from_be(self.total_length),
            fragment: u16::from_be(self.fragment),
            identification: self.identification,
        }
    }
}

/// What follows the header.
#[inline(always)]
pub fn upper(ip: &Ip, frame: usize) -> Result<Upper, Reason> {
    let header = usize::from(ip.header);
    let total = usize::from(ip.length);
    // A segment that the kernel has not cut up yet may be longer than the field can say; it then says 0.
    let total = if total == 0 && frame > usize::from(u16::MAX) { frame - ETHERNET } else { total };
    if header < LEAST || total < header || total > frame - ETHERNET {
        return Err(Reason::Malformed);
    }
    Ok(Upper {
        protocol: ip.protocol,
        at: ETHERNET + header,
        payload: total - header,
        offset: ip.fragment & FRAGMENT_OFFSET,
        more: ip.fragment & MORE_FRAGMENTS != 0,
        identification: u32::from(ip.identification),
    })
}

/// RFC 792: a query and its answer are a flow, an error belongs to the flow that it quotes.
#[inline(always)]
pub fn icmp(ctx: &TcContext, upper: &Upper, direction: Direction, packet: &mut Packet) -> Result<(), Reason> {
    if transport::icmp(ctx, upper, true, packet)? { quoted(ctx, upper, direction, packet) } else { Ok(()) }
}

/// Reads the head of the packet that an error quotes: its IP header and 8 bytes more.
#[inline(always)]
fn quoted(ctx: &TcContext, upper: &Upper, direction: Direction, packet: &mut Packet) -> Result<(), Reason> {
    let at = upper.at + transport::ICMP;
    let Ok(ip) = ctx.load::<Ip4Header>(at) else { return Err(Reason::Malformed) };
    let header = usize::from(ip.length());
    if header < LEAST || upper.payload < transport::ICMP + header + 8 {
        return Err(Reason::Malformed);
    }
    let (src, dst) = (Addr::v4(ip.src), Addr::v4(ip.dst));
    let told = transport::tells_its_sender(packet, &src, &dst, direction);
    // A later piece has no ports to find its flow by.
    if !told || u16::from_be(ip.fragment) & FRAGMENT_OFFSET != 0 {
        return Err(Reason::UnrelatedIcmp);
    }
    packet.src = src;
    packet.dst = dst;
    packet.protocol = ip.protocol;
    transport::quoted(ctx, at + header, true, packet)
}
