//! A bucket of tokens that fills steadily.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};

/// `TokenBucket`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BucketConfig {
    /// Tokens that it holds, and has at first.
    pub max: u32,
    /// Tokens that come in a time.
    pub fill: u32,
    /// In which time; not zero.
    pub interval: Duration,
}

/// A bucket at work. Two are equal when they are configured alike.
#[derive(Debug)]
pub struct Bucket {
    /// What the control plane said.
    pub config: BucketConfig,
    /// Tokens, and when there were so many. `None`: it was never asked.
    level: Mutex<Option<(f64, Instant)>>,
}

impl Bucket {
    /// A full one.
    pub fn new(config: BucketConfig) -> Self {
        Self { config, level: Mutex::new(None) }
    }

    fn per_second(&self) -> f64 {
        f64::from(self.config.fill) / self.config.interval.as_secs_f64()
    }

    fn tokens(&self, level: Option<(f64, Instant)>, now: Instant) -> f64 {
        let max = f64::from(self.config.max);
        let Some((tokens, since)) = level else { return max };
        (tokens + now.saturating_duration_since(since).as_secs_f64() * self.per_second()).min(max)
    }

    /// Takes tokens, all or none. Returns whether they were there.
    pub fn take(&self, count: u32, now: Instant) -> bool {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.tokens(*level, now) - f64::from(count);
        let enough = left >= 0.0;
        if enough {
            *level = Some((left, now));
        }
        enough
    }

    /// Whole tokens that are there.
    pub fn remaining(&self, now: Instant) -> u32 {
        let level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        self.tokens(*level, now) as u32
    }

    /// Until there is a whole token; the longest time if there never will be.
    pub fn next(&self, now: Instant) -> Duration {
        let level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = 1.0 - self.tokens(*level, now);
        if missing <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(missing / self.per_second()).unwrap_or(Duration::MAX)
    }
}

impl PartialEq for Bucket {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
    }
}

impl Serialize for Bucket {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.config.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_taken_and_come_again_up_to_what_it_holds() {
        let bucket = Bucket::new(BucketConfig { max: 3, fill: 2, interval: Duration::from_secs(1) });
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert!((0..3).all(|_| bucket.take(1, at(0))));
        assert!(!bucket.take(1, at(0)) && !bucket.take(1, at(499)));
        assert_eq!(bucket.next(at(0)), Duration::from_millis(500));
        assert!(bucket.take(1, at(500)) && !bucket.take(1, at(500)));
        assert_eq!(bucket.remaining(at(60_000)), 3);
        assert!(!bucket.take(4, at(60_000)) && bucket.take(3, at(60_000)));
        let empty = Bucket::new(BucketConfig { max: 0, fill: 1, interval: Duration::from_secs(1) });
        assert!(!empty.take(1, at(0)) && !empty.take(1, at(60_000)));
    }
}
