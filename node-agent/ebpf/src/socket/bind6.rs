//! `bind` of an IPv6 socket, see `bind4`: the wildcard of a dual-stack socket, `[::]` or `::ffff:0.0.0.0`,
//! becomes `::ffff:127.0.0.1`, where the proxy looks for the application.
//!
//! A socket that was told to be IPv6-only (`IPV6_V6ONLY`) can't bind that and fails with EINVAL: the hook is
//! not told of the option.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::Ip4;

use super::PROCEED;
use super::mapped::{destination, is_unspecified, set_addr};
use super::sidecar::captures;
use super::translate::port;

#[cgroup_sock_addr(bind6)]
pub fn sock_bind6(ctx: SockAddrContext) -> i32 {
    let is_wildcard = match destination(&ctx) {
        Some(mapped) => mapped.addr == Ip4::UNSPECIFIED,
        None => is_unspecified(&ctx),
    };
    if is_wildcard && captures(&ctx, port(&ctx)) {
        set_addr(&ctx, Ip4::LOOPBACK);
    }
    PROCEED
}
