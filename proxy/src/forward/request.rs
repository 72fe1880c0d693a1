//! A request as it came, checked and cleaned. Pure.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery},
};
use rand::Rng;

use super::hops;
use crate::{config::HttpManager, route::RequestView};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is sent on, without the form that one version of HTTP gives it.
#[derive(Debug, Clone)]
pub struct Head {
    /// `GET` and so on.
    pub method: Method,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Host and perhaps port.
    pub authority: Authority,
    /// Where there.
    pub path: PathAndQuery,
    /// Without `host`.
    pub headers: HeaderMap,
}

impl Head {
    /// What routes are chosen by.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_str(),
            scheme: self.scheme,
            authority: self.authority.as_str(),
            path_and_query: self.path.as_str(),
            headers: &self.headers,
        }
    }
}

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// For people.
    pub text: &'static str,
}

const fn refuse(status: StatusCode, text: &'static str) -> Refusal {
    Refusal { status, text }
}

/// Checks a request and makes it one of this proxy's own.
///
/// * `client_cert` is the value of `x-forwarded-client-cert` for a verified client; whatever the client says there is removed.
///
/// # Errors
/// It is malformed, or asks for something that is not done.
pub fn prepare(
    parts: http::request::Parts,
    manager: &HttpManager,
    scheme: &'static str,
    client: SocketAddr,
    client_cert: Option<&HeaderValue>,
    rng: &mut impl Rng,
) -> Result<Head, Refusal> {
    let http::request::Parts { method, uri, version, mut headers, .. } = parts;
    if version == Version::HTTP_10 && !manager.accept_http_10 {
        return Err(refuse(StatusCode::UPGRADE_REQUIRED, "HTTP/1.0 is not served"));
    }
    if method == Method::CONNECT {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported"));
    }
    if version <= Version::HTTP_11 && hops::upgrade(&headers).is_some() {
        return Err(refuse(StatusCode::FORBIDDEN, "protocol upgrades are not supported"));
    }
    let authority = authority(&uri, &headers, version)?;
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let whole_server = path.as_str() == "*" && method == Method::OPTIONS;
    if !path.as_str().starts_with('/') && !whole_server {
        return Err(refuse(StatusCode::BAD_REQUEST, "the path must begin with '/'"));
    }
    hops::strip_request(&mut headers);
    headers.remove(header::HOST);
    // Answered on this connection; upstreams are sent the body when it comes.
    headers.remove(header::EXPECT);
    headers.remove(X_FORWARDED_CLIENT_CERT);
    if manager.set_client_cert
        && let Some(value) = client_cert
    {
        headers.insert(X_FORWARDED_CLIENT_CERT, value.clone());
    }
    if manager.append_forwarded_for {
        forwarded_for(&mut headers, client);
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(scheme));
    if manager.generate_request_id && !headers.contains_key(X_REQUEST_ID) {
        headers.insert(X_REQUEST_ID, request_id(rng));
    }
    Ok(Head { method, scheme, authority, path, headers })
}

/// RFC 9112 3.2: exactly one `host`, unless the target has an authority, which then counts alone.
fn authority(uri: &Uri, headers: &HeaderMap, version: Version) -> Result<Authority, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(refuse(StatusCode::BAD_REQUEST, "more than one host header"));
    }
    let authority = match (uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|_| refuse(StatusCode::BAD_REQUEST, "the host header is no host"))?,
        (None, None) if version == Version::HTTP_10 => {
            return Err(refuse(StatusCode::BAD_REQUEST, "no host"));
        }
        (None, None) => return Err(refuse(StatusCode::BAD_REQUEST, "no host header")),
    };
    if authority.as_str().contains('@') {
        return Err(refuse(StatusCode::BAD_REQUEST, "the host has a user name"));
    }
    Ok(authority)
}

fn forwarded_for(headers: &mut HeaderMap, client: SocketAddr) {
    let ip = client.ip().to_canonical().to_string();
    let value = match headers.get(X_FORWARDED_FOR) {
        None => HeaderValue::from_str(&ip).ok(),
        Some(_) => {
            let mut all: Vec<u8> = vec![];
            for value in headers.get_all(X_FORWARDED_FOR) {
                all.extend_from_slice(value.as_bytes());
                all.extend_from_slice(b", ");
            }
            all.extend_from_slice(ip.as_bytes());
            HeaderValue::from_bytes(&all).ok()
        }
    };
    if let Some(value) = value {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// A UUID of version 4 (RFC 9562 5.4).
fn request_id(rng: &mut impl Rng) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes: [u8; 16] = rng.random();
    bytes[6] = (bytes[6] & 0x0F) | 0x40;
    bytes[8] = (bytes[8] & 0x3F) | 0x80;
    let mut text = Vec::with_capacity(36);
    for (at, byte) in bytes.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push(b'-');
        }
        text.push(HEX[usize::from(byte >> 4)]);
        text.push(HEX[usize::from(byte & 0x0F)]);
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use http::Request;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::config::{Codec, H2Settings, RouteSource, ServerHeader};
    use crate::route::{HostIndex, RouteTable};

    pub(crate) fn manager() -> HttpManager {
        let table = RouteTable {
            name: String::new(),
            vhosts: vec![],
            ignore_port: false,
            index: HostIndex::default(),
        };
        HttpManager {
            stat_prefix: String::new(),
            codec: Codec::Auto,
            routes: RouteSource::Inline(Arc::new(table)),
            filters: vec![],
            append_forwarded_for: true,
            set_client_cert: true,
            generate_request_id: true,
            request_id_in_response: false,
            server_name: HeaderValue::from_static("isthmus"),
            server_header: ServerHeader::Overwrite,
            max_request_headers_bytes: 60 * 1024,
            max_headers_count: 100,
            idle_timeout: Duration::from_secs(1),
            stream_idle_timeout: None,
            accept_http_10: false,
            h2: H2Settings {
                max_concurrent_streams: 1,
                stream_window: 65_535,
                connection_window: 65_535,
                ping_interval: Duration::from_secs(1),
                ping_timeout: Duration::from_secs(1),
            },
        }
    }

    fn check(request: Request<()>, cert: Option<&'static str>) -> Result<Head, Refusal> {
        let cert = cert.map(HeaderValue::from_static);
        let client = "[::ffff:10.0.0.9]:4000".parse().unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        prepare(request.into_parts().0, &manager(), "http", client, cert.as_ref(), &mut rng)
    }

    #[test]
    fn what_a_client_says_about_certificates_is_never_passed_on() {
        let request = || {
            Request::get("/a?b")
                .header("host", "pay")
                .header("x-forwarded-client-cert", "URI=spiffe://evil/x")
        };
        let head = check(request().body(()).unwrap(), None).unwrap();
        assert!(!head.headers.contains_key("x-forwarded-client-cert"));
        let head = check(request().body(()).unwrap(), Some("URI=spiffe://a/b")).unwrap();
        assert_eq!(head.headers["x-forwarded-client-cert"], "URI=spiffe://a/b");
        let request = request().header("connection", "x-forwarded-client-cert").body(()).unwrap();
        assert_eq!(
            check(request, Some("URI=spiffe://a/b")).unwrap().headers["x-forwarded-client-cert"],
            "URI=spiffe://a/b"
        );
    }

    #[test]
    fn the_client_is_added_and_a_request_id_made_where_missing() {
        let request = Request::get("/").header("host", "pay").header("x-forwarded-for", "1.2.3.4");
        let head = check(request.body(()).unwrap(), None).unwrap();
        assert_eq!(head.headers["x-forwarded-for"], "1.2.3.4, 10.0.0.9");
        assert_eq!(head.headers["x-forwarded-proto"], "http");
        let id = head.headers["x-request-id"].to_str().unwrap();
        assert!(id.len() == 36 && id.as_bytes()[14] == b'4', "{id}");
        let request =
            Request::get("/").header("host", "pay").header("x-request-id", "mine").body(()).unwrap();
        assert_eq!(check(request, None).unwrap().headers["x-request-id"], "mine");
    }

    #[test]
    fn ambiguous_or_unsupported_requests_are_refused() {
        let get = || Request::get("/");
        for (request, status) in [
            (get().body(()), 400),
            (get().header("host", "a").header("host", "b").body(()), 400),
            (get().header("host", "u@a").body(()), 400),
            (get().header("host", "a b").body(()), 400),
            (get().header("host", "a").version(Version::HTTP_10).body(()), 426),
            (
                get()
                    .header("host", "a")
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket")
                    .body(()),
                403,
            ),
            (Request::connect("a:80").body(()), 405),
        ] {
            assert_eq!(check(request.unwrap(), None).unwrap_err().status.as_u16(), status);
        }
    }

    #[test]
    fn an_authority_in_the_target_counts_alone() {
        let request = Request::get("http://a/x").header("host", "b").body(()).unwrap();
        let head = check(request, None).unwrap();
        assert_eq!((head.authority.as_str(), head.path.as_str()), ("a", "/x"));
        assert!(!head.headers.contains_key("host"));
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(name in "[a-z-]{1,20}", value in prop::collection::vec(32_u8..=254, 0..50)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let Ok(request) = Request::get("/").header(name, value).body(()) else { return Ok(()) };
            let _ = check(request, None);
        }
    }
}
