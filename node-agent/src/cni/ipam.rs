//! Addresses of a node's pods. PURE.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum IpamError {
    #[error("all {0} pod addresses of {1} are taken; remove pods, or give nodes larger pod CIDRs")]
    Exhausted(u32, Ipv4Net),
}

/// The next free address after `last`, round and round, so that an address rests as long as possible before a
/// new pod gets it. The first address (the network), the second (for the node itself) and the last (broadcast)
/// are never given out.
///
/// # Errors
/// None is free.
pub fn allocate(
    cidr: Ipv4Net,
    used: &BTreeSet<Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Result<Ipv4Addr, IpamError> {
    let first = u32::from(cidr.network()).saturating_add(2);
    let end = u32::from(cidr.broadcast());
    let count = end.saturating_sub(first);
    let start = match last {
        Some(last) if cidr.contains(&last) => u32::from(last).saturating_sub(first).saturating_add(1),
        Some(_) | None => 0,
    };
    for step in 0..count {
        // In 64 bits, since start and step together may pass 32.
        let offset = (u64::from(start) + u64::from(step)) % u64::from(count);
        let address = Ipv4Addr::from(first + u32::try_from(offset).unwrap_or(0));
        if !used.contains(&address) {
            return Ok(address);
        }
    }
    Err(IpamError::Exhausted(count, cidr))
}

/// The IPv6 address that belongs to a pod's IPv4 one: at the same place in the node's slice, so that the two need one
/// memory. `None` if the slice of IPv6 is the smaller one.
pub fn beside(address: Ipv4Addr, slice: Ipv4Net, slice6: Ipv6Net) -> Option<Ipv6Addr> {
    let place = u32::from(address).checked_sub(u32::from(slice.network()))?;
    let beside = Ipv6Addr::from(u128::from(slice6.network()).checked_add(u128::from(place))?);
    slice6.contains(&beside).then_some(beside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_released_address_rests_until_all_others_had_their_turn() {
        let cidr = "10.1.1.0/29".parse().unwrap();
        let mut given = Vec::new();
        let mut last = None;
        for _ in 0..6 {
            let address = allocate(cidr, &BTreeSet::new(), last).unwrap();
            last = Some(address);
            given.push(address.octets()[3]);
        }
        assert_eq!(given, [2, 3, 4, 5, 6, 2]);
    }

    #[test]
    fn a_full_node_says_so() {
        let cidr: Ipv4Net = "10.1.1.0/29".parse().unwrap();
        let used = cidr.hosts().collect();
        let error = allocate(cidr, &used, None).unwrap_err();
        assert!(error.to_string().contains("all 5 pod addresses"), "{error}");
    }

    #[test]
    fn both_addresses_of_a_pod_are_at_the_same_place() {
        let (slice, slice6) = ("10.1.1.0/24".parse().unwrap(), "fd00:1::100/120".parse().unwrap());
        let at = |last| beside(Ipv4Addr::new(10, 1, 1, last), slice, slice6);
        assert_eq!(at(2), Some("fd00:1::102".parse().unwrap()));
        assert_eq!(at(254), Some("fd00:1::1fe".parse().unwrap()));
        assert_eq!(beside(Ipv4Addr::new(10, 1, 1, 2), slice, "fd00:1::/127".parse().unwrap()), None);
        assert_eq!(beside(Ipv4Addr::new(10, 1, 0, 2), slice, slice6), None);
    }

    proptest! {
        #[test]
        fn an_address_is_inside_reserved_by_nobody_and_free(
            prefix in 0u8..=32,
            base: u32,
            taken in proptest::collection::btree_set(any::<u32>(), 0..50),
            last: Option<u32>,
        ) {
            let cidr = Ipv4Net::new(base.into(), prefix).unwrap().trunc();
            let used: BTreeSet<Ipv4Addr> = taken.into_iter().map(Ipv4Addr::from).collect();
            if let Ok(address) = allocate(cidr, &used, last.map(Ipv4Addr::from)) {
                prop_assert!(cidr.contains(&address) && !used.contains(&address));
                prop_assert!(address != cidr.network() && address != cidr.broadcast());
                prop_assert!(u32::from(address) != u32::from(cidr.network()) + 1);
            }
        }
    }
}
