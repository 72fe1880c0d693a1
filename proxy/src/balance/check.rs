//! Active health: what the outcomes of checks mean, and when the next one is due.
//!
//! Source: `envoy.config.core.v3.HealthCheck` and Envoy's `HealthCheckerImplBase`.

use std::time::Duration;

use serde::Serialize;

/// When checks are done, and how many count.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckTiming {
    /// Longest time of a check.
    pub timeout: Duration,
    /// Between checks of an endpoint in use.
    pub interval: Duration,
    /// The first one is later by a random part of this.
    pub initial_jitter: Duration,
    /// Every other one is later by a random part of this.
    pub interval_jitter: Duration,
    /// And by a random part of so many percent of its interval.
    pub interval_jitter_percent: u32,
    /// Failures in a row until an endpoint is unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row until it is healthy again.
    pub healthy_threshold: u32,
    /// Of a cluster that nobody has used yet (60 s).
    pub no_traffic_interval: Duration,
    /// The same for endpoints that are healthy.
    pub no_traffic_healthy_interval: Duration,
    /// Of unhealthy endpoints.
    pub unhealthy_interval: Duration,
    /// After a check that makes, or may make, an endpoint unhealthy.
    pub unhealthy_edge_interval: Duration,
    /// After one that makes, or may make, it healthy.
    pub healthy_edge_interval: Duration,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// The endpoint is well.
    Passed {
        /// It says that others should be preferred (`x-envoy-degraded`).
        degraded: bool,
    },
    /// It says that it is not: that counts at once.
    Denied,
    /// It could not be asked, or not be understood: that counts when it goes on.
    Failed,
}

/// What is known of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    healthy: bool,
    degraded: bool,
    first: bool,
    /// Of the kind that would change `healthy`, in a row.
    against: u32,
}

impl Default for Check {
    /// Not healthy until the first check passes.
    fn default() -> Self {
        Self { healthy: false, degraded: false, first: true, against: 0 }
    }
}

impl Check {
    /// Whether it may be used.
    pub fn healthy(&self) -> bool {
        self.healthy
    }

    /// Whether others are to be preferred.
    pub fn degraded(&self) -> bool {
        self.degraded
    }

    /// Whether no check has ended yet.
    pub fn pending(&self) -> bool {
        self.first
    }

    /// A check has ended. Whether that changes anything for the balancer, and when the next one is due. `used` says that
    /// the cluster has had traffic; `random` gives numbers from 0 to 1.
    pub fn done(
        &mut self,
        outcome: Checked,
        timing: &CheckTiming,
        used: bool,
        random: impl FnMut() -> f64,
    ) -> (bool, Duration) {
        let before = (self.healthy, self.degraded, self.first);
        let was = self.healthy;
        let good = matches!(outcome, Checked::Passed { .. });
        if good == self.healthy {
            self.against = 0;
        } else {
            self.against += 1;
            let enough = match outcome {
                // The first success is enough: whoever starts is not kept waiting.
                Checked::Passed { .. } => self.first || self.against >= timing.healthy_threshold,
                Checked::Denied => true,
                Checked::Failed => self.against >= timing.unhealthy_threshold,
            };
            if enough {
                self.healthy = good;
                self.against = 0;
            }
        }
        self.degraded = matches!(outcome, Checked::Passed { degraded: true });
        self.first = false;
        // An edge: it has changed, or is about to.
        let edge = was != self.healthy || self.against > 0;
        let base = match (used, self.healthy, edge, good) {
            (false, true, ..) => timing.no_traffic_healthy_interval,
            (false, false, ..) => timing.no_traffic_interval,
            (true, _, true, true) => timing.healthy_edge_interval,
            (true, _, true, false) => timing.unhealthy_edge_interval,
            (true, true, false, _) => timing.interval,
            (true, false, false, _) => timing.unhealthy_interval,
        };
        let changed = before != (self.healthy, self.degraded, self.first);
        (changed, base + timing.late(base, random))
    }
}

impl CheckTiming {
    fn late(&self, base: Duration, mut random: impl FnMut() -> f64) -> Duration {
        let part = base.mul_f64(f64::from(self.interval_jitter_percent) / 100.0);
        part.mul_f64(random()) + self.interval_jitter.mul_f64(random())
    }

    /// When the first check of an endpoint is due.
    pub fn first(&self, mut random: impl FnMut() -> f64) -> Duration {
        self.initial_jitter.mul_f64(random())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSED: Checked = Checked::Passed { degraded: false };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn timing() -> CheckTiming {
        CheckTiming {
            timeout: seconds(1),
            interval: seconds(10),
            initial_jitter: seconds(4),
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            no_traffic_interval: seconds(60),
            no_traffic_healthy_interval: seconds(90),
            unhealthy_interval: seconds(20),
            unhealthy_edge_interval: seconds(2),
            healthy_edge_interval: seconds(3),
        }
    }

    fn run(outcomes: &[Checked]) -> Vec<(bool, u64)> {
        let mut check = Check::default();
        let each = outcomes.iter().map(|outcome| {
            let (_, next) = check.done(*outcome, &timing(), true, || 0.0);
            (check.healthy(), next.as_secs())
        });
        each.collect()
    }

    #[test]
    fn the_first_success_is_enough_and_later_ones_have_to_add_up() {
        use Checked::Failed;
        let states = run(&[PASSED, PASSED, Failed, Failed, Failed, Failed, PASSED, PASSED, PASSED]);
        let expected = [
            (true, 3),
            (true, 10),
            (true, 2),
            (true, 2),
            (false, 2),
            (false, 20),
            (false, 3),
            (true, 3),
            (true, 10),
        ];
        assert_eq!(states, expected);
    }

    #[test]
    fn a_failure_in_between_begins_the_count_anew() {
        use Checked::Failed;
        let states = run(&[PASSED, Failed, Failed, PASSED, Failed, Failed]);
        assert!(states.iter().all(|(healthy, _)| *healthy));
    }

    #[test]
    fn an_endpoint_that_says_no_is_believed_at_once() {
        let states = run(&[PASSED, Checked::Denied]);
        assert_eq!(states, [(true, 3), (false, 2)]);
    }

    #[test]
    fn a_cluster_that_nobody_uses_is_asked_less_often() {
        let mut check = Check::default();
        assert_eq!(check.done(Checked::Failed, &timing(), false, || 0.0).1, seconds(60));
        assert_eq!(check.done(PASSED, &timing(), false, || 0.0).1, seconds(60));
        assert_eq!(check.done(PASSED, &timing(), false, || 0.0).1, seconds(90));
    }

    #[test]
    fn a_degraded_endpoint_is_healthy() {
        let mut check = Check::default();
        let (changed, _) = check.done(Checked::Passed { degraded: true }, &timing(), true, || 0.0);
        assert!(changed && check.healthy() && check.degraded());
        let (changed, _) = check.done(PASSED, &timing(), true, || 0.0);
        assert!(changed && !check.degraded());
        assert!(!check.done(PASSED, &timing(), true, || 0.0).0);
    }

    proptest! {
        #[test]
        fn jitter_only_ever_makes_it_later_and_never_by_more_than_it_may(random in 0.0_f64..1.0) {
            let timing = CheckTiming { interval_jitter: seconds(5), interval_jitter_percent: 50, ..timing() };
            let (_, next) = Check::default().done(PASSED, &timing, true, || random);
            prop_assert!(next >= seconds(3) && next <= seconds(3) + Duration::from_millis(1500) + seconds(5));
            prop_assert!(timing.first(|| random) <= seconds(4));
        }
    }
}
