//! IPv6, its extension headers, ICMPv6, and what is said on the link only.

use aya_ebpf::programs::TcContext;
use ebpf_shared::packet::{Packet, protocol};
use ebpf_shared::{Addr, Direction, Reason};

use super::transport;
use super::{ETHERNET, Frame, Ip, Upper};

/// RFC 8200, section 3; every field as on the wire.
#[repr(C)]
pub struct Ip6Header {
    version_class_flow: u32,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    src: Addr,
    dst: Addr,
}

const HEADER: usize = size_of::<Ip6Header>();
/// Where what follows it begins.
const AFTER: usize = ETHERNET + HEADER;

/// Extension headers (IANA, "IPv6 Extension Header Types").
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const ESP: u8 = 50;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// Most extension headers of one packet: RFC 8200 (section 4.1) names six, each once but for destination options.
const MOST: u32 = 6;

impl Ip6Header {
    #[inline(always)]
    fn is_version_6(&self) -> bool {
        u32::from_be(self.version_class_flow) >> 28 == 6
    }

    /// What every IPv6 stack says on a link passes as it is; the rest is for the verdict.
    #[inline(always)]
    pub fn classify(self, ctx: &TcContext, direction: Direction) -> Result<Frame, Reason> {
        // An IPv4 address in IPv6's clothes (RFC 4942, section 2.2) would be taken for it from here on.
        if !self.is_version_6() || self.src.is_v4() || self.dst.is_v4() {
            return Err(Reason::Malformed);
        }
        let is_discovery = self.is_discovery(ctx);
        let from_link = self.src.is_link_local() || self.src.is_unspecified();
        let to_link = self.dst.is_link_local() || self.dst.is_link_multicast();
        if from_link && to_link && (is_discovery || self.is_listener_talk(ctx, direction)) {
            return Ok(Frame::Link);
        }
        let half = match direction {
            Direction::Egress => to_link,
            Direction::Ingress => self.src.is_link_local(),
        };
        Ok(Frame::Ip(Ip {
            src: self.src,
            dst: self.dst,
            protocol: self.next_header,
            is_discovery: is_discovery && half,
            is_v4: false,
            header: HEADER as u8,
            length: u16::from_be(self.payload_length),
            fragment: 0,
            identification: 0,
        }))
    }

    /// Router solicitation, neighbour solicitation and advertisement (RFC 4861), never routed. Router advertisements
    /// and redirects would change the host's or the pod's routes, so they are not among them; neither is what comes
    /// in pieces or behind extension headers (RFC 6980).
    #[inline(always)]
    fn is_discovery(&self, ctx: &TcContext) -> bool {
        if self.next_header != protocol::ICMPV6 || self.hop_limit != 255 {
            return false;
        }
        let Ok([kind, code]) = ctx.load::<[u8; 2]>(AFTER) else { return false };
        code == 0 && (kind == 133 || kind == 135 || kind == 136)
    }

    /// Multicast listener reports (RFC 2710, RFC 3810), behind a router alert; the host may ask for them.
    #[inline(always)]
    fn is_listener_talk(&self, ctx: &TcContext, direction: Direction) -> bool {
        if self.next_header != extension::HOP_BY_HOP || self.hop_limit != 1 || !self.dst.is_link_multicast() {
            return false;
        }
        let Ok(head) = ctx.load::<[u8; 9]>(AFTER) else { return false };
        if head[0] != protocol::ICMPV6 || head[1] != 0 {
            return false;
        }
        match head[8] {
            130 => matches!(direction, Direction::Ingress),
            131 | 132 | 143 => true,
            _ => false,
        }
    }
}

/// What follows the header and its extensions.
#[inline(always)]
pub fn upper(ctx: &TcContext, ip: &Ip, frame: usize) -> Result<Upper, Reason> {
    let payload = usize::from(ip.length);
    // As in IPv4, a segment that the kernel has not cut up yet may say 0.
    let payload = if payload == 0 && frame > usize::from(u16::MAX) { frame - AFTER } else { payload };
    if payload > frame - AFTER {
        return Err(Reason::Malformed);
    }
    let end = AFTER + payload;
    let mut upper =
        Upper { protocol: ip.protocol, at: AFTER, payload: 0, offset: 0, more: false, identification: 0 };
    let mut is_piece = false;
    let mut count = 0;
    while count < MOST {
        match upper.protocol {
            extension::HOP_BY_HOP if count == 0 => {}
            extension::ROUTING | extension::FRAGMENT | extension::DESTINATION => {}
            _ => break,
        }
        let Ok(head) = ctx.load::<[u8; 8]>(upper.at) else { return Err(Reason::Malformed) };
        let length = if upper.protocol == extension::FRAGMENT {
            if is_piece {
                return Err(Reason::ExtensionHeader);
            }
            is_piece = true;
            let place = u16::from_be_bytes([head[2], head[3]]);
            upper.offset = place >> 3;
            upper.more = place & 1 != 0;
            upper.identification = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
            8
        } else {
            // Type 0 is abolished (RFC 5095), and while segments are left the packet is for somebody else.
            if upper.protocol == extension::ROUTING && (head[2] == 0 || head[3] != 0) {
                return Err(Reason::ExtensionHeader);
            }
            (usize::from(head[1]) + 1) * 8
        };
        upper.at += length;
        upper.protocol = head[0];
        if upper.at > end {
            return Err(Reason::Malformed);
        }
        if upper.offset != 0 {
            // What follows is the middle of something.
            upper.payload = end - upper.at;
            return Ok(upper);
        }
        count += 1;
    }
    match upper.protocol {
        extension::HOP_BY_HOP
        | extension::ROUTING
        | extension::FRAGMENT
        | extension::ESP
        | extension::AUTHENTICATION
        | extension::DESTINATION
        | extension::MOBILITY
        | extension::HIP
        | extension::SHIM6 => return Err(Reason::ExtensionHeader),
        _ => {}
    }
    upper.payload = end - upper.at;
    Ok(upper)
}

/// RFC 4443: as in IPv4.
#[inline(always)]
pub fn icmp(ctx: &TcContext, upper: &Upper, direction: Direction, packet: &mut Packet) -> Result<(), Reason> {
    if transport::icmp(ctx, upper, false, packet)? { quoted(ctx, upper, direction, packet) } else { Ok(()) }
}

/// Reads the head of the packet that an error quotes: its IP header, a fragment header if it was the first piece of a
/// datagram, and 8 bytes more.
#[inline(always)]
fn quoted(ctx: &TcContext, upper: &Upper, direction: Direction, packet: &mut Packet) -> Result<(), Reason> {
    let at = upper.at + transport::ICMP;
    let Ok(ip) = ctx.load::<Ip6Header>(at) else { return Err(Reason::Malformed) };
    if !ip.is_version_6() || upper.payload < transport::ICMP + HEADER + 8 {
        return Err(Reason::Malformed);
    }
    let told = transport::tells_its_sender(packet, &ip.src, &ip.dst, direction);
    if !told || ip.src.is_v4() || ip.dst.is_v4() {
        return Err(Reason::UnrelatedIcmp);
    }
    let mut inner = at + HEADER;
    packet.src = ip.src;
    packet.dst = ip.dst;
    packet.protocol = ip.next_header;
    if ip.next_header == extension::FRAGMENT {
        let Ok(head) = ctx.load::<[u8; 8]>(inner) else { return Err(Reason::Malformed) };
        if upper.payload < transport::ICMP + HEADER + 16 {
            return Err(Reason::Malformed);
        }
        // A later piece has no ports to find its flow by.
        if u16::from_be_bytes([head[2], head[3]]) >> 3 != 0 {
            return Err(Reason::UnrelatedIcmp);
        }
        packet.protocol = head[0];
        inner += 8;
    }
    transport::quoted(ctx, inner, false, packet)
}
