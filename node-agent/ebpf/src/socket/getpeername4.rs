//! `getpeername` of an IPv4 socket: the service that was asked for, not the backend.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::translate::{backward, destination4, set_destination4};

#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeer4(ctx: SockAddrContext) -> i32 {
    if let Some(believed) = backward(&ctx, destination4(&ctx)) {
        set_destination4(&ctx, believed);
    }
    PROCEED
}
