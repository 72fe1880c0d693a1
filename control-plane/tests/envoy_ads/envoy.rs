//! Runs Envoy, backends for it, and requests through it.

// Each test that includes this uses a part of it.
#![allow(dead_code)]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

/// Well below Envoy's own timers of 15 s for what does not come: it has not been waiting for something never sent.
pub const PROMPT: Duration = Duration::from_secs(8);

/// The variant of the protocol that Envoy is told to speak.
#[derive(Debug, Clone, Copy)]
pub enum Api {
    Sotw,
    Delta,
}

/// The binary; None if it is to be done without.
pub fn binary() -> Option<PathBuf> {
    if std::env::var("SKIP_ENVOY").is_ok_and(|skip| skip == "1") {
        eprintln!("skipped: SKIP_ENVOY=1");
        return None;
    }
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Some(path.into());
    }
    let target =
        Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the folder is below the target folder");
    let versions = std::fs::read_dir(target.join("envoy-venv/lib")).into_iter().flatten().flatten();
    let found = versions
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|candidate| candidate.is_file());
    Some(found.unwrap_or_else(|| {
        panic!(
            "no Envoy below {}: run `make test`, which installs it, or set ENVOY_BIN, or SKIP_ENVOY=1",
            target.display()
        )
    }))
}

/// A port that nobody listens on. Another process could take it before Envoy does; then the test fails.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running Envoy; killed when dropped.
pub struct Envoy {
    directory: tempfile::TempDir,
    _process: Child,
}

impl Envoy {
    /// Against replicas, without TLS.
    pub fn start(binary: &Path, api: Api, control_plane: &[SocketAddr]) -> Self {
        Self::with(binary, &bootstrap(api, control_plane))
    }

    /// Against the socket of a node's agent, as a workload.
    pub fn start_at(binary: &Path, api: Api, workload: &str, socket: &Path) -> Self {
        let agent = vec![json!({"pipe": {"path": socket}})];
        Self::with(binary, &bootstrap_as(api, &format!("envoy~{workload}"), agent))
    }

    /// One with a bootstrap configuration of its own.
    pub fn with(binary: &Path, bootstrap: &serde_json::Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("bootstrap.json");
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new(binary)
            .arg("-c")
            .arg(config)
            .arg("--admin-address-path")
            .arg(directory.path().join("admin"))
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "info"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", binary.display()));
        Self { directory, _process: process }
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().filter(|line| !line.contains("[info]")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub async fn admin(&self, path: &str) -> String {
        let address = std::fs::read_to_string(self.directory.path().join("admin")).unwrap();
        let (_, body) = request(address.trim().parse().unwrap(), path).await.unwrap();
        body
    }

    /// A gauge has come to zero.
    pub async fn settled(&self, gauge: &str) {
        let zero = format!("{gauge}: 0");
        let settled = eventually(|| async {
            let stats = self.admin(&format!("/stats?filter=^{gauge}$")).await;
            stats.lines().any(|line| line == zero).then_some(())
        });
        assert!(settled.await.is_some(), "{gauge} stays above zero\n{}", self.log());
    }
}

pub fn bootstrap(api: Api, control_plane: &[SocketAddr]) -> serde_json::Value {
    bootstrap_as(api, "envoy~shop/web", control_plane.iter().map(|at| socket_address(*at)).collect())
}

fn socket_address(at: SocketAddr) -> serde_json::Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

/// As somebody, at these addresses.
pub fn bootstrap_as(api: Api, node_id: &str, control_plane: Vec<serde_json::Value>) -> serde_json::Value {
    let api_type = match api {
        Api::Sotw => "GRPC",
        Api::Delta => "DELTA_GRPC",
    };
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let replicas = control_plane.into_iter().map(|address| json!({"endpoint": {"address": address}}));
    json!({
        // That it can be told of times to live is Envoy's to do and its operator's to say.
        "node": {"id": node_id, "cluster": "west", "client_features": ["xds.config.resource-in-sotw"]},
        "admin": {"address": socket_address(SocketAddr::from(([127, 0, 0, 1], 0)))},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type,
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "isthmus_agent"}}]
            },
            "cds_config": ads,
            "lds_config": ads
        },
        "static_resources": {"clusters": [{
            "name": "isthmus_agent",
            "type": "STATIC",
            "connect_timeout": "2s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}
                }
            },
            "load_assignment": {
                "cluster_name": "isthmus_agent",
                "endpoints": [{"lb_endpoints": replicas.collect::<Vec<_>>()}]
            }
        }]}
    })
}

/// Answers every request with its name.
pub struct Backend {
    pub port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Backend {
    pub async fn start(name: &'static str) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name).await
    }

    pub async fn start_at(at: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, name));
            }
        });
        Self { port, task }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let response =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}", name.len());
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// The body of a 200 through Envoy's listener, or what came instead.
pub async fn get(port: u16) -> Result<String, String> {
    let (head, body) =
        request(SocketAddr::from(([127, 0, 0, 1], port)), "/").await.map_err(|e| e.to_string())?;
    if head.starts_with("HTTP/1.1 200 ") { Ok(body) } else { Err(format!("{head} {body}")) }
}

async fn request(address: SocketAddr, path: &str) -> std::io::Result<(String, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: web.shop\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await?;
        let response = String::from_utf8_lossy(&response);
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
        let body = if head.contains("transfer-encoding: chunked") { unchunk(body) } else { body.to_owned() };
        Ok((head.to_owned(), body))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await?
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        if size == 0 || rest.len() < size + 2 {
            break;
        }
        whole += &rest[..size];
        body = &rest[size + 2..];
    }
    whole
}

/// Asks again and again, for as long as a stuck Envoy may be told from a slow one.
pub async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> Option<T> {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let asking = async {
        loop {
            ticks.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PROMPT, asking).await.ok()
}
