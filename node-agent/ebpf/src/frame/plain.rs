//! The frame that nearly all are: IP without options, extension headers or fragmentation, and TCP or UDP, in what the
//! kernel has in one piece. Such a frame is read where it lies; whoever else comes is read by [`super::classify`] and
//! [`super::parse`], and whatever is said here of a frame they would say as well.

use aya_ebpf::bindings::__sk_buff;
use ebpf_shared::packet::{protocol, tcp};
use ebpf_shared::{Addr, Ip4};

use super::{ETHERNET, IPV4, IPV6};

/// Addresses and ports of a frame.
pub struct Plain {
    pub src: Addr,
    pub dst: Addr,
    pub is_v4: bool,
    /// In network order.
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: u8,
    /// 0 of UDP.
    pub tcp_flags: u8,
    /// IPv4: of the header, in network order.
    pub checksum: u16,
}

const TCP: usize = 20;
const UDP: usize = 8;
/// Bytes of the IP headers.
pub const HEADER4: usize = 20;
pub const HEADER6: usize = 40;

/// Reads a frame.
///
/// # Safety
/// A context.
#[inline(always)]
pub unsafe fn read(skb: *mut __sk_buff) -> Option<Plain> {
    // SAFETY: the context is valid as long as the program runs.
    let (ethertype, has_vlan) = unsafe { ((*skb).protocol, (*skb).vlan_present != 0) };
    if has_vlan {
        return None;
    }
    // SAFETY: as the caller says.
    match u16::from_be(ethertype as u16) {
        IPV4 => unsafe { read4(skb) },
        IPV6 => unsafe { read6(skb) },
        _ => None,
    }
}

#[inline(always)]
unsafe fn read4(skb: *mut __sk_buff) -> Option<Plain> {
    const UPPER: usize = ETHERNET + HEADER4;
    // SAFETY: as the caller says; nothing is read beyond `end`.
    unsafe {
        let (data, end, frame) = ((*skb).data as usize, (*skb).data_end as usize, (*skb).len as usize);
        if data + UPPER + UDP > end {
            return None;
        }
        // Fragments have an offset, or more to come.
        if at::<u8>(data, ETHERNET) != 0x45 || u16::from_be(at(data, ETHERNET + 6)) & 0x3fff != 0 {
            return None;
        }
        let total = usize::from(u16::from_be(at(data, ETHERNET + 2)));
        if total < HEADER4 || total > frame - ETHERNET {
            return None;
        }
        let protocol = at::<u8>(data, ETHERNET + 9);
        let tcp_flags = flags(data, end, UPPER, protocol, total - HEADER4)?;
        Some(Plain {
            src: Addr::v4(Ip4::from_be(at(data, ETHERNET + 12))),
            dst: Addr::v4(Ip4::from_be(at(data, ETHERNET + 16))),
            is_v4: true,
            src_port: at(data, UPPER),
            dst_port: at(data, UPPER + 2),
            protocol,
            tcp_flags,
            checksum: at(data, ETHERNET + 10),
        })
    }
}

#[inline(always)]
unsafe fn read6(skb: *mut __sk_buff) -> Option<Plain> {
    const UPPER: usize = ETHERNET + HEADER6;
    // SAFETY: as above.
    unsafe {
        let (data, end, frame) = ((*skb).data as usize, (*skb).data_end as usize, (*skb).len as usize);
        if data + UPPER + UDP > end || at::<u8>(data, ETHERNET) >> 4 != 6 {
            return None;
        }
        let payload = usize::from(u16::from_be(at(data, ETHERNET + 4)));
        if payload > frame - UPPER {
            return None;
        }
        let protocol = at::<u8>(data, ETHERNET + 6);
        let tcp_flags = flags(data, end, UPPER, protocol, payload)?;
        let address = |from: usize| Addr::from_words([0, 4, 8, 12].map(|word| at::<u32>(data, from + word)));
        let (src, dst) = (address(ETHERNET + 8), address(ETHERNET + 24));
        if src.is_v4() || dst.is_v4() {
            return None;
        }
        Some(Plain {
            src,
            dst,
            is_v4: false,
            src_port: at(data, UPPER),
            dst_port: at(data, UPPER + 2),
            protocol,
            tcp_flags,
            checksum: 0,
        })
    }
}

/// The flags of a segment. `None`: it is not well-formed, or neither TCP nor UDP.
///
/// # Safety
/// A frame that has 8 bytes from `upper` on.
#[inline(always)]
unsafe fn flags(data: usize, end: usize, upper: usize, protocol: u8, payload: usize) -> Option<u8> {
    match protocol {
        protocol::TCP => {
            if payload < TCP || data + upper + TCP > end {
                return None;
            }
            // SAFETY: as just looked at.
            let (offset, flags) = unsafe { (at::<u8>(data, upper + 12), at::<u8>(data, upper + 13)) };
            let length = usize::from(offset >> 4) * 4;
            if length < TCP || length > payload { None } else { Some(flags) }
        }
        protocol::UDP if payload >= UDP => Some(0),
        _ => None,
    }
}

/// What lies there. Words need not be aligned: the kernel loads the programs only where processors read them all the same.
///
/// # Safety
/// A frame that reaches as far.
#[inline(always)]
unsafe fn at<T: Copy>(data: usize, place: usize) -> T {
    // SAFETY: as the caller says. Volatile, so that each is read once and whole.
    unsafe { core::ptr::read_volatile((data + place) as *const T) }
}

impl Plain {
    /// Whether it is in the middle of its flow: neither begins nor ends a connection.
    #[inline(always)]
    pub fn is_of_the_middle(&self) -> bool {
        self.protocol == protocol::UDP
            || self.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK) == tcp::ACK
    }
}
