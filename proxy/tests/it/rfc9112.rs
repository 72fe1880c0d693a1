//! RFC 9112 (HTTP/1.1), on a client's connection: raw bytes in, and what the origin saw of them.

use std::net::SocketAddr;

use proxy::Proxy;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xds_proto::{
    envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    google::protobuf::{Duration, UInt32Value},
};

use crate::{
    client::raw,
    control::{Control, named},
    origin::{Does, OK, Origin},
    resources::*,
};

pub struct Setup {
    pub origin: Origin,
    pub at: SocketAddr,
    pub proxy: Proxy,
    _control: Control,
}

/// A proxy in front of an origin.
pub async fn setup(origin: Origin, edit: impl FnOnce(&mut HttpConnectionManager)) -> Setup {
    let control = Control::start().await;
    let mut manager = hcm(inline(all_to("out", "app")));
    edit(&mut manager);
    control.set([
        named(listener("out", vec![chain(http_filter(&manager))])),
        named(static_cluster("app", &[origin.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    Setup { origin, at, proxy, _control: control }
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or(answer)
}

/// Each of these is answered so, and the connection closed; the origin hears nothing of it.
async fn refused(cases: &[(&str, &str)]) {
    let setup = setup(Origin::content().await, |_| {}).await;
    for (bytes, expected) in cases {
        // What is smuggled would come as a request of its own.
        let answer = raw(setup.at, bytes.as_bytes()).await;
        assert_eq!(status(&answer), *expected, "{bytes:?}: {answer:?}");
        let answers = answer.matches("HTTP/1.1 ").count() + answer.matches("HTTP/1.0 4").count();
        assert_eq!(answers, 1, "one answer, and the connection ends: {bytes:?}");
        assert_eq!(setup.origin.seen(), "", "{bytes:?}");
    }
}

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn section_6_1_cl_te_te_cl_and_te_te_are_refused() {
    let post = "POST / HTTP/1.1\r\nhost: a\r\n";
    let cases: Vec<String> = vec![
        format!("{post}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}transfer-encoding\x0b: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}x: y\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("{post}x: y\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
        format!("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"),
    ];
    let cases: Vec<_> = cases.iter().map(|case| (case.as_str(), "400")).collect();
    refused(&cases).await;
}

#[tokio::test]
async fn section_6_3_malformed_doubled_and_conflicting_lengths_are_refused() {
    let lengths = [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5, 5",
        "content-length: 5, 6",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: 5.0",
        "content-length:",
        "content-length: 18446744073709551616",
        "content-length: 99999999999999999999999999999999999999999",
        "content-length : 5",
        "content-length: 5\x0b",
    ];
    let cases: Vec<String> = lengths
        .iter()
        .map(|length| format!("POST / HTTP/1.1\r\nhost: a\r\n{length}\r\n\r\nhello{SMUGGLED}"))
        .collect();
    let cases: Vec<_> = cases.iter().map(|case| (case.as_str(), "400")).collect();
    refused(&cases).await;
}

#[tokio::test]
async fn section_2_2_and_5_malformed_lines_are_refused() {
    refused(&[
        ("GET / HTTP/1.1\nhost: a\n\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: y\rz: 1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx\0: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n folded\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n folded: x\r\nhost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\n: y\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx(: y\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nx: \x7f\r\n\r\n", "400"),
    ])
    .await;
}

#[tokio::test]
async fn section_3_malformed_request_lines_and_hosts_are_refused() {
    refused(&[
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.2\r\nhost: a\r\n\r\n", "400"),
        ("GET / http/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1 x\r\nhost: a\r\n\r\n", "400"),
        ("GET /\r\nhost: a\r\n\r\n", "400"),
        ("G@T / HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET admin HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: a b\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nhost: u@a\r\nconnection: close\r\n\r\n", "400"),
        ("GET http://u@a/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.0\r\nhost: a\r\n\r\n", "426"),
    ])
    .await;
}

#[tokio::test]
async fn section_3_2_2_the_authority_of_an_absolute_target_counts_alone() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let request = "GET http://pay.shop/x HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n";
    assert_eq!(status(&raw(setup.at, request.as_bytes()).await), "200");
    let seen = setup.origin.seen();
    assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("host: pay.shop\r\n"), "{seen}");
    assert!(!seen.contains("other"), "{seen}");
}

#[tokio::test]
async fn section_3_and_5_4_heads_that_are_too_large_are_refused() {
    let long_header = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    let many_headers = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(101));
    let long_target = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "y".repeat(70_000));
    refused(&[(&long_header, "431"), (&many_headers, "431"), (&long_target, "431")]).await;
}

#[tokio::test]
async fn section_7_1_malformed_chunks_end_the_request_and_never_become_another_one() {
    let setup = setup(Origin::start(|_| Does::Silent).await, |_| {}).await;
    for chunks in [
        "x\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;ext\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx : y\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{SMUGGLED}");
        let answer = raw(setup.at, request.as_bytes()).await;
        assert!(!answer.contains(" 200 "), "{chunks:?}: {answer}");
        assert!(!setup.origin.seen().contains("smuggled"), "{chunks:?}");
    }
    let extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{extension}");
    assert!(!raw(setup.at, request.as_bytes()).await.contains(" 200 "), "extensions have a limit");
}

#[tokio::test]
async fn section_7_1_chunks_are_framed_anew_without_their_extensions() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n\
        5;ext=\"a b\"\r\nhello\r\n000\r\nx-sum: 1\r\n\r\n";
    assert_eq!(status(&raw(setup.at, request.as_bytes()).await), "200");
    while !setup.origin.seen().ends_with("0\r\n\r\n") {
        tokio::task::yield_now().await;
    }
    let seen = setup.origin.seen();
    assert!(
        seen.contains("transfer-encoding: chunked\r\n") && seen.contains("\r\n\r\n5\r\nhello\r\n0\r\n"),
        "{seen}"
    );
    assert!(!seen.contains("ext=") && !seen.contains("content-length"), "{seen}");
}

#[tokio::test]
async fn section_9_3_requests_that_were_sent_ahead_are_answered_in_order() {
    let origin = Origin::start(|head| {
        Does::Answers(if head.starts_with("GET /1 ") {
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none"
        } else {
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
        })
    })
    .await;
    let setup = setup(origin, |_| {}).await;
    let request =
        "\r\nGET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = raw(setup.at, request.as_bytes()).await;
    let (one, two) = (answer.find("one").unwrap(), answer.find("two").unwrap());
    assert!(one < two, "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn section_9_5_a_head_that_trickles_in_is_answered_with_408() {
    let setup = setup(Origin::content().await, |manager| {
        manager.request_headers_timeout = Some(Duration { seconds: 0, nanos: 50_000_000 });
    })
    .await;
    for begin in ["G", "GET / HTTP/1.1\r\nhost: a\r\nx-slow: "] {
        let answer = raw(setup.at, begin.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("request header timeout"),
            "{answer}"
        );
    }
    // On a connection that has served a request there is nothing to say it in.
    let mut stream = TcpStream::connect(setup.at).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
}

#[tokio::test]
async fn section_9_6_the_answer_arrives_though_more_was_sent_than_read() {
    let setup = setup(Origin::content().await, |_| {}).await;
    // Refused at its head; the body would have the connection reset and the answer lost.
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n{}", "y".repeat(300_000));
    let mut stream = TcpStream::connect(setup.at).await.unwrap();
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{answer:?}");
}

#[tokio::test]
async fn section_9_6_a_client_that_is_gone_ends_its_request_upstream() {
    let origin =
        Origin::start(|head| if head.starts_with("GET /never") { Does::Silent } else { Does::Answers(OK) })
            .await;
    let setup = setup(origin, |_| {}).await;
    let mut stream = TcpStream::connect(setup.at).await.unwrap();
    stream.write_all(b"GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    while !setup.origin.seen().contains("/never") {
        tokio::task::yield_now().await;
    }
    // Half-closed counts as gone, as in Envoy.
    stream.shutdown().await.unwrap();
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"");
    let active = || setup.proxy.shared().clusters()[0].requests.used();
    while active() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn connections_finish_after_their_number_of_requests_or_their_time() {
    let with_requests = setup(Origin::content().await, |manager| {
        let options = manager.common_http_protocol_options.get_or_insert_default();
        options.max_requests_per_connection = Some(UInt32Value { value: 2 });
    })
    .await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let answer = raw(with_requests.at, request.repeat(5).as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    let with_time = setup(Origin::content().await, |manager| {
        let options = manager.common_http_protocol_options.get_or_insert_default();
        options.max_connection_duration = Some(Duration { seconds: 0, nanos: 50_000_000 });
    })
    .await;
    let answer = raw(with_time.at, request.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
}
