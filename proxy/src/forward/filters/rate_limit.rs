//! How many requests, counted by a service.

use http::{HeaderName, HeaderValue, Response, StatusCode};
use xds_proto::envoy::{
    config::core::v3::HeaderValue as WireHeader,
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, rate_limit::Unit},
        rate_limit_service_client::RateLimitServiceClient,
    },
};
use xds_proto::google::protobuf::UInt64Value;

use super::{
    Exchange, Outcome,
    local_limit::{LIMIT, REMAINING, RESET},
    service,
};
use crate::{
    forward::{
        body::ResponseBody,
        reply::{GRPC_STATUS, Reply},
    },
    policy::limit::{GlobalLimit, GlobalRoute},
    telemetry::Flag,
};

const LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

pub(super) async fn check(
    exchange: &mut Exchange<'_>,
    limit: &GlobalLimit,
    route: Option<&GlobalRoute>,
) -> Outcome {
    if !limit.enabled.takes(&mut rand::rng()) {
        return None;
    }
    let rules = route.and_then(|route| route.rules.as_deref()).or(limit.rules.as_deref());
    let include = route.map(|route| route.include_vhost).filter(|include| *include);
    let descriptors = exchange.descriptors(rules, limit.stage, include);
    if descriptors.is_empty() {
        return None;
    }
    let domain = route.and_then(|route| route.domain.as_ref()).unwrap_or(&limit.domain);
    let descriptor = |(entries, hits): (Vec<(String, String)>, Option<u64>)| RateLimitDescriptor {
        entries: entries.into_iter().map(|(key, value)| Entry { key, value }).collect(),
        hits_addend: hits.map(|value| UInt64Value { value }),
        ..RateLimitDescriptor::default()
    };
    let request = RateLimitRequest {
        domain: domain.clone(),
        descriptors: descriptors.into_iter().map(descriptor).collect(),
        hits_addend: 0,
    };
    let answer =
        service::ask(exchange, &limit.service, request, |channel, request, origin, max| async move {
            let client = RateLimitServiceClient::with_origin(channel, origin);
            client.max_decoding_message_size(max).should_rate_limit(request).await
        });
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(cluster = %limit.service.cluster, %error, "requests cannot be counted");
            return limit.deny_on_failure.then(|| {
                exchange.flag = Flag::RateLimitService;
                let status = StatusCode::from_u16(limit.status_on_error);
                Reply::new(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), "", Flag::RateLimitService)
                    .response(exchange.request.grpc)
            });
        }
    };
    if limit.tell {
        tell(exchange, &answer.statuses);
    }
    if answer.overall_code == Code::OverLimit as i32 && limit.enforced.takes(&mut rand::rng()) {
        return Some(refusal(exchange, limit, answer));
    }
    let headers = &mut exchange.request.head.headers;
    for (name, value) in answer.request_headers_to_add.iter().filter_map(header) {
        headers.append(name, value);
    }
    for (name, value) in answer.response_headers_to_add.iter().filter_map(header) {
        exchange.answer_with(name, value, true);
    }
    None
}

fn refusal(
    exchange: &mut Exchange<'_>,
    limit: &GlobalLimit,
    answer: RateLimitResponse,
) -> Response<ResponseBody> {
    exchange.flag = Flag::RateLimited;
    let status = StatusCode::from_u16(limit.status).unwrap_or(StatusCode::TOO_MANY_REQUESTS);
    let body = String::from_utf8_lossy(&answer.raw_body).into_owned();
    let grpc = exchange.request.grpc;
    let mut response = Reply::new(status, body, Flag::RateLimited).response(grpc);
    let headers = response.headers_mut();
    if grpc && limit.resource_exhausted {
        headers.insert(GRPC_STATUS, HeaderValue::from(8_u16));
    }
    if limit.tell_limited {
        headers.insert(LIMITED, HeaderValue::from_static("true"));
    }
    for (name, value) in answer.response_headers_to_add.iter().filter_map(header) {
        headers.append(name, value);
    }
    limit.response_headers.apply(headers, limit.response_headers.values(&exchange.facts()));
    response
}

fn header(wire: &WireHeader) -> Option<(HeaderName, HeaderValue)> {
    let bytes = if wire.raw_value.is_empty() { wire.value.as_bytes() } else { &wire.raw_value };
    Some((wire.key.parse().ok()?, HeaderValue::from_bytes(bytes).ok()?))
}

/// Of the limit of which least is left.
fn tell(exchange: &mut Exchange<'_>, statuses: &[DescriptorStatus]) {
    let limits = || statuses.iter().filter_map(|status| Some((status, status.current_limit.as_ref()?)));
    let Some((status, least)) = limits().min_by_key(|(status, _)| status.limit_remaining) else { return };
    let mut policy = least.requests_per_unit.to_string();
    for (_, limit) in limits() {
        let Some(window) = seconds(limit.unit) else { continue };
        policy.push_str(&format!(", {};w={window}", limit.requests_per_unit));
        if !limit.name.is_empty() {
            policy.push_str(&format!(";name=\"{}\"", limit.name));
        }
    }
    let reset = status.duration_until_reset.as_ref().map_or(0, |time| time.seconds);
    for (name, value) in
        [(LIMIT, policy), (REMAINING, status.limit_remaining.to_string()), (RESET, reset.to_string())]
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            exchange.answer_with(name, value, false);
        }
    }
}

fn seconds(unit: i32) -> Option<u64> {
    const DAY: u64 = 24 * 3600;
    Some(match Unit::try_from(unit).ok()? {
        Unit::Unknown => return None,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3600,
        Unit::Day => DAY,
        Unit::Week => 7 * DAY,
        Unit::Month => 30 * DAY,
        Unit::Year => 365 * DAY,
    })
}
