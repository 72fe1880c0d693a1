//! Through a gateway that passes TLS on by its server name, without being able to read it.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{
    backend::Backend,
    client::{get1, raw},
    control::{Control, named},
    mtls::{PAY, SNI, WEB, inbound, outbound},
    resources::*,
};

#[tokio::test]
async fn two_workloads_authenticate_each_other_through_a_gateway_without_certificates() {
    let (west, east) = (Ca::new("west.example"), Ca::new("east.example"));
    let app = Backend::start("app").await;
    let server = inbound(app.address, &east, PAY, &[&west], &[WEB]).await;
    let server_at = server.proxy.listener("in").await.unwrap();
    let control = Control::start().await;
    control.set([
        named(listener(
            "gateway|15443",
            vec![with_names(chain(tcp_filter("gateway|8080|pay.shop")), &[SNI])],
        )),
        named(eds_cluster("gateway|8080|pay.shop")),
        named(assignment("gateway|8080|pay.shop", &[(server_at, 0)])),
    ]);
    let gateway = control.proxy().await;
    let gateway_at = gateway.listener("gateway|15443").await.unwrap();
    let client = outbound(gateway_at, &west, WEB, &[&east], &[PAY]).await;
    let at = client.proxy.listener("out").await.unwrap();
    let answer = get1(at, "/cards").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = answer.seen();
    let certificate = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap();
    assert!(certificate.ends_with(&format!("URI={WEB}")), "{certificate}");
    // Neither plain text nor unknown names get anywhere.
    assert_eq!(raw(gateway_at, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await, "");
    assert_eq!(raw(gateway_at, &[22, 3, 1, 0, 1, 2]).await, "");
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn bytes_pass_in_both_directions_after_one_side_has_finished() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = Control::start().await;
    control.set([
        named(listener("tcp", vec![chain(tcp_filter("app"))])),
        named(static_cluster("app", &[app.local_addr().unwrap()])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("tcp").await.unwrap();
    let mut client = TcpStream::connect(at).await.unwrap();
    client.write_all(&[7; 100_000]).await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    let mut received = vec![];
    server.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), 100_000);
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "thanks");
}
