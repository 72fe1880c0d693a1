//! Requests of pages of other origins.

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::{Exchange, Outcome};
use crate::{
    forward::body::ResponseBody,
    policy::{CorsPolicy, Crossing},
};

pub(super) fn check(exchange: &mut Exchange<'_>, policy: &CorsPolicy) -> Outcome {
    if !policy.enabled.takes(&mut rand::rng()) {
        return None;
    }
    let head = &exchange.request.head;
    match policy.judge(&head.method, &head.headers) {
        Crossing::None => None,
        Crossing::Allow(headers) => {
            for (name, value) in pairs(headers) {
                exchange.answer_with(name, value, false);
            }
            None
        }
        Crossing::Preflight(headers) => {
            let mut response = Response::new(ResponseBody::Empty);
            *response.status_mut() = StatusCode::OK;
            *response.headers_mut() = headers;
            Some(response)
        }
    }
}

fn pairs(headers: HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    headers.into_iter().filter_map(|(name, value)| Some((name?, value)))
}
