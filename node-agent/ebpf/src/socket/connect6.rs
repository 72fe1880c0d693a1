//! `connect` of an IPv6 socket, TCP or UDP, to an IPv6 or an IPv4-mapped address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::translate::{Translation, destination6, forward, refuse, set_destination6};

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    match forward(&ctx, destination6(&ctx)) {
        Translation::None => PROCEED,
        Translation::To(real) => {
            set_destination6(&ctx, real);
            PROCEED
        }
        Translation::Refused => refuse(),
    }
}
