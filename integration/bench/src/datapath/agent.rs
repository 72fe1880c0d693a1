//! The real agent, with the least of a control plane beside it, in the sandbox's network namespace.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use node_agent::cni::Netns;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use xds_proto::isthmus::agent::v1 as wire;

use super::{
    control_plane::State,
    support::{Sandbox, run},
};
use crate::process::Process;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(180);

pub(super) struct Agent {
    pub state: Arc<State>,
    pub process: Process,
    folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl Agent {
    /// Starts both; the control plane has two classes without rules, and what `fill` gives it.
    pub(super) fn start(sandbox: &Sandbox, fill: impl FnOnce(&State)) -> Self {
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
        run(&["ip", "link", "set", "up0", "up"]);
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "up0"]);
        // Named namespaces stay within the sandbox's mount namespace.
        std::fs::create_dir_all("/run/netns").expect("root may");
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        mesh_tls::install_provider();
        // Its threads are born in this thread's namespaces.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads");
        let state = State::new();
        for id in [1, 2] {
            state.put(&id.to_string(), &wire::PolicyClass { id, ..Default::default() });
        }
        fill(&state);
        runtime.spawn(state.clone().serve());
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let (bpffs, cgroup) = (sandbox.bpffs().display().to_string(), sandbox.cgroup.display().to_string());
        let arguments = [
            ["run".into(), "--node=n1".into()],
            ["--address=192.0.2.1".into(), format!("--join={}", state.token())],
            [format!("--state-dir={}", at("state")), format!("--socket={}", at("agent.sock"))],
            [format!("--cgroup={cgroup}"), format!("--bpffs={bpffs}")],
            [format!("--ready-file={}", at("ready")), "--tunnel=direct".into()],
        ];
        let log = folder.path().join("log");
        let process = Process::start("node-agent", &program("node-agent"), arguments.concat(), &log);
        let mut agent = Self { state, process: process.expect("startable"), folder, _runtime: runtime };
        agent.wait("it is ready", |agent| agent.folder.path().join("ready").exists());
        agent
    }

    /// Looks again until something is so.
    pub(super) fn wait(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            if let Err(error) = self.process.check() {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("{error}\n{log}");
            }
            assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `node-agent status` says.
    pub(super) fn status(&self) -> String {
        let output = Command::new(program("node-agent"))
            .args(["status", "--socket"])
            .arg(self.folder.path().join("agent.sock"))
            .output()
            .expect("startable");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Declares a workload, and makes the network namespace of its pod.
    pub(super) fn declare(&self, pod: &str) {
        self.state.declare(&format!("shop/{pod}"));
        run(&["ip", "netns", "add", pod]);
    }

    /// Runs the plugin as a runtime does, and says how long that took.
    pub(super) fn cni(&self, verb: &str, pod: &str) -> (Duration, Value) {
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "mesh",
            "agentSocket": self.folder.path().join("agent.sock"),
        });
        let start = Instant::now();
        let mut plugin = Command::new(program("isthmus-cni"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("container-{pod}"))
            .env("CNI_NETNS", netns(pod))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("startable");
        let stdin = plugin.stdin.take().expect("piped");
        serde_json::to_writer(stdin, &config).expect("it reads");
        let output = plugin.wait_with_output().expect("a child");
        let took = start.elapsed();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        assert!(output.status.success(), "{verb} {pod}: {answer}");
        (took, answer)
    }

    /// Makes a pod, and says its address.
    pub(super) fn add(&self, pod: &str) -> Ipv4Addr {
        self.declare(pod);
        let (_, answer) = self.cni("ADD", pod);
        let address = answer["ips"][0]["address"].as_str().and_then(|text| text.strip_suffix("/32"));
        address.and_then(|text| text.parse().ok()).expect("an address")
    }

    /// The network namespace of a pod.
    pub(super) fn inside(&self, pod: &str) -> Netns {
        Netns::open(&netns(pod)).expect("declared")
    }
}

fn netns(pod: &str) -> String {
    format!("/run/netns/{pod}")
}

/// One of the programs beside this one.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("this program");
    let path = own.with_file_name(name);
    assert!(path.exists(), "{} is missing: build the workspace's binaries", path.display());
    path
}
