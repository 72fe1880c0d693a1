//! Datagrams in pieces: only the first piece has ports, so it is remembered for the others.
//!
//! A piece whose first piece was not seen here is dropped: it can't be judged. So is a second piece of a TCP
//! segment that begins within the TCP header (RFC 1858, section 4): it could replace what was judged.

use ebpf_shared::Kind;
use ebpf_shared::fragment::{FragmentKey, Head};

use crate::maps::FRAGMENTS;

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
