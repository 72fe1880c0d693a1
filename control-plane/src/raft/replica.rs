//! One replica of the cluster's state.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use mesh_model::records::ReplicaRecord;
use mesh_store::{Applied, Bytes16, Command, Compacted, Envelope, Event, Granted, HistoryStats, State};
use openraft::{
    BasicNode,
    error::{InitializeError, RaftError},
    storage::RaftLogStorage,
};
use tokio::sync::watch;
use xds_proto::isthmus::raft::v1::raft_server::RaftServer;

use super::{
    Authorize, Dialer, OpenError, RaftConfig, RaftService, ReadError, ReplicaView, WriteError,
    contact::{Contact, NoQuorum},
    disk::{self, DiskStats},
    election::Elections,
    machine::{Machine, Published},
    membership,
    network::{Factory, Peers},
    queue::Queue,
    reads::{Reads, Resumed},
    transfer::{self, Gate},
    types::{Raft, StorageError},
    view::{self, Counting},
};
use crate::telemetry::{Commits, Histogram};

/// One replica of the cluster's state.
pub struct Replica {
    config: RaftConfig,
    raft: Raft,
    published: Arc<Published>,
    peers: Arc<Peers>,
    contact: Arc<Contact>,
    elections: Elections,
    gate: Gate,
    queue: Queue,
    reads: Reads,
    disk: Arc<DiskStats>,
    write_times: Histogram,
    counting: Arc<Counting>,
    in_use: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Replica {
    /// Opens a replica's folder, or makes one, and takes part in the group that it knows.
    ///
    /// A new one knows no group: either it becomes the first member ([`Replica::initialize`]), or it waits until
    /// a leader adds it ([`Replica::add_replica`] on any member). It is reached by others once
    /// [`Replica::service`] is served.
    ///
    /// # Errors
    /// [`OpenError::Disk`] if what is on the disk contradicts what was acknowledged: the replica must not vote.
    pub async fn open(config: RaftConfig, dialer: Dialer) -> Result<Self, OpenError> {
        let settings = config.openraft()?;
        let (dir, id) = (config.dir.clone(), config.id);
        let counting = Arc::new(Counting::default());
        let counted = counting.clone();
        let (mut log, machine, published) = tokio::task::spawn_blocking(move || {
            let (log, snapshots) = disk::open(&dir, disk::Options::default())?;
            let log = log.behind(snapshots.clone());
            let (machine, published) = Machine::open(id, snapshots, counted)?;
            Ok::<_, OpenError>((log, machine, published))
        })
        .await
        .map_err(|error| OpenError::Raft(error.to_string()))??;
        let (disk, in_use) = (log.stats(), Box::new(log.in_use()));
        let state = async { Ok::<_, StorageError>((log.read_vote().await?, log.get_log_state().await?)) };
        let (vote, state) = state.await.map_err(|error| OpenError::Raft(error.to_string()))?;
        let resumed = Resumed::of(config.id, vote, state.last_log_id);
        let contact = Arc::new(Contact::new(tokio::time::Instant::now()));
        let peers = Arc::new(Peers::new(config.id, config.group.clone(), dialer, contact.clone()));
        let raft = Raft::new(config.id, settings, Factory(peers.clone()), log, machine)
            .await
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let gate = Gate::default();
        let queue = Queue::start(
            config.id,
            raft.clone(),
            peers.clone(),
            contact.clone(),
            gate.clone(),
            counting.clone(),
        );
        let elections = Elections {
            id: config.id,
            raft: raft.clone(),
            peers: peers.clone(),
            contact: contact.clone(),
            timings: config.timings,
        };
        tokio::spawn(elections.clone().run());
        tokio::spawn(membership::follow_records(elections.clone(), gate.clone(), published.clone()));
        let reads = Reads::start(
            config.id,
            raft.clone(),
            resumed,
            peers.clone(),
            published.clone(),
            contact.clone(),
            counting.clone(),
        );
        Ok(Self {
            config,
            raft,
            published,
            peers,
            contact,
            elections,
            gate,
            queue,
            reads,
            disk,
            write_times: Histogram::default(),
            counting,
            in_use,
        })
    }

    /// Makes this replica the first and only member of a new group. No change if it is a member already.
    ///
    /// The group's first commands are [`Command::Init`] and [`Command::PutReplica`] with this replica's id.
    ///
    /// # Errors
    /// [`OpenError::Raft`] if the group could not be made.
    pub async fn initialize(&self) -> Result<(), OpenError> {
        let members = [(self.config.id, BasicNode::new(&self.config.address))];
        match self.raft.initialize(std::collections::BTreeMap::from(members)).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(OpenError::Raft(error.to_string())),
        }
    }

    /// Whether it knows of a group: it was initialised, or a leader has added it.
    pub async fn is_member(&self) -> bool {
        self.raft.is_initialized().await.unwrap_or(false)
    }

    /// This replica's id.
    pub fn id(&self) -> u64 {
        self.config.id
    }

    /// The raft group that it belongs to.
    pub fn group(&self) -> &str {
        &self.config.group
    }

    /// The raft door, to be served to other replicas. `authorize` sees the extensions of every request.
    pub fn service(&self, authorize: Authorize) -> RaftServer<RaftService> {
        RaftService::server(self.elections.clone(), self.queue.clone(), self.reads.clone(), authorize)
    }

    /// Changes the cluster. Durable on a majority of replicas when it returns, whichever replica it is called on.
    ///
    /// # Errors
    /// [`WriteError::Refused`] if the command was refused; any other error leaves open whether it takes effect,
    /// but for [`WriteError::TooLarge`].
    pub async fn write(&self, command: Command) -> Result<Applied, WriteError> {
        self.write_once(Bytes16(rand::random()), None, command).await
    }

    /// Like [`Replica::write`], with the caller's own idempotency key: 128 random bits. Repeating a command with
    /// the same key, on any replica, applies it once: a repetition is answered like the first attempt, or, if
    /// what became of that is not remembered any more (after a minute, or 65,536 writes), refused.
    ///
    /// `first` is when the first attempt was made, by the caller's clock: None for the first attempt itself.
    ///
    /// # Errors
    /// As [`Replica::write`]; [`mesh_store::Refusal::RetryTooLate`] as said.
    pub async fn write_once(
        &self,
        key: Bytes16,
        first: Option<SystemTime>,
        command: Command,
    ) -> Result<Applied, WriteError> {
        let (now_unix_ms, first_unix_ms) = (unix_ms(SystemTime::now()), first.map(unix_ms));
        let random = Bytes16(rand::random());
        let started = Instant::now();
        let outcome = self.queue.write(Envelope { key, now_unix_ms, first_unix_ms, random, command }).await;
        if outcome.is_ok() {
            self.write_times.observe(started.elapsed());
        }
        outcome
    }

    /// From taking a command to its acknowledgement, for all that this replica took.
    pub fn write_times(&self) -> &Histogram {
        &self.write_times
    }

    /// A state that holds every write that was acknowledged, anywhere, before this was called.
    ///
    /// # Errors
    /// No leader or no majority in time.
    pub async fn linearizable(&self) -> Result<Arc<State>, ReadError> {
        self.reads.linearizable().await
    }

    /// What this replica has applied: perhaps older than what others have, never older than it was.
    ///
    /// Do not keep it longer than needed: while somebody does, each change costs a copy of the state.
    pub fn applied(&self) -> Arc<State> {
        self.published.state()
    }

    /// The revision of [`Replica::applied`], as it changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.published.revisions()
    }

    /// When the last revisions were committed, or heard of.
    pub fn commits(&self) -> Arc<Commits> {
        self.published.commits()
    }

    /// Every event after a revision, oldest first.
    ///
    /// # Errors
    /// [`Compacted`] if some are forgotten: read the whole state and go on from its revision.
    pub fn events_after(&self, revision: u64) -> Result<Vec<Arc<Event>>, Compacted> {
        self.published.history().after(revision)
    }

    /// How many events are kept, and from which revision on.
    pub fn history_stats(&self) -> HistoryStats {
        self.published.history().stats()
    }

    /// For what nobody does but a test.
    #[cfg(test)]
    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// How this replica sees the group.
    pub fn metrics(&self) -> ReplicaView {
        view::view(
            &self.raft.metrics().borrow(),
            &self.peers,
            &self.disk,
            &self.counting,
            self.contact.no_quorum(),
        )
    }

    /// None while a majority of the voters can be reached, as far as this replica knows.
    pub fn no_quorum(&self) -> Option<NoQuorum> {
        self.contact.no_quorum()
    }

    /// The same, as it changes.
    pub fn quorum(&self) -> watch::Receiver<Option<NoQuorum>> {
        self.contact.quorum()
    }

    /// Resolves once this replica learns that it was removed from the group, with a sentence that says so. It takes
    /// no part any more, and the process should end.
    pub async fn removed(&self) -> String {
        self.contact.removed().await
    }

    /// Whether it has learnt that.
    pub fn is_removed(&self) -> bool {
        self.contact.is_removed()
    }

    /// If this replica leads, hands leadership to the voter that is best informed: what a replica does before it
    /// stops, so that writes go on at once. Nothing happens if it does not lead, or alone.
    pub async fn hand_over(&self) {
        let successor = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let roster = membership::roster(&metrics, &self.published.state());
            transfer::successor(&metrics, &roster, |id| self.peers.reachable(id))
        };
        let Some((id, address)) = successor else { return };
        if let Err(reason) = transfer::hand_over(&self.elections, &self.gate, (id, &address)).await {
            tracing::warn!(successor = id, reason, "leadership was not handed over");
        }
    }

    /// Whether the voters without `gone` would be a majority that answers, as this replica sees it: worth something
    /// on the leader.
    pub fn leaves_quorum(&self, gone: u64) -> bool {
        let voters = self.raft.metrics().borrow().membership_config.membership().voter_ids().collect();
        membership::leaves_quorum(&voters, gone, |id| id == self.config.id || self.peers.reachable(id))
    }

    /// Adds a replica to the group, or changes its address; the id 0 asks for a new one. It becomes a learner at
    /// once and a voter when it has caught up. Answers its id.
    ///
    /// # Errors
    /// As [`Replica::write`].
    pub async fn add_replica(&self, id: u64, address: impl Into<String>) -> Result<u64, WriteError> {
        let record = ReplicaRecord { id, address: address.into(), learner: false };
        match self.write(Command::PutReplica(record)).await?.granted {
            Granted::Replica(id) => Ok(id),
            _ => Ok(id),
        }
    }

    /// Takes a replica out of the group.
    ///
    /// # Errors
    /// As [`Replica::write`].
    pub async fn remove_replica(&self, id: u64) -> Result<Applied, WriteError> {
        self.write(Command::RemoveReplica { id }).await
    }

    /// Makes a voter a learner, or a learner a voter once it has caught up.
    ///
    /// # Errors
    /// As [`Replica::write`].
    pub async fn set_role(&self, id: u64, learner: bool) -> Result<Applied, WriteError> {
        self.write(Command::SetReplicaRole { id, learner }).await
    }

    /// Takes a snapshot now. Returns before it is done.
    pub async fn snapshot(&self) {
        // If raft has stopped, there is nothing to take one of.
        let _ = self.raft.trigger().snapshot().await;
    }

    /// Returns once this replica does not take part any more, with the reason: a failed disk, mostly. The process
    /// should end then: it serves nothing that can be relied upon.
    pub async fn stopped(&self) -> String {
        // These change with leaders and members only, and end with raft itself. All its metrics change with every
        // entry, which would wake whoever waits here several times per write.
        let mut server = self.raft.server_metrics();
        while server.changed().await.is_ok() {}
        let metrics = self.raft.metrics();
        let reason = metrics.borrow().running_state.as_ref().err().map(ToString::to_string);
        reason.unwrap_or_else(|| "it was shut down".to_owned())
    }

    /// Leaves the group for now and closes the disk. Calls after this fail.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft did not end well");
        }
        if !disk::closed(&self.in_use).await {
            tracing::warn!("the log is still in use");
        }
    }

    /// Whether this replica leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.raft.metrics().borrow().state == openraft::ServerState::Leader
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
