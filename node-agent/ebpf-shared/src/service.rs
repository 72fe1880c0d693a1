//! Services, translated where a socket connects or sends, and sidecars.

use crate::Addr;

/// Key of `SERVICES`: a virtual address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey {
    pub addr: Addr,
    pub port: u16,
    pub protocol: u8,
    pub padding: u8,
}

impl ServiceKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16, protocol: u8) -> Self {
        Self { addr, port, protocol, padding: 0 }
    }
}

/// Value of `SERVICES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceValue {
    /// First half of the key of its backends.
    pub id: u32,
    /// Slots 0 to this, exclusive; none: connections are refused.
    pub backend_count: u32,
    /// Loopback port of the sidecar's listener for it, for pods that have a sidecar; 0: none.
    pub proxy_port: u16,
    pub flags: u16,
}

/// Key of `BACKENDS`. A backend of weight 3 fills three slots: a pick is one random number and one lookup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct BackendKey {
    pub service: u32,
    pub slot: u32,
}

/// Value of `BACKENDS`.
pub type Backend = SockAddr;

/// An address and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct SockAddr {
    pub addr: Addr,
    pub port: u16,
    pub padding: u16,
}

impl SockAddr {
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Self { addr, port, padding: 0 }
    }
}

/// Key of `REVERSE`: what a socket really talks to. The value is what its program believes it talks to.
///
/// The real address is part of the key because one UDP socket may talk to many services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ReverseKey {
    /// `SO_COOKIE`: never reused while the node is up.
    pub socket: u64,
    pub real: SockAddr,
    pub padding: u32,
}

impl ReverseKey {
    #[inline(always)]
    pub const fn new(socket: u64, real: SockAddr) -> Self {
        Self { socket, real, padding: 0 }
    }
}

/// Value of `NETNS`; the key is the namespace's cookie (`SO_NETNS_COOKIE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Netns {
    pub flags: u32,
}

impl Netns {
    /// The pod has a proxy on its loopback.
    pub const SIDECAR: u32 = 1;

    #[inline(always)]
    pub const fn has_sidecar(self) -> bool {
        self.flags & Self::SIDECAR != 0
    }
}

/// Key of `CAPTURED`: a port that the sidecar listens on in place of the application. The value is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct CapturedKey {
    pub netns: u64,
    pub port: u16,
    pub protocol: u8,
    pub padding: [u8; 5],
}

impl CapturedKey {
    #[inline(always)]
    pub const fn new(netns: u64, port: u16, protocol: u8) -> Self {
        Self { netns, port, protocol, padding: [0; 5] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_here_has_implicit_padding() {
        assert_eq!(size_of::<ServiceKey>(), 16 + 2 + 1 + 1);
        assert_eq!(size_of::<ServiceValue>(), 4 + 4 + 2 + 2);
        assert_eq!(size_of::<BackendKey>(), 4 + 4);
        assert_eq!(size_of::<SockAddr>(), 16 + 2 + 2);
        assert_eq!(size_of::<ReverseKey>(), 8 + 20 + 4);
        assert_eq!(size_of::<Netns>(), 4);
        assert_eq!(size_of::<CapturedKey>(), 8 + 2 + 1 + 5);
    }
}
