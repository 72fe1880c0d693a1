//! Pods, as the programs at their host interface know them.

use crate::Ip4;

/// Value of `ENDPOINTS`; the key is the index of the pod's host-side interface.
///
/// An interface without an entry has no traffic at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// The pod's own identity.
    pub identity: u32,
    /// Key of its `CLASSES` entry and of its `POLICY` entries.
    pub class: u32,
    /// The only source address it may send from, and the only one it is sent to.
    pub addr: Ip4,
    /// Reserved, 0.
    pub flags: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_has_no_padding() {
        assert_eq!(size_of::<Endpoint>(), 4 + 4 + 4 + 4);
    }
}
