//! Datagrams in pieces: only the first piece has ports, so it is remembered for the others.
//!
//! A piece whose first piece was not seen here is dropped: it can't be judged.

use ebpf_shared::fragment::{FragmentKey, Head};

use crate::maps::FRAGMENTS;

#[inline(always)]
pub fn remember(key: &FragmentKey, head: &Head) {
    // Without room, the later pieces are dropped for want of it.
    let _ = FRAGMENTS.insert(key, head, 0);
}

#[inline(always)]
pub fn recall(key: &FragmentKey) -> Option<Head> {
    // SAFETY: copied at once; an entry reused meanwhile can only belong to another datagram on its way, whose
    // ports then decide: the receiver will not assemble the two.
    unsafe { FRAGMENTS.get(key) }.copied()
}
