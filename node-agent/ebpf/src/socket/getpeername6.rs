//! `getpeername` of an IPv6 socket: the service that was asked for, not the backend.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::translate::{backward, destination6, set_destination6};

#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeer6(ctx: SockAddrContext) -> i32 {
    if let Some(believed) = backward(&ctx, destination6(&ctx)) {
        set_destination6(&ctx, believed);
    }
    PROCEED
}
