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

/// What policy calls ICMP messages: `type << 8 | code`. Echo requests are the only ones that begin a flow; their answers and
/// the errors about a flow belong to it.
pub mod icmp {
    /// RFC 792.
    pub const ECHO: u16 = 8 << 8;
    /// RFC 4443.
    pub const ECHO6: u16 = 128 << 8;
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
/// For an ICMP echo, the identifier stands where a client's port would: in `src_port` of a request, in
/// `dst_port` of a reply, with 0 on the other side. So a reply is the reversed tuple, as everywhere else.
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
    /// An ICMP echo reply: belongs to a flow, never begins one.
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
    fn contradicting_flags_are_told() {
        for flags in [0, tcp::FIN, tcp::SYN | tcp::FIN, tcp::SYN | tcp::RST] {
            assert!(tcp_packet(flags).has_impossible_flags(), "{flags:#x}");
        }
        for flags in [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::RST, tcp::FIN | tcp::ACK] {
            assert!(!tcp_packet(flags).has_impossible_flags(), "{flags:#x}");
        }
    }
}
