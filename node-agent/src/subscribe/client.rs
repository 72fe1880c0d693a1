//! The agent's stream: from any replica into the engine.

use tokio::sync::mpsc;
use xds_client::{Config, Names, Subscription, Update};
use xds_proto::{isthmus::agent::v1::TrustBundle, type_url};

use super::{Cache, Progress, TYPES};
use crate::{bootstrap::Upstream, engine::Engine};

/// The agent's stream, and whom it tells what.
#[allow(missing_docs)]
pub struct Subscriber {
    pub node: String,
    pub cluster: String,
    pub upstream: Upstream,
    pub engine: Engine,
    pub cache: Cache,
    /// What [`Cache::adopt`] returned.
    pub held: Vec<(String, String, String)>,
    /// Told how it goes.
    pub progress: Progress,
}

/// Subscribes for ever: what the engine takes is remembered, what it refuses is answered with its words.
/// `bundles` is called after each change of trust. Stop it by dropping the future.
pub async fn subscribe_for_ever(subscriber: Subscriber, mut bundles: impl FnMut()) {
    let Subscriber { node, cluster, upstream, engine, cache, held, progress } = subscriber;
    let id = xds_client::node(format!("agent~{node}"), cluster);
    let subscriptions =
        TYPES.iter().map(|type_url| Subscription { type_url: type_url.clone(), names: Names::Wildcard });
    let mut config = Config::new(id, subscriptions.collect());
    config.held = held;
    config.status = Some(progress.status().clone());
    config.heartbeats = Some(progress.heartbeat().clone());
    let handler = |update: Update| {
        let result = engine.apply(&update);
        progress.answered(&update.type_url, result.is_ok());
        if let Err(reason) = &result {
            tracing::error!(reason, type_url = update.type_url, "refused an update of the control plane");
            return result;
        }
        cache.remember(&update);
        if update.type_url == type_url::<TrustBundle>() {
            bundles();
        }
        if let Ok(number) = update.system_version.parse() {
            progress.revision().send_replace(number);
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
