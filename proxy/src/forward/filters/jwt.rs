//! Who a request comes from, as its tokens tell.

use std::{sync::Arc, time::SystemTime};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value};

use super::{Exchange, Outcome};
use crate::{
    config::JwtRoute,
    forward::reply::Reply,
    policy::jwt::{
        Found, Judgement, JwtAuthn, KeySet, KeySource, Keys, Provider, Requirement, Status, Token, find,
        judge, remove,
    },
    telemetry::Flag,
};

/// The namespace of what is told to other filters.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";
/// Longest URI that a refusal names, in bytes (Envoy's limit).
const MAX_REALM: usize = 256;

/// Keys that are at hand for this request.
struct Ring<'a> {
    authn: &'a JwtAuthn,
    /// By the position of the provider, where its keys are elsewhere and a token is its.
    fetched: Vec<Option<Arc<KeySet>>>,
}

impl Keys for Ring<'_> {
    fn of(&self, provider: usize) -> Result<&KeySet, Status> {
        match self.authn.providers.get(provider).map(|p| &p.keys) {
            None => Err(Status::NoKeys),
            Some(KeySource::Local(keys)) => Ok(keys),
            Some(KeySource::Remote(_)) => {
                self.fetched.get(provider).and_then(Option::as_deref).ok_or(Status::Fetch)
            }
        }
    }
}

pub(super) async fn check(
    exchange: &mut Exchange<'_>,
    authn: &JwtAuthn,
    route: Option<&JwtRoute>,
) -> Outcome {
    // Whatever comes of it: what a client says in these headers is not what a token says.
    for name in authn.reserved() {
        exchange.request.head.headers.remove(name);
    }
    if authn.bypass_cors_preflight && is_preflight(exchange) {
        return None;
    }
    let requirement = match route {
        None => authn.requirement(&exchange.request.head.view())?,
        Some(JwtRoute::Disabled) => return None,
        Some(JwtRoute::Named(name)) => match authn.named.get(name) {
            Some(requirement) => requirement,
            None => {
                let known: Vec<_> = authn.named.keys().map(String::as_str).collect();
                let text = format!(
                    "Failed JWT authentication: Wrong requirement_name: {name}. It should be one of [{}]",
                    known.join(",")
                );
                return Some(
                    Reply::new(StatusCode::FORBIDDEN, text, Flag::None).response(exchange.request.grpc),
                );
            }
        },
    };
    let judgement = find_out(exchange, authn, requirement).await;
    if let Err(status) = judgement.status {
        return Some(refusal(exchange, authn, status));
    }
    let mut told = false;
    for (provider, found, token) in &judgement.good {
        if let Some(provider) = authn.providers.get(*provider) {
            told |= accept(exchange, provider, found, token) && provider.clear_route_cache;
        }
    }
    if told {
        exchange.route_again();
    }
    None
}

fn is_preflight(exchange: &Exchange<'_>) -> bool {
    let head = &exchange.request.head;
    head.method == Method::OPTIONS
        && head.headers.contains_key(header::ORIGIN)
        && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

async fn find_out(exchange: &Exchange<'_>, authn: &JwtAuthn, requirement: &Requirement) -> Judgement {
    let shared = &exchange.chain.shared;
    let mut ring = Ring { authn, fetched: vec![None; authn.providers.len()] };
    for (provider, keys) in authn.providers.iter().zip(&mut ring.fetched) {
        if let KeySource::Remote(remote) = &provider.keys
            && concerned(exchange, provider)
        {
            *keys = shared.keys.get(shared, remote).await;
        }
    }
    let view = exchange.request.head.view();
    let judgement = judge(authn, requirement, &view, &ring, SystemTime::now());
    if judgement.status.is_ok() || judgement.unknown_keys.is_empty() {
        return judgement;
    }
    let mut newer = false;
    for at in &judgement.unknown_keys {
        if let Some(KeySource::Remote(remote)) = authn.providers.get(*at).map(|p| &p.keys)
            && let Some(slot) = ring.fetched.get_mut(*at)
            && let Some(known) = slot
            && let Some(keys) = shared.keys.newer(shared, remote, known).await
        {
            *slot = Some(keys);
            newer = true;
        }
    }
    if newer { judge(authn, requirement, &view, &ring, SystemTime::now()) } else { judgement }
}

/// Whether one of the tokens is of this provider, so that its keys are needed.
fn concerned(exchange: &Exchange<'_>, provider: &Provider) -> bool {
    find(&exchange.request.head.view(), &provider.locations).iter().any(|found| {
        let token = Token::parse(&found.text);
        token.is_ok_and(|token| provider.issuer.is_empty() || token.issuer == provider.issuer)
    })
}

fn refusal(exchange: &Exchange<'_>, authn: &JwtAuthn, status: Status) -> http::Response<super::ResponseBody> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::UNAUTHORIZED);
    if authn.strip_failure_response {
        return Reply::new(code, "", Flag::None).response(exchange.request.grpc);
    }
    let mut response = Reply::new(code, status.to_string(), Flag::None).response(exchange.request.grpc);
    let head = &exchange.request.head;
    let mut realm = format!("{}://{}{}", head.scheme, head.authority, head.path);
    // All of it is ASCII.
    realm.truncate(MAX_REALM);
    let mut value = format!("Bearer realm=\"{realm}\"");
    if status != Status::Missing {
        value.push_str(", error=\"invalid_token\"");
    }
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

/// Makes use of a token. Returns whether anything was told to others.
fn accept(exchange: &mut Exchange<'_>, provider: &Provider, found: &Found, token: &Token) -> bool {
    let head = &mut exchange.request.head;
    let mut told = false;
    if !provider.forward
        && let Some(path) = remove(&found.location, &mut head.headers, head.path.as_str())
        && let Ok(path) = path.parse()
    {
        head.path = path;
    }
    if let Some(name) = &provider.payload_header {
        let mut payload = token.payload().to_owned();
        while provider.pad_payload_header && !payload.len().is_multiple_of(4) {
            payload.push('=');
        }
        set(&mut head.headers, name, &payload);
    }
    for claim in &provider.claims {
        if let Some(value) = at(&token.claims, &claim.path) {
            set(&mut head.headers, &claim.header, &text(value));
            told = true;
        }
    }
    if let Some(key) = &provider.payload_in_metadata {
        let claims = normalized(&token.claims, &provider.space_delimited);
        exchange.metadata.extend(NAMESPACE, [(key.clone(), Value::Object(claims))]);
        told = true;
    }
    if let Some(key) = &provider.header_in_metadata {
        exchange.metadata.extend(NAMESPACE, [(key.clone(), Value::Object(token.head.clone()))]);
    }
    told
}

fn set(headers: &mut http::HeaderMap, name: &HeaderName, value: &str) {
    // What would be no header value is left out, and a client's was taken away before.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn at<'a>(claims: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(claims.get(first)?, |value, key| value.as_object()?.get(key))
}

/// Lists and objects as base64 of their JSON, everything else as it is.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => BASE64_STANDARD.encode(value.to_string()),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn normalized(claims: &Map<String, Value>, space_delimited: &[String]) -> Map<String, Value> {
    let mut claims = claims.clone();
    for name in space_delimited {
        if let Some(value) = claims.get_mut(name)
            && let Some(text) = value.as_str()
        {
            *value = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
        }
    }
    claims
}
