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

use std::{collections::BTreeMap, net::IpAddr};

use ebpf_shared::{Direction, Packet, Reason, packet::protocol};
use mesh_model::{
    compile::{Action, FlowProtocol},
    policy::{Decision, Flow, FlowPeer, verdict},
};
use node_agent::{
    desired::{Desired, Dictionary},
    engine::Engine,
    kernel::{
        Kernel,
        verdict::{Emulation, Policy},
    },
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

/// The verdict without a kernel, on what the kernel is to hold.
fn emulation(kernel: &Kernel, desired: &Desired) -> Emulation {
    let policy = Policy {
        classes: desired.classes.clone(),
        rulesets: desired.rulesets.clone(),
        identities: (*desired.identities).clone(),
        lingering: desired.lingering.clone(),
        epoch: 0,
    };
    Emulation { policy, endpoints: kernel.endpoints.dump().unwrap(), ..Emulation::default() }
}

#[derive(Default)]
struct Checked {
    flows: usize,
    reasons: BTreeMap<&'static str, usize>,
    own_port: u16,
}

impl Checked {
    /// Every peer, both ways, at the door of the first workload.
    fn check(&mut self, cluster: &Cluster, kernel: &Kernel, desired: &Desired, dictionary: &Dictionary) {
        let mut emulation = emulation(kernel, desired);
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
                    let ruling = emulation.decide(LO, way, &packet, 0).ruling;
                    let by = dictionary.provenance(ruling.policy_id);
                    let is_said = passes == ruling.passes()
                        && is_as_said(ruling.reason, by, &said, cluster.has_tiers());
                    assert!(
                        is_said,
                        "{way:?} {flow:?}: passes the programs: {passes}, the maps say {ruling:?} by {by:?}, and the \
                         oracle {said:?}, under {}",
                        cluster.shown()
                    );
                    self.flows += 1;
                    *self.reasons.entry(ruling.reason.name()).or_default() += 1;
                }
            }
        }
    }

    fn of(&self, reason: Reason) -> usize {
        self.reasons.get(reason.name()).copied().unwrap_or(0)
    }
}

/// Whether what the maps say is what the oracle does, and for one of the reasons that it gives. Beside tiers, what nobody is
/// allowed is told as the default's, and what audited policies would deny is told of only as far as it is a rule.
fn is_as_said(reason: Reason, by: Option<&str>, said: &Decision, has_tiers: bool) -> bool {
    let named = |among: &[String]| by.is_some_and(|by| among.iter().any(|name| name == by));
    match reason {
        Reason::Audited => {
            let is_by = named(&said.audit) || has_tiers && !said.audit.is_empty();
            said.action == Action::Allow && is_by
        }
        Reason::DefaultDeny if has_tiers => said.action == Action::Deny && by.is_some(),
        Reason::DefaultDeny | Reason::PolicyDenied => said.action == Action::Deny && named(&said.provenance),
        Reason::Forwarded => {
            let is_by = by.is_none() || said.provenance.is_empty() || named(&said.provenance);
            said.action == Action::Allow && !said.redirect && (said.audit.is_empty() || has_tiers) && is_by
        }
        // What a proxy is to read, and there is none.
        Reason::ProxyGone => said.action == Action::Allow && said.redirect && named(&said.provenance),
        _ => false,
    }
}

#[test]
fn what_the_oracle_says_of_policies_in_any_language_is_what_the_programs_do() {
    in_sandbox(|sandbox| {
        let kernel = Kernel::load(&sandbox.bpffs(), &sandbox.cgroup).expect("the programs load");
        let maps = world::Shared::new(KernelMaps::new(kernel));
        let mut runner = TestRunner::deterministic();
        let strategy = drawn();
        let mut checked = Checked::default();
        let (mut policies, mut refused) = (0, 0);
        for case in 0..cases(CASES) {
            let cluster = strategy.new_tree(&mut runner).expect("drawn").current();
            if cluster.is_too_large() {
                refused += 1;
                continue;
            }
            policies += cluster.policies();
            // From what the case before has left in the kernel, as after a restart.
            let engine = Engine::new(world::own_node(), Box::new(maps.clone())).unwrap();
            for update in cluster.told() {
                engine.load(&update).unwrap_or_else(|error| panic!("{error}: {}", cluster.shown()));
            }
            engine.load_pod(cluster.first().0, world::pod(&cluster));
            engine.synchronise().unwrap();
            maps.with(|maps| {
                let kernel = maps.kernel();
                // Flows of the case before are not asked of.
                engine.kernel(|desired, dictionary| checked.check(&cluster, kernel, desired, dictionary));
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
            "{} cases ({refused} too large for an agent), {policies} policies, {} flows: {:?}",
            cases(CASES),
            checked.flows,
            checked.reasons
        );
        assert!(refused * 100 < cases(CASES), "{refused} are too large");
        assert!(checked.of(Reason::ProxyGone) > 0, "nothing was for a proxy");
        for reason in [Reason::Forwarded, Reason::DefaultDeny, Reason::PolicyDenied, Reason::Audited] {
            assert!(checked.of(reason) * 200 > checked.flows, "{reason:?} is not drawn often enough");
        }
    });
}
