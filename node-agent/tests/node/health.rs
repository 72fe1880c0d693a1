//! `healthCheckNodePort`: the real agent, asked as a load balancer asks.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use xds_proto::isthmus::agent::v1 as wire;

use crate::{control_plane::eventually, name, on_a_node, run};

const PORT: u16 = 32_321;

fn service(backends: &[&str], port: u16) -> wire::Service {
    let backend = |address: &&str| wire::Backend {
        address: (*address).into(),
        port: 8080,
        weight: 1,
        ..Default::default()
    };
    wire::Service {
        name: "shop/pay".into(),
        addresses: vec!["10.101.0.1".into()],
        ports: vec![wire::ServicePort {
            port: 80,
            protocol: wire::Protocol::Tcp as i32,
            backends: backends.iter().map(backend).collect(),
            ..Default::default()
        }],
        external_local: true,
        health_check_port: port.into(),
        ..Default::default()
    }
}

/// Status and body; `None`: nobody listens.
fn ask(at: &str) -> Option<(u16, Value)> {
    let at = SocketAddr::new(at.parse::<IpAddr>().unwrap(), PORT);
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(1)).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap()))
}

#[test]
fn a_load_balancer_is_told_whether_the_node_has_endpoints() {
    on_a_node(&[], |host, state| {
        state.declare("mesh/gw");
        state.declare("shop/pay");
        state.put("1", &wire::PolicyClass { id: 1, ..Default::default() });
        state.put("2", &wire::PolicyClass { id: 2, ..Default::default() });
        state.put("shop/pay", &service(&["10.1.2.3"], PORT));
        host.start();
        let told = |count: u32| {
            json!({
                "service": { "namespace": "shop", "name": "pay" },
                "localEndpoints": count,
                "serviceProxyHealthy": true,
            })
        };
        // The endpoint is another node's.
        let nothing = (503, told(0));
        eventually("the port is served", || (ask("192.0.2.1")? == nothing).then_some(()));
        let pod = host.add("pay").to_string();
        state.put("shop/pay", &service(&["10.1.2.3", &pod], PORT));
        for at in ["192.0.2.1", "2001:db8::1", "127.0.0.1"] {
            eventually("the endpoint is counted", || (ask(at)? == (200, told(1))).then_some(()));
        }
        state.put("shop/pay", &service(&["10.1.2.3"], PORT));
        eventually("it is gone", || (ask("2001:db8::1")? == nothing).then_some(()));
        state.put("shop/pay", &service(&["10.1.2.3", &pod], 0));
        eventually("the port is closed", || ask("192.0.2.1").is_none().then_some(()));
        run(&["ip", "netns", "delete", &name("pay")]);
    });
}
