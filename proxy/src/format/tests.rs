use std::time::Duration;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn check(source: &str, expected: &str) {
    let headers = HeaderMap::from_iter([
        (HeaderName::from_static("x-a"), HeaderValue::from_static("one")),
        (HeaderName::from_static("x-b"), HeaderValue::from_bytes("größe".as_bytes()).unwrap()),
    ]);
    let connection = Connection {
        local: "10.0.0.1:8080".parse().unwrap(),
        remote: "10.0.0.8:4000".parse().unwrap(),
        direct: "[::ffff:10.0.0.9]:4000".parse().unwrap(),
        peer: Some("spiffe://west.example/ns/a/sa/b".to_owned()),
        server_name: None,
        behalf: crate::outbound::Behalf::default(),
    };
    let facts = Facts {
        request: Some(RequestView {
            method: "GET",
            scheme: "https",
            authority: "pay.shop",
            path_and_query: "/a?b=c",
            headers: &headers,
        }),
        connection: Some(&connection),
        remote: Some("1.2.3.4:0".parse().unwrap()),
        protocol: Some("HTTP/2"),
        start: Some(SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456)),
        status: Some(503),
        duration: Some(Duration::from_millis(30)),
        response_duration: Some(Duration::from_millis(20)),
        ..Facts::default()
    };
    assert_eq!(Format::parse(source).unwrap().write(&facts, "-"), expected, "{source}");
}

#[test]
fn operators_are_replaced_by_what_is_known() {
    for (source, expected) in [
        ("", ""),
        ("plain 100%%", "plain 100%"),
        ("%REQ(X-A)%", "one"),
        ("[%REQ(x-none?x-a)%]", "[one]"),
        ("%REQ(x-none)%/%RESP(x-a)%", "-/-"),
        ("%REQ(x-b):4%", "gr\u{f6}"),
        ("%REQ(x-b):3%", "gr"),
        ("%REQ(:METHOD)% %REQ(:path)% %PROTOCOL%", "GET /a?b=c HTTP/2"),
        ("%REQ_WITHOUT_QUERY(:path)%", "/a"),
        ("%REQ(host)% %REQUEST_SCHEME%", "pay.shop https"),
        ("%RESPONSE_CODE% %DURATION% %RESPONSE_TX_DURATION%", "503 30 10"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "1.2.3.4"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "10.0.0.9:4000 8080"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://west.example/ns/a/sa/b"),
        ("%UPSTREAM_HOST%", "-"),
        ("%START_TIME%", "2023-11-14T22:13:20.123Z"),
        ("%START_TIME(%s.%6f)%", "1700000000.123456"),
        ("%START_TIME(%a, %d %b %Y %T %Z)%", "Tue, 14 Nov 2023 22:13:20 UTC"),
    ] {
        check(source, expected);
    }
}

#[test]
fn what_is_not_known_or_not_closed_is_refused() {
    for (source, error) in [
        ("%NOPE%", FormatError::Unknown("NOPE".into())),
        ("%PROTOCOL(x)%", FormatError::Unknown("PROTOCOL(x)".into())),
        ("%REQ()%", FormatError::Argument("REQ()".into())),
        ("%REQ%", FormatError::Argument("REQ".into())),
        ("%REQ(a b)%", FormatError::Argument("REQ(a b)".into())),
        ("%REQ(a):x%", FormatError::Argument("REQ(a):x".into())),
        ("%START_TIME(%Q)%", FormatError::Argument("START_TIME(%Q)".into())),
        ("100%", FormatError::Open),
        ("%REQ(a", FormatError::Open),
    ] {
        assert_eq!(Format::parse(source).unwrap_err(), error, "{source}");
    }
}

#[test]
fn a_single_operator_may_have_no_value() {
    let facts = Facts::default();
    assert_eq!(Format::parse("%UPSTREAM_HOST%").unwrap().value(&facts), None);
    assert_eq!(Format::parse("a%UPSTREAM_HOST%").unwrap().value(&facts).unwrap(), "a-");
    assert_eq!(Format::parse("a").unwrap().literal(), Some("a"));
    assert!(Format::parse("%REQ(a)%").unwrap().reads_request());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(source in "[%A-Z():?a-z0-9 ]{0,40}") {
        if let Ok(format) = Format::parse(&source) {
            let _ = format.write(&Facts::default(), "-");
        }
    }
}
