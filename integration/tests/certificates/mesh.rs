//! The two clusters: west with three nodes, east with one.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    story::Narrator,
    testbed::{Cluster, ClusterPlan, DataPlane, PodPlan, Testbed, wait_until},
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

/// Name, node, what stands beside it, whether it serves.
type PodOf = (&'static str, u8, DataPlane, bool);

const PODS_OF_WEST: [PodOf; 5] = [
    ("web", 1, DataPlane::Proxy, false),
    ("vault", 1, DataPlane::Proxy, true),
    ("pay", 2, DataPlane::Proxy, true),
    ("catalog", 2, DataPlane::Envoy, true),
    ("thief", 3, DataPlane::Proxy, false),
];
const PODS_OF_EAST: [PodOf; 1] = [("stock", 1, DataPlane::Proxy, true)];

pub struct Mesh {
    // Before the testbed: their processes are to end first.
    west: Option<Cluster>,
    east: Option<Cluster>,
    pub bed: Testbed,
}

impl Mesh {
    pub fn new() -> Result<Self> {
        Ok(Self { west: None, east: None, bed: Testbed::start()? })
    }

    pub fn west(&self) -> Result<&Cluster> {
        self.west.as_ref().context("west has not been started")
    }

    pub fn east(&self) -> Result<&Cluster> {
        self.east.as_ref().context("east has not been started")
    }

    pub fn west_mut(&mut self) -> Result<(&Testbed, &mut Cluster)> {
        Ok((&self.bed, self.west.as_mut().context("west has not been started")?))
    }
}

fn run(bed: &Testbed, plan: ClusterPlan, yaml: &str, pods: &[PodOf]) -> Result<Cluster> {
    let mut cluster = Cluster::start(bed, plan, &|_| {})?;
    cluster.apply_text(yaml)?;
    for (name, node, data_plane, serves) in pods {
        let plan = PodPlan {
            namespace: "shop".into(),
            name: (*name).to_owned(),
            node: *node,
            data_plane: *data_plane,
            serves: serves.then(|| "v1".to_owned()),
        };
        cluster.add_pod(bed, plan)?;
    }
    Ok(cluster)
}

pub fn start(mesh: &mut Mesh, _: &dyn Narrator) -> Result<Vec<String>> {
    let bed = &mesh.bed;
    let west = ClusterPlan { nodes: 3, ..ClusterPlan::new("west", 1) };
    let east = ClusterPlan { replicas: 1, nodes: 1, ..ClusterPlan::new("east", 2) };
    let (west, east) = thread::scope(|scope| {
        let east = scope.spawn(|| run(bed, east, EAST, &PODS_OF_EAST));
        (run(bed, west, WEST, &PODS_OF_WEST), east.join())
    });
    mesh.west = Some(west?);
    mesh.east = Some(east.map_err(|_| anyhow::anyhow!("the start of east panicked"))??);
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
