//! A cluster in this process, on loopback, and the clients that talk to it: over the same doors as any other.

#![allow(dead_code, clippy::unwrap_used)]

use std::{path::Path, time::Duration};

use clustermesh::token::JoinToken;
use control_plane::{
    config::{self, Config},
    start::{self, Running},
};
use mesh_model::identity::{SpiffeId, TrustDomain};
use mesh_tls::{
    ALPN_H2, Identity, PeerPolicy, PrivateKeyDer, SharedBundles, SharedIdentity, TrustBundles, certified,
    client_config, client_config_pinned, csr, grpc, shared_bundles, shared_identity,
};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};
use xds_proto::isthmus::{
    admin::v1::{
        ApplyRequest, CreateTokenRequest, DeleteRequest, ListRequest, ObjectRef, admin_client::AdminClient,
    },
    bootstrap::v1::{
        RegisterNodeRequest, RegisterNodeResponse, ReportEndpointRequest, bootstrap_client::BootstrapClient,
    },
};

/// Longest wait for anything that must happen.
pub const SOON: Duration = Duration::from_secs(30);

/// One replica that is a whole cluster.
pub struct Cluster {
    pub running: Running,
    pub admin: AdminClient<Channel>,
    /// For the services beside the main one.
    pub admin_channel: Channel,
    folder: TempDir,
}

impl Cluster {
    pub async fn start(name: &str) -> Self {
        Self::start_with(name, &[]).await
    }

    /// With more flags of `control-plane run`.
    pub async fn start_with(name: &str, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let domain = format!("{name}.example");
        let flags: Vec<&str> =
            ["--name", name, "--trust-domain", &domain].iter().chain(flags).copied().collect();
        let running = run(folder.path(), &flags).await;
        let admin_channel = grpc::connect_unix(folder.path().join("admin.sock")).await.unwrap();
        let admin = AdminClient::new(admin_channel.clone());
        Self { running, admin, admin_channel, folder }
    }

    /// Where its data directory and its socket are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `host:port` of the mesh door.
    pub fn door(&self) -> String {
        self.running.door.to_string()
    }

    pub fn trust_domain(&self) -> TrustDomain {
        self.running.app.trust_domain().clone()
    }

    pub fn bundles(&self) -> SharedBundles {
        let mut bundles = TrustBundles::new();
        bundles.insert(self.trust_domain(), self.running.app.ca.roots().to_vec()).unwrap();
        shared_bundles(bundles)
    }

    pub async fn token(&mut self, purpose: &str) -> String {
        let request = CreateTokenRequest { purpose: purpose.to_owned(), ..Default::default() };
        self.admin.create_token(request).await.unwrap().into_inner().token
    }

    /// Applies the documents of a YAML text and returns the revision.
    pub async fn apply(&mut self, yaml: &str) -> Result<u64, Status> {
        let objects = yaml
            .split("\n---\n")
            .map(|document| {
                let value: serde_json::Value = serde_saphyr::from_str(document).unwrap();
                serde_json::to_vec(&value).unwrap()
            })
            .collect();
        let answer = self.admin.apply(ApplyRequest { objects, ..Default::default() }).await?;
        Ok(answer.into_inner().revision)
    }

    pub async fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let object =
            ObjectRef { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() };
        self.admin.delete(DeleteRequest { objects: vec![object] }).await.unwrap();
    }

    pub async fn list(&mut self, kind: &str) -> (u64, Vec<serde_json::Value>) {
        let request = ListRequest { kind: kind.to_owned(), ..Default::default() };
        let answer = self.admin.list(request).await.unwrap().into_inner();
        (answer.revision, answer.objects.iter().map(|bytes| serde_json::from_slice(bytes).unwrap()).collect())
    }

    /// The revision of the state: changed by anything that changes anything.
    pub async fn revision(&mut self) -> u64 {
        self.list("all").await.0
    }

    /// Registers a node and connects as it.
    pub async fn node(&mut self, name: &str) -> Node {
        let token = self.token("node").await;
        let (answer, identity) = register(&self.door(), &token, name).await.unwrap();
        // A list is answered once the views know its revision: the node is served from then on.
        self.revision().await;
        let channel = self.connect(Some(identity.clone())).await.unwrap();
        Node { name: name.to_owned(), answer, channel, identity }
    }

    /// A connection to the mesh door with a certificate, or with none.
    pub async fn connect(&self, identity: Option<SharedIdentity>) -> Result<Channel, mesh_tls::Error> {
        self.connect_to(&self.door(), identity).await
    }

    /// The same, to another replica of the cluster.
    pub async fn connect_to(
        &self,
        door: &str,
        identity: Option<SharedIdentity>,
    ) -> Result<Channel, mesh_tls::Error> {
        let policy = PeerPolicy::Replicas(self.trust_domain());
        let tls = client_config(identity, self.bundles(), policy, &[ALPN_H2])?;
        grpc::connect(door, tls, "replica.isthmus").await
    }
}

/// A registered node.
pub struct Node {
    pub name: String,
    pub answer: RegisterNodeResponse,
    pub channel: Channel,
    pub identity: SharedIdentity,
}

impl Node {
    /// An address of the node's slice.
    pub fn address(&self, host: u8) -> String {
        let network = self.answer.pod_cidr.split('/').next().unwrap();
        let (prefix, _) = network.rsplit_once('.').unwrap();
        format!("{prefix}.{host}")
    }
}

/// Starts a replica in a folder and waits until it is ready.
pub async fn run(folder: &Path, flags: &[&str]) -> Running {
    let running = start::start(configured(folder, flags)).await.unwrap();
    tokio::time::timeout(SOON, running.ready()).await.unwrap();
    running
}

/// What a replica in a folder is started with, on a door of the kernel's choice.
pub fn configured(folder: &Path, flags: &[&str]) -> Config {
    let data = folder.join("data");
    let socket = folder.join("admin.sock");
    let mut arguments = vec!["control-plane", "run", "--listen", "127.0.0.1:0"];
    arguments.extend(["--data-dir", data.to_str().unwrap(), "--admin-socket", socket.to_str().unwrap()]);
    arguments.extend(flags);
    config::parse(arguments.iter().map(Into::into)).unwrap()
}

/// Trades a token for a node's certificate.
pub async fn register(
    door: &str,
    token: &str,
    node: &str,
) -> Result<(RegisterNodeResponse, SharedIdentity), Status> {
    let pinned = JoinToken::decode(token).unwrap().root_sha256;
    let tls = client_config_pinned(pinned, &[ALPN_H2]).unwrap();
    let channel = grpc::connect(door, tls, "replica.isthmus").await.unwrap();
    let (request, key) = anybodys_csr();
    let answer = BootstrapClient::new(channel)
        .register_node(RegisterNodeRequest {
            address6: String::new(),
            token: token.to_owned(),
            node: node.to_owned(),
            // Of the documentation range, one for each name.
            address: format!("192.0.2.{}", 1 + node.bytes().fold(0u8, u8::wrapping_add) % 250),
            csr: request,
        })
        .await?
        .into_inner();
    let shown = shared_identity(None);
    show(&answer.chain, key, &shown);
    Ok((answer, shown))
}

/// A request for a certificate, with its key. What name it asks for is nobody's: the signer decides.
pub fn anybodys_csr() -> (Vec<u8>, PrivateKeyDer<'static>) {
    let anybody = TrustDomain::parse("unregistered.invalid").unwrap();
    csr::generate(&SpiffeId::node(&anybody, "whoever")).unwrap()
}

/// Handshakes show this chain from now on.
pub fn show(chain: &[Vec<u8>], key: PrivateKeyDer<'static>, into: &SharedIdentity) {
    let chain = chain.iter().cloned().map(Into::into).collect();
    into.store(Some(certified(Identity { chain, key }).unwrap()));
}

/// A pod of the namespace `shop` at the ninth address of a node's slice.
pub fn pod(slice: &str, workload: &str) -> ReportEndpointRequest {
    ReportEndpointRequest {
        namespace: "shop".to_owned(),
        workload: workload.to_owned(),
        addresses: vec![slice.replace(".0/24", ".9")],
        ready: true,
    }
}

/// Waits for a state of a cluster.
pub async fn until(cluster: &Cluster, what: &str, holds: impl Fn(&mesh_store::State) -> bool) {
    let replica = cluster.running.app.replica.clone();
    let mut changes = replica.changes();
    let waiting = async {
        while !holds(&replica.applied()) {
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

/// Outbound listeners are at ports of 127.0.0.1 that every cluster numbers alike, and Envoys would share them: one proxy
/// at a time on this machine, for as long as the file is kept open.
pub fn proxy_ports() -> std::fs::File {
    let file = std::fs::File::create(std::env::temp_dir().join("isthmus-test-proxy-ports.lock")).unwrap();
    file.lock().unwrap();
    file
}

/// For assertions on certificates.
pub fn spiffe_id(chain: &[Vec<u8>]) -> SpiffeId {
    let chain: Vec<_> = chain.iter().map(|der| der.clone().into()).collect();
    mesh_tls::peer_spiffe_id(&chain).unwrap()
}
