//! New connections to services, and a stream to one, of a pod to pods beside it.
//!
//! Ours twice: by the hooks at the pod's sockets, and by packets, for a client that no hook sees. The service is another one
//! each time, as a list is as long for the first as for the last only in the mean.

use std::net::SocketAddr;

use ebpf_shared::packet::protocol::TCP;

use super::{
    area::Scale,
    client::{Place, accept, answer},
    count,
    kube_proxy::{feed, iptables, nftables},
    node::{Node, PORT, PORTS, serve, virtual_address},
    support::{Sandbox, pods::Family},
};
use crate::report::{Goal, Row};

/// A client, the server, and another client: one pod's sockets are either hooked or not. (Where both kinds of connections
/// lead from the same port to the same backend, they are the same to it.)
const PODS: &[u8] = &[5, 6, 7];
const SERVER: usize = 1;
/// Of each service.
const BACKENDS: u16 = 3;

/// The iptables that there may be, the first that works first: kube-proxy's own, of older tables, and the one that writes
/// nftables.
const IPTABLES: [&str; 2] = ["iptables-legacy", "iptables-nft"];

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    let mut rows = Vec::new();
    let most = scale.services.iter().max().copied();
    for services in scale.services {
        says(format!("services: {}", count(*services)));
        let world = World::new(sandbox, *services);
        let direct = world.backends[0];
        // Ours by sockets and by packets, the baselines, without a service. Only ours have a policy, by which each end judges.
        let mut latency = vec![Vec::new(); 6];
        let mut slowest = vec![Vec::new(); 6];
        let mut rate = vec![Vec::new(); 6];
        let cases = [
            (&world.ours, true, Some(*services)),
            (&world.ours, false, Some(*services)),
            (&world.iptables, false, Some(*services)),
            (&world.nftables, false, Some(*services)),
            (&world.plain, false, None),
            (&world.ours, false, None),
        ];
        for round in 0..scale.rounds {
            for turn in 0..cases.len() {
                let which = (turn + round) % cases.len();
                let (node, hooked, services) = cases[which];
                let place = Place {
                    pod: &node.pods[if hooked { 0 } else { 2 }],
                    cgroup: hooked.then(|| sandbox.cgroup.clone()),
                };
                let found = place.connect(services, direct, scale.connects, false);
                latency[which].push(found[0] / 1e3);
                slowest[which].push(found[1] / 1e3);
                rate[which].push(found[2]);
            }
        }
        let size = count(*services);
        let names = [world.program, "nftables maps", "no service, no policy", "no service, same policy"];
        for (ours, way) in [(0, "by sockets"), (1, "by packets")] {
            for (baseline, name) in (2..).zip(names) {
                let goal = (baseline == 2).then_some(Goal::RatioAtMost(1.0));
                let what = format!("connect to a service {way}, of {size}");
                rows.push(Row::compared(&what, "us", &latency[ours], &latency[baseline], name, goal));
                if baseline == 2 {
                    let what = format!("{what}, p99");
                    rows.push(Row::compared(what, "us", &slowest[ours], &slowest[baseline], name, None));
                    let what = format!("connects {way}, of {size}");
                    rows.push(Row::compared(what, "1/s", &rate[ours], &rate[baseline], name, None));
                }
            }
        }
        if Some(*services) == most {
            rows.extend(streams(sandbox, &world, scale, &size));
        }
    }
    rows
}

/// A stream to the last service.
fn streams(sandbox: &Sandbox, world: &World, scale: &Scale, size: &str) -> Vec<Row> {
    let at = SocketAddr::new(virtual_address(world.services as u32).into(), PORT);
    let cases =
        [(&world.ours, true), (&world.ours, false), (&world.iptables, false), (&world.nftables, false)];
    let mut found = vec![Vec::new(); cases.len()];
    for round in 0..scale.rounds {
        for turn in 0..cases.len() {
            let which = (turn + round) % cases.len();
            let (node, hooked) = cases[which];
            let place = Place {
                pod: &node.pods[if hooked { 0 } else { 2 }],
                cgroup: hooked.then(|| sandbox.cgroup.clone()),
            };
            found[which].push(place.stream(at, scale.stream_ms));
        }
    }
    let row = |way: &str, ours: usize, name: &str, baseline: usize| {
        let what = format!("stream to a service {way}, of {size}");
        Row::compared(what, "MB/s", &found[ours], &found[baseline], name, None)
    };
    vec![
        row("by sockets", 0, world.program, 2),
        row("by sockets", 0, "nftables maps", 3),
        row("by packets", 1, world.program, 2),
        row("by packets", 1, "nftables maps", 3),
    ]
}

/// The same pods and services four times.
struct World {
    services: usize,
    /// One of [`IPTABLES`].
    program: &'static str,
    backends: Vec<SocketAddr>,
    ours: Node,
    iptables: Node,
    nftables: Node,
    plain: Node,
}

impl World {
    fn new(sandbox: &Sandbox, services: usize) -> Self {
        let mut ours = Node::guarded(sandbox, &format!("services{services}"), PODS);
        ours.enforce(0, &[]);
        let at = ours.pods[SERVER].addr(Family::V4);
        let backends: Vec<SocketAddr> =
            (1..=BACKENDS).map(|number| SocketAddr::new(at, PORTS.0 + number)).collect();
        // The one more answers.
        let talker = SocketAddr::new(at, PORTS.0);
        let kernel = ours.kernel();
        for service in 0..services as u32 {
            serve(kernel, virtual_address(service), TCP, &backends);
        }
        serve(kernel, virtual_address(services as u32), TCP, &[talker]);
        let (iptables, nftables) = (Node::plain(PODS), Node::plain(PODS));
        let program = iptables.netns.run(|| {
            IPTABLES
                .into_iter()
                .find(|program| is_there(program))
                .expect("`make bench-datapath` installs iptables")
        });
        let world = Self { services, program, backends, ours, iptables, nftables, plain: Node::plain(PODS) };
        world.translate(talker);
        for node in [&world.ours, &world.iptables, &world.nftables, &world.plain] {
            for backend in &world.backends {
                accept(&node.pods[SERVER].netns, *backend);
            }
            answer(&node.pods[SERVER].netns, talker);
        }
        world
    }

    fn translate(&self, talker: SocketAddr) {
        let last = virtual_address(self.services as u32);
        let (text, program) = (iptables(self.services, &self.backends), self.program);
        self.iptables.netns.run(move || {
            feed(&format!("{program}-restore"), &[], &text);
            let at = format!(
                "-A KUBE-SERVICES -d {last}/32 -p tcp --dport {PORT} -j DNAT --to-destination {talker}"
            );
            super::support::run(&[vec![program, "-t", "nat"], at.split(' ').collect()].concat());
        });
        let text = nftables(self.services, &self.backends);
        self.nftables.netns.run(move || {
            feed("nft", &["-f", "-"], &text);
            let more = format!(
                "add chain ip kube-proxy last {{ meta l4proto tcp dnat to {talker}; }}\n\
                 add element ip kube-proxy service-ips {{ {last} . tcp . {PORT} : goto last }}\n"
            );
            feed("nft", &["-f", "-"], &more);
        });
    }
}

/// Whether the kernel has what it needs.
fn is_there(program: &str) -> bool {
    let listed = std::process::Command::new(program).args(["-t", "nat", "-S"]).output();
    listed.is_ok_and(|listed| listed.status.success())
}
