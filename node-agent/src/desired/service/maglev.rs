//! Maglev (Eisenbud and others, NSDI 2016, section 3.4) with weights: a table of slots, each naming a backend, in
//! proportion to the weights, of which little changes when a backend comes or goes. Every node fills the same table
//! from the same backends. PURE.

use std::net::SocketAddr;

use ebpf_shared::{Addr, limits, maglev};

/// Sizes that tables have: primes, because each backend walks over all slots in strides of its own.
const SIZES: [u32; 11] = [61, 127, 251, 509, 1_021, 2_039, 4_093, 8_191, 16_381, 32_749, 65_521];

/// Slots for each backend that a table should have: then, when one goes, less than 2 % of the others' connections
/// would choose anew (measured by the tests below), and shares are exact to within a percent of each.
const SLOTS_PER_BACKEND: usize = 160;

/// A backend that is to be in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// What its walk is derived from.
    pub at: SocketAddr,
    /// What its slots say.
    pub number: u32,
    /// Not 0.
    pub weight: u32,
}

/// Sizes that a table for so many backends may have, the best first.
pub fn sizes(backends: usize) -> impl Iterator<Item = u32> {
    let best = SIZES.partition_point(|size| (*size as usize) < backends.saturating_mul(SLOTS_PER_BACKEND));
    let best = best.min(SIZES.len() - 1);
    (0..=best).rev().map(|at| SIZES[at]).filter(move |size| *size as usize >= backends)
}

/// Fills a table of one of [`sizes`]. Empty if there are no backends.
pub fn table(backends: &[Turn], size: u32) -> Vec<u32> {
    let mut walks: Vec<Walk> = backends.iter().map(|turn| Walk::new(turn, size)).collect();
    // The order of the turns must not depend on who was told of first.
    walks.sort_by_key(|walk| walk.key);
    let Some(most) = backends.iter().map(|turn| u64::from(turn.weight.max(1))).max() else {
        return Vec::new();
    };
    let mut slots: Vec<Option<u32>> = vec![None; size as usize];
    let mut free = size;
    for round in 0_u64.. {
        for walk in &mut walks {
            // Who has half the greatest weight has a turn in every second round.
            if round * walk.weight < walk.due {
                continue;
            }
            walk.due += most;
            let at = walk.next_free(&slots, size);
            slots[at] = Some(walk.number);
            free -= 1;
            if free == 0 {
                return slots.into_iter().flatten().collect();
            }
        }
    }
    Vec::new()
}

/// A backend's way over the slots.
struct Walk {
    key: (Addr, u16),
    number: u32,
    weight: u64,
    /// When its next turn is, in rounds times weight.
    due: u64,
    at: u32,
    stride: u32,
}

impl Walk {
    fn new(turn: &Turn, size: u32) -> Self {
        let addr = Addr::from(turn.at.ip());
        let port = u32::from(turn.at.port());
        Self {
            key: (addr, turn.at.port()),
            number: turn.number,
            weight: u64::from(turn.weight.max(1)),
            due: 0,
            at: maglev::tuple(&[addr.words(), [port, 1, 0, 0]]) % size,
            stride: maglev::tuple(&[addr.words(), [port, 2, 0, 0]]) % (size - 1) + 1,
        }
    }

    /// The first slot on its way that nobody has. There is one, and the way leads over all.
    fn next_free(&mut self, slots: &[Option<u32>], size: u32) -> usize {
        loop {
            let at = self.at as usize;
            self.at = (self.at + self.stride) % size;
            if slots[at].is_none() {
                return at;
            }
        }
    }
}

/// The backends of a service that are to be in its table: all weights zero means that none is preferred, as in Envoy;
/// else those with weight 0 get nothing.
pub fn turns(backends: impl Iterator<Item = (SocketAddr, u32, u32)> + Clone) -> Vec<Turn> {
    let is_unweighted = backends.clone().all(|(_, _, weight)| weight == 0);
    backends
        .filter(|(_, _, weight)| is_unweighted || *weight != 0)
        .map(|(at, number, weight)| Turn { at, number, weight: weight.max(1) })
        .take(limits::BACKENDS_PER_SERVICE as usize)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(weights: &[u32]) -> Vec<Turn> {
        let each = weights.iter().zip(1_u32..);
        let at =
            |number: u32| SocketAddr::new(std::net::Ipv4Addr::from_bits(0x0a01_0000 + number).into(), 80);
        turns(each.map(|(weight, number)| (at(number), number, *weight)))
    }

    fn best(backends: &[Turn]) -> Vec<u32> {
        table(backends, sizes(backends.len()).next().unwrap())
    }

    fn share(table: &[u32], number: u32) -> f64 {
        table.iter().filter(|slot| **slot == number).count() as f64 / table.len() as f64
    }

    #[test]
    fn without_weights_nobody_is_preferred_and_with_them_zero_is_nothing() {
        assert_eq!(backends(&[0, 0]).len(), 2);
        assert_eq!(backends(&[1, 0]).len(), 1);
        assert!(backends(&[]).is_empty() && table(&[], 61).is_empty());
    }

    #[test]
    fn every_node_fills_the_same_table() {
        let some = backends(&[3, 1, 2, 5]);
        let mut others = some.clone();
        others.reverse();
        assert_eq!(best(&some), best(&others));
    }

    #[test]
    fn when_a_backend_goes_hardly_anybody_else_moves() {
        for count in [2, 3, 5, 10, 40, 100, 300] {
            let all = backends(&vec![1; count]);
            let before = best(&all);
            let mut moved = 0.0;
            let tries = count.min(8);
            for gone in 0..tries {
                let mut rest = all.clone();
                let gone = rest.remove(gone).number;
                let after = table(&rest, before.len() as u32);
                let differ =
                    before.iter().zip(&after).filter(|(old, new)| old != new && **old != gone).count();
                moved += differ as f64 / before.len() as f64;
            }
            let mean = moved / tries as f64;
            println!("{count} backends, {} slots: {:.2} % move", before.len(), 100.0 * mean);
            assert!(mean <= 0.02, "{count}: {mean}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shares_are_those_of_the_weights(weights in proptest::collection::vec(1_u32..1_000, 1..40)) {
            let all = backends(&weights);
            let table = best(&all);
            let sum: u32 = weights.iter().sum();
            for turn in &all {
                let wanted = f64::from(turn.weight) / f64::from(sum);
                let got = share(&table, turn.number);
                prop_assert!((got - wanted).abs() <= 0.04, "{turn:?}: {got} of {wanted}");
                prop_assert!(got > 0.0, "{turn:?}");
            }
        }

        #[test]
        fn the_least_size_is_enough_for_everybody(count in 1_usize..4_096) {
            let least = sizes(count).last().unwrap();
            prop_assert!(least as usize >= count);
        }
    }
}
