//! Who reaches whom.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    story::{Narrator, PodOf, World, add_pods},
    testbed::{Cluster, ClusterPlan, DataPlane, Place, Process, Testbed, traffic::count, wait_until},
};
use serde_json::Value;

const PORT: u16 = 8080;

/// Workloads, and one service of two families that both protocols are asked at, exported to the peer.
const SHOP: &str = "
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccount: web}
---
apiVersion: isthmus.io/v1
kind: Workload
metadata: {name: stranger, namespace: shop, labels: {app: stranger}}
spec: {serviceAccount: stranger}
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata: {name: store, namespace: shop}
";

/// One workload behind the service, or, retired, behind none.
pub fn store(name: &str, is_retired: bool) -> String {
    let app = if is_retired { "retired" } else { "store" };
    format!(
        "apiVersion: isthmus.io/v1\nkind: Workload\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n\
         spec: {{serviceAccount: store, ports: [{{name: http, port: {PORT}}}, {{name: said, port: {PORT}, protocol: UDP}}]}}\n"
    )
}

fn service(policy: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: store, namespace: shop}}\nspec:\n  type: NodePort\n  \
         selector: {{app: store}}\n  ipFamilyPolicy: {policy}\n  ports:\n    \
         - {{name: http, port: {PORT}, targetPort: {PORT}, nodePort: 30080, appProtocol: http}}\n    \
         - {{name: said, port: {PORT}, targetPort: {PORT}, nodePort: 30080, protocol: UDP}}\n"
    )
}

pub fn start(world: &mut World, narrator: &dyn Narrator) -> Result<Vec<String>> {
    let overlay = ClusterPlan {
        nodes: 2,
        tunnel: Some("vxlan"),
        dual_stack: true,
        serves_outside: true,
        ..ClusterPlan::small("west", 1)
    };
    let direct = ClusterPlan { serves_outside: true, ..ClusterPlan::small("east", 2) };
    world.bed.refuse_on_underlay(&["10.1.0.0/16", "fd00:1::/112"])?;
    world.start_as([overlay, direct], narrator, &prepare)?;
    let status = world.west()?.agent_status(&world.bed, 1)?;
    ensure!(status.contains("vxlan"), "the status says nothing of the overlay:\n{status}");
    let line = status.lines().find(|line| line.contains("vxlan")).unwrap_or_default();
    Ok(vec!["the underlay drops whatever is from or to a pod".to_owned(), line.trim().to_owned()])
}

fn prepare(bed: &Testbed, cluster: &mut Cluster) -> Result<()> {
    let is_west = cluster.plan.name == "west";
    let policy = if is_west { "RequireDualStack" } else { "SingleStack" };
    let stores: &[&str] = if is_west { &["store-1", "store-2"] } else { &["store-e"] };
    let objects: Vec<String> = stores.iter().map(|name| store(name, false)).collect();
    cluster.apply_text(&format!("{SHOP}---\n{}---\n{}", objects.join("---\n"), service(policy)))?;
    let pods: &[PodOf] = if is_west {
        &[
            ("web", 1, DataPlane::Kernel, None),
            ("stranger", 1, DataPlane::Kernel, None),
            ("store-1", 1, DataPlane::Kernel, Some("v1")),
            ("store-2", 2, DataPlane::Kernel, Some("v2")),
        ]
    } else {
        &[("store-e", 1, DataPlane::Kernel, Some("v3"))]
    };
    add_pods(bed, cluster, pods, &|_| {})
}

/// The addresses of a pod, and a port.
pub fn of_pod(west: &Cluster, pod: &str) -> Result<[SocketAddr; 2]> {
    let pod = west.pod(pod)?;
    let v6 = pod.address6.as_deref().context("the pod has no IPv6 address")?;
    Ok([SocketAddr::new(pod.address.parse()?, PORT), SocketAddr::new(v6.parse()?, PORT)])
}

/// The addresses of the service, and its port.
pub fn of_store(west: &Cluster) -> Result<[SocketAddr; 2]> {
    let [v4, v6] = west.virtual_ips("shop", "store")?;
    Ok([SocketAddr::new(v4.parse()?, PORT), SocketAddr::new(v6.parse()?, PORT)])
}

/// Calls once, and says whom the server took the caller for.
pub fn peer_of(report: &Value) -> Result<SocketAddr> {
    let text = report.pointer("/last/peer").and_then(Value::as_str).with_context(|| format!("{report}"))?;
    let peer: SocketAddr = text.parse()?;
    Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

pub fn call(world: &World, from: &str, to: SocketAddr, timeout_ms: u32) -> Result<Value> {
    let (to, timeout) = (to.to_string(), timeout_ms.to_string());
    world.pod(from)?.call(&world.bed, &["--to", &to, "--host", "shop", "--timeout-ms", &timeout])
}

fn datagrams(world: &World, from: &str, to: SocketAddr, more: &[&str]) -> Result<Value> {
    world.west()?.client(&world.bed, from, "datagrams", to, more)?.report()
}

pub fn pods(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let mut proof = Vec::new();
    for (to, from) in of_pod(world.west()?, "store-2")?.into_iter().zip(of_pod(world.west()?, "web")?) {
        let report = call(world, "web", to, 3_000)?;
        ensure!(count(&report, "/ok") == 1, "{to}: {report}");
        ensure!(peer_of(&report)?.ip() == from.ip(), "{to} saw {}", peer_of(&report)?);
        // Longer than a frame, so in pieces.
        for bytes in ["100", "1900"] {
            let report = datagrams(world, "web", to, &["-n", "20", "--bytes", bytes])?;
            ensure!(count(&report, "/answered") == 20, "{to}, datagrams of {bytes} bytes: {report}");
        }
        proof.push(format!(
            "web → {to}: answered, seen as {}; 40 of 40 datagrams, in one piece and in two",
            from.ip()
        ));
    }
    let west = world.west()?;
    let flow = wait_until("the flow event", Duration::from_secs(10), || {
        let text = west.clustermesh(&["observe", "--last", "500", "-o", "json"])?;
        let flows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ends = |flow: &Value, end: &str| {
            flow.pointer(end).and_then(Value::as_str).map(str::to_owned).unwrap_or_default()
        };
        let mut flows = flows.into_iter();
        Ok(flows.find(|flow| {
            ends(flow, "/source/workload").contains("web")
                && ends(flow, "/destination/workload").contains("store-2")
                && flow["verdict"] == "FORWARDED"
        }))
    })?;
    proof.push(format!(
        "observe: {} {} → {}",
        flow["verdict"].as_str().unwrap_or_default(),
        flow.pointer("/source/workload").and_then(Value::as_str).unwrap_or_default(),
        flow.pointer("/destination/workload").and_then(Value::as_str).unwrap_or_default(),
    ));
    Ok(proof)
}

pub fn services(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let mut proof = Vec::new();
    for to in of_store(world.west()?)? {
        let words = ["-n", "60", "--new-connections"];
        let report = world.west()?.client(&world.bed, "web", "call", to, &words)?.report()?;
        ensure!(count(&report, "/ok") == 60, "{to}: {report}");
        let (near, far) = (count(&report, "/versions/v1"), count(&report, "/versions/v2"));
        ensure!(near > 0 && far > 0, "{to}: not by both nodes: {report}");
        let said = datagrams(world, "web", to, &["-n", "20"])?;
        ensure!(count(&said, "/answered") == 20, "{to}: {said}");
        proof.push(format!(
            "{to}: 60 of 60 connections, {near} on this node and {far} on the other; datagrams 20 of 20"
        ));
    }
    Ok(proof)
}

/// `shop call` from a node itself.
fn call_from_node(world: &World, node: u8, to: SocketAddr) -> Result<Value> {
    let place = Place::namespace(world.west()?.plan.node_namespace(node));
    let to = to.to_string();
    let words = ["call", "--to", &to, "--host", "shop", "--timeout-ms", "3000"].map(str::to_owned);
    let output = place.command(&world.bed.binary("shop"), &words).output()?;
    serde_json::from_slice(&output.stdout).context("shop call printed no JSON")
}

pub fn nodes(world: &mut World, _: &dyn Narrator) -> Result<Vec<String>> {
    let mut proof = Vec::new();
    for to in of_pod(world.west()?, "store-2")? {
        let report = call_from_node(world, 1, to)?;
        ensure!(count(&report, "/ok") == 1, "node 1 → {to}: {report}");
        proof.push(format!("node 1 → {to}, a pod of node 2, which saw {}", peer_of(&report)?.ip()));
    }
    let west = world.west()?;
    let ready: PathBuf = world.bed.folder().join("node-serves");
    let args = ["serve", "--name", "node-2", "--listen", "[::]:8099", "--ready-file"].map(str::to_owned);
    let args = [&args[..], &[ready.display().to_string()]].concat();
    let place = Place::namespace(west.plan.node_namespace(2));
    let log = world.bed.folder().join("node-serves.log");
    let mut server = Process::spawn(
        &world.bed.ledger,
        "a server on node 2",
        &place,
        &world.bed.binary("shop"),
        &args,
        log,
    )?;
    server.wait_for_file(&ready, Duration::from_secs(20))?;
    let v6 = west.plan.node_address6(2).context("the node has IPv6")?;
    let own = of_pod(west, "web")?;
    for (to, own) in [west.plan.node_address(2).into(), v6.into()].into_iter().zip(own) {
        let report = call(world, "web", SocketAddr::new(to, 8099), 3_000)?;
        ensure!(count(&report, "/ok") == 1, "web → node 2 at {to}: {report}");
        ensure!(peer_of(&report)?.ip() == own.ip(), "node 2 saw {}", peer_of(&report)?);
        proof.push(format!("web → node 2 at {to}, which saw {}", own.ip()));
    }
    Ok(proof)
}
