//! `connect` of an IPv6 socket, TCP or UDP, to an IPv6 or an IPv4-mapped address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::translate::to_backend6;

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    to_backend6(&ctx)
}
