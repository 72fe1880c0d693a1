//! RFC 9112 (HTTP/1.1), on the connection to an origin that breaks it.

use crate::{
    client::{get1, raw},
    origin::{Does, Origin},
    rfc9112::setup,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn section_6_3_answers_that_could_be_read_differently_do_not_reach_the_client() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n folded: x\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/9.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "",
    ] {
        let setup = setup(Origin::start(move |_| Does::Closes(answer)).await, |_| {}).await;
        let got = get1(setup.at, "/").await;
        assert!(got.status.is_server_error(), "{answer:?}: {} {}", got.status, got.text());
    }
}

#[tokio::test]
async fn section_6_3_a_length_beside_chunks_is_not_passed_on() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\ntransfer-encoding: chunked\r\n\r\n\
        2\r\nok\r\n0\r\n\r\n";
    let setup = setup(Origin::start(move |_| Does::Answers(answer)).await, |_| {}).await;
    let got = get1(setup.at, "/").await;
    assert_eq!((got.status.as_u16(), got.text()), (200, "ok"));
    assert!(!got.headers.contains_key("content-length"), "{:?}", got.headers);
}

#[tokio::test]
async fn section_8_an_answer_that_is_cut_off_is_seen_to_be() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nonly this";
    let first = setup(Origin::start(move |_| Does::Closes(cut)).await, |_| {}).await;
    let got = raw(first.at, GET.as_bytes()).await;
    assert!(got.contains("content-length: 50\r\n") && got.ends_with("only this"), "{got}");
    let cut = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nonly\r\n";
    let second = setup(Origin::start(move |_| Does::Closes(cut)).await, |_| {}).await;
    let got = raw(second.at, GET.as_bytes()).await;
    assert!(got.contains("only") && !got.ends_with("0\r\n\r\n"), "{got}");
}

#[tokio::test]
async fn section_9_2_bytes_after_an_answer_are_not_taken_for_the_next_one() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nx-poison: 1\r\ncontent-length: 6\r\n\r\npoison";
    let setup = setup(Origin::start(move |_| Does::Answers(answer)).await, |_| {}).await;
    for _ in 0..5 {
        let got = get1(setup.at, "/").await;
        assert!(!got.headers.contains_key("x-poison") && got.text() == "ok", "{got:?}");
    }
}

#[tokio::test]
async fn section_5_a_head_without_end_is_given_up() {
    let long: &'static str = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(300_000)).leak();
    let many: &'static str = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(500)).leak();
    for answer in [long, many] {
        let setup = setup(Origin::start(move |_| Does::Answers(answer)).await, |_| {}).await;
        assert!(get1(setup.at, "/").await.status.is_server_error());
    }
}
