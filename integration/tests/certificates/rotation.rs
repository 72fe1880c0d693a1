//! `clustermesh ca rotate` in both clusters, under traffic on kept and new connections.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration::{
    story::{Narrator, World},
    testbed::{
        Cluster, Testbed,
        traffic::{Load, count},
    },
};
use mesh_tls::{CertificateDer, fingerprint};
use serde_json::Value;

use crate::{
    mesh::{roots, trusts_only},
    thief::roots_of_node,
};

/// Who calls whom, and whether each request has a connection of its own. Connections to `vault` and `stock` are mTLS
/// connections of their own; the one of a proxy to `pay` or `catalog` is replaced when certificates are.
const TRAFFIC: [(&str, &str, bool); 8] = [
    ("web", "pay", false),
    ("web", "vault", false),
    ("web", "vault", true),
    ("web", "catalog", true),
    ("web", "stock", false),
    ("web", "stock", true),
    ("catalog", "pay", false),
    ("catalog", "vault", true),
];
const WORKERS: u64 = 2;

pub fn rotate(mesh: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let (west, east, bed) = (mesh.west()?, mesh.east()?, &mesh.bed);
    let stop = bed.folder().join("stop");
    let old = Shown::by(bed, west)?;
    let before = (roots(west)?, roots(east)?);
    let mut running = Vec::new();
    for (from, to, new) in TRAFFIC {
        running.push(((from, to, new), start(bed, west, from, to, new, &stop)?));
    }
    narrator.progress("west");
    let of_west = rotate_one(bed, west, &before.0)?;
    narrator.progress("east");
    let of_east = rotate_one(bed, east, &before.1)?;
    // Each side knows the other by its new root alone.
    for (cluster, node) in [(west, 1), (west, 2), (east, 1)] {
        for (domain, told) in [("west.example", &of_west), ("east.example", &of_east)] {
            trusts_only(bed, cluster, node, domain, &told.root)?;
        }
    }
    let new = Shown::by(bed, west)?;
    std::fs::write(&stop, b"")?;
    let mut proof = vec![of_west.proof(west), of_east.proof(east)];
    for (what, client) in running {
        proof.push(judge(what, &client.report()?)?);
    }
    ensure!(
        old.web != new.web && old.envoy != new.envoy,
        "a data plane shows the certificate that it had: {old:?}, {new:?}"
    );
    Ok(proof)
}

fn start(
    bed: &Testbed,
    west: &Cluster,
    from: &str,
    to: &str,
    new: bool,
    stop: &std::path::Path,
) -> Result<Load> {
    let (until, workers) = (stop.display().to_string(), WORKERS.to_string());
    let mut words = vec!["-n", "1000000", "-c", &workers, "--pause-ms", "20", "--timeout-ms", "10000"];
    words.extend(["--until", &until]);
    words.extend(new.then_some("--new-connections"));
    west.load(bed, from, to, &words)
}

/// No failed request; and where the client's connection is the mTLS connection, none that was lost.
fn judge((from, to, new): (&str, &str, bool), report: &Value) -> Result<String> {
    let what = format!("{from} → {to}, {} connections", if new { "new" } else { "kept" });
    let (sent, failed, made) =
        (count(report, "/sent"), count(report, "/failed"), count(report, "/connections"));
    ensure!(failed == 0 && sent >= 20, "{what}: {report}");
    ensure!(new || made == WORKERS, "{what}: {made} connections were made for {WORKERS}: {report}");
    Ok(format!("{what}: {sent} requests on {made} connections, none failed"))
}

struct Rotated {
    root: String,
    took: std::time::Duration,
}

impl Rotated {
    fn proof(&self, cluster: &Cluster) -> String {
        format!("{} has another root after {} ms", cluster.plan.name, self.took.as_millis())
    }
}

fn rotate_one(bed: &Testbed, cluster: &Cluster, before: &[String]) -> Result<Rotated> {
    let begun = Instant::now();
    let phases = cluster.clustermesh(&["ca", "rotate", "--timeout", "2m"])?;
    let took = begun.elapsed();
    println!("{phases}    {took:?}");
    let now = roots(cluster)?;
    let root = now.first().context("a cluster has a root")?.clone();
    ensure!(now.len() == 1 && !before.contains(&root), "{before:?} became {now:?}");
    let short = root.get(..16).context("a fingerprint is longer")?;
    // Every node says that all its certificates, and those of its workloads, are under it.
    let nodes = cluster.clustermesh(&["node", "list"])?;
    let rows: Vec<&str> = nodes.lines().skip(1).collect();
    ensure!(!rows.is_empty() && rows.iter().all(|row| row.contains(short)), "not under {short}:\n{nodes}");
    for node in cluster.agents.keys() {
        let known = roots_of_node(&cluster.agent_state(*node))?;
        let known = known.iter().map(|der| hex(&fingerprint(&CertificateDer::from(der.as_slice()))));
        ensure!(known.into_iter().any(|known| known == root), "node {node} would not know {short} again");
    }
    // New connections are good at once.
    if cluster.plan.name == "west" {
        let call = cluster.call(bed, "web", "vault", &["-n", "5", "--new-connections"])?;
        ensure!(count(&call, "/ok") == 5, "{call}");
    }
    Ok(Rotated { root, took })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What pay sees of the certificate of web's proxy: `Hash` of Envoy's `x-forwarded-client-cert`; and the serial numbers
/// that catalog's Envoy has. (Envoy goes on using a connection that stands, so others see its old certificate on that.)
#[derive(Debug)]
struct Shown {
    web: String,
    envoy: String,
}

impl Shown {
    fn by(bed: &Testbed, west: &Cluster) -> Result<Self> {
        let report = west.call_until_ok(bed, "web", "pay")?;
        let header = report.pointer("/last/headers/x-forwarded-client-cert").and_then(Value::as_str);
        let header = header.with_context(|| format!("pay saw no certificate: {report}"))?;
        let hash = header.split(';').find_map(|part| part.strip_prefix("Hash=")).context("no hash")?;
        let certs = west.envoy("catalog", "/certs")?;
        let serials =
            certs.lines().filter(|line| line.contains("serial_number")).collect::<Vec<_>>().join(",");
        Ok(Self { web: hash.to_owned(), envoy: serials })
    }
}
