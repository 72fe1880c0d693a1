//! The real Envoy as a pod's data plane: a bootstrap that knows nothing but the agent's socket.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Cluster, Place, PodPlan, Process, Testbed, process::wait_until};

/// Everything else comes by ADS and SDS from the agent.
pub fn bootstrap(node_id: &str, agent_socket: &Path, admin_socket: &Path) -> Value {
    json!({
        "node": { "id": node_id, "cluster": "isthmus" },
        "admin": { "address": { "pipe": { "path": admin_socket } } },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "isthmus_agent" } }],
            },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "cluster_manager": { "load_stats_config": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "isthmus_agent" } }],
        } },
        "static_resources": { "clusters": [{
            "name": "isthmus_agent",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": { "http2_protocol_options": {} },
                },
            },
            "load_assignment": { "cluster_name": "isthmus_agent", "endpoints": [{ "lb_endpoints": [{
                "endpoint": { "address": { "pipe": { "path": agent_socket } } },
            }] }] },
        }] },
    })
}

/// The binary inside the package that `make setup` installs.
///
/// # Errors
/// Says to run the set-up.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Ok(path.into());
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/envoy-venv/lib");
    let pythons =
        fs::read_dir(&lib).with_context(|| format!("no Envoy below {}: run `make setup`", lib.display()))?;
    pythons
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.exists())
        .with_context(|| format!("no Envoy below {}: run `make setup`", lib.display()))
}

pub(super) fn start(
    bed: &Testbed,
    cluster: &Cluster,
    plan: &PodPlan,
    place: &Place,
    folder: &Path,
) -> Result<Process> {
    let admin = admin_socket(folder);
    let config = folder.join("envoy.json");
    let node_id = format!("envoy~{}/{}", plan.namespace, plan.name);
    fs::write(
        &config,
        serde_json::to_vec_pretty(&bootstrap(&node_id, &cluster.agent_socket(plan.node), &admin))?,
    )?;
    let args: Vec<String> = [
        "-c",
        &config.display().to_string(),
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
    ]
    .iter()
    .map(|a| (*a).to_owned())
    .collect();
    let what = format!("the Envoy of {}", plan.name);
    let process = Process::spawn(&bed.ledger, &what, place, &binary()?, &args, folder.join("envoy.log"))?;
    wait_until(&format!("{what} to be live with its listeners"), Duration::from_secs(40), || {
        let live = admin_get(&admin, "/ready")?.contains("LIVE");
        let listeners = admin_get(&admin, "/listeners")?;
        Ok((live && listeners.contains("inbound|")).then_some(()))
    })
    .with_context(|| format!("its last words:\n{}", process.last_words()))?;
    Ok(process)
}

fn admin_socket(folder: &Path) -> PathBuf {
    folder.join("envoy.sock")
}

impl Cluster {
    /// Asks the Envoy of a pod, at its admin socket.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn envoy(&self, pod: &str, path: &str) -> Result<String> {
        admin_get(&admin_socket(&self.folder.join(pod)), path)
    }
}

/// GET on Envoy's admin socket.
///
/// # Errors
/// When it does not answer.
pub fn admin_get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
