//! Weighted backends as slots of equal chance. Pure.

use ebpf_shared::{SocketAddr4, limits};

/// A backend and its share of new connections, relative to the others'. Weight 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightedBackend {
    pub addr: SocketAddr4,
    pub weight: u32,
}

/// Turns weights into slots: as few as give the exact shares, at most [`limits::BACKENDS_PER_SERVICE`].
/// Beyond that the shares are rounded, and each backend with a weight keeps at least one slot.
pub fn expand(backends: &[WeightedBackend]) -> Vec<SocketAddr4> {
    let most = limits::BACKENDS_PER_SERVICE as usize;
    let weighted: Vec<_> = backends.iter().filter(|backend| backend.weight > 0).take(most).collect();
    let divisor =
        weighted.iter().fold(0, |divisor, backend| greatest_common_divisor(divisor, backend.weight)).max(1);
    let total: u64 = weighted.iter().map(|backend| u64::from(backend.weight / divisor)).sum();
    // What is left after one slot each is shared out by weight.
    let spare = (most - weighted.len()) as u64;
    let mut slots = Vec::new();
    for backend in weighted {
        let share = u64::from(backend.weight / divisor);
        let count = if total <= most as u64 { share } else { 1 + share * spare / total };
        slots.extend(std::iter::repeat_n(backend.addr, count as usize));
    }
    slots
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebpf_shared::Ip4;
    use proptest::prelude::*;

    fn backend(port: u16, weight: u32) -> WeightedBackend {
        WeightedBackend { addr: SocketAddr4::new(Ip4::LOOPBACK, port), weight }
    }

    fn ports(slots: &[SocketAddr4]) -> Vec<u16> {
        slots.iter().map(|slot| slot.port).collect()
    }

    #[test]
    fn equal_weights_take_one_slot_each() {
        assert_eq!(ports(&expand(&[backend(1, 100), backend(2, 100)])), [1, 2]);
    }

    #[test]
    fn shares_are_exact_and_as_few_as_possible() {
        assert_eq!(ports(&expand(&[backend(1, 30), backend(2, 10), backend(3, 0)])), [1, 1, 1, 2]);
        assert!(expand(&[]).is_empty());
        assert!(expand(&[backend(1, 0)]).is_empty());
    }

    proptest! {
        #[test]
        fn slots_stay_within_the_room_and_nobody_with_a_weight_is_left_out(
            weights in proptest::collection::vec(1u32.., 1..60)
        ) {
            let backends: Vec<_> = weights.iter().zip(1..).map(|(weight, port)| backend(port, *weight)).collect();
            let slots = expand(&backends);
            prop_assert!(slots.len() <= limits::BACKENDS_PER_SERVICE as usize);
            for backend in &backends {
                prop_assert!(slots.contains(&backend.addr));
            }
        }
    }
}
