//! An endpoint's answer, made ready for the client.

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::Body as _;
use hyper::body::Incoming;

use super::{
    body::{Guards, ResponseBody},
    hops,
};
use crate::{
    format::Facts,
    outbound::{Deadline, IdleTimer, Lease},
    route::HeaderOps,
};

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

/// The number of attempts, where a virtual host wants it told.
pub(super) fn set_attempts(headers: &mut HeaderMap, attempts: u32) {
    headers.insert(ATTEMPT_COUNT, HeaderValue::from(attempts));
}

/// `grpc-status` among the headers: an answer that is only an error.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

pub(super) struct Passing {
    pub(super) lease: Lease,
    pub(super) deadline: Deadline,
    pub(super) idle: IdleTimer,
    pub(super) guards: Guards,
}

/// `head`: whether the request was a HEAD.
pub(super) fn pass(
    response: Response<Incoming>,
    passing: Passing,
    ops: &HeaderOps,
    facts: Facts<'_>,
    head: bool,
) -> Response<ResponseBody> {
    let (parts, incoming) = response.into_parts();
    let Passing { lease, deadline, idle, guards } = passing;
    // An endpoint that sends a body where there is none (RFC 9110 6.4.1) has its stream reset, and the answer stands.
    let bodyless = head || matches!(parts.status.as_u16(), 204 | 304);
    let body = if bodyless && !incoming.is_end_stream() {
        ResponseBody::Empty
    } else {
        ResponseBody::upstream(incoming, lease, deadline, idle, guards)
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    hops::strip_response(response.headers_mut());
    let status = Some(response.status().as_u16());
    let values = ops.values(&Facts { response: Some(response.headers()), status, ..facts });
    ops.apply(response.headers_mut(), values);
    response
}
