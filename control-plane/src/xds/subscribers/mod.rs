//! Who is connected to this replica, and what each has acknowledged.
//!
//! Every stream has an entry with a lock of its own, so that streams don't wait for each other; the list of all is
//! locked only when one opens or ends, or when somebody asks for all of them.
//!
//! A stream sleeps through revisions that don't concern its client. Views that know whom a revision concerns say so
//! ([`concern`](Subscribers::concern)), and then that they are through with it ([`reached`](Subscribers::reached)):
//! whoever has nothing to do by then is up to date, which its entry takes for granted when it is looked at.

mod connected;
pub mod departures;
pub mod position;
pub mod wait;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub(crate) use connected::Connected;
pub use position::{Due, Health, Position, Standing};
use tokio::sync::Notify;
pub use wait::{News, Report, Wait};

use super::{Client, csds::Inspectors, load::Loads, session::Protocol};
use crate::{
    doors::{
        gate::Gate,
        limits::{LimitReached, Limits},
    },
    telemetry::{Commits, XdsMetrics},
};

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
    /// Whether it takes part.
    pub health: Health,
    /// Revisions that it has not ACKed although they concern it, or may.
    pub lag_revisions: u64,
    /// Since when it lacks the oldest of them.
    pub lag: Duration,
    /// How long ago it was last heard.
    pub silent: Duration,
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

/// What is said of a stream when it opens.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The client, as authorized.
    pub client: Client,
    /// See [`Subscriber::id`].
    pub id: Arc<str>,
    /// See [`Subscriber::kind`].
    pub kind: &'static str,
    /// See [`Subscriber::node_id`].
    pub node_id: String,
    /// See [`Subscriber::protocol`].
    pub protocol: Protocol,
    /// What the views have reached.
    pub revision: u64,
}

/// The registry.
#[derive(Debug)]
pub struct Subscribers {
    streams: AtomicU64,
    listed: Mutex<Listed>,
    waits: Mutex<Vec<Weak<wait::Shared>>>,
    /// Length of `waits`, so that a stream need not lock it to find nobody there.
    open_waits: AtomicUsize,
    gate: Arc<Gate>,
    metrics: XdsMetrics,
    departures: departures::Departures,
    inspectors: Inspectors,
    loads: Loads,
    /// Of this revision and those before it, everybody was told whom they concern. Zero: the views don't tell.
    reached: Arc<AtomicU64>,
}

impl Default for Subscribers {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug, Default)]
struct Listed {
    entries: BTreeMap<u64, Arc<Entry>>,
    /// Streams by client.
    of_client: HashMap<Client, Vec<Arc<Entry>>>,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Entry {
    stream: u64,
    opening: Opening,
    connected_at: SystemTime,
    position: Mutex<Position>,
    /// See [`Subscribers::reached`].
    reached: Arc<AtomicU64>,
    /// Something is due.
    wake: Notify,
}

impl Entry {
    fn position(&self) -> MutexGuard<'_, Position> {
        // Before the lock: what was due by then is seen under it.
        let reached = self.reached.load(Ordering::Acquire);
        // Nothing under the lock can leave it half done.
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        position.sleep_until(reached);
        position
    }

    fn report(&self, standing: Option<Standing>, acked: u64, error: String) -> Report {
        let connected = self.connected_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Report {
            stream: self.stream,
            id: self.opening.id.clone(),
            kind: self.opening.kind,
            standing,
            acked,
            error,
            connected_unix_ms: u64::try_from(connected.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn subscriber(&self, metrics: &XdsMetrics, now: Instant) -> Subscriber {
        let position = self.position();
        let behind = position.seen.saturating_sub(position.acked);
        let lag = match behind {
            0 => Duration::ZERO,
            _ => {
                let known = metrics.commits.at(position.acked + 1).map(|moment| moment.at);
                let lacking = known.or(position.unanswered_since);
                // What was there before the client is not what it is late with.
                let opened = now.checked_sub(self.connected_at.elapsed().unwrap_or_default());
                lacking.max(opened).map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
            }
        };
        Subscriber {
            stream: self.stream,
            id: self.opening.id.to_string(),
            kind: self.opening.kind,
            node_id: self.opening.node_id.clone(),
            protocol: self.opening.protocol,
            sent_revision: position.sent,
            acked_revision: position.acked,
            settled_revision: position.settled,
            nacks: position.nacks,
            last_error: position.last_error.clone(),
            nacked_revision: position.nacked,
            connected_at: self.connected_at,
            acked: position.acked_by_type.iter().map(|(of, revision)| (of.to_string(), *revision)).collect(),
            health: position.health(now),
            lag_revisions: behind,
            lag,
            silent: now.saturating_duration_since(position.heard),
        }
    }
}

/// All streams of one kind of client that speak one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    /// How many there are.
    pub streams: u64,
    /// Those that have something to answer.
    pub syncing: u64,
    /// Those with a refusal that stands.
    pub refused: u64,
    /// Those that answer nothing.
    pub stale: u64,
    /// Those with something unsent.
    pub queued: u64,
    /// Types with something unsent.
    pub types_queued: u64,
    /// Responses that are not answered.
    pub in_flight: u64,
}

impl Subscribers {
    /// Nobody yet, with the default limits.
    pub fn new() -> Self {
        Self::within(Arc::new(Gate::new(Limits::default())))
    }

    /// Nobody yet.
    pub fn within(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            streams: AtomicU64::new(0),
            listed: Mutex::default(),
            waits: Mutex::default(),
            open_waits: AtomicUsize::new(0),
            metrics: XdsMetrics::default(),
            departures: departures::Departures::default(),
            inspectors: Inspectors::default(),
            loads: Loads::default(),
            reached: Arc::default(),
        }
    }

    /// The same, told by somebody who knows when each revision was committed.
    #[must_use]
    pub fn with_commits(mut self, commits: Arc<Commits>) -> Self {
        self.metrics.commits = commits;
        self
    }

    /// What the streams do.
    pub fn metrics(&self) -> &XdsMetrics {
        &self.metrics
    }

    /// What they may do.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The streams that can be asked what they were sent.
    pub fn inspectors(&self) -> &Inspectors {
        &self.inspectors
    }

    /// What the clients report of their load.
    pub fn loads(&self) -> &Loads {
        &self.loads
    }

    /// Every stream, ordered by when it was opened.
    pub fn list(&self) -> Vec<Subscriber> {
        let (entries, now) = (self.snapshot(), Instant::now());
        entries.iter().map(|entry| entry.subscriber(&self.metrics, now)).collect()
    }

    /// Agents that were connected to this replica, and when their last stream ended.
    pub fn departures(&self) -> Vec<(Arc<str>, SystemTime)> {
        self.departures.list()
    }

    /// All streams, added up by kind of client and protocol.
    pub fn sums(&self, now: Instant) -> BTreeMap<(&'static str, &'static str), Sum> {
        let mut sums = BTreeMap::<_, Sum>::new();
        for entry in self.snapshot() {
            let protocol = match entry.opening.protocol {
                Protocol::Sotw => "sotw",
                Protocol::Delta => "delta",
            };
            let sum = sums.entry((entry.opening.kind, protocol)).or_default();
            let (health, queued, in_flight) = {
                let position = entry.position();
                (position.health(now), position.queued(), position.in_flight)
            };
            sum.streams += 1;
            sum.queued += u64::from(queued > 0);
            sum.types_queued += u64::from(queued);
            sum.in_flight += u64::from(in_flight);
            sum.syncing += u64::from(health == Health::Syncing);
            sum.refused += u64::from(health == Health::Refused);
            sum.stale += u64::from(health == Health::Stale);
        }
        sums
    }

    /// What came into effect after the revision `before`, with `revision`, concerns a client: its streams are woken. The
    /// views must serve the revision by now.
    pub fn concern(&self, client: &Client, before: u64, revision: u64) {
        let listed = self.listed();
        for entry in listed.of_client.get(client).into_iter().flatten() {
            entry.position().note_due(before, revision);
            entry.wake.notify_one();
        }
    }

    /// Whether a client has a stream.
    pub fn has(&self, client: &Client) -> bool {
        self.listed().of_client.get(client).is_some_and(|streams| !streams.is_empty())
    }

    /// The nodes whose agents have a stream.
    pub fn agents(&self) -> Vec<String> {
        let node = |client: &Client| match client {
            Client::Agent { node } => Some(node.clone()),
            Client::Proxy { .. }
            | Client::Grpc { .. }
            | Client::Gateway { .. }
            | Client::NodeProxy { .. }
            | Client::Peer { .. } => None,
        };
        self.listed().of_client.keys().filter_map(node).collect()
    }

    /// Everybody whom a revision concerns was told so.
    pub fn reached(&self, revision: u64) {
        self.reached.fetch_max(revision, Ordering::AcqRel);
    }

    /// The oldest revision that a connected client is up to date with; None without clients.
    pub fn oldest_acked(&self) -> Option<u64> {
        self.snapshot().iter().map(|entry| entry.position().acked).min()
    }

    /// Waits for a revision, which the views must have reached.
    pub fn wait(&self, revision: u64) -> Wait {
        let shared = Arc::new(wait::Shared::new(revision));
        {
            let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.retain(|wait| wait.strong_count() > 0);
            waits.push(Arc::downgrade(&shared));
            self.open_waits.store(waits.len(), Ordering::SeqCst);
        }
        // A stream that moves from here on tells of itself; one that has moved before is seen here.
        for entry in self.snapshot() {
            shared.look(&entry, false);
        }
        Wait(shared)
    }

    /// Waits until every client that is connected now and that `revision` concerns has ACKed it, and lists those
    /// that have not. A client that refused has answered: it is listed, but not waited for. One that disconnects is
    /// neither.
    ///
    /// The views must have reached the revision before.
    pub async fn wait_acked(&self, revision: u64, timeout: Duration) -> Vec<Lagging> {
        let wait = self.wait(revision);
        let mut open = BTreeMap::new();
        let waiting = async {
            loop {
                let news = wait.news();
                for report in news.reports {
                    match report.standing {
                        Some(Standing::Pending | Standing::Refused) => {
                            drop(open.insert(report.stream, report))
                        }
                        _ => drop(open.remove(&report.stream)),
                    }
                }
                if news.complete && news.settled {
                    return;
                }
                wait.changed().await;
            }
        };
        // Late ones are listed.
        let _ = tokio::time::timeout(timeout, waiting).await;
        let lagging = |report: Report| Lagging {
            id: report.id.to_string(),
            reason: match report.error.is_empty() && report.standing == Some(Standing::Pending) {
                true => LagReason::Unanswered { acked: report.acked },
                false => LagReason::Nacked(report.error),
            },
        };
        open.into_values().map(lagging).collect()
    }

    /// A number for a new stream.
    pub(crate) fn next_stream(&self) -> u64 {
        self.streams.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A stream is authorized. It is listed until the guard is dropped.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn connect(&self, stream: u64, opening: Opening) -> Result<Connected<'_>, LimitReached> {
        let id = opening.id.clone();
        let position = Mutex::new(Position::new(opening.revision, Instant::now()));
        let client = opening.client.clone();
        let entry = Arc::new(Entry {
            stream,
            opening,
            connected_at: SystemTime::now(),
            position,
            reached: self.reached.clone(),
            wake: Notify::new(),
        });
        {
            let mut listed = self.listed();
            let Limits { xds_streams: all, xds_streams_per_client: each, .. } = self.gate.limits;
            let reached = |name, value, next| {
                self.gate.count(LimitReached { name, value, unit: "streams", who: id.to_string(), next })
            };
            if listed.entries.len() >= all {
                let next = "connect to another replica, or raise it with --limit";
                return Err(reached("xds-streams", all, next));
            }
            let of_client = listed.of_client.entry(client).or_default();
            if of_client.len() >= each {
                return Err(reached("xds-streams-per-client", each, "close some first"));
            }
            of_client.push(entry.clone());
            listed.entries.insert(stream, entry.clone());
        }
        let connected = Connected { registry: self, entry };
        connected.tell(|wait| wait.look(&connected.entry, true));
        self.departures.arrived(&connected.entry.opening);
        Ok(connected)
    }

    fn snapshot(&self) -> Vec<Arc<Entry>> {
        self.listed().entries.values().cloned().collect()
    }

    fn listed(&self) -> MutexGuard<'_, Listed> {
        // Nothing under the lock can leave it half done.
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
