//! Ethernet frames, made by hand.

use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Ip4, Kind, Packet};
use std::net::Ipv4Addr;

pub const IPV4: u16 = 0x0800;

/// A packet between two hosts.
pub fn packet(protocol: u8, src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), tcp_flags: u8) -> Packet {
    Packet {
        src: Ip4::from(src.0),
        dst: Ip4::from(dst.0),
        src_port: src.1,
        dst_port: dst.1,
        protocol,
        tcp_flags,
        kind: Kind::Plain,
    }
}

pub fn syn(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Packet {
    packet(protocol::TCP, src, dst, tcp::SYN)
}

pub fn udp(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Packet {
    packet(protocol::UDP, src, dst, 0)
}

pub fn echo(src: Ipv4Addr, dst: Ipv4Addr, identifier: u16) -> Packet {
    packet(protocol::ICMP, (src, identifier), (dst, 0), 0)
}

/// What answers a packet, with these TCP flags.
pub fn answer(packet: &Packet, tcp_flags: u8) -> Packet {
    let kind = if packet.protocol == protocol::ICMP { Kind::EchoReply } else { Kind::Plain };
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
    ethernet(IPV4, &ipv4(packet, 0, 0, &transport(packet)))
}

/// A piece of a datagram: `offset` in units of 8 bytes.
pub fn piece(packet: &Packet, identification: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let fragment = offset | if more { 0x2000 } else { 0 };
    ethernet(IPV4, &ipv4(packet, identification, fragment, payload))
}

/// An ICMP error from `router` to the sender of `about`, which it quotes.
pub fn error_about(router: Ipv4Addr, about: &Packet, kind: u8) -> Vec<u8> {
    let quoted = ipv4(about, 0, 0, &transport(about)[..8]);
    let mut payload = vec![kind, 1, 0, 0, 0, 0, 0, 0];
    payload.extend(quoted);
    let outer = packet(protocol::ICMP, (router, 0), (about.src.into(), 0), 0);
    ethernet(IPV4, &ipv4(&outer, 0, 0, &payload))
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
    header.extend(Ipv4Addr::from(packet.src).octets());
    header.extend(Ipv4Addr::from(packet.dst).octets());
    header.extend(payload);
    header
}

pub fn transport(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    if packet.protocol == protocol::ICMP {
        let (kind, identifier) = match packet.kind {
            Kind::EchoReply => (0, packet.dst_port),
            _ => (8, packet.src_port),
        };
        bytes.extend([kind, 0, 0, 0]);
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
