//! Resources with a time to live, and their heartbeats.
//!
//! A client drops such a resource when it has not heard of it for its time; so a server that is gone, or that can't
//! be reached, leaves no trace. The session sends a heartbeat after a third of the time: two may be late.
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#ttl>.
//!
//! A heartbeat is a response of its own. It waits for no answer to others, and its own answer says nothing about
//! configuration: a client that takes its time to warm a cluster must not lose it meanwhile.

use std::{sync::Arc, time::Duration};

use super::{Protocol, Response, Session, known::Known, type_state::TypeState};
use crate::xds::Encoded;

/// Heartbeats in the time that a resource lives.
const BEATS: u32 = 3;

impl Session {
    /// It is this late: the time since any fixed moment, and not before the time that was given last.
    pub fn on_time(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// When [`next_response`](Self::next_response) has something to send although nothing happens: give that time
    /// to [`on_time`](Self::on_time) then.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.types.iter().filter_map(TypeState::next_beat).min()
    }

    /// The heartbeats of a type that are due.
    pub(super) fn heartbeat(&mut self, index: usize) -> Option<Response> {
        let now = self.now;
        let state = &mut self.types[index];
        if state.next_beat().is_none_or(|at| at > now) {
            return None;
        }
        let due = state.beats_due(now);
        if due.is_empty() {
            return None;
        }
        if state.is_full() {
            // What is not in such a response is gone, so it is the whole.
            state.owed.extend(due.into_iter().map(|resource| resource.name.clone()));
            return None;
        }
        self.nonces += 1;
        let nonce = format!("{:x}-{}", self.stream, self.nonces);
        state.last_nonce.clone_from(&nonce);
        Some(Response {
            type_url: state.type_url.clone(),
            nonce,
            // To a SotW client this is the version of what it has, and nothing new.
            revision: if self.protocol == Protocol::Sotw { state.accepted } else { self.revision },
            prolonged: due,
            wrapped: true,
            ..Response::default()
        })
    }
}

impl TypeState {
    /// A resource goes out, at this time.
    pub(super) fn beat_after(&mut self, resource: &Encoded, now: Duration) {
        match resource.ttl.filter(|_| self.times) {
            Some(ttl) => drop(self.beats.insert(resource.name.clone(), now + ttl / BEATS)),
            None => drop(self.beats.remove(&resource.name)),
        }
    }

    /// A reconnecting client may have something whose time runs: it is told at once.
    pub(super) fn beat_held<'a>(&mut self, names: impl Iterator<Item = &'a str>, now: Duration) {
        for name in names {
            if let Some((name, resource)) = self.view.get_key_value(name)
                && self.times
                && resource.ttl.is_some()
            {
                self.beats.insert(name.clone(), now);
            }
        }
    }

    /// When a heartbeat may go, if any has to.
    fn next_beat(&self) -> Option<Duration> {
        self.beats.values().min().copied().filter(|_| self.may_beat())
    }

    /// To a SotW client a heartbeat has the version of what it has accepted, so it is known what that is.
    fn may_beat(&self) -> bool {
        self.protocol == Protocol::Delta || self.in_flight.is_none()
    }

    /// What the client has, has accepted or is about to, and is to be told to keep. What is to be replaced or removed
    /// when others are ready is kept until then.
    fn beats_due(&mut self, now: Duration) -> Vec<Arc<Encoded>> {
        let due: Vec<_> =
            self.beats.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        let mut again = Vec::new();
        for name in due {
            let held = match self.known(&name).filter(|_| self.wants(&name)) {
                Some(Known::Sent(resource) | Known::Uncertain(Some(resource))) => Some(resource),
                Some(Known::Told(version)) => {
                    self.view.get(&name).filter(|current| current.version == version).cloned()
                }
                Some(Known::Absent | Known::Uncertain(None)) | None => None,
            };
            match held.and_then(|resource| Some((resource.ttl?, resource))) {
                Some((ttl, resource)) => {
                    self.beats.insert(name, now + ttl / BEATS);
                    again.push(resource);
                }
                None => drop(self.beats.remove(&name)),
            }
        }
        again
    }
}
