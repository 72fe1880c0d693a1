//! Arithmetic on address ranges.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The address at an offset from the range's first. The offset must lie within the range.
pub(super) fn nth_address(net: &IpNet, offset: u64) -> IpAddr {
    match net.network() {
        IpAddr::V4(first) => IpAddr::V4(u32::from(first).wrapping_add(offset as u32).into()),
        IpAddr::V6(first) => IpAddr::V6(u128::from(first).wrapping_add(u128::from(offset)).into()),
    }
}

/// How many addresses a range has, at most 2^20: more is not handed out.
pub(super) fn size(net: &IpNet) -> u64 {
    1 << u32::from(net.max_prefix_len() - net.prefix_len()).min(20)
}

/// Prefix length of the slices that leave `bits` bits; None if the range is smaller than one slice.
pub(super) fn slice_prefix(net: &IpNet, bits: u8) -> Option<u8> {
    let prefix = net.max_prefix_len() - bits;
    (prefix >= net.prefix_len()).then_some(prefix)
}

/// How many slices of that prefix a range has, at most 2^20.
pub(super) fn slices(net: &IpNet, prefix: u8) -> u64 {
    1 << u32::from(prefix.saturating_sub(net.prefix_len())).min(20)
}

/// One slice of a range.
pub(super) fn nth_slice(net: &IpNet, prefix: u8, n: u64) -> Option<IpNet> {
    let shift = u32::from(net.max_prefix_len() - prefix);
    match net.network() {
        IpAddr::V4(first) => {
            let first = u32::from(first).checked_add(u32::try_from(n << shift).ok()?)?;
            Ipv4Net::new(first.into(), prefix).ok().map(IpNet::V4)
        }
        IpAddr::V6(first) => {
            let first = u128::from(first).checked_add(u128::from(n) << shift)?;
            Ipv6Net::new(first.into(), prefix).ok().map(IpNet::V6)
        }
    }
}

/// Whether two ranges share an address.
pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The range without bits below its prefix.
pub(super) fn is_network(net: &IpNet) -> bool {
    net.addr() == net.network()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn slices_follow_each_other_within_the_range() {
        let pods = net("10.1.0.0/16");
        let prefix = slice_prefix(&pods, 8).expect("large enough");
        assert_eq!((prefix, slices(&pods, prefix)), (24, 256));
        assert_eq!(nth_slice(&pods, prefix, 255), Some(net("10.1.255.0/24")));
        assert_eq!(nth_slice(&net("fd00::/64"), 120, 3), Some(net("fd00::300/120")));
        assert_eq!(slice_prefix(&net("10.1.0.0/25"), 8), None);
    }

    #[test]
    fn addresses_count_from_the_first() {
        assert_eq!(nth_address(&net("10.1.0.0/16"), 258).to_string(), "10.1.1.2");
        assert_eq!((size(&net("10.1.0.0/30")), size(&net("fd00::/64"))), (4, 1 << 20));
    }

    #[test]
    fn overlap_is_mutual() {
        assert!(overlap(&net("10.0.0.0/8"), &net("10.1.0.0/16")));
        assert!(overlap(&net("10.1.0.0/16"), &net("10.0.0.0/8")));
        assert!(!overlap(&net("10.1.0.0/16"), &net("10.2.0.0/16")));
    }
}
