//! `bind` of an IPv4 socket: an application with a sidecar is reachable through it only.
//!
//! The proxy itself binds the pod's address, not the wildcard, so the port on the wire stays the same and
//! network policy keeps its meaning.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::{Addr, Ip4, SockAddr};

use super::PROCEED;
use super::sidecar::captures;
use super::translate::{destination4, set_destination4};

#[cgroup_sock_addr(bind4)]
pub fn sock_bind4(ctx: SockAddrContext) -> i32 {
    let wanted = destination4(&ctx);
    if wanted.addr.low() == Ip4::UNSPECIFIED && captures(&ctx, wanted.port) {
        set_destination4(&ctx, SockAddr::new(Addr::v4(Ip4::LOOPBACK), wanted.port));
    }
    PROCEED
}
