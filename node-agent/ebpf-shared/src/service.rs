//! Services and their backends, and sidecars.

use crate::{Addr, limits, maglev};

/// Who asks: a service may be reachable from outside the mesh by other backends than from within.
pub mod scope {
    /// Sockets and pods of this node.
    pub const INSIDE: u8 = 0;
    /// What comes in by the node's own interface.
    pub const OUTSIDE: u8 = 1;
}

/// Key of `SERVICES`: an address that services are reached at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey {
    pub addr: Addr,
    pub port: u16,
    pub protocol: u8,
    /// One of [`scope`].
    pub scope: u8,
}

impl ServiceKey {
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16, protocol: u8, scope: u8) -> Self {
        Self { addr, port, protocol, scope }
    }

    /// What stands for an address of a service in flow events: never 0. Two of them may have the same.
    #[inline(always)]
    pub const fn told(addr: &Addr, port: u16, protocol: u8) -> u32 {
        let ports = (port as u32) << 8 | protocol as u32;
        maglev::tuple(&[addr.words(), [ports, 0, 0, 0]]) | 1
    }

    /// Where in `SERVED` the bit of its address is, of either scope.
    #[inline(always)]
    pub const fn bit(&self) -> u32 {
        let ports = (self.port as u32) << 8 | self.protocol as u32;
        maglev::tuple(&[self.addr.words(), [ports, 0, 0, 0]]) % limits::SERVED_BITS
    }
}

/// Where in `SERVED` the bit of an address is, whatever is served there.
#[inline(always)]
pub const fn address_bit(addr: &Addr) -> u32 {
    maglev::tuple(&[addr.words()]) % limits::SERVED_BITS
}

/// Value of `SERVICES`. Everything about a service changes with one write of this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceValue {
    /// Half the key of its affinities and sources, and noted in its backends. Stays what it is when the rest changes.
    pub id: u32,
    /// The first of its slots in `MAGLEV`, unless there is only one.
    pub table: u32,
    /// How many slots; 0: connections are refused.
    pub size: u32,
    /// The backend, if [`Self::size`] is 1: no table is looked at.
    pub only: u32,
    /// A client stays with its backend for so long after it was last seen; 0: it does not.
    pub affinity_seconds: u32,
    pub flags: u32,
    /// Loopback port of the sidecar's listener for it, for pods that have a sidecar; 0: none.
    pub proxy_port: u16,
    /// Slot of the proxy by which pods reach it, see [`crate::redirect`]; 0: they reach its backends themselves.
    pub redirect: u16,
}

impl ServiceValue {
    /// Only addresses that `SOURCES` has for it may ask.
    pub const SOURCES: u32 = 1;
    /// A backend on another node answers the client by itself.
    pub const DIRECT: u32 = 2;
}

/// Value of `BACKENDS`; the key is a number that is never given out twice while the node is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    pub at: SockAddr,
    /// The service that it is one of.
    pub service: u32,
    /// For the agent: the share that it is to have.
    pub weight: u32,
    pub flags: u32,
}

impl Backend {
    /// New connections may go there: it is in its service's table.
    pub const CHOSEN: u32 = 1;
    /// It runs on this node.
    pub const HERE: u32 = 2;
    /// For the agent: it ends.
    pub const TERMINATING: u32 = 4;
}

/// Value of `MAGLEV`: two slots, because an element takes eight bytes anyway. Each names a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slots(pub [u32; 2]);

/// Key of `AFFINITY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct AffinityKey {
    pub service: u32,
    /// Its address; at sockets the cookie of its network namespace, see [`Addr::of_cookie`].
    pub client: Addr,
}

/// Value of `AFFINITY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AffinityValue {
    /// `CLOCK_MONOTONIC` of the last connection, nanoseconds.
    pub seen: u64,
    pub backend: u32,
    pub padding: u32,
}

/// Key of `SOURCES`, a longest-prefix trie: the service is matched in full, the address as far as the prefix goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey {
    pub service: u32,
    pub addr: Addr,
}

impl SourceKey {
    /// Bits before those of the address.
    pub const FIXED_BITS: u32 = 32;
    pub const BITS: u32 = Self::FIXED_BITS + Addr::BITS;
}

/// Key of `ANSWERERS`: a backend of this node that answers its clients directly, and whose. The value is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct AnswererKey {
    pub service: u32,
    pub at: SockAddr,
}

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

/// Key of `REVERSE`: what a socket really talks to.
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

/// Value of `REVERSE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReverseValue {
    /// What its program believes it talks to.
    pub believed: SockAddr,
    /// Whose removal ends the connection; 0: nobody's.
    pub backend: u32,
    /// `SO_NETNS_COOKIE`: where the socket is.
    pub netns: u64,
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
        assert_eq!(size_of::<ServiceValue>(), 6 * 4 + 2 + 2);
        assert_eq!(size_of::<Backend>(), 20 + 3 * 4);
        assert_eq!(size_of::<Slots>(), 8);
        assert_eq!(size_of::<AffinityKey>(), 4 + 16);
        assert_eq!(size_of::<AffinityValue>(), 8 + 4 + 4);
        assert_eq!(size_of::<SourceKey>(), 4 + 16);
        assert_eq!(size_of::<AnswererKey>(), 4 + 20);
        assert_eq!(size_of::<ReverseValue>(), 20 + 4 + 8);
        assert_eq!(size_of::<SockAddr>(), 16 + 2 + 2);
        assert_eq!(size_of::<ReverseKey>(), 8 + 20 + 4);
        assert_eq!(size_of::<Netns>(), 4);
        assert_eq!(size_of::<CapturedKey>(), 8 + 2 + 1 + 5);
    }
}
