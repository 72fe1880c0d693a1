//! A request as it came, checked and cleaned. Pure.

use std::net::SocketAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery},
};
use rand::Rng;

use super::{
    hops,
    path::{Normal, normalize},
    service::Client,
    switch::Switch,
    trust,
};
use crate::{
    config::{Edge, HttpManager, StripPort, Underscores},
    route::{RequestView, split_port},
};

const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is sent on, without the form that one version of HTTP gives it.
#[derive(Debug, Clone)]
pub struct Head {
    /// `GET` and so on.
    pub method: Method,
    /// `http` or `https`, as the client used it as far as that is known.
    pub scheme: &'static str,
    /// Host and perhaps port.
    pub authority: Authority,
    /// Where there.
    pub path: PathAndQuery,
    /// Without `host`.
    pub headers: HeaderMap,
    /// The client, behind as many proxies as are trusted. The port is 0 where it is not known.
    pub remote: SocketAddr,
    /// The client is one of one's own (`internal_address_config`).
    pub internal: bool,
    /// What it is to switch to.
    pub switch: Option<Switch>,
    /// `HTTP/1.1` and so on: what the client speaks.
    pub protocol: &'static str,
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
    /// Where to ask instead.
    pub location: Option<String>,
}

const fn refuse(status: StatusCode, text: &'static str) -> Refusal {
    Refusal { status, text, location: None }
}

/// Checks a request and makes it one of this proxy's own.
///
/// # Errors
/// It is malformed, or asks for something that is not done.
pub fn prepare(
    parts: http::request::Parts,
    manager: &HttpManager,
    client: &Client,
    rng: &mut impl Rng,
) -> Result<Head, Refusal> {
    let http::request::Parts { mut method, uri, version, mut headers, extensions, .. } = parts;
    let edge = &manager.edge;
    if version == Version::HTTP_10 && !manager.accept_http_10 {
        return Err(refuse(StatusCode::UPGRADE_REQUIRED, "HTTP/1.0 is not served"));
    }
    let switch = match extensions.get::<hyper::ext::Protocol>() {
        Some(protocol) if method == Method::CONNECT => {
            // What it is in HTTP/1.1, and so to rules and routes.
            method = Method::GET;
            HeaderValue::from_str(protocol.as_str()).ok().map(Switch::Upgrade)
        }
        Some(_) => return Err(refuse(StatusCode::BAD_REQUEST, "only CONNECT has a protocol")),
        None if method == Method::CONNECT => Some(Switch::Connect),
        None if version <= Version::HTTP_11 => hops::upgrade(&headers).cloned().map(Switch::Upgrade),
        None => None,
    };
    // The library counts those of HTTP/1.1 only.
    if headers.len() > manager.max_headers_count as usize {
        return Err(refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers"));
    }
    // RFC 9112 3.2.3: only CONNECT has a target that is nothing but a host.
    if method != Method::CONNECT
        && version < Version::HTTP_2
        && uri.authority().is_some()
        && uri.scheme().is_none()
    {
        return Err(refuse(StatusCode::BAD_REQUEST, "the target is no path"));
    }
    underscores(&mut headers, edge.underscores)?;
    let authority = authority(&uri, &headers, version, manager.default_host.as_ref())?;
    let authority = plain_host(authority, edge, client.connection.local.port());
    let path = path(&uri, &method, edge)?;
    hops::strip_request(&mut headers);
    headers.remove(header::HOST);
    // Answered on this connection; upstreams are sent the body when it comes.
    headers.remove(header::EXPECT);
    headers.remove(X_FORWARDED_CLIENT_CERT);
    if manager.set_client_cert
        && let Some(value) = &client.certificate
    {
        headers.insert(X_FORWARDED_CLIENT_CERT, value.clone());
    }
    let connection = &client.connection;
    let believed = trust::judge(&mut headers, edge, client.scheme, connection.remote, connection.local);
    if let Some(via) = &edge.via {
        headers.append(header::VIA, via.clone());
    }
    let foreign = believed.edge && !manager.keep_request_id;
    if manager.generate_request_id && (foreign || !headers.contains_key(X_REQUEST_ID)) {
        headers.insert(X_REQUEST_ID, request_id(rng));
    }
    let scheme = edge.scheme.unwrap_or(believed.scheme);
    Ok(Head {
        method,
        scheme,
        authority,
        path,
        headers,
        remote: believed.remote,
        internal: believed.internal,
        switch,
        protocol: match version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        },
    })
}

fn path(uri: &Uri, method: &Method, edge: &Edge) -> Result<PathAndQuery, Refusal> {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let whole_server = path.as_str() == "*" && *method == Method::OPTIONS;
    if !path.as_str().starts_with('/') && !whole_server {
        return Err(refuse(StatusCode::BAD_REQUEST, "the path must begin with '/'"));
    }
    match normalize(&path, edge) {
        Normal::Same => Ok(path),
        Normal::Path(path) => Ok(path),
        Normal::Refused => Err(refuse(StatusCode::BAD_REQUEST, "the path is not normal")),
        Normal::Redirect(to) => {
            Err(Refusal { location: Some(to), ..refuse(StatusCode::TEMPORARY_REDIRECT, "") })
        }
    }
}

fn underscores(headers: &mut HeaderMap, action: Underscores) -> Result<(), Refusal> {
    if action == Underscores::Allow {
        return Ok(());
    }
    let with: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    if !with.is_empty() && action == Underscores::Reject {
        return Err(refuse(StatusCode::BAD_REQUEST, "a header has '_' in its name"));
    }
    with.iter().for_each(|name| drop(headers.remove(name)));
    Ok(())
}

fn plain_host(authority: Authority, edge: &Edge, local_port: u16) -> Authority {
    let (host, port) = split_port(authority.as_str());
    let host = if edge.strip_host_dot { host.strip_suffix('.').unwrap_or(host) } else { host };
    let stripped = match edge.strip_port {
        StripPort::Never => false,
        StripPort::Matching => port.and_then(|p| p.parse().ok()) == Some(local_port),
        StripPort::Any => true,
    };
    let new = match port {
        Some(port) if !stripped => format!("{host}:{port}"),
        _ => host.to_owned(),
    };
    if new == authority.as_str() {
        return authority;
    }
    Authority::try_from(new.as_str()).unwrap_or(authority)
}

/// RFC 9112 3.2: exactly one `host`, unless the target has an authority, which then counts alone.
fn authority(
    uri: &Uri,
    headers: &HeaderMap,
    version: Version,
    default: Option<&HeaderValue>,
) -> Result<Authority, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().or(default.filter(|_| version == Version::HTTP_10));
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
    use crate::config::{Codec, EscapedSlashes, H2Settings, RouteSource, ServerHeader, Times};
    use crate::route::{HostIndex, RouteTable};
    use crate::{outbound::Behalf, policy::Connection};

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
            edge: Edge { use_remote_address: true, append_forwarded_for: true, ..Edge::default() },
            times: Times {
                request_headers: None,
                request: None,
                delayed_close: None,
                connection: None,
                stream: None,
                requests: None,
            },
            upgrades: vec![],
            set_client_cert: true,
            generate_request_id: true,
            keep_request_id: true,
            request_id_in_response: false,
            server_name: HeaderValue::from_static("isthmus"),
            server_header: ServerHeader::Overwrite,
            max_request_headers_bytes: 60 * 1024,
            max_headers_count: 100,
            idle_timeout: Duration::from_secs(1),
            stream_idle_timeout: None,
            accept_http_10: false,
            default_host: None,
            h2: H2Settings {
                max_concurrent_streams: 1,
                stream_window: 65_535,
                connection_window: 65_535,
                ping_interval: Duration::from_secs(1),
                ping_timeout: Duration::from_secs(1),
                allow_connect: false,
            },
        }
    }

    fn check(request: Request<()>, cert: Option<&'static str>) -> Result<Head, Refusal> {
        check_by(request, cert, &manager())
    }

    fn check_by(
        request: Request<()>,
        cert: Option<&'static str>,
        manager: &HttpManager,
    ) -> Result<Head, Refusal> {
        let client = Client {
            connection: Connection {
                local: "10.0.0.1:8080".parse().unwrap(),
                remote: "[::ffff:10.0.0.9]:4000".parse().unwrap(),
                direct: "[::ffff:10.0.0.9]:4000".parse().unwrap(),
                peer: None,
                server_name: None,
                behalf: Behalf::default(),
            },
            scheme: "http",
            certificate: cert.map(HeaderValue::from_static),
            peer_certificate: None,
        };
        prepare(request.into_parts().0, manager, &client, &mut StdRng::seed_from_u64(1))
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
    fn an_id_from_outside_is_kept_only_where_asked_for() {
        let request =
            || Request::get("/").header("host", "a").header("x-request-id", "mine").body(()).unwrap();
        let mut manager = HttpManager { keep_request_id: false, ..manager() };
        assert_ne!(check_by(request(), None, &manager).unwrap().headers["x-request-id"], "mine");
        manager.edge.use_remote_address = false;
        assert_eq!(check_by(request(), None, &manager).unwrap().headers["x-request-id"], "mine");
    }

    #[test]
    fn hosts_paths_and_header_names_are_written_as_the_manager_wants_them() {
        let mut manager = manager();
        manager.edge = Edge {
            normalize_path: true,
            escaped_slashes: EscapedSlashes::Redirect,
            strip_port: StripPort::Matching,
            strip_host_dot: true,
            underscores: Underscores::Drop,
            via: Some(HeaderValue::from_static("isthmus")),
            ..manager.edge
        };
        let request = |path: &str, host: &str| {
            Request::get(path).header("host", host).header("x_y", "1").body(()).unwrap()
        };
        let head = check_by(request("/a/../b", "pay.shop.:8080"), None, &manager).unwrap();
        assert_eq!((head.authority.as_str(), head.path.as_str()), ("pay.shop", "/b"));
        assert!(!head.headers.contains_key("x_y"));
        assert_eq!(head.headers["via"], "isthmus");
        let head = check_by(request("/", "pay.shop.:8081"), None, &manager).unwrap();
        assert_eq!(head.authority.as_str(), "pay.shop:8081");
        let refusal = check_by(request("/a%2Fb", "a"), None, &manager).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.location.as_deref()), (307, Some("/a/b")));
        manager.edge.underscores = Underscores::Reject;
        assert_eq!(check_by(request("/", "a"), None, &manager).unwrap_err().status, 400);
        manager.max_headers_count = 1;
        assert_eq!(check_by(request("/", "a"), None, &manager).unwrap_err().status, 431);
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
            (Request::get("admin").header("host", "a").body(()), 400),
        ] {
            assert_eq!(check(request.unwrap(), None).unwrap_err().status.as_u16(), status);
        }
    }

    #[test]
    fn what_a_request_is_to_switch_to_is_seen() {
        let websocket = Request::get("/")
            .header("host", "a")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(());
        let head = check(websocket.unwrap(), None).unwrap();
        assert_eq!(head.switch, Some(Switch::Upgrade(HeaderValue::from_static("websocket"))));
        assert!(!head.headers.contains_key("upgrade"));
        let head = check(Request::connect("a:80").body(()).unwrap(), None).unwrap();
        assert_eq!((head.switch, head.authority.as_str()), (Some(Switch::Connect), "a:80"));
        let mut extended = Request::connect("http://a/chat").body(()).unwrap();
        extended.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        *extended.version_mut() = Version::HTTP_2;
        let head = check(extended, None).unwrap();
        assert_eq!((head.method, head.path.as_str()), (Method::GET, "/chat"));
        assert!(head.switch.is_some());
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
