//! `bind` of an IPv4 socket: an application with a sidecar is reachable through it only.
//!
//! The proxy itself binds the pod's address, not the wildcard, so the port on the wire stays the same and
//! network policy keeps its meaning.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::{Ip4, SocketAddr4};

use super::PROCEED;
use super::sidecar::captures;
use super::translate::{destination4, set_destination4};

#[cgroup_sock_addr(bind4)]
pub fn sock_bind4(ctx: SockAddrContext) -> i32 {
    let wanted = destination4(&ctx);
    if wanted.addr == Ip4::UNSPECIFIED && captures(&ctx, wanted.port) {
        set_destination4(&ctx, SocketAddr4::new(Ip4::LOOPBACK, wanted.port));
    }
    PROCEED
}
