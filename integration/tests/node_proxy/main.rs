//! Our proxy as a node's: services whose pods reach them through it by annotation, of both families, with the addresses of
//! both sides kept; and nobody gets by when it is gone.
//!
//! Needs root and eBPF; SKIP_PRIVILEGED=1 leaves it out.

// In a test an unwrap is the failure; clippy sees helpers of integration tests as plain code.
#![allow(clippy::unwrap_used)]

mod world;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use integration::testbed::wait_until;
use world::World;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn pods_reach_services_by_the_proxy_of_their_node() {
    if std::env::var_os("SKIP_PRIVILEGED").is_some_and(|value| value == "1") {
        println!("skipped: needs root and eBPF, and SKIP_PRIVILEGED=1 is set");
        return;
    }
    let mut world = World::start().unwrap();
    let services = world.cluster.virtual_ips("shop", "pay").unwrap();
    let webs = world.addresses("web");

    // Nobody passes without the proxy.
    for ip in &services {
        wait_until("it is refused without the proxy", PATIENCE, || Ok(world.call(ip, "/").is_refused()))
            .unwrap();
    }

    world.start_proxy().unwrap();
    for (ip, web) in services.iter().zip(&webs) {
        wait_until("it is led to the proxy", PATIENCE, || {
            let call = world.call(ip, "/");
            if call.status != 200 {
                anyhow::bail!("{call:?}");
            }
            Ok(Some(()))
        })
        .unwrap();
        let call = world.call(ip, "/");
        assert_eq!((call.name.as_str(), call.peer), ("pay", *web), "the pod's own name: {call:?}");
        // The HTTPRoute holds, which only a proxy knows of.
        let routed = world.call(ip, "/next/x");
        assert_eq!((routed.name.as_str(), routed.peer), ("pay-next", *web), "{routed:?}");
        assert_eq!(routed.header("x-routed").as_deref(), Some("by-the-node"), "{routed:?}");
    }

    // What leads nowhere is answered by the proxy.
    let lost = world.call(&services[0], "/nowhere");
    assert_eq!(lost.status, 500, "{lost:?}");

    // The agent goes: the proxy goes on. The proxy goes: nobody passes, and the next one serves again.
    world.restart_agent().unwrap();
    for ip in &services {
        assert_eq!(world.call(ip, "/").status, 200);
    }
    world.stop_proxy();
    for ip in &services {
        assert!(world.call(ip, "/").is_refused().is_some(), "{ip}");
    }
    world.start_proxy().unwrap();
    for ip in &services {
        wait_until("it is led to the next proxy", PATIENCE, || {
            Ok((world.call(ip, "/").status == 200).then_some(()))
        })
        .unwrap();
    }

    // Taken off again, it is a service as any other: balanced by the kernel, past routes.
    world.change("apply", &world::service("pay", "pay", "")).unwrap();
    for (ip, web) in services.iter().zip(&webs) {
        wait_until("it is balanced by the kernel again", PATIENCE, || {
            let call = world.call(ip, "/next/x");
            Ok((call.status == 200 && call.name == "pay" && call.peer == *web).then_some(()))
        })
        .unwrap();
    }

    requests(&mut world, &webs);
}

const POLICY: &str = "
{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: reads, namespace: shop}, spec: {
 endpointSelector: {matchLabels: {app: web}}, egress: [{toEndpoints: [{matchLabels: {app: pay}}],
 toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{method: GET, path: '/v1/.*'}]}}]}]}}
";

/// A policy that looks at requests: from the pod `web` only some of them pass, to `pay` itself and by its service.
fn requests(world: &mut World, webs: &[IpAddr; 2]) {
    world.change("apply", POLICY).unwrap();
    let services = world.cluster.virtual_ips("shop", "pay").unwrap();
    let direct = world.addresses("pay").map(|ip| SocketAddr::new(ip, 8080));
    let by_service = services.map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    let all = || direct.iter().chain(&by_service).zip(webs.iter().cycle());
    for (to, web) in all() {
        wait_until("what is allowed passes, in the pod's name", PATIENCE, || {
            let call = world.ask(*to, "GET", "/v1/cards");
            anyhow::ensure!((call.status, call.peer) == (200, *web), "{to}: {call:?}");
            Ok(Some(()))
        })
        .unwrap();
        for (method, path) in [("POST", "/v1/cards"), ("GET", "/v2"), ("GET", "/v1/../v2")] {
            let call = world.ask(*to, method, path);
            assert_eq!(call.status, 403, "{method} {path} of {to}: {call:?}");
        }
    }
    // To another pod nothing is allowed at all, by the kernel.
    let other = world.addresses("pay-next").map(|ip| SocketAddr::new(ip, 8080));
    assert_eq!(world.ask(other[0], "GET", "/v1/cards").status, 0);
    let said = world.explain("shop/web", direct[0]).unwrap();
    assert!(said.contains("reads#egress[0]"), "{said}");

    // A service that is led to the proxy for its routes is judged as well.
    let led = format!(", annotations: {{isthmus.io/redirect: {}}}", world::PROXY);
    world.change("apply", &world::service("pay", "pay", &led)).unwrap();
    for to in &by_service {
        wait_until("a service that is led there is judged", PATIENCE, || {
            let passes = world.ask(*to, "GET", "/v1/cards").status == 200;
            Ok((passes && world.ask(*to, "POST", "/v1/cards").status == 403).then_some(()))
        })
        .unwrap();
    }

    // Without the proxy nothing passes.
    world.stop_proxy();
    for (to, _) in all() {
        assert!(world.ask(*to, "GET", "/v1/cards").is_refused().is_some(), "{to}");
    }
    world.start_proxy().unwrap();
    // Without the policy everything does.
    world.change("delete", POLICY).unwrap();
    for to in &direct {
        wait_until("it is let through unread", PATIENCE, || {
            Ok((world.ask(*to, "POST", "/v2").status == 200).then_some(()))
        })
        .unwrap();
    }
}
