//! The two clusters: west with three nodes, east with one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::{
    story::{Narrator, PodOf, World, add_pods},
    testbed::{Cluster, ClusterPlan, DataPlane, Testbed, wait_until},
};
use serde_json::Value;

/// For what a loaded machine takes its time with.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `vault` and `stock` speak bytes, so that each connection to them is an mTLS connection; the others speak HTTP.
const WEST: &str = "
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {serviceAccount: web, proxy: sidecar}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: thief, namespace: shop, labels: {app: thief}},
 spec: {serviceAccount: thief, proxy: sidecar}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: pay, namespace: shop, labels: {app: pay}},
 spec: {serviceAccount: pay, proxy: sidecar, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: pay, namespace: shop},
 spec: {selector: {app: pay}, ports: [{name: http, port: 8080, targetPort: http, appProtocol: http}]}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: vault, namespace: shop, labels: {app: vault}},
 spec: {serviceAccount: vault, proxy: sidecar, ports: [{name: raw, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: vault, namespace: shop},
 spec: {selector: {app: vault}, ports: [{name: raw, port: 8080, targetPort: raw, appProtocol: tcp}]}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: catalog, namespace: shop, labels: {app: catalog}},
 spec: {serviceAccount: catalog, proxy: sidecar, ports: [{name: http, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: catalog, namespace: shop},
 spec: {selector: {app: catalog}, ports: [{name: http, port: 8080, targetPort: http, appProtocol: http}]}}
";

const EAST: &str = "
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: stock, namespace: shop, labels: {app: stock}},
 spec: {serviceAccount: stock, proxy: sidecar, ports: [{name: raw, port: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: stock, namespace: shop},
 spec: {selector: {app: stock}, ports: [{name: raw, port: 8080, targetPort: raw, appProtocol: tcp}]}}
---
{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceExport, metadata: {name: stock, namespace: shop}}
";

const PODS_OF_WEST: [PodOf; 5] = [
    ("web", 1, DataPlane::Proxy, None),
    ("vault", 1, DataPlane::Proxy, Some("v1")),
    ("pay", 2, DataPlane::Proxy, Some("v1")),
    ("catalog", 2, DataPlane::Envoy, Some("v1")),
    ("thief", 3, DataPlane::Proxy, None),
];
const PODS_OF_EAST: [PodOf; 1] = [("stock", 1, DataPlane::Proxy, Some("v1"))];

pub fn start(mesh: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let west = ClusterPlan { nodes: 3, ..ClusterPlan::new("west", 1) };
    let east = ClusterPlan { replicas: 1, nodes: 1, ..ClusterPlan::new("east", 2) };
    mesh.start_as([west, east], narrator, &|bed, cluster| {
        let (yaml, pods) = match cluster.plan.name.as_str() {
            "west" => (WEST, &PODS_OF_WEST[..]),
            _ => (EAST, &PODS_OF_EAST[..]),
        };
        cluster.apply_text(yaml)?;
        add_pods(bed, cluster, pods, &|_| {})
    })?;
    let (west, east) = (mesh.west()?, mesh.east()?);
    let token = east.clustermesh(&["token", "create", "--for", "peer"])?;
    west.clustermesh(&["join", token.trim()])?;
    let pairs = [
        ("web", "pay"),
        ("web", "vault"),
        ("web", "catalog"),
        ("web", "stock"),
        ("thief", "vault"),
        ("catalog", "pay"),
        ("catalog", "vault"),
    ];
    for (from, to) in pairs {
        west.call_until_ok(&mesh.bed, from, to)?;
    }
    Ok(vec![format!("{} pairs of workloads reach each other", pairs.len())])
}

/// Fingerprints of a cluster's roots, the active one first.
pub fn roots(cluster: &Cluster) -> Result<Vec<String>> {
    let status = cluster.json(&["ca", "status"])?;
    let mut roots = status["roots"].as_array().cloned().unwrap_or_default();
    roots.sort_by_key(|root| root["active"] != true);
    Ok(roots.iter().filter_map(|root| root["sha256"].as_str().map(str::to_owned)).collect())
}

/// What a node's agent trusts for a trust domain, once it is this alone.
pub fn trusts_only(bed: &Testbed, cluster: &Cluster, node: u8, domain: &str, root: &str) -> Result<()> {
    let short = root.get(..16).context("a fingerprint is longer")?;
    let expected = format!("trusts          {domain} by {short},");
    wait_until(&format!("{}: {expected}", cluster.plan.node_name(node)), PATIENCE, || {
        let status = cluster.agent_status(bed, node)?;
        ensure!(status.lines().any(|line| line.starts_with(&expected)), "{status}");
        Ok(Some(()))
    })
}

/// The data planes in a cluster's status.
pub fn data_planes(cluster: &Cluster) -> Result<Vec<Value>> {
    Ok(cluster.json(&["status"])?["dataPlanes"].as_array().cloned().unwrap_or_default())
}
