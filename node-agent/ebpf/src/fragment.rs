//! Datagrams in pieces: only the first piece has ports, so it is remembered for the others.
//!
//! A piece whose first piece was not seen here is dropped: it can't be judged. So is a second piece of a TCP
//! segment that begins within the TCP header (RFC 1858, section 4): it could replace what was judged.

use ebpf_shared::{Ip4, Kind};

use crate::maps::FRAGMENTS;

/// Key of `FRAGMENTS`: RFC 791 identifies a datagram by addresses, protocol and identification.
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Head {
    pub src_port: u16,
    pub dst_port: u16,
    /// 1: an ICMP echo reply.
    pub is_echo_reply: u8,
    pub padding: [u8; 3],
}

#[inline(always)]
pub fn remember(key: &FragmentKey, src_port: u16, dst_port: u16, kind: Kind) {
    let is_echo_reply = matches!(kind, Kind::EchoReply) as u8;
    // Without room, the later pieces are dropped for want of it.
    let _ = FRAGMENTS.insert(key, Head { src_port, dst_port, is_echo_reply, padding: [0; 3] }, 0);
}

#[inline(always)]
pub fn recall(key: &FragmentKey) -> Option<Head> {
    // SAFETY: copied at once; an entry reused meanwhile can only belong to another datagram on its way, whose
    // ports then decide: the receiver will not assemble the two.
    unsafe { FRAGMENTS.get(key) }.copied()
}
