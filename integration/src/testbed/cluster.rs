//! One cluster of a testbed: replicas, nodes with their agents, the gateway, and the command line against it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    ClusterPlan, Place, Pod, Process, Testbed, ledger::Made, plan::GATEWAY_PORT, process::wait_until,
    traffic::METRICS,
};

/// A debug build on a busy two-core machine is slow to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// The namespace of the gateway's workload.
const SYSTEM: &str = "isthmus-system";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its names and addresses.
    pub plan: ClusterPlan,
    /// By replica, from 1.
    pub replicas: BTreeMap<u8, Process>,
    /// By node, from 1.
    pub agents: BTreeMap<u8, Process>,
    /// The east-west gateway's proxy, on the first node.
    pub gateway: Option<Process>,
    /// By name.
    pub pods: BTreeMap<String, Pod>,
    pub(super) folder: PathBuf,
    node_cgroups: BTreeMap<u8, PathBuf>,
}

impl Cluster {
    /// Starts replicas and agents, and the gateway on the first node. `progress` is told what is being waited for.
    ///
    /// # Errors
    /// Says which process did not come up, with the end of its log.
    pub fn start(bed: &Testbed, plan: ClusterPlan, progress: &dyn Fn(&str)) -> Result<Self> {
        let folder = bed.folder().join(&plan.name);
        fs::create_dir_all(&folder)?;
        let mut cluster = Self {
            plan,
            replicas: BTreeMap::new(),
            agents: BTreeMap::new(),
            gateway: None,
            pods: BTreeMap::new(),
            folder,
            node_cgroups: BTreeMap::new(),
        };
        for replica in 1..=cluster.plan.replicas {
            progress(&format!("{}: replica {replica}", cluster.plan.name));
            let namespace = cluster.plan.replica_namespace(replica);
            let port = format!("{}-cp{replica}", cluster.plan.name);
            bed.add_host(&namespace, &port, cluster.plan.replica_address(replica), None)?;
            cluster.start_replica(bed, replica)?;
        }
        cluster.apply_text(&cluster.gateway_workload())?;
        for node in 1..=cluster.plan.nodes {
            progress(&format!("{}: node {node}", cluster.plan.name));
            let namespace = cluster.plan.node_namespace(node);
            let port = format!("{}-n{node}", cluster.plan.name);
            let address6 = cluster.plan.node_address6(node);
            bed.add_host(&namespace, &port, cluster.plan.node_address(node), address6)?;
            let cgroup = bed.add_cgroup(&cluster.plan.node_name(node))?;
            cluster.node_cgroups.insert(node, cgroup);
            bed.ledger.note(&Made::Mount(cluster.bpffs(node)))?;
            cluster.start_agent(bed, node)?;
        }
        progress(&format!("{}: gateway", cluster.plan.name));
        cluster.start_gateway(bed)?;
        Ok(cluster)
    }

    /// Starts a replica, new or from its disk.
    ///
    /// # Errors
    /// With the end of the replica's log.
    pub fn start_replica(&mut self, bed: &Testbed, replica: u8) -> Result<()> {
        let folder = self.folder.join(format!("cp{replica}"));
        let new = !folder.exists();
        fs::create_dir_all(&folder)?;
        let ready = folder.join("ready");
        let _ = fs::remove_file(&ready);
        let door = self.plan.door(replica);
        let mut args = words(&[
            ("run", ""),
            ("--data-dir", &folder.join("data").display().to_string()),
            ("--name", &self.plan.name),
            ("--trust-domain", &self.plan.trust_domain()),
            ("--mesh-domain", "mesh.local"),
            ("--listen", &door),
            ("--advertise", &door),
            ("--admin-socket", &self.admin_socket(replica).display().to_string()),
            ("--pod-cidr", self.plan.pod_cidr()),
            ("--service-cidr", self.plan.service_cidr()),
            ("--gateway", &self.plan.gateway()),
            ("--metrics", METRICS),
            ("--ready-file", &ready.display().to_string()),
        ]);
        for (flag, value) in
            [("--pod-cidr6", self.plan.pod_cidr6()), ("--service-cidr6", self.plan.service_cidr6())]
        {
            args.extend(words(&value.map(|value| (flag, value)).into_iter().collect::<Vec<_>>()));
        }
        if new && replica > 1 {
            args.extend(["--join-file".to_owned(), self.token_file(&folder, &["--for", "replica"])?]);
        }
        let mut process = Process::spawn(
            &bed.ledger,
            &format!("replica {replica} of {}", self.plan.name),
            &Place::namespace(self.plan.replica_namespace(replica)),
            &bed.binary("control-plane"),
            &args,
            folder.join("log"),
        )?;
        process.wait_for_file(&ready, PATIENCE)?;
        self.replicas.insert(replica, process);
        Ok(())
    }

    /// Starts a node's agent, new or from its state.
    ///
    /// # Errors
    /// With the end of the agent's log.
    pub fn start_agent(&mut self, bed: &Testbed, node: u8) -> Result<()> {
        let folder = self.folder.join(format!("n{node}"));
        let new = !folder.exists();
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(self.bpffs(node))?;
        let ready = folder.join("ready");
        let _ = fs::remove_file(&ready);
        let name = self.plan.node_name(node);
        let mut args = words(&[
            ("run", ""),
            ("--node", &name),
            ("--address", &self.plan.node_address(node).to_string()),
            ("--state-dir", &self.agent_state(node).display().to_string()),
            ("--socket", &self.agent_socket(node).display().to_string()),
            ("--cgroup", &self.node_cgroups[&node].display().to_string()),
            ("--bpffs", &self.bpffs(node).display().to_string()),
            ("--metrics", METRICS),
            ("--ready-file", &ready.display().to_string()),
        ]);
        let address6 = self.plan.node_address6(node).map(|address| address.to_string());
        let more = [("--address6", address6.as_deref()), ("--tunnel", self.plan.tunnel)];
        let more: Vec<_> = more.iter().filter_map(|(flag, value)| Some((*flag, (*value)?))).collect();
        args.extend(words(&more));
        if self.plan.serves_outside {
            args.extend(words(&[("--net-interface", "eth0")]));
        }
        if self.plan.audited == Some(node) {
            args.extend(words(&[("--node-label", "isthmus.io/audit=true")]));
        }
        if node == 1 {
            args.extend(["--gateway-workload".to_owned(), format!("{SYSTEM}/gateway")]);
        }
        if new {
            let token = self.token_file(&folder, &["--for", "node", "--node", &name])?;
            args.extend(["--join-file".to_owned(), token]);
        }
        let mut process = Process::spawn(
            &bed.ledger,
            &format!("agent of {name}"),
            &Place::namespace(self.plan.node_namespace(node)),
            &bed.binary("node-agent"),
            &args,
            folder.join("log"),
        )?;
        process.wait_for_file(&ready, PATIENCE)?;
        self.agents.insert(node, process);
        Ok(())
    }

    fn gateway_workload(&self) -> String {
        format!(
            "apiVersion: isthmus.io/v1\nkind: Workload\nmetadata: {{name: gateway, namespace: {SYSTEM}}}\n\
             spec: {{serviceAccount: gateway, proxy: gateway, address: {}, ports: [{{name: mesh, port: {GATEWAY_PORT}}}]}}\n",
            self.plan.node_address(1)
        )
    }

    fn start_gateway(&mut self, bed: &Testbed) -> Result<()> {
        let args = words(&[
            ("run", ""),
            ("--agent-socket", &self.agent_socket(1).display().to_string()),
            ("--node-id", &format!("proxy~{SYSTEM}/gateway")),
        ]);
        let place = Place::namespace(self.plan.node_namespace(1));
        let log = self.folder.join("gateway.log");
        let process = Process::spawn(&bed.ledger, "gateway", &place, &bed.binary("proxy"), &args, log)?;
        self.gateway = Some(process);
        Ok(())
    }

    /// What an agent keeps on its disk.
    pub fn agent_state(&self, node: u8) -> PathBuf {
        self.folder.join(format!("n{node}")).join("state")
    }

    /// `node-agent status` of a node.
    ///
    /// # Errors
    /// The agent's own sentence.
    pub fn agent_status(&self, bed: &Testbed, node: u8) -> Result<String> {
        let socket = self.agent_socket(node);
        let output =
            Command::new(bed.binary("node-agent")).args(["status", "--socket"]).arg(socket).output()?;
        if !output.status.success() {
            bail!("node-agent status: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The agent's socket on a node.
    pub fn agent_socket(&self, node: u8) -> PathBuf {
        self.folder.join(format!("n{node}.sock"))
    }

    /// The admin socket of a replica.
    pub fn admin_socket(&self, replica: u8) -> PathBuf {
        self.folder.join(format!("cp{replica}.sock"))
    }

    /// The BPF file system of a node's agent.
    pub fn bpffs(&self, node: u8) -> PathBuf {
        self.folder.join(format!("bpf-n{node}"))
    }

    /// Where the processes of a pod on this node run.
    pub fn pod_place(&self, pod: &str, node: u8) -> Place {
        Place { namespace: Some(self.plan.pod_namespace(pod)), cgroup: self.node_cgroups.get(&node).cloned() }
    }

    /// Runs `clustermesh` against one replica; input goes to its standard input.
    ///
    /// # Errors
    /// Only if it can't be started: a refusal is in the output.
    pub fn clustermesh_at(&self, replica: u8, args: &[&str], input: Option<&str>) -> Result<Output> {
        use std::io::Write;
        let program = super::binaries()?.join("clustermesh");
        let mut child = Command::new(program)
            .arg("--socket")
            .arg(self.admin_socket(replica))
            .args(args)
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A refused command may not read its input.
            let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// Runs `clustermesh` against the first replica that runs.
    ///
    /// # Errors
    /// The command's own sentence when it fails.
    pub fn clustermesh(&self, args: &[&str]) -> Result<String> {
        self.clustermesh_with(args, None)
    }

    fn clustermesh_with(&self, args: &[&str], input: Option<&str>) -> Result<String> {
        let replica = self.replicas.keys().next().context("no replica runs")?;
        let output = self.clustermesh_at(*replica, args, input)?;
        if !output.status.success() {
            bail!("clustermesh {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `clustermesh … -o json`, parsed.
    ///
    /// # Errors
    /// The command's own sentence, or that it printed no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut words = args.to_vec();
        words.extend(["-o", "json"]);
        let text = self.clustermesh(&words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("clustermesh {} printed no JSON", words.join(" ")))
    }

    /// `clustermesh apply -f -`.
    ///
    /// # Errors
    /// The command's own sentence.
    pub fn apply_text(&self, yaml: &str) -> Result<String> {
        self.clustermesh_with(&["apply", "-f", "-"], Some(yaml))
    }

    /// A new token, in a file: arguments are in the process list for everybody to see.
    fn token_file(&self, folder: &Path, args: &[&str]) -> Result<String> {
        let mut words = vec!["token", "create"];
        words.extend(args);
        let file = folder.join("join-token");
        fs::write(&file, self.clustermesh(&words)?)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok(file.display().to_string())
    }

    /// The virtual address of a service, once it has one.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn virtual_ip(&self, namespace: &str, service: &str) -> Result<String> {
        wait_until(&format!("a virtual IP of {service}.{namespace}"), Duration::from_secs(15), || {
            let object = self.json(&["get", "service", service, "-n", namespace])?;
            let ip =
                object.pointer("/status/virtualIP").or_else(|| object.pointer("/items/0/status/virtualIP"));
            Ok(ip.and_then(Value::as_str).map(str::to_owned))
        })
    }

    /// The virtual addresses of a service of two families, IPv4 first, once it has both.
    ///
    /// # Errors
    /// When there are none in time.
    pub fn virtual_ips(&self, namespace: &str, service: &str) -> Result<[String; 2]> {
        wait_until(&format!("two virtual IPs of {service}.{namespace}"), Duration::from_secs(15), || {
            let object = self.json(&["get", "service", service, "-n", namespace])?;
            let ips = object
                .pointer("/status/virtualIPs")
                .or_else(|| object.pointer("/items/0/status/virtualIPs"))
                .and_then(Value::as_array)
                .with_context(|| format!("{object}"))?;
            let mut ips: Vec<String> = ips.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            ips.sort_by_key(|ip| ip.contains(':'));
            Ok(ips.try_into().ok())
        })
    }

    /// The replica that leads, by status.
    ///
    /// # Errors
    /// When none answers in time.
    pub fn leader(&self) -> Result<u8> {
        wait_until("a leader", Duration::from_secs(15), || {
            let status = self.json(&["status"])?;
            Ok(status
                .get("leader")
                .and_then(Value::as_u64)
                .filter(|l| *l > 0)
                .and_then(|l| u8::try_from(l).ok()))
        })
    }
}

/// `--flag value` pairs as words; an empty value is left out.
fn words(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs
        .iter()
        .flat_map(|(flag, value)| [*flag, *value])
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}
