//! `recvfrom` and `recvmsg` of an IPv6 UDP socket, where the sender is an IPv4-mapped address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::mapped::{destination, set_destination};
use super::translate::backward;

#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(ctx: SockAddrContext) -> i32 {
    let Some(real) = destination(&ctx) else { return PROCEED };
    if let Some(believed) = backward(&ctx, real) {
        set_destination(&ctx, believed);
    }
    PROCEED
}
