//! Carries out what the store decides.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering};

use tokio::sync::{mpsc, watch};
use xds_client::{Names, SubscribeCommand, Update};

use crate::{
    config::Source,
    inbound::Listeners,
    shared::Shared,
    store::{Effect, Store},
};

/// How far the configuration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The control plane has told about listeners and clusters, and all of them could be set up.
    pub complete: bool,
    /// Updates that were taken.
    pub updates: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    store: Mutex<Store>,
    shared: Arc<Shared>,
    listeners: Arc<Listeners>,
    ads: mpsc::UnboundedSender<SubscribeCommand>,
    sds: mpsc::UnboundedSender<SubscribeCommand>,
    progress: watch::Sender<Progress>,
}

impl Engine {
    /// The senders lead to the two streams.
    pub fn new(
        shared: Arc<Shared>,
        listeners: Arc<Listeners>,
        ads: mpsc::UnboundedSender<SubscribeCommand>,
        sds: mpsc::UnboundedSender<SubscribeCommand>,
    ) -> Self {
        Self { store: Mutex::default(), shared, listeners, ads, sds, progress: watch::Sender::default() }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it has come, as it changes.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The configuration as plain data, without keys.
    pub fn dump(&self) -> serde_json::Value {
        self.store().dump()
    }

    /// Listeners that wait, with what they wait for.
    pub fn warming(&self) -> Vec<String> {
        self.store()
            .warming()
            .map(|(name, missing)| format!("listener {name:?} waits for {missing}"))
            .collect()
    }

    /// Takes an update.
    ///
    /// # Errors
    /// The words of the NACK. The former configuration goes on.
    pub fn handle(&self, source: Source, update: &Update) -> Result<(), String> {
        let mut store = self.store();
        let result = store.apply(source, update);
        let counter = if result.is_ok() { &self.shared.stats.updates } else { &self.shared.stats.refusals };
        counter.fetch_add(1, Ordering::Relaxed);
        let effects = result?;
        self.carry_out(effects);
        let complete = store.complete();
        drop(store);
        self.progress.send_modify(|progress| {
            progress.complete = complete;
            progress.updates += 1;
        });
        Ok(())
    }

    fn carry_out(&self, effects: Vec<Effect>) {
        let clusters = effects.iter().filter_map(|effect| match effect {
            Effect::SetCluster(cluster) => Some(cluster.clone()),
            _ => None,
        });
        // All at once, and first: nothing else can refer to a cluster that is not there.
        self.shared.set_clusters(clusters.collect());
        let mut removed = vec![];
        for effect in effects {
            match effect {
                Effect::SetCluster(_) => {}
                Effect::SetEndpoints(cluster, assignment) => self.shared.set_endpoints(&cluster, assignment),
                Effect::SetSecret(secret, material) => {
                    tracing::info!(secret = %secret.name, "secret is set");
                    self.shared.secrets.set(&secret, material);
                }
                Effect::SetRoutes(table) => self.listeners.set_routes(table),
                Effect::Serve(listener) => {
                    let name = listener.name.clone();
                    if let Err(error) = self.listeners.serve(listener) {
                        tracing::error!(listener = %name, %error, "listener cannot be served");
                    }
                }
                Effect::Withdraw(name) => self.listeners.withdraw(&name),
                Effect::RemoveRoutes(name) => self.listeners.remove_routes(&name),
                Effect::RemoveCluster(name) => removed.push(name),
                Effect::RemoveSecret(secret) => self.shared.secrets.remove(&secret),
                Effect::Subscribe { source, kind, names } => {
                    let command =
                        SubscribeCommand::Subscribe { type_url: kind.type_url(), names: Names::only(names) };
                    self.command(source, command);
                }
                Effect::Unsubscribe { source, kind, names } => {
                    let command = SubscribeCommand::Unsubscribe {
                        type_url: kind.type_url(),
                        names: Names::only(names),
                    };
                    self.command(source, command);
                }
            }
        }
        self.shared.remove_clusters(&removed);
    }

    fn command(&self, source: Source, command: SubscribeCommand) {
        let stream = match source {
            Source::Ads => &self.ads,
            Source::Sds => &self.sds,
        };
        // The stream's task is gone only when the process ends.
        let _ = stream.send(command);
    }
}
