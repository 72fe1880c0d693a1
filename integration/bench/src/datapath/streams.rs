//! TCP from pod to pod, on one node and across nodes, beside plain links and routes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ebpf_shared::{Addr, nat::NodeConfig};

use super::{
    area::Scale,
    client::{Place, answer},
    node::{Node, PORTS},
    support::{Sandbox, pods::Family, run},
};
use crate::report::Row;

const HERE: &[u8] = &[5, 6];
const THERE: &[u8] = &[7];

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    says("streams".into());
    let ours = Pair::new(Node::guarded(sandbox, "here", HERE), Node::guarded(sandbox, "there", THERE));
    let plain = Pair::new(Node::plain(HERE), Node::plain(THERE));
    let mut rows = Vec::new();
    for (where_to, to) in [("on one node", ours.here.pods[1].v4), ("across nodes", ours.there.pods[0].v4)] {
        says(format!("streams: {where_to}"));
        let to = SocketAddr::new(to.into(), PORTS.0);
        let pairs = [&ours, &plain, &plain];
        let mut found = vec![[const { Vec::new() }; 3]; 2];
        for round in 0..scale.rounds {
            for turn in 0..pairs.len() {
                let which = (turn + round) % pairs.len();
                let client = Place { pod: &pairs[which].here.pods[0], cgroup: None };
                found[0][which].push(client.stream(to, scale.stream_ms));
                found[1][which].push(client.trips(to, scale.trips));
            }
        }
        for (times, (what, unit)) in found.iter().zip([("stream", "MB/s"), ("round trip", "us")]) {
            let [ours, plain, again] = times;
            let name = format!("{what} {where_to}");
            rows.push(Row::compared(format!("A/A {name}"), unit, plain, again, "itself", None));
            rows.push(Row::compared(name, unit, ours, plain, "plain", None));
        }
    }
    rows
}

/// Two nodes on one wire.
struct Pair {
    here: Node,
    there: Node,
}

impl Pair {
    fn new(mut here: Node, mut there: Node) -> Self {
        let addresses = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        run(&["ip", "link", "add", "wire-here", "type", "veth", "peer", "name", "wire-there"]);
        here.netns.take("wire-here");
        there.netns.take("wire-there");
        connect(&here, "wire-here", addresses, &there);
        connect(&there, "wire-there", [addresses[1], addresses[0]], &here);
        let [near, far] = [&here, &there]
            .map(|node| -> Vec<IpAddr> { node.pods.iter().map(|pod| pod.addr(Family::V4)).collect() });
        for (node, friends, own, ifname) in
            [(&mut here, far, addresses[0], "wire-here"), (&mut there, near, addresses[1], "wire-there")]
        {
            if node.kernel.is_some() {
                node.enforce(0, &friends);
                watch(node, own, ifname);
            }
        }
        for pod in here.pods.iter().chain(&there.pods) {
            answer(&pod.netns, pod.at(Family::V4, PORTS.0));
        }
        Self { here, there }
    }
}

/// An address on the wire, and routes to the other's pods.
fn connect(node: &Node, ifname: &'static str, [own, other]: [Ipv4Addr; 2], far: &Node) {
    let pods: Vec<Ipv4Addr> = far.pods.iter().map(|pod| pod.v4).collect();
    node.netns.run(move || {
        run(&["ip", "addr", "add", &format!("{own}/24"), "dev", ifname]);
        run(&["ip", "link", "set", ifname, "up"]);
        for pod in pods {
            run(&["ip", "route", "add", &pod.to_string(), "via", &other.to_string(), "dev", ifname]);
        }
    });
}

/// With the programs at the node's interface, as of an agent that serves clients outside.
fn watch(node: &mut Node, own: Ipv4Addr, ifname: &'static str) {
    let config = NodeConfig {
        v4: Addr::from(IpAddr::V4(own)),
        first_port: 61_000,
        last_port: 61_999,
        ..NodeConfig::default()
    };
    let Some(mut kernel) = node.kernel.take() else { return };
    let kernel = node.netns.run(move || {
        kernel.set_net(&[ifname.to_owned()], config, None).expect("attachable");
        kernel
    });
    node.kernel = Some(kernel);
}
