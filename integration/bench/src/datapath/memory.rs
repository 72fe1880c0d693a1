//! What an agent takes that knows many endpoints elsewhere, and what it does when nothing happens.

use std::{fs, time::Duration};

use xds_proto::{isthmus::agent::v1 as wire, to_any};

use super::{agent::Agent, area::Scale, count, node::other, support::Sandbox};
use crate::report::{Goal, Row};

/// Workloads that share an identity.
const REPLICAS: usize = 10;

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    let endpoints = scale.endpoints;
    says(format!("memory: {} endpoints", count(endpoints)));
    let mut agent = Agent::start(sandbox, |_| ());
    agent.add("web");
    let resident = |agent: &Agent| agent.process.resident().expect("it runs") as f64 / 1e6;
    let before = resident(&agent);
    let addresses = (0..endpoints).map(|number| {
        let name = format!("team-{}/app-{}-{}", number / 1_000, number / REPLICAS, number % REPLICAS);
        let address = wire::WorkloadAddress {
            name: name.clone(),
            addresses: vec![other(number as u32).to_string()],
            identity: 10_000 + (number / REPLICAS) as u32,
            spiffe_id: format!(
                "spiffe://west.example/ns/team-{}/sa/app-{}",
                number / 1_000,
                number / REPLICAS
            ),
            node: format!("node-{}", number / 100),
        };
        (name, to_any(&address))
    });
    agent.state.put_all(addresses);
    // And what the node itself has.
    agent.wait("the addresses are in the kernel", |agent| hosts(&agent.status()) > endpoints);
    says("memory: until it comes to rest".into());
    // The cache is written behind.
    agent.wait("nothing is left to be done", |agent| is_at_rest(agent.process.id()));
    says(format!("memory: idle for {} s", scale.idle_s));
    let after = resident(&agent);
    let (start, time) = (busy(agent.process.id()), Duration::from_secs(scale.idle_s));
    std::thread::sleep(time);
    let share = (busy(agent.process.id()) - start) as f64 / time.as_nanos() as f64 * 100.0;
    agent.process.check().expect("it still runs");
    assert_eq!(agent.state.refused(), Vec::<String>::new());
    let size = count(endpoints);
    vec![
        Row::alone("agent that knows nobody, resident", "MB", &[before], None),
        Row::alone(
            format!("agent with {size} endpoints, resident"),
            "MB",
            &[after],
            Some(Goal::AtMost(150.0)),
        ),
        Row::alone("the same, at its most", "MB", &[peak(agent.process.id())], None),
        Row::alone("the same, idle", "% of a core", &[share], Some(Goal::AtMost(0.5))),
    ]
}

/// Entries of HOSTS, by the agent's status.
fn hosts(status: &str) -> usize {
    let told = status.split("HOSTS ").nth(1).and_then(|rest| rest.split('/').next());
    told.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Nanoseconds that a process has run, threads that have ended included, to ten milliseconds.
fn busy(process: u32) -> u64 {
    const TICK: u64 = 10_000_000;
    let text = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // proc_pid_stat(5): utime and stime, the 14th and 15th; the 2nd, in brackets, may have spaces.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * TICK
}

/// Whether a process has next to nothing to do: within a moment, no more than 2 % of a core.
fn is_at_rest(process: u32) -> bool {
    const MOMENT: Duration = Duration::from_millis(500);
    let start = busy(process);
    std::thread::sleep(MOMENT);
    busy(process) - start < MOMENT.as_nanos() as u64 / 50
}

/// The most memory that was ever resident, in MB.
fn peak(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN);
    kib * 1024.0 / 1e6
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_status_tells_how_many_addresses_the_kernel_has() {
        assert_eq!(super::hosts("maps            HOSTS 120/262144, CIDRS 1/65536\n"), 120);
        assert_eq!(super::hosts("maps            empty\n"), 0);
    }
}
