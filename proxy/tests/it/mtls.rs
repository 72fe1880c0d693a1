//! Two proxies, mutual TLS with SPIFFE between them.

use std::net::SocketAddr;

use proxy::Proxy;

use crate::{
    backend::Backend,
    client::{get1, raw},
    control::{Control, named},
    resources::*,
};

pub const WEB: &str = "spiffe://west.example/ns/shop/sa/web";
pub const PAY: &str = "spiffe://east.example/ns/shop/sa/pay";
pub const SNI: &str = "8080.pay.shop.svc.mesh.local";

pub struct Side {
    pub control: Control,
    pub proxy: Proxy,
}

/// The proxy in front of the application: only `callers` may come.
pub async fn inbound(app: SocketAddr, own: &Ca, id: &str, trusted: &[&Ca], callers: &[&str]) -> Side {
    let control = Control::start().await;
    let filter = http_filter(&telling_the_peer(hcm(inline(all_to("in", "app")))));
    control.set([
        named(listener("in", vec![with_tls(chain(filter), &[SNI], &downstream_tls(callers))])),
        named(static_cluster("app", &[app])),
        named(own.identity(id)),
        named(roots(trusted)),
    ]);
    let proxy = control.proxy().await;
    Side { control, proxy }
}

/// The proxy of the caller: only `wanted` may answer.
pub async fn outbound(to: SocketAddr, own: &Ca, id: &str, trusted: &[&Ca], wanted: &[&str]) -> Side {
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "pay")),
        named(over_tls(eds_cluster("pay"), &upstream_tls(SNI, wanted))),
        named(assignment("pay", &[(to, 0)])),
        named(own.identity(id)),
        named(roots(trusted)),
    ]);
    let proxy = control.proxy().await;
    Side { control, proxy }
}

#[tokio::test]
async fn the_application_learns_who_calls_from_another_trust_domain() {
    let (west, east) = (Ca::new("west.example"), Ca::new("east.example"));
    let app = Backend::start("app").await;
    let server = inbound(app.address, &east, PAY, &[&west, &east], &[WEB]).await;
    let at = server.proxy.listener("in").await.unwrap();
    let client = outbound(at, &west, WEB, &[&west, &east], &[PAY]).await;
    let at = client.proxy.listener("out").await.unwrap();
    let answer = get1(at, "/cards").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = answer.seen();
    let certificate = seen["headers"]["x-forwarded-client-cert"].as_str().unwrap();
    assert!(
        certificate.starts_with(&format!("By={PAY};Hash=")) && certificate.ends_with(&format!(";URI={WEB}")),
        "{certificate}"
    );
    assert_eq!(seen["headers"]["host"], "pay.shop");
    assert!(answer.headers.contains_key("x-backend"));
}

#[tokio::test]
async fn the_wrong_identity_is_refused_on_either_side() {
    let (west, east, evil) = (Ca::new("west.example"), Ca::new("east.example"), Ca::new("west.example"));
    let app = Backend::start("app").await;
    let all = [&west, &east];
    let server = inbound(app.address, &east, PAY, &all, &[WEB]).await;
    let at = server.proxy.listener("in").await.unwrap();
    let other = "spiffe://west.example/ns/shop/sa/other";
    for (why, client) in [
        ("another caller", outbound(at, &west, other, &all, &[PAY]).await),
        ("another server than wanted", outbound(at, &west, WEB, &all, &[other]).await),
        ("a caller of a forged root", outbound(at, &evil, WEB, &all, &[PAY]).await),
        ("a server of an unknown domain", outbound(at, &west, WEB, &[&west], &[PAY]).await),
    ] {
        let at = client.proxy.listener("out").await.unwrap();
        let answer = get1(at, "/").await;
        assert_eq!(answer.status, 503, "{why}");
        assert!(
            answer.text().starts_with("upstream connect error or disconnect/reset"),
            "{why}: {}",
            answer.text()
        );
    }
    assert_eq!(raw(at, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await, "", "plain text matches no chain");
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn rotated_certificates_and_roots_are_used_without_a_restart() {
    let (old, new) = (Ca::new("west.example"), Ca::new("west.example"));
    let app = Backend::start("app").await;
    let pay = "spiffe://west.example/ns/shop/sa/pay";
    let server = inbound(app.address, &old, pay, &[&old], &[WEB]).await;
    let at = server.proxy.listener("in").await.unwrap();
    let client = outbound(at, &old, WEB, &[&old], &[pay]).await;
    let out = client.proxy.listener("out").await.unwrap();
    assert_eq!(get1(out, "/").await.status, 200);
    for side in [&server, &client] {
        let id = if std::ptr::eq(side, &server) { pay } else { WEB };
        let mut progress = side.proxy.engine().progress();
        let before = progress.borrow_and_update().updates;
        side.control.set([named(new.identity(id)), named(roots(&[&new]))]);
        progress.wait_for(|p| p.updates > before).await.unwrap();
    }
    assert_eq!(get1(out, "/").await.status, 200, "new on both sides, on the same listeners");
}
