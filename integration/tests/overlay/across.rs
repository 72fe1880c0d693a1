//! Between clusters, and from outside.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    story::{Narrator, World},
    testbed::{Place, traffic::count, wait_until},
};
use serde_json::Value;

use super::ways::{of_store, store};

const NODE_PORT: u16 = 30_080;

pub fn node_ports(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let west = world.west()?;
    // A host outside the mesh, as far as west knows.
    let outside = Place::namespace(world.east()?.plan.node_namespace(1));
    let mut proof = Vec::new();
    for node in [1, 2] {
        let to = SocketAddr::new(west.plan.node_address(node).into(), NODE_PORT).to_string();
        let words =
            ["call", "--to", &to, "--host", "shop", "-n", "40", "--new-connections"].map(str::to_owned);
        let ask = |words: &[String]| -> Result<Value> {
            let output = outside.command(&world.bed.binary("shop"), words).output()?;
            serde_json::from_slice(&output.stdout).context("shop printed no JSON")
        };
        let report = ask(&words)?;
        let (first, second) = (count(&report, "/versions/v1"), count(&report, "/versions/v2"));
        ensure!(first + second == 40 && first > 0 && second > 0, "{to}: {report}");
        let said = ask(&["datagrams", "--to", &to, "-n", "20", "--bytes", "1900"].map(str::to_owned))?;
        ensure!(count(&said, "/answered") == 20, "{to}: {said}");
        proof.push(format!(
            "outside → {to}: 20 of 20 datagrams in pieces; 40 of 40, {first} by node 1 and {second} by node 2"
        ));
    }
    Ok(proof)
}

pub fn failover(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let (west, east) = (world.west()?, world.east()?);
    let token = east.clustermesh(&["token", "create", "--for", "peer"])?;
    west.clustermesh(&["join", token.trim()])?;
    narrator.progress("waiting for the peer's node port");
    let at_peer = format!("{}:{NODE_PORT}", east.plan.node_address(1));
    wait_until("the peer's node port among the endpoints", Duration::from_secs(30), || {
        let service = west.json(&["get", "service", "store", "-n", "shop"])?;
        Ok(service.to_string().contains(&at_peer).then_some(()))
    })?;
    let to = of_store(west)?[0];
    let words = ["-n", "40", "--new-connections"];
    let before = west.client(&world.bed, "web", "call", to, &words)?.report()?;
    ensure!(count(&before, "/clusters/west") == 40, "while somebody is here: {before}");
    let stop = world.bed.folder().join("stop-failover");
    let until = stop.display().to_string();
    let words = ["--until", &until, "-n", "100000000", "-c", "4", "--pause-ms", "3", "--new-connections"];
    let load = west.client(&world.bed, "web", "call", to, &words)?;
    load.goes_on(50)?;
    for (retired, cluster) in [(true, "east"), (false, "west")] {
        let all = ["store-1", "store-2"].map(|name| store(name, retired)).join("---\n");
        west.apply_text(&all)?;
        wait_until(&format!("an answer of {cluster}"), Duration::from_secs(15), || {
            let report =
                west.client(&world.bed, "web", "call", to, &["-n", "5", "--new-connections"])?.report()?;
            Ok((count(&report, &format!("/clusters/{cluster}")) == 5).then_some(()))
        })?;
    }
    std::fs::write(&stop, b"")?;
    let report = load.report()?;
    let (here, there) = (count(&report, "/clusters/west"), count(&report, "/clusters/east"));
    ensure!(here > 0 && there > 0, "{report}");
    // Who is in the middle of connecting to a backend that goes is told so at once, as every connection of it is: one for
    // each of the four, and each of the two that go.
    let reset = count(&report, "/failed");
    ensure!(reset <= 8, "new connections were refused or lost: {report}");
    ensure!(
        report["errors"].as_object().is_none_or(|errors| {
            errors.keys().all(|error| error.contains("abort") || error.contains("reset"))
        }),
        "{report}"
    );
    let said = west.client(&world.bed, "web", "datagrams", to, &["-n", "10"])?.report()?;
    ensure!(count(&said, "/answered") == 10, "{said}");
    Ok(vec![format!(
        "west's backends go and come back: {here} connections to west, {there} to east, {reset} told to go elsewhere, lost: 0; both clusters' pods are in 10.1.0.0/16"
    )])
}
