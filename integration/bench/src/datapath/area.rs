//! What is measured, and how much of it.

use std::sync::mpsc::channel;

use clap::ValueEnum;

use super::{
    cni, forward, memory, packets, policy, services, sockets, streams,
    support::{Sandbox, in_sandbox},
};
use crate::report::Row;

/// A part of the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Area {
    /// Nanoseconds per packet of the programs at a pod's door, by test-run, as identities and services grow.
    Packets,
    /// Packets from pod to pod over veth, beside nftables with the same policy.
    Forward,
    /// New connections to services, beside kube-proxy's chains of iptables and its maps of nftables.
    Services,
    /// What the socket hooks add to a connect, and to what follows.
    Sockets,
    /// TCP throughput and round trips from pod to pod, on one node and across nodes.
    Streams,
    /// A revision arrives with a changed policy: until the first packet is judged by it.
    Policy,
    /// CNI ADD.
    Cni,
    /// Resident memory and idle processor time of an agent.
    Memory,
}

/// How much of everything. Times are only worth anything at [`Scale::WHOLE`].
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Scale {
    /// Identities and services by which a packet's path is measured.
    pub sizes: &'static [usize],
    /// Services of kube-proxy.
    pub services: &'static [usize],
    /// Interleaved rounds.
    pub rounds: usize,
    /// Runs of a program on one packet, in a round.
    pub repeats: u32,
    /// Flows, if every packet is of another one.
    pub flows: usize,
    /// Packets that meet cold caches.
    pub cold: usize,
    /// Packets of a flood, in a round.
    pub packets: usize,
    /// Connects to a service, in a round.
    pub connects: usize,
    /// Connects without packets, in a round.
    pub datagram_connects: usize,
    /// Milliseconds of a stream, in a round.
    pub stream_ms: u64,
    /// Round trips, in a round.
    pub trips: usize,
    /// Rules of the class whose change is measured.
    pub rules: usize,
    /// Changes of it.
    pub changes: usize,
    /// Pods made one after the other, and as many at once in sixteens.
    pub pods: usize,
    /// Endpoints elsewhere that the agent knows.
    pub endpoints: usize,
    /// Seconds for which it is left alone.
    pub idle_s: u64,
}

impl Scale {
    /// What the goals are about.
    pub const WHOLE: Self = Self {
        sizes: &[10, 1_000, 100_000],
        services: &[100, 1_000, 10_000],
        rounds: 11,
        repeats: 200_000,
        flows: 20_000,
        cold: 60,
        packets: 100_000,
        connects: 500,
        datagram_connects: 50_000,
        stream_ms: 700,
        trips: 8_000,
        rules: 10_000,
        changes: 200,
        pods: 96,
        endpoints: 100_000,
        idle_s: 20,
    };
    /// Proves that it all runs.
    pub const TINY: Self = Self {
        sizes: &[3, 10],
        services: &[5],
        rounds: 1,
        repeats: 100,
        flows: 10,
        cold: 2,
        packets: 200,
        connects: 10,
        datagram_connects: 50,
        stream_ms: 20,
        trips: 20,
        rules: 20,
        changes: 4,
        pods: 4,
        endpoints: 500,
        idle_s: 1,
    };
}

type Measure = fn(&Sandbox, &Scale, &dyn Fn(String)) -> Vec<Row>;

/// Measures an area in a sandbox of its own. `says` is told what comes next. No rows if SKIP_PRIVILEGED=1.
pub fn measure(area: Area, scale: &Scale, says: impl Fn(String) + Send + 'static) -> Vec<Row> {
    let (tell, told) = channel();
    let scale = scale.clone();
    in_sandbox(move |sandbox| {
        let of: Measure = match area {
            Area::Packets => packets::measure,
            Area::Forward => forward::measure,
            Area::Services => services::measure,
            Area::Sockets => sockets::measure,
            Area::Streams => streams::measure,
            Area::Policy => policy::measure,
            Area::Cni => cni::measure,
            Area::Memory => memory::measure,
        };
        let _ = tell.send(of(sandbox, &scale, &says));
    });
    told.recv().unwrap_or_default()
}
