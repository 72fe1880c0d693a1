//! Connections that become something else than HTTP (RFC 9110 7.8 and 9.3.6, RFC 6455, RFC 8441).

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xds_proto::{
    envoy::{
        config::route::v3::{
            Route, RouteAction, RouteMatch,
            route_action::{UpgradeConfig, upgrade_config::ConnectConfig},
            route_match::{ConnectMatcher, PathSpecifier},
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::UpgradeConfig as Allowed,
        },
    },
    google::protobuf::BoolValue,
};

use crate::{
    backend::Backend,
    client::raw,
    control::{Control, named},
    origin::{Does, OK, Origin},
    resources::*,
    rfc9112::setup,
    wire::*,
};

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
    sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const ASKING: &str = "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

fn allow(manager: &mut HttpConnectionManager, kind: &str) {
    manager.upgrade_configs.push(Allowed { upgrade_type: kind.to_owned(), ..Allowed::default() });
}

/// Takes websockets, and everything else as it is.
async fn chat() -> Origin {
    Origin::start(|head| {
        if head.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n") {
            Does::Switches(SWITCHED)
        } else {
            Does::Answers(OK)
        }
    })
    .await
}

async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = vec![];
    while !String::from_utf8_lossy(&all).ends_with(end) {
        all.push(stream.read_u8().await.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&all))));
    }
    String::from_utf8(all).unwrap()
}

async fn talk(at: SocketAddr, ask: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(ask.as_bytes()).await.unwrap();
    let head = until(&mut stream, "\r\n\r\n").await;
    // Bytes that are no lines and no HTTP.
    for message in ["\n\n\0 hello", "GET / HTTP/1.1\r\n\r\n again"] {
        stream.write_all(message.as_bytes()).await.unwrap();
        assert_eq!(until(&mut stream, message).await, message);
    }
    // One end ends, and the other hears of it.
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    head
}

#[tokio::test]
async fn rfc6455_a_websocket_is_passed_in_both_directions() {
    let setup = setup(chat().await, |manager| allow(manager, "websocket")).await;
    let head = talk(setup.at, ASKING).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for expected in [
        "upgrade: websocket\r\n",
        "connection: upgrade\r\n",
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    ] {
        assert!(head.to_lowercase().contains(&expected.to_lowercase()), "{expected} in {head}");
    }
    let seen = setup.origin.seen();
    assert!(seen.starts_with("GET /chat HTTP/1.1\r\n") && seen.contains("sec-websocket-key: dGhl"), "{seen}");
    let active = || setup.proxy.shared().clusters()[0].requests.used();
    while active() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn rfc9110_7_8_what_is_not_allowed_is_refused_and_nothing_after_it_is_read() {
    let setup = setup(chat().await, |_| {}).await;
    let smuggled = format!("{ASKING}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
    let answer = raw(setup.at, smuggled.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    let answer = raw(setup.at, b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "no route is for CONNECT: {answer}");
    assert_eq!(setup.origin.seen(), "");
}

#[tokio::test]
async fn rfc9110_7_8_an_origin_that_does_not_switch_answers_and_the_connection_ends() {
    let refusing = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno";
    let origin = Origin::start(move |_| Does::Answers(refusing)).await;
    let setup = setup(origin, |manager| allow(manager, "websocket")).await;
    let answer = raw(setup.at, format!("{ASKING}{ASKING}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.ends_with("\r\n\r\nno"), "{answer}");
}

#[tokio::test]
async fn rfc8441_a_websocket_over_http2_becomes_one_over_http1() {
    let setup = setup(chat().await, |manager| {
        allow(manager, "websocket");
        manager.http2_protocol_options.get_or_insert_default().allow_connect = true;
    })
    .await;
    let mut client = H2::connect(setup.at).await;
    let settings = client.until(SETTINGS).await.unwrap();
    // SETTINGS_ENABLE_CONNECT_PROTOCOL = 1.
    assert!(settings.payload.chunks(6).any(|s| s == [0, 8, 0, 0, 0, 1]), "{settings:?}");
    let ask = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "pay.shop"),
        (":path", "/chat"),
        ("sec-websocket-version", "13"),
    ];
    client.headers(1, 0, &ask).await;
    assert_eq!(client.outcome(1).await, Some(Ok(true)));
    client.send(&frame(DATA, 0, 1, b"\n\nhello")).await;
    let mut heard = vec![];
    while heard != b"\n\nhello" {
        heard.extend(client.until(DATA).await.unwrap().payload);
    }
    let seen = setup.origin.seen();
    assert!(seen.starts_with("GET /chat HTTP/1.1\r\n") && seen.contains("sec-websocket-key: "), "{seen}");
    // Where it is not allowed the library refuses the protocol.
    let without = self::setup(chat().await, |manager| allow(manager, "websocket")).await;
    let mut client = H2::connect(without.at).await;
    client.headers(1, 0, &ask).await;
    assert_ne!(client.outcome(1).await, Some(Ok(true)));
}

#[tokio::test]
async fn rfc8441_between_two_proxies_a_websocket_is_a_stream_of_http2() {
    let chat = chat().await;
    let control = Control::start().await;
    let mut back = hcm(inline(all_to("back", "app")));
    allow(&mut back, "websocket");
    back.http2_protocol_options.get_or_insert_default().allow_connect = true;
    control.set([
        named(listener("back", vec![chain(http_filter(&back))])),
        named(static_cluster("app", &[chat.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("back").await.unwrap();
    let mut front = hcm(inline(all_to("front", "next")));
    allow(&mut front, "websocket");
    control.set([
        named(listener("front", vec![chain(http_filter(&front))])),
        named(speaking_http2(static_cluster("next", &[at]))),
    ]);
    let head = talk(proxy.listener("front").await.unwrap(), ASKING).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("sec-websocket-accept: s3pP"), "{head}");
}

fn connecting(configure: impl FnOnce(&mut UpgradeConfig)) -> Route {
    let mut upgrade = UpgradeConfig {
        upgrade_type: "CONNECT".to_owned(),
        enabled: Some(BoolValue { value: true }),
        connect_config: None,
    };
    configure(&mut upgrade);
    let matches = RouteMatch {
        path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})),
        ..RouteMatch::default()
    };
    to(matches, RouteAction { upgrade_configs: vec![upgrade], ..cluster_action("app") })
}

#[tokio::test]
async fn rfc9110_9_3_6_connect_ends_here_or_is_passed_on_as_the_route_says() {
    // Says what it hears, from the first byte.
    let echo = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = echo.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let proxy_behind = Origin::start(|head| {
        assert!(head.starts_with("CONNECT db.shop:5432 HTTP/1.1\r\n"), "{head}");
        Does::Switches("HTTP/1.1 200 OK\r\n\r\n")
    })
    .await;
    let ask = "CONNECT db.shop:5432 HTTP/1.1\r\nhost: db.shop:5432\r\n\r\n";
    for (address, terminates) in [(address, true), (proxy_behind.address, false)] {
        let control = Control::start().await;
        let route = connecting(|upgrade| {
            upgrade.connect_config = terminates.then(ConnectConfig::default);
        });
        let mut manager = hcm(inline(routes("out", vec![(&["*"], vec![route])])));
        manager.http2_protocol_options.get_or_insert_default().allow_connect = true;
        control.set([
            named(listener("out", vec![chain(http_filter(&manager))])),
            named(static_cluster("app", &[address])),
        ]);
        let proxy = control.proxy().await;
        let at = proxy.listener("out").await.unwrap();
        let head = talk(at, ask).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        let mut client = H2::connect(at).await;
        client.headers(1, 0, &[(":method", "CONNECT"), (":authority", "db.shop:5432")]).await;
        assert_eq!(client.outcome(1).await, Some(Ok(true)));
        client.send(&frame(DATA, 0, 1, b"ping")).await;
        assert_eq!(client.until(DATA).await.unwrap().payload, b"ping");
    }
}

#[tokio::test]
async fn an_ordinary_request_takes_no_route_for_connect() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    let table = routes("out", vec![(&["*"], vec![connecting(|_| {})])]);
    control.set([
        named(listener("out", vec![chain(http_filter(&hcm(inline(table))))])),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    let answer = raw(at, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}
