//! Traffic while everything changes.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use integration::{
    story::{Narrator, World},
    testbed::{
        Cluster, Testbed,
        traffic::{Load, count},
    },
};
use serde_json::Value;

use super::ways::{call, of_pod, of_store, store};

/// Only `web` is let in, at the port of the service and at one more that changes; and nodes, of which the first has the
/// gateway's address and so is known as the gateway.
fn guard(another: u16) -> String {
    let gateway = "{kubernetes.io/metadata.name: isthmus-system}";
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: store-guard, namespace: shop}}\nspec:\n  \
         podSelector: {{matchLabels: {{app: store}}}}\n  policyTypes: [Ingress]\n  ingress:\n    \
         - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]\n      \
         ports: [{{port: 8080}}, {{port: 8080, protocol: UDP}}, {{port: {another}}}]\n    \
         - from: [{{ipBlock: {{cidr: 10.200.0.0/16}}}}, {{namespaceSelector: {{matchLabels: {gateway}}}}}]\n"
    )
}

pub fn deny(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let before = call(world, "stranger", of_pod(world.west()?, "store-2")?[0], 3_000)?;
    ensure!(count(&before, "/ok") == 1, "before the policy: {before}");
    apply(world.west()?, &guard(9_000))?;
    let mut proof = Vec::new();
    for to in of_pod(world.west()?, "store-2")?.into_iter().chain(of_store(world.west()?)?) {
        let denied = call(world, "stranger", to, 700)?;
        ensure!(count(&denied, "/ok") == 0, "the stranger still reaches {to}: {denied}");
        let allowed = call(world, "web", to, 3_000)?;
        ensure!(count(&allowed, "/ok") == 1, "web lost {to}: {allowed}");
        proof.push(format!("{to}: stranger no, web yes"));
    }
    let text =
        world.west()?.clustermesh(&["observe", "--last", "500", "--verdict", "DROPPED", "-o", "json"])?;
    ensure!(text.contains("store-guard"), "no flow names the policy: {text}");
    Ok(proof)
}

fn apply(west: &Cluster, objects: &str) -> Result<()> {
    let output = west.clustermesh_at(1, &["apply", "-f", "-", "--wait"], Some(objects))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Requests on kept connections and on new ones, and datagrams, of both families, to a pod of the other node.
struct Traffic {
    stop: PathBuf,
    clients: Vec<(String, Load)>,
}

impl Traffic {
    fn start(bed: &Testbed, west: &Cluster, name: &str) -> Result<Self> {
        let stop = bed.folder().join(format!("stop-{name}"));
        let until = stop.display().to_string();
        let mut clients = Vec::new();
        for to in of_pod(west, "store-2")? {
            let words = ["--until", &until, "-n", "100000000", "--pause-ms", "3"];
            let fresh = [&words[..], &["--new-connections"]].concat();
            for (what, client, words) in [
                ("kept", "call", &words[..]),
                ("new", "call", &fresh[..]),
                ("datagrams", "datagrams", &words[..]),
            ] {
                clients.push((format!("{what} {to}"), west.client(bed, "web", client, to, words)?));
            }
        }
        Ok(Self { stop, clients })
    }

    /// Every client has answers from now on.
    fn goes_on(&self) -> Result<()> {
        self.clients.iter().try_for_each(|(what, load)| load.goes_on(60).with_context(|| what.clone()))
    }

    /// Nothing is lost, and what began goes on.
    fn end(self) -> Result<String> {
        std::fs::write(&self.stop, b"")?;
        let mut sent = 0;
        for (what, load) in self.clients {
            let report = load.report()?;
            ensure!(count(&report, "/sent") > 50, "{what}: too little to tell: {report}");
            if what.starts_with("datagrams") {
                ensure!(count(&report, "/answered") == count(&report, "/sent"), "{what}: {report}");
            } else {
                ensure!(count(&report, "/failed") == 0, "{what}: {report}");
            }
            if what.starts_with("kept") {
                ensure!(count(&report, "/connections") == 1, "{what}: {report}");
            }
            sent += count(&report, "/sent");
        }
        Ok(format!("{sent} requests and datagrams by both families, lost: 0"))
    }
}

pub fn policies(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let west = world.west()?;
    let traffic = Traffic::start(&world.bed, west, "policies")?;
    let mut wrong = 0;
    for round in 0..12 {
        narrator.progress(&format!("policy {round}"));
        apply(west, &guard(9_001 + round))?;
        let denied = world.pod("stranger")?.call(
            &world.bed,
            &[
                "--to",
                &of_pod(west, "store-2")?[usize::from(round % 2)].to_string(),
                "--host",
                "shop",
                "--timeout-ms",
                "200",
            ],
        )?;
        wrong += count(&denied, "/ok");
    }
    ensure!(wrong == 0, "the stranger was let in {wrong} times");
    Ok(vec![format!("12 policies: {}; the stranger was never let in", traffic.end()?)])
}

pub fn agents(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let (bed, west) = world.west_mut()?;
    let traffic = Traffic::start(bed, west, "agents")?;
    traffic.goes_on()?;
    for node in 1..=west.plan.nodes {
        narrator.progress(&format!("the agent of node {node}"));
        west.agents.remove(&node).context("the agent runs")?.kill();
        west.start_agent(bed, node)?;
    }
    traffic.goes_on()?;
    Ok(vec![format!("both agents killed, their successors replaced the programs: {}", traffic.end()?)])
}

pub fn backends(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let west = world.west()?;
    let stop = world.bed.folder().join("stop-backends");
    let until = stop.display().to_string();
    let words = ["--until", &until, "-n", "100000000", "-c", "6", "--pause-ms", "3", "--timeout-ms", "10000"];
    let loads = of_store(west)?.map(|to| west.client(&world.bed, "web", "call", to, &words));
    let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
    loads.iter().try_for_each(|load| load.goes_on(100))?;
    // It lives on, and is none of the service's any more.
    apply(west, &store("store-2", true))?;
    // More than one each, whoever of them has had to move.
    loads.iter().try_for_each(|load| load.goes_on(600))?;
    std::fs::write(&stop, b"")?;
    let mut proof = Vec::new();
    for load in loads {
        let report = load.report()?;
        ensure!(report.pointer("/last/version").and_then(Value::as_str) == Some("v1"), "{report}");
        let failed = count(&report, "/failed");
        ensure!(failed <= 6, "of 6 connections {failed} requests failed: {report}");
        ensure!(!report["errors"].to_string().contains("in time"), "one waited in vain: {report}");
        proof.push(format!("{} requests on 6 connections: {failed} reset and moved at once", report["sent"]));
    }
    apply(west, &store("store-2", false))?;
    Ok(proof)
}
