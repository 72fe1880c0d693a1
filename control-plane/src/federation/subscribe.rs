//! Listening to peers: one stream per peer, held by the leader alone.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_model::records::PeerRecord;
use mesh_store::Command;
use mesh_tls::{ALPN_H2, PeerPolicy, client_config, grpc};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use xds_client::{Config, Status, Subscription, Update};
use xds_proto::{
    isthmus::{
        agent::v1::Heartbeat,
        federation::v1::{ExportedService, PeerCluster},
    },
    type_url,
};

use super::{
    DOOR_NAME,
    peer::{Heard, Offer},
};
use crate::app::App;

/// How often leadership and the list of peers are looked at, besides every change of the state.
const LOOK: Duration = Duration::from_millis(500);
/// A peer that has been silent this long after a connect has said all that it offers.
const SETTLED: Duration = Duration::from_secs(3);
/// Updates that wait to be committed; more are refused, and sent again by the peer.
const BACKLOG: usize = 64;
/// Between attempts to commit.
const RETRY: Duration = Duration::from_millis(500);
/// Before another door is asked because this one lags.
const BEHIND: Duration = Duration::from_secs(1);

/// Keeps one stream per peer while this replica leads. Ends when the task is aborted.
pub async fn run(app: Arc<App>) {
    let mut changes = app.replica.changes();
    let mut streams: BTreeMap<String, Stream> = BTreeMap::new();
    loop {
        let state = app.replica.applied();
        let leads = app.replica.is_leader();
        streams.retain(|name, stream| {
            let keep = leads && state.peers.contains_key(name) && !stream.0.is_finished();
            if !keep {
                app.liveness.forget(name);
            }
            keep
        });
        if leads {
            for name in
                state.peers.keys().filter(|name| !streams.contains_key(*name)).cloned().collect::<Vec<_>>()
            {
                let task = tokio::spawn(listen(app.clone(), name.clone()));
                streams.insert(name, Stream(task));
            }
        }
        // A closed channel means that the replica is going; then the task is ended from outside.
        let _ = timeout(LOOK, changes.changed()).await;
    }
}

/// Ends its task when dropped.
struct Stream(JoinHandle<()>);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens to one peer for ever.
async fn listen(app: Arc<App>, name: String) {
    let door = AtomicUsize::new(0);
    loop {
        let Some(peer) = app.replica.applied().peers.get(&name).cloned() else { return };
        let (commands, receiver) = mpsc::channel(BACKLOG);
        let (status, status_changes) = watch::channel(Status::Connecting);
        let (beats, beat_changes) = watch::channel(Heartbeat::default());
        let behind = Notify::new();
        tokio::select! {
            () = subscribe(&app, &name, &door, commands, (status, beats), &behind) => {}
            () = commit(&app, &name, receiver) => {}
            () = follow(&app, &peer.cluster, status_changes) => {}
            () = follow_beats(&app, &peer.cluster, beat_changes) => {}
            () = behind.notified() => {
                door.fetch_add(1, Ordering::Relaxed);
                sleep(BEHIND).await;
            }
        }
    }
}

/// What the committer gets.
enum Work {
    /// A command, and the peer's revision that it leads to.
    Commit(Box<Command>, u64),
    /// The peer has said everything: what it offers no more goes.
    Settled(Arc<std::sync::Mutex<Offer>>, String),
}

async fn subscribe(
    app: &Arc<App>,
    name: &str,
    door: &AtomicUsize,
    commands: mpsc::Sender<Work>,
    (status, beats): (watch::Sender<Status>, watch::Sender<Heartbeat>),
    behind: &Notify,
) {
    let node = xds_client::node(format!("peer~{}", app.ca.replica().cluster), &app.ca.replica().cluster);
    let mut config = Config::new(
        node,
        vec![
            Subscription::wildcard(type_url::<PeerCluster>()),
            Subscription::wildcard(type_url::<ExportedService>()),
        ],
    );
    let heard = Arc::new(Notify::new());
    let offer = Arc::new(std::sync::Mutex::new(Offer::default()));
    let mut connected = status.subscribe();
    config.status = Some(status);
    config.heartbeats = Some(beats);
    let handler = {
        let (heard, offer, commands) = (heard.clone(), offer.clone(), commands.clone());
        move |update: Update| {
            let state = app.replica.applied();
            let Some(peer) = state.peers.get(name) else {
                return Err("this cluster has removed the peer".to_owned());
            };
            let mut offer = offer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let outcome = offer.hear(&update, peer, &state, app.now_unix());
            let revision = update.system_version.parse().unwrap_or(0);
            heard.notify_one();
            match outcome {
                Ok(Heard::Nothing) => {
                    app.liveness.update(name, |h| h.on_taken(revision, now_ms()));
                    Ok(())
                }
                Ok(Heard::Commit(command)) => commands
                    .try_send(Work::Commit(command, revision))
                    .map_err(|_| "too much is waiting to be committed".to_owned()),
                Ok(Heard::Behind { have, got }) => {
                    behind.notify_one();
                    Err(format!("revision {got} is older than {have}, which this cluster holds"))
                }
                Err(reason) => {
                    tracing::warn!(peer = name, %reason, "refused what a peer offers");
                    app.liveness.update(name, |h| h.error.clone_from(&reason));
                    Err(reason)
                }
            }
        }
    };
    let settle = async {
        // Not before the first stream stands.
        while *connected.borrow_and_update() != Status::Connected {
            if connected.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
        let mut deadline = Instant::now() + SETTLED;
        while tokio::time::timeout_at(deadline, heard.notified()).await.is_ok() {
            deadline = Instant::now() + SETTLED;
        }
        let work = Work::Settled(offer.clone(), name.to_owned());
        // A full channel waits; a closed one means that the stream ends.
        let _ = commands.send(work).await;
        std::future::pending().await
    };
    // Nothing is subscribed to later; dropping the sender is fine.
    let (_, no_commands) = mpsc::channel(1);
    tokio::select! {
        () = xds_client::run(config, || dial(app, name, door), handler, no_commands) => {}
        () = settle => {}
    }
}

/// Connects to the next of the peer's doors, as this replica, and only to a replica of that peer.
async fn dial(app: &Arc<App>, name: &str, door: &AtomicUsize) -> Result<tonic::transport::Channel, String> {
    let state = app.replica.applied();
    let peer: &PeerRecord = state.peers.get(name).ok_or("the peer was removed")?;
    let at = door.fetch_add(1, Ordering::Relaxed) % peer.doors.len().max(1);
    let address = peer.doors.get(at).ok_or("the peer has no door")?;
    let policy = PeerPolicy::Replicas(peer.trust_domain.clone());
    let tls = client_config(Some(app.ca.own().clone()), app.bundles.clone(), policy, &[ALPN_H2])
        .map_err(|e| e.to_string())?;
    grpc::connect(address, tls, DOOR_NAME).await.map_err(|e| e.to_string())
}

/// Commits in order. A refusal is final, anything else is tried again: we may lead again in a moment.
async fn commit(app: &Arc<App>, name: &str, mut work: mpsc::Receiver<Work>) {
    while let Some(next) = work.recv().await {
        let (command, peer_revision) = match next {
            Work::Commit(command, revision) => (*command, revision),
            Work::Settled(offer, name) => {
                let state = app.replica.applied();
                let offer = offer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match state.peers.get(&name).and_then(|peer| offer.reconcile(peer)) {
                    Some(command) => (command, 0),
                    None => continue,
                }
            }
        };
        loop {
            match app.replica.write(command.clone()).await {
                Ok(applied) => {
                    tracing::debug!(
                        peer = name,
                        peer_revision,
                        revision = applied.revision,
                        "took over what a peer offers"
                    );
                    app.liveness.update(name, |heard| heard.on_taken(peer_revision, now_ms()));
                    break;
                }
                Err(crate::raft::WriteError::Refused(refusal)) => {
                    tracing::warn!(peer = name, peer_revision, %refusal, "cannot take over what a peer offers");
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot commit what a peer offers yet");
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// Keeps what `status` tells of the peer.
async fn follow(app: &Arc<App>, name: &str, mut status: watch::Receiver<Status>) {
    loop {
        let current = status.borrow_and_update().clone();
        app.liveness.update(name, |heard| match current {
            Status::Connected => heard.on_connected(now_ms()),
            Status::Connecting => {}
            Status::Disconnected { reason } => heard.on_disconnected(reason, now_ms()),
        });
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Keeps what the peer's heartbeats tell.
async fn follow_beats(app: &Arc<App>, name: &str, mut beats: watch::Receiver<Heartbeat>) {
    while beats.changed().await.is_ok() {
        let beat = *beats.borrow_and_update();
        app.liveness.update(name, |heard| heard.on_heartbeat(beat.revision, beat.sent_revision, now_ms()));
    }
    std::future::pending().await
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
