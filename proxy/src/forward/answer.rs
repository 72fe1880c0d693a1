//! An endpoint's answer, made ready for the client.

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use hyper::body::Incoming;

use super::{
    body::{Guards, ResponseBody},
    hops,
};
use crate::{
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

pub(super) fn pass(
    response: Response<Incoming>,
    passing: Passing,
    ops: &HeaderOps,
) -> Response<ResponseBody> {
    let (parts, incoming) = response.into_parts();
    let Passing { lease, deadline, idle, guards } = passing;
    let mut response = Response::new(ResponseBody::upstream(incoming, lease, deadline, idle, guards));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    hops::strip_response(response.headers_mut());
    ops.apply(response.headers_mut());
    response
}
