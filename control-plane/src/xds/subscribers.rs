//! Who is connected to this replica, and what each has acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::sync::oneshot;

use super::session::{Protocol, TypeStatus};

/// Longest refusal that is kept; it is for people.
const MAX_ERROR_BYTES: usize = 4096;

/// One stream of one data plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscriber {
    /// Unique among all streams that this process has served.
    pub stream: u64,
    /// The client, as authorized: `proxy~shop/web`.
    pub id: String,
    /// `agent`, `proxy`, `envoy`, `gateway` or `peer`.
    pub kind: &'static str,
    /// The id that the client gave itself; only for display.
    pub node_id: String,
    /// Variant of the protocol.
    pub protocol: Protocol,
    /// Revision of the newest response; zero if none was needed.
    pub sent_revision: u64,
    /// Up to this revision everything that concerns the client was ACKed.
    pub acked_revision: u64,
    /// Up to this revision everything that concerns the client was answered, by ACK or NACK.
    pub settled_revision: u64,
    /// NACKs on this stream.
    pub nacks: u32,
    /// The client's words at its last NACK, with the resources concerned.
    pub last_error: Option<String>,
    /// Revision of the newest refusal that still stands.
    pub nacked_revision: Option<u64>,
    /// When the stream was authorized.
    pub connected_at: SystemTime,
    /// ACKed revision by type URL.
    pub acked: BTreeMap<String, u64>,
}

impl Subscriber {
    /// Why the client is not up to date at a revision, or None if it is.
    ///
    /// It is if everything up to then that concerns it was ACKed, which includes that nothing does.
    fn lag(&self, revision: u64) -> Option<Lagging> {
        let reason = match self.nacked_revision {
            Some(nacked) if nacked >= revision => {
                LagReason::Nacked(self.last_error.clone().unwrap_or_default())
            }
            _ if self.settled_revision < revision => LagReason::Unanswered { acked: self.acked_revision },
            _ => return None,
        };
        Some(Lagging { id: self.id.clone(), reason })
    }
}

/// A data plane that is not up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lagging {
    /// The client.
    pub id: String,
    /// Why.
    pub reason: LagReason,
}

/// Why a data plane is not up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LagReason {
    /// It has not answered yet.
    Unanswered {
        /// What it has ACKed.
        acked: u64,
    },
    /// It refused, with these words.
    Nacked(String),
}

impl fmt::Display for Lagging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            LagReason::Unanswered { acked } => write!(f, "{} (at revision {acked})", self.id),
            LagReason::Nacked(error) => write!(f, "{} (refused: {error})", self.id),
        }
    }
}

/// The registry.
#[derive(Debug, Default)]
pub struct Subscribers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    streams: u64,
    subscribers: BTreeMap<u64, Subscriber>,
    waiters: Vec<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    revision: u64,
    pending: BTreeSet<u64>,
    done: Option<oneshot::Sender<()>>,
}

impl Inner {
    /// Crosses a stream off the lists of those who wait for it.
    fn arrived(&mut self, stream: u64, up_to_date_with: impl Fn(u64) -> bool) {
        for waiter in &mut self.waiters {
            if up_to_date_with(waiter.revision) && waiter.pending.remove(&stream) && waiter.pending.is_empty()
            {
                // The other end may have given up; then nobody is left to be told.
                let _ = waiter.done.take().map(|done| done.send(()));
            }
        }
        self.waiters.retain(|waiter| waiter.done.as_ref().is_some_and(|done| !done.is_closed()));
    }
}

impl Subscribers {
    /// Nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every stream, ordered by when it was opened.
    pub fn list(&self) -> Vec<Subscriber> {
        self.lock().subscribers.values().cloned().collect()
    }

    /// Waits until every client that is connected now has ACKed what concerns it up to `revision`, and lists
    /// those that have not. A client that refused has answered: it is listed, but not waited for until the time is
    /// over. One that disconnects is neither.
    ///
    /// The views must have reached the revision before: call it after the local state has applied it.
    pub async fn wait_acked(&self, revision: u64, timeout: Duration) -> Vec<Lagging> {
        let (sender, done) = oneshot::channel();
        let streams: BTreeSet<u64> = {
            let mut inner = self.lock();
            let lagging = inner.subscribers.values().filter(|subscriber| subscriber.lag(revision).is_some());
            let streams: BTreeSet<u64> = lagging.map(|subscriber| subscriber.stream).collect();
            let unanswered = |stream: &&u64| {
                inner.subscribers.get(stream).is_some_and(|subscriber| subscriber.settled_revision < revision)
            };
            let pending: BTreeSet<u64> = streams.iter().filter(unanswered).copied().collect();
            if pending.is_empty() {
                drop(sender);
            } else {
                inner.waiters.push(Waiter { revision, pending, done: Some(sender) });
            }
            streams
        };
        // Over at once if nobody is waited for: the sender is gone.
        let _ = tokio::time::timeout(timeout, done).await;
        let inner = self.lock();
        streams.iter().filter_map(|stream| inner.subscribers.get(stream)?.lag(revision)).collect()
    }

    /// A number for a new stream.
    pub(super) fn next_stream(&self) -> u64 {
        let mut inner = self.lock();
        inner.streams += 1;
        inner.streams
    }

    /// A stream is authorized. It is listed until the guard is dropped.
    pub(super) fn connect(&self, subscriber: Subscriber) -> Connected<'_> {
        let stream = subscriber.stream;
        self.lock().subscribers.insert(stream, subscriber);
        Connected { registry: self, stream }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock can leave it half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that is listed.
#[derive(Debug)]
pub(super) struct Connected<'a> {
    registry: &'a Subscribers,
    stream: u64,
}

impl Connected<'_> {
    /// Takes over where the session stands; `revision` is the newest that it has seen.
    pub(super) fn update(&self, status: &[TypeStatus], revision: u64) {
        let mut inner = self.registry.lock();
        let Some(subscriber) = inner.subscribers.get_mut(&self.stream) else { return };
        let least = |of: fn(&TypeStatus) -> u64| status.iter().map(of).min().unwrap_or(revision);
        subscriber.sent_revision = status.iter().map(|status| status.sent_revision).max().unwrap_or(0);
        subscriber.acked_revision = least(|status| status.acked_revision);
        subscriber.settled_revision = least(|status| status.settled_revision);
        subscriber.nacked_revision =
            status.iter().filter_map(|status| status.nacked.as_ref()).map(|nacked| nacked.revision).max();
        for status in status {
            match subscriber.acked.get_mut(&*status.type_url) {
                Some(acked) => *acked = status.acked_revision,
                None => {
                    subscriber.acked.insert(status.type_url.to_string(), status.acked_revision);
                }
            }
        }
        let settled = subscriber.settled_revision;
        inner.arrived(self.stream, |revision| settled >= revision);
    }

    /// Counts a refusal.
    pub(super) fn nacked(&self, mut error: String) {
        error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
        if let Some(subscriber) = self.registry.lock().subscribers.get_mut(&self.stream) {
            subscriber.nacks += 1;
            subscriber.last_error = Some(error);
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        inner.subscribers.remove(&self.stream);
        inner.arrived(self.stream, |_| true);
    }
}
