//! `bind` of an IPv6 socket, see `bind4`: the wildcard of a dual-stack socket, `[::]` or `::ffff:0.0.0.0`,
//! becomes `::ffff:127.0.0.1`, where the proxy looks for the application.
//!
//! A socket that was told to be IPv6-only (`IPV6_V6ONLY`) can't bind that and fails with EINVAL: the hook is
//! not told of the option.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::{Addr, Ip4, SockAddr};

use super::PROCEED;
use super::sidecar::captures;
use super::translate::{destination6, set_destination6};

#[cgroup_sock_addr(bind6)]
pub fn sock_bind6(ctx: SockAddrContext) -> i32 {
    let wanted = destination6(&ctx);
    let is_wildcard = wanted.addr.is_unspecified() || wanted.addr == Addr::v4(Ip4::UNSPECIFIED);
    if is_wildcard && captures(&ctx, wanted.port) {
        set_destination6(&ctx, SockAddr::new(Addr::v4(Ip4::LOOPBACK), wanted.port));
    }
    PROCEED
}
