//! Addresses as the wire has them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 address in network byte order, the form that packets, socket hooks and longest-prefix keys have.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ip4(u32);

impl Ip4 {
    /// `0.0.0.0`.
    pub const UNSPECIFIED: Self = Self(0);
    /// `127.0.0.1`.
    pub const LOOPBACK: Self = Self(u32::from_ne_bytes([127, 0, 0, 1]));

    /// Takes the four bytes as they lie in memory, e.g. a kernel field of type `__be32`.
    #[inline(always)]
    pub const fn from_be(raw: u32) -> Self {
        Self(raw)
    }

    /// The value to store into a `__be32`.
    #[inline(always)]
    pub const fn to_be(self) -> u32 {
        self.0
    }
}

impl From<Ipv4Addr> for Ip4 {
    fn from(addr: Ipv4Addr) -> Self {
        Self(u32::from_ne_bytes(addr.octets()))
    }
}

impl From<Ip4> for Ipv4Addr {
    fn from(addr: Ip4) -> Self {
        Self::from(addr.0.to_ne_bytes())
    }
}

impl core::fmt::Debug for Ip4 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

impl core::fmt::Display for Ip4 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

/// An address of either family, in network byte order: what every map is keyed by. An IPv4 address is its
/// IPv4-mapped form, `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2), so that one map and one verdict serve both.
///
/// A packet or a resource that says such a mapped address *as IPv6* would borrow the IPv4 one's identity: the
/// programs drop the first, and the agent reads the second as the IPv4 address that it stands for.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Addr([u32; 4]);

impl Addr {
    /// `::`, which is also the address that an endpoint of one family has in the other.
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// Bits of a whole address, as a longest-prefix key counts them.
    pub const BITS: u32 = 128;
    /// Bits before those of an IPv4 address.
    pub const V4_BITS: u32 = 96;

    const MAPPED: u32 = 0x0000_ffff_u32.to_be();

    /// Takes an IPv4 address.
    #[inline(always)]
    pub const fn v4(addr: Ip4) -> Self {
        Self([0, 0, Self::MAPPED, addr.to_be()])
    }

    /// Takes the sixteen bytes as they lie in memory, e.g. the words of a kernel field of type `in6_addr`.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The words to store into an `in6_addr`.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// What stands for a network namespace where others are addresses: a group of no scope (RFC 4291, section 2.7), so
    /// nobody's.
    #[inline(always)]
    pub const fn of_cookie(cookie: u64) -> Self {
        Self([u32::MAX, u32::MAX, cookie as u32, (cookie >> 32) as u32])
    }

    /// The IPv4 address, where [`Self::is_v4`].
    #[inline(always)]
    pub const fn low(&self) -> Ip4 {
        Ip4::from_be(self.0[3])
    }

    /// Whether it is `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] | self.0[3] == 0
    }

    /// Whether it is one of fe80::/10: of this link only (RFC 4291, section 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        u32::from_be(self.0[0]) >> 22 == 0xfe80 >> 6
    }

    /// Whether it is one of ff02::/16: everybody of a kind on this link (RFC 4291, section 2.7).
    #[inline(always)]
    pub const fn is_link_multicast(&self) -> bool {
        u32::from_be(self.0[0]) >> 16 == 0xff02
    }
}

impl From<Ip4> for Addr {
    fn from(addr: Ip4) -> Self {
        Self::v4(addr)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(addr: Ipv4Addr) -> Self {
        Self::v4(addr.into())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(addr: Ipv6Addr) -> Self {
        let bytes = addr.octets();
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Addr {
    fn from(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => addr.into(),
            IpAddr::V6(addr) => addr.into(),
        }
    }
}

impl From<Addr> for Ipv6Addr {
    fn from(addr: Addr) -> Self {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(addr.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes.into()
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() { Self::V4(addr.low().into()) } else { Self::V6(addr.into()) }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_come_back_as_they_went_in() {
        for text in ["10.1.2.3", "0.0.0.0", "2001:db8::7", "fe80::1", "::", "::1"] {
            let addr: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(addr)), addr);
            assert_eq!(Addr::from(addr).is_v4(), addr.is_ipv4());
            assert_eq!(Addr::from(addr).to_string(), text);
        }
        assert_eq!(size_of::<Addr>() as u32 * 8, Addr::BITS);
    }

    #[test]
    fn addresses_of_the_link_are_told_from_others() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert!(addr("fe80::1").is_link_local() && addr("febf::1").is_link_local());
        assert!(!addr("fec0::1").is_link_local() && !addr("2001:db8::1").is_link_local());
        assert!(addr("ff02::16").is_link_multicast() && !addr("ff05::1").is_link_multicast());
        assert!(addr("::").is_unspecified() && !addr("0.0.0.0").is_unspecified());
    }

    #[test]
    fn an_address_has_the_bytes_of_the_wire() {
        let addr = Ip4::from(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(addr.to_be().to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(Ipv4Addr::from(addr), Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(Ip4::LOOPBACK.to_string(), "127.0.0.1");
    }
}
