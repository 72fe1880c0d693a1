//! Slow start: an endpoint that is new gets its share bit by bit.

use std::time::Duration;

use serde::Serialize;

/// `SlowStartConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SlowStart {
    /// How long it takes to get all of the share.
    pub window: Duration,
    /// 1: linear; above: faster at first. Above zero.
    pub aggression: f64,
    /// Least share, in percent of the whole one.
    pub min_percent: f64,
}

impl SlowStart {
    /// The part of its weight that an endpoint of this age has: `max(min, (age / window) ^ (1 / aggression))`.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        // Envoy counts whole seconds here; fractions make it smoother and are the same at whole ones.
        let time = age.as_secs_f64().max(0.001) / self.window.as_secs_f64();
        time.powf(1.0 / self.aggression).max(self.min_percent / 100.0).min(1.0)
    }

    /// How long weights may be used before they are computed again.
    pub fn step(&self) -> Duration {
        (self.window / 50).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_with_age_from_its_minimum_to_all() {
        let linear = SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_percent: 10.0 };
        let percent = |config: &SlowStart, seconds| {
            (config.factor(Duration::from_secs(seconds)) * 100.0).round() as u32
        };
        for (age, expected) in [(0, 10), (5, 10), (20, 20), (50, 50), (100, 100), (1000, 100)] {
            assert_eq!(percent(&linear, age), expected, "{age}");
        }
        let steep = SlowStart { aggression: 2.0, ..linear };
        assert_eq!(percent(&steep, 25), 50);
        let flat = SlowStart { aggression: 0.5, ..linear };
        assert_eq!(percent(&flat, 50), 25);
    }
}
