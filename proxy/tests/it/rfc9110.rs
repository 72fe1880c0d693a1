//! RFC 9110 (HTTP semantics), over whichever version.

use http::{Request, Version};
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xds_proto::google::protobuf::{BoolValue, Duration};

use crate::{
    client::{get, raw, send},
    origin::{Does, OK, Origin},
    rfc9112::setup,
};

#[tokio::test]
async fn section_7_6_1_headers_of_one_connection_are_not_passed_on() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, x-mine\r\nx-mine: 1\r\nkeep-alive: 1\r\n\
        proxy-connection: x\r\nte: trailers, gzip\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\nx-other: 1\r\n\r\n";
    raw(setup.at, request.as_bytes()).await;
    let seen = setup.origin.seen();
    for gone in ["x-mine", "keep-alive", "proxy-connection", "gzip", "upgrade", "http2-settings"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    assert!(seen.contains("x-other: 1\r\n") && seen.contains("te: trailers\r\n"), "{seen}");
}

#[tokio::test]
async fn section_7_6_3_via_names_this_proxy_in_both_directions() {
    let origin =
        Origin::start(|_| Does::Answers("HTTP/1.1 200 OK\r\nvia: 1.1 cdn\r\ncontent-length: 0\r\n\r\n"))
            .await;
    let setup = setup(origin, |manager| manager.via = "1.1 isthmus".to_owned()).await;
    let mut request = get("/");
    request.headers_mut().insert("via", "1.0 fred".parse().unwrap());
    let answer = send(setup.at, Version::HTTP_11, request).await;
    let via: Vec<_> = answer.headers.get_all("via").iter().collect();
    assert_eq!(via, ["1.1 cdn", "1.1 isthmus"]);
    let seen = setup.origin.seen();
    assert!(seen.find("via: 1.0 fred").unwrap() < seen.find("via: 1.1 isthmus").unwrap(), "{seen}");
}

#[tokio::test]
async fn section_10_1_1_a_client_that_expects_it_is_told_to_continue() {
    let setup = setup(Origin::content().await, |_| {}).await;
    let mut stream = TcpStream::connect(setup.at).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0; 25];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(!setup.origin.seen().contains("expect"), "{}", setup.origin.seen());
}

#[tokio::test]
async fn section_15_5_9_a_body_that_does_not_come_is_answered_with_408() {
    let setup = setup(Origin::start(|_| Does::Silent).await, |manager| {
        manager.request_timeout = Some(Duration { seconds: 0, nanos: 50_000_000 });
    })
    .await;
    let answer = raw(setup.at, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.ends_with("request timeout"), "{answer}");
    assert_eq!(
        setup.proxy.shared().stats.cluster(&"app".into()).codes.seen().count(),
        0,
        "not the endpoint's fault"
    );
}

#[tokio::test]
async fn section_15_2_interim_answers_of_an_origin_are_no_answer() {
    let origin = Origin::start(|_| {
        Does::Answers(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        )
    })
    .await;
    let setup = setup(origin, |_| {}).await;
    let answer = send(setup.at, Version::HTTP_2, get("/")).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "ok"));
}

#[tokio::test]
async fn section_2_5_http_1_0_is_served_where_asked_for() {
    let setup = setup(Origin::content().await, |manager| {
        let options = manager.http_protocol_options.get_or_insert_default();
        options.accept_http_10 = true;
        options.default_host_for_http_10 = "legacy.shop".to_owned();
    })
    .await;
    let answer = raw(setup.at, b"GET /old HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("ok"), "{answer}");
    let seen = setup.origin.seen();
    assert!(seen.starts_with("GET /old HTTP/1.1\r\n") && seen.contains("host: legacy.shop\r\n"), "{seen}");
}

#[tokio::test]
async fn section_6_4_1_what_has_no_body_keeps_the_connection_in_step() {
    let origin = Origin::start(|head| {
        Does::Answers(if head.starts_with("HEAD ") {
            "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
        } else if head.starts_with("GET /304") {
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 1000\r\n\r\n"
        } else {
            OK
        })
    })
    .await;
    let setup = setup(origin, |_| {}).await;
    let request = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\nGET /304 HTTP/1.1\r\nhost: a\r\n\r\n\
        GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let answer = raw(setup.at, request.as_bytes()).await;
    let statuses: Vec<_> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "304", "200"], "{answer}");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test]
async fn section_4_2_3_a_path_is_judged_and_sent_on_in_its_normal_form() {
    let setup = setup(Origin::content().await, |manager| {
        manager.normalize_path = Some(BoolValue { value: true });
        manager.merge_slashes = true;
        manager.path_with_escaped_slashes_action = 3;
    })
    .await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let path = "/public/%2E%2e//%61dmin?q=/../x";
        let request = Request::get(path).header("host", "a").body(Full::default()).unwrap();
        assert_eq!(send(setup.at, version, request).await.status, 200);
        assert!(setup.origin.seen().ends_with("\r\n\r\n"));
        let last = setup.origin.seen().rfind("GET ").map(|at| setup.origin.seen()[at..].to_owned()).unwrap();
        assert!(last.starts_with("GET /admin?q=/../x HTTP/1.1\r\n"), "{last}");
        let request = Request::get("/a%2fb?c=1").header("host", "a").body(Full::default()).unwrap();
        let answer = send(setup.at, version, request).await;
        assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str().unwrap()), (307, "/a/b?c=1"));
    }
}
