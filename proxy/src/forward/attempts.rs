//! One request, tried until it is answered or given up.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::{
    answer::{self, Passing},
    body::ResponseBody,
    choice::{Choice, dropped},
    reply::Reply,
    request::Head,
    scene::Scene,
};
use crate::{
    balance::Failure,
    config::UpstreamProtocol,
    format::Facts,
    outbound::{
        ConnectError, ConnectFailure, Deadline, Host, IdleTimer, Lease, ReplayHandle, SendError,
        UpstreamBody, UpstreamCluster, Want, acquire_as,
    },
    retry::{Outcome, RetryPolicy},
    route::{Destination, Forward},
    telemetry::Flag,
};

/// Attempts on further connections to the same endpoint when one turns out to be closed before anything was sent on it.
const STALE_CONNECTIONS: u32 = 3;

/// The client's body, before and between attempts.
pub(super) enum Body {
    Empty,
    Once(Option<UpstreamBody>),
    Replay(ReplayHandle),
}

impl Body {
    fn take(&mut self) -> Option<UpstreamBody> {
        match self {
            Self::Empty => Some(UpstreamBody::Empty),
            Self::Once(body) => body.take(),
            Self::Replay(handle) => Some(handle.attempt()),
        }
    }

    fn replayable(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Once(body) => body.is_some(),
            Self::Replay(handle) => handle.replayable(),
        }
    }
}

/// What is sent, and by which rules.
pub(super) struct Job<'a> {
    pub(super) cluster: Arc<UpstreamCluster>,
    pub(super) forward: &'a Forward,
    pub(super) destination: &'a Destination,
    pub(super) head: Head,
    pub(super) body: Body,
    /// When the client's body is through, where there is one.
    pub(super) body_ended: Option<[oneshot::Receiver<()>; 2]>,
    pub(super) http2_client: bool,
    pub(super) stream_idle: Option<Duration>,
    /// For the whole of it.
    pub(super) stream_limit: Option<Duration>,
    /// For the client's body.
    pub(super) request_limit: Option<Duration>,
    pub(super) scene: Scene<'a>,
}

/// What came of it.
pub(super) struct Done {
    pub(super) result: Result<Response<ResponseBody>, Reply>,
    pub(super) attempts: u32,
    pub(super) upstream: Option<std::net::SocketAddr>,
}

/// How one attempt ended.
// It is moved once for each try; a box would be an allocation for each.
#[allow(clippy::large_enum_variant)]
enum Attempt {
    Answer(Response<Incoming>, Lease),
    NoConnection(ConnectError),
    Send(SendError),
    /// The body is used up: nothing more can be sent.
    NoBody,
}

pub(super) async fn run(mut job: Job<'_>) -> Done {
    let cluster = job.cluster.clone();
    let mut done =
        Done { result: Err(Reply::reset("overflow", Flag::Overflow)), attempts: 0, upstream: None };
    let breaker = cluster.breaker(job.forward.choice.priority);
    if let Some(reply) = dropped(&cluster) {
        done.result = Err(reply);
        return done;
    }
    let choice = Choice::of(&job);
    let Some(request_permit) = breaker.requests.try_take() else {
        cluster.stats.overflow.fetch_add(1, Ordering::Relaxed);
        return done;
    };
    let active = ActiveCount::new(&cluster);
    let (ended, also) = job.body_ended.take().map_or((None, None), |[ended, also]| (Some(ended), Some(also)));
    let mut late = pin!(late(job.request_limit, also));
    let mut deadline = match (job.forward.timeout, ended) {
        (Some(limit), Some(ended)) => Deadline::AfterRequest(ended, limit),
        (limit, _) => Deadline::from_now(limit),
    }
    .or(Deadline::from_now(job.stream_limit));
    let policy = job.forward.retry.clone().filter(|policy| policy.wants(&job.head.view()));
    let mut tried: Vec<Arc<Host>> = vec![];
    let mut retry_permit = None;
    loop {
        done.attempts += 1;
        let Some(host) = choice.host(&cluster, &tried) else {
            cluster.stats.no_endpoint.fetch_add(1, Ordering::Relaxed);
            done.result = Err(Reply::no_healthy_upstream());
            return done;
        };
        done.upstream = Some(host.address);
        let serving = cluster.begin(&host);
        let policy = policy.as_deref();
        let attempt = tokio::select! {
            attempt = try_once(&mut job, &host, done.attempts) => attempt,
            () = per_try(policy) => None,
            () = late.as_mut() => {
                let status = StatusCode::REQUEST_TIMEOUT;
                done.result = Err(Reply::new(status, "request timeout", Flag::BadRequest));
                return done;
            }
            () = &mut deadline => {
                cluster.on_failure(&host, Failure::Local);
                cluster.stats.codes.count(504);
                done.result = Err(Reply::timeout());
                return done;
            }
        };
        let (outcome, result) = judge(attempt, policy);
        note(&cluster, &host, outcome, &result);
        if let Some(policy) = policy
            && outcome.is_some_and(|outcome| policy.retries(outcome, done.attempts, job.body.replayable()))
        {
            retry_permit = retry_permit.or_else(|| breaker.try_retry());
            if retry_permit.is_some() {
                cluster.stats.retries.fetch_add(1, Ordering::Relaxed);
                let told = result.as_ref().ok().and_then(|(response, _)| {
                    policy.told_to_wait(response.headers(), SystemTime::now(), &mut rand::rng())
                });
                drop((result, serving));
                tried.push(host);
                let pause = told.unwrap_or_else(|| policy.back_off(done.attempts, &mut rand::rng()));
                tokio::select! {
                    () = tokio::time::sleep(pause) => continue,
                    () = &mut deadline => {
                        done.result = Err(Reply::timeout());
                        return done;
                    }
                }
            }
            cluster.stats.retry_overflow.fetch_add(1, Ordering::Relaxed);
        }
        done.result = result.map(|(response, lease)| {
            let passing = Passing {
                lease,
                deadline,
                idle: IdleTimer::new(job.stream_idle),
                guards: Box::new((request_permit, retry_permit, serving, active)),
            };
            let facts = Facts {
                upstream: done.upstream,
                attempts: Some(done.attempts),
                ..job.scene.facts(&job.head)
            };
            let head = job.head.method == Method::HEAD;
            let mut response = answer::pass(response, passing, &job.destination.response, facts, head);
            choice.tell(&mut response);
            if job.forward.attempt_count_in_response {
                answer::set_attempts(response.headers_mut(), done.attempts);
            }
            response
        });
        return done;
    }
}

type Answered = Result<(Response<Incoming>, Lease), Reply>;

/// What the end of an attempt means for retries, and the answer if there are none.
fn judge(attempt: Option<Attempt>, policy: Option<&RetryPolicy>) -> (Option<Outcome>, Answered) {
    match attempt {
        None => (Some(Outcome::PerTryTimeout), Err(Reply::timeout())),
        Some(Attempt::Answer(response, lease)) => {
            let status = response.status().as_u16();
            let grpc_status = answer::grpc_status(response.headers());
            let headers = response.headers();
            let outcome = Outcome::Answer {
                status,
                grpc_status,
                marked: policy.is_some_and(|policy| policy.marks(headers)),
                rate_limited: headers.contains_key("x-envoy-ratelimited"),
            };
            (Some(outcome), Ok((response, lease)))
        }
        Some(Attempt::NoConnection(error)) if error.failure == ConnectFailure::Overflow => {
            (None, Err(Reply::reset("overflow", Flag::Overflow)))
        }
        Some(Attempt::NoConnection(error)) => {
            let reason = format!("{}, transport failure reason: {error}", error.reset_reason());
            (Some(Outcome::ConnectFailure), Err(Reply::reset(&reason, Flag::ConnectFailure)))
        }
        Some(Attempt::Send(error)) => {
            let (outcome, reason) = match error {
                SendError::NotSent(_) => (Outcome::NotSent, "connection termination".to_owned()),
                SendError::RefusedStream(_) => {
                    (Outcome::RefusedStream, "remote refused stream reset".to_owned())
                }
                SendError::Reset(text) => {
                    tracing::debug!(reason = %text, "upstream reset");
                    (Outcome::Reset, "connection termination".to_owned())
                }
            };
            (Some(outcome), Err(Reply::reset(&reason, Flag::Reset)))
        }
        Some(Attempt::NoBody) => (None, Err(Reply::reset("connection termination", Flag::Reset))),
    }
}

/// Counts the outcome, and tells passive health.
fn note(cluster: &UpstreamCluster, host: &Host, outcome: Option<Outcome>, result: &Answered) {
    let status = match (outcome, result) {
        (Some(Outcome::Answer { status, .. }), _) => status,
        (_, Err(reply)) => reply.status.as_u16(),
        (_, Ok((response, _))) => response.status().as_u16(),
    };
    cluster.stats.codes.count(status);
    match outcome {
        Some(Outcome::Answer { status, .. }) if status >= 500 => {
            cluster.on_failure(host, Failure::Answer(status))
        }
        Some(Outcome::Answer { .. }) => cluster.on_success(host),
        Some(_) => cluster.on_failure(host, Failure::Local),
        // A circuit breaker says nothing about the endpoint.
        None => {}
    }
}

/// The client's body is not through in time.
async fn late(limit: Option<Duration>, ended: Option<oneshot::Receiver<()>>) {
    if let (Some(limit), Some(ended)) = (limit, ended)
        && tokio::time::timeout(limit, ended).await.is_err()
    {
        return;
    }
    pending().await
}

async fn per_try(policy: Option<&RetryPolicy>) {
    match policy.and_then(|p| p.per_try_timeout) {
        Some(limit) => tokio::time::sleep(limit).await,
        None => pending().await,
    }
}

async fn try_once(job: &mut Job<'_>, host: &Arc<Host>, attempts: u32) -> Option<Attempt> {
    let want = want(&job.cluster, job.http2_client);
    let mut lease = match acquire_as(&job.cluster, host, want, job.forward.choice.priority).await {
        Ok(lease) => lease,
        Err(error) => return Some(Attempt::NoConnection(error)),
    };
    let Some(body) = job.body.take() else { return Some(Attempt::NoBody) };
    if job.forward.attempt_count_in_request {
        answer::set_attempts(&mut job.head.headers, attempts);
    }
    let keep = job.forward.retry.as_ref().is_some_and(|p| p.on.after_sending() && attempts <= p.num_retries);
    let keep = keep || job.destination.response.reads_request();
    let mut request = build(job, lease.is_http2(), body, keep);
    for _ in 0..STALE_CONNECTIONS {
        match lease.send(request).await {
            Ok(response) => return Some(Attempt::Answer(response, lease)),
            // The peer closed the connection while it was idle: another one will do, and nobody need know.
            Err(SendError::NotSent(back)) => {
                let http2 = lease.is_http2();
                drop(lease);
                lease = match acquire_as(&job.cluster, host, want, job.forward.choice.priority).await {
                    Ok(lease) => lease,
                    Err(error) => return Some(Attempt::NoConnection(error)),
                };
                request = *back;
                if lease.is_http2() != http2 {
                    form(&mut request, &job.head, lease.is_http2());
                }
            }
            Err(error) => return Some(Attempt::Send(error)),
        }
    }
    Some(Attempt::Send(SendError::NotSent(Box::new(request))))
}

/// The version that a cluster is to be asked in.
pub(super) fn want(cluster: &UpstreamCluster, http2_client: bool) -> Want {
    match cluster.config.protocol {
        UpstreamProtocol::Http1 => Want::Http1,
        UpstreamProtocol::Http2 => Want::Http2,
        UpstreamProtocol::Auto => Want::Any,
        UpstreamProtocol::Downstream if http2_client => Want::Http2,
        UpstreamProtocol::Downstream => Want::Http1,
    }
}

/// The request, with the headers themselves or, if it may be sent again, a copy.
fn build(job: &mut Job<'_>, http2: bool, body: UpstreamBody, keep: bool) -> Request<UpstreamBody> {
    let mut request = Request::new(body);
    *request.method_mut() = job.head.method.clone();
    *request.headers_mut() =
        if keep { job.head.headers.clone() } else { std::mem::take(&mut job.head.headers) };
    form(&mut request, &job.head, http2);
    request
}

/// Writes target and host in the form of the version.
pub(super) fn form(request: &mut Request<UpstreamBody>, head: &Head, http2: bool) {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(head.path.clone());
    if http2 {
        parts.scheme = head.scheme.parse().ok();
        parts.authority = Some(head.authority.clone());
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
    } else {
        *request.version_mut() = Version::HTTP_11;
        // An authority is visible ASCII.
        if let Ok(host) = HeaderValue::from_str(head.authority.as_str()) {
            request.headers_mut().insert(header::HOST, host);
        }
    }
    // With an authority goes a scheme, and without neither: the parts always fit.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// Counts a request while it lasts.
#[derive(Debug)]
pub(super) struct ActiveCount(Arc<UpstreamCluster>);

impl ActiveCount {
    pub(super) fn new(cluster: &Arc<UpstreamCluster>) -> Self {
        cluster.stats.active_requests.fetch_add(1, Ordering::Relaxed);
        Self(cluster.clone())
    }
}

impl Drop for ActiveCount {
    fn drop(&mut self) {
        self.0.stats.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}
