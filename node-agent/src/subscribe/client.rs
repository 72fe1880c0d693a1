//! The agent's stream: from any replica into the engine.

use tokio::sync::{mpsc, watch};
use xds_client::{Config, Names, Status, Subscription, Update};
use xds_proto::{isthmus::agent::v1::TrustBundle, type_url};

use super::{Cache, TYPES};
use crate::{bootstrap::Upstream, engine::Engine};

/// The agent's stream, and whom it tells what.
#[allow(missing_docs)]
pub struct Subscriber {
    pub node: String,
    pub cluster: String,
    pub upstream: Upstream,
    pub engine: Engine,
    pub cache: Cache,
    /// Told of every change of the connection.
    pub status: watch::Sender<Status>,
    /// Told what was last enforced.
    pub revision: watch::Sender<u64>,
}

/// Subscribes for ever: what the engine takes is remembered, what it refuses is answered with its words.
/// `bundles` is called after each change of trust. Stop it by dropping the future.
pub async fn subscribe_for_ever(subscriber: Subscriber, mut bundles: impl FnMut()) {
    let Subscriber { node, cluster, upstream, engine, cache, status, revision } = subscriber;
    let id = xds_client::node(format!("agent~{node}"), cluster);
    let subscriptions =
        TYPES.iter().map(|type_url| Subscription { type_url: type_url.clone(), names: Names::Wildcard });
    let mut config = Config::new(id, subscriptions.collect());
    config.held = cache.held();
    config.status = Some(status);
    config.heartbeats = Some(watch::Sender::new(Default::default()));
    let handler = |update: Update| {
        let result = engine.apply(&update);
        if let Err(reason) = &result {
            tracing::error!(reason, type_url = update.type_url, "refused an update of the control plane");
            return result;
        }
        cache.remember(&update);
        if update.type_url == type_url::<TrustBundle>() {
            bundles();
        }
        if let Ok(number) = update.system_version.parse() {
            revision.send_replace(number);
        }
        tracing::debug!(
            type_url = update.type_url,
            added = update.added.len(),
            removed = update.removed.len(),
            "update"
        );
        Ok(())
    };
    let mut first = true;
    let connect = || {
        // A stream that ended says that its replica is no good at the moment.
        if !std::mem::replace(&mut first, false) {
            upstream.move_on();
        }
        let upstream = upstream.clone();
        async move { upstream.connect().await }
    };
    // Nobody changes the subscriptions: the sender is dropped at once.
    let (_, commands) = mpsc::channel(1);
    xds_client::run(config, connect, handler, commands).await;
}
