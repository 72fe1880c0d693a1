//! From a service's address to a backend's, and back.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::programs::SockAddrContext;
use ebpf_shared::balance::Ask;
use ebpf_shared::service::{ReverseValue, scope};
use ebpf_shared::{Addr, Choice, Ip4, ReverseKey, ServiceKey, SockAddr, balance};

use super::{PROCEED, REFUSE};
use crate::balance::KernelServices;
use crate::maps::{NETNS, REVERSE};

const ECONNREFUSED: i32 = 111;

/// Reads a field whole: the verifier refuses the narrower reads that the compiler would make of it.
macro_rules! field {
    ($ctx:expr, $name:ident) => {
        // SAFETY: the context is valid as long as the program runs.
        unsafe { core::ptr::read_volatile(&raw const (*$ctx.sock_addr).$name) }
    };
}

/// The call goes where its IPv4 address stands for: the whole of `connect` and `sendmsg`.
#[inline(always)]
pub fn to_backend4(ctx: &SockAddrContext) -> i32 {
    match forward(ctx, destination4(ctx)) {
        Translation::None => {}
        Translation::To(real) => set_destination4(ctx, real),
        Translation::Refused => return refuse(),
    }
    PROCEED
}

/// As [`to_backend4`], of an IPv6 socket.
#[inline(always)]
pub fn to_backend6(ctx: &SockAddrContext) -> i32 {
    match forward(ctx, destination6(ctx)) {
        Translation::None => {}
        Translation::To(real) => set_destination6(ctx, real),
        Translation::Refused => return refuse(),
    }
    PROCEED
}

/// What becomes of a destination.
enum Translation {
    /// Not a service's.
    None,
    To(SockAddr),
    Refused,
}

/// Where a connection (or datagram) of this socket to `wanted` really goes. Remembers it for the way back.
#[inline(always)]
fn forward(ctx: &SockAddrContext, wanted: SockAddr) -> Translation {
    let netns = netns_cookie(ctx);
    let ask = Ask {
        key: ServiceKey::new(wanted.addr, wanted.port, protocol_of(ctx), scope::INSIDE),
        client: Addr::of_cookie(netns),
        // SAFETY: no preconditions.
        hash: unsafe { bpf_get_prandom_u32() },
        // SAFETY: no preconditions.
        now: || unsafe { bpf_ktime_get_ns() },
        has_sidecar: || is_sidecar_pod(netns),
    };
    let (real, backend) = match balance(&mut KernelServices, &ask) {
        Choice::NotAService | Choice::ByProxy(_) => return Translation::None,
        // Of IPv4 for every socket: one of IPv6 reaches it by the mapped form.
        Choice::Proxy(port) => (SockAddr::new(Addr::v4(Ip4::LOOPBACK), port), 0),
        Choice::To(target) => (target.at, target.number),
        Choice::NoBackend | Choice::SourceRange => return Translation::Refused,
    };
    let key = ReverseKey::new(socket_cookie(ctx), real);
    let value = ReverseValue { believed: wanted, backend, netns };
    match REVERSE.get_ptr_mut(key) {
        // A datagram socket mostly finds here what it is about to write, or what it has written of another service with the
        // same backend. SAFETY: the kernel keeps the memory valid until the program ends. Whoever reads it meanwhile may
        // see some of each, as he may where an entry is reused: see `backward`.
        Some(held) => unsafe {
            if *held != value {
                core::ptr::write_volatile(held, value);
            }
        },
        // Without room the connection works all the same, but its program sees the backend's address.
        None => drop(REVERSE.insert(key, value, 0)),
    }
    Translation::To(real)
}

/// Whom the program of this socket believes to talk to, when it talks to `real`.
#[inline(always)]
pub fn backward(ctx: &SockAddrContext, real: SockAddr) -> Option<SockAddr> {
    let key = ReverseKey::new(socket_cookie(ctx), real);
    // SAFETY: copied at once; if the entry is reused meanwhile the address is another of this node's
    // services.
    match unsafe { REVERSE.get(key) } {
        Some(value) => Some(value.believed),
        None => None,
    }
}

#[inline(always)]
fn is_sidecar_pod(netns: u64) -> bool {
    // SAFETY: copied at once; stays readable until the program ends (RCU, not preallocated).
    match unsafe { NETNS.get(netns) } {
        Some(netns) => netns.has_sidecar(),
        None => false,
    }
}

#[inline(always)]
pub fn in_sidecar_pod(ctx: &SockAddrContext) -> bool {
    is_sidecar_pod(netns_cookie(ctx))
}

/// Makes the call fail with ECONNREFUSED, as it would without a listener.
#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: no preconditions; connect and sendmsg hooks may set the error.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

#[inline(always)]
pub fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
pub fn protocol_of(ctx: &SockAddrContext) -> u8 {
    field!(ctx, protocol) as u8
}

/// The IPv4 address and port of the call.
#[inline(always)]
pub fn destination4(ctx: &SockAddrContext) -> SockAddr {
    SockAddr::new(Addr::v4(Ip4::from_be(field!(ctx, user_ip4))), port(ctx))
}

/// Replaces the IPv4 address and port of the call. The backends of an IPv4 service are IPv4 as well.
#[inline(always)]
pub fn set_destination4(ctx: &SockAddrContext, to: SockAddr) {
    // SAFETY: a field that these hooks may write.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, to.addr.low().to_be()) };
    set_port(ctx, to.port);
}

/// The IPv6 address and port of the call: IPv4 addresses are mapped here as in the maps.
#[inline(always)]
pub fn destination6(ctx: &SockAddrContext) -> SockAddr {
    let word = |at: usize| {
        // SAFETY: within the context; read whole, as the verifier wants it.
        unsafe { core::ptr::read_volatile((&raw const (*ctx.sock_addr).user_ip6).cast::<u32>().add(at)) }
    };
    SockAddr::new(Addr::from_words([word(0), word(1), word(2), word(3)]), port(ctx))
}

/// Replaces the IPv6 address and port of the call.
#[inline(always)]
pub fn set_destination6(ctx: &SockAddrContext, to: SockAddr) {
    let words = to.addr.words();
    let set = |at: usize, word: u32| {
        // SAFETY: within a field that these hooks may write.
        unsafe { core::ptr::write_volatile((&raw mut (*ctx.sock_addr).user_ip6).cast::<u32>().add(at), word) }
    };
    set(0, words[0]);
    set(1, words[1]);
    set(2, words[2]);
    set(3, words[3]);
    set_port(ctx, to.port);
}

#[inline(always)]
pub fn port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(field!(ctx, user_port) as u16)
}

#[inline(always)]
pub fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: a field that these hooks may write.
    unsafe { core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.to_be())) };
}
