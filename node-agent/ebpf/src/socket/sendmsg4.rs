//! `sendto` and `sendmsg` of a UDP socket that is not connected: each datagram picks a backend.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::translate::to_backend4;

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(ctx: SockAddrContext) -> i32 {
    to_backend4(&ctx)
}
