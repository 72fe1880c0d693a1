//! The kernel's clock in events is monotonic; people want to know the time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// The offset between the two clocks, as of when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallClock {
    offset_nanos: i128,
}

impl WallClock {
    /// Reads both clocks. Take it anew from time to time: the wall clock is adjusted.
    pub fn now() -> Self {
        Self::between(monotonic_nanos(), Self::wall_nanos().into())
    }

    /// The wall clock: nanoseconds since 1970.
    pub fn wall_nanos() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn between(monotonic: u64, wall: u128) -> Self {
        Self { offset_nanos: i128::try_from(wall).unwrap_or(i128::MAX) - i128::from(monotonic) }
    }

    /// Nanoseconds since 1970.
    pub fn unix_nanos(self, monotonic: u64) -> u64 {
        u64::try_from(self.offset_nanos + i128::from(monotonic)).unwrap_or(0)
    }
}

/// `CLOCK_MONOTONIC`, as `bpf_ktime_get_ns` reads it.
pub fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a writable timespec, and the clock exists on every Linux.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    if result != 0 {
        return 0;
    }
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_time_of_day_at_which_it_happened() {
        let clock = WallClock::between(1_000, 1_700_000_000_000_000_000);
        assert_eq!(clock.unix_nanos(1_500), 1_700_000_000_000_000_500);
        assert_eq!(clock.unix_nanos(500), 1_699_999_999_999_999_500);
        assert!(monotonic_nanos() > 0);
    }
}
