//! Hubble's Peer service: where the flows of every node of the cluster are read, so that `hubble-relay` finds them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_hubble::{Source, names};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status};
use xds_proto::hubble::peer::{
    ChangeNotification, ChangeNotificationType, NotifyRequest, Tls,
    peer_server::{Peer, PeerServer},
};

use super::NodeFlows;
use crate::engine::Engine;

/// Bytes of one request, which has no field.
const MAX_REQUEST: usize = 1_024;
/// Whoever is told of nodes at once.
const MAX_WATCHERS: usize = 32;
/// Notifications that wait for a slow reader.
const BACKLOG: usize = 64;

/// Nodes of the cluster as peers. Each is taken to serve its flows at the port at which this node serves its own.
#[derive(Clone)]
pub struct Peers {
    flows: NodeFlows,
    engine: Engine,
    mesh_domain: String,
    /// None: this node does not serve them over TLS, so nothing is known of the others.
    port: Option<u16>,
    watchers: Arc<Semaphore>,
}

impl Peers {
    /// Of the cluster of `flows`; they decide who may ask, too.
    pub fn new(flows: NodeFlows, engine: Engine, port: Option<u16>) -> Self {
        let mesh_domain = flows.mesh_domain.clone();
        Self { flows, engine, mesh_domain, port, watchers: Arc::new(Semaphore::new(MAX_WATCHERS)) }
    }

    /// As a service, with its limits.
    pub fn service(self) -> PeerServer<Self> {
        PeerServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }

    /// `<cluster>/<node>` to where it is, with the name in its certificate.
    fn now(&self, port: u16) -> BTreeMap<String, (SocketAddr, String)> {
        let NodeFlows { cluster, .. } = &self.flows;
        let nodes = self.engine.resources(|resources| {
            let nodes = resources.nodes.iter();
            nodes.map(|(name, node)| (name.clone(), IpAddr::V4(node.address))).collect::<Vec<_>>()
        });
        let peers = nodes.into_iter().filter_map(|(node, address)| {
            let server_name = names::of_node(&node, cluster, &self.mesh_domain)?;
            Some((format!("{cluster}/{node}"), (SocketAddr::new(address, port), server_name)))
        });
        peers.collect()
    }

    async fn watch(
        self,
        port: u16,
        caller: Extensions,
        answers: mpsc::Sender<Result<ChangeNotification, Status>>,
        _watcher: OwnedSemaphorePermit,
    ) {
        let mut changes = self.engine.changes();
        let mut told = BTreeMap::new();
        loop {
            changes.borrow_and_update();
            if let Err(status) = self.flows.admit(&caller) {
                // An error means that the client has gone.
                let _ = answers.send(Err(status)).await;
                return;
            }
            let now = self.now(port);
            for change in changed(&told, &now) {
                if answers.send(Ok(change)).await.is_err() {
                    return;
                }
            }
            told = now;
            let changed = tokio::select! {
                changed = changes.changed() => changed,
                () = answers.closed() => return,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// What to tell whoever was told of `before`. PURE.
fn changed(
    before: &BTreeMap<String, (SocketAddr, String)>,
    now: &BTreeMap<String, (SocketAddr, String)>,
) -> Vec<ChangeNotification> {
    let told = |(name, (address, server_name)): (&String, &(SocketAddr, String)), kind| ChangeNotification {
        name: name.clone(),
        address: address.to_string(),
        r#type: ChangeNotificationType::into(kind),
        tls: Some(Tls { server_name: server_name.clone() }),
    };
    let gone = before.iter().filter(|(name, _)| !now.contains_key(*name));
    let gone = gone.map(|peer| told(peer, ChangeNotificationType::PeerDeleted));
    let new = now.iter().filter_map(|peer| match before.get(peer.0) {
        None => Some(told(peer, ChangeNotificationType::PeerAdded)),
        Some(same) if same == peer.1 => None,
        Some(_) => Some(told(peer, ChangeNotificationType::PeerUpdated)),
    });
    gone.chain(new).collect()
}

#[tonic::async_trait]
impl Peer for Peers {
    type NotifyStream = ReceiverStream<Result<ChangeNotification, Status>>;

    async fn notify(&self, request: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        self.flows.admit(request.extensions())?;
        let port = self.port.ok_or_else(|| {
            Status::failed_precondition(
                "flows are served on this node's socket only: start its agent with --hubble",
            )
        })?;
        let watcher = self.watchers.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{MAX_WATCHERS} are told of nodes at once; try again later"))
        })?;
        let (answers, stream) = mpsc::channel(BACKLOG);
        tokio::spawn(self.clone().watch(port, request.into_parts().1, answers, watcher));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_knows_the_nodes_is_told_what_changed() {
        let peer = |last: u8| (SocketAddr::from(([192, 0, 2, last], 4_244)), format!("n{last}"));
        let map = |peers: &[(&str, u8)]| {
            peers.iter().map(|(name, last)| ((*name).to_owned(), peer(*last))).collect::<BTreeMap<_, _>>()
        };
        let told = |before, now| {
            let changes = changed(&map(before), &map(now)).into_iter();
            changes.map(|change| (change.r#type, change.name, change.address)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[("a", 1)], &[("a", 1)]), []);
        assert_eq!(
            told(&[("a", 1), ("b", 2)], &[("b", 3), ("c", 4)]),
            [
                (2, "a".to_owned(), "192.0.2.1:4244".to_owned()),
                (3, "b".to_owned(), "192.0.2.3:4244".to_owned()),
                (1, "c".to_owned(), "192.0.2.4:4244".to_owned()),
            ]
        );
    }
}
