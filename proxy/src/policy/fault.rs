//! Faults that are wanted: delays, and answers in place of the application's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName};
use rand::Rng;
use serde::Serialize;

use super::Fraction;
use crate::route::{HeaderTest, RequestView};

const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");

/// `HTTPFault`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    /// Comes first.
    pub delay: Option<(DelayFor, Percentage)>,
    /// Comes after the delay.
    pub abort: Option<Abort>,
    /// Only requests to this cluster.
    pub cluster: Option<Arc<str>>,
    /// Only requests that fulfil all of these.
    pub headers: Vec<HeaderTest>,
    /// At a time.
    pub max_active: Option<u32>,
    /// How many there are.
    #[serde(skip)]
    pub active: Arc<Faults>,
}

/// Which requests.
pub type Percentage = Fraction;

/// How long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DelayFor {
    #[allow(missing_docs)]
    Fixed(Duration),
    /// As the request says.
    Header,
}

/// `FaultAbort`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Abort {
    #[allow(missing_docs)]
    pub with: AbortWith,
    /// Which requests.
    pub percentage: Percentage,
    /// In place of Envoy's words.
    pub body: String,
}

/// Which answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AbortWith {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u16),
    /// As the request says.
    Header,
}

/// Faults at a time. It is no configuration: all are equal.
#[derive(Debug, Default)]
pub struct Faults(AtomicU32);

impl PartialEq for Faults {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A fault that is under way.
#[derive(Debug)]
pub struct ActiveFault(Arc<Faults>);

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is done to a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Injection {
    #[allow(missing_docs)]
    pub delay: Option<Duration>,
    #[allow(missing_docs)]
    pub abort: Option<AbortWith>,
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<T> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// What a request may say of itself is capped by what the configuration says.
fn share(configured: Percentage, headers: &HeaderMap, name: &HeaderName, by_header: bool) -> Percentage {
    match number(headers, name) {
        Some(wanted) if by_header => configured.at_most(wanted),
        _ => configured,
    }
}

impl Fault {
    /// Whether it concerns a request.
    pub fn concerns(&self, request: &RequestView<'_>, cluster: Option<&str>) -> bool {
        self.cluster.as_deref().is_none_or(|wanted| cluster == Some(wanted))
            && self.headers.iter().all(|test| test.matches(request))
    }

    /// What is done to a request that it concerns.
    pub fn draw(&self, headers: &HeaderMap, rng: &mut impl Rng) -> Injection {
        let delay = self.delay.and_then(|(delay, percentage)| {
            let by_header = delay == DelayFor::Header;
            let time = match delay {
                DelayFor::Fixed(time) => time,
                DelayFor::Header => Duration::from_millis(number(headers, &DELAY)?),
            };
            share(percentage, headers, &DELAY_PERCENTAGE, by_header).takes(rng).then_some(time)
        });
        let abort = self.abort.as_ref().and_then(|abort| {
            let with = match abort.with {
                AbortWith::Header => number(headers, &ABORT)
                    .filter(|status| (200..600).contains(status))
                    .map(AbortWith::Http)
                    .or_else(|| number(headers, &ABORT_GRPC).map(AbortWith::Grpc))?,
                fixed => fixed,
            };
            let by_header = abort.with == AbortWith::Header;
            share(abort.percentage, headers, &ABORT_PERCENTAGE, by_header).takes(rng).then_some(with)
        });
        Injection { delay: delay.filter(|time| !time.is_zero()), abort }
    }

    /// One more at a time, if there may be.
    pub fn begin(&self) -> Option<ActiveFault> {
        let max = self.max_active.unwrap_or(u32::MAX);
        let add = |active: u32| (active < max).then(|| active + 1);
        self.active.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).ok()?;
        Some(ActiveFault(self.active.clone()))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn fault(delay: Option<DelayFor>, abort: Option<AbortWith>, percentage: Percentage) -> Fault {
        Fault {
            delay: delay.map(|delay| (delay, percentage)),
            abort: abort.map(|with| Abort { with, percentage, body: String::new() }),
            cluster: None,
            headers: vec![],
            max_active: Some(1),
            active: Arc::default(),
        }
    }

    fn drawn(fault: &Fault, headers: &[(&'static str, &'static str)]) -> Injection {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        fault.draw(&headers, &mut StdRng::seed_from_u64(1))
    }

    #[test]
    fn a_request_may_ask_for_faults_where_it_is_allowed_to_and_for_no_more() {
        let by_header = fault(Some(DelayFor::Header), Some(AbortWith::Header), Fraction::ALL);
        assert_eq!(drawn(&by_header, &[]), Injection::default());
        let injection = drawn(
            &by_header,
            &[("x-envoy-fault-delay-request", "20"), ("x-envoy-fault-abort-request", "503")],
        );
        assert_eq!(injection.delay, Some(Duration::from_millis(20)));
        assert_eq!(injection.abort, Some(AbortWith::Http(503)));
        let zero = [("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "0")];
        assert_eq!(drawn(&by_header, &zero), Injection::default());
        assert_eq!(drawn(&by_header, &[("x-envoy-fault-abort-request", "5030")]), Injection::default());
        let none = fault(None, Some(AbortWith::Header), Fraction::NONE);
        let all = [("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "100")];
        assert_eq!(drawn(&none, &all), Injection::default());
        let fixed =
            fault(Some(DelayFor::Fixed(Duration::from_secs(1))), Some(AbortWith::Grpc(5)), Fraction::ALL);
        let injection = drawn(&fixed, &[("x-envoy-fault-abort-request-percentage", "0")]);
        assert_eq!(
            injection,
            Injection { delay: Some(Duration::from_secs(1)), abort: Some(AbortWith::Grpc(5)) }
        );
    }

    #[test]
    fn there_are_only_so_many_at_a_time() {
        let fault = fault(None, None, Fraction::ALL);
        let first = fault.begin();
        assert!(first.is_some() && fault.begin().is_none());
        drop(first);
        assert!(fault.begin().is_some());
    }
}
