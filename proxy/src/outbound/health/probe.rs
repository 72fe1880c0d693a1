//! One check.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xds_proto::{
    Message,
    google::protobuf::{StringValue, UInt32Value},
};

use super::{super::dial::dial_to, Target};
use crate::{
    balance::Checked,
    config::{Checker, GrpcCheck, HealthCheck, HttpCheck},
    outbound::{BoxError, UpstreamCluster},
    tls::Offer,
};

/// Most of an answer that is read so that the connection can be used again.
const MAX_ANSWER: usize = 64 * 1024;
const IMMEDIATE_FAIL: &str = "x-envoy-immediate-health-check-fail";
const DEGRADED: &str = "x-envoy-degraded";

/// A connection for the next check.
#[derive(Debug, Default)]
pub(super) enum Kept {
    #[default]
    Nothing,
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// # Errors
/// The endpoint could not be asked.
pub(super) async fn run(
    cluster: &UpstreamCluster,
    check: &HealthCheck,
    target: &Target,
    kept: &mut Kept,
) -> Result<Checked, BoxError> {
    match &check.checker {
        Checker::Tcp { send, receive } => tcp(cluster, target, send, receive).await,
        Checker::Http(http) => {
            let request = http_request(http, name(target, &http.host, cluster))?;
            let response = exchange(cluster, target, http.http2, request, kept).await?;
            let status = i64::from(response.status().as_u16());
            let (immediate, degraded) =
                (response.headers().contains_key(IMMEDIATE_FAIL), response.headers().contains_key(DEGRADED));
            // A connection whose answer is not read to its end is not used again.
            if Limited::new(response.into_body(), MAX_ANSWER).collect().await.is_err() {
                *kept = Kept::Nothing;
            }
            Ok(judge(http, status, immediate, degraded))
        }
        Checker::Grpc(grpc) => {
            let request = grpc_request(grpc, name(target, &grpc.authority, cluster))?;
            let response = exchange(cluster, target, true, request, kept).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            Ok(serving(&parts.headers, &trailers, &body.to_bytes()))
        }
    }
}

fn judge(check: &HttpCheck, status: i64, immediate: bool, degraded: bool) -> Checked {
    let within = |ranges: &[std::ops::Range<i64>]| ranges.iter().any(|range| range.contains(&status));
    if within(&check.expected) && !immediate {
        Checked::Passed { degraded }
    } else if within(&check.retriable) && !immediate {
        Checked::Failed
    } else {
        Checked::Denied
    }
}

/// The endpoint's own name first, then the check's, then the cluster's: as in Envoy.
fn name<'a>(target: &'a Target, of_check: &'a str, cluster: &'a UpstreamCluster) -> &'a str {
    [&*target.hostname, of_check].into_iter().find(|name| !name.is_empty()).unwrap_or(&cluster.config.name)
}

fn request(
    method: Method,
    host: &str,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: Bytes,
) -> Result<Request<Full<Bytes>>, BoxError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse()?;
    let map = request.headers_mut();
    // A cluster's name need not be a host's: what cannot be said in a URI still fits into a header.
    map.insert(header::HOST, HeaderValue::try_from(host)?);
    map.insert(header::USER_AGENT, HeaderValue::from_static("Envoy/HC"));
    for (name, value) in headers {
        map.insert(name.clone(), value.clone());
    }
    Ok(request)
}

fn http_request(check: &HttpCheck, host: &str) -> Result<Request<Full<Bytes>>, BoxError> {
    let mut request = request(check.method.clone(), host, &check.path, &check.headers, Bytes::new())?;
    for name in &check.without {
        request.headers_mut().remove(name);
    }
    Ok(request)
}

fn grpc_request(check: &GrpcCheck, host: &str) -> Result<Request<Full<Bytes>>, BoxError> {
    // `HealthCheckRequest` has one string of number 1, as `StringValue` has.
    let message = StringValue { value: check.service.clone() }.encode_to_vec();
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.extend_from_slice(&message);
    let path = "/grpc.health.v1.Health/Check";
    let mut request = request(Method::POST, host, path, &check.headers, framed.freeze())?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

/// Any answer but "serving" is a denial: the endpoint could be asked.
fn serving(headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> Checked {
    const SERVING: u32 = 1;
    let status = trailers.get("grpc-status").or_else(|| headers.get("grpc-status"));
    let ok = status.is_some_and(|status| status.as_bytes() == b"0");
    let message = match body {
        [0, a, b, c, d, message @ ..] => {
            message.get(..u32::from_be_bytes([*a, *b, *c, *d]) as usize).unwrap_or_default()
        }
        _ => &[],
    };
    // `HealthCheckResponse` has one enumeration of number 1, as `UInt32Value` has a number.
    let state = UInt32Value::decode(message).map_or(0, |state| state.value);
    if ok && state == SERVING { Checked::Passed { degraded: false } } else { Checked::Denied }
}

async fn exchange(
    cluster: &UpstreamCluster,
    target: &Target,
    http2: bool,
    mut request: Request<Full<Bytes>>,
    kept: &mut Kept,
) -> Result<Response<Incoming>, BoxError> {
    let open = match kept {
        Kept::Nothing => false,
        Kept::Http1(sender) => sender.ready().await.is_ok(),
        Kept::Http2(sender) => sender.ready().await.is_ok(),
    };
    if !open {
        let offer = if http2 { Offer::Http2 } else { Offer::Http1 };
        let io = TokioIo::new(dial_to(cluster, target.socket, target.address, None, offer).await?);
        *kept = if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Kept::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Kept::Http1(sender)
        };
    }
    Ok(match kept {
        Kept::Nothing => return Err("no connection".into()),
        Kept::Http1(sender) => sender.send_request(request).await?,
        Kept::Http2(sender) => {
            if let Some(host) = request.headers_mut().remove(header::HOST) {
                let mut parts = std::mem::take(request.uri_mut()).into_parts();
                parts.scheme = Some(http::uri::Scheme::HTTP);
                parts.authority = Some(http::uri::Authority::try_from(host.as_bytes())?);
                *request.uri_mut() = Uri::from_parts(parts)?;
            }
            sender.send_request(request).await?
        }
    })
}

async fn tcp(
    cluster: &UpstreamCluster,
    target: &Target,
    send: &[u8],
    receive: &[Vec<u8>],
) -> Result<Checked, BoxError> {
    let mut io = dial_to(cluster, target.socket, target.address, None, Offer::Nothing).await?;
    io.write_all(send).await?;
    io.flush().await?;
    let mut seen = vec![];
    while !contains_in_order(&seen, receive) {
        if seen.len() > MAX_ANSWER {
            return Err("what was to come has not come within 64 KiB".into());
        }
        if io.read_buf(&mut seen).await? == 0 {
            return Err("closed before what was to come".into());
        }
    }
    Ok(Checked::Passed { degraded: false })
}

fn contains_in_order(mut seen: &[u8], wanted: &[Vec<u8>]) -> bool {
    wanted.iter().all(|block| {
        let at = seen.windows(block.len().max(1)).position(|window| window == block.as_slice());
        let rest = at.and_then(|at| seen.get(at + block.len()..));
        seen = rest.unwrap_or_default();
        rest.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_to_come_one_after_the_other_with_anything_in_between() {
        let wanted = [b"ab".to_vec(), b"cd".to_vec()];
        for (seen, good) in [("abcd", true), ("xabycdz", true), ("cdab", false), ("abc", false), ("", false)]
        {
            assert_eq!(contains_in_order(seen.as_bytes(), &wanted), good, "{seen}");
        }
        assert!(contains_in_order(b"", &[]));
        assert!(!contains_in_order(b"aab", &[b"ab".to_vec(), b"b".to_vec()]), "a byte counts once");
    }

    #[test]
    fn only_serving_with_status_0_is_serving() {
        let status =
            |value| HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(value))]);
        let none = HeaderMap::new();
        let passed = Checked::Passed { degraded: false };
        let body = |state: u8| vec![0, 0, 0, 0, 2, 8, state];
        assert_eq!(serving(&none, &status("0"), &body(1)), passed);
        for (headers, trailers, body) in [
            (none.clone(), status("0"), body(2)),
            (none.clone(), status("5"), body(1)),
            (status("12"), none.clone(), vec![]),
            (none.clone(), none.clone(), body(1)),
            (none.clone(), status("0"), vec![0, 255, 255, 255, 255, 8, 1]),
            (none.clone(), status("0"), vec![]),
        ] {
            assert_eq!(serving(&headers, &trailers, &body), Checked::Denied);
        }
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn a_status_is_good_bad_or_to_be_asked_again() {
        let check = HttpCheck {
            host: String::new(),
            path: "/".to_owned(),
            method: Method::GET,
            headers: vec![],
            without: vec![],
            expected: Vec::from_iter(Some(200..300)),
            retriable: Vec::from_iter(Some(500..504)),
            http2: false,
        };
        assert_eq!(judge(&check, 204, false, true), Checked::Passed { degraded: true });
        assert_eq!(judge(&check, 503, false, false), Checked::Failed);
        assert_eq!(judge(&check, 404, false, false), Checked::Denied);
        assert_eq!(judge(&check, 200, true, false), Checked::Denied);
    }
}
