//! Consistent hashing: the ring (Ketama) and Maglev tables of Envoy, entry by entry, so that a proxy and an Envoy that
//! know the same endpoints send the same hash to the same one.

use serde::Serialize;

use super::hash::{HashFunction, xx};

/// How a table is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// `RING_HASH`
    Ring {
        /// See there.
        function: HashFunction,
        /// Fewest entries, as far as `max` allows (default 1024).
        min: u64,
        /// Most entries (default 8M).
        max: u64,
    },
    /// `MAGLEV`
    Maglev {
        /// Entries; a prime (default 65537).
        size: u64,
    },
}

/// A host of a table: its position in the list of candidates, its share and its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member<'a> {
    /// Position.
    pub host: u32,
    /// Share in the sum of all. Above zero.
    pub weight: u64,
    /// `1.2.3.4:80`, or a host name.
    pub key: &'a str,
}

/// Hashes to hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Table {
    /// Points on the circle in order, each with the host that owns what is between it and the one before.
    Ring(Vec<(u64, u32)>),
    /// Hosts by the hash modulo the size.
    Maglev(Vec<u32>),
}

impl Table {
    /// Builds a table. Without members it is empty.
    pub fn build(kind: TableKind, members: &[Member<'_>]) -> Self {
        match kind {
            TableKind::Ring { function, min, max } => Self::Ring(ring(function, min, max, members)),
            TableKind::Maglev { size } => Self::Maglev(maglev(size, members)),
        }
    }

    /// The host of a hash; the next one for which `skip` does not hold. `None`: nobody is left.
    pub fn find(&self, hash: u64, skip: impl Fn(u32) -> bool) -> Option<u32> {
        let walk = |from: usize, len: usize, at: &dyn Fn(usize) -> Option<u32>| {
            (from..len).chain(0..from).filter_map(at).find(|host| !skip(*host))
        };
        match self {
            Self::Ring(points) => {
                let from = points.partition_point(|(point, _)| *point < hash);
                walk(from.min(points.len()), points.len(), &|at| points.get(at).map(|(_, host)| *host))
            }
            Self::Maglev(slots) => {
                let from = hash.checked_rem(slots.len() as u64)?;
                walk(from as usize, slots.len(), &|at| slots.get(at).copied())
            }
        }
    }
}

/// `Ring::Ring` of Envoy's `ring_hash_lb.cc`.
fn ring(function: HashFunction, min: u64, max: u64, members: &[Member<'_>]) -> Vec<(u64, u32)> {
    let total = members.iter().map(|m| m.weight as f64).sum::<f64>();
    let lightest = members.iter().map(|m| m.weight as f64 / total).fold(f64::INFINITY, f64::min);
    if members.is_empty() || total <= 0.0 {
        return vec![];
    }
    // So that the lightest host gets a whole number of points, as close as possible.
    let scale = ((lightest * min as f64).ceil() / lightest).min(max as f64);
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    let mut key = String::new();
    for member in members {
        target += scale * (member.weight as f64 / total);
        let mut number = 0_u64;
        while current < target {
            key.clear();
            key.push_str(member.key);
            key.push('_');
            key.push_str(&number.to_string());
            points.push((function.hash(key.as_bytes()), member.host));
            number += 1;
            current += 1.0;
        }
    }
    points.sort_unstable();
    points
}

struct Entry<'a> {
    member: &'a Member<'a>,
    offset: u64,
    skip: u64,
    next: u64,
    target: f64,
}

/// `OriginalMaglevTable` of Envoy's `maglev_lb.cc`.
fn maglev(size: u64, members: &[Member<'_>]) -> Vec<u32> {
    let mut sorted: Vec<_> = members.iter().collect();
    // The table must not depend on the order of the resource.
    sorted.sort_by(|a, b| a.key.cmp(b.key));
    let heaviest = sorted.iter().map(|m| m.weight).max().unwrap_or(0) as f64;
    if heaviest <= 0.0 || size < 2 {
        return vec![];
    }
    let mut entries: Vec<_> = sorted
        .into_iter()
        .map(|member| Entry {
            member,
            offset: xx(member.key.as_bytes(), 0) % size,
            skip: xx(member.key.as_bytes(), 1) % (size - 1) + 1,
            next: 0,
            target: 0.0,
        })
        .collect();
    let mut slots: Vec<Option<u32>> = vec![None; size as usize];
    let mut filled = 0;
    let mut round = 1.0_f64;
    while filled < size {
        for entry in &mut entries {
            if filled == size {
                break;
            }
            // The heaviest host has its turn in every round, the others in proportion.
            if round * (entry.member.weight as f64) < entry.target {
                continue;
            }
            entry.target += heaviest;
            loop {
                let at = (u128::from(entry.offset) + u128::from(entry.skip) * u128::from(entry.next))
                    % u128::from(size);
                entry.next += 1;
                // The size is prime, so that every slot has its turn.
                if let Some(slot) = slots.get_mut(at as usize)
                    && slot.is_none()
                {
                    *slot = Some(entry.member.host);
                    filled += 1;
                    break;
                }
            }
        }
        round += 1.0;
    }
    slots.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const KINDS: [TableKind; 3] = [
        TableKind::Ring { function: HashFunction::XxHash, min: 4096, max: 1 << 23 },
        TableKind::Ring { function: HashFunction::Murmur2, min: 4096, max: 1 << 23 },
        TableKind::Maglev { size: 5003 },
    ];

    fn table(kind: TableKind, hosts: &[(String, u64)]) -> Table {
        let members = (0..).zip(hosts).map(|(host, (key, weight))| Member { host, weight: *weight, key });
        Table::build(kind, &members.collect::<Vec<_>>())
    }

    fn hosts(count: usize) -> Vec<(String, u64)> {
        (0..count).map(|n| (format!("10.0.0.{n}:80"), 1)).collect()
    }

    fn shares(table: &Table, draws: u64) -> BTreeMap<u32, u64> {
        let mut shares = BTreeMap::new();
        for n in 0..draws {
            *shares.entry(table.find(xx(&n.to_le_bytes(), 7), |_| false).unwrap()).or_default() += 1;
        }
        shares
    }

    #[test]
    fn a_ring_has_the_points_of_envoys_own_test() {
        // Of its `RingHashLoadBalancerTest.Basic`: hosts 127.0.0.1:90 to :95, at least 12 points.
        let hosts: Vec<_> = (90..96).map(|port| (format!("127.0.0.1:{port}"), 1)).collect();
        let kind = TableKind::Ring { function: HashFunction::XxHash, min: 12, max: 1 << 23 };
        let built = table(kind, &hosts);
        let Table::Ring(points) = &built else { unreachable!() };
        let points: Vec<_> = points.iter().map(|(point, host)| (host + 90, *point)).collect();
        let expected = [
            (94, 833_437_586_790_550_860),
            (92, 928_266_305_478_181_108),
            (90, 1_033_482_794_131_418_490),
            (95, 3_551_244_743_356_806_947),
            (93, 3_851_675_632_748_031_481),
            (91, 5_583_722_120_771_150_861),
            (91, 6_311_230_543_546_372_928),
            (93, 7_700_377_290_971_790_572),
            (95, 13_144_177_310_400_110_813),
            (92, 13_444_792_449_719_432_967),
            (94, 15_516_499_411_664_133_160),
            (90, 16_117_243_373_044_804_889),
        ];
        assert_eq!(points, expected);
        for (hash, port) in
            [(0, 94), (u64::MAX, 94), (3_551_244_743_356_806_947, 95), (3_551_244_743_356_806_948, 93)]
        {
            assert_eq!(built.find(hash, |_| false), Some(port - 90), "{hash}");
        }
    }

    #[test]
    fn shares_are_in_proportion_to_the_weights() {
        for kind in KINDS {
            let mut all = hosts(4);
            all[3].1 = 5;
            let shares = shares(&table(kind, &all), 40_000);
            for (host, share) in &shares {
                let expected = if *host == 3 { 25_000.0 } else { 5_000.0 };
                let off = (*share as f64 - expected).abs() / expected;
                // Points of a ring are where the hash puts them; 4096 of them are even to within a few percent.
                assert!(off < 0.2, "{kind:?} {host} {share}");
            }
        }
    }

    #[test]
    fn nobody_is_found_where_nobody_is() {
        for kind in KINDS {
            assert_eq!(table(kind, &[]).find(5, |_| false), None);
            assert_eq!(table(kind, &hosts(2)).find(5, |_| true), None);
        }
    }

    proptest! {
        #[test]
        fn a_host_that_goes_moves_little_but_its_own(count in 3_usize..12, gone in 0_usize..12) {
            let gone = gone % count;
            for kind in KINDS {
                let before = table(kind, &hosts(count));
                let mut rest = hosts(count);
                rest.remove(gone);
                let after = table(kind, &rest);
                let name = |n: u32| if n as usize >= gone { n + 1 } else { n };
                let (mut moved, mut others) = (0, 0);
                for n in 0..4_000_u64 {
                    let hash = xx(&n.to_le_bytes(), 3);
                    let was = before.find(hash, |_| false).unwrap();
                    let is = name(after.find(hash, |_| false).unwrap());
                    if was as usize != gone {
                        others += 1;
                        moved += u32::from(was != is);
                    }
                }
                // A ring moves others only by rounding and by the points that all get more of when there are
                // fewer hosts; Maglev moves some few percent (section 5.3 of its paper).
                let allowed = if matches!(kind, TableKind::Ring { .. }) { others / 2 } else { others / 6 };
                prop_assert!(moved <= allowed, "{kind:?}: {moved} of {others}");
            }
        }

        #[test]
        fn the_order_of_hosts_does_not_matter_to_maglev(count in 2_usize..10, turn in 1_usize..10) {
            let all = hosts(count);
            let mut turned = all.clone();
            turned.rotate_left(turn % count);
            let (one, other) = (table(KINDS[2], &all), table(KINDS[2], &turned));
            for hash in 0..500_u64 {
                let key = |hosts: &[(String, u64)], t: &Table| {
                    hosts[t.find(hash, |_| false).unwrap() as usize].0.clone()
                };
                prop_assert_eq!(key(&all, &one), key(&turned, &other));
            }
        }

        #[test]
        fn whoever_is_skipped_is_not_found_and_others_keep_theirs(count in 2_usize..10, hash: u64) {
            for kind in KINDS {
                let table = table(kind, &hosts(count));
                let first = table.find(hash, |_| false).unwrap();
                prop_assert_ne!(table.find(hash, |host| host == first), Some(first));
                let other = (first + 1) % count as u32;
                prop_assert_eq!(table.find(hash, |host| host == other), Some(first));
            }
        }
    }
}
