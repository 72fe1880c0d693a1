//! IPv4-mapped IPv6 addresses, `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).

use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::{Ip4, SocketAddr4};

use super::translate::{port, set_port};

const PREFIX: u32 = 0x0000_ffff_u32.to_be();

#[inline(always)]
fn word(ctx: &SockAddrContext, at: usize) -> u32 {
    // SAFETY: within the context; read whole, as the verifier wants it.
    unsafe { core::ptr::read_volatile((&raw const (*ctx.sock_addr).user_ip6).cast::<u32>().add(at)) }
}

#[inline(always)]
fn set_word(ctx: &SockAddrContext, at: usize, value: u32) {
    // SAFETY: within a field that these hooks may write.
    unsafe { core::ptr::write_volatile((&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>().add(at), value) }
}

/// The IPv4 address and port of the call, if its address is a mapped one.
#[inline(always)]
pub fn destination(ctx: &SockAddrContext) -> Option<SocketAddr4> {
    if word(ctx, 0) == 0 && word(ctx, 1) == 0 && word(ctx, 2) == PREFIX {
        return Some(SocketAddr4::new(Ip4::from_be(word(ctx, 3)), port(ctx)));
    }
    None
}

/// Replaces the address and port of a call whose address is a mapped one.
#[inline(always)]
pub fn set_destination(ctx: &SockAddrContext, to: SocketAddr4) {
    set_word(ctx, 3, to.addr.to_be());
    set_port(ctx, to.port);
}

/// Whether the address is `::`.
#[inline(always)]
pub fn is_unspecified(ctx: &SockAddrContext) -> bool {
    word(ctx, 0) == 0 && word(ctx, 1) == 0 && word(ctx, 2) == 0 && word(ctx, 3) == 0
}

/// Replaces the address by the mapped form of `addr`.
#[inline(always)]
pub fn set_addr(ctx: &SockAddrContext, addr: Ip4) {
    set_word(ctx, 2, PREFIX);
    set_word(ctx, 3, addr.to_be());
}
