//! Handshakes that come to nothing are told of without filling the log.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// One line for each address within this time.
const WINDOW: Duration = Duration::from_secs(10);
/// Addresses that are remembered; from further ones only the counters tell.
const MAX_ADDRESSES: usize = 1024;

/// Which refusals were told of lately.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Told>);

#[derive(Debug, Default)]
struct Told(HashMap<IpAddr, (Instant, u64)>);

impl Refusals {
    /// Whether one more refusal of an address is worth a line: then how many were not, since the last.
    pub(super) fn worth_a_line(&self, address: IpAddr) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(address, Instant::now())
    }
}

impl Told {
    fn note(&mut self, address: IpAddr, now: Instant) -> Option<u64> {
        if let Some((at, unsaid)) = self.0.get_mut(&address) {
            if now.saturating_duration_since(*at) < WINDOW {
                *unsaid += 1;
                return None;
            }
            *at = now;
            return Some(std::mem::take(unsaid));
        }
        if self.0.len() >= MAX_ADDRESSES {
            self.0.retain(|_, (at, _)| now.saturating_duration_since(*at) < WINDOW);
        }
        if self.0.len() >= MAX_ADDRESSES {
            return None;
        }
        self.0.insert(address, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn an_address_gets_one_line_in_a_while_that_counts_the_others() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.note(address(1), start), Some(0));
        for _ in 0..5 {
            assert_eq!(told.note(address(1), start + WINDOW / 2), None);
        }
        assert_eq!(told.note(address(2), start), Some(0));
        assert_eq!(told.note(address(1), start + WINDOW), Some(5));
        assert_eq!(told.note(address(1), start + WINDOW), None);
    }

    #[test]
    fn a_flood_from_many_addresses_takes_a_bounded_memory_and_ends() {
        let (mut told, start) = (Told::default(), Instant::now());
        let lines = (0..5000).filter(|n| told.note(address(*n), start).is_some()).count();
        assert_eq!((lines, told.0.len()), (MAX_ADDRESSES, MAX_ADDRESSES));
        assert_eq!(told.note(address(9999), start + WINDOW), Some(0));
        assert_eq!(told.0.len(), 1);
    }
}
