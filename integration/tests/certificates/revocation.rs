//! `clustermesh node revoke`, with a thief who has copied a workload's key before.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context, Result, ensure};
use integration::{
    story::{Narrator, World},
    testbed::{traffic::count, wait_until},
};

use crate::{
    mesh::{PATIENCE, data_planes},
    thief::Loot,
};

const NODE: u8 = 3;

pub fn revoke(mesh: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let (west, bed) = (mesh.west()?, &mesh.bed);
    let loot = Loot::steal(&west.agent_state(NODE), "shop_thief")?;
    // In the place of a pod of another node, which the kernel lets pass.
    let from = west.plan.pod_namespace("web");
    let server =
        |pod: &str| -> Result<SocketAddr> { Ok(format!("{}:8080", west.pod(pod)?.address).parse()?) };
    let ask = |pod: &str| loot.ask(&from, server(pod)?, &format!("{pod}.shop"));
    for pod in ["pay", "catalog"] {
        let answer = ask(pod)?;
        ensure!(answer.contains("200"), "before, {pod} answered {answer}");
    }

    let name = west.plan.node_name(NODE);
    let revoked = Instant::now();
    let unbound = west.clustermesh(&["node", "revoke", &name])?;
    ensure!(unbound.contains("shop/thief"), "{unbound}");
    wait_until("our proxy to refuse the copied certificate", PATIENCE, || {
        Ok(ask("pay").is_err().then_some(()))
    })?;
    let refused = revoked.elapsed();
    let why = ask("pay").err().context("pay answers the thief again")?;
    let agent = format!("agent~{name}");
    wait_until("the streams of the node to end", PATIENCE, || {
        let planes = data_planes(west)?;
        let of_node = |id: &str| id == agent || id.ends_with("~shop/thief");
        let here = planes.iter().filter(|plane| plane["id"].as_str().is_some_and(of_node));
        let connected: Vec<_> = here.filter(|plane| plane["state"] != "disconnected").collect();
        ensure!(connected.is_empty(), "{connected:?}");
        Ok(Some(()))
    })?;
    let ended = revoked.elapsed();
    wait_until("the agent to know that it is not heard", PATIENCE, || {
        let status = west.agent_status(bed, NODE)?;
        Ok(status.contains("not connected").then_some(()))
    })?;
    let call = west.call(bed, "thief", "vault", &["--new-connections", "--timeout-ms", "3000"])?;
    ensure!(count(&call, "/ok") == 0, "the workload of the revoked node still reaches vault: {call}");
    let neighbour = west.call(bed, "web", "vault", &["-n", "20", "--new-connections"])?;
    ensure!(count(&neighbour, "/ok") == 20, "a neighbour lost vault: {neighbour}");
    let envoy = ask("catalog");
    Ok(vec![
        format!("pay's proxy refused the copy {} ms after the command began ({why:#})", refused.as_millis()),
        format!("its streams were gone after {} ms", ended.as_millis()),
        format!("catalog's Envoy says {envoy:?}"),
    ])
}

pub fn restart(mesh: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let (bed, west) = mesh.west_mut()?;
    let mut agent = west.agents.remove(&NODE).context("the agent runs")?;
    agent.kill();
    let log = agent.log.clone();
    let before = std::fs::read_to_string(&log)?.len();
    drop(agent);
    west.start_agent(bed, NODE)?;
    let refused = wait_until("the agent to be refused", PATIENCE, || {
        let text = std::fs::read_to_string(&log)?;
        let new = text.get(before..).unwrap_or_default();
        Ok(new.lines().find(|line| line.contains("the control plane is not heard")).map(str::to_owned))
    })?;
    let status = west.agent_status(bed, NODE)?;
    ensure!(status.contains("not connected"), "{status}");
    let name = west.plan.node_name(NODE);
    let nodes = west.clustermesh(&["node", "list"])?;
    ensure!(!nodes.contains(&name), "{nodes}");
    // It is no member any more: nothing is to wait for it from here on.
    if let Some(mut agent) = west.agents.remove(&NODE) {
        agent.kill();
    }
    Ok(vec![format!("it logs: {refused}")])
}
