//! The service as an HTTP server.

use ::http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;

use super::{
    Decision, Denial, Exchange, PARTIAL, Permit, Shown,
    ask::{any, clean, header as checked, joined},
};
use crate::{
    forward::hops,
    limits,
    outbound::{CallError, fetch},
    policy::authz::{AuthzHttp, ExtAuthz},
    route::OnExisting,
};

/// Names that the service wants taken away, with commas between them.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";

pub(super) async fn decide(
    exchange: &Exchange<'_>,
    authz: &ExtAuthz,
    service: &AuthzHttp,
    shown: Shown,
) -> Decision {
    match ask(exchange, authz, service, shown).await {
        Ok(answer) => understood(service, answer).unwrap_or_else(Decision::Error),
        Err(error) => Decision::Error(error),
    }
}

async fn ask(
    exchange: &Exchange<'_>,
    authz: &ExtAuthz,
    service: &AuthzHttp,
    shown: Shown,
) -> Result<Response<Bytes>, String> {
    let shared = &exchange.chain.shared;
    let cluster = shared
        .cluster(&service.cluster)
        .ok_or_else(|| CallError::NoCluster(service.cluster.clone()).to_string())?;
    let head = &exchange.request.head;
    let path = match &service.path_override {
        Some(path) => path.clone(),
        None => format!("{}{}", service.path_prefix, head.path),
    };
    let mut request = Request::builder()
        .method(head.method.clone())
        .uri(format!("http://{}{path}", head.authority))
        .body(shown.body)
        .map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    for name in head.headers.keys() {
        let text = name.as_str();
        let asked = authz.allowed_headers.as_deref().is_some_and(|allowed| any(allowed, text));
        let wanted = *name == header::AUTHORIZATION || asked || any(&service.allowed, text);
        if wanted
            && !any(&authz.disallowed_headers, text)
            && *name != header::CONTENT_LENGTH
            && let Ok(value) = HeaderValue::from_str(&clean(&joined(&head.headers, name)))
        {
            headers.insert(name, value);
        }
    }
    if let Some(partial) = shown.partial {
        headers.insert(PARTIAL, HeaderValue::from_static(if partial { "true" } else { "false" }));
    }
    for (name, value) in &service.add {
        headers.insert(name, value.clone());
    }
    let limit = limits::SERVICE_ANSWER_BYTES as usize;
    let answer = fetch(&cluster, request, limit, service.timeout).await;
    answer.map_err(|error| error.to_string())
}

fn understood(service: &AuthzHttp, answer: Response<Bytes>) -> Result<Decision, String> {
    let (mut parts, body) = answer.into_parts();
    if parts.status.is_server_error() {
        return Err(format!("the answer is {}", parts.status));
    }
    hops::strip_response(&mut parts.headers);
    let of_list = |parts: &::http::response::Parts, wanted: &dyn Fn(&str) -> bool| {
        let pair = |(name, value): (&HeaderName, &HeaderValue)| {
            wanted(name.as_str()).then(|| checked(name.as_str(), value.as_bytes()).ok()).flatten()
        };
        parts.headers.iter().filter_map(pair).collect::<Vec<_>>()
    };
    if parts.status != StatusCode::OK {
        let always = [header::WWW_AUTHENTICATE, header::LOCATION];
        let client = |name: &str| match &service.client {
            None => true,
            Some(list) => any(list, name) || always.iter().any(|one| one == name),
        };
        let headers = of_list(&parts, &client).into_iter().map(|(name, value)| (name, value, true)).collect();
        return Ok(Decision::Deny(Denial {
            status: parts.status.as_u16(),
            headers,
            body,
            metadata: Default::default(),
        }));
    }
    let set = of_list(&parts, &|name| any(&service.upstream, name));
    let append = of_list(&parts, &|name| any(&service.upstream_append, name));
    let how = |how: OnExisting| move |(name, value): (HeaderName, HeaderValue)| (name, value, how);
    let client = of_list(&parts, &|name| any(&service.client_on_success, name));
    let remove = parts.headers.get(TO_REMOVE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(Decision::Permit(Permit {
        set: set
            .into_iter()
            .map(how(OnExisting::Overwrite))
            .chain(append.into_iter().map(how(OnExisting::Append)))
            .collect(),
        remove: remove
            .split(',')
            .filter_map(|name| checked(name.trim(), b"").ok())
            .map(|(name, _)| name)
            .collect(),
        client: client.into_iter().map(|(name, value)| (name, value, true)).collect(),
        ..Permit::default()
    }))
}
