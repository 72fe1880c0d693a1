//! Headers that belong to one connection and are not passed on (RFC 9110 section 7.6.1).

use http::{HeaderMap, HeaderName, HeaderValue, header};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Headers that a client cannot have removed by naming them in `connection`: they frame the message, or say who it is from.
const PROTECTED: [HeaderName; 5] =
    [header::HOST, header::CONTENT_LENGTH, header::TRAILER, header::AUTHORIZATION, header::COOKIE];

/// Removes them from a request. `te: trailers` stays: gRPC asks for it end to end.
pub(super) fn strip_request(headers: &mut HeaderMap) {
    // The common request has none of them.
    let trailers = headers.remove(header::TE).is_some_and(|te| {
        let mut words = te.as_bytes().split(|b| *b == b',');
        words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    strip(headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes them from an answer.
pub(super) fn strip_response(headers: &mut HeaderMap) {
    // The chunks were what counted (RFC 9112 6.3), and the length may be another.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    strip(headers);
}

fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|word| HeaderName::from_bytes(word.trim_ascii()).ok())
            .filter(|name| !PROTECTED.contains(name) && !name.as_str().starts_with("x-forwarded-"))
            .collect();
        headers.remove(header::CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    for name in
        [&KEEP_ALIVE, &PROXY_CONNECTION, &HTTP2_SETTINGS, &header::TRANSFER_ENCODING, &header::UPGRADE]
    {
        headers.remove(name);
    }
}

/// Whether anything is said about another protocol than `h2c`, in earnest or not.
pub(super) fn asks_to_switch(headers: &HeaderMap) -> bool {
    headers.get_all(header::UPGRADE).iter().any(|to| !to.as_bytes().eq_ignore_ascii_case(b"h2c"))
}

/// What a client wants to switch to, if anything. An offer of `h2c` is not one: a server may go on as if it were
/// not there (RFC 9110 7.8), and RFC 9113 has withdrawn it.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<&HeaderValue> {
    let named = headers.get_all(header::CONNECTION).iter().any(|value| {
        let mut words = value.as_bytes().split(|b| *b == b',');
        words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    headers.get(header::UPGRADE).filter(|to| named && !to.as_bytes().eq_ignore_ascii_case(b"h2c"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn headers_of_one_connection_end_here() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("x-public", "1"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
        ]);
        strip_request(&mut headers);
        assert_eq!(headers, map(&[("x-public", "1"), ("te", "trailers")]));
    }

    #[test]
    fn a_client_cannot_have_framing_or_identity_removed() {
        let mut headers = map(&[
            ("connection", "content-length, authorization, x-forwarded-for, host"),
            ("content-length", "3"),
            ("authorization", "x"),
            ("x-forwarded-for", "10.0.0.1"),
            ("host", "a"),
        ]);
        strip_request(&mut headers);
        assert_eq!(headers.len(), 4);
    }

    #[test]
    fn only_a_real_upgrade_is_one() {
        assert!(upgrade(&map(&[("connection", "Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgrade(&map(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&map(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
    }
}
