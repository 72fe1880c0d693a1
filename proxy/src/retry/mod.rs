//! Whether to try again. Pure.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use rand::Rng;
use serde::Serialize;

use crate::route::{HeaderTest, RequestView};

/// Most retries of one request, whatever a policy says.
pub const MAX_RETRIES: u32 = 32;

/// `RetryPolicy` of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetryPolicy {
    /// What is retried.
    pub on: RetryOn,
    /// Attempts after the first. Envoy's default: 1.
    pub num_retries: u32,
    /// Limit of each attempt, until its answer's headers. `None`: only the route's timeout.
    pub per_try_timeout: Option<Duration>,
    /// For `retriable-status-codes`.
    pub status_codes: Vec<u16>,
    /// For `retriable-headers`: any of these in the answer.
    pub headers: Vec<HeaderTest>,
    /// Only requests with any of these are retried. Empty: all.
    pub request_headers: Vec<HeaderTest>,
    /// An answer may say when to come back.
    pub rate_limited: Option<RateLimited>,
    /// First back-off interval. Envoy's default: 25 ms.
    pub back_off_base: Duration,
    /// Largest back-off interval. Envoy's default: ten times the base.
    pub back_off_max: Duration,
}

/// `RateLimitedRetryBackOff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RateLimited {
    /// Headers in their order, and whether they hold a Unix time rather than seconds.
    pub headers: Vec<(String, bool)>,
    /// What is said beyond this is not believed. Envoy's default: 300 s.
    pub max: Duration,
}

/// The conditions of `retry_on`, by Envoy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RetryOn {
    /// `5xx`: any 5xx answer, or no answer at all.
    pub server_error: bool,
    /// `gateway-error`: 502, 503 or 504.
    pub gateway_error: bool,
    /// `reset`: no answer: disconnect, reset, per-try timeout.
    pub reset: bool,
    /// `reset-before-request`: the same, but nothing was sent.
    pub reset_before_request: bool,
    /// `connect-failure`
    pub connect_failure: bool,
    /// `refused-stream`
    pub refused_stream: bool,
    /// `retriable-4xx`: 409.
    pub retriable_4xx: bool,
    /// `retriable-status-codes`
    pub status_codes: bool,
    /// `retriable-headers`
    pub headers: bool,
    /// `envoy-ratelimited`: answers with `x-envoy-ratelimited`, which nothing else has retried.
    pub rate_limited: bool,
    /// `cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`: bit n for gRPC status n, when
    /// it comes in the headers.
    pub grpc: u32,
}

impl RetryOn {
    /// Reads the comma-separated names.
    ///
    /// # Errors
    /// The name that is not supported.
    pub fn parse(names: &str) -> Result<Self, String> {
        let mut on = Self::default();
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match name {
                "5xx" => on.server_error = true,
                "gateway-error" => on.gateway_error = true,
                "reset" => on.reset = true,
                "reset-before-request" => on.reset_before_request = true,
                "connect-failure" => on.connect_failure = true,
                "refused-stream" => on.refused_stream = true,
                "retriable-4xx" => on.retriable_4xx = true,
                "retriable-status-codes" => on.status_codes = true,
                "retriable-headers" => on.headers = true,
                "envoy-ratelimited" => on.rate_limited = true,
                "cancelled" => on.grpc |= 1 << 1,
                "deadline-exceeded" => on.grpc |= 1 << 4,
                "resource-exhausted" => on.grpc |= 1 << 8,
                "internal" => on.grpc |= 1 << 13,
                "unavailable" => on.grpc |= 1 << 14,
                // There is no HTTP/3 here that a retry could avoid.
                "http3-post-connect-failure" => {}
                other => return Err(other.chars().take(64).collect()),
            }
        }
        Ok(on)
    }

    /// Whether nothing is ever retried.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an attempt whose request was (partly) sent may be repeated, so that the request must be kept.
    pub fn after_sending(&self) -> bool {
        let before = Self {
            connect_failure: self.connect_failure,
            reset_before_request: self.reset_before_request,
            ..Self::default()
        };
        *self != before
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an answer's headers.
    Answer {
        /// HTTP status.
        status: u16,
        /// `grpc-status` among the headers.
        grpc_status: Option<u32>,
        /// It has one of the policy's headers.
        marked: bool,
        /// It has `x-envoy-ratelimited`.
        rate_limited: bool,
    },
    /// No connection, so nothing was sent.
    ConnectFailure,
    /// The connection was gone before anything was sent on it.
    NotSent,
    /// HTTP/2 `REFUSED_STREAM`: the peer promises that it did nothing (RFC 9113 8.7).
    RefusedStream,
    /// The connection or stream ended before an answer.
    Reset,
    /// No answer within the limit of one attempt.
    PerTryTimeout,
}

impl RetryPolicy {
    /// Whether to try again after the `attempts`-th attempt (1 is the first). `replayable` says that the request can
    /// be sent once more from its beginning.
    pub fn retries(&self, outcome: Outcome, attempts: u32, replayable: bool) -> bool {
        if attempts > self.num_retries.min(MAX_RETRIES) {
            return false;
        }
        let on = &self.on;
        match outcome {
            // Nothing was read from the request's body yet: it need not be kept to be sent.
            Outcome::ConnectFailure => {
                on.connect_failure
                    || on.server_error
                    || on.reset
                    || on.reset_before_request
                    || on.gateway_error
            }
            Outcome::NotSent => {
                replayable && (on.connect_failure || on.reset || on.reset_before_request || on.server_error)
            }
            Outcome::RefusedStream => replayable && (on.refused_stream || on.server_error || on.reset),
            Outcome::Reset | Outcome::PerTryTimeout => replayable && (on.reset || on.server_error),
            Outcome::Answer { rate_limited: true, .. } => replayable && on.rate_limited,
            Outcome::Answer { status, grpc_status, marked, .. } => {
                replayable
                    && ((on.server_error && (500..600).contains(&status))
                        || (on.gateway_error && matches!(status, 502..=504))
                        || (on.retriable_4xx && status == 409)
                        || (on.headers && marked)
                        || (on.status_codes && self.status_codes.contains(&status))
                        || grpc_status.is_some_and(|code| code < 32 && on.grpc & (1 << code) != 0))
            }
        }
    }

    /// Whether this request may be retried at all.
    pub fn wants(&self, request: &RequestView<'_>) -> bool {
        self.request_headers.is_empty() || self.request_headers.iter().any(|test| test.matches(request))
    }

    /// Whether an answer has a header that says it is to be retried.
    pub fn marks(&self, headers: &HeaderMap) -> bool {
        let view = RequestView { method: "", scheme: "", authority: "", path_and_query: "", headers };
        self.headers.iter().any(|test| test.matches(&view))
    }

    /// What an answer says about when to come back, with up to half as much again so that not everybody comes at once.
    pub fn told_to_wait(&self, headers: &HeaderMap, now: SystemTime, rng: &mut impl Rng) -> Option<Duration> {
        let policy = self.rate_limited.as_ref()?;
        let said = policy.headers.iter().find_map(|(name, unix)| {
            let seconds: u64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
            let wait = Duration::from_secs(seconds);
            let wait = if *unix {
                wait.checked_sub(now.duration_since(SystemTime::UNIX_EPOCH).ok()?)?
            } else {
                wait
            };
            (wait <= policy.max).then_some(wait)
        })?;
        Some(said.mul_f64(rng.random_range(1.0..1.5)))
    }

    /// How long to wait before the attempt after the `attempts`-th: fully jittered exponential back-off, a
    /// random time below `min(base * (2^n - 1), max)`.
    pub fn back_off(&self, attempts: u32, rng: &mut impl Rng) -> Duration {
        let factor = 1_u32.checked_shl(attempts).map_or(u32::MAX, |f| f - 1);
        let ceiling = self.back_off_base.saturating_mul(factor).min(self.back_off_max);
        ceiling.mul_f64(rng.random_range(0.0..1.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn policy(on: &str) -> RetryPolicy {
        RetryPolicy {
            on: RetryOn::parse(on).unwrap(),
            num_retries: 2,
            per_try_timeout: None,
            status_codes: vec![418],
            headers: vec![],
            request_headers: vec![],
            rate_limited: None,
            back_off_base: Duration::from_millis(25),
            back_off_max: Duration::from_millis(250),
        }
    }

    fn answer(status: u16) -> Outcome {
        Outcome::Answer { status, grpc_status: None, marked: false, rate_limited: false }
    }

    fn grpc(code: u32) -> Outcome {
        Outcome::Answer { status: 200, grpc_status: Some(code), marked: false, rate_limited: false }
    }

    #[test]
    fn an_answer_that_is_limited_or_marked_is_retried_only_where_asked_for() {
        let limited = Outcome::Answer { status: 503, grpc_status: None, marked: false, rate_limited: true };
        assert!(!policy("5xx").retries(limited, 1, true));
        assert!(policy("envoy-ratelimited").retries(limited, 1, true));
        let marked = Outcome::Answer { status: 200, grpc_status: None, marked: true, rate_limited: false };
        assert!(policy("retriable-headers").retries(marked, 1, true));
        assert!(!policy("5xx").retries(marked, 1, true));
    }

    #[test]
    fn an_answer_may_say_when_to_come_back_within_limits() {
        let mut rng = StdRng::seed_from_u64(1);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let mut policy = policy("5xx");
        let mut wait = |policy: &RetryPolicy, name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )]);
            policy.told_to_wait(&headers, now, &mut rng)
        };
        assert_eq!(wait(&policy, "retry-after", "2"), None);
        let headers = vec![("retry-after".to_owned(), false), ("x-reset".to_owned(), true)];
        policy.rate_limited = Some(RateLimited { headers, max: Duration::from_secs(10) });
        for (name, value) in [("retry-after", "2"), ("x-reset", "1002")] {
            let wait = wait(&policy, name, value).unwrap().as_secs_f64();
            assert!((2.0..3.0).contains(&wait), "{name}: {wait}");
        }
        for (name, value) in
            [("retry-after", "11"), ("retry-after", "-1"), ("retry-after", "soon"), ("x-reset", "999")]
        {
            assert_eq!(wait(&policy, name, value), None, "{name}: {value}");
        }
    }

    #[test]
    fn each_condition_retries_what_its_name_says() {
        for (on, outcome, expected) in [
            ("connect-failure", Outcome::ConnectFailure, true),
            ("connect-failure", Outcome::Reset, false),
            ("connect-failure", answer(503), false),
            ("refused-stream", Outcome::RefusedStream, true),
            ("refused-stream", Outcome::ConnectFailure, false),
            ("reset", Outcome::Reset, true),
            ("reset", Outcome::PerTryTimeout, true),
            ("reset", answer(500), false),
            ("5xx", answer(500), true),
            ("5xx", answer(499), false),
            ("5xx", Outcome::ConnectFailure, true),
            ("gateway-error", answer(502), true),
            ("gateway-error", answer(500), false),
            ("retriable-4xx", answer(409), true),
            ("retriable-status-codes", answer(418), true),
            ("retriable-status-codes", answer(419), false),
            ("unavailable", grpc(14), true),
            ("unavailable", grpc(13), false),
            ("", Outcome::ConnectFailure, false),
        ] {
            assert_eq!(policy(on).retries(outcome, 1, true), expected, "{on} {outcome:?}");
        }
    }

    #[test]
    fn retries_end_with_their_number() {
        let policy = policy("connect-failure");
        assert!(policy.retries(Outcome::ConnectFailure, 2, true));
        assert!(!policy.retries(Outcome::ConnectFailure, 3, true));
    }

    #[test]
    fn what_cannot_be_sent_again_is_only_retried_if_it_was_never_sent() {
        let policy = policy("5xx,connect-failure,reset,refused-stream");
        for outcome in [answer(503), Outcome::Reset, Outcome::RefusedStream, Outcome::NotSent] {
            assert!(!policy.retries(outcome, 1, false), "{outcome:?}");
        }
        assert!(policy.retries(Outcome::ConnectFailure, 1, false));
    }

    #[test]
    fn an_unknown_condition_is_named() {
        assert_eq!(RetryOn::parse("5xx, sometimes"), Err("sometimes".to_owned()));
        assert!(RetryOn::parse(" , ").unwrap().is_empty());
        assert!(!RetryOn::parse("connect-failure").unwrap().after_sending());
        assert!(RetryOn::parse("connect-failure,5xx").unwrap().after_sending());
    }

    proptest! {
        #[test]
        fn back_off_never_exceeds_its_maximum_nor_panics(attempts in any::<u32>(), seed in any::<u64>()) {
            let mut rng = StdRng::seed_from_u64(seed);
            prop_assert!(policy("5xx").back_off(attempts, &mut rng) <= Duration::from_millis(250));
        }
    }
}
