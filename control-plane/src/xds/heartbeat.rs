//! Heartbeats of one stream. Pure: requests and the time in, responses out.
//!
//! HTTP/2 pings show that a connection is alive; whether the program behind it still takes configuration is shown
//! only by its answers. A client that subscribes to `isthmus.agent.v1.Heartbeat` is sent one now and then, with the
//! revisions of the moment, and ACKs it like any resource. At most one is unanswered, so that a client that doesn't
//! read costs nothing more. A heartbeat is not part of a view: it holds up nobody who waits for a revision.

use std::time::{Duration, Instant};

use xds_proto::isthmus::agent::v1::Heartbeat;

use super::{
    Encoded,
    session::{Interest, Request, Response},
};

/// Type of the resource.
pub const TYPE_URL: &str = "type.googleapis.com/isthmus.agent.v1.Heartbeat";
/// Name of the resource.
pub const NAME: &str = "heartbeat";
/// From one to the next, unless told otherwise.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// The heartbeats of one stream.
#[derive(Debug)]
pub struct Heartbeats {
    stream: u64,
    every: Duration,
    subscribed: bool,
    sequence: u64,
    due: Option<Instant>,
    unanswered: Option<(String, Instant)>,
}

impl Heartbeats {
    /// Of a stream that has not asked for any.
    pub fn new(stream: u64, every: Duration) -> Self {
        Self { stream, every, subscribed: false, sequence: 0, due: None, unanswered: None }
    }

    /// Takes a request of the type. A refusal is an answer too: the client is alive.
    pub fn on_request(&mut self, request: &Request, now: Instant) {
        let wants = match &request.interest {
            Interest::Exactly(names) => !(self.subscribed && names.is_empty()),
            Interest::Change { subscribe, unsubscribe } => {
                let named = |names: &[String]| names.iter().any(|name| name == NAME || name == "*");
                let first = !self.subscribed && request.nonce.is_empty() && subscribe.is_empty();
                (self.subscribed || named(subscribe) || first) && !named(unsubscribe)
            }
        };
        if self.unanswered.as_ref().is_some_and(|(nonce, _)| *nonce == request.nonce) {
            self.unanswered = None;
            self.due = Some(now + self.every);
        }
        if wants && !self.subscribed {
            self.due = Some(now);
        }
        if !wants {
            (self.due, self.unanswered) = (None, None);
        }
        self.subscribed = wants;
    }

    /// When the next one is to be sent; None while one is unanswered or nobody wants any.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Since when one is unanswered.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered.as_ref().map(|(_, at)| *at)
    }

    /// The one that is due.
    pub fn next(&mut self, now: Instant, revision: u64, sent_revision: u64) -> Response {
        self.sequence += 1;
        self.due = None;
        let nonce = format!("{:x}-h{}", self.stream, self.sequence);
        self.unanswered = Some((nonce.clone(), now));
        let interval_ms = u32::try_from(self.every.as_millis()).unwrap_or(u32::MAX);
        let heartbeat = Heartbeat { sequence: self.sequence, revision, sent_revision, interval_ms };
        Response {
            type_url: TYPE_URL.into(),
            nonce,
            revision,
            resources: vec![Encoded::new(NAME, &heartbeat).into()],
            ..Response::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn request(interest: Interest, nonce: &str) -> Request {
        Request {
            type_url: TYPE_URL.to_owned(),
            interest,
            nonce: nonce.to_owned(),
            error: None,
            initial_versions: BTreeMap::new(),
            seen: None,
        }
    }

    fn delta(subscribe: &[&str], unsubscribe: &[&str], nonce: &str) -> Request {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        request(Interest::Change { subscribe: own(subscribe), unsubscribe: own(unsubscribe) }, nonce)
    }

    #[test]
    fn the_type_url_is_that_of_the_message() {
        assert_eq!(TYPE_URL, xds_proto::type_url::<Heartbeat>());
    }

    #[test]
    fn one_is_sent_at_once_and_the_next_after_its_answer() {
        let start = Instant::now();
        let mut beats = Heartbeats::new(0xa, INTERVAL);
        assert_eq!(beats.due(), None, "nobody has asked");
        beats.on_request(&delta(&["*"], &[], ""), start);
        assert_eq!(beats.due(), Some(start));
        let sent = beats.next(start, 7, 6);
        assert_eq!((sent.nonce.as_str(), sent.revision), ("a-h1", 7));
        assert_eq!((beats.due(), beats.unanswered_since()), (None, Some(start)));
        beats.on_request(&delta(&[], &[], "a-h0"), start);
        assert_eq!(beats.due(), None, "that was no answer to it");
        beats.on_request(&delta(&[], &[], "a-h1"), start);
        assert_eq!((beats.due(), beats.unanswered_since()), (Some(start + INTERVAL), None));
    }

    #[test]
    fn state_of_the_world_clients_have_them_too() {
        let start = Instant::now();
        let mut beats = Heartbeats::new(1, INTERVAL);
        beats.on_request(&request(Interest::Exactly(vec![NAME.to_owned()]), ""), start);
        let sent = beats.next(start, 1, 1);
        beats.on_request(&request(Interest::Exactly(vec![NAME.to_owned()]), &sent.nonce), start);
        assert_eq!(beats.due(), Some(start + INTERVAL));
        beats.on_request(&request(Interest::Exactly(Vec::new()), &sent.nonce), start);
        assert_eq!(beats.due(), None);
    }

    #[test]
    fn who_unsubscribes_gets_none() {
        let start = Instant::now();
        let mut beats = Heartbeats::new(1, INTERVAL);
        beats.on_request(&delta(&[NAME], &[], ""), start);
        beats.next(start, 1, 1);
        beats.on_request(&delta(&[], &[NAME], ""), start);
        assert_eq!((beats.due(), beats.unanswered_since()), (None, None));
        beats.on_request(&delta(&[NAME], &[], ""), start);
        assert_eq!(beats.due(), Some(start));
    }
}
