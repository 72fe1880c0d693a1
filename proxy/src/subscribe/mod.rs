//! The shell around the store: two xDS streams to the agent in, effects out to clusters, secrets and listeners.

mod engine;

use std::path::PathBuf;

pub use engine::{Engine, Progress};
use tokio::sync::{mpsc, watch};
use xds_client::{Config, Status, SubscribeCommand, Subscription, Transport};

use crate::{config::Source, store::Kind};

/// Commands that wait for the stream to read them. With more, the forwarder waits: updates never do.
const COMMANDS: usize = 64;

/// Who this proxy says it is, and to whom.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The agent's socket.
    pub socket: PathBuf,
    /// `node.id`
    pub node_id: String,
    /// `node.cluster`
    pub cluster: String,
}

/// Subscribes for ever. `commands` are what the engine asks for on this stream.
pub async fn run(
    peer: Peer,
    source: Source,
    engine: std::sync::Arc<Engine>,
    mut commands: mpsc::UnboundedReceiver<SubscribeCommand>,
    status: watch::Sender<Status>,
) {
    let (transport, subscriptions) = match source {
        Source::Ads => {
            let all = [Kind::Cluster, Kind::Listener];
            (Transport::Ads, all.map(|kind| Subscription::wildcard(kind.type_url())).to_vec())
        }
        Source::Sds => (Transport::Sds, vec![]),
    };
    let mut config = Config::new(xds_client::node(peer.node_id, peer.cluster), subscriptions);
    config.transport = transport;
    config.status = Some(status);
    // The agent answers on its socket by itself; whether a replica still serves is proven end to end.
    config.heartbeats = (source == Source::Ads).then(|| watch::Sender::new(Default::default()));
    // The engine speaks from within the stream's own task, where it must not wait for that task to listen.
    let (sender, receiver) = mpsc::channel(COMMANDS);
    let forwarding = async move {
        while let Some(command) = commands.recv().await {
            if sender.send(command).await.is_err() {
                return;
            }
        }
    };
    let connect = || mesh_tls::grpc::connect_unix(peer.socket.clone());
    let handler = |update| engine.handle(source, &update);
    tokio::join!(xds_client::run(config, connect, handler, receiver), forwarding);
}
