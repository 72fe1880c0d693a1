//! One node of two families with three pods, and the proxy of the node.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use integration::testbed::{Cluster, ClusterPlan, DataPlane, Place, PodPlan, Process, Testbed};
use serde_json::Value;

/// What it is called, by services and by itself.
pub const PROXY: &str = "node-proxy";

const OBJECTS: &str = "
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: web, namespace: shop, labels: {app: web}},
 spec: {serviceAccount: web}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: pay, namespace: shop, labels: {app: pay}},
 spec: {serviceAccount: pay, ports: [{name: http, port: 8080}]}}
---
{apiVersion: isthmus.io/v1, kind: Workload, metadata: {name: pay-next, namespace: shop, labels: {app: pay-next}},
 spec: {serviceAccount: pay, ports: [{name: http, port: 8080}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: pay, namespace: shop},
 spec: {parentRefs: [{group: '', kind: Service, name: pay}], rules: [
  {matches: [{path: {value: /next}}], backendRefs: [{name: pay-next, port: 80}],
   filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-routed, value: by-the-node}]}}]},
  {matches: [{path: {value: /nowhere}}]},
  {backendRefs: [{name: pay, port: 80}]}]}}
";

/// `more` goes into its metadata.
pub fn service(name: &str, app: &str, more: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop{more}}},
          spec: {{selector: {{app: {app}}}, ipFamilyPolicy: RequireDualStack,
          ports: [{{name: http, port: 80, targetPort: 8080, appProtocol: http}}]}}}}\n"
    )
}

/// What runs. Processes end before the cluster does, and that before the testbed.
pub struct World {
    proxy: Option<Process>,
    pub cluster: Cluster,
    bed: Testbed,
}

/// What came of a call.
#[derive(Debug)]
pub struct Called {
    /// 0: there was no answer.
    pub status: u16,
    /// Who answered.
    pub name: String,
    /// Whom they saw.
    pub peer: IpAddr,
    report: Value,
}

impl Called {
    /// At once, and not in vain.
    pub fn is_refused(&self) -> Option<()> {
        let errors = self.report["errors"].as_object()?;
        errors.keys().any(|text| text.to_lowercase().contains("refused")).then_some(())
    }

    /// That the application was sent.
    pub fn header(&self, name: &str) -> Option<String> {
        self.report["last"]["headers"][name].as_str().map(str::to_owned)
    }
}

impl World {
    pub fn start() -> Result<Self> {
        let bed = Testbed::start()?;
        let plan = ClusterPlan { dual_stack: true, ..ClusterPlan::small("west", 1) };
        let mut cluster = Cluster::start(&bed, plan, &|doing| println!("    {doing}"))?;
        let led = format!(", annotations: {{isthmus.io/redirect: {PROXY}}}");
        let services = [service("pay", "pay", &led), service("pay-next", "pay-next", "")];
        cluster.apply_text(&[OBJECTS, &services[0], &services[1]].join("\n---\n"))?;
        for (name, serves) in [("web", None), ("pay", Some("v1")), ("pay-next", Some("v2"))] {
            let plan = PodPlan {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                node: 1,
                data_plane: DataPlane::Kernel,
                serves: serves.map(str::to_owned),
            };
            cluster.add_pod(&bed, plan)?;
        }
        Ok(Self { proxy: None, cluster, bed })
    }

    /// Of a pod, IPv4 first.
    pub fn addresses(&self, pod: &str) -> [IpAddr; 2] {
        let pod = self.cluster.pod(pod).unwrap();
        [pod.address.parse().unwrap(), pod.address6.as_deref().unwrap().parse().unwrap()]
    }

    /// `clustermesh <verb> -f - --wait`
    pub fn change(&self, verb: &str, yaml: &str) -> Result<()> {
        let output = self.cluster.clustermesh_at(1, &[verb, "-f", "-", "--wait"], Some(yaml))?;
        ensure!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// What the reference evaluator says of a flow.
    pub fn explain(&self, from: &str, to: SocketAddr) -> Result<String> {
        self.cluster.clustermesh(&["explain", from, &to.to_string()])
    }

    /// As the documentation has it.
    pub fn start_proxy(&mut self) -> Result<()> {
        let socket = self.cluster.agent_socket(1).display().to_string();
        let ready = self.bed.folder().join("node-proxy-ready");
        let _ = std::fs::remove_file(&ready);
        let proxy = self.bed.binary("proxy").display().to_string();
        let words = [
            "redirect",
            "--name",
            PROXY,
            "--port4",
            "15006",
            "--port6",
            "15006",
            "--tcp",
            "--socket",
            &socket,
            "--",
            &proxy,
            "run",
            "--agent-socket",
            &socket,
            "--node-id",
            &format!("node-proxy~{PROXY}"),
            "--ready-file",
            &ready.display().to_string(),
        ];
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let place = Place::namespace(self.cluster.plan.node_namespace(1));
        let log = self.bed.folder().join("node-proxy.log");
        let mut process = Process::spawn(
            &self.bed.ledger,
            "the node's proxy",
            &place,
            &self.bed.binary("node-agent"),
            &words,
            log,
        )?;
        process.wait_for_file(&ready, Duration::from_secs(30))?;
        self.proxy = Some(process);
        Ok(())
    }

    /// With whoever registered it.
    pub fn stop_proxy(&mut self) {
        if let Some(mut proxy) = self.proxy.take() {
            proxy.stop(Duration::from_secs(30));
        }
    }

    /// SIGKILL, and its next start.
    pub fn restart_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.cluster.agents.remove(&1) {
            agent.kill();
        }
        self.cluster.start_agent(&self.bed, 1)
    }

    /// From the pod `web` to port 80, anew each time.
    pub fn call(&self, ip: &str, path: &str) -> Called {
        self.ask(SocketAddr::new(ip.parse().unwrap(), 80), "GET", path)
    }

    /// The same to wherever.
    pub fn ask(&self, to: SocketAddr, method: &str, path: &str) -> Called {
        let to = to.to_string();
        let args = ["--to", &to, "--host", "pay.shop", "--method", method, "--path", path];
        let report = self.cluster.pod("web").unwrap().call(&self.bed, &args).unwrap();
        let statuses = report["statuses"].as_object().unwrap();
        let status = statuses.keys().next().and_then(|status| status.parse().ok()).unwrap_or(0);
        let last = &report["last"];
        let peer: Option<SocketAddr> = last["peer"].as_str().and_then(|peer| peer.parse().ok());
        Called {
            status,
            name: last["name"].as_str().unwrap_or_default().to_owned(),
            peer: peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip().to_canonical()),
            report,
        }
    }
}
