//! The whole story, on a testbed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Narrator, Step, World,
    world::{example, identities},
};
use crate::testbed::{traffic::count, wait_until};

/// All steps, in order.
pub fn steps() -> Vec<Step<World>> {
    vec![
        Step { title: "Two clusters start: 3 replicas, 2 nodes each", vital: true, run: start },
        Step { title: "The shop's YAML is applied and its pods come up", vital: true, run: apply },
        Step {
            title: "Requests flow inside west, by mTLS, through our proxy and Envoy",
            vital: false,
            run: inside,
        },
        Step { title: "A NetworkPolicy denies one caller in the kernel", vital: false, run: deny },
        Step { title: "One command joins the clusters", vital: true, run: join },
        Step { title: "West calls a service that only east has, mTLS end to end", vital: false, run: across },
        Step {
            title: "A canary takes one request in ten, testers reach it by header",
            vital: false,
            run: canary,
        },
        Step { title: "All local endpoints die; requests move to east", vital: false, run: failover },
        Step { title: "West's leader is killed; a write succeeds", vital: false, run: leader },
        Step { title: "The agents restart while traffic flows", vital: false, run: restart },
    ]
}

fn start(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    world.start(narrator)?;
    let mut proof = Vec::new();
    for cluster in [world.west()?, world.east()?] {
        let status = wait_until("all replicas and nodes in status", Duration::from_secs(20), || {
            let status = cluster.json(&["status"])?;
            let replicas = array(&status, "replicas").len();
            let agents = data_planes(&status, "agent");
            ensure!(replicas == 3 && agents == 2, "{replicas} replicas, {agents} agents");
            Ok(Some(status))
        })?;
        proof.push(format!(
            "{}: 3 replicas, replica {} leads, 2 agents subscribe, revision {}, trust domain {}",
            cluster.plan.name,
            status["leader"],
            status["revision"],
            text(&status, "trustDomain"),
        ));
    }
    Ok(proof)
}

fn apply(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    for (cluster, file) in [(world.west()?, "shop-west.yaml"), (world.east()?, "shop-east.yaml")] {
        cluster.clustermesh(&["apply", "-f", &example(file), "--wait"])?;
    }
    world.add_pods(narrator)?;
    let west = world.west()?;
    let pods: Vec<String> = west.pods.values().map(|p| format!("{} {}", p.plan.name, p.address)).collect();
    let pay = west.virtual_ip("shop", "pay")?;
    Ok(vec![
        format!("west's pods, made by the CNI plugin: {}", pods.join(", ")),
        format!("pay.shop is {pay}:8080"),
    ])
}

fn inside(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let mut proof = Vec::new();
    let pairs = [
        ("web", "pay", "proxy to proxy"),
        ("web", "catalog", "proxy to Envoy"),
        ("catalog", "pay", "Envoy to proxy"),
    ];
    for (from, to, how) in pairs {
        let report = world.call_until_ok(from, to)?;
        let (caller, server) = identities(&report)?;
        ensure!(caller == format!("spiffe://west.example/ns/shop/sa/{from}"), "{to} saw the caller {caller}");
        ensure!(
            server == format!("spiffe://west.example/ns/shop/sa/{to}"),
            "{from} was answered by {server}"
        );
        proof.push(format!("{from} → {to} ({how}): 200, {to} saw {caller}"));
    }
    let report = world.call("web", "pay", &["-n", "100"])?;
    ensure!(count(&report, "/ok") == 100, "of 100 requests {} succeeded: {report}", report["ok"]);
    // The sidecar can't be passed by: the application's port is the proxy's, and the proxy wants a certificate.
    let pay = format!("{}:8080", world.pod("pay-1")?.address);
    let plain = world.pod("batch")?.call(&world.bed, &["--to", &pay, "--host", "pay.shop"])?;
    ensure!(count(&plain, "/ok") == 0, "plain HTTP reached pay: {plain}");
    proof.push("plain HTTP straight to pay's address: refused".to_owned());
    Ok(proof)
}

fn deny(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    world.call_until_ok("batch", "ledger")?;
    world.call_until_ok("web", "ledger")?;
    let west = world.west()?;
    west.clustermesh(&["apply", "-f", &example("ledger-callers.yaml"), "--wait"])?;
    let denied = world.call("batch", "ledger", &["--timeout-ms", "1500"])?;
    ensure!(count(&denied, "/ok") == 0, "batch still reached the ledger: {denied}");
    let allowed = world.call("web", "ledger", &["-n", "20"])?;
    ensure!(count(&allowed, "/ok") == 20, "web lost the ledger: {allowed}");
    let flow = wait_until("the flow event", Duration::from_secs(10), || {
        let text = west.clustermesh(&["observe", "--last", "200", "--verdict", "DROPPED", "-o", "json"])?;
        let flows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(flows.into_iter().find(|f| f.to_string().contains("ledger-callers")))
    })?;
    let policy = text(&flow, "policy");
    ensure!(policy.starts_with("networkpolicy/shop/ledger-callers"), "the flow names {policy}");
    Ok(vec![
        "before the policy: batch → ledger 200; after it: no answer, while web → ledger stays 20 of 20"
            .to_owned(),
        format!(
            "flow event: {} {} → {} by {policy}",
            text(&flow, "verdict"),
            flow.pointer("/source/workload").and_then(Value::as_str).unwrap_or("?"),
            flow.pointer("/destination/workload").and_then(Value::as_str).unwrap_or("?"),
        ),
    ])
}

fn join(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let token = world.east()?.clustermesh(&["token", "create", "--for", "peer"])?;
    let start = Instant::now();
    world.west()?.clustermesh(&["join", token.trim()])?;
    let took = start.elapsed();
    let mut proof = vec![format!("clustermesh join took {} ms", took.as_millis())];
    for (here, there) in [(world.west()?, "east"), (world.east()?, "west")] {
        let peer = wait_until(
            &format!("{there} in the status of {}", here.plan.name),
            Duration::from_secs(20),
            || {
                let status = here.json(&["status"])?;
                let peer = array(&status, "peers").iter().find(|p| p["cluster"] == there).cloned();
                Ok(peer.filter(|p| p["state"] == "connected" && count(p, "/importedServices") > 0))
            },
        )?;
        proof.push(format!(
            "{} knows {there}: trust domain {}, {} services imported, {}",
            here.plan.name,
            text(&peer, "trustDomain"),
            peer["importedServices"],
            text(&peer, "state"),
        ));
    }
    // The second use of a token is refused.
    let again = world.west()?.clustermesh(&["join", token.trim()]);
    ensure!(again.is_err(), "a used token was accepted again");
    Ok(proof)
}

fn across(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let report = world.call_until_ok("web", "stock")?;
    let (caller, server) = identities(&report)?;
    ensure!(caller == "spiffe://west.example/ns/shop/sa/web", "stock saw the caller {caller}");
    ensure!(server == "spiffe://east.example/ns/shop/sa/stock", "web was answered by {server}");
    let many = world.call("web", "stock", &["-n", "100", "-c", "4"])?;
    ensure!(
        count(&many, "/clusters/east") == 100,
        "of 100 requests {} came from east: {many}",
        many["clusters"]
    );
    Ok(vec![
        format!("stock in east, asked by {caller}, answered as {server}"),
        "both clusters' pods share 10.1.0.0/16: the gateway forwards by SNI and terminates nothing"
            .to_owned(),
    ])
}

fn canary(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    world.call_until_ok("web", "cards")?;
    world.west()?.clustermesh(&["apply", "-f", &example("cards-canary.yaml"), "--wait"])?;
    narrator.progress("1,000 requests");
    let report = world.call("web", "cards", &["-n", "1000", "-c", "8", "--timeout-ms", "10000"])?;
    let (v1, v2) = (count(&report, "/versions/v1"), count(&report, "/versions/v2"));
    ensure!(v1 + v2 == 1000, "of 1,000 requests {} failed: {report}", report["failed"]);
    // 1,000 draws at 0.1: 100 ± 9.5; 60 to 140 is beyond four deviations either way.
    ensure!((60..=140).contains(&v2), "v2 got {v2} of 1,000");
    let tester = world.call("web", "cards", &["-n", "50", "-H", "x-canary: always"])?;
    ensure!(count(&tester, "/versions/v2") == 50, "testers got {}", tester["versions"]);
    Ok(vec![format!("v1 {v1}, v2 {v2} of 1,000; with x-canary: always, v2 50 of 50")])
}

fn failover(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let before = world.call("web", "pay", &["-n", "50"])?;
    ensure!(count(&before, "/clusters/west") == 50, "before, west answered {} of 50", before["clusters"]);
    let load = world.call_in_background(
        "web",
        "pay",
        &["--for-ms", "8000", "-n", "1000000", "-c", "4", "--pause-ms", "5"],
    )?;
    std::thread::sleep(Duration::from_millis(2000));
    narrator.progress("killing pay-1 and pay-2");
    let (_, west) = world.west_mut()?;
    for pod in ["pay-1", "pay-2"] {
        west.pods.get_mut(pod).context("pay is there")?.kill();
    }
    let killed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    narrator.progress("waiting for the load to end");
    let report = load.report()?;
    let first = count(&report, "/first_from/east");
    ensure!(first > 0, "no request reached east: {report}");
    ensure!(
        report.pointer("/last/cluster").and_then(Value::as_str) == Some("east"),
        "the last answer is not east's: {report}"
    );
    Ok(vec![format!(
        "first answer from east {} ms after the kill; of {} requests {} failed",
        first.saturating_sub(killed),
        report["sent"],
        report["failed"],
    )])
}

fn leader(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let (bed, west) = world.west_mut()?;
    let leader = west.leader()?;
    let mut process = west.replicas.remove(&leader).context("the leader runs here")?;
    process.kill();
    let start = Instant::now();
    let object = "apiVersion: v1\nkind: Service\nmetadata: {name: proof, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    wait_until("a write after the leader's death", Duration::from_secs(20), || {
        west.apply_text(object).map(Some)
    })?;
    let took = start.elapsed();
    let new = west.leader()?;
    ensure!(new != leader, "status still says that the dead replica {leader} leads");
    drop(process);
    west.start_replica(bed, leader)?;
    let read = west.clustermesh_at(leader, &["get", "service", "proof", "-n", "shop", "-o", "name"], None)?;
    ensure!(read.status.success(), "the returned replica does not know the write");
    Ok(vec![format!(
        "replica {leader} killed by SIGKILL; a write succeeded after {} ms, replica {new} leads; {leader} is back and has it",
        took.as_millis()
    )])
}

fn restart(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    world.call_until_ok("web", "cards")?;
    world.call_until_ok("web", "ledger")?;
    let l7 = world.call_in_background(
        "web",
        "cards",
        &["--for-ms", "9000", "-n", "1000000", "-c", "2", "--pause-ms", "5", "--new-connections"],
    )?;
    let l4 = world.call_in_background(
        "web",
        "ledger",
        &["--for-ms", "9000", "-n", "1000000", "-c", "2", "--pause-ms", "5", "--new-connections"],
    )?;
    std::thread::sleep(Duration::from_millis(1000));
    let (bed, west) = world.west_mut()?;
    for node in 1..=west.plan.nodes {
        narrator.progress(&format!("killing and restarting the agent of node {node}"));
        west.agents.remove(&node).context("the agent runs")?.kill();
        west.start_agent(bed, node)?;
    }
    narrator.progress("waiting for the load to end");
    let (l7, l4) = (l7.report()?, l4.report()?);
    for (what, report) in [("cards", &l7), ("ledger", &l4)] {
        ensure!(count(report, "/sent") > 100, "{what}: too few requests to tell: {report}");
        ensure!(count(report, "/failed") == 0, "{what}: {} requests lost: {report}", report["failed"]);
    }
    Ok(vec![format!(
        "both agents of west killed and started again; new connections all the while: cards {} requests, ledger {}; lost: 0",
        l7["sent"], l4["sent"]
    )])
}

fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn data_planes(status: &Value, kind: &str) -> usize {
    array(status, "dataPlanes").iter().filter(|d| d["kind"] == kind && d["state"] != "disconnected").count()
}
