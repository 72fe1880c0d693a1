//! Endpoints that fail more often than the others, or than they may: looked at once in an interval.
//!
//! Source: Envoy's `DetectorImpl::processSuccessRateEjections`.

use serde::Serialize;

use super::ejection::Reason;

/// The knobs, with Envoy's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RateConfig {
    /// Percent of the cases in which a low success rate ejects (100).
    pub enforcing_success_rate: u32,
    /// The same of failures without an answer, where they count by themselves (100).
    pub enforcing_local_success_rate: u32,
    /// Fewest endpoints with enough requests (5).
    pub success_rate_minimum_hosts: u32,
    /// Fewest requests of an endpoint in an interval (100).
    pub success_rate_request_volume: u32,
    /// Standard deviations below the mean, in thousandths (1900).
    pub success_rate_stdev_factor: u32,
    /// Percent of failures from which an endpoint is ejected (85).
    pub failure_percentage_threshold: u32,
    /// Percent of the cases in which it is (0).
    pub enforcing_failure_percentage: u32,
    /// The same of failures without an answer, where they count by themselves (0).
    pub enforcing_local_failure_percentage: u32,
    /// Fewest endpoints (5).
    pub failure_percentage_minimum_hosts: u32,
    /// Fewest requests of an endpoint in an interval (50).
    pub failure_percentage_request_volume: u32,
}

impl Default for RateConfig {
    fn default() -> Self {
        Self {
            enforcing_success_rate: 100,
            enforcing_local_success_rate: 100,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1900,
            failure_percentage_threshold: 85,
            enforcing_failure_percentage: 0,
            enforcing_local_failure_percentage: 0,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
        }
    }
}

/// What an endpoint did in an interval. One that is ejected is not among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// Requests that count as successes.
    pub good: u64,
    /// All of them.
    pub all: u64,
}

/// An endpoint that stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlier {
    /// Its position among the samples.
    pub host: usize,
    /// By what.
    pub reason: Reason,
    /// Percent of the cases in which it is ejected for it.
    pub enforcing: u32,
}

/// Who stands out. `local`: these are successes and failures of reaching the endpoints.
pub fn outliers(config: &RateConfig, samples: &[Sample], local: bool) -> Vec<Outlier> {
    let rated = |volume: u32| {
        let enough = samples.iter().enumerate().filter(move |(_, s)| s.all >= u64::from(volume.max(1)));
        enough.map(|(host, s)| (host, s.good as f64 / s.all as f64 * 100.0)).collect::<Vec<_>>()
    };
    let mut found = vec![];
    let judged = rated(config.success_rate_request_volume);
    if !judged.is_empty() && judged.len() >= config.success_rate_minimum_hosts as usize {
        let count = judged.len() as f64;
        let mean = judged.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = judged.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let threshold = mean - f64::from(config.success_rate_stdev_factor) / 1000.0 * variance.sqrt();
        let (reason, enforcing) = if local {
            (Reason::LocalSuccessRate, config.enforcing_local_success_rate)
        } else {
            (Reason::SuccessRate, config.enforcing_success_rate)
        };
        let low = judged.iter().filter(|(_, rate)| *rate < threshold);
        found.extend(low.map(|(host, _)| Outlier { host: *host, reason, enforcing }));
    }
    let judged = rated(config.failure_percentage_request_volume);
    if !judged.is_empty() && judged.len() >= config.failure_percentage_minimum_hosts as usize {
        let (reason, enforcing) = if local {
            (Reason::LocalFailurePercentage, config.enforcing_local_failure_percentage)
        } else {
            (Reason::FailurePercentage, config.enforcing_failure_percentage)
        };
        let threshold = f64::from(config.failure_percentage_threshold);
        let bad = judged.iter().filter(|(_, rate)| 100.0 - rate >= threshold);
        found.extend(bad.map(|(host, _)| Outlier { host: *host, reason, enforcing }));
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples(good: &[u64]) -> Vec<Sample> {
        good.iter().map(|good| Sample { good: *good, all: 200 }).collect()
    }

    fn hosts(config: &RateConfig, samples: &[Sample]) -> Vec<(usize, Reason)> {
        outliers(config, samples, false).into_iter().map(|o| (o.host, o.reason)).collect()
    }

    #[test]
    fn whoever_is_far_below_the_mean_stands_out() {
        let config = RateConfig::default();
        assert_eq!(hosts(&config, &samples(&[200, 198, 196, 199, 100])), [(4, Reason::SuccessRate)]);
        assert_eq!(hosts(&config, &samples(&[200; 5])), []);
        // All of them fail alike: nobody is an outlier among them, but each fails too much.
        let all = hosts(&config, &samples(&[2; 5]));
        assert!(all.len() == 5 && all.iter().all(|(_, reason)| *reason == Reason::FailurePercentage));
    }

    #[test]
    fn too_few_hosts_or_requests_are_no_statistics() {
        let config = RateConfig::default();
        assert_eq!(hosts(&config, &samples(&[200, 200, 200, 0])), []);
        let mut thin = samples(&[200, 200, 200, 200, 0]);
        thin[4].all = 49;
        assert_eq!(hosts(&config, &thin), []);
        // Enough for the percentage, too little for the rate.
        thin[4].all = 60;
        assert_eq!(hosts(&config, &thin), [(4, Reason::FailurePercentage)]);
    }

    #[test]
    fn the_factor_says_how_far_is_far() {
        let far = samples(&[200, 200, 200, 200, 150]);
        let with = |factor| RateConfig { success_rate_stdev_factor: factor, ..RateConfig::default() };
        assert_eq!(hosts(&with(1900), &far), [(4, Reason::SuccessRate)]);
        assert_eq!(hosts(&with(2100), &far), []);
    }

    proptest! {
        #[test]
        fn nobody_with_the_best_rate_ever_stands_out_by_rate(good in prop::collection::vec(0_u64..=200, 5..20)) {
            let best = *good.iter().max().unwrap();
            for (host, reason) in hosts(&RateConfig::default(), &samples(&good)) {
                prop_assert!(reason != Reason::SuccessRate || good[host] < best);
            }
        }
    }
}
