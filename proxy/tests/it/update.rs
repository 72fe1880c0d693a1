//! Changes while connections stand.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use xds_proto::envoy::config::listener::v3::Listener;

use crate::{
    backend::Backend,
    client::{get, get1},
    control::{Control, named},
    resources::*,
};

async fn connect(at: std::net::SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(at).await.unwrap());
    let (sender, connection) = http1::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// The status of one more request on a connection, or `None` if it is closed.
async fn again(sender: &mut SendRequest<Full<Bytes>>) -> Option<u16> {
    sender.ready().await.ok()?;
    let response = sender.send_request(get("/")).await.ok()?;
    let status = response.status().as_u16();
    response.into_body().collect().await.ok()?;
    Some(status)
}

#[tokio::test]
async fn a_changed_listener_finishes_its_connections_and_leaves_the_others_alone() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("one")),
        named(plain_listener("two")),
        named(all_to("one", "app")),
        named(all_to("two", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    proxy.ready().await;
    let (one, two) = (proxy.listener("one").await.unwrap(), proxy.listener("two").await.unwrap());
    let (mut on_one, mut on_two) = (connect(one).await, connect(two).await);
    assert_eq!((again(&mut on_one).await, again(&mut on_two).await), (Some(200), Some(200)));

    let mut manager = hcm(rds("one"));
    manager.server_name = "changed".to_owned();
    control.set([named(listener("one", vec![chain(http_filter(&manager))]))]);
    while again(&mut on_one).await.is_some() {}
    assert_eq!(proxy.listener("one").await.unwrap(), one, "the socket is the same");
    assert_eq!(get1(one, "/").await.headers["server"], "changed");
    assert_eq!(again(&mut on_two).await, Some(200));

    control.remove::<Listener>("one");
    let mut bound = proxy.listeners();
    bound.wait_for(|all| !all.contains_key("one")).await.unwrap();
    assert_eq!(again(&mut on_two).await, Some(200));

    // A new route table does not touch connections at all.
    control.set([named(routes("two", vec![(&["other"], vec![])]))]);
    while again(&mut on_two).await.unwrap() != 404 {}
}

#[tokio::test]
async fn a_listener_is_not_bound_before_its_routes_and_endpoints_are_there() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([named(plain_listener("out")), named(eds_cluster("app"))]);
    let proxy = control.proxy().await;
    let mut progress = proxy.engine().progress();
    progress.wait_for(|p| p.updates >= 2).await.unwrap();
    assert_eq!(proxy.engine().warming(), ["listener \"out\" waits for route configuration \"out\""]);
    let page = get1(proxy.admin_address().unwrap(), "/ready").await;
    assert_eq!(page.status, 503);
    assert!(page.text().contains("waits for route configuration"), "{}", page.text());

    control.set([named(all_to("out", "app"))]);
    progress.wait_for(|p| p.updates >= 3).await.unwrap();
    assert_eq!(proxy.engine().warming(), ["listener \"out\" waits for endpoints \"app\""]);
    assert!(proxy.listeners().borrow().is_empty());

    control.set([named(assignment("app", &[(app.address, 0)]))]);
    proxy.ready().await;
    let at = proxy.listener("out").await.unwrap();
    assert_eq!(get1(at, "/").await.status, 200);
}

#[tokio::test]
async fn draining_lets_requests_finish_and_takes_no_new_connections() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    let proxy = control.proxy().await;
    let at = proxy.listener("out").await.unwrap();
    let mut idle = connect(at).await;
    assert_eq!(again(&mut idle).await, Some(200));
    let mut stuck = connect(at).await;
    let waiting = tokio::spawn(async move { stuck.send_request(get("/never")).await });
    while app.requests() < 2 {
        tokio::task::yield_now().await;
    }
    proxy.drain(Duration::from_millis(100)).await;
    assert_eq!(again(&mut idle).await, None);
    assert!(waiting.await.unwrap().is_err(), "cut at the deadline");
    assert!(TcpStream::connect(at).await.is_err());
}
