//! Requests wait until all of them is there.

use http::{Response, StatusCode};

use super::{Exchange, Outcome};
use crate::{
    forward::{body::ResponseBody, reply::Reply},
    outbound::ReadError,
    telemetry::Flag,
};

pub(super) async fn wait(exchange: &mut Exchange<'_>, max: u32) -> Outcome {
    match read(exchange, max as usize).await {
        Ok(true) => None,
        Ok(false) => Some(too_large(exchange)),
        Err(answer) => Some(answer),
    }
}

pub(super) fn too_large(exchange: &Exchange<'_>) -> Response<ResponseBody> {
    Reply::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", Flag::None).response(exchange.request.grpc)
}

/// Reads a request's body, and leaves it in its place. Returns whether that is all of it.
pub(super) async fn read(exchange: &mut Exchange<'_>, max: usize) -> Result<bool, Response<ResponseBody>> {
    let body = &mut exchange.request.body;
    // What says that it is larger need not be read to be known.
    if body.size_hint().lower() > max as u64 {
        return Ok(false);
    }
    let idle = exchange.chain.manager.stream_idle_timeout;
    body.read(max, idle)
        .await
        .map_err(|error| match error {
            ReadError::Stalled => Reply::new(StatusCode::REQUEST_TIMEOUT, "stream timeout", Flag::None),
            ReadError::Broken(error) => {
                tracing::debug!(%error, "the client broke off");
                Reply::new(StatusCode::BAD_REQUEST, "", Flag::BadRequest)
            }
        })
        .map_err(|reply| reply.response(exchange.request.grpc))
}
