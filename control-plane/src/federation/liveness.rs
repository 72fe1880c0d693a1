//! When each peer was last heard, by this replica.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

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
}

impl Heard {
    /// `connected`, `stale` or `disconnected`.
    pub fn state(&self, now_unix_ms: u64) -> &'static str {
        if self.connected {
            "connected"
        } else if self.last_unix_ms + DISCONNECTED_AFTER_MS > now_unix_ms {
            "stale"
        } else {
            "disconnected"
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

    /// What is known of a peer; a stream that stands counts as heard now.
    pub fn of(&self, peer: &str, now_unix_ms: u64) -> Option<Heard> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(peer)?.clone();
        if heard.connected {
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
        liveness.update("east", |heard| heard.connected = true);
        assert_eq!(liveness.of("east", 1_000).unwrap().state(1_000), "connected");
        liveness.update("east", |heard| {
            heard.connected = false;
            heard.last_unix_ms = 1_000;
        });
        let heard = liveness.of("east", 2_000).unwrap();
        assert_eq!((heard.last_unix_ms, heard.state(2_000)), (1_000, "stale"));
        assert_eq!(heard.state(1_000 + DISCONNECTED_AFTER_MS), "disconnected");
        liveness.forget("east");
        assert_eq!(liveness.of("east", 5), None);
    }
}
