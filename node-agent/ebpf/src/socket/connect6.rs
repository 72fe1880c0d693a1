//! `connect` of an IPv6 socket to an IPv4-mapped address.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use super::PROCEED;
use super::mapped::{destination, set_destination};
use super::translate::{Translation, forward, refuse};

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(ctx: SockAddrContext) -> i32 {
    let Some(wanted) = destination(&ctx) else { return PROCEED };
    match forward(&ctx, wanted) {
        Translation::None => PROCEED,
        Translation::To(real) => {
            set_destination(&ctx, real);
            PROCEED
        }
        Translation::Refused => refuse(),
    }
}
