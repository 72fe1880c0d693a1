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

/// Reads as much of a request's body, or a little more, and leaves it in its place. Returns whether that is all of it.
pub(super) async fn read_some(
    exchange: &mut Exchange<'_>,
    max: usize,
) -> Result<bool, Response<ResponseBody>> {
    let idle = exchange.chain.manager.stream_idle_timeout;
    let read = exchange.request.body.read(max, idle).await;
    read.map_err(|error| refusal(error).response(exchange.request.grpc))
}

/// Reads a request's body, and leaves it in its place. Returns whether that is all of it.
pub(super) async fn read(exchange: &mut Exchange<'_>, max: usize) -> Result<bool, Response<ResponseBody>> {
    // What says that it is larger need not be read to be known.
    if exchange.request.body.size_hint().lower() > max as u64 {
        return Ok(false);
    }
    read_some(exchange, max).await
}

fn refusal(error: ReadError) -> Reply {
    match error {
        ReadError::Stalled => Reply::new(StatusCode::REQUEST_TIMEOUT, "stream timeout", Flag::None),
        ReadError::Broken(error) => {
            tracing::debug!(%error, "the client broke off");
            Reply::new(StatusCode::BAD_REQUEST, "", Flag::BadRequest)
        }
    }
}
