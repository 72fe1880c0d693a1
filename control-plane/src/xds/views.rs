//! Who a client is and what it is to have: the question that the server asks of the rest of the control plane.

use std::{fmt, net::SocketAddr, sync::Arc};

use mesh_model::identity::SpiffeId;

use super::ResourceSet;

/// The other end of a connection, as its TLS handshake proved it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Absent on connections without a client certificate.
    pub spiffe_id: Option<SpiffeId>,
    /// The registration of the node that the certificate comes of.
    pub registration: Option<u64>,
    /// Absent on unix sockets.
    pub addr: Option<SocketAddr>,
}

/// Which program a workload's data plane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyKind {
    /// Ours.
    Proxy,
    /// Envoy.
    Envoy,
}

/// An authorized client. Equal clients have equal views.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// The agent of a node.
    Agent {
        /// Name of the node.
        node: String,
    },
    /// The sidecar of a workload.
    Proxy {
        /// `<namespace>/<name>`
        workload: String,
        /// Which program it is.
        kind: ProxyKind,
    },
    /// gRPC's own xDS client, in the process of a workload.
    Grpc {
        /// `<namespace>/<name>`
        workload: String,
    },
    /// An east-west gateway.
    Gateway {
        /// `<namespace>/<name>`
        workload: String,
    },
    /// A proxy of a node, for all pods there.
    NodeProxy {
        /// Name of the node.
        node: String,
        /// What services and policies call it.
        proxy: String,
    },
    /// Another cluster of the mesh.
    Peer {
        /// Its name.
        cluster: String,
    },
}

impl Client {
    /// `agent`, `proxy`, `envoy`, `grpc`, `gateway`, `node-proxy` or `peer`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "agent",
            Self::Proxy { kind: ProxyKind::Proxy, .. } => "proxy",
            Self::Proxy { kind: ProxyKind::Envoy, .. } => "envoy",
            Self::Grpc { .. } => "grpc",
            Self::Gateway { .. } => "gateway",
            Self::NodeProxy { .. } => "node-proxy",
            Self::Peer { .. } => "peer",
        }
    }
}

/// `<kind>~<name>`, as in node ids, but from what was authorized and not from what was claimed.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { node: name }
            | Self::Proxy { workload: name, .. }
            | Self::Grpc { workload: name }
            | Self::Gateway { workload: name }
            | Self::Peer { cluster: name } => write!(f, "{}~{name}", self.kind()),
            Self::NodeProxy { node, proxy } => write!(f, "{}~{node}/{proxy}", self.kind()),
        }
    }
}

/// What every client is to have, at the newest revision.
pub trait Views: Send + Sync + 'static {
    /// The current view of a client, made from a revision that is at least the last value of
    /// [`changed`](Self::changed). Called once per stream and revision, so equal views should be made once.
    /// A view that did not change keeps its `Arc` (and its older revision).
    fn resources(&self, client: &Client) -> Arc<ResourceSet>;

    /// The newest revision that [`resources`](Self::resources) answers from.
    fn changed(&self) -> tokio::sync::watch::Receiver<u64>;

    /// Whether [`resources`](Self::resources) has no more to do for a client than what is its own. What it shares with
    /// others, all of its kind or those in its scope, may take long to make, for the first of them.
    fn at_hand(&self, _: &Client) -> bool {
        true
    }

    /// Whether whoever a revision concerns, in what it has or in whether it may, is told so by
    /// [`Subscribers::concern`](super::Subscribers::concern). If not, every stream looks at every revision.
    fn tells(&self) -> bool {
        false
    }

    /// Decides who the other end is. `node_id` is a claim; `workload` (`<namespace>/<name>`) is what the agent
    /// that relays a stream says of its origin, to be believed only of workloads on that agent's node.
    /// The error is sent to the client. Asked again at every revision that concerns the client: a stream ends when it
    /// is refused or when its client has become another.
    fn authorize(
        &self,
        peer: &PeerIdentity,
        node_id: &str,
        workload: Option<&str>,
    ) -> Result<Client, tonic::Status>;
}
