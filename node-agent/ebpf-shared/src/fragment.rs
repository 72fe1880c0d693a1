//! Datagrams in pieces, as the kernel programs remember them.

use crate::{Addr, Kind, Packet};

/// Key of `FRAGMENTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey {
    pub ifindex: u32,
    pub src: Addr,
    pub dst: Addr,
    pub identification: u32,
    /// RFC 791 identifies a datagram by its protocol as well. RFC 8200 (section 4.5) does not, and has the pieces
    /// but the first say what they like: 0.
    pub protocol: u8,
    pub direction: u8,
    pub padding: u16,
}

/// Value of `FRAGMENTS`: what only the first piece says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    /// 1: the answer to an ICMP query.
    pub is_echo_reply: u8,
    /// Where the first piece ends, in units of 8 bytes. A piece that begins before could replace what was judged
    /// (RFC 1858, RFC 5722).
    pub end: u16,
}

impl Head {
    /// Of the first piece, parsed, with so many bytes.
    #[inline(always)]
    pub const fn of(packet: &Packet, bytes: usize) -> Self {
        Self {
            src_port: packet.src_port,
            dst_port: packet.dst_port,
            protocol: packet.protocol,
            is_echo_reply: matches!(packet.kind, Kind::EchoReply) as u8,
            end: (bytes / 8) as u16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_has_implicit_padding() {
        assert_eq!(size_of::<FragmentKey>(), 4 + 2 * 16 + 4 + 1 + 1 + 2);
        assert_eq!(size_of::<Head>(), 2 + 2 + 1 + 1 + 2);
    }
}
