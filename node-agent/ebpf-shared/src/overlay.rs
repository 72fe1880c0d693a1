//! The overlay between nodes: VXLAN (RFC 7348), in which a packet carries its source's identity as the network
//! identifier.
//!
//! An identity that arrives is believed if the packet came from the underlay address of the node in whose range its
//! source lies: nobody else's packets get that far. It is used in place of what `HOSTS` says, which may lag.

use crate::{Addr, identity};

/// The first number of the control plane's dictionary.
const MESH: u32 = 256;

/// Value of `NODES`; the key is a range of pods, or an address of a node itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// The node's underlay addresses; [`Addr::UNSPECIFIED`]: it has none of this family.
    pub v4: Addr,
    pub v6: Addr,
    /// [`Hop::HERE`], [`Hop::BY_IPV6`].
    pub flags: u32,
    pub padding: u32,
}

impl Hop {
    /// It is this node.
    pub const HERE: u32 = 1;
    /// Packets go there over IPv6.
    pub const BY_IPV6: u32 = 2;
    /// There is no tunnel to it: routes lead there.
    pub const ROUTED: u32 = 4;

    #[inline(always)]
    pub const fn is_here(&self) -> bool {
        self.flags & Self::HERE != 0
    }

    #[inline(always)]
    pub const fn is_by_ipv6(&self) -> bool {
        self.flags & Self::BY_IPV6 != 0
    }

    /// Whether it is another node, at the other end of the tunnel.
    #[inline(always)]
    pub const fn is_tunnelled(&self) -> bool {
        self.flags & (Self::HERE | Self::ROUTED) == 0
    }

    /// Whether a packet with this source on the underlay comes from the node.
    #[inline(always)]
    pub fn sends_from(&self, outer: &Addr) -> bool {
        !outer.is_unspecified() && (self.v4 == *outer || self.v6 == *outer)
    }
}

/// IANA, "vxlan".
pub const PORT: u16 = 4789;
/// Of every node's tunnel device: whatever comes in is then addressed to it, and nothing need be resolved.
pub const MAC: [u8; 6] = [0x02, 0x69, 0x73, 0x74, 0x68, 0x01];
/// What frames in the tunnel are from: the kernel takes those from its own address for echoes.
pub const FROM_MAC: [u8; 6] = [0x02, 0x69, 0x73, 0x74, 0x68, 0x02];
/// Bytes that the tunnel adds over IPv4, and over IPv6: IP, UDP, VXLAN and Ethernet headers.
pub const OVERHEAD4: u32 = 20 + 8 + 8 + 14;
pub const OVERHEAD6: u32 = 40 + 8 + 8 + 14;

/// Upper byte of the mark of a packet that has come through the tunnel with an identity. Marks end where a packet
/// leaves the node's network namespace, so no pod can have set one.
const TAG: u32 = 0xa1 << 24;

/// The network identifier for a source's identity: 0 if it means nothing on another node.
#[inline(always)]
pub const fn carried(identity: u32) -> u32 {
    if identity >= MESH && identity < identity::LOCAL { identity } else { 0 }
}

/// The mark of a packet that came with this network identifier; 0: none.
#[inline(always)]
pub const fn mark(carried_identity: u32) -> u32 {
    match carried(carried_identity) {
        0 => 0,
        known => TAG | known,
    }
}

/// The identity that a mark carries; 0: none.
#[inline(always)]
pub const fn claimed(mark: u32) -> u32 {
    if mark & 0xff00_0000 == TAG { carried(mark & 0x00ff_ffff) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;

    #[test]
    fn only_identities_that_mean_the_same_everywhere_travel() {
        for (identity, travels) in [
            (identity::HOST, false),
            (identity::WORLD, false),
            (identity::UNMANAGED, false),
            (MESH, true),
            (70_000, true),
            (identity::LOCAL - 1, true),
            (identity::LOCAL | 7, false),
        ] {
            assert_eq!(claimed(mark(identity)), if travels { identity } else { 0 }, "{identity}");
        }
        for foreign in [0, 0xa2 << 24 | 300, 300, 0xa1 << 24 | 5] {
            assert_eq!(claimed(foreign), 0, "{foreign:#x}");
        }
    }

    #[test]
    fn a_packet_is_from_a_node_only_by_the_node_s_own_address() {
        let v4 = Addr::v4(Ip4::from_be(7));
        let hop = Hop { v4, ..Hop::default() };
        assert!(hop.sends_from(&v4));
        assert!(!hop.sends_from(&Addr::v4(Ip4::from_be(8))));
        assert!(!hop.sends_from(&Addr::UNSPECIFIED), "it has no IPv6");
        assert_eq!(size_of::<Hop>(), 40);
    }
}
