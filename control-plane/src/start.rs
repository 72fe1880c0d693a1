//! Builds one replica from its configuration, runs it, and takes it down.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use clustermesh::token_source::join_token;
use mesh_model::records::{ClusterInfo, ReplicaRecord};
use mesh_store::Command;
use mesh_tls::{SharedBundles, shared_bundles};
use tokio::{net::TcpListener, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    app::{App, trust_bundles},
    ca::{Ca, files, keeper, newcomer},
    config::Config,
    doors::{self, gate::Gate, limits::Limits},
    federation,
    federation::liveness::Liveness,
    group::{self, Group},
    notify::Notifier,
    overflow, quarantine,
    raft::{Dialer, OpenError, RaftConfig, Replica, Timings},
    replicas::Replicas,
    sources,
    telemetry::{self, flows::FlowRing},
    views::ModelViews,
    xds::{Subscribers, XdsServer, server},
};

/// Between attempts at what needs a majority.
const RETRY: Duration = Duration::from_millis(500);

/// A replica that runs.
#[derive(Debug)]
pub struct Running {
    /// What its services share.
    pub app: Arc<App>,
    /// Where the mesh door is.
    pub door: SocketAddr,
    /// Where the metrics are.
    pub metrics: Option<SocketAddr>,
    xds: XdsServer<ModelViews>,
    stop: CancellationToken,
    /// The doors: they end when their streams have.
    doors: JoinSet<anyhow::Result<()>>,
    /// Everything that runs until it is stopped.
    tasks: JoinSet<()>,
}

/// Builds and starts a replica. It serves when this returns; it is [`Running::ready`] a little later.
///
/// # Errors
/// One sentence about what is missing or taken.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    start_telling(config, &Notifier::default()).await
}

/// The same; a replica that can't serve yet, and may not for long, tells the service manager so.
///
/// # Errors
/// Those of [`start`].
pub async fn start_telling(mut config: Config, notifier: &Notifier) -> anyhow::Result<Running> {
    mesh_tls::install_provider();
    // Keys, the log and its snapshots are this replica's own business.
    files::private_folder(&config.data_dir)
        .with_context(|| format!("--data-dir {}", config.data_dir.display()))?;
    let keys = config.data_dir.join("keys");
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
    let door = listener.local_addr()?;
    // The port may have been left to the kernel.
    config.advertise.get_or_insert_with(|| door.to_string());
    let metrics = match config.metrics {
        Some(at) => Some(TcpListener::bind(at).await.with_context(|| format!("--metrics {at}"))?),
        None => None,
    };
    let metrics_at = metrics.as_ref().map(TcpListener::local_addr).transpose()?;
    let mut socket = doors::local::bind(&config.admin_socket)?;
    let mut ca = authority(&config, &keys).await?;
    let (bundles, replicas, replica) = loop {
        // Before raft dials anybody: a connection made without a certificate stays one, and raft is not open to it.
        if let Err(error) = ca.renew_own(SystemTime::now()) {
            // The issuer has ended. With the state that is about to be opened there may be a new one.
            tracing::warn!(%error, "this replica has no certificate yet");
        }
        match open(&config, &keys, &ca).await {
            Ok(opened) => break opened,
            Err(Unopened::Damaged(damage)) => {
                drop(socket);
                let ports = [Some(&listener), metrics.as_ref()];
                ca = quarantine::leave(&config, ca, damage, notifier, ports.into_iter().flatten()).await?;
                socket = doors::local::bind(&config.admin_socket)?;
            }
            Err(Unopened::Other(error)) => return Err(error),
        }
    };
    let id = ca.replica().id;
    let trust_domain = ca.replica().trust_domain.clone();
    // Nobody is answered before this; the keeper goes on with it.
    ca.refresh(&replica.applied(), SystemTime::now(), 0.0)?;
    let views = Arc::new(ModelViews::new(trust_domain, config.gateways.clone(), &replica.applied()));
    let mut limits = Limits::default();
    config.limits.iter().for_each(|setting| limits.set(setting));
    let gate = Arc::new(Gate::new(limits));
    let subscribers = Arc::new(Subscribers::within(gate.clone()).with_commits(replica.commits()));
    views.tell(subscribers.clone());
    bundles.store(Arc::new(trust_bundles(&ca, &replica.applied())));
    let stop = CancellationToken::new();
    let app = Arc::new(App {
        config,
        ca,
        bundles,
        replica: replica.clone(),
        subscribers: subscribers.clone(),
        views: views.clone(),
        flows: FlowRing::default(),
        replicas,
        liveness: Liveness::default(),
        gate,
        stop: stop.clone(),
    });
    let xds = XdsServer::new(views, subscribers, server::Options::new(format!("replica-{id}")));
    let admitting = app.clone();
    let raft = replica.service(Arc::new(move |extensions| admitting.admit_raft(extensions).map(Some)));
    let mut doors = JoinSet::new();
    let (mesh_app, mesh_xds, stopping) = (app.clone(), xds.clone(), stop.clone());
    doors.spawn(async move {
        doors::mesh::serve(mesh_app, listener, raft, &mesh_xds, stopping.cancelled_owned()).await
    });
    doors.spawn(doors::local::serve(app.clone(), socket, stop.clone().cancelled_owned()));
    let mut tasks = JoinSet::new();
    if let Some(listener) = metrics {
        let metrics = Box::new(telemetry::collect::Metrics(app.clone()));
        tasks.spawn(mesh_telemetry::serve(listener, metrics, app.stop.clone()));
    }
    tasks.spawn(follow_state(app.clone()));
    tasks.spawn(keeper::run(app.clone()));
    tasks.spawn(overflow::run(app.clone()));
    tasks.spawn(quarantine::keep_contacts(app.clone()));
    tasks.spawn(federation::subscribe::run(app.clone()));
    if app.config.kubernetes {
        tasks.spawn(sources::kubernetes::run(app.clone()));
    }
    let running = Running { app, door, metrics: metrics_at, xds, stop, doors, tasks };
    running.found().await?;
    Ok(running)
}

/// Why there is no replica.
enum Unopened {
    /// Its store can't be believed: there is a way back.
    Damaged(String),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Unopened {
    fn from(error: anyhow::Error) -> Self {
        Unopened::Other(error)
    }
}

/// Opens this replica's store, with what it needs to reach the others.
async fn open(
    config: &Config,
    keys: &Path,
    ca: &Ca,
) -> Result<(SharedBundles, Replicas, Arc<Replica>), Unopened> {
    let bundles = shared_bundles(trust_bundles(ca, &mesh_store::State::default()));
    let replicas = Replicas::new(ca.own().clone(), bundles.clone(), ca.replica().trust_domain.clone());
    let replica = open_replica(config, keys, ca, replicas.dialer()).await?;
    Ok((bundles, replicas, Arc::new(replica)))
}

/// This replica's authority: as it was left, newly made, or given by the cluster that it joins.
async fn authority(config: &Config, keys: &Path) -> anyhow::Result<Ca> {
    let now = SystemTime::now();
    if let Some(ca) = Ca::open(keys)? {
        if config.name.as_ref().is_some_and(|name| name != &ca.replica().cluster) {
            bail!(
                "--name {} is not the cluster {} that {} belongs to",
                config.name.clone().unwrap_or_default(),
                ca.replica().cluster,
                config.data_dir.display()
            );
        }
        return Ok(ca);
    }
    let token = join_token(config.join.as_deref(), config.join_file.as_deref())?;
    match (&token, &config.name, &config.trust_domain) {
        (Some(token), _, _) => newcomer::join(keys, token, &config.advertised(), now).await?,
        (None, Some(name), Some(trust_domain)) => {
            // Before the keys: without it they would look like those of a replica whose log is gone.
            Group::new().keep(keys)?;
            Ca::create(keys, name, trust_domain, now)?;
        }
        (None, _, _) => bail!(
            "{} is empty: give --name and --trust-domain to make a cluster, or --join-file to enter one",
            config.data_dir.display()
        ),
    }
    Ca::open(keys)?.context("the keys that were just made can't be found")
}

/// The replica in its folder, unless the folder is not what its keys belong to.
async fn open_replica(config: &Config, keys: &Path, ca: &Ca, dialer: Dialer) -> Result<Replica, Unopened> {
    let group = Group::open(keys)?;
    let own = ca.replica();
    let mut raft_config = RaftConfig::new(own.id, config.advertised(), config.data_dir.join("raft"));
    raft_config.timings = Timings::paced_by(config.heartbeat);
    raft_config.group = group.as_ref().map(|group| group.id.clone()).unwrap_or_default();
    let folder = raft_config.dir.clone();
    let replica = Replica::open(raft_config, dialer).await.map_err(|error| match error {
        OpenError::Disk(error) if error.is_damage() => Unopened::Damaged(error.to_string()),
        error => Unopened::Other(error.into()),
    })?;
    let which = format!("replica {} of {}", own.id, own.cluster);
    match group::check(group.clone(), replica.is_member().await, &which, &folder) {
        Ok(now) if group.as_ref() == Some(&now) => Ok(replica),
        Ok(now) => Ok(now.keep(keys).map(|()| replica)?),
        Err(refusal) => {
            replica.shutdown().await;
            // Without anybody to come back from, it is for a person to read.
            Err(match quarantine::has_contacts(&config.data_dir, own.id) {
                true => Unopened::Damaged(refusal),
                false => Unopened::Other(anyhow::anyhow!(refusal)),
            })
        }
    }
}

/// This replica was removed from the cluster, and starting it again changes nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Removed(pub String);

impl Running {
    /// On the replica that makes a cluster: the group of one, and the first two commands. Repeating it is
    /// harmless, so that a crash in between is.
    async fn found(&self) -> anyhow::Result<()> {
        let app = &self.app;
        if !app.ca.is_founder() || app.replica.applied().cluster.is_some() {
            return Ok(());
        }
        app.replica.initialize().await?;
        let config = &app.config;
        let info = ClusterInfo {
            name: app.ca.replica().cluster.clone(),
            trust_domain: app.trust_domain().clone(),
            mesh_domain: config.mesh_domain.clone(),
            pod_cidr: config.pod_cidr.trunc(),
            pod_cidr6: config.pod_cidr6.map(|cidr| cidr.trunc()),
            service_cidr: config.service_cidr.trunc(),
            service_cidr6: config.service_cidr6.map(|cidr| cidr.trunc()),
            roots: app.ca.roots().iter().map(|root| root.to_vec()).collect(),
            trust: Default::default(),
        };
        app.replica.write(Command::Init(info)).await?;
        Ok(())
    }

    /// Resolves when this replica has a state to serve and is listed under its address.
    pub async fn ready(&self) {
        let app = &self.app;
        let record = ReplicaRecord {
            id: app.ca.replica().id,
            address: app.config.advertised(),
            // Of a replica that is known, its address is all that this changes.
            learner: false,
        };
        loop {
            let state = app.replica.applied();
            if state.cluster.is_some() {
                if state.replicas.get(&record.id).is_some_and(|known| known.address == record.address) {
                    self.remember_membership();
                    return;
                }
                // A replica that moved, or the first one.
                if let Err(error) = app.replica.write(Command::PutReplica(record.clone())).await {
                    tracing::warn!(%error, "this replica's address is not recorded yet");
                }
            }
            sleep(RETRY).await;
        }
    }

    /// From now on an empty log means that it is gone.
    fn remember_membership(&self) {
        let keys = self.app.config.data_dir.join("keys");
        let kept = Group::open(&keys).and_then(|group| match group {
            Some(group) if !group.member => Group { member: true, ..group }.keep(&keys),
            _ => Ok(()),
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "it is not remembered that this replica is a member");
        }
    }

    /// Ends all streams, waits for them within `deadline`, and stops the replica.
    pub async fn drain(mut self, deadline: Duration) {
        // So that writes go on at once elsewhere.
        if tokio::time::timeout(deadline, self.app.replica.hand_over()).await.is_err() {
            tracing::warn!(?deadline, "leadership was not handed over in time");
        }
        self.xds.drain();
        self.stop.cancel();
        let ended = async { while self.doors.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, ended).await.is_err() {
            tracing::warn!(?deadline, "some streams did not end in time");
            self.doors.abort_all();
        }
        self.tasks.shutdown().await;
        self.app.replica.shutdown().await;
        // The next start replaces a stale socket; a tidy end leaves none.
        let _ = std::fs::remove_file(&self.app.config.admin_socket);
    }

    /// Resolves when the replica or a door has failed, with the reason: the process should end then.
    pub async fn failed(&mut self) -> anyhow::Error {
        let replica = self.app.replica.clone();
        tokio::select! {
            error = ended(&replica) => error,
            door = self.doors.join_next() => match door {
                Some(Ok(Err(error))) => error,
                Some(Err(error)) => error.into(),
                Some(Ok(Ok(()))) | None => anyhow::anyhow!("a door was closed"),
            },
        }
    }

    /// The same of the replica alone; [`Removed`] if it was removed.
    pub async fn ended(&self) -> anyhow::Error {
        ended(&self.app.replica).await
    }
}

async fn ended(replica: &Replica) -> anyhow::Error {
    tokio::select! {
        reason = replica.removed() => Removed(reason).into(),
        reason = replica.stopped() => anyhow::anyhow!("this replica has stopped: {reason}"),
    }
}

/// Brings the views and the trust bundles up to every new state.
async fn follow_state(app: Arc<App>) {
    let mut changes = app.replica.changes();
    let trust = |state: &mesh_store::State| {
        let own = state.cluster.as_ref().map(|cluster| (cluster.roots.clone(), cluster.trust.clone()));
        let peers = state.peers.values();
        let peers = peers.map(|peer| (peer.trust_domain.clone(), peer.roots.clone(), peer.trust.clone()));
        (own, peers.collect::<Vec<_>>())
    };
    let mut trusted = trust(&app.replica.applied());
    loop {
        changes.borrow_and_update();
        let state = app.replica.applied();
        // Before the views: whoever is told to talk to a peer must be able to.
        let now = trust(&state);
        if now != trusted {
            app.bundles.store(Arc::new(trust_bundles(&app.ca, &state)));
            trusted = now;
        }
        let views = app.views.clone();
        // An error is a panic in the compiler: a bug, after which the views stay as they were.
        let (revision, started) = (state.revision, Instant::now());
        tracing::debug!(revision, "state applied");
        match tokio::task::spawn_blocking(move || views.update(state)).await {
            Ok(()) => tracing::debug!(revision, elapsed = ?started.elapsed(), "mesh compiled"),
            Err(error) => tracing::error!(revision, %error, "the mesh could not be compiled"),
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
