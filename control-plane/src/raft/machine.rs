//! The state machine: applies committed entries, publishes the state, takes and installs snapshots.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;
use mesh_store::{
    Envelope, Event, History, Outcome, State,
    limits::{MAX_HISTORY_BYTES, MAX_HISTORY_EVENTS},
};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine};
use tokio::sync::watch;

use super::{
    DiskError,
    blocking::blocking,
    disk::{SnapshotFile, Snapshots},
    types::{
        Answers, Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
        TypeConfig, any_error, are_long,
    },
    view::{Counting, add},
};
use crate::telemetry::{Commits, Moment};

/// What readers see. Everything in it is of the last applied entry or a later one.
#[derive(Debug)]
pub(crate) struct Published {
    state: ArcSwap<State>,
    revision: watch::Sender<u64>,
    applied: watch::Sender<u64>,
    history: Mutex<History>,
    commits: Arc<Commits>,
}

impl Published {
    /// The newest state.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The state's revision, as it changes.
    pub(crate) fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The number of applied log entries (the last one's index plus one), as it changes.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// When the last revisions were committed.
    pub(crate) fn commits(&self) -> Arc<Commits> {
        self.commits.clone()
    }

    /// The last events.
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        // A panic elsewhere leaves the ring whole or short of events of a state that was never published.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state machine of one replica.
///
/// Readers hold the published state for as long as they like, so it can't be changed in place. What is changed is a
/// clone, which shares with it all that the entries at hand don't touch.
pub(crate) struct Machine {
    /// This replica.
    id: u64,
    published: Arc<Published>,
    snapshots: Snapshots,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    counting: Arc<Counting>,
}

impl Machine {
    /// Starts from the snapshot on disk, if there is one.
    pub(crate) fn open(
        id: u64,
        snapshots: Snapshots,
        counting: Arc<Counting>,
    ) -> Result<(Self, Arc<Published>), DiskError> {
        let (meta, state) = snapshots.load()?.unwrap_or_default();
        let published = Arc::new(Published {
            revision: watch::Sender::new(state.revision),
            applied: watch::Sender::new(meta.last_log_id.map_or(0, |last| last.index + 1)),
            history: Mutex::new(History::starting_at(state.revision, MAX_HISTORY_EVENTS, MAX_HISTORY_BYTES)),
            state: ArcSwap::from_pointee(state),
            commits: Arc::default(),
        });
        let machine = Self {
            id,
            published: published.clone(),
            snapshots,
            last_applied: meta.last_log_id,
            membership: meta.last_membership,
            counting,
        };
        Ok((machine, published))
    }

    /// `led`: what is published was committed by this replica, right now.
    fn publish(&self, state: State, events: Vec<Event>, led: bool) {
        let revision = state.revision;
        // Before anybody can have seen the revision.
        self.published.commits.reached(revision, Moment { at: Instant::now(), led });
        self.published.history().extend(events);
        self.published.state.store(Arc::new(state));
        self.published.revision.send_if_modified(|current| {
            let changed = *current != revision;
            *current = revision;
            changed
        });
    }

    fn publish_index(&self) {
        self.published.applied.send_replace(self.last_applied.map_or(0, |last| last.index + 1));
    }

    fn apply_all(&mut self, entries: Vec<Entry>) -> Vec<Answers> {
        let mut answers = Vec::new();
        let mut work: Option<State> = None;
        let mut events = Vec::new();
        let mut led = false;
        for entry in entries {
            self.last_applied = Some(entry.log_id);
            // Whoever proposed it commits it, unless it has lost the lead in between.
            led = entry.log_id.leader_id.node_id == self.id;
            let answer = match entry.payload {
                EntryPayload::Blank => Answers::default(),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Answers::default()
                }
                EntryPayload::Normal(batch) => {
                    let mut state = work.take().unwrap_or_else(|| State::clone(&self.published.state.load()));
                    let outcomes =
                        batch.0.iter().map(|envelope| apply(&mut state, envelope, &mut events)).collect();
                    work = Some(state);
                    Answers(outcomes)
                }
            };
            answers.push(answer);
        }
        if let Some(state) = work {
            self.publish(state, events, led);
        }
        self.publish_index();
        answers
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        Ok(blocking(are_long(&entries), || self.apply_all(entries)))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.published.state(),
            snapshots: self.snapshots.clone(),
            counting: self.counting.clone(),
            meta: SnapshotMeta {
                last_log_id: self.last_applied,
                last_membership: self.membership.clone(),
                snapshot_id: self.last_applied.map_or("empty".to_owned(), |last| last.to_string()),
            },
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        let failed = |error: DiskError| StorageIOError::write_snapshot(None, any_error(error));
        Ok(Box::new(self.snapshots.arriving().map_err(failed)?))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), StorageError> {
        let failed = |reason: String| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), any_error(reason)))
        };
        let (snapshots, described) = (self.snapshots.clone(), meta.clone());
        let state = tokio::task::spawn_blocking(move || {
            snapshots.install(&described, *snapshot).map_err(|error| error.to_string())
        })
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(failed)?;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let revision = state.revision;
        add(&self.counting.snapshots_installed, 1);
        self.publish(state, Vec::new(), false);
        self.published.history().reset(revision);
        self.publish_index();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let snapshots = self.snapshots.clone();
        tokio::task::spawn_blocking(move || snapshots.current())
            .await
            .map_err(|error| StorageIOError::read_snapshot(None, any_error(error)))?
            .map_err(|error| StorageIOError::read_snapshot(None, any_error(error)).into())
    }
}

fn apply(state: &mut State, envelope: &Envelope, events: &mut Vec<Event>) -> Outcome {
    let applying = mesh_store::apply(state, envelope);
    events.extend(applying.events);
    applying.outcome
}

/// Takes a snapshot while entries go on being applied.
pub(crate) struct Builder {
    state: Arc<State>,
    snapshots: Snapshots,
    counting: Arc<Counting>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (state, snapshots, meta) = (self.state.clone(), self.snapshots.clone(), self.meta.clone());
        let signature = meta.signature();
        let failed = |reason: String| StorageIOError::write_snapshot(Some(signature), any_error(reason));
        let counting = self.counting.clone();
        let built = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let bytes = snapshots.save(&meta, &state).map_err(|error| error.to_string())?;
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            add(&counting.snapshots_built, 1);
            counting.last_snapshot_bytes.store(bytes, Ordering::Relaxed);
            counting.last_snapshot_micros.store(micros, Ordering::Relaxed);
            // A newer one may have come from the leader meanwhile.
            let current = snapshots.current().map_err(|error| error.to_string())?;
            current.ok_or_else(|| "the snapshot is gone".to_owned())
        });
        match built.await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(reason)) => Err(failed(reason).into()),
            Err(error) => Err(failed(error.to_string()).into()),
        }
    }
}
