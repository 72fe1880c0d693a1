//! The cluster that policies are tried on: two nodes, the first of which has the gateway's address, two namespaces, and
//! a host outside of the mesh with two addresses of each family. The first node is audited, and has an address of the pods'
//! range that no workload has.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use integration::testbed::{Cluster, ClusterPlan, DataPlane, Place, PodPlan, Process, Testbed};
use serde_json::Value;

/// Where everybody listens, by TCP and UDP.
const PORTS: [u16; 6] = [8080, 8443, 9000, 9001, 9002, 9100];
const OUTSIDE: &str = "ism-outside";
/// Both addresses of the host outside, in the range that policies name, the second in its upper half.
const OUT: [[&str; 2]; 2] = [["10.200.9.1", "fd00:200::9:1"], ["10.200.9.130", "fd00:200::9:82"]];

/// In the range of the first node's pods, and no pod's.
const STRAY: [&str; 2] = ["10.1.0.250", "fd00:1::fa"];

const OBJECTS: &str = "
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {serviceAccount: web}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: batch, namespace: shop, labels: {app: batch, role: job}},
 spec: {serviceAccount: batch}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: api, namespace: shop, labels: {app: api, tier: back}},
 spec: {serviceAccount: api, ports: [{name: http, port: 8080}, {name: said, port: 9000, protocol: UDP}]}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: db, namespace: shop, labels: {app: db, tier: back}},
 spec: {serviceAccount: db, ports: [{name: http, port: 9100}]}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: admin, namespace: ops, labels: {app: admin}},
 spec: {serviceAccount: admin}}
---
{apiVersion: isthmus.io/v1, kind: Workload,
 metadata: {name: tried, namespace: shop, labels: {app: tried}, annotations: {isthmus.io/audit: 'true'}},
 spec: {serviceAccount: tried}}
---
{apiVersion: v1, kind: Service, metadata: {name: store, namespace: shop, labels: {line: sales}},
 spec: {selector: {app: api}, ipFamilyPolicy: RequireDualStack, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bank, namespace: shop}, spec: {ports: [{name: tcp, port: 8080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: bank-4, namespace: shop, labels: {kubernetes.io/service-name: bank}},
 addressType: IPv4, ports: [{name: tcp, port: 8080}], endpoints: [{addresses: [10.200.9.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: bank-6, namespace: shop, labels: {kubernetes.io/service-name: bank}},
 addressType: IPv6, ports: [{name: tcp, port: 8080}], endpoints: [{addresses: ['fd00:200::9:1']}]}
---
{apiVersion: v1, kind: Service, metadata: {name: kubernetes, namespace: default},
 spec: {ports: [{name: https, port: 8443}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: kubernetes-4, namespace: default, labels: {kubernetes.io/service-name: kubernetes}},
 addressType: IPv4, ports: [{name: https, port: 8443}], endpoints: [{addresses: [10.200.9.130]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
 metadata: {name: kubernetes-6, namespace: default, labels: {kubernetes.io/service-name: kubernetes}},
 addressType: IPv6, ports: [{name: https, port: 8443}], endpoints: [{addresses: ['fd00:200::9:82']}]}
";

const PODS: [(&str, &str, u8); 6] = [
    ("shop", "web", 1),
    ("shop", "db", 1),
    ("shop", "tried", 1),
    ("shop", "batch", 2),
    ("shop", "api", 2),
    ("ops", "admin", 2),
];

/// What runs. Processes end before the cluster does, and that before the testbed.
pub struct Mesh {
    _servers: Vec<Process>,
    pub west: Cluster,
    _bed: Testbed,
}

/// Somebody at an end of a flow.
pub struct End {
    /// Its network namespace.
    pub namespace: String,
    pub address: IpAddr,
    /// A node or the host outside: it has other addresses too.
    pub chooses: bool,
}

impl Mesh {
    pub fn start() -> Result<Self> {
        let bed = Testbed::start()?;
        let plan = ClusterPlan {
            nodes: 2,
            tunnel: Some("vxlan"),
            dual_stack: true,
            serves_outside: true,
            audited: Some(1),
            ..ClusterPlan::small("west", 1)
        };
        let mut west = Cluster::start(&bed, plan, &|doing| println!("    {doing}"))?;
        west.apply_text(OBJECTS)?;
        let mut servers = Vec::new();
        for (namespace, name, node) in PODS {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let serves = None;
            let plan = PodPlan { namespace, name: name.clone(), node, data_plane: DataPlane::Kernel, serves };
            west.add_pod(&bed, plan)?;
            servers.push(serve(&bed, west.pod(&name)?.place.clone(), &name)?);
        }
        for node in 1..=2 {
            let place = Place::namespace(west.plan.node_namespace(node));
            servers.push(serve(&bed, place, &format!("n{node}"))?);
        }
        let [v4, v6] = OUT[0];
        bed.add_host(OUTSIDE, "outside", v4.parse()?, Some(v6.parse()?))?;
        let [second4, second6] = OUT[1];
        ip(OUTSIDE, &["address", "add", &format!("{second4}/16"), "dev", "eth0"])?;
        ip(OUTSIDE, &["address", "add", &format!("{second6}/64"), "dev", "eth0", "nodad"])?;
        let first = west.plan.node_namespace(1);
        for (address, bits) in STRAY.into_iter().zip([32, 128]) {
            ip(&first, &["address", "add", &format!("{address}/{bits}"), "dev", "lo"])?;
        }
        servers.push(serve(&bed, Place::namespace(OUTSIDE), "outside")?);
        let mesh = Self { _servers: servers, west, _bed: bed };
        for (_, name, node) in PODS {
            for v6 in [false, true] {
                let (pod, node) = (mesh.end(name, v6)?.address, mesh.end(&format!("n{node}"), v6)?.address);
                ip(OUTSIDE, &["route", "add", &pod.to_string(), "via", &node.to_string()])?;
            }
        }
        Ok(mesh)
    }

    /// A pod, `n1`, `n2`, `out` or `out2`; `stray` is the address that no workload has.
    pub fn end(&self, name: &str, v6: bool) -> Result<End> {
        let plan = &self.west.plan;
        let family = usize::from(v6);
        let of_node = |node: u8| -> Result<End> {
            let address = match v6 {
                true => plan.node_address6(node).context("the node has IPv6")?.into(),
                false => plan.node_address(node).into(),
            };
            Ok(End { namespace: plan.node_namespace(node), address, chooses: true })
        };
        let outside = |at: usize| -> Result<End> {
            Ok(End { namespace: OUTSIDE.to_owned(), address: OUT[at][family].parse()?, chooses: true })
        };
        match name {
            "n1" => of_node(1),
            "n2" => of_node(2),
            "stray" => {
                let address = STRAY[family].parse()?;
                Ok(End { namespace: plan.node_namespace(1), address, chooses: true })
            }
            "out" => outside(0),
            "out2" => outside(1),
            pod => {
                let pod = self.west.pod(pod)?;
                let v6_address = || pod.address6.as_deref().context("the pod has IPv6");
                let address = if v6 { v6_address()? } else { &pod.address };
                let namespace = plan.pod_namespace(&pod.plan.name);
                Ok(End { namespace, address: address.parse()?, chooses: false })
            }
        }
    }

    /// `clustermesh <verb> -f - --wait`
    pub fn change(&self, verb: &str, yaml: &str) -> Result<()> {
        let output = self.west.clustermesh_at(1, &[verb, "-f", "-", "--wait"], Some(yaml))?;
        ensure!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// What the reference evaluator says.
    pub fn explain(&self, from: IpAddr, to: IpAddr, protocol: &str, port: u16) -> Result<Value> {
        let to = if port == 0 { to.to_string() } else { SocketAddr::new(to, port).to_string() };
        let protocol = protocol.to_ascii_lowercase();
        self.west.json(&["explain", &from.to_string(), &to, "--protocol", &protocol])
    }

    /// The flows that a verdict and all that is known of it is told of, the oldest first.
    pub fn flows(&self) -> Result<Vec<Value>> {
        let text = self.west.clustermesh(&["observe", "--last", "16384", "-o", "json"])?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }
}

fn serve(bed: &Testbed, place: Place, name: &str) -> Result<Process> {
    let folder = bed.folder();
    let ready = folder.join(format!("serves-{name}"));
    let mut args = ["serve", "--name", name, "--ready-file"].map(str::to_owned).to_vec();
    args.push(ready.display().to_string());
    for port in PORTS {
        args.extend(["--listen".to_owned(), format!("[::]:{port}")]);
    }
    let log = folder.join(format!("serves-{name}.log"));
    let what = format!("the server of {name}");
    let mut server = Process::spawn(&bed.ledger, &what, &place, &bed.binary("shop"), &args, log)?;
    server.wait_for_file(&ready, Duration::from_secs(20))?;
    Ok(server)
}

/// In a network namespace.
fn ip(namespace: &str, words: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(["-n", namespace]).args(words).output()?;
    if !output.status.success() {
        bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
