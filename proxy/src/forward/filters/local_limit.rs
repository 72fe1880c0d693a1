//! How many requests, counted here.

use std::time::Instant;

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{Exchange, Outcome};
use crate::{
    forward::reply::{GRPC_STATUS, Reply},
    policy::limit::{Bucket, LocalLimit},
    telemetry::Flag,
};

pub(super) const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub(super) const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

pub(super) fn check(exchange: &mut Exchange<'_>, limit: &LocalLimit) -> Outcome {
    if !limit.enabled.takes(&mut rand::rng()) {
        return None;
    }
    let descriptors = exchange.descriptors(limit.rules.as_deref(), limit.stage, None);
    let now = Instant::now();
    let taken = limit.take(&descriptors, now);
    if limit.tell
        && let Some(bucket) = &taken.bucket
    {
        tell(exchange, bucket, now);
    }
    if taken.granted {
        return None;
    }
    if !limit.enforced.takes(&mut rand::rng()) {
        let values = limit.request_headers.values(&exchange.facts());
        limit.request_headers.apply(&mut exchange.request.head.headers, values);
        return None;
    }
    exchange.flag = Flag::RateLimited;
    let status = StatusCode::from_u16(limit.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let mut response =
        Reply::new(status, "local_rate_limited", Flag::RateLimited).response(exchange.request.grpc);
    if exchange.request.grpc && limit.resource_exhausted {
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(8_u16));
    }
    let values = limit.response_headers.values(&exchange.facts());
    limit.response_headers.apply(response.headers_mut(), values);
    if limit.retry_after && limit.status == 429 && !response.headers().contains_key(header::RETRY_AFTER) {
        let wait = taken.bucket.map_or(1, |bucket| bucket.next(now).as_secs_f64().ceil() as u64);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.max(1)));
    }
    Some(response)
}

fn tell(exchange: &mut Exchange<'_>, bucket: &Bucket, now: Instant) {
    let reset = bucket.next(now).as_secs_f64().ceil() as u64;
    exchange.answer_with(LIMIT, HeaderValue::from(bucket.config.max), false);
    exchange.answer_with(REMAINING, HeaderValue::from(bucket.remaining(now)), false);
    exchange.answer_with(RESET, HeaderValue::from(reset), false);
}
