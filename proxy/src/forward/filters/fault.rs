//! Faults that are wanted.

use http::{HeaderValue, StatusCode};

use super::{Exchange, Outcome};
use crate::{
    forward::reply::{GRPC_STATUS, Reply},
    policy::{AbortWith, Fault},
    telemetry::Flag,
};

pub(super) async fn inject(exchange: &mut Exchange<'_>, fault: &Fault) -> Outcome {
    let picked = exchange.request.picked.clone();
    let cluster = picked.as_ref().and_then(|picked| picked.destination()).map(|d| &*d.cluster);
    if !fault.concerns(&exchange.request.head.view(), cluster) {
        return None;
    }
    let injection = fault.draw(&exchange.request.head.headers, &mut rand::rng());
    if injection.delay.is_none() && injection.abort.is_none() {
        return None;
    }
    let _active = fault.begin()?;
    if let Some(time) = injection.delay {
        exchange.flag = Flag::DelayInjected;
        tokio::time::sleep(time).await;
    }
    let with = injection.abort?;
    exchange.flag = Flag::FaultInjected;
    let body = fault.abort.as_ref().map_or("", |abort| abort.body.as_str());
    let body = if body.is_empty() { "fault filter abort" } else { body };
    let grpc = exchange.request.grpc;
    let status = match with {
        AbortWith::Http(status) => status,
        // As Envoy answers those who do not speak gRPC.
        AbortWith::Grpc(_) => 200,
        AbortWith::Header => return None,
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = Reply::new(status, body, Flag::FaultInjected).response(grpc);
    if let AbortWith::Grpc(status) = with
        && grpc
    {
        response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(status));
    }
    Some(response)
}
