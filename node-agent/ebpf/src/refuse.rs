//! Tells a pod at once that nobody takes what it sends: a TCP reset, or ICMP's "port unreachable", from whom it asked.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_redirect_peer, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use ebpf_shared::packet::{protocol, tcp};

use crate::frame::{ETHERNET, IPV4, IPV6};

const DROP: u32 = TC_ACT_SHOT as u32;
const IP4: usize = 20;
const IP6: usize = 40;
const TCP: usize = 20;
/// Header of an ICMP error, and what it quotes of the transport header (RFC 792; all of RFC 4443's that matters).
const ICMP: usize = 8;
const QUOTED: usize = 8;
/// An IPv4 header without options.
const PLAIN: u8 = 0x45;
const HOPS: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;

/// A TCP header without options (RFC 9293, section 3.1); every field as on the wire.
#[derive(Clone, Copy)]
#[repr(C)]
struct Tcp {
    ports: [u16; 2],
    sequence: u32,
    acknowledgment: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Header4 {
    kind: u8,
    tos: u8,
    length: u16,
    identification: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: u32,
    dst: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Header6 {
    kind: u32,
    length: u16,
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

/// Makes of a packet from a pod the answer to it, and sends that into the pod, past its door. What can't be answered (its
/// headers have options, it is neither TCP nor UDP, or is a reset itself) is dropped. To be returned to the hook.
///
/// # Safety
/// A context.
#[inline(never)]
pub unsafe fn answer(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    // SAFETY: as the caller says.
    let (ifindex, ethertype) = unsafe { ((*skb).ifindex, u16::from_be((*skb).protocol as u16)) };
    let Ok(macs) = ctx.load::<[[u16; 3]; 2]>(0) else { return DROP };
    let made = match ethertype {
        IPV4 => answer4(&ctx),
        IPV6 => answer6(&ctx),
        _ => false,
    };
    if !made || ctx.store(0, &[macs[1], macs[0]], 0).is_err() {
        return DROP;
    }
    // SAFETY: no preconditions.
    unsafe { bpf_redirect_peer(ifindex, 0) as u32 }
}

#[inline(always)]
fn answer4(ctx: &TcContext) -> bool {
    let Ok(asked) = ctx.load::<Header4>(ETHERNET) else { return false };
    if asked.kind != PLAIN {
        return false;
    }
    let is_tcp = asked.protocol == protocol::TCP;
    let upper = if is_tcp { TCP } else { ICMP + IP4 + QUOTED };
    let mut ip = Header4 {
        kind: PLAIN,
        tos: 0,
        length: ((IP4 + upper) as u16).to_be(),
        identification: 0,
        fragment: DONT_FRAGMENT.to_be(),
        ttl: HOPS,
        protocol: if is_tcp { protocol::TCP } else { protocol::ICMP },
        checksum: 0,
        src: asked.dst,
        dst: asked.src,
    };
    ip.checksum = fold(sum(0, &ip));
    let pseudo = [ip.src, ip.dst, (u32::from(protocol::TCP) << 16 | TCP as u32).to_be()];
    let payload = usize::from(u16::from_be(asked.length)).wrapping_sub(IP4);
    let done = match asked.protocol {
        protocol::TCP => reset(ctx, ETHERNET + IP4, payload, sum(0, &pseudo)),
        // Destination unreachable: port unreachable.
        protocol::UDP => error::<[u32; (IP4 + QUOTED) / 4]>(ctx, ETHERNET + IP4, [3, 3], 0),
        _ => false,
    };
    done && ctx.store(ETHERNET, &ip, 0).is_ok()
}

#[inline(always)]
fn answer6(ctx: &TcContext) -> bool {
    let Ok(asked) = ctx.load::<Header6>(ETHERNET) else { return false };
    let is_tcp = asked.next == protocol::TCP;
    let upper = if is_tcp { TCP } else { ICMP + IP6 + QUOTED };
    let ip = Header6 {
        kind: (6_u32 << 28).to_be(),
        length: (upper as u16).to_be(),
        next: if is_tcp { protocol::TCP } else { protocol::ICMPV6 },
        hops: HOPS,
        src: asked.dst,
        dst: asked.src,
    };
    let rest = [(upper as u32).to_be(), u32::from(ip.next).to_be()];
    let pseudo = sum(sum(sum(0, &rest), &ip.src), &ip.dst);
    let payload = usize::from(u16::from_be(asked.length));
    let done = match asked.next {
        protocol::TCP => reset(ctx, ETHERNET + IP6, payload, pseudo),
        protocol::UDP => error::<[u32; (IP6 + QUOTED) / 4]>(ctx, ETHERNET + IP6, [1, 4], pseudo),
        _ => false,
    };
    done && ctx.store(ETHERNET, &ip, 0).is_ok()
}

/// RFC 9293, section 3.10.7.1. `at`: of the TCP header, `payload` bytes with it.
#[inline(always)]
fn reset(ctx: &TcContext, at: usize, payload: usize, pseudo: u32) -> bool {
    let Ok(asked) = ctx.load::<Tcp>(at) else { return false };
    if asked.flags & tcp::RST != 0 {
        return false;
    }
    let (sequence, acknowledgment, flags) = if asked.flags & tcp::ACK != 0 {
        (asked.acknowledgment, 0, tcp::RST)
    } else {
        let count = |flag: u8| u32::from(asked.flags & flag != 0);
        let data = payload.wrapping_sub(usize::from(asked.offset >> 4) * 4) as u32;
        let length = data.wrapping_add(count(tcp::SYN) + count(tcp::FIN));
        (0, u32::from_be(asked.sequence).wrapping_add(length).to_be(), tcp::RST | tcp::ACK)
    };
    let mut answer = Tcp {
        ports: [asked.ports[1], asked.ports[0]],
        sequence,
        acknowledgment,
        offset: (TCP as u8 / 4) << 4,
        flags,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    answer.checksum = fold(sum(pseudo, &answer));
    cut(ctx, at + TCP) && ctx.store(at, &answer, 0).is_ok()
}

/// `at`: where the error begins, behind the IP header. `Quote`: as much as that header and a little more.
#[inline(always)]
fn error<Quote: Copy>(ctx: &TcContext, at: usize, [kind, code]: [u8; 2], pseudo: u32) -> bool {
    #[repr(C)]
    struct Error<Quote> {
        kind: u8,
        code: u8,
        checksum: u16,
        unused: u32,
        quote: Quote,
    }
    let Ok(quote) = ctx.load::<Quote>(ETHERNET) else { return false };
    let mut error = Error { kind, code, checksum: 0, unused: 0, quote };
    error.checksum = fold(sum(pseudo, &error));
    cut(ctx, at + size_of::<Error<Quote>>()) && ctx.store(at, &error, 0).is_ok()
}

/// Makes the frame end there.
#[inline(always)]
fn cut(ctx: &TcContext, end: usize) -> bool {
    // SAFETY: the context is valid as long as the program runs.
    unsafe { bpf_skb_change_tail(ctx.skb.skb, end as u32, 0) == 0 }
}

/// Adds words to an internet checksum (RFC 1071): whole ones.
#[inline(always)]
fn sum<T>(before: u32, words: &T) -> u32 {
    let words = core::ptr::from_ref(words).cast::<u32>().cast_mut();
    // SAFETY: of this size; the helper only reads.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, words, size_of::<T>() as u32, before) as u32 }
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
