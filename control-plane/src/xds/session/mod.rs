//! One stream's half of xDS, pure: requests and model changes in, responses and events out.
//!
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>. The same machine serves
//! state-of-the-world and incremental streams; [`Protocol`] decides only where the two really differ: what
//! a request says of the subscription, whether a response is the full state, and what becomes of a stale nonce.
//!
//! The server pulls: [`Session::next_response`] makes one response when there is room for one. What changes
//! meanwhile is not queued, so a client that doesn't read costs one response per type, and then gets the newest state.
//!
//! A type URL that nobody serves does not end the stream. Its subscription is kept like any other, and is answered
//! once: each name has a `resource_errors` entry that says so, and in delta is removed beside, for clients that know
//! nothing of such entries.

mod alias;
mod build;
pub mod fuzz;
mod inspect;
mod known;
mod order;
mod reach;
mod request;
mod response;
mod subscribe;
mod time;
mod type_state;

use std::{sync::Arc, time::Duration};

pub use inspect::{Holding, Inspection};
pub use request::{Interest, Refusal, Request, mark, marked};
pub use response::Response;
pub use type_state::Nacked;

use crate::shown;

use super::{
    ResourceSet,
    kinds::{interned, is_known, kind},
};
use type_state::{InFlight, TypeState};

/// The name that stands for every resource of a type.
pub const WILDCARD: &str = "*";

/// The feature by which a SotW client says that resources may be wrapped, so that they can have a time to live.
pub const RESOURCE_IN_SOTW: &str = "xds.config.resource-in-sotw";

/// The variant of the protocol that a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// State of the world: `StreamAggregatedResources` and its like.
    Sotw,
    /// Incremental: `DeltaAggregatedResources` and its like.
    Delta,
}

impl Protocol {
    /// `sotw` or `delta`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sotw => "sotw",
            Self::Delta => "delta",
        }
    }
}

/// What one stream may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names subscribed to, over all types. Default 100,000.
    pub names: usize,
    /// Bytes of one name. Default 2,048.
    pub name_bytes: usize,
    /// Types subscribed to. Default 64.
    pub types: usize,
    /// Versions that a reconnecting client says it holds, of one type. Default 1,000,000.
    pub initial_versions: usize,
    /// A response that may be divided is, at this size; the next part follows its ACK. Default 3 MiB: gRPC
    /// clients refuse messages above 4 MiB unless told otherwise. A single larger resource, and the full
    /// state that SotW asks of LDS and CDS, can't be divided.
    pub response_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 100_000,
            name_bytes: 2_048,
            types: 64,
            initial_versions: 1_000_000,
            response_bytes: 3 << 20,
        }
    }
}

/// The client asked for more than a stream may have. The stream ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// See [`Limits::names`].
    #[error("subscribed to more than {limit} names on one stream")]
    TooManyNames {
        /// The limit.
        limit: usize,
    },
    /// See [`Limits::name_bytes`].
    #[error("a resource name of type {type_url} has {bytes} bytes, {limit} are allowed")]
    NameTooLong {
        /// Type of the request.
        type_url: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// See [`Limits::types`].
    #[error("subscribed to more than {limit} types on one stream")]
    TooManyTypes {
        /// The limit.
        limit: usize,
    },
    /// See [`Limits::initial_versions`].
    #[error("initial_resource_versions of type {type_url} has {count} entries, {limit} are allowed")]
    TooManyVersions {
        /// Type of the request.
        type_url: String,
        /// Its length.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// A request without a type on an aggregated stream.
    #[error("type_url is empty")]
    NoType,
}

/// What a request meant, for the registry and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The client accepted a response.
    Acked {
        /// Its type.
        type_url: Arc<str>,
        /// The revision that it was made from.
        revision: u64,
    },
    /// The client refused a response; it stays on what it had.
    Nacked {
        /// Its type.
        type_url: Arc<str>,
        /// The revision that it was made from.
        revision: u64,
        /// The client's words.
        error: String,
        /// What was new or changed in the response, so what may be at fault.
        resources: Vec<Arc<str>>,
    },
    /// An answer to a response that is not the last one. In SotW the whole request was ignored, in delta
    /// its subscription changes were honoured.
    StaleNonce {
        /// Its type.
        type_url: Arc<str>,
    },
    /// First request of a type that this control plane does not have. See the module on what happens to it.
    UnknownType {
        /// The type.
        type_url: Arc<str>,
    },
}

/// Where one type of one stream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeStatus<'a> {
    /// Full type URL.
    pub type_url: &'a Arc<str>,
    /// Revision of the last response; zero if none was needed.
    pub sent_revision: u64,
    /// Up to this revision everything was answered, by ACK or NACK.
    pub settled_revision: u64,
    /// Up to this revision everything was ACKed.
    pub acked_revision: u64,
    /// The refusal that still stands.
    pub nacked: Option<&'a Nacked>,
    /// There is something to send.
    pub unsent: bool,
    /// A response is not answered.
    pub in_flight: bool,
}

/// One stream.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    stream: u64,
    limits: Limits,
    nonces: u64,
    set: Arc<ResourceSet>,
    revision: u64,
    /// See [`Session::on_time`].
    now: Duration,
    /// A SotW client can be told how long a resource lives.
    wraps: bool,
    /// See [`Session::reopened`].
    reopening: bool,
    /// In the order in which types are served.
    types: Vec<TypeState>,
}

impl Session {
    /// A stream that has said nothing yet. `stream` makes its nonces differ from those of other streams; `set` is the
    /// client's view at `revision` (which may be newer than the view, if that had not changed since).
    pub fn new(
        protocol: Protocol,
        stream: u64,
        limits: Limits,
        set: Arc<ResourceSet>,
        revision: u64,
    ) -> Self {
        Self {
            protocol,
            stream,
            limits,
            nonces: 0,
            set,
            revision,
            now: Duration::ZERO,
            wraps: false,
            reopening: false,
            types: Vec::new(),
        }
    }

    /// The same, for a client with these features: [`RESOURCE_IN_SOTW`] makes a difference.
    #[must_use]
    pub fn for_features<S: AsRef<str>>(mut self, features: impl IntoIterator<Item = S>) -> Self {
        self.wraps = features.into_iter().any(|feature| feature.as_ref() == RESOURCE_IN_SOTW);
        self
    }

    /// Takes a request. An error ends the stream: the client went beyond its limits.
    pub fn on_request(&mut self, request: Request) -> Result<Vec<Event>, SessionError> {
        self.check(&request)?;
        let mut events = Vec::new();
        let (index, first) = match self.find(&request.type_url) {
            Some(index) => (index, false),
            None => (self.open(&request.type_url, &mut events)?, true),
        };
        let delta = self.protocol == Protocol::Delta;
        let state = &mut self.types[index];
        if let Some(in_flight) = state.in_flight.take_if(|sent| sent.nonce == request.nonce) {
            events.push(answer(state, in_flight, request.error));
        } else if !request.nonce.is_empty() && request.nonce != state.last_nonce {
            events.push(Event::StaleNonce { type_url: state.type_url.clone() });
            if !delta && !first {
                return Ok(events);
            }
        }
        let answering = state.first_answer;
        // Whoever asks for what nobody serves, or may serve later, is answered, if only by that.
        state.first_answer |= first && (state.kind.aliases || !state.kind.is_known());
        match request.interest {
            Interest::Exactly(names) => {
                let wanted = |name: &str| names.iter().any(|wanted| wanted == name);
                state.reach_for(&self.set, names.iter().map(String::as_str), |name| !wanted(name));
                let view = state.view.clone();
                state.set_interest(&names, Some(&view));
            }
            Interest::Change { mut subscribe, mut unsubscribe } => {
                if state.kind.aliases {
                    state.resolve(&self.set, &mut subscribe, &mut unsubscribe);
                }
                let dropped = |name: &str| unsubscribe.iter().any(|gone| gone == name);
                state.reach_for(&self.set, subscribe.iter().map(String::as_str), dropped);
                let view = state.view.clone();
                if first {
                    state.beat_held(request.initial_versions.keys().map(String::as_str), self.now);
                    state.hold(request.initial_versions, Some(&view));
                }
                state.change_interest(&subscribe, &unsubscribe, first, Some(&view));
                if first && !state.removes.is_empty() {
                    self.reopening = true;
                    state.removed_at = self.revision;
                }
            }
        }
        if state.first_answer && !answering {
            state.changed_at = self.revision;
        }
        let view = state.view.clone();
        state.rebase(Some(&view));
        let limit = self.limits.names;
        if self.types.iter().map(|state| state.names.len() + state.asked.len()).sum::<usize>() > limit {
            return Err(SessionError::TooManyNames { limit });
        }
        Ok(events)
    }

    /// The client's view is another one, or the same one at a newer revision.
    pub fn on_snapshot(&mut self, set: Arc<ResourceSet>, revision: u64) {
        for index in 0..self.types.len() {
            (self.types[index].settled, self.types[index].made) = (self.settled(index), self.made(index));
        }
        let old = std::mem::replace(&mut self.set, set);
        self.revision = self.revision.max(revision);
        for state in &mut self.types {
            state.on_change(&old, &self.set, self.revision);
        }
        for index in 0..self.types.len() {
            if self.types[index].in_flight.is_none() {
                continue;
            }
            let now = self.covers(index);
            // What was not complete when it was sent does not become so by something else going away.
            if let Some(InFlight { covers, .. }) = &mut self.types[index].in_flight {
                covers.all = covers.all.map(|before| now.all.unwrap_or(before));
                covers.but_removals = covers.but_removals.map(|before| now.but_removals.unwrap_or(before));
            }
        }
    }

    /// A reconnecting client has had the time to say what it subscribes to, type by type.
    ///
    /// What it holds of a type and what no longer exists is removed last, as always; but what it refers to
    /// that *with* is only known when it has subscribed to the other types as well. So after a request with initial versions such
    /// removals wait for this call.
    pub fn reopened(&mut self) {
        self.reopening = false;
    }

    /// Whether [`reopened`](Self::reopened) is waited for.
    pub fn is_reopening(&self) -> bool {
        self.reopening
    }

    /// The next thing to be sent, if there is any and its time has come. Call it until it has nothing more to say.
    pub fn next_response(&mut self) -> Option<Response> {
        let heartbeat = (0..self.types.len()).find_map(|index| self.heartbeat(index));
        if heartbeat.is_some() {
            return heartbeat;
        }
        loop {
            let unsent = |session: &Self| session.types.iter().filter(|state| state.unsent(true)).count();
            let before = unsent(self);
            let response = (0..self.types.len()).find_map(|index| self.respond(index));
            // What needs no words is done without; that may be what an earlier type has waited for.
            if response.is_some() || unsent(self) == before {
                return response;
            }
        }
    }

    /// Where each type stands.
    pub fn status(&self) -> Vec<TypeStatus<'_>> {
        self.statuses().collect()
    }

    /// The same, one after the other.
    pub fn statuses(&self) -> impl Iterator<Item = TypeStatus<'_>> + Clone {
        self.types.iter().enumerate().map(|(index, state)| {
            let settled_revision = self.settled(index);
            let refused = state.nacked.as_ref().map_or(u64::MAX, |nacked| nacked.since.saturating_sub(1));
            TypeStatus {
                type_url: &state.type_url,
                sent_revision: state.sent_revision,
                settled_revision,
                acked_revision: settled_revision.min(refused),
                nacked: state.nacked.as_ref(),
                unsent: state.unsent(true),
                in_flight: state.in_flight.is_some(),
            }
        })
    }

    /// The variant of the protocol that it speaks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The newest revision that the session knows of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the client has asked for a type on this stream.
    pub fn knows(&self, type_url: &str) -> bool {
        self.find(type_url).is_some()
    }

    fn check(&self, request: &Request) -> Result<(), SessionError> {
        let Limits { name_bytes: limit, initial_versions, .. } = self.limits;
        if request.type_url.is_empty() {
            return Err(SessionError::NoType);
        }
        let type_url = || shown::word(&request.type_url).into_owned();
        let named = match &request.interest {
            Interest::Exactly(names) => names,
            Interest::Change { subscribe, .. } => subscribe,
        };
        let longest = named.iter().map(String::len).chain([request.type_url.len()]).max().unwrap_or(0);
        if longest > limit {
            return Err(SessionError::NameTooLong { type_url: type_url(), bytes: longest, limit });
        }
        let count = request.initial_versions.len();
        if count > initial_versions {
            return Err(SessionError::TooManyVersions {
                type_url: type_url(),
                count,
                limit: initial_versions,
            });
        }
        Ok(())
    }

    fn find(&self, type_url: &str) -> Option<usize> {
        self.types.iter().position(|state| &*state.type_url == type_url)
    }

    fn open(&mut self, type_url: &str, events: &mut Vec<Event>) -> Result<usize, SessionError> {
        let limit = self.limits.types;
        if self.types.len() >= limit {
            return Err(SessionError::TooManyTypes { limit });
        }
        let times = self.protocol == Protocol::Delta || self.wraps;
        let mut state = TypeState::new(interned(type_url), kind(type_url), self.protocol, times);
        state.see(&self.set);
        if !is_known(type_url) {
            events.push(Event::UnknownType { type_url: state.type_url.clone() });
        }
        let index = self.types.partition_point(|other| other.kind.rank <= state.kind.rank);
        self.types.insert(index, state);
        Ok(index)
    }
}

fn answer(state: &mut TypeState, in_flight: InFlight, error: Option<Refusal>) -> Event {
    let (type_url, revision) = (state.type_url.clone(), in_flight.revision);
    match error {
        None => {
            state.on_ack(in_flight);
            Event::Acked { type_url, revision }
        }
        Some(refusal) => {
            let error = refusal.message;
            let view = state.view.clone();
            let resources = state.on_nack(in_flight, error.clone(), Some(&view));
            Event::Nacked { type_url, revision, error, resources }
        }
    }
}

#[cfg(test)]
mod tests;
