//! IPv4 addresses as the wire has them.

use core::net::Ipv4Addr;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_the_bytes_of_the_wire() {
        let addr = Ip4::from(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(addr.to_be().to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(Ipv4Addr::from(addr), Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(Ip4::LOOPBACK.to_string(), "127.0.0.1");
    }
}
