//! Rates, by the token bucket. Pure: the time is an argument.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// Callers that are remembered at once. One that was silent long enough to have a full bucket is forgotten first.
const MAX_CALLERS: usize = 16_384;

/// So many a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: usize,
    /// Tokens in a full bucket.
    pub burst: usize,
}

/// The tokens of one caller.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, tokens: rate.burst as f64, at: now }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// How long until there is a token.
    pub fn wait(&self) -> Duration {
        let missing = (1.0 - self.tokens).max(0.0);
        Duration::from_secs_f64(missing / self.rate.per_second.max(1) as f64)
    }

    fn fill(&mut self, now: Instant) {
        let new = now.saturating_duration_since(self.at).as_secs_f64() * self.rate.per_second as f64;
        self.tokens = (self.tokens + new).min(self.rate.burst as f64);
        self.at = self.at.max(now);
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens >= self.rate.burst as f64
    }
}

/// A bucket for each caller.
#[derive(Debug)]
pub struct Buckets<K> {
    callers: HashMap<K, Bucket>,
}

impl<K> Default for Buckets<K> {
    fn default() -> Self {
        Self { callers: HashMap::new() }
    }
}

impl<K: Eq + Hash> Buckets<K> {
    /// Takes a token of a caller's bucket. With too many callers at once, newcomers get none: those who are there
    /// are served on.
    pub fn take(&mut self, caller: K, rate: Rate, now: Instant) -> bool {
        if self.callers.len() >= MAX_CALLERS && !self.callers.contains_key(&caller) {
            self.callers.retain(|_, bucket| !bucket.is_full(now));
            if self.callers.len() >= MAX_CALLERS {
                return false;
            }
        }
        self.callers.entry(caller).or_insert_with(|| Bucket::new(rate, now)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_burst_is_served_at_once_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RATE, start);
        assert_eq!((0..5).map(|_| bucket.take(start)).collect::<Vec<_>>(), [true, true, true, false, false]);
        assert_eq!(bucket.wait(), Duration::from_millis(100));
        let later = start + Duration::from_millis(100);
        assert!(bucket.take(later) && !bucket.take(later));
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..5).filter(|_| bucket.take(much_later)).count(), 3, "a pause earns one burst, no more");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = Bucket::new(RATE, start);
        (0..3).for_each(|_| assert!(bucket.take(start)));
        assert!(!bucket.take(start - Duration::from_secs(5)));
        assert!(!bucket.take(start));
    }

    #[test]
    fn callers_do_not_share_and_are_bounded_in_number() {
        let (mut buckets, start) = (Buckets::default(), Instant::now());
        (0..3).for_each(|_| assert!(buckets.take(0, RATE, start)));
        assert!(!buckets.take(0, RATE, start));
        (1..MAX_CALLERS).for_each(|caller| assert!(buckets.take(caller, RATE, start)));
        assert!(!buckets.take(MAX_CALLERS, RATE, start), "no room");
        assert!(!buckets.take(0, RATE, start), "nobody gets a new bucket by being pushed out");
        assert!(
            buckets.take(MAX_CALLERS, RATE, start + Duration::from_secs(1)),
            "the silent ones are forgotten"
        );
    }
}
