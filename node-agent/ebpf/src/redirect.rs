//! The sockets of proxies: see `ebpf_shared::redirect`.
//!
//! Each step is a function of its own, so that the verdict's stack, which is short, is not theirs as well. The packet is the
//! one in `SCRATCH`.

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_redirect, bpf_sk_assign, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
    bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::TcContext;
use ebpf_shared::packet::{Kind, Packet, protocol};
use ebpf_shared::redirect::{MARK, TO_PROXY, TO_PROXY_UNTRACKED};
use ebpf_shared::{Addr, Ip4, Proxies};

use crate::maps::{LOOKUP, PROXIES, SCRATCH};

/// The network namespace of the interface.
const HERE: u64 = u64::MAX;
/// `TCP_LISTEN`.
const LISTEN: u32 = 10;
/// `lo`: the first link of every network namespace, and its link address.
const LOOPBACK: u32 = 1;
const NOBODY: [u8; 6] = [0; 6];
/// The upper byte of a mark says whose it is.
const OWNER: u32 = 0xff00_0000;
/// `::1`, as on the wire.
const LOOPBACK6: Addr = Addr::from_words([0, 0, 0, 1_u32.to_be()]);

const NO: u32 = 0;
const YES: u32 = 1;
/// Beside a slot: the packet answers something.
const REPLY: u32 = 1 << 16;

pub struct KernelProxies<'a> {
    pub ctx: &'a TcContext,
}

impl Proxies for KernelProxies<'_> {
    #[inline(always)]
    fn take(&mut self, _: &Packet, slot: u16, is_reply: bool) -> bool {
        let how = u32::from(slot) | if is_reply { REPLY } else { 0 };
        // SAFETY: the context is valid as long as the program runs.
        unsafe { hand_over(self.ctx.skb.skb, how) == YES }
    }

    #[inline(always)]
    fn take_answer(&mut self, _: &Packet) -> bool {
        // SAFETY: as above.
        unsafe { is_awaited(self.ctx.skb.skb) == YES }
    }
}

/// Whether a proxy of this node has sent a packet.
#[inline(always)]
pub fn is_of_proxy(mark: u32) -> bool {
    mark & OWNER == MARK
}

/// Sends a packet that is on its way to a pod to the proxy instead. Sockets are given packets where they come in, so
/// it comes in once more, by `lo`: the pod's own interface has no address, so that reverse-path filtering, if only a loose one,
/// would take it for a stray there.
#[inline(always)]
pub fn set_aside(ctx: &TcContext) -> i32 {
    ctx.set_mark(TO_PROXY_UNTRACKED);
    // What bears another link address than its interface is not for this host.
    if ctx.store(0, &NOBODY, 0).is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: no preconditions.
    unsafe { bpf_redirect(LOOPBACK, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Gives a packet from a pod to the proxy of a slot.
///
/// # Safety
/// A context.
#[inline(never)]
unsafe fn hand_over(skb: *mut __sk_buff, how: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let Some(seen) = SCRATCH.get_ptr(0) else { return NO };
    // SAFETY: this CPU's own, see `crate::verdict`.
    let packet = unsafe { &(*seen).seen.packet };
    // SAFETY: stays readable until the program ends (RCU, not preallocated).
    let Some(proxy) = (unsafe { PROXIES.get(how & 0xffff) }) else { return NO };
    let port = proxy.port(packet);
    if port == 0 {
        return NO;
    }
    // What it tells of is found by what it quotes.
    if matches!(packet.kind, Kind::Error) {
        ctx.set_mark(TO_PROXY);
        return YES;
    }
    let is_tcp = packet.protocol == protocol::TCP;
    // SAFETY: as the caller says.
    let given = unsafe {
        match if is_tcp { give_to_connection(skb, packet) } else { None } {
            Some(given) => given,
            None if how & REPLY == 0 => give_to_listener(skb, packet, port),
            None => false,
        }
    };
    if !given {
        return NO;
    }
    ctx.set_mark(TO_PROXY);
    YES
}

/// Gives a segment to its connection. `None`: there is none.
///
/// # Safety
/// A context.
#[inline(always)]
unsafe fn give_to_connection(skb: *mut __sk_buff, packet: &Packet) -> Option<bool> {
    let (tuple, size) = Way::of(packet).tuple()?;
    // SAFETY: a context, and a tuple of this size. What is found is released on every way out.
    unsafe {
        let socket = bpf_skc_lookup_tcp(skb.cast(), tuple, size, HERE, 0);
        if socket.is_null() {
            return None;
        }
        if core::ptr::read_volatile(&raw const (*socket).state) == LISTEN {
            bpf_sk_release(socket.cast());
            return None;
        }
        // One that is being opened or was closed has no mark that could be read, but only its listener made it.
        let full = bpf_sk_fullsock(socket);
        let is_ours = full.is_null() || is_of_proxy(core::ptr::read_volatile(&raw const (*full).mark));
        let given = is_ours && bpf_sk_assign(skb.cast(), socket.cast(), 0) == 0;
        bpf_sk_release(socket.cast());
        Some(given)
    }
}

/// Gives a packet to the proxy's listener.
///
/// # Safety
/// A context.
#[inline(always)]
unsafe fn give_to_listener(skb: *mut __sk_buff, packet: &Packet, port: u16) -> bool {
    let is_v4 = packet.dst.is_v4();
    let at = if is_v4 { Addr::v4(Ip4::LOOPBACK) } else { LOOPBACK6 };
    let Some((tuple, size)) = (Way { dst: &at, dst_port: port, ..Way::of(packet) }).tuple() else {
        return false;
    };
    let is_tcp = packet.protocol == protocol::TCP;
    // SAFETY: as above.
    unsafe {
        let socket = look_up(skb, tuple, size, is_tcp);
        if socket.is_null() {
            return false;
        }
        // One that is bound to everything is not what the proxy was told to make.
        let listens = !is_tcp || core::ptr::read_volatile(&raw const (*socket).state) == LISTEN;
        let is_ours = listens && is_bound(socket, &at, is_v4) && is_marked(socket);
        let given = is_ours && bpf_sk_assign(skb.cast(), socket.cast(), 0) == 0;
        bpf_sk_release(socket.cast());
        given
    }
}

/// Whether a proxy has asked in the pod's name, and this is what it waits for: whether one of its sockets is bound to the
/// pod's address and would get the packet, if it were for this host.
///
/// # Safety
/// A context.
#[inline(never)]
unsafe fn is_awaited(skb: *mut __sk_buff) -> u32 {
    let Some(seen) = SCRATCH.get_ptr(0) else { return NO };
    // SAFETY: this CPU's own, see `crate::verdict`.
    let packet = unsafe { &(*seen).seen.packet };
    let is_tcp = packet.protocol == protocol::TCP;
    if !is_tcp && packet.protocol != protocol::UDP {
        return NO;
    }
    let mut way = Way::of(packet);
    // What an error quotes went the other way.
    if matches!(packet.kind, Kind::Error) {
        way = Way { src: way.dst, src_port: way.dst_port, dst: way.src, dst_port: way.src_port };
    }
    let is_v4 = way.dst.is_v4();
    let Some((tuple, size)) = way.tuple() else { return NO };
    // SAFETY: as above.
    unsafe {
        let socket = look_up(skb, tuple, size, is_tcp);
        if socket.is_null() {
            return NO;
        }
        let listens = is_tcp && core::ptr::read_volatile(&raw const (*socket).state) == LISTEN;
        let is_ours = !listens && is_bound(socket, way.dst, is_v4) && is_marked(socket);
        bpf_sk_release(socket.cast());
        if is_ours { YES } else { NO }
    }
}

/// The socket of this node that would get such a packet, to be released; null if none would.
///
/// # Safety
/// A context, and a tuple of this size.
#[inline(always)]
unsafe fn look_up(skb: *mut __sk_buff, tuple: *mut bpf_sock_tuple, size: u32, is_tcp: bool) -> *mut bpf_sock {
    // SAFETY: as the caller says.
    unsafe {
        if is_tcp {
            bpf_sk_lookup_tcp(skb.cast(), tuple, size, HERE, 0)
        } else {
            bpf_sk_lookup_udp(skb.cast(), tuple, size, HERE, 0)
        }
    }
}

/// Only processes that may configure the network can mark sockets.
///
/// # Safety
/// A whole socket.
#[inline(always)]
unsafe fn is_marked(socket: *mut bpf_sock) -> bool {
    // SAFETY: as the caller says.
    is_of_proxy(unsafe { core::ptr::read_volatile(&raw const (*socket).mark) })
}

/// Whether a socket is bound to this very address.
///
/// # Safety
/// A whole socket.
#[inline(always)]
unsafe fn is_bound(socket: *mut bpf_sock, at: &Addr, is_v4: bool) -> bool {
    let [a, b, c, d] = at.words();
    // SAFETY: as the caller says; each field is read whole.
    unsafe {
        if is_v4 {
            return core::ptr::read_volatile(&raw const (*socket).src_ip4) == d;
        }
        let word = |at: usize| core::ptr::read_volatile((&raw const (*socket).src_ip6).cast::<u32>().add(at));
        word(0) == a && word(1) == b && word(2) == c && word(3) == d
    }
}

/// Where a packet comes from and goes, for a lookup.
struct Way<'a> {
    src: &'a Addr,
    src_port: u16,
    dst: &'a Addr,
    dst_port: u16,
}

impl<'a> Way<'a> {
    #[inline(always)]
    fn of(packet: &'a Packet) -> Self {
        Self { src: &packet.src, src_port: packet.src_port, dst: &packet.dst, dst_port: packet.dst_port }
    }

    /// What a socket is looked up by, not on the stack, and its size.
    #[inline(always)]
    fn tuple(&self) -> Option<(*mut bpf_sock_tuple, u32)> {
        let tuple = LOOKUP.get_ptr_mut(0)?;
        // SAFETY: this CPU's own, and programs of this type don't interrupt each other on one CPU.
        unsafe {
            if self.dst.is_v4() {
                (*tuple).__bindgen_anon_1.ipv4.saddr = self.src.words()[3];
                (*tuple).__bindgen_anon_1.ipv4.daddr = self.dst.words()[3];
                (*tuple).__bindgen_anon_1.ipv4.sport = self.src_port.to_be();
                (*tuple).__bindgen_anon_1.ipv4.dport = self.dst_port.to_be();
                return Some((tuple, 12));
            }
            (*tuple).__bindgen_anon_1.ipv6.saddr = self.src.words();
            (*tuple).__bindgen_anon_1.ipv6.daddr = self.dst.words();
            (*tuple).__bindgen_anon_1.ipv6.sport = self.src_port.to_be();
            (*tuple).__bindgen_anon_1.ipv6.dport = self.dst_port.to_be();
        }
        Some((tuple, 36))
    }
}
