//! Pods, as the programs at their host interface know them.

use crate::Addr;

/// Value of `ENDPOINTS`; the key is the index of the pod's host-side interface.
///
/// An interface without an entry has no traffic at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The pod's own identity.
    pub identity: u32,
    /// Key of its `CLASSES` entry, and part of those of its `PEERS` entries.
    pub class: u32,
    /// [`Self::AUDIT`].
    pub flags: u32,
    /// Part of the key of its connections: another pod's, should the interface index ever come back.
    pub incarnation: u16,
    pub padding: u16,
    /// [`Addr::UNSPECIFIED`]: it has none of this family.
    pub v4: Addr,
    pub v6: Addr,
}

impl Endpoint {
    /// What policy denies is told of, and passes.
    pub const AUDIT: u32 = 1;

    #[inline(always)]
    pub const fn is_audited(&self) -> bool {
        self.flags & Self::AUDIT != 0
    }

    /// All of it that a judgement depends on.
    #[inline(always)]
    pub const fn judged_as(&self) -> u32 {
        self.class | (self.flags & Self::AUDIT) << 31
    }

    /// Whether it may send from this address, and be sent to there.
    #[inline(always)]
    pub fn owns(&self, addr: &Addr) -> bool {
        !addr.is_unspecified() && (*addr == self.v4 || *addr == self.v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;

    #[test]
    fn an_endpoint_has_no_padding() {
        assert_eq!(size_of::<Endpoint>(), 3 * 4 + 2 * 2 + 2 * 16);
    }

    #[test]
    fn an_endpoint_of_one_family_owns_no_address_of_the_other() {
        let pod = Endpoint { v4: Ip4::LOOPBACK.into(), ..Endpoint::default() };
        assert!(pod.owns(&Ip4::LOOPBACK.into()));
        assert!(!pod.owns(&Addr::UNSPECIFIED) && !pod.owns(&Ip4::UNSPECIFIED.into()));
    }
}
