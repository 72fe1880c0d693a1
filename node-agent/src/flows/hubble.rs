//! The flows of this node through Hubble's API: on a unix socket for root of the node, and over mTLS.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_hubble::{
    About, Labels, Live, LiveStream, Naming, Observer, Opened, Order, Source, names, translate,
};
use mesh_model::{
    identity::{Role, TrustDomain},
    resource::NamespacedName,
};
use mesh_tls::{
    ClientAuth, PeerPolicy, SharedBundles, SharedIdentity,
    grpc::{PeerInfo, incoming},
    server_config,
};
use tokio::net::TcpListener;
use tonic::{Extensions, Status, transport::Server};
use xds_proto::hubble::{
    flow::LostEventSource,
    observer::{Node, Tls, observer_server::ObserverServer},
    relay::NodeState,
};

use super::{Entry, KEPT, Namer, Names, Peers, Ring};
use crate::identity::{CallerInfo, Callers};

/// Entries that a follower takes at once.
const STEP: usize = 256;
/// Bytes of one request: filters and times.
const MAX_REQUEST: usize = 256 * 1_024;

/// The flows of this node.
#[derive(Clone)]
pub struct NodeFlows {
    /// Of the node.
    pub node: String,
    #[allow(missing_docs)]
    pub cluster: String,
    #[allow(missing_docs)]
    pub mesh_domain: String,
    #[allow(missing_docs)]
    pub trust_domain: TrustDomain,
    /// Where it is served, as GetNodes tells.
    pub address: String,
    /// Whether that is over TLS.
    pub tls: bool,
    #[allow(missing_docs)]
    pub ring: Ring,
    #[allow(missing_docs)]
    pub namer: Namer,
    #[allow(missing_docs)]
    pub callers: Callers,
    /// With whose certificates are refused.
    pub bundles: SharedBundles,
    /// When the agent started.
    pub started: Instant,
}

/// What this node's flows do not say of themselves.
struct Here<'a>(&'a NodeFlows);

impl Naming for Here<'_> {
    fn cluster(&self) -> &str {
        &self.0.cluster
    }

    // Agents are not told the labels of workloads; a control plane knows them.
    fn labels(&self, _: &NamespacedName, _: u32) -> Labels {
        Labels::new()
    }
}

impl NodeFlows {
    /// As a service, with its limits.
    pub fn service(self) -> ObserverServer<Observer<Self>> {
        ObserverServer::new(Observer::new(self)).max_decoding_message_size(MAX_REQUEST)
    }

    fn show(&self, names: &Names, entry: Entry) -> Live {
        match entry {
            Entry::Flow(record) => {
                Live::Flow(Box::new(translate(&self.namer.name(names, &record), &Here(self))))
            }
            Entry::Told(flow) => Live::Flow(Box::new(translate(&flow, &Here(self)))),
            Entry::Lost(count) => Live::Lost(LostEventSource::PerfEventRingBuffer, count),
        }
    }

    /// Everything from a number on, for ever: until the caller may not read any more.
    fn follow(self, caller: Extensions, next: u64) -> LiveStream {
        let changed = self.ring.next();
        let state = (self, caller, changed, next, VecDeque::new());
        Box::pin(futures::stream::unfold(
            state,
            |(flows, caller, mut changed, mut next, mut waiting)| async move {
                loop {
                    if let Some(item) = waiting.pop_front() {
                        let item = flows.admit(&caller).map(|()| item);
                        return Some((item, (flows, caller, changed, next, waiting)));
                    }
                    changed.borrow_and_update();
                    let (entries, lost, after) = flows.ring.from(next, STEP);
                    next = after;
                    if lost > 0 {
                        waiting.push_back(Live::Lost(LostEventSource::HubbleRingBuffer, lost));
                    }
                    let names = flows.namer.names();
                    waiting.extend(entries.into_iter().map(|entry| flows.show(&names, entry)));
                    if waiting.is_empty() && changed.changed().await.is_err() {
                        return None;
                    }
                }
            },
        ))
    }
}

#[tonic::async_trait]
impl Source for NodeFlows {
    async fn open(&self, caller: Extensions, order: Order, follow: bool) -> Result<Opened, Status> {
        let (mut entries, next) = self.ring.all();
        if order == Order::Newest {
            entries.reverse();
        }
        let (flows, names) = (self.clone(), self.namer.names());
        let past = entries.into_iter().map(move |entry| flows.show(&names, entry));
        let live = follow.then(|| self.clone().follow(caller, next));
        Ok(Opened { past: Box::new(past), live })
    }

    async fn about(&self) -> Result<About, Status> {
        let level = self.ring.level();
        let uptime = self.started.elapsed();
        let name = format!("{}/{}", self.cluster, self.node);
        let server_name = names::of_node(&self.node, &self.cluster, &self.mesh_domain).filter(|_| self.tls);
        let node = Node {
            name: name.clone(),
            version: format!("isthmus v{}", env!("CARGO_PKG_VERSION")),
            address: self.address.clone(),
            state: NodeState::NodeConnected.into(),
            tls: Some(Tls { enabled: self.tls, server_name: server_name.unwrap_or_default() }),
            uptime_ns: u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX),
            num_flows: level.kept,
            max_flows: KEPT as u64,
            seen_flows: level.seen,
        };
        let names = self.namer.names();
        let mut namespaces = BTreeSet::new();
        for entry in self.ring.all().0 {
            if let Entry::Flow(record) = entry {
                for namespace in names.namespaces(&record.event) {
                    if !namespaces.contains(namespace) {
                        namespaces.insert(namespace.to_owned());
                    }
                }
            }
        }
        Ok(About {
            cluster: self.cluster.clone(),
            name,
            kept: level.kept,
            capacity: KEPT as u64,
            seen: level.seen,
            uptime,
            rate: level.rate,
            nodes: vec![node],
            namespaces: namespaces.into_iter().collect(),
            unavailable: Vec::new(),
        })
    }

    fn admit(&self, extensions: &Extensions) -> Result<(), Status> {
        if let Some(caller) = extensions.get::<CallerInfo>() {
            return self.callers.check_operator(caller.clone());
        }
        let peer = extensions.get::<PeerInfo>();
        let number = peer.and_then(|peer| peer.registration);
        let withdrawn =
            number.is_some_and(|number| self.bundles.load().is_revoked(&self.trust_domain, number));
        match peer.and_then(|peer| peer.spiffe_id.as_ref()) {
            Some(id) if id.trust_domain() != &self.trust_domain => {
                Err(Status::permission_denied(format!("{id} is not of {}", self.trust_domain)))
            }
            Some(id) if withdrawn => {
                Err(Status::permission_denied(format!("the certificate of {id} was withdrawn")))
            }
            Some(id) if matches!(id.role(), Role::Replica(_) | Role::Admin(_)) => Ok(()),
            Some(id) => Err(Status::permission_denied(format!("{id} may not read the flows of a node"))),
            None => Err(Status::unauthenticated("a certificate of the mesh is needed")),
        }
    }
}

/// Serves flows, and where those of other nodes are, over mTLS, until the listener fails.
///
/// # Errors
/// TLS can't be set up.
pub async fn serve_tls(
    listener: TcpListener,
    identity: SharedIdentity,
    bundles: SharedBundles,
    flows: NodeFlows,
    peers: Peers,
) -> anyhow::Result<()> {
    let client = ClientAuth::Required(PeerPolicy::TrustDomain(flows.trust_domain.clone()));
    let tls = server_config(identity, bundles, client, &[b"h2"])?;
    let served = Server::builder()
        .concurrency_limit_per_connection(32)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(flows.service())
        .add_service(peers.service())
        .serve_with_incoming(incoming(listener, Arc::clone(&tls)))
        .await;
    served.map_err(Into::into)
}

#[cfg(test)]
#[path = "hubble_tests.rs"]
mod tests;
#[cfg(test)]
#[path = "hubble_tls_tests.rs"]
mod tls_tests;
