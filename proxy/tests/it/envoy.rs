//! The real Envoy beside our proxy, with the same resources from the same control plane.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;
use proxy::Proxy;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use xds_proto::{
    envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
    google::protobuf::Any,
};

use crate::{
    backend::Backend,
    client::{Answer, get1, send},
    control::{Control, named},
    filters::listening,
    resources::static_cluster,
};

/// For Envoy to start and to be configured on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary; None if it is to be done without.
fn binary() -> Option<PathBuf> {
    if std::env::var("SKIP_ENVOY").is_ok_and(|skip| skip == "1") {
        eprintln!("skipped: SKIP_ENVOY=1");
        return None;
    }
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Some(path.into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
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

/// A running Envoy; killed when dropped.
struct Envoy {
    folder: TempDir,
    _process: Child,
}

impl Envoy {
    fn start(binary: &Path, agent: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("bootstrap.json");
        std::fs::write(&config, bootstrap(agent).to_string()).unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new(binary)
            .arg("-c")
            .arg(config)
            .arg("--admin-address-path")
            .arg(folder.path().join("admin"))
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { folder, _process: process }
    }

    async fn listener(&self) -> SocketAddr {
        let start = Instant::now();
        loop {
            if let Some(at) = self.bound().await {
                return at;
            }
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(start.elapsed() < PATIENCE, "Envoy does not listen:\n{log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn bound(&self) -> Option<SocketAddr> {
        let admin = std::fs::read_to_string(self.folder.path().join("admin")).ok()?;
        let admin = admin.trim().parse().ok()?;
        let listeners: Value =
            serde_json::from_slice(&get1(admin, "/listeners?format=json").await.body).ok()?;
        let address = &listeners["listener_statuses"].as_array()?.first()?["local_address"]["socket_address"];
        let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
        Some(SocketAddr::new(address["address"].as_str()?.parse().ok()?, port))
    }
}

fn bootstrap(agent: &Path) -> Value {
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    json!({
        "node": {"id": "envoy~test/one", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "static_resources": {"clusters": [{
            "name": "agent",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "load_assignment": {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"pipe": {"path": agent}}}},
            ]}]},
        }]},
    })
}

/// Our proxy and Envoy, with the same listener `in` before the same application.
pub struct Pair {
    pub ours: SocketAddr,
    pub envoy: Option<SocketAddr>,
    _app: Backend,
    _control: Control,
    _proxy: Proxy,
    _envoy: Option<Envoy>,
}

impl Pair {
    pub async fn start(
        manager: &HttpConnectionManager,
        more: impl IntoIterator<Item = (String, String, Any)>,
    ) -> Self {
        let app = Backend::start("app").await;
        let control = Control::start().await;
        control.set(more);
        control.set([named(static_cluster("app", &[app.address])), named(listening(manager))]);
        let running = binary().map(|binary| Envoy::start(&binary, &control.socket()));
        let proxy = control.proxy().await;
        let ours = proxy.listener("in").await.unwrap();
        let envoy = match &running {
            Some(envoy) => Some(envoy.listener().await),
            None => None,
        };
        Self { ours, envoy, _app: app, _control: control, _proxy: proxy, _envoy: running }
    }

    /// Sends the same to both: status, these headers and, of answers that are not the application's, the body must be
    /// the same. The answer is ours.
    pub async fn alike(&self, headers: &[&str], request: impl Fn() -> Request<Full<Bytes>>) -> Answer {
        let ours = send(self.ours, Version::HTTP_11, request()).await;
        if let Some(at) = self.envoy {
            let told = format!("{:?}", request());
            let envoy = send(at, Version::HTTP_11, request()).await;
            assert_eq!(ours.status, envoy.status, "{told}\nours {ours:?}\nEnvoy {envoy:?}");
            for name in headers {
                let of = |answer: &Answer| answer.headers.get(*name).cloned();
                assert_eq!(of(&ours), of(&envoy), "{name} of {told}");
            }
            if ours.backend().is_empty() {
                assert_eq!(ours.text(), envoy.text(), "{told}");
            }
        }
        ours
    }
}
