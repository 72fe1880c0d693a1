//! When each peer was last heard, by this replica, and how far this cluster is behind it. The thresholds are functions
//! of a moment that is an argument.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// A peer whose heartbeats have stopped for so long is stuck, whatever its connection says.
pub const SILENT_AFTER_MS: u64 = 15_000;
/// A peer whose news have not been committed for so long: the stream stands, but does not lead anywhere.
pub const BEHIND_AFTER_MS: u64 = 30_000;
/// A peer that was not heard for this long is not merely slow.
pub const DISCONNECTED_AFTER_MS: u64 = 60_000;

/// What is known of one peer's stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// The stream stands; HTTP/2 keepalive ends it within 20 s of the peer's silence.
    pub connected: bool,
    /// Milliseconds since 1970; 0 if never.
    pub last_unix_ms: u64,
    /// Why the last attempt or stream ended, or why what it sent was refused.
    pub error: String,
    /// The peer sends heartbeats on this stream.
    pub beats: bool,
    /// The peer's newest revision, by its last heartbeat.
    pub revision: u64,
    /// Revision of the newest thing that it has sent us, by its own word.
    pub sent_revision: u64,
    /// Up to here what it has sent was taken over, durably.
    pub taken_revision: u64,
    /// Since when there is a difference between the two, in milliseconds since 1970.
    pub behind_since_unix_ms: Option<u64>,
}

impl Heard {
    /// The stream stands.
    pub fn on_connected(&mut self, now_unix_ms: u64) {
        *self = Self {
            connected: true,
            last_unix_ms: now_unix_ms,
            revision: self.revision,
            taken_revision: self.taken_revision,
            ..Self::default()
        };
    }

    /// It has ended, or could not be opened.
    pub fn on_disconnected(&mut self, reason: String, now_unix_ms: u64) {
        if self.connected && !self.beats {
            self.last_unix_ms = now_unix_ms;
        }
        self.connected = false;
        self.error = reason;
    }

    /// A heartbeat has come.
    pub fn on_heartbeat(&mut self, revision: u64, sent_revision: u64, now_unix_ms: u64) {
        self.beats = true;
        self.last_unix_ms = now_unix_ms;
        self.revision = revision;
        self.sent_revision = sent_revision;
        self.compare(now_unix_ms);
    }

    /// What it has sent, up to a revision, was taken over.
    pub fn on_taken(&mut self, revision: u64, now_unix_ms: u64) {
        self.taken_revision = self.taken_revision.max(revision);
        self.compare(now_unix_ms);
    }

    /// Revisions that it has sent and that this cluster has not committed.
    pub fn lag_revisions(&self) -> u64 {
        self.sent_revision.saturating_sub(self.taken_revision)
    }

    /// For how long it has been ahead of us.
    pub fn lag_ms(&self, now_unix_ms: u64) -> u64 {
        self.behind_since_unix_ms.map_or(0, |since| now_unix_ms.saturating_sub(since))
    }

    /// `connected`, `stale` or `disconnected`. A peer that is connected and stuck is stale.
    pub fn state(&self, now_unix_ms: u64) -> &'static str {
        let silent = now_unix_ms.saturating_sub(self.last_unix_ms);
        let stuck = (self.beats && silent > SILENT_AFTER_MS) || self.lag_ms(now_unix_ms) > BEHIND_AFTER_MS;
        match () {
            () if self.connected && !stuck => "connected",
            () if self.connected || silent < DISCONNECTED_AFTER_MS => "stale",
            () => "disconnected",
        }
    }

    fn compare(&mut self, now_unix_ms: u64) {
        if self.lag_revisions() == 0 {
            self.behind_since_unix_ms = None;
        } else {
            self.behind_since_unix_ms.get_or_insert(now_unix_ms);
        }
    }
}

/// By the peer's name.
#[derive(Debug, Default)]
pub struct Liveness(Mutex<BTreeMap<String, Heard>>);

impl Liveness {
    /// Changes what is known of a peer.
    pub fn update(&self, peer: &str, change: impl FnOnce(&mut Heard)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(all.entry(peer.to_owned()).or_default());
    }

    /// Forgets a peer: it was removed, or another replica listens to it now.
    pub fn forget(&self, peer: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(peer);
    }

    /// What is known of a peer. A stream that stands counts as heard now, if the peer sends no heartbeats.
    pub fn of(&self, peer: &str, now_unix_ms: u64) -> Option<Heard> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(peer)?.clone();
        if heard.connected && !heard.beats {
            heard.last_unix_ms = now_unix_ms;
        }
        Some(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_becomes_stale_and_then_disconnected() {
        let liveness = Liveness::default();
        assert_eq!(liveness.of("east", 5), None);
        liveness.update("east", |heard| heard.on_connected(500));
        assert_eq!(liveness.of("east", 1_000).unwrap().state(1_000), "connected");
        liveness.update("east", |heard| heard.on_disconnected("gone".to_owned(), 1_000));
        let heard = liveness.of("east", 2_000).unwrap();
        assert_eq!((heard.last_unix_ms, heard.state(2_000)), (1_000, "stale"));
        assert_eq!(heard.state(1_000 + DISCONNECTED_AFTER_MS), "disconnected");
        liveness.forget("east");
        assert_eq!(liveness.of("east", 5), None);
    }

    #[test]
    fn a_peer_that_is_connected_and_silent_is_stale() {
        let mut heard = Heard::default();
        heard.on_connected(0);
        assert_eq!(
            heard.state(1_000_000),
            "connected",
            "nothing is expected of one that never sent a heartbeat"
        );
        heard.on_heartbeat(7, 0, 1_000);
        assert_eq!(heard.state(1_000 + SILENT_AFTER_MS), "connected");
        assert_eq!(heard.state(1_001 + SILENT_AFTER_MS), "stale");
        heard.on_disconnected("no heartbeat".to_owned(), 20_000);
        assert_eq!(heard.state(1_000 + DISCONNECTED_AFTER_MS), "disconnected", "counted from the last word");
    }

    #[test]
    fn a_peer_whose_news_are_not_committed_is_behind_and_then_stale() {
        let mut heard = Heard::default();
        heard.on_connected(0);
        heard.on_heartbeat(9, 8, 1_000);
        assert_eq!((heard.lag_revisions(), heard.lag_ms(3_000)), (8, 2_000));
        heard.on_taken(6, 2_000);
        assert_eq!((heard.lag_revisions(), heard.lag_ms(3_000)), (2, 2_000), "not all of it");
        heard.on_heartbeat(9, 8, 31_000);
        assert_eq!((heard.state(31_000), heard.state(31_001)), ("connected", "stale"));
        heard.on_taken(8, 32_000);
        assert_eq!((heard.lag_revisions(), heard.lag_ms(40_000), heard.state(40_000)), (0, 0, "connected"));
    }

    #[test]
    fn a_new_stream_owes_nothing_for_the_old_one() {
        let mut heard = Heard::default();
        heard.on_connected(0);
        heard.on_heartbeat(9, 8, 1_000);
        heard.on_connected(100_000);
        assert_eq!((heard.state(200_000), heard.lag_ms(200_000), heard.revision), ("connected", 0, 9));
    }
}
