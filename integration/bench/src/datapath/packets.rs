//! What a packet costs in the programs at a pod's door, by running the loaded ones on frames (`BPF_PROG_TEST_RUN`).
//!
//! * hot: one established flow, run again and again within one call; the least of some calls. What a program that does nothing
//!   takes is in it, and in what two programs take together once.
//! * spread: as many established flows, with another identity or service each, as there are; one call each.
//! * cold: the same, with the processor's caches overwritten before each.
//! * new: the first packet of a flow, which is judged and told of (or whose backend is chosen).
//!
//! A program that translates has changed the frame when it is run on it again, so the service of the hot row has itself as
//! its backend: everything is looked up, chosen and rewritten, to what it was.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ebpf_shared::{
    Endpoint,
    packet::{protocol::TCP, tcp},
};
use node_agent::kernel::{EventRing, Kernel};

use super::{
    area::Scale,
    count,
    empty::Empty,
    node::{CLASS, POD, PORT, PORTS, allow, other, serve, virtual_address},
    support::{
        Sandbox,
        frames::{frame, more, packet, syn},
    },
};
use crate::{
    report::{Goal, Row},
    stats::median,
};

const LO: u32 = 1;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const AIM: Goal = Goal::AtMost(120.0);
const FLAT: Goal = Goal::RatioAtMost(1.1);
/// Calls for one figure of a hot row.
const RUNS: u32 = 20;
/// More than the second-level cache, and than a share of the last.
const EVICTED: usize = 48 << 20;
const PROGRAMS: [Program; 3] = [
    Program { name: "from_pod", what: "policy, from a pod" },
    Program { name: "to_pod", what: "policy, to a pod" },
    Program { name: "pod_asks", what: "service, from a pod" },
];

#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    what: &'static str,
}

/// A kernel with so many identities and services.
struct Sized {
    size: usize,
    kernel: Kernel,
    events: EventRing,
    /// Flows of the rows that are not hot, by program: the first packet of each and a later one.
    flows: [Vec<[Vec<u8>; 2]>; 3],
}

impl Sized {
    fn new(sandbox: &Sandbox, size: usize, flows: usize) -> Self {
        let bpffs = sandbox.bpffs().join(format!("size{size}"));
        let mut kernel = Kernel::load(&bpffs, &sandbox.cgroup).expect("the programs load");
        let events = kernel.events().expect("not taken yet");
        allow(&mut kernel, size);
        let endpoint =
            Endpoint { identity: POD, class: CLASS, v4: IpAddr::V4(ADDRESS).into(), ..Endpoint::default() };
        kernel.endpoints.upsert(LO, endpoint).expect("writable");
        let hot = virtual_address(0);
        serve(&mut kernel, hot, TCP, &[(hot, PORT).into()]);
        for number in 1..=size as u32 {
            let backends = [number, number / 2].map(|at| SocketAddr::new(other(at).into(), PORTS.0));
            serve(&mut kernel, virtual_address(number), TCP, &backends);
        }
        let flow = |number: usize, program: &Program| {
            // Far from the one before.
            let at = (number * 7919 % size) as u32;
            let port = 10_000 + (number / size) as u16;
            let opening = match program.name {
                "from_pod" => syn((ADDRESS, port), (other(at), PORTS.0)),
                "to_pod" => syn((other(at), port), (ADDRESS, PORTS.0)),
                _ => syn((ADDRESS, port), (virtual_address(at + 1), PORT)),
            };
            [frame(&opening), frame(&more(&opening, tcp::ACK))]
        };
        let flows = PROGRAMS.map(|program| (0..flows).map(|number| flow(number, &program)).collect());
        Self { size, kernel, events, flows }
    }

    /// Nanoseconds of one run.
    fn run(&self, program: Program, frame: &[u8], times: u32) -> f64 {
        let (returned, time) = self.kernel.time_program(program.name, frame, times).expect("a test run");
        assert_ne!(returned, 2, "{} drops it", program.name);
        time.as_nanos() as f64
    }

    /// Of one established flow.
    fn hot(&self, program: Program, times: u32) -> f64 {
        let ends: [(Ipv4Addr, u16); 2] = match program.name {
            "from_pod" => [(ADDRESS, 4000), (other(0), PORTS.0)],
            "to_pod" => [(other(0), 4000), (ADDRESS, PORTS.0)],
            _ => [(ADDRESS, 4000), (virtual_address(0), PORT)],
        };
        let opening = packet(TCP, ends[0], ends[1], tcp::SYN);
        self.run(program, &frame(&opening), 1);
        let later = frame(&more(&opening, tcp::ACK));
        // The least of some: whatever else runs on the processor meanwhile is no cost of the packet's.
        let runs = (0..RUNS).map(|_| self.run(program, &later, times / RUNS + 1));
        runs.fold(f64::INFINITY, f64::min)
    }

    /// The first packets of all flows, in the median, and then a later one of each.
    fn spread(&mut self, place: usize) -> [f64; 2] {
        let mut found = [Vec::new(), Vec::new()];
        for (which, times) in found.iter_mut().enumerate() {
            for number in 0..self.flows[place].len() {
                times.push(self.run(PROGRAMS[place], &self.flows[place][number][which], 1));
                if number % 1_000 == 0 {
                    self.forget_news();
                }
            }
            self.forget_news();
        }
        found.map(|times| median(&times))
    }

    fn cold(&self, place: usize, samples: usize, evict: &mut [u8]) -> f64 {
        let flows = &self.flows[place];
        let times: Vec<f64> = (0..samples)
            .map(|sample| {
                for at in (0..evict.len()).step_by(64) {
                    evict[at] = evict[at].wrapping_add(1);
                }
                let flow = &flows[sample * 997 % flows.len()];
                self.run(PROGRAMS[place], &flow[1], 1)
            })
            .collect();
        median(&times)
    }

    /// Nobody reads them here, and a full ring would be another path.
    fn forget_news(&mut self) {
        while self.events.try_next().is_some() {}
    }
}

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    let mut sized: Vec<Sized> = Vec::new();
    for size in scale.sizes {
        says(format!("packets: {} identities and services", count(*size)));
        sized.push(Sized::new(sandbox, *size, scale.flows));
    }
    says("packets: hot".into());
    // By size and program.
    let mut hot = vec![[const { Vec::new() }; 3]; sized.len()];
    let (mut again, mut nothing) = (Vec::new(), Vec::new());
    let empty = Empty::load().expect("a program that does nothing");
    let any = sized[0].flows[0][0][1].clone();
    for round in 0..scale.rounds {
        for place in 0..sized.len() {
            let place = if round % 2 == 0 { place } else { sized.len() - 1 - place };
            for (program, times) in PROGRAMS.into_iter().zip(&mut hot[place]) {
                times.push(sized[place].hot(program, scale.repeats));
            }
        }
        again.push(sized[0].hot(PROGRAMS[0], scale.repeats));
        let runs = (0..RUNS).map(|_| empty.run(&any, scale.repeats / RUNS + 1).expect("a test run"));
        nothing.push(runs.fold(f64::INFINITY, f64::min));
    }
    let mut rows = vec![Row::compared("A/A hot from_pod", "ns", &hot[0][0], &again, "itself", None)];
    rows.push(Row::alone("a program that does nothing, hot", "ns", &nothing, None));
    let least = count(sized[0].size);
    for (sized, hot_here) in sized.iter().zip(&hot) {
        let size = count(sized.size);
        let mut row = |what: &str, times: &[f64], smallest: &[f64]| {
            let name = format!("{what}, hot, {size}");
            rows.push(Row::alone(&name, "ns", times, Some(AIM)));
            if sized.size > scale.sizes[0] {
                let name = format!("{name}, against {least}");
                rows.push(Row::compared(name, "ns", times, smallest, &least, Some(FLAT)));
            }
        };
        for (place, program) in PROGRAMS.iter().enumerate() {
            row(program.what, &hot_here[place], &hot[0][place]);
        }
        // One packet that meets both does not begin twice.
        let both = |times: &[Vec<f64>; 3]| -> Vec<f64> {
            let sums = times[0].iter().zip(&times[2]).zip(&nothing);
            sums.map(|((policy, service), nothing)| policy + service - nothing).collect()
        };
        row("service and policy, from a pod", &both(hot_here), &both(&hot[0]));
    }
    let mut evict = vec![0; EVICTED];
    for sized in &mut sized {
        says(format!("packets: spread and cold, {}", count(sized.size)));
        for (place, program) in PROGRAMS.iter().enumerate() {
            let size = count(sized.size);
            let [new, spread] = sized.spread(place);
            let rounds = scale.rounds.div_ceil(4);
            let cold: Vec<f64> = (0..rounds).map(|_| sized.cold(place, scale.cold, &mut evict)).collect();
            rows.push(Row::alone(format!("{}, new flow, {size}", program.what), "ns", &[new], None));
            rows.push(Row::alone(format!("{}, spread, {size}", program.what), "ns", &[spread], None));
            rows.push(Row::alone(format!("{}, cold, {size}", program.what), "ns", &cold, None));
        }
    }
    rows
}
