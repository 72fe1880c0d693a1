//! Waiting for a revision: which streams of this replica it concerns, and what each has answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Entry, position::Standing};

/// What one stream is to a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Number of the stream on this replica.
    pub stream: u64,
    /// The client, as authorized.
    pub id: Arc<str>,
    /// `agent`, `proxy`, `envoy`, `grpc`, `gateway` or `peer`.
    pub kind: &'static str,
    /// None: the stream has ended.
    pub standing: Option<Standing>,
    /// Up to this revision it has ACKed everything that concerns it.
    pub acked: u64,
    /// The words of its last refusal, if it is refusing or on the way to it.
    pub error: String,
    /// When the stream was authorized, in milliseconds since 1970.
    pub connected_unix_ms: u64,
}

/// One wait on this replica, until dropped.
#[derive(Debug)]
pub struct Wait(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) revision: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Streams that are concerned, or of which that is not known yet.
    standing: BTreeMap<u64, Standing>,
    /// What has changed since it was last asked.
    news: BTreeMap<u64, Report>,
    /// Streams of which it is not known yet whether they are concerned.
    undecided: BTreeSet<u64>,
}

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Streams whose standing has changed. Of one that was never told, "unconcerned" is not told either.
    pub reports: Vec<Report>,
    /// Every stream that was open when the wait began has been looked at.
    pub complete: bool,
    /// Nobody is pending.
    pub settled: bool,
}

impl Shared {
    pub(super) fn new(revision: u64) -> Self {
        Self { revision, state: Mutex::default(), changed: Notify::new() }
    }

    /// Takes over where a stream stands. `opened`: it is new since the wait began.
    pub(super) fn look(&self, entry: &Entry, opened: bool) {
        let position = entry.position();
        let mut state = self.lock();
        let before = state.standing.get(&entry.stream).copied();
        // A client that comes back must be told of even if it has nothing to catch up with.
        let known = before.or(opened.then_some(Standing::Pending));
        let standing = position.standing(self.revision, known);
        if position.seen < self.revision {
            state.undecided.insert(entry.stream);
        } else {
            state.undecided.remove(&entry.stream);
        }
        let changed = match (before, standing) {
            (None, Standing::Unconcerned) => opened,
            (before, now) => before != Some(now),
        };
        if changed {
            let error = match standing {
                Standing::Pending | Standing::Refused if position.nacked >= Some(self.revision) => {
                    position.last_error.clone().unwrap_or_default()
                }
                _ => String::new(),
            };
            let report = entry.report(Some(standing), position.acked, error);
            drop(position);
            state.news.insert(entry.stream, report);
        }
        match standing {
            Standing::Unconcerned => state.standing.remove(&entry.stream),
            _ => state.standing.insert(entry.stream, standing),
        };
        drop(state);
        self.changed.notify_one();
    }

    /// A stream has ended.
    pub(super) fn closed(&self, entry: &Entry) {
        let acked = entry.position().acked;
        let mut state = self.lock();
        state.undecided.remove(&entry.stream);
        if state.standing.remove(&entry.stream).is_some() {
            state.news.insert(entry.stream, entry.report(None, acked, String::new()));
        }
        drop(state);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// Which revision is waited for.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    /// What has changed since the last call.
    pub fn news(&self) -> News {
        let mut state = self.0.lock();
        News {
            reports: std::mem::take(&mut state.news).into_values().collect(),
            complete: state.undecided.is_empty(),
            settled: !state.standing.values().any(|standing| *standing == Standing::Pending),
        }
    }

    /// Returns when there may be something new.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }
}
