//! Direct server return: the node that a client asked tells the backend's node whom the client asked, in the packet that
//! opens the connection. The backend's node answers in that name, and the first node never sees the answers.
//!
//! IPv4: an option of number 26, copied, experimental (RFC 791, section 3.1; RFC 4727): port and address, 8 bytes in all.
//! IPv6: a destination option (RFC 8200, section 4.6) of an experimental number that whoever does not know it skips: address
//! and port, 24 bytes in all. Both stay in the packet; pods' stacks skip them.

use aya_ebpf::programs::TcContext;
use ebpf_shared::nat::Tuple;
use ebpf_shared::{Addr, Ip4, SockAddr};

use crate::frame::ETHERNET;

/// linux/bpf.h: `BPF_ADJ_ROOM_NET`, behind the IP header.
const ROOM_NET: u32 = 0;
const IPV4: usize = 20;
const IPV6: usize = 40;
const OPTION4: u8 = 0x9a;
const OPTION6: u8 = 0x1e;
const DESTINATION: u8 = 60;

#[repr(C)]
#[derive(Clone, Copy)]
struct Option4 {
    kind: u8,
    length: u8,
    /// In network order.
    port: u16,
    addr: Ip4,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Option6 {
    next: u8,
    /// In units of 8 bytes, without the first.
    units: u8,
    kind: u8,
    length: u8,
    addr: [u16; 8],
    port: u16,
    /// RFC 8200, section 4.2: PadN.
    padding: [u8; 2],
}

/// Whether there is anything between the IP header and the transport header.
#[inline(always)]
pub fn has_option(is_v4: bool, upper: usize) -> bool {
    upper == ETHERNET + if is_v4 { IPV4 + size_of::<Option4>() } else { IPV6 + size_of::<Option6>() }
}

/// Whom the client asked; port 0: that is not said.
#[inline(always)]
pub fn asked(ctx: &TcContext, is_v4: bool) -> SockAddr {
    const NOTHING: SockAddr = SockAddr::new(Addr::UNSPECIFIED, 0);
    if is_v4 {
        match ctx.load::<Option4>(ETHERNET + IPV4) {
            Ok(option) if option.kind == OPTION4 && option.length == 8 => {
                SockAddr::new(Addr::v4(option.addr), u16::from_be(option.port))
            }
            _ => NOTHING,
        }
    } else {
        match ctx.load::<Option6>(ETHERNET + IPV6) {
            Ok(option) if option.kind == OPTION6 && option.length == 18 => {
                let word = |at: usize| u32::from(option.addr[at]) | u32::from(option.addr[at + 1]) << 16;
                let addr = Addr::from_words([word(0), word(2), word(4), word(6)]);
                SockAddr::new(addr, u16::from_be(option.port))
            }
            _ => NOTHING,
        }
    }
}

/// Says in a packet whom the client asked: a packet without options so far.
#[inline(always)]
pub fn tell(ctx: &TcContext, is_v4: bool, asked: &Tuple) -> Result<(), i64> {
    if is_v4 { tell4(ctx, asked) } else { tell6(ctx, asked) }
}

#[inline(always)]
fn tell4(ctx: &TcContext, asked: &Tuple) -> Result<(), i64> {
    let before = ctx.load::<[u16; 2]>(ETHERNET)?;
    // Another option is there already.
    if before[0].to_ne_bytes()[0] != 0x45 {
        return Err(0);
    }
    let option = Option4 { kind: OPTION4, length: 8, port: asked.dst_port.to_be(), addr: asked.dst.low() };
    let [_, tos] = before[0].to_ne_bytes();
    let longer = u16::from_be(before[1]).wrapping_add(size_of::<Option4>() as u16).to_be();
    let after = [u16::from_ne_bytes([0x47, tos]), longer];
    ctx.adjust_room(size_of::<Option4>() as i32, ROOM_NET, 0)?;
    ctx.store(ETHERNET, &after, 0)?;
    ctx.store(ETHERNET + IPV4, &option, 0)?;
    let [first, second] = {
        let addr = option.addr.to_be();
        [u32::from_ne_bytes([OPTION4, 8, 0, 0]) | u32::from(option.port) << 16, addr]
    };
    let checksum = ETHERNET + 10;
    let word = |pair: [u16; 2]| u64::from(pair[0]) | u64::from(pair[1]) << 16;
    ctx.l3_csum_replace(checksum, word(before), word(after), 4)?;
    ctx.l3_csum_replace(checksum, 0, u64::from(first), 4)?;
    ctx.l3_csum_replace(checksum, 0, u64::from(second), 4)
}

#[inline(always)]
fn tell6(ctx: &TcContext, asked: &Tuple) -> Result<(), i64> {
    let length = ctx.load::<u16>(ETHERNET + 4)?;
    let next = ctx.load::<u8>(ETHERNET + 6)?;
    let longer = u16::from_be(length).wrapping_add(size_of::<Option6>() as u16).to_be();
    let words = asked.dst.words();
    let half = |at: usize| [words[at] as u16, (words[at] >> 16) as u16];
    let [[a, b], [c, d], [e, f], [g, h]] = [half(0), half(1), half(2), half(3)];
    let option = Option6 {
        next,
        units: (size_of::<Option6>() / 8 - 1) as u8,
        kind: OPTION6,
        length: 18,
        addr: [a, b, c, d, e, f, g, h],
        port: asked.dst_port.to_be(),
        padding: [1, 0],
    };
    ctx.adjust_room(size_of::<Option6>() as i32, ROOM_NET, 0)?;
    ctx.store(ETHERNET + 4, &longer, 0)?;
    ctx.store(ETHERNET + 6, &DESTINATION, 0)?;
    ctx.store(ETHERNET + IPV6, &option, 0)
}
