//! Passive health: an endpoint that fails too often in a row is left out for a while.
//!
//! Source: `envoy.config.cluster.v3.OutlierDetection`, the consecutive kinds. Ejection by success rate and failure percentage
//! is not done, and refused where a resource asks for it.

use std::time::{Duration, Instant};

use serde::Serialize;

/// The knobs, with Envoy's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EjectionConfig {
    /// 5xx answers in a row (default 5). `None`: never by these.
    pub consecutive_5xx: Option<u32>,
    /// 502, 503, 504 in a row. By default not enforced.
    pub consecutive_gateway: Option<u32>,
    /// Failures without an answer in a row (default 5); only with `split_local_origin`.
    pub consecutive_local: Option<u32>,
    /// Whether failures without an answer count by themselves. Otherwise they count as 5xx and gateway failures.
    pub split_local_origin: bool,
    /// First ejection (default 30 s); the n-th lasts n times as long.
    pub base_time: Duration,
    /// Longest ejection (default 300 s).
    pub max_time: Duration,
    /// Most endpoints of a cluster that may be out (default 10).
    pub max_percent: u32,
    /// Whether one may be out even if that is more than `max_percent`.
    pub always_one: bool,
}

/// How a request failed an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A 5xx answer of this status.
    Answer(u16),
    /// No connection, a reset, or no answer in time.
    Local,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Leave it out until then.
    Eject(Instant),
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

    /// A request failed. `out` of `all` endpoints of the cluster are left out already.
    pub fn on_failure(
        &mut self,
        failure: Failure,
        config: &EjectionConfig,
        out: usize,
        all: usize,
        now: Instant,
    ) -> Verdict {
        let local = matches!(failure, Failure::Local);
        let mut reached = false;
        let mut count = |counter: &mut u32, limit: Option<u32>| {
            *counter = counter.saturating_add(1);
            reached |= limit.is_some_and(|limit| *counter >= limit);
        };
        if local && config.split_local_origin {
            count(&mut self.local_failures, config.consecutive_local);
        } else {
            count(&mut self.server_errors, config.consecutive_5xx);
            if local || matches!(failure, Failure::Answer(502..=504)) {
                count(&mut self.gateway_errors, config.consecutive_gateway);
            } else {
                self.gateway_errors = 0;
            }
        }
        if !reached || self.ejected(now) || !may_eject(config, out, all) {
            return Verdict::Keep;
        }
        self.on_success();
        // Each `base_time` of good behaviour since the last ejection takes one off.
        if let Some(end) = self.last_end {
            let base = config.base_time.as_millis().max(1);
            let forgotten = now.saturating_duration_since(end).as_millis() / base;
            self.times = self.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        }
        self.times = self.times.saturating_add(1);
        let time = config.base_time.saturating_mul(self.times).min(config.max_time.max(config.base_time));
        let until = now + time;
        self.until = Some(until);
        self.last_end = Some(until);
        Verdict::Eject(until)
    }
}

fn may_eject(config: &EjectionConfig, out: usize, all: usize) -> bool {
    (out == 0 && config.always_one) || (out + 1) * 100 <= all * config.max_percent as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EjectionConfig {
        EjectionConfig {
            consecutive_5xx: Some(3),
            consecutive_gateway: Some(2),
            consecutive_local: Some(1),
            split_local_origin: false,
            base_time: Duration::from_secs(30),
            max_time: Duration::from_secs(70),
            max_percent: 50,
            always_one: false,
        }
    }

    #[test]
    fn only_failures_in_a_row_eject() {
        let (config, now) = (config(), Instant::now());
        let mut state = Ejection::default();
        for _ in 0..10 {
            assert_eq!(state.on_failure(Failure::Answer(500), &config, 0, 2, now), Verdict::Keep);
            assert_eq!(state.on_failure(Failure::Answer(500), &config, 0, 2, now), Verdict::Keep);
            state.on_success();
        }
        state.on_failure(Failure::Answer(500), &config, 0, 2, now);
        state.on_failure(Failure::Answer(500), &config, 0, 2, now);
        let verdict = state.on_failure(Failure::Answer(500), &config, 0, 2, now);
        assert_eq!(verdict, Verdict::Eject(now + Duration::from_secs(30)));
        assert!(
            state.ejected(now + Duration::from_secs(29)) && !state.ejected(now + Duration::from_secs(30))
        );
    }

    #[test]
    fn gateway_failures_and_missing_answers_have_their_own_limits() {
        let (mut config, now) = (config(), Instant::now());
        let mut state = Ejection::default();
        assert_eq!(state.on_failure(Failure::Local, &config, 0, 2, now), Verdict::Keep);
        assert!(matches!(state.on_failure(Failure::Answer(503), &config, 0, 2, now), Verdict::Eject(_)));
        config.split_local_origin = true;
        assert!(matches!(
            Ejection::default().on_failure(Failure::Local, &config, 0, 2, now),
            Verdict::Eject(_)
        ));
    }

    #[test]
    fn each_ejection_is_longer_up_to_the_limit_and_good_behaviour_is_rewarded() {
        let (config, start) = (config(), Instant::now());
        let mut state = Ejection::default();
        let mut now = start;
        let mut eject = |now: Instant| loop {
            if let Verdict::Eject(until) = state.on_failure(Failure::Answer(500), &config, 0, 2, now) {
                return until;
            }
        };
        for seconds in [30, 60, 70, 70] {
            let until = eject(now);
            assert_eq!(until - now, Duration::from_secs(seconds));
            now = until;
        }
        now += Duration::from_secs(3600);
        assert_eq!(eject(now) - now, Duration::from_secs(30));
    }

    #[test]
    fn no_more_than_the_allowed_share_is_ejected() {
        let (mut config, now) = (config(), Instant::now());
        config.consecutive_5xx = Some(1);
        let fail = |config: &EjectionConfig, out, all| {
            Ejection::default().on_failure(Failure::Answer(500), config, out, all, now)
        };
        assert!(matches!(fail(&config, 0, 2), Verdict::Eject(_)));
        assert_eq!(fail(&config, 1, 2), Verdict::Keep);
        assert_eq!(fail(&config, 0, 1), Verdict::Keep);
        config.always_one = true;
        assert!(matches!(fail(&config, 0, 1), Verdict::Eject(_)));
    }
}
