//! Waiting times between attempts to connect.

use std::time::Duration;

use rand::Rng;

/// Exponential back-off with jitter.
///
/// Each delay is drawn evenly from the upper half of the current step, so that the thousand clients of a
/// replica that died do not return at the same moment, and none returns at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    step: Duration,
}

impl Default for Backoff {
    /// 100 ms up to 5 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

impl Backoff {
    /// Delays between `min` / 2 and `max`; `max` is raised to `min` if it is smaller.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), step: min }
    }

    /// The next delay; the one after it is drawn from twice the step.
    pub fn next_delay(&mut self, rng: &mut impl Rng) -> Duration {
        let step = self.step;
        self.step = step.saturating_mul(2).min(self.max);
        step.mul_f64(rng.random_range(0.5..=1.0))
    }

    /// Back to the shortest delay: the peer has answered.
    pub fn reset(&mut self) {
        self.step = self.min;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn delays_double_from_100_ms_to_5_s_and_are_jittered_downwards_by_half_at_most() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        for step in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000].map(Duration::from_millis) {
            let delay = backoff.next_delay(&mut rng);
            assert!(delay >= step / 2 && delay <= step, "{delay:?} for step {step:?}");
        }
    }

    #[test]
    fn an_answer_resets_the_delay() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next_delay(&mut rng);
        }
        backoff.reset();
        assert!(backoff.next_delay(&mut rng) <= Duration::from_millis(100));
    }
}
