//! Passive health: an endpoint that fails too often is left out for a while.
//!
//! Source: `envoy.config.cluster.v3.OutlierDetection` and Envoy's "Outlier detection". Failures in a row are judged as they
//! happen, rates once in `interval` (see `rates.rs`). An endpoint comes back at its time, which Envoy only notices at its
//! next interval.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::rates::RateConfig;

/// So many failures in a row, and the percent of the cases in which the endpoint then is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct InRow {
    /// 0: never.
    pub limit: u32,
    /// 0 to 100.
    pub enforcing: u32,
}

/// The knobs, with Envoy's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EjectionConfig {
    /// 5xx answers (5, 100%).
    pub consecutive_5xx: InRow,
    /// 502, 503, 504 (5, 0%).
    pub consecutive_gateway: InRow,
    /// Failures without an answer (5, 100%); only with `split_local_origin`.
    pub consecutive_local: InRow,
    /// Whether failures without an answer count by themselves. Otherwise they count as 5xx and gateway failures.
    pub split_local_origin: bool,
    /// Rates.
    pub rates: RateConfig,
    /// Between looks at rates (10 s); each one without an ejection takes one off the count of ejections.
    pub interval: Duration,
    /// First ejection (30 s); the n-th lasts n times as long.
    pub base_time: Duration,
    /// Longest ejection (300 s).
    pub max_time: Duration,
    /// Random part on top (0).
    pub jitter: Duration,
    /// Most endpoints of a cluster that may be out (10).
    pub max_percent: u32,
    /// Whether one may be out even if that is more than `max_percent`.
    pub always_one: bool,
    /// Whether an active health check that passes ends an ejection (true).
    pub uneject_on_check: bool,
}

/// How a request failed an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A 5xx answer of this status.
    Answer(u16),
    /// No connection, a reset, or no answer in time.
    Local,
}

/// By which an endpoint is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// 5xx answers in a row.
    Consecutive5xx,
    /// 502, 503 or 504 in a row.
    ConsecutiveGateway,
    /// Failures without an answer in a row.
    ConsecutiveLocal,
    /// Far fewer successes than the others.
    SuccessRate,
    /// The same, of failures without an answer.
    LocalSuccessRate,
    /// Too large a part of failures.
    FailurePercentage,
    /// The same, of failures without an answer.
    LocalFailurePercentage,
}

impl Reason {
    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGateway => "consecutive_gateway_failure",
            Self::ConsecutiveLocal => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::LocalSuccessRate => "local_origin_success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::LocalFailurePercentage => "local_origin_failure_percentage",
        }
    }
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It would be ejected, but chance (`enforcing_…`) or the share of ejected ones forbids it.
    Spare(Reason),
    /// Leave it out until then.
    Eject(Reason, Instant),
}

/// What the others look like, and chance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Circumstances {
    /// Endpoints of the cluster that are left out already.
    pub out: usize,
    /// All of them.
    pub all: usize,
    /// Of a hundred: compared with `enforcing_…`.
    pub dice: u32,
    /// 0 to 1: the part of the jitter.
    pub jitter: f64,
    /// The time.
    pub now: Instant,
}

/// What is known about one endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ejection {
    server_errors: u32,
    gateway_errors: u32,
    local_failures: u32,
    times: u32,
    until: Option<Instant>,
    /// End of the last ejection: it is forgotten bit by bit.
    last_end: Option<Instant>,
}

impl Ejection {
    /// A request was answered well: counting begins anew.
    pub fn on_success(&mut self) {
        self.server_errors = 0;
        self.gateway_errors = 0;
        self.local_failures = 0;
    }

    /// Whether a success would change anything.
    pub fn is_clean(&self) -> bool {
        self.server_errors == 0 && self.gateway_errors == 0 && self.local_failures == 0
    }

    /// Whether it is left out at `now`.
    pub fn ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// When it comes back, if it is out.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| now < *until)
    }

    /// It comes back at once. Whether it was out.
    pub fn uneject(&mut self, now: Instant) -> bool {
        let was = self.ejected(now);
        if was {
            self.until = None;
            self.last_end = Some(now);
        }
        self.on_success();
        was
    }

    /// A request failed.
    pub fn on_failure(
        &mut self,
        failure: Failure,
        config: &EjectionConfig,
        circumstances: Circumstances,
    ) -> Verdict {
        let local = matches!(failure, Failure::Local);
        let mut reached = None;
        let mut count = |counter: &mut u32, rule: InRow, reason| {
            *counter = counter.saturating_add(1);
            if rule.limit > 0 && *counter >= rule.limit {
                *counter = 0;
                // Which of two is told makes no difference to anybody but people; the enforced one must win.
                if reached.is_none_or(|(_, enforcing)| enforcing < rule.enforcing) {
                    reached = Some((reason, rule.enforcing));
                }
            }
        };
        if local && config.split_local_origin {
            count(&mut self.local_failures, config.consecutive_local, Reason::ConsecutiveLocal);
        } else {
            // An answer, whatever it says, shows that the endpoint can be reached.
            if !local {
                self.local_failures = 0;
            }
            count(&mut self.server_errors, config.consecutive_5xx, Reason::Consecutive5xx);
            if local || matches!(failure, Failure::Answer(502..=504)) {
                count(&mut self.gateway_errors, config.consecutive_gateway, Reason::ConsecutiveGateway);
            } else {
                self.gateway_errors = 0;
            }
        }
        match reached {
            None => Verdict::Keep,
            Some((reason, enforcing)) => self.eject(reason, enforcing, config, circumstances),
        }
    }

    /// There is a reason to leave it out: does it?
    pub fn eject(
        &mut self,
        reason: Reason,
        enforcing: u32,
        config: &EjectionConfig,
        circumstances: Circumstances,
    ) -> Verdict {
        let Circumstances { out, all, dice, jitter, now } = circumstances;
        if self.ejected(now) {
            return Verdict::Keep;
        }
        if dice >= enforcing || !may_eject(config, out, all) {
            return Verdict::Spare(reason);
        }
        self.on_success();
        if let Some(end) = self.last_end {
            let interval = config.interval.as_millis().max(1);
            let forgotten = now.saturating_duration_since(end).as_millis() / interval;
            self.times = self.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        }
        self.times = self.times.saturating_add(1);
        let max = config.max_time.max(config.base_time);
        let time = config.base_time.saturating_mul(self.times).min(max);
        // No further back-off than the longest time is made of: good behaviour must pay off soon.
        if config.base_time.saturating_mul(self.times) > max {
            self.times = self.times.saturating_sub(1);
        }
        let until = now + time + config.jitter.mul_f64(jitter.clamp(0.0, 1.0));
        self.until = Some(until);
        self.last_end = Some(until);
        Verdict::Eject(reason, until)
    }
}

fn may_eject(config: &EjectionConfig, out: usize, all: usize) -> bool {
    (out == 0 && config.always_one) || (out + 1) * 100 <= all * config.max_percent as usize
}

#[cfg(test)]
pub(in crate::balance) mod tests {
    use super::*;

    pub(in crate::balance) fn config() -> EjectionConfig {
        let row = |limit| InRow { limit, enforcing: 100 };
        EjectionConfig {
            consecutive_5xx: row(3),
            consecutive_gateway: row(2),
            consecutive_local: row(1),
            split_local_origin: false,
            rates: RateConfig::default(),
            interval: Duration::from_secs(10),
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(70),
            jitter: Duration::ZERO,
            max_percent: 50,
            always_one: false,
            uneject_on_check: true,
        }
    }

    fn two(now: Instant) -> Circumstances {
        Circumstances { out: 0, all: 2, dice: 0, jitter: 0.0, now }
    }

    #[test]
    fn only_failures_in_a_row_eject() {
        let (config, now) = (config(), Instant::now());
        let mut state = Ejection::default();
        let fail = |state: &mut Ejection| state.on_failure(Failure::Answer(500), &config, two(now));
        for _ in 0..10 {
            assert_eq!(fail(&mut state), Verdict::Keep);
            assert_eq!(fail(&mut state), Verdict::Keep);
            state.on_success();
        }
        fail(&mut state);
        fail(&mut state);
        let until = now + Duration::from_secs(30);
        assert_eq!(fail(&mut state), Verdict::Eject(Reason::Consecutive5xx, until));
        assert!(state.ejected(now + Duration::from_secs(29)) && !state.ejected(until));
    }

    #[test]
    fn gateway_failures_and_missing_answers_have_their_own_limits() {
        let (mut config, now) = (config(), Instant::now());
        let mut state = Ejection::default();
        assert_eq!(state.on_failure(Failure::Local, &config, two(now)), Verdict::Keep);
        let verdict = state.on_failure(Failure::Answer(503), &config, two(now));
        assert!(matches!(verdict, Verdict::Eject(Reason::ConsecutiveGateway, _)));
        config.split_local_origin = true;
        let verdict = Ejection::default().on_failure(Failure::Local, &config, two(now));
        assert!(matches!(verdict, Verdict::Eject(Reason::ConsecutiveLocal, _)));
    }

    #[test]
    fn each_ejection_is_longer_up_to_the_limit_and_good_behaviour_is_rewarded() {
        let (config, start) = (config(), Instant::now());
        let mut state = Ejection::default();
        let mut now = start;
        let mut eject = |now: Instant| loop {
            if let Verdict::Eject(_, until) = state.on_failure(Failure::Answer(500), &config, two(now)) {
                return until;
            }
        };
        for seconds in [30, 60, 70, 70] {
            let until = eject(now);
            assert_eq!(until - now, Duration::from_secs(seconds));
            now = until;
        }
        // Two intervals take two off.
        now += Duration::from_secs(20);
        assert_eq!(eject(now) - now, Duration::from_secs(30));
        now += Duration::from_secs(3600);
        assert_eq!(eject(now) - now, Duration::from_secs(30));
    }

    #[test]
    fn no_more_than_the_allowed_share_is_ejected() {
        let (mut config, now) = (config(), Instant::now());
        config.consecutive_5xx.limit = 1;
        let fail = |config: &EjectionConfig, out, all| {
            let circumstances = Circumstances { out, all, ..two(now) };
            Ejection::default().on_failure(Failure::Answer(500), config, circumstances)
        };
        assert!(matches!(fail(&config, 0, 2), Verdict::Eject(..)));
        assert_eq!(fail(&config, 1, 2), Verdict::Spare(Reason::Consecutive5xx));
        assert_eq!(fail(&config, 0, 1), Verdict::Spare(Reason::Consecutive5xx));
        config.always_one = true;
        assert!(matches!(fail(&config, 0, 1), Verdict::Eject(..)));
    }

    #[test]
    fn chance_decides_in_the_enforced_part_of_the_cases() {
        let (mut config, now) = (config(), Instant::now());
        config.consecutive_5xx = InRow { limit: 1, enforcing: 30 };
        let ejected = |dice| {
            let circumstances = Circumstances { dice, ..two(now) };
            let verdict = Ejection::default().on_failure(Failure::Answer(500), &config, circumstances);
            matches!(verdict, Verdict::Eject(..))
        };
        assert_eq!((0..100).filter(|dice| ejected(*dice)).count(), 30);
    }

    #[test]
    fn jitter_comes_on_top_and_an_active_check_ends_it_all() {
        let (mut config, now) = (config(), Instant::now());
        config.jitter = Duration::from_secs(10);
        let mut state = Ejection::default();
        let circumstances = Circumstances { jitter: 0.5, ..two(now) };
        let verdict = state.eject(Reason::SuccessRate, 100, &config, circumstances);
        assert_eq!(verdict, Verdict::Eject(Reason::SuccessRate, now + Duration::from_secs(35)));
        assert!(state.uneject(now) && !state.ejected(now) && !state.uneject(now));
    }
}
