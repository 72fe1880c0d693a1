//! RFC 9113 (HTTP/2), on a client's connection: frames by hand, and what the origin saw of them.

use xds_proto::google::protobuf::UInt32Value;

use crate::{
    origin::{Does, Origin},
    rfc9112::setup,
    wire::*,
};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    GET.iter().chain(more).copied().collect()
}

#[tokio::test]
async fn section_8_1_1_and_8_3_malformed_requests_are_errors_of_their_stream() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let without = |name: &str| GET.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let mut late = without(":path");
    late.extend([("x", "y"), (":path", "/")]);
    let cases = [
        ("pseudo header after a header", late),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("two paths", with(&[(":path", "/2")])),
        ("unknown pseudo header", with(&[(":x", "y")])),
        ("status in a request", with(&[(":status", "200")])),
        ("upper case", with(&[("X-Upper", "y")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "1")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("te", with(&[("te", "gzip")])),
        ("CR LF in a value", with(&[("x", "a\r\ny: b")])),
        ("LF in a value", with(&[("x", "a\nb")])),
        ("NUL in a value", with(&[("x", "a\0b")])),
        ("CR LF in a name", with(&[("x\r\ny", "a")])),
        ("space in a name", with(&[("x y", "a")])),
        ("empty name", with(&[("", "a")])),
        ("CR LF in the path", {
            let mut all = without(":path");
            all.insert(0, (":path", "/ HTTP/1.1\r\nhost: a\r\n\r\nGET /smuggled"));
            all
        }),
        ("space in the path", {
            let mut all = without(":path");
            all.insert(0, (":path", "/a b"));
            all
        }),
        ("CR LF in the authority", {
            let mut all = without(":authority");
            all.insert(0, (":authority", "a\r\nx: y"));
            all
        }),
        ("space in the method", {
            let mut all = without(":method");
            all.insert(0, (":method", "GET /smuggled HTTP/1.1\r\n"));
            all
        }),
        ("a length and no body", with(&[("content-length", "5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
    ];
    for (name, headers) in cases {
        let mut client = H2::connect(setup.at).await;
        client.headers(1, END_STREAM, &headers).await;
        let outcome = client.outcome(1).await;
        assert_ne!(outcome, Some(Ok(true)), "{name}");
        assert_eq!(setup.origin.seen(), "", "{name}");
    }
}

#[tokio::test]
async fn section_8_1_1_a_body_must_be_as_long_as_it_says() {
    let setup = setup(Origin::content().await, |_| {}).await;
    for body in ["hell", "hello!"] {
        let mut client = H2::connect(setup.at).await;
        let mut post = with(&[("content-length", "5")]);
        post[0] = (":method", "POST");
        client.headers(1, 0, &post).await;
        client.send(&frame(DATA, END_STREAM, 1, body.as_bytes())).await;
        // The origin may have answered the head; the stream ends in an error all the same.
        let error = loop {
            let Some(frame) = client.next().await else { break None };
            match frame.kind {
                RST_STREAM => break Some(frame.code()),
                DATA | HEADERS if frame.flags & END_STREAM != 0 => break None,
                _ => {}
            }
        };
        assert_eq!(error, Some(PROTOCOL_ERROR), "{body}");
    }
    let seen = setup.origin.seen();
    assert!(!seen.contains("hello!"), "{seen}");
}

#[tokio::test]
async fn section_8_3_1_authority_counts_and_host_does_not_contradict_it() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let mut client = H2::connect(setup.at).await;
    client.headers(1, END_STREAM, &with(&[("host", "evil.shop")])).await;
    assert!(client.outcome(1).await.is_some());
    assert!(!setup.origin.seen().contains("evil"), "{}", setup.origin.seen());
}

#[tokio::test]
async fn section_5_1_2_streams_beyond_the_limit_are_refused() {
    let setup = setup(Origin::start(|_| Does::Silent).await, |manager| {
        let options = manager.http2_protocol_options.get_or_insert_default();
        options.max_concurrent_streams = Some(UInt32Value { value: 3 });
    })
    .await;
    let mut client = H2::connect(setup.at).await;
    client.until(SETTINGS).await.unwrap();
    for stream in [1, 3, 5, 7] {
        client.headers(stream, END_STREAM, &GET).await;
    }
    let outcome = client.outcome(7).await;
    assert!(matches!(outcome, Some(Err(REFUSED_STREAM | PROTOCOL_ERROR))), "{outcome:?}");
}

#[tokio::test]
async fn section_10_5_1_headers_without_measure_are_refused() {
    let setup = setup(Origin::content().await, |_| {}).await;
    // More headers than are taken, each of them small.
    let mut client = H2::connect(setup.at).await;
    let many: Vec<_> = (0..101).map(|_| ("x", "y")).collect();
    client.headers(1, END_STREAM, &with(&many)).await;
    assert_ne!(client.outcome(1).await, Some(Ok(true)));
    // More bytes than are taken, in frames of the size that is allowed.
    let mut client = H2::connect(setup.at).await;
    let long = "y".repeat(70_000);
    let block = hpack(&with(&[("x", &long)]));
    let mut parts = block.chunks(16_000).peekable();
    client.send(&frame(HEADERS, END_STREAM, 1, parts.next().unwrap())).await;
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_none() { END_HEADERS } else { 0 };
        client.send(&frame(CONTINUATION, flags, 1, part)).await;
    }
    assert_ne!(client.outcome(1).await, Some(Ok(true)));
    assert_eq!(setup.origin.seen(), "");
}

#[tokio::test]
async fn section_6_10_a_flood_of_continuations_ends_the_connection() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let mut client = H2::connect(setup.at).await;
    client.send(&frame(HEADERS, END_STREAM, 1, &hpack(&GET))).await;
    let mut sent = 0;
    while client.send(&frame(CONTINUATION, 0, 1, &hpack(&[("x", "y")]))).await && sent < 1_000_000 {
        sent += 1;
    }
    assert!(sent < 1_000_000, "it goes on for ever");
}

#[tokio::test]
async fn section_5_4_rapid_reset_ends_the_connection() {
    let setup = setup(Origin::start(|_| Does::Silent).await, |_| {}).await;
    let mut client = H2::connect(setup.at).await;
    let mut stream = 1;
    loop {
        let mut bytes = frame(HEADERS, END_STREAM | END_HEADERS, stream, &hpack(&GET));
        bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        if !client.send(&bytes).await {
            break;
        }
        stream += 2;
        assert!(stream < 1_000_000, "it goes on for ever");
    }
    let requests = || setup.proxy.shared().clusters()[0].requests.used();
    while requests() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn section_10_5_floods_of_control_frames_end_the_connection() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let increment = 1_u32.to_be_bytes();
    for (name, flood) in [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("empty DATA", frame(DATA, 0, 1, &[])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &increment)),
        ("PRIORITY", frame(2, 0, 3, &[0, 0, 0, 0, 1])),
        ("unknown", frame(0xF0, 0, 0, &[])),
    ] {
        let mut client = H2::connect(setup.at).await;
        let mut post = GET;
        post[0] = (":method", "POST");
        client.headers(1, 0, &post).await;
        let batch = flood.repeat(100);
        let mut sent = 0;
        // Nothing that it sends is read.
        while client.send(&batch).await {
            sent += 100;
            assert!(sent < 3_000_000, "{name} goes on for ever");
        }
    }
}

#[tokio::test]
async fn section_6_9_abuse_of_windows_is_an_error() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let mut client = H2::connect(setup.at).await;
    client.send(&frame(WINDOW_UPDATE, 0, 0, &0x7FFF_FFFF_u32.to_be_bytes())).await;
    // FLOW_CONTROL_ERROR would be the right one; the library says PROTOCOL_ERROR.
    let code = client.until(GOAWAY).await.map(|f| f.code());
    assert!(matches!(code, Some(FLOW_CONTROL_ERROR | PROTOCOL_ERROR)), "{code:?}");
    let mut client = H2::connect(setup.at).await;
    client.send(&frame(WINDOW_UPDATE, 0, 0, &[0; 4])).await;
    assert_eq!(client.until(GOAWAY).await.map(|f| f.code()), Some(PROTOCOL_ERROR));
    // SETTINGS_INITIAL_WINDOW_SIZE above 2^31 - 1.
    let mut client = H2::connect(setup.at).await;
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0xFF, 0xFF, 0xFF, 0xFF])).await;
    let code = client.until(GOAWAY).await.map(|f| f.code());
    assert!(matches!(code, Some(FLOW_CONTROL_ERROR | PROTOCOL_ERROR)), "{code:?}");
}

#[tokio::test]
async fn section_4_and_5_frames_out_of_place_are_connection_errors() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let too_long = frame(DATA, 0, 1, &vec![0; 20_000]);
    for (name, bytes) in [
        ("DATA on no stream", frame(DATA, 0, 0, b"x")),
        ("DATA on an idle stream", frame(DATA, 0, 5, b"x")),
        ("HEADERS on an even stream", frame(HEADERS, END_STREAM | END_HEADERS, 2, &hpack(&GET))),
        ("a frame that is too long", too_long),
        ("PING of the wrong length", frame(PING, 0, 0, &[0; 7])),
        ("SETTINGS of the wrong length", frame(SETTINGS, 0, 0, &[0; 5])),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &hpack(&GET))),
        ("PUSH_PROMISE from a client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("HPACK that is none", frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xFF; 20])),
    ] {
        let mut client = H2::connect(setup.at).await;
        client.send(&bytes).await;
        let code = client.until(GOAWAY).await.map(|f| f.code());
        assert!(code.is_some_and(|code| code != 0), "{name}: {code:?}");
    }
    assert_eq!(setup.origin.seen(), "");
}
