//! A service, and then a policy, by which a pod's calls go through a proxy of the node: the real agent, a real Envoy.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use ebpf_shared::redirect::MARK;
use node_agent::cni::Netns;
use serde_json::{Value, json};
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    Host,
    control_plane::{State, eventually, identity},
    name, netns, only_web, run, six,
    support::in_sandbox,
};

const PORT: u16 = 15_006;
const VIRTUAL: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 101, 0, 80)), IpAddr::V6(Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x80))];
/// What is to come, comes by then.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_pod_calls_a_service_by_the_envoy_of_its_node() {
    let Some(envoy) = envoy() else {
        println!("skipped: there is no Envoy, and SKIP_ENVOY=1 is set");
        return;
    };
    in_sandbox(move |sandbox| {
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
        run(&["ip", "link", "set", "up0", "up"]);
        run(&["ip", "address", "add", "192.0.2.1/32", "dev", "up0"]);
        run(&["ip", "address", "add", "2001:db8::1/128", "dev", "lo"]);
        std::fs::create_dir_all("/run/netns").unwrap();
        run(&["mount", "-t", "tmpfs", "tmpfs", "/run/netns"]);
        mesh_tls::install_provider();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let state = State::new();
        runtime.spawn(state.clone().serve());
        let dir = tempfile::tempdir().unwrap();
        let mut host =
            Host { sandbox, dir: dir.path().to_owned(), token: state.token(), agent: None, more: &[] };
        story(&mut host, &state, &envoy);
        if host.agent.is_some() {
            host.kill("-KILL");
        }
        let state_dir = dir.path().join("state");
        let (fine, text) = host.agent(&["cleanup", "--state-dir", state_dir.to_str().unwrap()]);
        assert!(fine, "{text}");
        for pod in ["web", "pay"] {
            run(&["ip", "netns", "delete", &name(pod)]);
        }
        let _ = std::fs::remove_dir(host.gateway_cgroup());
    });
}

fn story(host: &mut Host<'_>, state: &Arc<State>, envoy: &Path) {
    for workload in ["mesh/gw", "shop/web", "shop/pay"] {
        state.declare(workload);
    }
    let node = wire::Node {
        address: "192.0.2.1".into(),
        address6: "2001:db8::1".into(),
        pod_cidrs: vec!["10.1.1.0/24".into(), "fd00:1::100/120".into()],
        ..Default::default()
    };
    state.put("n1", &node);
    state.put("1", &wire::PolicyClass { id: 1, ..Default::default() });
    state.put("2", &only_web());
    host.start();
    let pay = host.add("pay");
    let web = host.add("web");
    let (pays, webs) = ([IpAddr::V4(pay), six(pay).into()], [IpAddr::V4(web), six(web).into()]);
    answer_in("pay");
    state.put("shop/pay", &service(pays));

    // Without its proxy the service is refused, at once.
    let services = VIRTUAL.map(|ip| SocketAddr::new(ip, 80));
    for to in services {
        eventually("the service is there, and refused", || is_refused(to).then_some(()));
    }
    eventually("the refusal is told", || {
        state.flows().into_iter().find(|flow| flow.drop_reason == "PROXY_GONE")
    });

    // With it both sides see each other's addresses.
    let mut proxy = start(host, envoy, pays);
    let seen = |to: SocketAddr, web: IpAddr| {
        let Some(call) = call(to) else { return false };
        assert_eq!(call.status, 200, "{call:?}");
        assert_eq!(call.body, web.to_string(), "whom the server sees");
        let seen = format!("{web} {to}");
        assert_eq!(call.header("x-seen"), Some(seen.as_str()), "what the proxy sees");
        true
    };
    for (to, web) in services.into_iter().zip(webs) {
        eventually("it is led to the proxy", || seen(to, web).then_some(()));
    }

    // The agent dies: the proxy goes on. Then the proxy does: nothing goes by it, not when the next agent is there either.
    host.kill("-KILL");
    for (to, web) in services.into_iter().zip(webs) {
        assert!(seen(to, web), "{to}, without an agent");
    }
    proxy.kill();
    for to in services {
        assert!(is_refused(to), "{to}, without agent and proxy");
    }
    host.start();
    for to in services {
        assert!(is_refused(to), "{to}, without the proxy");
    }
    let mut proxy = start(host, envoy, pays);
    for (to, web) in services.into_iter().zip(webs) {
        eventually("it is led to the proxy again", || seen(to, web).then_some(()));
    }
    // One that runs on tells the next agent that it is there.
    host.kill("-KILL");
    host.start();
    for (to, web) in services.into_iter().zip(webs) {
        assert!(seen(to, web), "{to}, with the next agent");
    }

    // What the proxy asks in a pod's name is the pod's to ask for.
    state.put("2", &wire::PolicyClass { rules: Vec::new(), ..only_web() });
    for to in services {
        eventually("the server does not admit the pod", || (call(to)?.status == 503).then_some(()));
    }
    state.put("2", &only_web());

    // By a policy, where the pod asks for the other directly.
    state.put("1", &by_proxy());
    for (pay, web) in pays.into_iter().zip(webs) {
        let to = SocketAddr::new(pay, 8080);
        eventually("it is led to the proxy by policy", || call(to)?.header("x-seen").map(drop));
        assert!(seen(to, web));
    }
    proxy.kill();
    for to in pays.map(|pay| SocketAddr::new(pay, 8080)) {
        assert!(is_refused(to), "{to}");
    }
    assert_eq!(state.refused(), Vec::<String>::new());
}

fn service(pays: [IpAddr; 2]) -> wire::Service {
    let backends = pays.map(|address| wire::Backend {
        address: address.to_string(),
        port: 8080,
        weight: 1,
        node: "n1".into(),
        ..Default::default()
    });
    let port = wire::ServicePort {
        port: 80,
        protocol: wire::Protocol::Tcp as i32,
        backends: backends.into(),
        ..Default::default()
    };
    wire::Service {
        name: "shop/pay".into(),
        addresses: VIRTUAL.map(|ip| ip.to_string()).into(),
        ports: vec![port],
        redirect: "l7".into(),
        ..Default::default()
    }
}

fn by_proxy() -> wire::PolicyClass {
    let rule = wire::PolicyRule {
        direction: wire::Direction::Egress as i32,
        action: wire::Action::QualifiedAllow as i32,
        identity: identity("pay"),
        protocol: wire::Protocol::Tcp as i32,
        port: 8080,
        l7: Some(wire::L7 { proxy: "l7".into(), ..Default::default() }),
        provenance: "ciliumnetworkpolicy/shop/web#egress[0]".into(),
        ..Default::default()
    };
    wire::PolicyClass {
        id: 1,
        default_deny_egress: true,
        egress_provenance: "ciliumnetworkpolicy/shop/web#default-deny-egress".into(),
        rules: vec![rule],
        ..Default::default()
    }
}

/// Says to everyone who they are.
fn answer_in(pod: &str) {
    let inside = Netns::open(&netns(pod)).unwrap();
    let listener = inside.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                read_head(&mut stream)?;
                let from = stream.peer_addr().ok()?.ip().to_canonical().to_string();
                let length = from.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                stream.write_all(format!("{head}{from}").as_bytes()).ok()
            });
        }
    });
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(field, _)| *field == name).map(|(_, value)| value)
    }
}

/// Calls from the pod `web`. `None`: it did not come to an answer.
fn call(to: SocketAddr) -> Option<Answer> {
    let inside = Netns::open(&netns("web")).unwrap();
    let mut stream = inside.run(move || TcpStream::connect_timeout(&to, PATIENCE)).unwrap().ok()?;
    assert_eq!(stream.peer_addr().unwrap(), to);
    stream.write_all(b"GET / HTTP/1.1\r\nhost: pay\r\nconnection: close\r\n\r\n").ok()?;
    let head = read_head(&mut stream)?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut body = String::new();
    stream.read_to_string(&mut body).ok()?;
    Some(Answer { status, head, body })
}

/// Not just without an answer.
fn is_refused(to: SocketAddr) -> bool {
    let inside = Netns::open(&netns("web")).unwrap();
    let connected = inside.run(move || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
    connected.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

struct Running {
    keeper: Child,
    pid_file: PathBuf,
}

impl Running {
    /// Ends the proxy; who started it follows.
    fn kill(&mut self) {
        let process = std::fs::read_to_string(&self.pid_file).unwrap();
        run(&["kill", "-KILL", process.trim()]);
        assert!(!self.keeper.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.keeper.try_wait() {
            self.kill();
        }
    }
}

fn start(host: &Host<'_>, envoy: &Path, pays: [IpAddr; 2]) -> Running {
    let (config, pid_file) = (host.dir.join("envoy.json"), host.dir.join("envoy.pid"));
    std::fs::write(&config, configuration(pays).to_string()).unwrap();
    let port = PORT.to_string();
    let keeper = Command::new(env!("CARGO_BIN_EXE_node-agent"))
        .args(["redirect", "--name", "l7", "--port4", &port, "--port6", &port, "--tcp", "--socket"])
        .arg(host.socket())
        .args(["--", "sh", "-c", "echo $$ > \"$1\"; shift; exec \"$@\"", "sh"])
        .arg(&pid_file)
        .arg(envoy)
        .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c"])
        .arg(&config)
        .spawn()
        .unwrap();
    Running { keeper, pid_file }
}

fn configuration(pays: [IpAddr; 2]) -> Value {
    let address = |ip: IpAddr, port: u16| json!({"socket_address": {"address": ip, "port_value": port}});
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let typed = |kind: &str, mut config: Value| {
        config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.filters.{kind}"));
        config
    };
    let listener = |(at, cluster): (IpAddr, String)| {
        let manager = json!({
            "stat_prefix": "pods",
            "http_filters": [{"name": "router", "typed_config": typed("http.router.v3.Router", json!({}))}],
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}],
                "response_headers_to_add": [{"header": {
                    "key": "x-seen",
                    "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS%",
                }}],
            }]},
        });
        let manager = typed("network.http_connection_manager.v3.HttpConnectionManager", manager);
        // Whom the pod asked; whom the proxy asks as.
        let asked = typed("listener.original_dst.v3.OriginalDst", json!({}));
        let source = typed("listener.original_src.v3.OriginalSrc", json!({ "mark": MARK }));
        json!({
            "name": cluster, "address": address(at, PORT), "transparent": true,
            // SOL_SOCKET, SO_MARK.
            "socket_options": [{"level": 1, "name": 36, "int_value": MARK.cast_signed()}],
            "listener_filters": [
                {"name": "asked", "typed_config": asked}, {"name": "source", "typed_config": source},
            ],
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        })
    };
    let cluster = |(ip, name): (IpAddr, String)| {
        let endpoint = json!({"endpoint": {"address": address(ip, 8080)}});
        json!({
            "name": name, "connect_timeout": "2s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        })
    };
    let names = || ["pay4".to_owned(), "pay6".to_owned()];
    let listeners: Value = loopback.into_iter().zip(names()).map(listener).collect();
    let clusters: Value = pays.into_iter().zip(names()).map(cluster).collect();
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}

/// Installed by `make setup`, or named.
fn envoy() -> Option<PathBuf> {
    if std::env::var_os("SKIP_ENVOY").is_some_and(|value| value == "1") {
        return None;
    }
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Some(path.into());
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/envoy-venv/lib");
    let pythons = std::fs::read_dir(lib).into_iter().flatten().flatten();
    let found =
        pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|at| at.is_file());
    Some(found.expect("`make setup` installs Envoy; SKIP_ENVOY=1 does without"))
}
