//! What the programs are to make of a frame, said once more: slowly, over a slice, after the RFCs and not after the
//! programs. The kernel is compared with it on frames that no honest host sends.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ebpf_shared::decide::Message;
use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Addr, Direction, Endpoint, Kind, Packet, Reason};

/// What is to become of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Passes as it is: talk on the link.
    Link,
    Refused(Reason),
    /// Is judged.
    Packet(Packet),
}

/// The first pieces that were seen: ports, protocol, kind, and where the piece ends.
pub type Pieces = HashMap<(u8, Addr, Addr, u32, u8), (Packet, usize)>;

struct Ip<'a> {
    src: Addr,
    dst: Addr,
    is_v4: bool,
    /// Says what follows the last header that was understood.
    protocol: u8,
    payload: &'a [u8],
    offset: usize,
    more: bool,
    identification: u32,
}

type Parsed<T> = Result<T, Reason>;

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

pub fn look(frame: &[u8], way: Direction, pod: &Endpoint, pieces: &mut Pieces) -> Look {
    let body = &frame[14..];
    let looked = match word(frame, 12) {
        0x0806 => return Look::Link,
        0x0800 => ipv4(body, way, pod),
        0x86dd => match talk(body, way, pod) {
            Ok(true) => return Look::Link,
            Ok(false) => ipv6(body, way, pod),
            Err(reason) => Err(reason),
        },
        _ => Err(Reason::UnsupportedEthertype),
    };
    match looked.and_then(|ip| assemble(&ip, way, pieces)) {
        Ok(packet) => Look::Packet(packet),
        Err(reason) => Look::Refused(reason),
    }
}

fn addressed(src: Addr, dst: Addr, way: Direction, pod: &Endpoint) -> Parsed<()> {
    match way {
        Direction::Egress if ![pod.v4, pod.v6].contains(&src) => Err(Reason::SpoofedSource),
        Direction::Ingress if ![pod.v4, pod.v6].contains(&dst) => Err(Reason::WrongDestination),
        _ => Ok(()),
    }
}

fn v4_addr(bytes: &[u8]) -> Addr {
    Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
}

fn v6_addr(bytes: &[u8]) -> Ipv6Addr {
    let octets: [u8; 16] = bytes[..16].try_into().expect("sixteen");
    octets.into()
}

fn ipv4<'a>(body: &'a [u8], way: Direction, pod: &Endpoint) -> Parsed<Ip<'a>> {
    if body.len() < 20 {
        return Err(Reason::Malformed);
    }
    let (src, dst) = (v4_addr(&body[12..]), v4_addr(&body[16..]));
    addressed(src, dst, way, pod)?;
    let (header, total) = (usize::from(body[0] & 15) * 4, word(body, 2));
    if body[0] >> 4 != 4 || header < 20 || total < header || total > body.len() {
        return Err(Reason::Malformed);
    }
    let fragment = word(body, 6);
    Ok(Ip {
        src,
        dst,
        is_v4: true,
        protocol: body[9],
        payload: &body[header..total],
        offset: (fragment & 0x1fff) * 8,
        more: fragment & 0x2000 != 0,
        identification: word(body, 4) as u32,
    })
}

/// Whether a frame is talk on the link; what is no IPv6 at all is refused.
fn talk(body: &[u8], way: Direction, pod: &Endpoint) -> Parsed<bool> {
    if body.len() < 40 || body[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let (src, dst) = (v6_addr(&body[8..]), v6_addr(&body[24..]));
    if src.to_ipv4_mapped().is_some() || dst.to_ipv4_mapped().is_some() {
        return Err(Reason::Malformed);
    }
    let link_local = |addr: &Ipv6Addr| addr.is_unicast_link_local();
    let own = |addr: &Ipv6Addr| Addr::from(*addr) == pod.v6;
    let group = dst.segments()[0] == 0xff02;
    let (next, hops, after) = (body[6], body[7], &body[40..]);
    if next == 58 && hops == 255 && after.len() >= 2 && after[1] == 0 && [133, 135, 136].contains(&after[0]) {
        let from_link = link_local(&src) || src.is_unspecified();
        let to_link = link_local(&dst) || group;
        return Ok(match way {
            Direction::Egress => to_link && (from_link || own(&src)),
            Direction::Ingress => (to_link && from_link) || (own(&dst) && link_local(&src)),
        });
    }
    let reports = next == 0 && hops == 1 && group && (link_local(&src) || src.is_unspecified());
    if reports && after.len() >= 9 && after[0] == 58 && after[1] == 0 {
        return Ok([131, 132, 143].contains(&after[8]) || (after[8] == 130 && way == Direction::Ingress));
    }
    Ok(false)
}

fn ipv6<'a>(body: &'a [u8], way: Direction, pod: &Endpoint) -> Parsed<Ip<'a>> {
    let (src, dst) = (Addr::from(v6_addr(&body[8..])), Addr::from(v6_addr(&body[24..])));
    addressed(src, dst, way, pod)?;
    let payload = body[40..].get(..word(body, 4)).ok_or(Reason::Malformed)?;
    let mut ip =
        Ip { src, dst, is_v4: false, protocol: body[6], payload, offset: 0, more: false, identification: 0 };
    let mut was_piece = false;
    for count in 0.. {
        let is_header = matches!(ip.protocol, 0 | 43 | 44 | 60);
        let is_other = matches!(ip.protocol, 50 | 51 | 135 | 139 | 140);
        if is_other || (is_header && count == 6) || (ip.protocol == 0 && count > 0) {
            return Err(Reason::ExtensionHeader);
        }
        if !is_header {
            break;
        }
        // What is behind the packet's end but still in the frame is read, and then found to be too much.
        let behind = &body[body.len().min(40 + word(body, 4) - ip.payload.len())..];
        if behind.len() < 8 {
            return Err(Reason::Malformed);
        }
        let mut length = 8;
        match ip.protocol {
            44 if was_piece => return Err(Reason::ExtensionHeader),
            44 => {
                was_piece = true;
                ip.offset = word(behind, 2) & !7;
                ip.more = behind[3] & 1 != 0;
                ip.identification = u32::from_be_bytes([behind[4], behind[5], behind[6], behind[7]]);
            }
            43 if behind[2] == 0 || behind[3] != 0 => return Err(Reason::ExtensionHeader),
            _ => length = 8 * (1 + usize::from(behind[1])),
        }
        ip.protocol = behind[0];
        ip.payload = ip.payload.get(length..).ok_or(Reason::Malformed)?;
        if ip.offset != 0 {
            break;
        }
    }
    Ok(ip)
}

fn assemble(ip: &Ip<'_>, way: Direction, pieces: &mut Pieces) -> Parsed<Packet> {
    if ip.offset == 0 && !ip.more {
        return transport(ip, way);
    }
    let length = ip.payload.len();
    if length == 0 || (ip.more && !length.is_multiple_of(8)) || ip.offset + length > 65_535 {
        return Err(Reason::Malformed);
    }
    let protocol = if ip.is_v4 { ip.protocol } else { 0 };
    let key = (way as u8, ip.src, ip.dst, ip.identification, protocol);
    if ip.offset == 0 {
        let packet = transport(ip, way)?;
        if packet.kind == Kind::Error {
            return Err(Reason::Fragment);
        }
        pieces.insert(key, (packet, length));
        return Ok(packet);
    }
    let (first, end) = pieces.get(&key).ok_or(Reason::Fragment)?;
    if ip.offset < *end {
        return Err(Reason::Fragment);
    }
    Ok(Packet { src: ip.src, dst: ip.dst, tcp_flags: tcp::ACK, ..*first })
}

fn plain(ip: &Ip<'_>) -> Packet {
    Packet {
        src: ip.src,
        dst: ip.dst,
        src_port: 0,
        dst_port: 0,
        protocol: ip.protocol,
        tcp_flags: 0,
        kind: Kind::Plain,
    }
}

fn transport(ip: &Ip<'_>, way: Direction) -> Parsed<Packet> {
    let bytes = ip.payload;
    let mut packet = plain(ip);
    let least = match (ip.protocol, ip.is_v4) {
        (protocol::TCP, _) => 20,
        (protocol::UDP, _) | (protocol::ICMP, true) | (protocol::ICMPV6, false) => 8,
        (protocol::SCTP, _) => 12,
        _ => return Err(Reason::UnsupportedProtocol),
    };
    if bytes.len() < least {
        return Err(Reason::Malformed);
    }
    match ip.protocol {
        protocol::ICMP | protocol::ICMPV6 => {}
        _ => {
            packet.src_port = word(bytes, 0) as u16;
            packet.dst_port = word(bytes, 2) as u16;
            if ip.protocol == protocol::TCP {
                let header = usize::from(bytes[12] >> 4) * 4;
                packet.tcp_flags = bytes[13];
                let [fin, syn, rst, ack] = [1, 2, 4, 16].map(|flag| packet.tcp_flags & flag != 0);
                let contradicts = (syn && (fin || rst)) || !(syn || ack || rst);
                if header < 20 || header > bytes.len() || contradicts {
                    return Err(Reason::Malformed);
                }
            }
            return Ok(packet);
        }
    }
    let of = types(ip.is_v4);
    if of.errors.contains(&bytes[0]) {
        return quoted(ip, way);
    } else if of.link.contains(&bytes[0]) {
        return Err(Reason::UnsupportedIcmp);
    } else if !asks(bytes, &of, &mut packet) {
        packet.dst_port = word(bytes, 0) as u16;
    }
    Ok(packet)
}

/// Types of ICMP.
struct Types {
    /// Each with its answer.
    queries: &'static [(u8, u8)],
    errors: &'static [u8],
    link: &'static [u8],
}

fn types(is_v4: bool) -> Types {
    if is_v4 {
        let queries = &[(8, 0), (13, 14), (15, 16), (17, 18), (42, 43)];
        Types { queries, errors: &[3, 11, 12], link: &[5, 9] }
    } else {
        let queries = &[(128, 129), (139, 140), (160, 161)];
        Types { queries, errors: &[1, 2, 3, 4], link: &[0, 133, 134, 135, 136, 137] }
    }
}

/// Whether an ICMP message is a query or the answer to one: then the packet is filled in.
fn asks(bytes: &[u8], of: &Types, packet: &mut Packet) -> bool {
    let identifier = word(bytes, 4) as u16 | 1;
    for (query, answer) in of.queries {
        let asked = u16::from(*query) << 8;
        if bytes[0] == *query {
            (packet.src_port, packet.dst_port) = (identifier, asked);
            return true;
        }
        if bytes[0] == *answer {
            (packet.src_port, packet.dst_port, packet.kind) = (asked, identifier, Kind::EchoReply);
            return true;
        }
    }
    false
}

/// The ICMP message that a frame is, if it is one that is judged by itself where nobody knows its flow.
pub fn message(frame: &[u8], packet: &Packet, way: Direction) -> Option<Message> {
    let body = &frame[14..];
    let is_v4 = word(frame, 12) == 0x0800;
    let (src, dst) = if is_v4 {
        (v4_addr(&body[12..]), v4_addr(&body[16..]))
    } else {
        (v6_addr(&body[8..]).into(), v6_addr(&body[24..]).into())
    };
    let peer = if way == Direction::Ingress { src } else { dst };
    if packet.kind == Kind::Plain {
        return None;
    }
    // A later piece does not say.
    let icmp = upper(body, is_v4).map_or(0, |at| word(at, 0) as u16);
    Some(Message { peer, icmp, is_whole: u16::from(upper(body, is_v4).is_some()) })
}

/// What is behind the IP headers of a packet that was understood; `None`: of a later piece.
fn upper(body: &[u8], is_v4: bool) -> Option<&[u8]> {
    if is_v4 {
        let is_later = word(body, 6) & 0x1fff != 0;
        return (!is_later).then(|| &body[usize::from(body[0] & 15) * 4..]);
    }
    let (mut next, mut at) = (body[6], 40);
    while [0, 43, 44, 60].contains(&next) {
        if next == 44 && word(body, at + 2) & !7 != 0 {
            return None;
        }
        let length = if next == 44 { 8 } else { 8 * (1 + usize::from(body[at + 1])) };
        next = body[at];
        at += length;
    }
    Some(&body[at..])
}

fn quoted(ip: &Ip<'_>, way: Direction) -> Parsed<Packet> {
    let inner = &ip.payload[8..];
    let told = |src: Addr, dst: Addr| match way {
        Direction::Ingress => src == ip.dst,
        Direction::Egress => dst == ip.src,
    };
    let (mut header, src, dst, mut protocol, mut later);
    if ip.is_v4 {
        header = inner.first().map_or(0, |first| usize::from(first & 15) * 4);
        if inner.len() < 20 || inner[0] >> 4 != 4 || header < 20 || inner.len() < header + 8 {
            return Err(Reason::Malformed);
        }
        (src, dst) = (v4_addr(&inner[12..]), v4_addr(&inner[16..]));
        (protocol, later) = (inner[9], word(inner, 6) & 0x1fff != 0);
    } else {
        header = 40;
        if inner.len() < 48 || inner[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        (src, dst) = (v6_addr(&inner[8..]).into(), v6_addr(&inner[24..]).into());
        (protocol, later) = (inner[6], false);
        if src.is_v4() || dst.is_v4() {
            return Err(Reason::UnrelatedIcmp);
        }
    }
    if !told(src, dst) || later {
        return Err(Reason::UnrelatedIcmp);
    }
    if !ip.is_v4 && protocol == 44 {
        if inner.len() < 56 {
            return Err(Reason::Malformed);
        }
        (protocol, later, header) = (inner[40], word(inner, 42) >> 3 != 0, 48);
        if later {
            return Err(Reason::UnrelatedIcmp);
        }
    }
    let bytes = &inner[header..];
    let mut packet = Packet { src, dst, protocol, kind: Kind::Error, ..plain(ip) };
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            packet.src_port = word(bytes, 0) as u16;
            packet.dst_port = word(bytes, 2) as u16;
        }
        protocol::ICMP | protocol::ICMPV6 if (protocol == protocol::ICMP) == ip.is_v4 => {
            if !asks(bytes, &types(ip.is_v4), &mut packet) {
                return Err(Reason::UnrelatedIcmp);
            }
            packet.kind = Kind::Error;
        }
        _ => return Err(Reason::UnrelatedIcmp),
    }
    Ok(packet)
}
