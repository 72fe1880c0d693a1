//! A service decides whether a request may pass.

mod ask;
mod grpc;
mod http;

use ::http::{HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Exchange, Outcome, buffer};
use crate::{
    forward::{body::ResponseBody, reply::Reply},
    policy::authz::{AuthzBody, AuthzRoute, AuthzService, ExtAuthz},
    route::OnExisting,
    telemetry::Flag,
};

const NAMESPACE: &str = "envoy.filters.http.ext_authz";
const FAILURE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
const PARTIAL: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");

/// What the service says.
#[derive(Debug)]
enum Decision {
    Permit(Permit),
    Deny(Denial),
    /// It says that it cannot decide, or what it says makes no sense.
    Error(String),
}

/// What is done to a request that may pass.
#[derive(Debug, Default)]
struct Permit {
    /// Headers for the application.
    set: Vec<(HeaderName, HeaderValue, OnExisting)>,
    remove: Vec<HeaderName>,
    /// Headers for the client; whether they are added to what is there.
    client: Vec<(HeaderName, HeaderValue, bool)>,
    /// The query, where it changes.
    query_set: Vec<(String, String)>,
    query_remove: Vec<String>,
    metadata: Map<String, Value>,
}

/// The answer to a request that may not.
#[derive(Debug)]
struct Denial {
    status: u16,
    headers: Vec<(HeaderName, HeaderValue, bool)>,
    body: Bytes,
    metadata: Map<String, Value>,
}

/// What the service is shown of the body.
#[derive(Debug, Default)]
struct Shown {
    body: Bytes,
    /// Whether that is not all of it. `None`: it is not shown at all.
    partial: Option<bool>,
}

pub(super) async fn check(
    exchange: &mut Exchange<'_>,
    authz: &ExtAuthz,
    route: Option<&AuthzRoute>,
) -> Outcome {
    let (context, body) = match route {
        Some(AuthzRoute::Disabled) => return None,
        Some(AuthzRoute::Check { context, body }) => (Some(context), body.unwrap_or(authz.body)),
        None => (None, authz.body),
    };
    if !authz.enabled.takes(&mut rand::rng()) {
        return None;
    }
    let shown = match body {
        None => Shown::default(),
        Some(settings) => match show(exchange, settings).await {
            Ok(shown) => shown,
            Err(answer) => return Some(answer),
        },
    };
    let decision = match &authz.service {
        AuthzService::Grpc(target) => {
            let as_bytes = body.is_some_and(|body| body.as_bytes);
            grpc::decide(exchange, authz, target, context, &shown, as_bytes).await
        }
        AuthzService::Http(service) => http::decide(exchange, authz, service, shown).await,
    };
    match decision {
        Decision::Permit(permit) => {
            permit_it(exchange, authz, permit);
            None
        }
        Decision::Deny(denial) => Some(deny(exchange, authz, denial)),
        Decision::Error(error) => {
            tracing::debug!(%error, "a request cannot be decided on");
            if authz.allow_on_failure {
                if authz.tell_allowed {
                    let yes = HeaderValue::from_static("true");
                    exchange.request.head.headers.insert(FAILURE_ALLOWED, yes);
                }
                return None;
            }
            exchange.flag = Flag::Unauthorized;
            let status = StatusCode::from_u16(authz.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
            Some(Reply::new(status, "", Flag::Unauthorized).response(exchange.request.grpc))
        }
    }
}

async fn show(exchange: &mut Exchange<'_>, settings: AuthzBody) -> Result<Shown, Response<ResponseBody>> {
    let whole = if settings.partial {
        // What is more than it is shown waits for its turn.
        buffer::read_some(exchange, settings.max).await?
    } else {
        buffer::read(exchange, settings.max).await?
    };
    if !whole && !settings.partial {
        return Err(buffer::too_large(exchange));
    }
    Ok(Shown { body: exchange.request.body.seen(settings.max), partial: Some(!whole) })
}

fn permit_it(exchange: &mut Exchange<'_>, authz: &ExtAuthz, permit: Permit) {
    let Permit { set, remove, client, query_set, query_remove, metadata } = permit;
    let changed = !(set.is_empty() && remove.is_empty() && query_set.is_empty() && query_remove.is_empty());
    let head = &mut exchange.request.head;
    for (name, value, on_existing) in set {
        let there = head.headers.contains_key(&name);
        match (on_existing, there) {
            (OnExisting::Append, true) => drop(head.headers.append(name, value)),
            // As in Envoy: what is to be added to nothing is left out.
            (OnExisting::Append | OnExisting::OverwriteOnly, false) | (OnExisting::Keep, true) => {}
            (OnExisting::Overwrite | OnExisting::OverwriteOnly, true)
            | (OnExisting::Overwrite | OnExisting::Keep, false) => drop(head.headers.insert(name, value)),
        }
    }
    for name in remove {
        head.headers.remove(name);
    }
    if let Some(path) = ask::query(head.path.as_str(), &query_set, &query_remove)
        && let Ok(path) = path.parse()
    {
        head.path = path;
    }
    for (name, value, append) in client {
        exchange.answer_with(name, value, append);
    }
    if authz.take_metadata && !metadata.is_empty() {
        exchange.metadata.extend(NAMESPACE, metadata);
    }
    if changed && authz.clear_route_cache {
        exchange.route_again();
    }
}

fn deny(exchange: &mut Exchange<'_>, authz: &ExtAuthz, denial: Denial) -> Response<ResponseBody> {
    exchange.flag = Flag::Unauthorized;
    let Denial { status, headers, mut body, metadata } = denial;
    if authz.take_metadata && !metadata.is_empty() {
        exchange.metadata.extend(NAMESPACE, metadata);
    }
    if let Some(max) = authz.max_denied_body {
        body.truncate(max);
    }
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
    let text = String::from_utf8_lossy(&body).into_owned();
    let mut response = Reply::new(status, text, Flag::Unauthorized).response(exchange.request.grpc);
    for (name, value, append) in headers {
        if append {
            response.headers_mut().append(name, value);
        } else {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
