//! Weighted backends as slots of equal chance.

use std::net::SocketAddr;

use ebpf_shared::limits::BACKENDS_PER_SERVICE;

use crate::subscribe::ServiceBackend;

/// One slot per unit of weight, after dividing the weights by what they have in common. Where that would still be
/// more slots than the kernel has for one service, weights are scaled down; whoever has a weight keeps at
/// least one slot. All weights zero means: none is preferred, as in Envoy.
pub fn expand<'a>(backends: impl IntoIterator<Item = &'a ServiceBackend> + Clone) -> Vec<SocketAddr> {
    let unweighted = backends.clone().into_iter().all(|backend| backend.weight == 0);
    let weighted: Vec<(SocketAddr, u64)> = backends
        .into_iter()
        .filter(|backend| unweighted || backend.weight != 0)
        .map(|backend| {
            let weight = if unweighted { 1 } else { u64::from(backend.weight) };
            (SocketAddr::new(backend.address, backend.port), weight)
        })
        .take(BACKENDS_PER_SERVICE as usize)
        .collect();
    let divisor = weighted.iter().map(|(_, weight)| *weight).fold(0, gcd).max(1);
    let total: u64 = weighted.iter().map(|(_, weight)| weight / divisor).sum();
    let room = u64::from(BACKENDS_PER_SERVICE);
    let spare = room - weighted.len() as u64;
    let mut slots = Vec::new();
    for (address, weight) in weighted {
        let units = weight / divisor;
        // The slots beyond one each are shared by weight, so that the sum never passes the room. Weights have 32
        // bits and the room 12, so nothing overflows.
        let share = if total <= room { units } else { 1 + units * spare / total };
        slots.extend(std::iter::repeat_n(address, usize::try_from(share).unwrap_or(1)));
    }
    slots
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend(last: u8, weight: u32) -> ServiceBackend {
        ServiceBackend { address: std::net::Ipv4Addr::new(10, 1, 0, last).into(), port: 80, weight }
    }

    #[test]
    fn slots_are_as_few_as_give_the_exact_shares() {
        assert_eq!(expand(&[backend(1, 100), backend(2, 100)]).len(), 2);
        assert_eq!(expand(&[backend(1, 90), backend(2, 10)]).len(), 10);
        assert_eq!(expand(&[backend(1, 1), backend(2, 0)]).len(), 1);
        assert_eq!(expand(&[backend(1, 0), backend(2, 0)]).len(), 2);
        assert!(expand(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn slots_stay_within_the_kernels_room_and_nobody_with_a_weight_is_left_out(
            weights in proptest::collection::vec(1u32.., 1..60)
        ) {
            let backends: Vec<_> =
                weights.iter().zip(1u8..).map(|(weight, last)| backend(last, *weight)).collect();
            let slots = expand(&backends);
            prop_assert!(slots.len() <= BACKENDS_PER_SERVICE as usize);
            for backend in &backends {
                prop_assert!(slots.contains(&SocketAddr::new(backend.address, backend.port)));
            }
        }
    }
}
