//! Policies in every language that a user may write, through every layer to the loaded programs: what the oracle says of a
//! flow, reading the objects, is what becomes of its first packet at the pod's door (`BPF_PROG_TEST_RUN`). Between the two
//! are the compiler, the wire, the agent's reading, its planner and the maps. Needs root.
//!
//! `EQUIVALENCE_CASES` raises how many sets of policies are drawn.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[path = "../../../control-plane/model/src/compile/generate_cilium.rs"]
mod generate_cilium;
#[path = "../../../control-plane/model/src/compile/generate_cluster.rs"]
mod generate_cluster;
#[path = "../../../control-plane/model/src/compile/generate_network.rs"]
#[allow(dead_code, reason = "shared with the model's own tests")]
mod generate_network;
#[path = "../../../node-agent/tests/support/mod.rs"]
mod support;
mod world;

use std::net::IpAddr;

use ebpf_shared::{Direction, Packet, packet::protocol};
use mesh_model::{
    compile::{Action, FlowProtocol},
    policy::{Flow, FlowPeer, verdict},
};
use node_agent::{
    engine::Engine,
    kernel::Kernel,
    maps::{KernelMaps, verify},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use support::{
    cases,
    frames::{echo, frame, syn, udp},
    in_sandbox,
};
use world::{Cluster, LO, OUTSIDE, drawn};

const CASES: usize = 250;

/// The first packet of a flow between two addresses.
fn first_packet(kind: FlowProtocol, source: IpAddr, destination: IpAddr, own: u16, port: u16) -> Packet {
    match kind {
        FlowProtocol::Tcp => syn((source, own), (destination, port)),
        FlowProtocol::Udp => udp((source, own), (destination, port)),
        FlowProtocol::Sctp => support::frames::packet(protocol::SCTP, (source, own), (destination, port), 0),
        FlowProtocol::Icmp | FlowProtocol::Icmpv6 => echo(source, destination, own),
    }
}

/// What is asked in each family.
fn questions(is_v4: bool) -> Vec<(FlowProtocol, u16)> {
    let echo = if is_v4 { (FlowProtocol::Icmp, 8 << 8) } else { (FlowProtocol::Icmpv6, 128 << 8) };
    let ports = [79, 80, 81, 8080].map(|port| (FlowProtocol::Tcp, port));
    ports
        .into_iter()
        .chain([(FlowProtocol::Udp, 80), (FlowProtocol::Udp, 53), (FlowProtocol::Sctp, 80), echo])
        .collect()
}

struct Checked {
    flows: usize,
    allowed: usize,
    own_port: u16,
}

impl Checked {
    /// Every peer, both ways, at the door of the first workload.
    fn check(&mut self, cluster: &Cluster, kernel: &Kernel) {
        let (own, own_addresses) = cluster.first();
        let mut peers: Vec<(FlowPeer, IpAddr)> = Vec::new();
        for (workload, addresses) in cluster.others() {
            peers.extend(addresses.iter().map(|address| (FlowPeer::Workload(workload.clone()), *address)));
        }
        peers.extend(OUTSIDE.map(|text| {
            let address: IpAddr = text.parse().unwrap();
            (FlowPeer::Address(address), address)
        }));
        for (peer, address) in peers {
            let own_address = own_addresses[usize::from(address.is_ipv6())];
            let me = FlowPeer::Workload(own.clone());
            for (protocol, port) in questions(address.is_ipv4()) {
                for way in [Direction::Ingress, Direction::Egress] {
                    let (ends, from, to) = match way {
                        Direction::Ingress => ((peer.clone(), me.clone()), address, own_address),
                        Direction::Egress => ((me.clone(), peer.clone()), own_address, address),
                    };
                    let flow = Flow { source: ends.0, destination: ends.1, protocol, port };
                    let said = verdict(cluster.world(), &flow);
                    let said = if way == Direction::Ingress { said.ingress } else { said.egress };
                    self.own_port = 10_000 + (self.own_port + 1) % 50_000;
                    let packet = first_packet(protocol, from, to, self.own_port, port);
                    let passes = kernel.try_frame(way, &frame(&packet)).unwrap();
                    assert_eq!(
                        passes,
                        said.action == Action::Allow,
                        "{way:?} {flow:?}, of which the oracle says {said:?}, under {}",
                        cluster.shown()
                    );
                    self.flows += 1;
                    self.allowed += usize::from(passes);
                }
            }
        }
    }
}

#[test]
fn what_the_oracle_says_of_policies_in_any_language_is_what_the_programs_do() {
    in_sandbox(|sandbox| {
        let kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let maps = world::Shared::new(KernelMaps::new(kernel));
        let mut runner = TestRunner::deterministic();
        let strategy = drawn();
        let mut checked = Checked { flows: 0, allowed: 0, own_port: 0 };
        let mut policies = 0;
        for case in 0..cases(CASES) {
            let cluster = strategy.new_tree(&mut runner).expect("drawn").current();
            policies += cluster.policies();
            // From what the case before has left in the kernel, as after a restart.
            let engine = Engine::new(world::own_node(), Box::new(maps.clone())).unwrap();
            for update in cluster.told() {
                engine.load(&update).unwrap_or_else(|error| panic!("{error}: {}", cluster.shown()));
            }
            engine.load_pod(cluster.first().0, world::pod(&cluster));
            engine.synchronise().unwrap();
            maps.with(|maps| {
                // Flows of the case before are not asked of.
                checked.check(&cluster, maps.kernel());
            });
            if case % 50 == 0 {
                let verified = engine.kernel(|desired, _| verify(&sandbox.bpffs(), desired)).unwrap();
                assert!(verified.iter().all(|map| map.differences.is_empty()), "{verified:?}");
            }
            for _ in 0..3 {
                engine.collect().unwrap();
            }
            assert_eq!(LO, 1, "where test runs happen");
        }
        println!(
            "{} cases, {policies} policies, {} flows, of which {} pass",
            cases(CASES),
            checked.flows,
            checked.allowed
        );
        assert!(checked.allowed * 20 > checked.flows && checked.allowed * 20 < checked.flows * 19);
    });
}
