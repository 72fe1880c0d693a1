//! The state machine: applies committed entries, publishes the state, takes and installs snapshots.

use std::{
    io::Cursor,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use mesh_store::{Envelope, Event, History, Outcome, State, limits::MAX_HISTORY_EVENTS};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine};
use tokio::sync::watch;

use super::{
    DiskError,
    blocking::blocking,
    disk::Snapshots,
    types::{
        Answers, Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
        TypeConfig, any_error,
    },
};

/// What readers see. Everything in it is of the last applied entry or a later one.
#[derive(Debug)]
pub(crate) struct Published {
    state: ArcSwap<State>,
    revision: watch::Sender<u64>,
    applied: watch::Sender<u64>,
    history: Mutex<History>,
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
    published: Arc<Published>,
    snapshots: Snapshots,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// Starts from the snapshot on disk, if there is one.
    pub(crate) fn open(snapshots: Snapshots) -> Result<(Self, Arc<Published>), DiskError> {
        let (meta, state) = match snapshots.load()? {
            Some(snapshot) => {
                let state = mesh_store::decode(snapshot.snapshot.get_ref()).map_err(|error| {
                    DiskError::Damaged { file: snapshots.path().to_owned(), reason: error.to_string() }
                })?;
                (snapshot.meta, state)
            }
            None => (SnapshotMeta::default(), State::default()),
        };
        let published = Arc::new(Published {
            revision: watch::Sender::new(state.revision),
            applied: watch::Sender::new(meta.last_log_id.map_or(0, |last| last.index + 1)),
            history: Mutex::new(History::starting_at(state.revision, MAX_HISTORY_EVENTS)),
            state: ArcSwap::from_pointee(state),
        });
        let machine = Self {
            published: published.clone(),
            snapshots,
            last_applied: meta.last_log_id,
            membership: meta.last_membership,
        };
        Ok((machine, published))
    }

    fn publish(&self, state: State, events: Vec<Event>) {
        let revision = state.revision;
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
        for entry in entries {
            self.last_applied = Some(entry.log_id);
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
            self.publish(state, events);
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
        let long = entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Normal(_)));
        Ok(blocking(long, || self.apply_all(entries)))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.published.state(),
            snapshots: self.snapshots.clone(),
            meta: SnapshotMeta {
                last_log_id: self.last_applied,
                last_membership: self.membership.clone(),
                snapshot_id: self.last_applied.map_or("empty".to_owned(), |last| last.to_string()),
            },
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let failed = |reason: String| {
            StorageError::from(StorageIOError::write_snapshot(Some(meta.signature()), any_error(reason)))
        };
        let (snapshots, described) = (self.snapshots.clone(), meta.clone());
        let state = tokio::task::spawn_blocking(move || {
            let bytes = snapshot.into_inner();
            let state = mesh_store::decode(&bytes).map_err(|error| error.to_string())?;
            snapshots.save(&described, &bytes).map_err(|error| error.to_string())?;
            Ok::<_, String>(state)
        })
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(failed)?;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        let revision = state.revision;
        self.publish(state, Vec::new());
        self.published.history().reset(revision);
        self.publish_index();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let snapshots = self.snapshots.clone();
        tokio::task::spawn_blocking(move || snapshots.load())
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
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (state, snapshots, meta) = (self.state.clone(), self.snapshots.clone(), self.meta.clone());
        let signature = meta.signature();
        let failed = |reason: String| StorageIOError::write_snapshot(Some(signature), any_error(reason));
        let built = tokio::task::spawn_blocking(move || {
            let bytes = mesh_store::encode(&state).map_err(|error| error.to_string())?;
            drop(state);
            snapshots.save(&meta, &bytes).map_err(|error| error.to_string())?;
            Ok::<_, String>(Snapshot { meta, snapshot: Box::new(Cursor::new(bytes)) })
        });
        match built.await {
            Ok(Ok(snapshot)) => Ok(snapshot),
            Ok(Err(reason)) => Err(failed(reason).into()),
            Err(error) => Err(failed(error.to_string()).into()),
        }
    }
}
