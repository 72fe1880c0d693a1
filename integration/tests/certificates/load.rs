//! Envoy reports its load to the agent, the agent to a replica.

use anyhow::{Result, ensure};
use integration::{
    story::{Narrator, World},
    testbed::{
        traffic::{count, sample},
        wait_until,
    },
};

use crate::mesh::PATIENCE;

const REQUESTS: f64 = 50.0;

pub fn report(mesh: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let (west, bed) = (mesh.west()?, &mesh.bed);
    let counted = |outcome: &str| -> Result<f64> {
        let mut sum = 0.0;
        for replica in west.replicas.keys() {
            let page = west.replica_metrics(bed, *replica)?;
            let labels = ["cluster=\"outbound|8080|pay.shop\"", &format!("outcome=\"{outcome}\"")];
            sum += sample(&page, "isthmus_load_requests_total", &labels);
        }
        Ok(sum)
    };
    let before = counted("succeeded")?;
    let call = west.call(bed, "catalog", "pay", &["-n", &REQUESTS.to_string()])?;
    ensure!(count(&call, "/ok") == REQUESTS as u64, "{call}");
    let after = wait_until("the load report of catalog's Envoy", PATIENCE, || {
        let now = counted("succeeded")?;
        Ok((now >= before + REQUESTS).then_some(now))
    })?;
    let agent = west.agent_metrics(bed, 2)?;
    ensure!(sample(&agent, "isthmus_agent_connected", &[]) == 1.0, "{agent}");
    ensure!(sample(&agent, "isthmus_agent_streams", &["kind=\"relayed\""]) >= 3.0, "{agent}");
    ensure!(sample(&agent, "isthmus_agent_packets_total", &["reason=\"FORWARDED\""]) > 0.0, "{agent}");
    ensure!(sample(&agent, "isthmus_agent_nacks_total", &[]) == 0.0, "{agent}");
    Ok(vec![format!("{after} requests of catalog to pay are counted, {before} of them from before")])
}
