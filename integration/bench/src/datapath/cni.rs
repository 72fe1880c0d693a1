//! CNI ADD by the plugin's program: one at a time, and sixteen at once.

use super::{agent::Agent, area::Scale, support::Sandbox};
use crate::{
    report::{Goal, Row},
    stats::quantile,
};

const AT_ONCE: usize = 16;
const GOAL: Goal = Goal::AtMost(50.0);

pub(super) fn measure(sandbox: &Sandbox, scale: &Scale, says: &dyn Fn(String)) -> Vec<Row> {
    says("cni".into());
    let agent = Agent::start(sandbox, |_| ());
    let pods: Vec<String> = (0..AT_ONCE.max(scale.pods)).map(|number| format!("pod{number}")).collect();
    for pod in &pods {
        agent.declare(pod);
    }
    let milliseconds = |pod: &String| agent.cni("ADD", pod).0.as_secs_f64() * 1e3;
    let remove = |pods: &[String]| {
        for pod in pods {
            agent.cni("DEL", pod);
        }
    };
    // Warm, and not counted.
    milliseconds(&pods[0]);
    remove(&pods[..1]);
    let mut alone = Vec::new();
    for pods in pods[..scale.pods].chunks(AT_ONCE) {
        alone.extend(pods.iter().map(milliseconds));
        remove(pods);
    }
    says(format!("cni: {AT_ONCE} at once"));
    let mut at_once = Vec::new();
    for pods in pods[..scale.pods].chunks(AT_ONCE) {
        let times: Vec<f64> = std::thread::scope(|scope| {
            let running: Vec<_> = pods.iter().map(|pod| scope.spawn(|| milliseconds(pod))).collect();
            running.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        at_once.extend(times);
        remove(pods);
    }
    let mut rows = Vec::new();
    for (what, times) in [("one at a time".to_owned(), alone), (format!("{AT_ONCE} at once"), at_once)] {
        rows.push(Row::alone(format!("CNI ADD, {what}, p50"), "ms", &times, None));
        rows.push(Row::alone(format!("CNI ADD, {what}, p99"), "ms", &[quantile(&times, 0.99)], Some(GOAL)));
    }
    rows
}
