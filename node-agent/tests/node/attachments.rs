//! CNI beyond one pod at a time: chains, ports, many at once, and what the runtime has forgotten.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use node_agent::cni::Netns;
use serde_json::{Value, json};
use xds_proto::isthmus::agent::v1::{LocalEndpoint, Readiness, Service, WorkloadAddress};

use crate::{
    Host, attempts,
    control_plane::{State, eventually, eventually_within, identity, local},
    greeted, links, name, netns, run, serve_in, six,
};

/// Pods that come at once.
const CROWD: usize = 64;

pub fn chains_ports_and_garbage(host: &Host<'_>, state: &Arc<State>, pay: Ipv4Addr) {
    let (fine, again) = host.cni("ADD", "pay");
    assert!(fine && again["interfaces"][1]["mtu"] == 1400, "of the uplink: {again}");
    assert!(host.cni("STATUS", "pay").0);
    readiness(state);
    limited(host, state, pay);
    ports(host, state);
    chain_after_ptp(host, state);
    chain_after_bridge(host, state);
    crowd(host, state);
    assert!(host.cni("CHECK", "pay").0 && attempts("web", pay, 8080) == [true, true]);
}

fn readiness(state: &Arc<State>) {
    assert!(state.is_ready("shop/pay") && state.is_ready("shop/evil"), "as soon as they are there");
    let probe = |probe: Readiness| {
        let readiness = Some(Readiness { period_ms: 100, failures: 2, ..probe });
        state.put("shop/evil", &LocalEndpoint { readiness, ..local("shop", "evil") });
    };
    probe(Readiness { tcp_port: 9090, ..Default::default() });
    eventually("nobody listens", || (!state.is_ready("shop/evil")).then_some(()));
    serve_in("evil", 9090);
    eventually("somebody listens", || state.is_ready("shop/evil").then_some(()));
    // What answers there is no HTTP.
    probe(Readiness { http_port: 9090, http_path: "/healthz".into(), ..Default::default() });
    eventually("the answer is none", || (!state.is_ready("shop/evil")).then_some(()));
    // Told of again, because the control plane has lost it, it is no readier than before.
    let evil: Ipv4Addr = state.reported("shop/evil").unwrap().parse().unwrap();
    state.lose("shop/evil");
    let told =
        eventually_within(Duration::from_secs(30), "it is told of again", || state.told_ready("shop/evil"));
    assert!(!told, "the probe fails");
    let found = WorkloadAddress {
        name: "shop/evil".into(),
        addresses: vec![evil.to_string(), six(evil).to_string()],
        identity: identity("evil"),
        ..Default::default()
    };
    state.put("shop/evil", &found);
    state.put("shop/evil", &local("shop", "evil"));
    eventually("it is not asked any more", || state.is_ready("shop/evil").then_some(()));
}

/// STATUS, while a pod that is there has lost its traffic: it is no longer a workload.
fn limited(host: &Host<'_>, state: &Arc<State>, pay: Ipv4Addr) {
    assert!(host.cni("STATUS", "web").0);
    assert_eq!(attempts("web", pay, 8080), [true, true]);
    state.take_back::<LocalEndpoint>("shop/web");
    let answer = eventually("it has no traffic", || {
        let (fine, answer) = host.cni("STATUS", "web");
        (!fine).then_some(answer)
    });
    assert_eq!(answer["code"], 51, "{answer}");
    let text = answer["msg"].as_str().unwrap();
    assert!(text.contains("1 of 3 pods have no traffic") && text.contains("shop/web"), "{answer}");
    assert_eq!(answer["cniVersion"], "1.1.0");
    assert_eq!(attempts("web", pay, 8080), [false, false]);
    state.put("shop/web", &local("shop", "web"));
    eventually("it has it again", || host.cni("STATUS", "web").0.then_some(()));
    assert_eq!(attempts("web", pay, 8080), [true, true]);
}

fn ports(host: &Host<'_>, state: &Arc<State>) {
    let mapped = |host_ip: &str| {
        let port = json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": host_ip });
        json!({ "runtimeConfig": { "portMappings": [port] } })
    };
    let add = |pod: &str, more: &Value| host.cni_with("ADD", pod, pod, pod, "eth0", more);
    for pod in ["first", "other"] {
        state.declare(&format!("shop/{pod}"));
        run(&["ip", "netns", "add", &name(pod)]);
    }
    assert!(add("first", &mapped("192.0.2.1")).0);
    assert!(add("first", &mapped("192.0.2.1")).0, "the same once more");
    let (fine, answer) = add("other", &mapped(""));
    assert!(!fine && answer["code"] == 100, "{answer}");
    assert!(answer["msg"].as_str().unwrap().contains("shop/first"), "{answer}");
    let (fine, answer) = add("other", &mapped("nowhere"));
    assert!(!fine && answer["code"] == 7, "{answer}");
    assert_eq!(state.reported("shop/other"), None);
    assert!(add("other", &mapped("192.0.2.2")).0);
    for pod in ["first", "other"] {
        assert!(host.cni_in("DEL", pod, pod, pod, "eth0").0);
        run(&["ip", "netns", "delete", &name(pod)]);
    }
}

/// A pod as the `ptp` plugin makes it, and what that plugin answers.
fn ptp(pod: &str, address: &str) -> Value {
    run(&["ip", "netns", "add", &name(pod)]);
    run(&["ip", "link", "add", "vethp", "type", "veth", "peer", "name", "eth0", "netns", &name(pod)]);
    run(&["ip", "address", "add", "10.1.1.1/32", "dev", "vethp"]);
    run(&["ip", "link", "set", "vethp", "up"]);
    run(&["ip", "route", "add", address, "dev", "vethp", "scope", "host"]);
    let inside = |arguments: &[&str]| run(&[&["ip", "-n", &name(pod)], arguments].concat());
    inside(&["address", "add", &format!("{address}/32"), "dev", "eth0"]);
    inside(&["link", "set", "eth0", "up"]);
    inside(&["route", "add", "10.1.1.1", "dev", "eth0", "scope", "link"]);
    inside(&["route", "add", "default", "via", "10.1.1.1"]);
    let (node, own) = ("fd00:1::1ff", six(address.parse().unwrap()).to_string());
    run(&["ip", "address", "add", &format!("{node}/128"), "dev", "vethp", "nodad"]);
    run(&["ip", "route", "add", &own, "dev", "vethp"]);
    inside(&["address", "add", &format!("{own}/128"), "dev", "eth0", "nodad"]);
    inside(&["route", "add", node, "dev", "eth0"]);
    inside(&["route", "add", "default", "via", node, "dev", "eth0"]);
    both(result("vethp", pod, address, "10.1.1.1"))
}

/// The same with the IPv6 address that the pod has.
fn both(mut result: Value) -> Value {
    let ips = result["prevResult"]["ips"].as_array_mut().unwrap();
    let four = ips[0]["address"].as_str().unwrap().trim_end_matches("/32").parse().unwrap();
    ips.push(json!({ "interface": 1, "address": format!("{}/128", six(four)), "gateway": "fd00:1::1ff" }));
    result
}

fn result(host_end: &str, pod: &str, address: &str, gateway: &str) -> Value {
    json!({ "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": host_end }, { "name": "eth0", "sandbox": netns(pod) }],
        "ips": [{ "interface": 1, "address": format!("{address}/32"), "gateway": gateway }],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": {}
    } })
}

fn chain_after_ptp(host: &Host<'_>, state: &Arc<State>) {
    let chained = |verb: &str, more: &Value| host.cni_with(verb, "payptp", "ptp", "payptp", "eth0", more);
    state.declare("shop/payptp");
    let address = Ipv4Addr::new(10, 1, 1, 200);
    let previous = ptp("payptp", "10.1.1.200");
    serve_in("payptp", 8080);
    let from = |pod: &str| attempts(pod, address, 8080);
    // (A moment goes by until the kernel is sure of its own addresses.)
    eventually("anybody may, as long as nobody guards it", || (from("evil") == [true, true]).then_some(()));

    // What is not as it was said to be is refused, and left as it is.
    for (wrong, word) in [
        (both(result("vethp", "payptp", "10.1.1.201", "10.1.1.1")), "10.1.1.201"),
        (both(result("vethp", "payptp", "10.9.9.9", "10.1.1.1")), "10.1.1.0/24"),
        (json!({ "prevResult": "x" }), "no result"),
    ] {
        let (fine, answer) = chained("ADD", &wrong);
        assert!(!fine && answer["msg"].as_str().unwrap().contains(word), "{word}: {answer}");
    }
    assert_eq!(state.reported("shop/payptp"), None);

    // Services are heard of, so what the node's ports lead to is known as well.
    state.put("shop/none", &Service { name: "shop/none".into(), ..Default::default() });
    let mut wanted = previous.clone();
    let port = json!({ "hostPort": 8088, "containerPort": 8080, "protocol": "tcp" });
    wanted["runtimeConfig"] = json!({ "portMappings": [port] });
    let (fine, answer) = chained("ADD", &wanted);
    assert!(fine && answer == previous["prevResult"], "{answer}");
    assert_eq!(state.reported("shop/payptp"), Some("10.1.1.200".into()));
    assert_eq!((from("web"), from("evil")), ([true, true], [false, false]), "its policy holds");
    let by_port = |pod: &str| {
        let inside = Netns::open(&netns(pod)).unwrap();
        ["192.0.2.1:8088", "[2001:db8::1]:8088"].map(|node| {
            let node: SocketAddr = node.parse().unwrap();
            inside.run(move || greeted(node)).unwrap()
        })
    };
    assert_eq!(
        (by_port("web"), by_port("evil")),
        ([true, true], [false, false]),
        "the node's port leads to it"
    );
    for address in [IpAddr::V4(address), six(address).into()] {
        assert!(greeted(SocketAddr::new(address, 8080)), "the node may: {address}");
    }
    assert!(chained("ADD", &wanted).0, "the same once more");
    assert!(chained("CHECK", &previous).0);
    let (fine, answer) = chained("CHECK", &both(result("vethp", "payptp", "10.1.1.201", "10.1.1.1")));
    assert!(!fine && answer["code"] == 101, "{answer}");

    // The other plugin's things are there after DEL, and closed until that plugin removes them.
    assert!(chained("DEL", &previous).0 && chained("DEL", &previous).0);
    assert_eq!(state.reported("shop/payptp"), None);
    run(&["ip", "link", "show", "vethp"]);
    assert_eq!((from("web"), by_port("web")), ([false, false], [false, false]));
    run(&["ip", "link", "delete", "vethp"]);
    let pins = host.sandbox.bpffs().join("links");
    let doors = || std::fs::read_dir(&pins).unwrap().flatten().filter(is_door).count();
    eventually("its programs are forgotten", || (doors() == 6 * links().len()).then_some(()));
    run(&["ip", "netns", "delete", &name("payptp")]);
}

fn is_door(link: &std::fs::DirEntry) -> bool {
    link.file_name().to_str().is_some_and(|name| name.starts_with("tc-"))
}

fn chain_after_bridge(host: &Host<'_>, state: &Arc<State>) {
    run(&["ip", "link", "add", "cni0", "type", "bridge"]);
    run(&["ip", "address", "add", "10.1.1.129/25", "dev", "cni0"]);
    run(&["ip", "link", "set", "cni0", "up"]);
    let pods = [("paybr", "10.1.1.210"), ("otherbr", "10.1.1.211")];
    let chained = |verb: &str, pod: &str, address: &str| {
        let more = result(&format!("v{pod}"), pod, address, "10.1.1.129");
        host.cni_with(verb, pod, pod, pod, "eth0", &more)
    };
    for (pod, address) in pods {
        state.declare(&format!("shop/{pod}"));
        run(&["ip", "netns", "add", &name(pod)]);
        let end = format!("v{pod}");
        run(&["ip", "link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", &name(pod)]);
        run(&["ip", "link", "set", &end, "master", "cni0", "up"]);
        let inside = |arguments: &[&str]| run(&[&["ip", "-n", &name(pod)], arguments].concat());
        inside(&["address", "add", &format!("{address}/25"), "dev", "eth0"]);
        inside(&["link", "set", "eth0", "up"]);
        inside(&["route", "add", "default", "via", "10.1.1.129"]);
        let (fine, answer) = chained("ADD", pod, address);
        assert!(fine, "{answer}");
        serve_in(pod, 8080);
    }
    // Switched by the bridge, never routed: the doors are at its ports.
    let [paybr, otherbr] = pods.map(|(_, address)| address.parse::<Ipv4Addr>().unwrap());
    assert!(attempts("paybr", otherbr, 8080)[0] && !attempts("otherbr", paybr, 8080)[0]);
    assert!(greeted(SocketAddr::new(IpAddr::V4(paybr), 8080)), "the node may");
    for (pod, address) in pods {
        assert!(chained("CHECK", pod, address).0 && chained("DEL", pod, address).0);
        run(&["ip", "link", "delete", &format!("v{pod}")]);
        run(&["ip", "netns", "delete", &name(pod)]);
    }
    run(&["ip", "link", "delete", "cni0"]);
}

fn crowd(host: &Host<'_>, state: &Arc<State>) {
    let before = links().len();
    let pods: Vec<String> = (0..CROWD).map(|number| format!("crowd{number}")).collect();
    for pod in &pods {
        state.declare(&format!("shop/{pod}"));
        run(&["ip", "netns", "add", &name(pod)]);
    }
    let all_at_once = || -> Vec<(Duration, Value)> {
        std::thread::scope(|scope| {
            let one = |pod: &String| {
                let pod = pod.clone();
                scope.spawn(move || {
                    let began = Instant::now();
                    let (fine, answer) = host.cni("ADD", &pod);
                    assert!(fine, "{pod}: {answer}");
                    (began.elapsed(), answer)
                })
            };
            let running: Vec<_> = pods.iter().map(one).collect();
            running.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    let shown = |what: &str, mut times: Vec<Duration>| {
        times.sort();
        println!("{CROWD} ADDs {what}: median {:?}, longest {:?}", times[CROWD / 2], times[CROWD - 1]);
    };
    let one_by_one = pods.iter().map(|pod| {
        let began = Instant::now();
        assert!(host.cni("ADD", pod).0);
        began.elapsed()
    });
    shown("one by one", one_by_one.collect());
    let del = |pod: &String| assert!(host.cni("DEL", pod).0);
    pods.iter().for_each(del);
    let first = all_at_once();
    shown("at once", first.iter().map(|(time, _)| *time).collect());
    let mut addresses: Vec<_> = first.iter().map(|(_, answer)| answer["ips"][0]["address"].clone()).collect();
    addresses.sort_by_key(Value::to_string);
    addresses.dedup();
    assert_eq!(addresses.len(), CROWD);
    let again = all_at_once();
    assert!(first.iter().zip(&again).all(|((_, one), (_, two))| one["ips"] == two["ips"]));
    assert_eq!(links().len(), before + CROWD);
    assert!(host.cni("STATUS", "web").0);

    // The runtime knows the first of them, and of another network it knows nothing.
    let attachment = |container: &str| json!({ "containerID": container, "ifname": "eth0" });
    let known = ["container-pay", "container-web", "container-evil", "container-crowd0"].map(attachment);
    let gc = |more: &Value| host.cni_with("GC", "web", "none", "web", "eth0", more);
    let (fine, answer) = gc(&json!({}));
    assert!(!fine && answer["code"] == 7, "{answer}");
    assert!(gc(&json!({ "name": "strangers", "cni.dev/valid-attachments": [] })).0);
    assert_eq!(links().len(), before + CROWD);
    let (fine, answer) =
        gc(&json!({ "cni.dev/valid-attachments": &known[..2], "cni.dev/attachments": known }));
    assert!(fine, "{answer}");
    assert_eq!(links().len(), before + 1);
    assert!(host.cni("CHECK", "crowd0").0 && state.reported("shop/crowd1").is_none());
    assert!(host.cni("DEL", "crowd0").0 && host.cni("DEL", "crowd1").0);
    for pod in &pods {
        run(&["ip", "netns", "delete", &name(pod)]);
    }
}

pub fn a_namespace_that_is_not_free_is_left_as_it_is(host: &Host<'_>, state: &Arc<State>) {
    let refused = |pod: &str, container: &str, of: &str, ifname: &str, words: &[&str]| {
        let before = (network(of), links());
        let (fine, answer) = host.cni_in("ADD", pod, container, of, ifname);
        assert!(!fine && answer["code"] == 100, "{answer}");
        let text = answer["msg"].as_str().unwrap();
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {answer}");
        assert_eq!((network(of), links()), before, "{answer}");
    };
    // Of another pod, whether or not the workload is declared, and on whatever interface.
    state.declare("shop/second");
    for pod in ["stranger", "second"] {
        for ifname in ["eth0", "eth1"] {
            refused(pod, "other", "pay", ifname, &["shop/pay", "container-pay"]);
            refused(pod, "container-pay", "pay", ifname, &["shop/pay", "container-pay"]);
        }
    }
    assert_eq!(state.reported("shop/second"), None);

    // Of someone else than this plugin: an interface of that name, or the default route.
    run(&["ip", "netns", "add", &name("second")]);
    let inside = |arguments: &[&str]| run(&[&["ip", "-n", &name("second")], arguments].concat());
    inside(&["link", "add", "eth0", "type", "veth", "peer", "name", "far0"]);
    refused("second", "container-second", "second", "eth0", &["interface eth0"]);
    inside(&["address", "add", "198.51.100.2/24", "dev", "eth0"]);
    inside(&["link", "set", "eth0", "up"]);
    inside(&["route", "add", "default", "via", "198.51.100.1", "metric", "5"]);
    refused("second", "container-second", "second", "eth1", &["default route via 198.51.100.1"]);
    // An undeclared workload in a namespace that has no pod, but a network of its own.
    inside(&["route", "delete", "default"]);
    refused("stranger", "container-stranger", "second", "eth1", &["apply it first"]);
    inside(&["link", "delete", "eth0"]);
    // What was refused before is fine when nothing is in the way; and a namespace made anew is another one.
    assert!(host.cni("ADD", "second").0);
    run(&["ip", "netns", "delete", &name("second")]);
    host.add("second");
    assert!(host.cni("CHECK", "second").0 && host.cni("DEL", "second").0);
    run(&["ip", "netns", "delete", &name("second")]);
}

/// The interfaces, addresses and routes of a pod.
fn network(pod: &str) -> Vec<String> {
    let tables: [&[&str]; 2] = [&["-o", "address"], &["route", "show", "table", "all"]];
    let shown = tables.map(|table| {
        let output = Command::new("ip").args(["-n", &name(pod)]).args(table).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    });
    shown.into()
}
