//! `recvfrom` and `recvmsg` of a UDP socket: an answer comes from where the question was sent to.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::translate::{backward, destination4, set_destination4};

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(ctx: SockAddrContext) -> i32 {
    if let Some(believed) = backward(&ctx, destination4(&ctx)) {
        set_destination4(&ctx, believed);
    }
    PROCEED
}
