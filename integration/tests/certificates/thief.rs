//! Somebody with a copy of a workload's key and certificate, in the network namespace of another pod.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use mesh_tls::{
    ALPN_HTTP11, CertificateDer, Identity, PeerPolicy, PrivateKeyDer, TrustBundles, certified, client_config,
    shared_bundles, shared_identity,
};
use nix::sched::{CloneFlags, setns};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A stolen certificate, and the roots to know servers by.
#[derive(Clone)]
pub struct Loot {
    chain: Vec<Vec<u8>>,
    key: Vec<u8>,
    roots: Vec<Vec<u8>>,
}

impl Loot {
    /// From what an agent keeps on its disk.
    pub fn steal(state: &Path, workload: &str) -> Result<Self> {
        let read = |file: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(file)?)?) };
        let file = state.join("workloads").join(format!("{workload}.json"));
        let own = read(&file).with_context(|| file.display().to_string())?;
        Ok(Self { chain: list(&own["chain"])?, key: bytes(&own["key"])?, roots: roots_of_node(state)? })
    }

    /// What a server answers to a request that is made with it: the first line.
    pub fn ask(&self, namespace: &str, server: SocketAddr, name: &str) -> Result<String> {
        let (loot, namespace, name) = (self.clone(), namespace.to_owned(), name.to_owned());
        // A thread of its own: the others stay where they are.
        let asking = std::thread::spawn(move || {
            setns(fs::File::open(format!("/run/netns/{namespace}"))?, CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::time::timeout(PATIENCE, loot.request(server, name))
                    .await
                    .context("no answer in time")?
            })
        });
        asking.join().map_err(|_| anyhow::anyhow!("the asking thread panicked"))?
    }

    async fn request(self, server: SocketAddr, name: String) -> Result<String> {
        let certificates =
            |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
        let chain = certificates(self.chain);
        let domain = mesh_tls::peer_spiffe_id(&chain)?.trust_domain().clone();
        let key = PrivateKeyDer::try_from(self.key).map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut bundles = TrustBundles::new();
        bundles.insert(domain, certificates(self.roots))?;
        let tls = client_config(
            Some(shared_identity(Some(certified(Identity { chain, key })?))),
            shared_bundles(bundles),
            PeerPolicy::AnyMeshIdentity,
            &[ALPN_HTTP11],
        )?;
        let tcp = TcpStream::connect(server).await.context("connecting")?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls));
        let mut stream = connector.connect(ServerName::try_from(name.clone())?, tcp).await?;
        stream
            .write_all(format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = vec![0; 64];
        // In TLS 1.3 the server's verdict on the client comes after the handshake.
        let length = stream.read(&mut answer).await?;
        let text = String::from_utf8_lossy(&answer[..length]);
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(line.to_owned()),
            _ => bail!("the server closed the connection"),
        }
    }
}

/// The roots by which an agent that has lost everything else would know the control plane.
pub fn roots_of_node(state: &Path) -> Result<Vec<Vec<u8>>> {
    let node: Value = serde_json::from_slice(&fs::read(state.join("node.json"))?)?;
    list(&node["roots"])
}

fn bytes(value: &Value) -> Result<Vec<u8>> {
    let text = value.as_str().context("no text")?;
    let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2).context("odd"));
    pairs.map(|pair| Ok(u8::from_str_radix(pair?, 16)?)).collect()
}

fn list(value: &Value) -> Result<Vec<Vec<u8>>> {
    value.as_array().context("no list")?.iter().map(bytes).collect()
}
