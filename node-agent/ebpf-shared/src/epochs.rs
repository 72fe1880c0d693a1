//! Numbers that tell a flow whether anything that it was judged by has changed since.
//!
//! `EPOCHS` is an array of counters: one for everything, one for each policy class, one for each bucket of peers'
//! addresses. The agent raises one *after* it has written; they never go down. A flow's *stamp* is the sum of the three that
//! concern it, so the sum differs if and only if one of them does, and the flow is judged again on its next packet. A
//! changed policy costs the flows of its class one judgement, a changed identity those of one bucket, and only changed
//! CIDRs all flows.
//!
//! Programs read the endpoint first, then the stamp, then policy. So a change that comes during the verdict leaves an
//! older stamp behind.

use crate::{Addr, limits};

/// The counter for everything.
pub const GLOBAL: u32 = 0;
/// Buckets of addresses.
pub const BUCKETS: u32 = 4_096;
/// All counters.
pub const COUNT: u32 = 1 + limits::CLASSES + BUCKETS;

/// That of a class. Numbers of classes are less than [`limits::CLASSES`].
#[inline(always)]
pub const fn of_class(class: u32) -> u32 {
    1 + (class & (limits::CLASSES - 1))
}

/// That of a peer's address.
#[inline(always)]
pub const fn of_peer(addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.words();
    // Fibonacci hashing: the upper bits of the product depend on all of the address.
    let mixed = (a ^ b.rotate_left(7) ^ c.rotate_left(14) ^ d).wrapping_mul(0x9e37_79b1);
    1 + limits::CLASSES + (mixed >> (32 - BUCKETS.ilog2()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ip4;

    #[test]
    fn every_class_and_address_has_a_counter_that_is_there() {
        assert!(limits::CLASSES.is_power_of_two() && BUCKETS.is_power_of_two());
        for class in [0, 1, limits::CLASSES - 1, limits::CLASSES, u32::MAX] {
            assert!((1..=limits::CLASSES).contains(&of_class(class)));
        }
        let mut seen = std::collections::BTreeSet::new();
        for host in 0..=u16::MAX {
            let [high, low] = host.to_be_bytes();
            let addr = Addr::v4(Ip4::from(core::net::Ipv4Addr::new(10, 1, high, low)));
            let at = of_peer(&addr);
            assert!((1 + limits::CLASSES..COUNT).contains(&at));
            seen.insert(at);
        }
        assert!(seen.len() as u32 > BUCKETS / 2, "the addresses of a cluster spread: {}", seen.len());
    }
}
