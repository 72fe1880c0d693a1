//! Ethernet frames of both families, made by hand.

use ebpf_shared::packet::{icmp, protocol, tcp};
use ebpf_shared::{Addr, Kind, Packet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
/// Bytes before the IP header.
pub const ETHERNET: usize = 14;

/// Extension headers of IPv6.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION: u8 = 60;

/// A packet between two hosts.
pub fn packet(
    protocol: u8,
    src: (impl Into<IpAddr>, u16),
    dst: (impl Into<IpAddr>, u16),
    tcp_flags: u8,
) -> Packet {
    Packet {
        src: Addr::from(src.0.into()),
        dst: Addr::from(dst.0.into()),
        src_port: src.1,
        dst_port: dst.1,
        protocol,
        tcp_flags,
        kind: Kind::Plain,
    }
}

pub fn syn(src: (impl Into<IpAddr>, u16), dst: (impl Into<IpAddr>, u16)) -> Packet {
    packet(protocol::TCP, src, dst, tcp::SYN)
}

pub fn udp(src: (impl Into<IpAddr>, u16), dst: (impl Into<IpAddr>, u16)) -> Packet {
    packet(protocol::UDP, src, dst, 0)
}

/// The ICMP of a family.
pub fn icmp_of(addr: &Addr) -> u8 {
    if addr.is_v4() { protocol::ICMP } else { protocol::ICMPV6 }
}

pub fn is_icmp(packet: &Packet) -> bool {
    packet.protocol == protocol::ICMP || packet.protocol == protocol::ICMPV6
}

pub fn echo(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, identifier: u16) -> Packet {
    let dst = dst.into();
    query(src, dst, if dst.is_ipv4() { 8 } else { 128 }, identifier)
}

/// An ICMP query of any type; of a type that is none, a message (then without an identifier).
pub fn query(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, kind: u8, identifier: u16) -> Packet {
    let dst = dst.into();
    let is_query = icmp::role(dst.is_ipv4(), kind) == icmp::QUERY;
    let identifier = if is_query { icmp::identifier(identifier) } else { identifier };
    packet(icmp_of(&dst.into()), (src, identifier), (dst, u16::from(kind) << 8), 0)
}

/// What answers a packet, with these TCP flags.
pub fn answer(packet: &Packet, tcp_flags: u8) -> Packet {
    let kind = if is_icmp(packet) { Kind::EchoReply } else { Kind::Plain };
    Packet {
        src: packet.dst,
        dst: packet.src,
        src_port: packet.dst_port,
        dst_port: packet.src_port,
        tcp_flags,
        kind,
        ..*packet
    }
}

/// The same way again, with these TCP flags.
pub fn more(packet: &Packet, tcp_flags: u8) -> Packet {
    Packet { tcp_flags, ..*packet }
}

/// The frame that is parsed to this packet.
pub fn frame(packet: &Packet) -> Vec<u8> {
    if packet.src.is_v4() {
        ethernet(IPV4, &ipv4(packet, 0, 0, &transport(packet)))
    } else {
        ethernet(IPV6, &ipv6(packet, packet.protocol, &transport(packet)))
    }
}

/// The same with extension headers: each its number, and its bytes but the first (the number of the next).
pub fn extended(packet: &Packet, headers: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (place, (_, rest)) in headers.iter().enumerate() {
        payload.push(headers.get(place + 1).map_or(packet.protocol, |(next, _)| *next));
        payload.extend(rest);
    }
    payload.extend(transport(packet));
    ethernet(IPV6, &ipv6(packet, headers.first().map_or(packet.protocol, |(first, _)| *first), &payload))
}

/// An extension header of so many units of 8 bytes (beyond the first) that says nothing.
pub fn padding(number: u8, units: u8) -> (u8, Vec<u8>) {
    let mut rest = vec![units];
    rest.resize(7 + 8 * usize::from(units), 0);
    (number, rest)
}

/// A fragment header.
pub fn fragment(offset: u16, more: bool, identification: u32) -> (u8, Vec<u8>) {
    let mut rest = vec![0];
    rest.extend((offset << 3 | u16::from(more)).to_be_bytes());
    rest.extend(identification.to_be_bytes());
    (FRAGMENT, rest)
}

/// A piece of a datagram: `offset` in units of 8 bytes.
pub fn piece(packet: &Packet, identification: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    if packet.src.is_v4() {
        let fragment = offset | if more { 0x2000 } else { 0 };
        return ethernet(IPV4, &ipv4(packet, identification, fragment, payload));
    }
    let (_, rest) = fragment(offset, more, identification.into());
    let bytes = [vec![packet.protocol], rest, payload.to_vec()].concat();
    ethernet(IPV6, &ipv6(packet, FRAGMENT, &bytes))
}

/// An ICMP error from `router` to the sender of `about`, which it quotes.
pub fn error_about(router: impl Into<IpAddr>, about: &Packet, kind: u8) -> Vec<u8> {
    let start = &transport(about)[..8];
    let is_v4 = about.src.is_v4();
    let quoted = if is_v4 { ipv4(about, 0, 0, start) } else { ipv6(about, about.protocol, start) };
    error_with(router, about, kind, &quoted)
}

/// An ICMP error with anything in it.
pub fn error_with(router: impl Into<IpAddr>, about: &Packet, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let mut payload = vec![kind, 1, 0, 0, 0, 0, 0, 0];
    payload.extend(quoted);
    let outer = packet(icmp_of(&about.src), (router, 0), (IpAddr::from(about.src), 0), 0);
    if about.src.is_v4() {
        ethernet(IPV4, &ipv4(&outer, 0, 0, &payload))
    } else {
        ethernet(IPV6, &ipv6(&outer, outer.protocol, &payload))
    }
}

pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(packet: &Packet, identification: u16, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend(identification.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([64, packet.protocol, 0, 0]);
    header.extend(Ipv4Addr::from(packet.src.low()).octets());
    header.extend(Ipv4Addr::from(packet.dst.low()).octets());
    header.extend(payload);
    header
}

pub fn ipv6(packet: &Packet, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((payload.len() as u16).to_be_bytes());
    header.extend([next_header, 64]);
    header.extend(Ipv6Addr::from(packet.src).octets());
    header.extend(Ipv6Addr::from(packet.dst).octets());
    header.extend(payload);
    header
}

pub fn transport(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    if is_icmp(packet) {
        let (message, identifier) = match packet.kind {
            Kind::EchoReply => (icmp::answer_to(packet.src_port), packet.dst_port),
            _ => (packet.dst_port, packet.src_port),
        };
        bytes.extend(message.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(identifier.to_be_bytes());
        bytes.extend([0, 1]);
        return bytes;
    }
    bytes.extend(packet.src_port.to_be_bytes());
    bytes.extend(packet.dst_port.to_be_bytes());
    match packet.protocol {
        protocol::TCP => {
            bytes.extend([0; 8]);
            bytes.extend([0x50, packet.tcp_flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        protocol::UDP => bytes.extend([0, 8, 0, 0]),
        _ => bytes.extend([0; 8]),
    }
    bytes
}

/// What a host says on its link: an ICMPv6 message without a body.
pub fn on_link(src: &str, dst: &str, kind: u8, hop_limit: u8) -> Vec<u8> {
    let addr = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
    let message = packet(protocol::ICMPV6, (addr(src), 0), (addr(dst), 0), 0);
    let mut payload = vec![kind];
    payload.extend([0; 23]);
    let mut bytes = ipv6(&message, protocol::ICMPV6, &payload);
    bytes[7] = hop_limit;
    ethernet(IPV6, &bytes)
}

/// RFC 3810, section 5.2: a multicast listener message behind a router alert.
pub fn listener(src: &str, dst: &str, kind: u8) -> Vec<u8> {
    let addr = |text: &str| text.parse::<Ipv6Addr>().expect("an address");
    let message = packet(protocol::ICMPV6, (addr(src), 0), (addr(dst), 0), 0);
    let payload = [58, 0, 5, 2, 0, 0, 1, 0, kind, 0, 0, 0, 0, 0, 0, 0];
    let mut bytes = ipv6(&message, HOP_BY_HOP, &payload);
    bytes[7] = 1;
    ethernet(IPV6, &bytes)
}
