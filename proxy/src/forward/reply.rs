//! Answers that this proxy makes itself, in Envoy's words.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use super::body::ResponseBody;
use crate::{
    config::{HttpManager, ServerHeader},
    telemetry::Flag,
};

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const DROP_OVERLOAD: HeaderName = HeaderName::from_static("x-envoy-drop-overload");
const LOCAL_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-local-overloaded");
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// A local answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: StatusCode,
    /// For people; may be empty.
    pub text: String,
    /// For the log.
    pub flag: Flag,
}

impl Reply {
    /// Any of them.
    pub fn new(status: StatusCode, text: impl Into<String>, flag: Flag) -> Self {
        Self { status, text: text.into(), flag }
    }

    /// No route matches.
    pub fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "", Flag::NoRoute)
    }

    /// A rule denies it.
    pub fn access_denied() -> Self {
        Self::new(StatusCode::FORBIDDEN, "RBAC: access denied", Flag::None)
    }

    /// The cluster does not exist.
    pub fn no_cluster(status: u16) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        Self::new(status, "", Flag::NoCluster)
    }

    /// The control plane wants a part of the requests turned away.
    pub fn drop_overload() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "drop overload", Flag::DropOverload)
    }

    /// This proxy has too much to do.
    pub fn overloaded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overload", Flag::Overloaded)
    }

    /// Nobody to send to.
    pub fn no_healthy_upstream() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", Flag::NoHealthyUpstream)
    }

    /// The last attempt failed without an answer.
    pub fn reset(reason: &str, flag: Flag) -> Self {
        let text =
            format!("upstream connect error or disconnect/reset before headers. reset reason: {reason}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text, flag)
    }

    /// The route's time is over.
    pub fn timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream request timeout", Flag::Timeout)
    }

    /// The answer. To a gRPC client it is one in gRPC's terms.
    pub fn response(self, grpc: bool) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::Empty);
        let overloaded = match self.flag {
            Flag::Overflow => Some(OVERLOADED),
            Flag::DropOverload => Some(DROP_OVERLOAD),
            Flag::Overloaded => Some(LOCAL_OVERLOADED),
            _ => None,
        };
        if grpc {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(self.status)));
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.text)) {
                headers.insert(GRPC_MESSAGE, message);
            }
        } else {
            *response.status_mut() = self.status;
            if !self.text.is_empty() {
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                *response.body_mut() = ResponseBody::text(self.text);
            }
        }
        if let Some(name) = overloaded {
            response.headers_mut().insert(name, HeaderValue::from_static("true"));
        }
        response
    }
}

/// gRPC's mapping of HTTP statuses (`http-grpc-status-mapping.md`).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' => encoded.push_str("%25"),
            b' '..=b'~' => encoded.push(byte.into()),
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// What every answer gets, an endpoint's or a local one.
pub fn finish(response: &mut Response<ResponseBody>, manager: &HttpManager, request_id: Option<HeaderValue>) {
    let headers = response.headers_mut();
    match manager.server_header {
        ServerHeader::Overwrite => {
            headers.insert(header::SERVER, manager.server_name.clone());
        }
        ServerHeader::IfAbsent => {
            headers.entry(header::SERVER).or_insert_with(|| manager.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    if let Some(via) = &manager.edge.via {
        headers.append(header::VIA, via.clone());
    }
    if let Some(id) = request_id {
        headers.insert(super::request::X_REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_gets_its_kind_of_error() {
        let response = Reply::no_healthy_upstream().response(true);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
        let response = Reply::no_healthy_upstream().response(false);
        assert_eq!(response.status(), 503);
        assert_eq!(percent_encoded("50% ü"), "50%25 %C3%BC");
    }
}
