//! What gRPC's own xDS clients need in a pod: a way to the agent that all of them can go, a bootstrap that names it, and
//! the pod's certificate and roots in files (their `file_watcher`), fresh for as long as this runs. It runs in the pod,
//! like a proxy: the agent knows by the network namespace whose configuration and certificate it asks for.

mod bootstrap;
mod files;
mod relay;
mod secrets;

pub use bootstrap::bootstrap;
pub use files::{BOOTSTRAP, CERTIFICATE, Directory, Owner, PRIVATE_KEY, ROOTS};
pub use secrets::{Material, SecretError};

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use mesh_model::resource::NamespacedName;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use xds_proto::{
    envoy::{
        config::core::v3::Node,
        extensions::transport_sockets::tls::v3::Secret,
        service::{
            discovery::v3::{DiscoveryRequest, DiscoveryResponse},
            secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    type_url,
};

use crate::identity::{OWN_CERTIFICATE, TRUST_BUNDLE};

/// After a lost connection to the agent.
const RETRY: Duration = Duration::from_secs(1);

/// Where to write, and what.
#[derive(Debug, Clone, Args)]
pub struct GrpcArgs {
    /// The agent's socket.
    #[arg(long, default_value = "/run/isthmus/agent.sock")]
    pub socket: PathBuf,
    /// Directory for bootstrap.json, cert.pem, key.pem and roots.pem; made if need be, and this command's own.
    #[arg(long)]
    pub dir: PathBuf,
    /// Name in the bootstrap's node id. A label: the agent knows itself whose network namespace this is.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = crate::config::namespaced)]
    pub workload: Option<NamespacedName>,
    /// Give the files to this user and group, the application's.
    #[arg(long, value_name = "UID:GID")]
    pub owner: Option<Owner>,
    /// Where the pod's gRPC clients find the control plane: a loopback address.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:15010", value_parser = loopback)]
    pub listen: SocketAddr,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| format!("{text:?} is not <ip>:<port>"))?;
    // Whoever reaches it is taken for this pod.
    if address.ip().is_loopback() { Ok(address) } else { Err(format!("{text:?} is no loopback address")) }
}

impl GrpcArgs {
    /// `grpc~<namespace>/<name>`: by the first part the control plane knows which kind of client this is.
    fn node_id(&self) -> String {
        let name = self.workload.as_ref().map_or_else(|| "self".to_owned(), ToString::to_string);
        format!("grpc~{name}")
    }
}

/// Serves and writes, for ever. The bootstrap appears last: once it is there, a client can start.
///
/// # Errors
/// The directory can't be written, or the port is taken.
pub async fn keep(args: GrpcArgs) -> anyhow::Result<()> {
    let directory = Directory::make(&args.dir, args.owner).with_context(|| args.dir.display().to_string())?;
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("--listen {}", args.listen))?;
    // The port may have been left to the kernel.
    let text = bootstrap(listener.local_addr()?, directory.path(), &args.node_id());
    tokio::select! {
        served = relay::serve(listener, args.socket.clone()) => Ok(served?),
        error = keep_files(&args, &directory, &text) => Err(error),
    }
}

async fn keep_files(args: &GrpcArgs, directory: &Directory, bootstrap: &str) -> anyhow::Error {
    let mut written: Option<Material> = None;
    loop {
        match follow(args, directory, bootstrap, &mut written).await {
            Ended::Here(error) => return error,
            Ended::Agent(status) => {
                tracing::warn!(
                    reason = status.message(),
                    "no secrets from the agent; trying again in {RETRY:?}"
                );
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Why a stream is over.
enum Ended {
    /// Try again.
    Agent(Status),
    /// The file system refuses.
    Here(anyhow::Error),
}

/// One stream of secrets, to its end.
async fn follow(
    args: &GrpcArgs,
    directory: &Directory,
    bootstrap: &str,
    written: &mut Option<Material>,
) -> Ended {
    let mut stream = match Secrets::open(args).await {
        Ok(stream) => stream,
        Err(status) => return Ended::Agent(status),
    };
    loop {
        let material = match stream.next().await {
            Ok(material) => material,
            Err(status) => return Ended::Agent(status),
        };
        if written.as_ref() == Some(&material) {
            continue;
        }
        if let Err(error) = directory.write(&material, bootstrap) {
            return Ended::Here(anyhow::Error::new(error).context(args.dir.display().to_string()));
        }
        tracing::info!(dir = %args.dir.display(), identity = %material.identity, "certificate and roots written");
        *written = Some(material);
    }
}

/// A stream of the agent's `SecretDiscoveryService`.
struct Secrets {
    request: DiscoveryRequest,
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Secrets {
    async fn open(args: &GrpcArgs) -> Result<Self, Status> {
        let channel = mesh_tls::grpc::connect_unix(&args.socket).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = DiscoveryRequest {
            node: Some(Node { id: args.node_id(), ..Default::default() }),
            resource_names: vec![OWN_CERTIFICATE.to_owned(), TRUST_BUNDLE.to_owned()],
            type_url: type_url::<Secret>(),
            ..Default::default()
        };
        let (requests, receiver) = mpsc::channel(4);
        requests.try_send(request.clone()).map_err(|_| Status::internal("a new buffer is full"))?;
        let mut client = SecretDiscoveryServiceClient::new(channel);
        let responses = client.stream_secrets(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { request, requests, responses })
    }

    /// The next certificate and roots: that of a pod that has just started takes a moment.
    async fn next(&mut self) -> Result<Material, Status> {
        let ended = || Status::unavailable("the agent ended the stream");
        loop {
            let response = self.responses.message().await?.ok_or_else(ended)?;
            self.request.version_info = response.version_info;
            self.request.response_nonce = response.nonce;
            self.requests.send(self.request.clone()).await.map_err(|_| ended())?;
            let material = Material::read(&response.resources)
                .map_err(|error| Status::internal(format!("unusable secrets: {error}")))?;
            if let Some(material) = material {
                return Ok(material);
            }
        }
    }
}
