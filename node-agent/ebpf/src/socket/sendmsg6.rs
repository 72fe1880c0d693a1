//! `sendto` and `sendmsg` of an IPv6 UDP socket that is not connected: each datagram picks a backend. (Those to mapped
//! addresses come by the IPv4 hook: the kernel converts them first.)

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::translate::to_backend6;

#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(ctx: SockAddrContext) -> i32 {
    to_backend6(&ctx)
}
