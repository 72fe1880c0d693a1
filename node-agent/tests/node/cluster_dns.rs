//! Names of services: the real agent and its DNS process, a pod, and the C library's resolver in it.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket},
    process::Command,
    sync::Arc,
};

use serde_json::json;
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    Host,
    control_plane::{State, eventually},
    name,
    names::{A, AAAA, REFUSED, ask, proxy},
    netns, on_a_node, run,
};

const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd69, 0, 0, 0, 0, 0, 0, 0x10));
const NO_NAME: u8 = 3;
/// Of the agent, in the test's own namespace.
const METRICS: &str = "127.0.0.1:9464";

#[test]
fn pods_find_services_by_name() {
    let more = &[
        "--cluster-dns",
        "169.254.20.10",
        "--cluster-dns",
        "fd69::10",
        "--cluster-dns-upstream",
        "127.0.0.1:5353",
        "--metrics",
        METRICS,
    ];
    on_a_node(more, |host, state| {
        story(host, state);
        let process = proxy(host);
        if host.agent.is_some() {
            host.kill("-KILL");
        }
        let (fine, text) = host.agent(&["cleanup", "--state-dir", host.dir.join("state").to_str().unwrap()]);
        assert!(fine, "{text}");
        let command = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        assert!(command.is_empty(), "the DNS process is removed as well");
        for family in ["-4", "-6"] {
            let words = [family, "route", "show", "table", "local", "proto", "77"];
            let routes = Command::new("ip").args(words).output().unwrap();
            assert_eq!(String::from_utf8(routes.stdout).unwrap(), "", "and so is the way to it");
        }
        run(&["ip", "netns", "delete", &name("pay")]);
    });
}

fn backend(address: &str, hostname: &str) -> wire::Backend {
    wire::Backend {
        address: address.into(),
        port: 5432,
        weight: 1,
        hostname: hostname.into(),
        ..Default::default()
    }
}

fn web() -> wire::Service {
    wire::Service {
        name: "shop/web".into(),
        addresses: vec!["10.101.0.1".into(), "fd00:2::1".into()],
        ports: vec![wire::ServicePort {
            port: 80,
            protocol: wire::Protocol::Tcp as i32,
            name: "http".into(),
            ..Default::default()
        }],
        exported: true,
        ..Default::default()
    }
}

fn db(backends: Vec<wire::Backend>) -> wire::Service {
    wire::Service {
        name: "shop/db".into(),
        headless: true,
        ports: vec![wire::ServicePort {
            port: 5432,
            protocol: wire::Protocol::Tcp as i32,
            name: "sql".into(),
            backends,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn story(host: &mut Host<'_>, state: &Arc<State>) {
    state.declare("mesh/gw");
    state.declare("shop/pay");
    state.put("1", &wire::PolicyClass { id: 1, ..Default::default() });
    // The pod may go nowhere but there, at DNS's port.
    let servers = ["169.254.20.10/32", "fd69::10/128"].map(|cidr| {
        [wire::Protocol::Udp, wire::Protocol::Tcp].map(|protocol| wire::PolicyRule {
            direction: wire::Direction::Egress as i32,
            action: wire::Action::Allow as i32,
            cidr: cidr.into(),
            protocol: protocol as i32,
            port: 53,
            provenance: "ciliumnetworkpolicy/shop/dns#egress[0]".into(),
            ..Default::default()
        })
    });
    let rules = servers.concat();
    let class = wire::PolicyClass { id: 2, default_deny_egress: true, rules, ..Default::default() };
    state.put("2", &class);
    state.put("shop/web", &web());
    state.put("shop/db", &db(vec![backend("10.1.2.3", "db-0"), backend("fd00:1::203", "db-0")]));
    let others = serve_others();
    host.start();
    host.add("pay");
    let (fine, answer) = host.cni("ADD", "pay");
    assert!(fine, "{answer}");
    assert_eq!(
        answer["dns"],
        json!({
            "nameservers": ["169.254.20.10", "fd69::10"],
            "search": ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"],
            "options": ["ndots:5"],
        })
    );

    // Each family and each transport, of either family.
    let sorted =
        |list: &[&str]| (0_u8, list.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<IpAddr>>());
    let told = |server, name: &str, kind, tcp| {
        ask(server, name, kind, tcp).map(|(code, all)| (code, all.into_iter().collect::<BTreeSet<_>>()))
    };
    eventually("services are known", || {
        (told(FOUR, "web.shop.svc.cluster.local", A, false)?.0 == 0).then_some(())
    });
    for server in [FOUR, SIX] {
        for tcp in [false, true] {
            let is = |name: &str, kind, list: &[&str]| {
                assert_eq!(told(server, name, kind, tcp), Some(sorted(list)), "{server} {name} {tcp}");
            };
            is("web.shop.svc.cluster.local", A, &["10.101.0.1"]);
            is("web.shop.svc.cluster.local", AAAA, &["fd00:2::1"]);
            is("web.shop.svc.clusterset.local", A, &["10.101.0.1"]);
            is("db.shop.svc.cluster.local", A, &["10.1.2.3"]);
            is("db-0.db.shop.svc.cluster.local", AAAA, &["fd00:1::203"]);
            assert_eq!(ask(server, "none.shop.svc.cluster.local", A, tcp), Some((NO_NAME, vec![])));
            assert_eq!(ask(server, "db.shop.svc.clusterset.local", A, tcp), Some((NO_NAME, vec![])));
        }
        // What is not the cluster's is for others.
        assert_eq!(told(server, "www.example.com", A, false), Some(sorted(&["192.0.2.99"])));
    }

    // All of it is counted. (Some may have been asked twice.)
    for (result, least) in [("answered", 20), ("no-name", 8), ("forwarded", 2)] {
        eventually("questions are counted", || (counted(result)? >= least).then_some(()));
    }
    assert_eq!([counted("malformed"), counted("crowded")], [Some(0); 2]);

    // With the C library, by short names.
    let found = |name: &str| resolved(host, name);
    assert_eq!(found("web"), ["10.101.0.1", "fd00:2::1"].map(|text| text.parse().unwrap()).into());
    assert_eq!(found("db-0.db"), ["10.1.2.3", "fd00:1::203"].map(|text| text.parse().unwrap()).into());
    assert_eq!(found("none.shop.svc.cluster.local."), BTreeSet::new());

    // A change is told; nobody ready is no name.
    state.put("shop/db", &db(vec![backend("10.1.2.4", "db-1")]));
    eventually("the change is known", || {
        (told(SIX, "db.shop.svc.cluster.local", A, false)? == sorted(&["10.1.2.4"])).then_some(())
    });
    state.put("shop/db", &db(vec![]));
    eventually("nobody is ready", || {
        (ask(FOUR, "db.shop.svc.cluster.local", A, false)?.0 == NO_NAME).then_some(())
    });
    let (fine, text) = host.agent(&["status", "--socket", host.socket().to_str().unwrap()]);
    assert!(fine && text.contains("cluster DNS     answers at 169.254.20.10, fd69::10\n"), "{text}");

    // Where policy says which names may be asked for, the proxy asks on.
    let mut judged = class.clone();
    let only = wire::NamePattern { pattern: "**.cluster.local".into(), ..Default::default() };
    for rule in &mut judged.rules {
        rule.action = wire::Action::QualifiedAllow as i32;
        rule.l7 = Some(wire::L7 { dns: vec![only.clone()], ..Default::default() });
    }
    state.put("2", &judged);
    eventually("the proxy judges", || (ask(FOUR, "www.example.com", A, false)?.0 == REFUSED).then_some(()));
    for (server, tcp) in [(FOUR, false), (FOUR, true), (SIX, false), (SIX, true)] {
        eventually("the proxy asks on", || {
            (told(server, "web.shop.svc.cluster.local", A, tcp)? == sorted(&["10.101.0.1"])).then_some(())
        });
    }
    state.put("2", &class);
    eventually("it does not any more", || {
        (told(FOUR, "www.example.com", A, false)? == sorted(&["192.0.2.99"])).then_some(())
    });

    // Without an agent, and by a process that has begun without one.
    let process = proxy(host);
    host.kill("-KILL");
    assert_eq!(told(FOUR, "web.shop.svc.cluster.local", A, false), Some(sorted(&["10.101.0.1"])));
    let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
    let words: Vec<String> = line
        .split(|byte| *byte == 0)
        .skip(1)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect();
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    run(&["kill", "-KILL", &process.to_string()]);
    let mut alone = Command::new(env!("CARGO_BIN_EXE_node-agent")).args(&words).spawn().unwrap();
    eventually("what was remembered is answered", || {
        (told(SIX, "web.shop.svc.cluster.local", AAAA, true)? == sorted(&["fd00:2::1"])).then_some(())
    });
    host.start();
    assert_eq!(proxy(host), alone.id(), "it was taken over");
    state.put("shop/db", &db(vec![backend("10.1.2.5", "")]));
    eventually("it is told again", || {
        (told(FOUR, "10-1-2-5.db.shop.svc.cluster.local", A, false)? == sorted(&["10.1.2.5"])).then_some(())
    });
    let _ = alone.kill();
    alone.wait().unwrap();
    eventually("it is back", || (ask(FOUR, "web.shop.svc.cluster.local", A, false)?.0 == 0).then_some(()));
    drop(others);
}

/// Questions with this result, as the agent's metrics have it.
fn counted(result: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(METRICS).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    let start = format!("isthmus_agent_cluster_dns_questions_total{{result=\"{result}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

/// What `getaddrinfo` says in the pod, whose `resolv.conf` is as the plugin said.
fn resolved(host: &Host<'_>, name: &str) -> BTreeSet<IpAddr> {
    let text = "nameserver 169.254.20.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    let file = host.dir.join("resolv.conf");
    std::fs::write(&file, text).unwrap();
    let asked =
        format!("mount --bind {} /etc/resolv.conf && exec getent ahosts {name}", file.to_str().unwrap());
    let pod = format!("--net={}", netns("pay"));
    let output =
        Command::new("nsenter").args([&pod, "--", "unshare", "-m", "sh", "-c", &asked]).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// A server for all other names, on the node: it says the same of each.
fn serve_others() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:5353").unwrap();
    let served = socket.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = served.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 99]);
            let _ = served.send_to(&answer, from);
        }
    });
    socket
}
