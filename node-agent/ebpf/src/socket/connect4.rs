//! `connect` of an IPv4 socket, TCP or UDP.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::translate::{Translation, destination4, forward, refuse, set_destination4};

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(ctx: SockAddrContext) -> i32 {
    match forward(&ctx, destination4(&ctx)) {
        Translation::None => PROCEED,
        Translation::To(real) => {
            set_destination4(&ctx, real);
            PROCEED
        }
        Translation::Refused => refuse(),
    }
}
