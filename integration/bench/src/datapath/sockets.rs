//! What the socket hooks add to a connect, and that they add nothing to what follows.

use std::net::SocketAddr;

use ebpf_shared::packet::protocol::{TCP, UDP};

use super::{
    area::Scale,
    client::{Place, accept, answer, ignore},
    count, minus,
    node::{Node, PORT, PORTS, serve, virtual_address},
    support::{Sandbox, pods::Family},
};
use crate::report::{Goal, Row};

const PODS: &[u8] = &[5, 6];

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    // Each for two protocols.
    let services = scale.sizes.last().map_or(1, |most| most.div_ceil(2));
    says(format!("sockets: {} services", count(services)));
    let mut node = Node::guarded(sandbox, "sockets", PODS);
    node.enforce(0, &[]);
    let server = node.pods[1].addr(Family::V4);
    let at = |number: u16| SocketAddr::new(server, PORTS.0 + number);
    let kernel = node.kernel();
    for service in 0..services as u32 {
        for protocol in [TCP, UDP] {
            serve(kernel, virtual_address(service), protocol, &[at(1), at(2)]);
        }
    }
    serve(kernel, virtual_address(services as u32), TCP, &[at(0)]);
    answer(&node.pods[1].netns, at(0));
    for number in [1, 2] {
        accept(&node.pods[1].netns, at(number));
    }
    let _ignored = [1, 2].map(|number| ignore(&node.pods[1].netns, at(number)).expect("free"));

    let bare = Place { pod: &node.pods[0], cgroup: None };
    let hooked = Place { pod: &node.pods[0], cgroup: Some(sandbox.cgroup.clone()) };
    let mut connects = vec![[const { Vec::new() }; 5]; 2];
    for round in 0..scale.rounds {
        for turn in 0..5 {
            let which = (turn + round) % 5;
            for (datagram, times) in [(true, scale.datagram_connects), (false, scale.connects)] {
                let found = match which {
                    0 => hooked.connect(Some(services), at(1), times, datagram),
                    1 => hooked.connect(None, at(1), times, datagram),
                    2 => bare.connect(None, at(1), times, datagram),
                    3 => hooked.connect(Some(1), at(1), times, datagram),
                    _ => bare.connect(None, at(2), times, datagram),
                };
                connects[usize::from(!datagram)][which].push(found[0]);
            }
        }
    }
    let mut rows = Vec::new();
    let size = count(services);
    for (times, kind) in connects.iter().zip(["datagram", "TCP"]) {
        let [service, direct, bare, one, again] = times;
        let name = format!("connect of a {kind} socket");
        rows.push(Row::compared(format!("A/A {name}"), "ns", bare, again, "itself", None));
        rows.push(Row::compared(
            format!("{name} to one of {size} services"),
            "ns",
            service,
            bare,
            "no hook, no service",
            None,
        ));
        // A TCP handshake is two orders of magnitude above what is looked for.
        let goal = (kind == "datagram").then_some(Goal::AtMost(1_000.0));
        rows.push(Row::alone(format!("added to the {name} to a service"), "ns", &minus(one, bare), goal));
        let cold = format!("added to the {name} to one of {size} services");
        rows.push(Row::alone(cold, "ns", &minus(service, bare), goal));
        rows.push(Row::alone(format!("added to the {name} to a pod"), "ns", &minus(direct, bare), goal));
    }

    says("sockets: what follows".into());
    let last = SocketAddr::new(virtual_address(services as u32).into(), PORT);
    let mut found = vec![[const { Vec::new() }; 2]; 2];
    for round in 0..scale.rounds {
        for turn in 0..2 {
            let which = (turn + round) % 2;
            let to = [last, at(0)][which];
            found[0][which].push(hooked.trips(to, scale.trips));
            found[1][which].push(hooked.stream(to, scale.stream_ms));
        }
    }
    let what = "on a connection to a service";
    let [trips, streams] = [&found[0], &found[1]];
    rows.push(Row::compared(format!("round trip {what}"), "us", &trips[0], &trips[1], "to the pod", None));
    rows.push(Row::compared(format!("stream {what}"), "MB/s", &streams[0], &streams[1], "to the pod", None));
    let kernel = node.kernel();
    let translated = kernel.nat.keys().expect("readable").len() as f64;
    rows.push(Row::alone(
        format!("packets' translations {what}"),
        "flows",
        &[translated],
        Some(Goal::AtMost(0.0)),
    ));
    rows
}
