//! Datagrams in pieces, as the kernel programs remember them.

use crate::Ip4;

/// Key of `FRAGMENTS`: RFC 791 identifies a datagram by addresses, protocol and identification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey {
    pub ifindex: u32,
    pub src: Ip4,
    pub dst: Ip4,
    pub identification: u16,
    pub protocol: u8,
    pub direction: u8,
}

/// Value of `FRAGMENTS`: what only the first piece says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    pub src_port: u16,
    pub dst_port: u16,
    /// 1: an ICMP echo reply.
    pub is_echo_reply: u8,
    pub padding: [u8; 3],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_has_implicit_padding() {
        assert_eq!(size_of::<FragmentKey>(), 3 * 4 + 2 + 1 + 1);
        assert_eq!(size_of::<Head>(), 2 + 2 + 1 + 3);
    }
}
