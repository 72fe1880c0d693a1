//! The real agent and the real plugin on a node of their own: pods, policy, identity, restart. Needs root.

#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[path = "../support/old_format.rs"]
mod old_format;
#[path = "../support/mod.rs"]
mod support;

mod attachments;
mod cluster_dns;
mod control_plane;
mod health;
mod names;
mod outage;
mod proxy;
mod redirect;
mod spiffe;
mod upgrade;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use control_plane::{State, eventually, identity};
use node_agent::{cni::Netns, dns::lock};
use serde_json::{Value, json};
use support::{Sandbox, in_sandbox, run};
use xds_proto::isthmus::{agent::v1 as wire, bootstrap::v1::Flow};

/// Set for the process that plays a proxy.
const SOCKET: &str = "ISTHMUS_TEST_SOCKET";
const NODE_ID: &str = "ISTHMUS_TEST_NODE_ID";

struct Host<'a> {
    sandbox: &'a Sandbox,
    dir: PathBuf,
    token: String,
    agent: Option<Child>,
    /// Further arguments of the agent.
    more: &'static [&'static str],
}

impl Host<'_> {
    fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    fn gateway_cgroup(&self) -> PathBuf {
        self.sandbox.cgroup.join("gw")
    }

    fn start(&mut self) {
        std::fs::create_dir_all(self.gateway_cgroup()).unwrap();
        let ready = self.dir.join("ready");
        let _ = std::fs::remove_file(&ready);
        let child = Command::new(env!("CARGO_BIN_EXE_node-agent"))
            .args(["run", "--node", "n1", "--address", "192.0.2.1", "--address6", "2001:db8::1"])
            .args(["--gateway-workload", "mesh/gw", "--gateway-cgroup", "mesh/gw=gw"])
            .arg("--spiffe-socket")
            .arg(self.dir.join("spiffe.sock"))
            .args(self.more)
            .args(["--join", &self.token])
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .arg("--socket")
            .arg(self.socket())
            .arg("--cgroup")
            .arg(&self.sandbox.cgroup)
            .arg("--bpffs")
            .arg(self.sandbox.bpffs())
            .arg("--ready-file")
            .arg(&ready)
            .spawn()
            .unwrap();
        self.agent = Some(child);
        eventually("the agent is ready", || ready.exists().then_some(()));
    }

    fn kill(&mut self, signal: &str) {
        let mut child = self.agent.take().unwrap();
        run(&["kill", signal, &child.id().to_string()]);
        child.wait().unwrap();
    }

    /// Runs a verb of the agent's program: whether it was fine, and all that it said.
    fn agent(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_node-agent")).args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    /// Runs the plugin as a runtime does.
    fn cni(&self, verb: &str, pod: &str) -> (bool, Value) {
        self.cni_in(verb, pod, &format!("container-{pod}"), pod, "eth0")
    }

    /// The same for a container in the network namespace of a pod.
    fn cni_in(&self, verb: &str, pod: &str, container: &str, of: &str, ifname: &str) -> (bool, Value) {
        self.cni_with(verb, pod, container, of, ifname, &json!({}))
    }

    /// The same with more in the network configuration.
    fn cni_with(
        &self,
        verb: &str,
        pod: &str,
        container: &str,
        of: &str,
        ifname: &str,
        more: &Value,
    ) -> (bool, Value) {
        let mut plugin = Command::new(env!("CARGO_BIN_EXE_isthmus-cni"))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", netns(of))
            .env("CNI_IFNAME", ifname)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut config = json!({ "cniVersion": "1.1.0", "name": "mesh", "agentSocket": self.socket() });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = plugin.wait_with_output().unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.success(), answer)
    }

    fn add(&self, pod: &str) -> Ipv4Addr {
        run(&["ip", "netns", "add", &name(pod)]);
        // While the agent collects what a pod before it has left, it says that it is to be tried again, as runtimes do.
        let answer = control_plane::eventually("the pod is made", || {
            let (fine, answer) = self.cni("ADD", pod);
            assert!(fine || answer["code"] == 11, "{answer}");
            fine.then_some(answer)
        });
        let address = answer["ips"][0]["address"].as_str().unwrap();
        address.strip_suffix("/32").unwrap().parse().unwrap()
    }

    /// Plays a proxy in a process of its own, because attestation looks at processes. Gives what it printed.
    fn proxy(&self, pod: Option<&str>, node_id: &str) -> String {
        let myself = std::env::current_exe().unwrap();
        let mut command = match pod {
            Some(pod) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &name(pod)]).arg(myself);
                command
            }
            None => spiffe::in_cgroup(&self.gateway_cgroup(), &myself),
        };
        let output = command
            .args(["--exact", "proxy::plays_a_proxy", "--ignored", "--nocapture"])
            .env(SOCKET, self.socket())
            .env(NODE_ID, node_id)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter_map(|line| line.strip_prefix("proxy: ")).collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.agent.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // It outlives its agent.
        let _ = lock::end(&lock::path(&self.dir.join("state/dns")));
    }
}

/// A node of its own with a control plane, whose agent the story starts, with these arguments more.
fn on_a_node(more: &'static [&'static str], story: impl FnOnce(&mut Host<'_>, &Arc<State>) + Send + 'static) {
    in_sandbox(move |sandbox| {
        std::fs::create_dir_all("/run/netns").unwrap();
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "up0"]);
        run(&["ip", "address", "add", "2001:db8::1/128", "dev", "up0", "nodad"]);
        run(&["ip", "link", "set", "up0", "up"]);
        run(&["ip", "link", "set", "up1", "up"]);
        mesh_tls::install_provider();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State::new();
        runtime.spawn(state.clone().serve());
        let dir = tempfile::tempdir().unwrap();
        let mut host = Host { sandbox, dir: dir.path().to_owned(), token: state.token(), agent: None, more };
        story(&mut host, &state);
        let cgroup = host.gateway_cgroup();
        drop(host);
        let _ = std::fs::remove_dir(cgroup);
    });
}

fn name(pod: &str) -> String {
    format!("isthmus-test-{}-{pod}", std::process::id())
}

fn netns(pod: &str) -> String {
    format!("/run/netns/{}", name(pod))
}

/// Listens inside a pod and greets everyone.
fn serve_in(pod: &str, port: u16) {
    let netns = Netns::open(&netns(pod)).unwrap();
    let listener = netns.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello");
        }
    });
}

/// By both families.
fn connects(pod: &str, to: Ipv4Addr, port: u16) -> bool {
    attempts(pod, to, port) == [true, true]
}

/// By both families.
fn refused(pod: &str, to: Ipv4Addr, port: u16) -> bool {
    attempts(pod, to, port) == [false, false]
}

fn attempts(pod: &str, to: Ipv4Addr, port: u16) -> [bool; 2] {
    let inside = Netns::open(&netns(pod)).unwrap();
    [IpAddr::V4(to), six(to).into()]
        .map(|address| inside.run(move || greeted(SocketAddr::new(address, port))).unwrap())
}

fn greeted(target: SocketAddr) -> bool {
    let greeting = || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_millis(700)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let mut text = [0; 5];
        stream.read_exact(&mut text).ok()
    };
    greeting().is_some()
}

/// The other address of a pod: at the same place in the node's slice of IPv6.
fn six(four: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x100 | u16::from(four.octets()[3]))
}

/// Of class 2: only `web` may call, on port 8080.
fn only_web() -> wire::PolicyClass {
    wire::PolicyClass {
        id: 2,
        default_deny_ingress: true,
        ingress_provenance: "networkpolicy/shop/pay-callers#default-deny-ingress".into(),
        rules: vec![wire::PolicyRule {
            direction: wire::Direction::Ingress as i32,
            action: wire::Action::Allow as i32,
            identity: identity("web"),
            protocol: wire::Protocol::Tcp as i32,
            port: 8080,
            provenance: "networkpolicy/shop/pay-callers#ingress[0]".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn a_node_creates_pods_enforces_policy_serves_identity_and_restarts_without_losing_either() {
    in_sandbox(|sandbox| {
        // The uplink, whose MTU pods have.
        run(&["ip", "link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "up1"]);
        run(&["ip", "link", "set", "up0", "up"]);
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "up0"]);
        run(&["ip", "address", "add", "2001:db8::1/128", "dev", "lo"]);
        std::fs::create_dir_all("/run/netns").unwrap();
        // Named namespaces of this test stay within its mount namespace.
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        mesh_tls::install_provider();
        // Its threads are born in this thread's namespaces.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State::new();
        let mut serving = runtime.spawn(state.clone().serve());
        let dir = tempfile::tempdir().unwrap();
        let mut host =
            Host { sandbox, dir: dir.path().to_owned(), token: state.token(), agent: None, more: &[] };
        story(&mut host, &state, |host| {
            outage::dies_while_pods_are_made(host, &state);
            outage::machine_starts_anew_without_a_control_plane(host, &state, &runtime, &mut serving);
        });
    });
}

fn story(host: &mut Host<'_>, state: &Arc<State>, outages: impl FnOnce(&mut Host<'_>)) {
    let before = world(host);
    state.declare("mesh/gw");
    let node = wire::Node {
        address: "192.0.2.1".into(),
        address6: "2001:db8::1".into(),
        pod_cidrs: vec!["10.1.1.0/24".into(), "fd00:1::100/120".into()],
        ..Default::default()
    };
    state.put("n1", &node);
    state.put("1", &wire::PolicyClass { id: 1, ..Default::default() });
    state.put("2", &wire::PolicyClass { id: 2, ..Default::default() });
    host.start();
    eventually("the gateway is bound", || state.reported("mesh/gw"));

    // A pod without a declared workload is refused, and nothing of it stays.
    run(&["ip", "netns", "add", &name("stranger")]);
    let (fine, answer) = host.cni("ADD", "stranger");
    assert!(!fine);
    assert!(answer["msg"].as_str().unwrap().contains("apply it first"), "{answer}");
    assert_eq!(answer["cniVersion"], "1.1.0");
    assert!(links().is_empty(), "{:?}", links());

    for pod in ["web", "evil", "pay"] {
        state.declare(&format!("shop/{pod}"));
    }
    let pay = host.add("pay");
    host.add("web");
    host.add("evil");
    assert_eq!(state.reported("shop/pay"), Some(pay.to_string()));
    // ADD again is the same pod.
    let (fine, again) = host.cni("ADD", "pay");
    assert!(fine && again["ips"][0]["address"] == format!("{pay}/32"), "{again}");
    let all: Vec<_> = again["ips"].as_array().unwrap().iter().map(|ip| ip["address"].clone()).collect();
    assert_eq!(all, [format!("{pay}/32"), format!("{}/128", six(pay))]);
    assert!(host.cni("CHECK", "pay").0);

    attachments::a_namespace_that_is_not_free_is_left_as_it_is(host, state);
    assert!(host.cni("CHECK", "pay").0);

    // Without policy everyone may call; with it only one, and the other's drop is told by name.
    serve_in("pay", 8080);
    assert!(connects("web", pay, 8080) && connects("evil", pay, 8080));
    state.put("2", &only_web());
    eventually("the policy is enforced", || (refused("evil", pay, 8080)).then_some(()));
    assert!(connects("web", pay, 8080));
    // The node itself may, from either of its addresses.
    for address in [IpAddr::V4(pay), six(pay).into()] {
        assert!(greeted(SocketAddr::new(address, 8080)), "{address}");
    }
    // What else was dropped meanwhile (the end of the connection from before, say) is told as well.
    let drop = eventually("the drop is told", || {
        let told = |flow: &Flow| {
            flow.verdict == "DROPPED"
                && flow.source.as_ref().is_some_and(|source| source.workload == "shop/evil")
                && flow.destination.as_ref().is_some_and(|destination| destination.workload == "shop/pay")
        };
        state.flows().into_iter().find(told)
    });
    assert_eq!(drop.policy, "networkpolicy/shop/pay-callers#default-deny-ingress");

    identity_is_by_attestation(host, state);
    spiffe::certificates_are_whose_they_are(host, state);
    attachments::chains_ports_and_garbage(host, state, pay);

    // Killed or stopped: the kernel goes on, and the next agent takes over, whatever it was told before.
    host.kill("-KILL");
    assert!(connects("web", pay, 8080) && refused("evil", pay, 8080));
    host.start();
    assert!(connects("web", pay, 8080) && refused("evil", pay, 8080));
    looks_at_itself(host, pay);
    let socket = host.socket();
    let (fine, text) = host.agent(&["stop", "--socket", socket.to_str().unwrap()]);
    assert!(fine && text.contains("policy of 3 pods"), "{text}");
    assert!(host.agent.take().unwrap().wait().unwrap().success());
    assert!(connects("web", pay, 8080) && refused("evil", pay, 8080));
    host.start();
    assert!(host.cni("CHECK", "pay").0);
    assert!(connects("web", pay, 8080) && refused("evil", pay, 8080));

    outages(host);

    // DEL is idempotent, and a namespace that vanishes takes its pod with it.
    assert!(host.cni("DEL", "evil").0 && host.cni("DEL", "evil").0);
    assert_eq!(state.reported("shop/evil"), None);
    let (fine, answer) = host.cni("CHECK", "evil");
    assert!(!fine && answer["code"] == 3, "{answer}");
    run(&["ip", "netns", "delete", &name("web")]);
    eventually("the lost pod is told", || state.reported("shop/web").is_none().then_some(()));
    assert!(host.cni("DEL", "web").0);
    assert_eq!(links().len(), 1);

    let state_dir = host.dir.join("state");
    let cleanup = |host: &Host<'_>| host.agent(&["cleanup", "--state-dir", state_dir.to_str().unwrap()]);
    let (fine, text) = cleanup(host);
    assert!(!fine && text.contains("stop"), "while it runs: {text}");
    // Killed, so that whatever an agent removes at its end is still there.
    host.kill("-KILL");
    assert_ne!(world(host), before);
    for time in ["first", "second"] {
        let (fine, text) = cleanup(host);
        assert!(fine, "{time}: {text}");
        assert_eq!(world(host), before, "{time}");
    }
    assert_eq!(state.refused(), Vec::<String>::new());
    for pod in ["stranger", "evil", "pay"] {
        run(&["ip", "netns", "delete", &name(pod)]);
    }
    let _ = std::fs::remove_dir(host.gateway_cgroup());
}

/// Status, maps and what is said of them.
fn looks_at_itself(host: &Host<'_>, pay: Ipv4Addr) {
    let (socket, bpffs) = (host.socket(), host.sandbox.bpffs());
    let (socket, bpffs) = (socket.to_str().unwrap(), bpffs.to_str().unwrap());
    let (fine, text) = host.agent(&["status", "--socket", socket]);
    assert!(fine && text.contains("enforced        policy of 3 pods\n"), "{text}");
    assert!(text.contains("maps            ") && text.contains("ENDPOINTS 3/"), "{text}");
    let (fine, text) = host.agent(&["maps", "dump", "HOSTS", "-o", "json", "--bpffs", bpffs]);
    assert!(fine && text.contains(&format!("\"{pay}\"")), "{text}");
    let (fine, text) = host.agent(&["maps", "verify", "--socket", socket]);
    assert!(fine && text.contains("ENDPOINTS  3 entries\n"), "{text}");
    let path = host.sandbox.bpffs().join("maps/HOSTS");
    let map = aya::maps::Map::HashMap(aya::maps::MapData::from_pin(path).unwrap());
    let mut hosts: aya::maps::HashMap<_, ebpf_shared::Addr, u32> = map.try_into().unwrap();
    let stray = ebpf_shared::Addr::from(IpAddr::from([203, 0, 113, 7]));
    // The same is found without asking the agent.
    let state = host.dir.join("state");
    let offline = ["maps", "verify", "--state-dir", state.to_str().unwrap(), "--bpffs", bpffs];
    let (fine, text) = host.agent(&offline);
    assert!(fine && text.contains("ENDPOINTS  3 entries\n") && text.contains("SERVED"), "{text}");
    hosts.insert(stray, 1, 0).unwrap();
    for how in [&["maps", "verify", "--socket", socket][..], &offline] {
        let (fine, text) = host.agent(how);
        assert!(!fine && text.contains("HOSTS") && text.contains("203.0.113.7"), "{text}");
    }
    hosts.remove(&stray).unwrap();
}

/// What an agent changes outside of its own directory.
fn world(host: &Host<'_>) -> Vec<String> {
    let tables: [&[&str]; 6] = [
        &["ip", "-br", "link"],
        &["ip", "-br", "address"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["nft", "list", "ruleset"],
    ];
    let mut shown: Vec<String> = tables
        .map(|table| {
            let output = Command::new(table[0]).args(&table[1..]).output().unwrap();
            assert!(output.status.success(), "{table:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            let mut lines: Vec<_> = text.lines().collect();
            lines.sort_unstable();
            lines.join("\n")
        })
        .into();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let bpffs = host.sandbox.bpffs();
    shown.push(format!("bpffs {} mounted {}", bpffs.exists(), mounts.contains(bpffs.to_str().unwrap())));
    let mut files: Vec<_> =
        std::fs::read_dir(&host.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.retain(|name| name != "state");
    files.sort();
    shown.push(format!("{files:?}"));
    shown
}

fn identity_is_by_attestation(host: &Host<'_>, state: &Arc<State>) {
    // Whatever a pod claims to be, it is what its namespace says.
    let seen = host.proxy(Some("pay"), "proxy~shop/web");
    assert_eq!(seen, "ads echo; sds spiffe://west.example/ns/shop/sa/pay; roots west.example");
    assert_eq!(state.relayed(), ["shop/pay"]);
    // The node's own namespace is no pod: only its gateways may ask.
    let seen = host.proxy(None, "proxy~shop/web");
    assert!(seen.contains("PermissionDenied") || seen.contains("permission"), "{seen}");
    assert!(!seen.contains("spiffe://"), "{seen}");
    state.put(
        "mesh/gw",
        &wire::LocalEndpoint {
            name: "mesh/gw".into(),
            identity: 999,
            spiffe_id: "spiffe://west.example/ns/mesh/sa/gw".into(),
            policy_class: 1,
            ..Default::default()
        },
    );
    let seen = host.proxy(None, "proxy~mesh/gw");
    assert!(seen.contains("sds spiffe://west.example/ns/mesh/sa/gw"), "{seen}");
    // A namespace that is no pod of this node is nobody.
    let seen = host.proxy(Some("stranger"), "proxy~shop/pay");
    assert!(!seen.contains("spiffe://") && !seen.contains("ads echo"), "{seen}");
    let agent = Command::new("ip")
        .args(["netns", "exec", &name("pay"), env!("CARGO_BIN_EXE_node-agent"), "status", "--socket"])
        .arg(host.socket())
        .output()
        .unwrap();
    assert!(!agent.status.success(), "a pod may not ask for the status of its node");
}

/// The host's ends of pods' links.
fn links() -> Vec<String> {
    let output = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains(": ism")).map(str::to_owned).collect()
}
