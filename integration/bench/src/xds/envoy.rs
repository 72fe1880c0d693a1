//! A real Envoy among the clients. It speaks to the replica through a tunnel of this process, which passes bytes on and
//! sees when Envoy answers: there is nothing that Envoy or the replica would tell more exactly.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tonic::transport::Channel;

use super::{
    World,
    world::{WORKLOADS_PER_NODE, workload_name},
};
use crate::process::Process;

/// Longest wait for Envoy. It stops to wait by itself, for what does not come, after 15 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// Envoy says nothing more for so long: it has what there is.
const QUIET: Duration = Duration::from_secs(2);
/// What a client says first on HTTP/2.
const PREFACE: usize = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// A frame's header: three bytes of length, its type, flags, four bytes of stream.
const HEADER: usize = 9;
const DATA: u8 = 0;
/// What configuration calls the agent, where Envoy asks for secrets too.
const AGENT: &str = "isthmus_agent";

/// The program that `make` installs below the target folder, or `ENVOY_BIN`. None: there is none.
pub(super) fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Some(path.into());
    }
    let myself = std::env::current_exe().ok()?;
    // target/<profile>/bench-control
    let target = myself.parent()?.parent()?;
    let pythons = std::fs::read_dir(target.join("envoy-venv/lib")).ok()?.flatten();
    pythons.map(|python| python.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.is_file())
}

/// A running Envoy, the sidecar of the last workload of the last node.
pub(super) struct Envoy {
    process: Process,
    answers: mpsc::UnboundedReceiver<Instant>,
    received: Arc<AtomicU64>,
    _tunnel: JoinSet<()>,
}

impl Envoy {
    /// Starts one and waits until it has what there is.
    pub(super) async fn start(program: &Path, folder: &Path, world: &World) -> Result<Self> {
        let node = world.nodes.last().context("no node")?.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (seen, answers) = mpsc::unbounded_channel();
        let received = Arc::new(AtomicU64::new(0));
        let mut tunnel = JoinSet::new();
        let counter = received.clone();
        tunnel.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((envoy, _)) = listener.accept().await {
                let Ok(replica) = node.tunnel().await else { continue };
                open.spawn(pass_on(envoy, replica, seen.clone(), counter.clone()));
            }
        });
        let workload = workload_name(world.nodes.len() * WORKLOADS_PER_NODE - 1);
        let config = folder.join("envoy.json");
        std::fs::write(&config, bootstrap(&workload, port).to_string())?;
        let arguments = ["-c".as_ref(), config.as_os_str()]
            .into_iter()
            .chain(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"].map(AsRef::as_ref));
        let process = Process::start("envoy", program, arguments, &folder.join("envoy.log"))?;
        let mut envoy = Self { process, answers, received, _tunnel: tunnel };
        timeout(PATIENCE, envoy.answers.recv()).await.context("Envoy does not connect")?;
        envoy.settle().await?;
        Ok(envoy)
    }

    async fn settle(&mut self) -> Result<()> {
        while let Ok(Some(_)) = timeout(QUIET, self.answers.recv()).await {}
        self.process.check()
    }

    /// Bytes that it was sent so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Changes one endpoint: the time from the call that wrote to Envoy's ACK, and to the end of the write, in
    /// milliseconds.
    pub(super) async fn round(&mut self, world: &World, channel: Channel, number: usize) -> Result<[f64; 2]> {
        while self.answers.try_recv().is_ok() {}
        let before = Instant::now();
        world.flip(channel, number).await?;
        let written = before.elapsed();
        let answered = timeout(PATIENCE, self.answers.recv()).await.context("Envoy does not answer")?;
        let answered = answered.context("the tunnel is closed")?.saturating_duration_since(before);
        self.process.check()?;
        // What else it has to say to this change is not counted with the next one.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok([answered, written].map(|took| took.as_secs_f64() * 1e3))
    }
}

/// Passes bytes on, both ways, and tells of Envoy's DATA frames: its requests, which after the first ones are answers.
async fn pass_on(
    envoy: tokio::net::TcpStream,
    replica: tokio_rustls::client::TlsStream<tokio::net::TcpStream>,
    seen: mpsc::UnboundedSender<Instant>,
    received: Arc<AtomicU64>,
) {
    if envoy.set_nodelay(true).is_err() {
        return;
    }
    let (mut from_envoy, mut to_envoy) = envoy.into_split();
    let (mut from_replica, mut to_replica) = tokio::io::split(replica);
    let up = async {
        let (mut buffer, mut frames) = (vec![0; 64 << 10], Frames { skip: PREFACE, header: Vec::new() });
        while let Ok(count @ 1..) = from_envoy.read(&mut buffer).await {
            if frames.has_data(&buffer[..count]) && seen.send(Instant::now()).is_err() {
                return;
            }
            let passed = to_replica.write_all(&buffer[..count]).await;
            if passed.is_err() || to_replica.flush().await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_replica.read(&mut buffer).await {
            received.fetch_add(count as u64, Ordering::Relaxed);
            if to_envoy.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Where one frame ends and the next one begins.
struct Frames {
    /// Bytes that are not looked at.
    skip: usize,
    /// What there is of a header.
    header: Vec<u8>,
}

impl Frames {
    /// Takes what was read. Whether the header of a DATA frame was in it.
    fn has_data(&mut self, mut read: &[u8]) -> bool {
        let mut found = false;
        while !read.is_empty() {
            let skipped = self.skip.min(read.len());
            self.skip -= skipped;
            read = &read[skipped..];
            let (head, rest) = read.split_at((HEADER - self.header.len()).min(read.len()));
            self.header.extend_from_slice(head);
            read = rest;
            if let [a, b, c, kind, ..] = self.header[..]
                && self.header.len() == HEADER
            {
                found |= kind == DATA;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.header.clear();
            }
        }
        found
    }
}

fn bootstrap(workload: &str, port: u16) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let at = |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    json!({
        "node": {"id": format!("envoy~bench/{workload}"), "cluster": "bench"},
        "admin": {"address": at(0)},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {"cluster_name": AGENT},
                    "initial_metadata": [{"key": "x-isthmus-workload", "value": format!("bench/{workload}")}],
                }],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [{
            "name": AGENT,
            "type": "STATIC",
            "connect_timeout": "2s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "load_assignment": {
                "cluster_name": AGENT,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(port)}}]}],
            },
        }]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_frames_are_found_wherever_the_reads_end() {
        let frame = |kind: u8, length: u8| {
            let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, 1];
            frame.extend(vec![DATA; usize::from(length)]);
            frame
        };
        let settings = [vec![b'P'; PREFACE], frame(4, 12)].concat();
        let all = [settings.clone(), frame(8, 4), frame(DATA, 200), frame(6, 8)].concat();
        for piece in [1, 2, 9, 50, 1_000] {
            let mut frames = Frames { skip: PREFACE, header: Vec::new() };
            let count = |frames: &mut Frames, bytes: &[u8]| {
                bytes.chunks(piece).filter(|read| frames.has_data(read)).count()
            };
            assert_eq!(count(&mut frames, &all), 1, "reads of {piece}");
            assert_eq!(count(&mut frames, &[frame(8, 4), frame(4, 0)].concat()), 0);
            assert_eq!(count(&mut frames, &frame(DATA, 0)), 1, "an empty one is one");
        }
    }
}
