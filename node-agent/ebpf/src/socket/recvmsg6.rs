//! `recvfrom` and `recvmsg` of an IPv6 UDP socket, from an IPv6 or an IPv4-mapped address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::translate::{backward, destination6, set_destination6};

#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(ctx: SockAddrContext) -> i32 {
    if let Some(believed) = backward(&ctx, destination6(&ctx)) {
        set_destination6(&ctx, believed);
    }
    PROCEED
}
