//! The parts put together.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use xds_client::Status;

use crate::{
    admin::{self, Admin},
    config::Source,
    inbound::{Bound, Listeners},
    overload::Ceilings,
    shared::{Home, Shared},
    subscribe::{self, Engine, Peer},
};

/// How often idle upstream connections are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// When a connected control plane has told nothing for so long, the proxy is ready with what it has (Envoy's default of
/// `initial_fetch_timeout`).
const FIRST_CONFIG: Duration = Duration::from_secs(15);

/// What a proxy is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The agent's socket.
    pub agent_socket: PathBuf,
    /// `node.id` of xDS.
    pub node_id: String,
    /// `node.cluster` of xDS.
    pub cluster: String,
    /// Where to serve `/ready` and so on, on a loopback address.
    pub admin: Option<SocketAddr>,
    /// Created when the proxy is ready.
    pub ready_file: Option<PathBuf>,
    /// Whether each request is logged at level info.
    pub access_log: bool,
}

/// A proxy cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The admin endpoint.
    #[error("cannot serve the admin endpoint on {address}, choose another with --admin")]
    Admin {
        /// As given.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A proxy that runs. Dropping it ends all of its tasks at once; [`Proxy::drain`] does it gently.
#[derive(Debug)]
pub struct Proxy {
    listeners: Arc<Listeners>,
    engine: Arc<Engine>,
    shared: Arc<Shared>,
    ready: watch::Receiver<bool>,
    admin: Option<SocketAddr>,
    tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy. It is ready when the control plane's configuration is in place.
    ///
    /// # Errors
    /// See [`StartError`]. An agent that is not there (yet) is none: it is waited for.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        Self::start_within(options, Ceilings::default(), Home::default()).await
    }

    /// The same with ceilings on what it may use, and a place of its own.
    ///
    /// # Errors
    /// As of [`Proxy::start`].
    pub async fn start_within(options: Options, ceilings: Ceilings, home: Home) -> Result<Self, StartError> {
        let shared = Shared::new(options.access_log, ceilings, home);
        let listeners = Arc::new(Listeners::new(shared.clone()));
        let (ads, ads_commands) = mpsc::unbounded_channel();
        let (sds, sds_commands) = mpsc::unbounded_channel();
        let engine = Arc::new(Engine::new(shared.clone(), listeners.clone(), ads, sds));
        let (ready_sender, ready) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut bound = None;
        if let Some(address) = options.admin {
            let failed = |source| StartError::Admin { address, source };
            let listener = admin::bind(address).await.map_err(failed)?;
            bound = Some(listener.local_addr().map_err(failed)?);
            let admin = Admin { engine: engine.clone(), shared: shared.clone(), ready: ready.clone() };
            tasks.spawn(admin::serve(listener, admin));
        }
        let peer = Peer { socket: options.agent_socket, node_id: options.node_id, cluster: options.cluster };
        let (ads_status, connected) = watch::channel(Status::Connecting);
        let (sds_status, _) = watch::channel(Status::Connecting);
        tasks.spawn(subscribe::run(peer.clone(), Source::Ads, engine.clone(), ads_commands, ads_status));
        tasks.spawn(subscribe::run(peer, Source::Sds, engine.clone(), sds_commands, sds_status));
        tasks.spawn(watch_readiness(
            engine.clone(),
            listeners.clone(),
            connected,
            ready_sender,
            options.ready_file,
        ));
        let watched = shared.clone();
        tasks.spawn(async move { watched.overload.watch().await });
        let swept = shared.clone();
        tasks.spawn(async move {
            let mut interval = tokio::time::interval(SWEEP);
            loop {
                interval.tick().await;
                swept.sweep();
            }
        });
        Ok(Self { listeners, engine, shared, ready, admin: bound, tasks })
    }

    /// Waits until the configuration is in place and every listener is bound.
    pub async fn ready(&self) {
        // The sender lives as long as the task, which lives as long as this.
        let _ = self.ready.clone().wait_for(|ready| *ready).await;
    }

    /// Where the admin endpoint listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Where the first address of a listener is bound; waits until it is.
    pub async fn listener(&self, name: &str) -> Option<SocketAddr> {
        let mut bound = self.listeners.bound();
        let first = |all: &Bound| all.get(name).and_then(|addresses| addresses.get(&0)).copied();
        let all = bound.wait_for(|all| first(all).is_some()).await.ok()?;
        first(&all)
    }

    /// Listeners that are bound, as they change.
    pub fn listeners(&self) -> watch::Receiver<Bound> {
        self.listeners.bound()
    }

    /// The configuration that is in place.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Clusters and counters.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops accepting, lets requests finish for as long as `limit`, and ends.
    pub async fn drain(mut self, limit: Duration) {
        // The configuration is frozen first: no update may open a listener again.
        self.tasks.shutdown().await;
        self.listeners.drain(limit).await;
    }
}

async fn watch_readiness(
    engine: Arc<Engine>,
    listeners: Arc<Listeners>,
    mut connected: watch::Receiver<Status>,
    ready: watch::Sender<bool>,
    ready_file: Option<PathBuf>,
) {
    let mut progress = engine.progress();
    let mut bound = listeners.bound();
    let patience = async {
        let _ = connected.wait_for(|status| *status == Status::Connected).await;
        tokio::time::sleep(FIRST_CONFIG).await;
    };
    tokio::pin!(patience);
    loop {
        if progress.borrow_and_update().complete && listeners.all_bound() {
            break;
        }
        bound.mark_unchanged();
        tokio::select! {
            Ok(()) = progress.changed() => {}
            Ok(()) = bound.changed() => {}
            () = patience.as_mut() => {
                tracing::warn!(waiting = ?engine.warming(), "ready without a complete configuration");
                break;
            }
        }
    }
    ready.send_replace(true);
    tracing::info!("ready");
    if let Some(path) = ready_file
        && let Err(error) = tokio::fs::write(&path, b"ready\n").await
    {
        tracing::error!(path = %path.display(), %error, "cannot write the ready file");
    }
    // Readiness is kept: what comes later is a change, not a start.
    std::future::pending::<()>().await;
}
