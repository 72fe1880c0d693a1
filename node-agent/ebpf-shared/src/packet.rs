//! What the verdict needs to know of a packet.

use crate::Addr;

/// IANA protocol numbers.
pub mod protocol {
    /// In a policy key: whatever the protocol.
    pub const ANY: u8 = 0;
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// What policy calls ICMP messages: `type << 8 | code`. Answers to a query, and errors about a flow, belong to that flow; a
/// message of any other type, and one of these of which nobody knows the flow, is judged by its own type.
pub mod icmp {
    /// RFC 792.
    pub const ECHO: u16 = 8 << 8;
    /// RFC 4443.
    pub const ECHO6: u16 = 128 << 8;

    /// What part a type has, one of the constants below (IANA, "ICMP Type Numbers", "ICMPv6 type Numbers").
    #[inline(always)]
    pub const fn role(is_v4: bool, kind: u8) -> u8 {
        if is_v4 {
            match kind {
                8 | 13 | 15 | 17 | 42 => QUERY,
                0 | 14 | 16 | 18 | 43 => ANSWER,
                3 | 11 | 12 => ERROR,
                5 | 9 => LINK,
                _ => MESSAGE,
            }
        } else {
            match kind {
                128 | 139 | 160 => QUERY,
                129 | 140 | 161 => ANSWER,
                1..=4 => ERROR,
                // The first is nobody's, and would look like no port at all.
                0 | 133..=137 => LINK,
                _ => MESSAGE,
            }
        }
    }

    /// Concerns nobody but its receiver.
    pub const MESSAGE: u8 = 0;
    /// Has an identifier, and is answered with it: echo, timestamp, information, address mask, extended echo (RFC 8335),
    /// node information (RFC 4620).
    pub const QUERY: u8 = 1;
    pub const ANSWER: u8 = 2;
    /// Quotes the head of a packet: destination unreachable, packet too big, time exceeded, parameter problem.
    pub const ERROR: u8 = 3;
    /// Says to those on a link who is there and where to send what: redirects, what routers advertise, and all of
    /// neighbour discovery (RFC 4861). Nowhere but on a link, whatever policy says.
    pub const LINK: u8 = 4;

    /// A query's identifier as flows know it: two neighbours are one, so that none looks like a type, and no query like the
    /// answer to another of the other side.
    #[inline(always)]
    pub const fn identifier(told: u16) -> u16 {
        told | 1
    }

    /// What is answered by a type, without its code: that is not always the same.
    #[inline(always)]
    pub const fn asked_by(answer: u8) -> u16 {
        let query = if answer == 0 { 8 } else { answer - 1 };
        (query as u16) << 8
    }

    /// What a query is answered by.
    #[inline(always)]
    pub const fn answer_to(asked: u16) -> u16 {
        let kind = (asked >> 8) as u8;
        if kind == 8 { 0 } else { (kind.wrapping_add(1) as u16) << 8 }
    }
}

/// RFC 9293, section 3.1.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// A packet of either family, parsed.
///
/// For an ICMP query, the identifier ([`icmp::identifier`]) stands where a client's port would, and its type where a server's would: in `src_port`
/// and `dst_port` of the query, in `dst_port` and `src_port` of its answer. So an answer is the reversed tuple, as everywhere
/// else. Of queries the code is left out. Other messages have type and code (`type << 8 | code`) in `dst_port`, and 0 in `src_port`.
///
/// For an ICMP error, addresses and ports are those of the packet that it quotes, which travelled the other
/// way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src: Addr,
    pub dst: Addr,
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    pub tcp_flags: u8,
    pub kind: Kind,
}

/// What part a packet can have in a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Begins a flow or belongs to one.
    Plain = 0,
    /// The answer to an ICMP query: belongs to a flow, never begins one.
    EchoReply = 1,
    /// An ICMP error: tells of a flow.
    Error = 2,
}

impl Packet {
    /// Whether the packet asks for a new connection: it is judged as one even where the tuple is known.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.is_tcp_segment() && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether it is an ICMP message that answers nothing: it is of no flow that the other side began.
    #[inline(always)]
    pub const fn is_message(&self) -> bool {
        (self.protocol == protocol::ICMP || self.protocol == protocol::ICMPV6)
            && matches!(self.kind, Kind::Plain)
    }

    #[inline(always)]
    fn is_tcp_segment(&self) -> bool {
        self.protocol == protocol::TCP && matches!(self.kind, Kind::Plain)
    }

    /// Flags that no honest stack sends together, and that stacks have treated differently: an opening
    /// that closes, or none at all of the flags that a segment must have one of.
    #[inline(always)]
    pub fn has_impossible_flags(&self) -> bool {
        let flags = self.tcp_flags;
        self.is_tcp_segment()
            && ((flags & tcp::SYN != 0 && flags & (tcp::FIN | tcp::RST) != 0)
                || flags & (tcp::SYN | tcp::ACK | tcp::RST) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;

    fn tcp_packet(tcp_flags: u8) -> Packet {
        Packet {
            src: Ip4::LOOPBACK.into(),
            dst: Ip4::LOOPBACK.into(),
            src_port: 1,
            dst_port: 2,
            protocol: protocol::TCP,
            tcp_flags,
            kind: Kind::Plain,
        }
    }

    #[test]
    fn only_a_syn_without_ack_opens() {
        assert!(tcp_packet(tcp::SYN).opens());
        assert!(!tcp_packet(tcp::SYN | tcp::ACK).opens());
        assert!(!tcp_packet(tcp::ACK).opens());
        assert!(!Packet { protocol: protocol::UDP, ..tcp_packet(tcp::SYN) }.opens());
        assert!(!Packet { kind: Kind::Error, ..tcp_packet(tcp::SYN) }.opens());
    }

    #[test]
    fn an_answer_is_told_by_its_type() {
        for is_v4 in [true, false] {
            for kind in 0..=u8::MAX {
                match icmp::role(is_v4, kind) {
                    icmp::QUERY => {
                        let answer = (icmp::answer_to(u16::from(kind) << 8) >> 8) as u8;
                        assert_eq!(icmp::role(is_v4, answer), icmp::ANSWER, "{kind}");
                    }
                    icmp::ANSWER => {
                        let asked = icmp::asked_by(kind);
                        assert_eq!(icmp::role(is_v4, (asked >> 8) as u8), icmp::QUERY, "{kind}");
                        assert_eq!(icmp::answer_to(asked), u16::from(kind) << 8);
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn contradicting_flags_are_told() {
        for flags in [0, tcp::FIN, tcp::SYN | tcp::FIN, tcp::SYN | tcp::RST] {
            assert!(tcp_packet(flags).has_impossible_flags(), "{flags:#x}");
        }
        for flags in [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK] {
            assert!(!tcp_packet(flags).has_impossible_flags(), "{flags:#x}");
        }
    }
}
