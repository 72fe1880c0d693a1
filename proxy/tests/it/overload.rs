//! More than the proxy may take.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::join_all;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proxy::{overload::Ceilings, shared::Home};
use tokio::{io::AsyncReadExt, net::TcpStream};
use xds_proto::envoy::config::{
    cluster::v3::cluster::{
        CommonLbConfig,
        common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
    },
    core::v3::Locality,
};

use crate::{
    backend::Backend,
    client::{get, get1},
    control::{Control, named},
    resources::*,
};

#[tokio::test]
async fn connections_beyond_the_ceiling_are_closed_and_later_ones_served_again() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    let ceilings = Ceilings { connections: Some(20), memory: None };
    let proxy = control.proxy_within(ceilings, Home::default()).await;
    let at = proxy.listener("out").await.unwrap();
    let mut held = vec![];
    while proxy.shared().stats.shed_connections.load(Ordering::SeqCst) == 0 {
        held.push(TcpStream::connect(at).await.unwrap());
        tokio::task::yield_now().await;
    }
    // Before any of those that are held is given back: the last one might get its place.
    let mut last = held.pop().unwrap();
    assert_eq!(last.read(&mut [0; 1]).await.unwrap(), 0);
    // Those that are closed are the ones beyond the ceiling: the others can still be used, for one request each.
    let stream = held.swap_remove(0);
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    assert_eq!(sender.send_request(get("/")).await.unwrap().status(), 200);
    connection.await.unwrap().unwrap();
    drop(held);
    let shed = || proxy.shared().stats.shed_connections.load(Ordering::SeqCst);
    loop {
        let before = shed();
        let stream = TcpStream::connect(at).await.unwrap();
        let (mut sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        if let Ok(response) = sender.send_request(get("/")).await {
            assert_eq!(response.status(), 200);
            break;
        }
        assert!(shed() > before, "a connection failed that was not turned away");
    }
}

#[tokio::test]
async fn with_too_much_memory_requests_are_turned_away_and_the_proxy_lives() {
    let app = Backend::start("app").await;
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(static_cluster("app", &[app.address])),
    ]);
    // The process of the test is far from a terabyte; what it is said to have comes from the test.
    let ceilings = Ceilings { connections: None, memory: Some(1 << 40) };
    let proxy = control.proxy_within(ceilings, Home::default()).await;
    let at = proxy.listener("out").await.unwrap();
    assert_eq!(get1(at, "/").await.status, 200);
    let mut answers = vec![];
    while answers.iter().all(|status| *status != 503) {
        proxy.shared().overload.set_memory((1 << 40) / 100 * 96);
        let answer = get1(at, "/").await;
        answers.push(answer.status.as_u16());
        if answer.status == 503 {
            assert_eq!(answer.headers["x-envoy-local-overloaded"], "true");
        }
    }
    proxy.shared().overload.set_memory(0);
    let answers = join_all((0..50).map(|_| get1(at, "/"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(proxy.shared().stats.shed_requests.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn endpoints_of_the_own_zone_go_first_where_there_are_enough_of_them() {
    let (here, there) = (Backend::start("here").await, Backend::start("there").await);
    let zoned = |name: &str, addresses: &[std::net::SocketAddr]| {
        let all: Vec<_> = addresses.iter().map(|at| (*at, 0)).collect();
        let mut assignment = assignment(name, &all);
        for (locality, zone) in assignment.endpoints.iter_mut().zip(["a", "b"]) {
            locality.locality = Some(Locality { zone: zone.to_owned(), ..Locality::default() });
        }
        assignment
    };
    let mut cluster = eds_cluster("app");
    cluster.common_lb_config = Some(CommonLbConfig {
        locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
            min_cluster_size: Some(xds_proto::google::protobuf::UInt64Value { value: 1 }),
            ..ZoneAwareLbConfig::default()
        })),
        ..CommonLbConfig::default()
    });
    let endpoints = [here.address, there.address];
    let control = Control::start().await;
    control.set([
        named(plain_listener("out")),
        named(all_to("out", "app")),
        named(cluster),
        named(eds_cluster("proxies")),
        named(zoned("app", &endpoints)),
        named(zoned("proxies", &endpoints)),
    ]);
    let home = Home { locality: "a".to_owned(), cluster: "proxies".to_owned() };
    let proxy = control.proxy_within(Ceilings::default(), home).await;
    let at = proxy.listener("out").await.unwrap();
    let mut in_row = 0;
    // As soon as both clusters are known, nothing leaves the zone.
    while in_row < 30 {
        in_row = if get1(at, "/").await.backend() == "here" { in_row + 1 } else { 0 };
    }
    // Without proxies in the other zone, its endpoints have all their strength to spare: half of the load goes there.
    let mut alone = zoned("proxies", &endpoints);
    alone.endpoints.truncate(1);
    control.set([named(alone)]);
    while get1(at, "/").await.backend() != "there" {}
}
