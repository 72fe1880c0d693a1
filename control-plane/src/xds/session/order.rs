//! Make before break: when a type may be sent, as seen from the others.

use super::Session;

/// What of a type may go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gates {
    /// Changes, and the first answer to a wildcard.
    pub(super) adds: bool,
    pub(super) removes: bool,
}

impl Session {
    /// Compares revisions rather than asking whether the others are idle: endpoints that change all the time must
    /// not keep a route from being sent.
    pub(super) fn gates(&self, index: usize) -> Gates {
        let state = &self.types[index];
        let adds = self.all(state.kind.waits_for, |other| self.made(other) >= state.changed_at);
        let removes = if state.kind.referenced_by.is_empty() {
            // Nothing can break by it. It goes with the changes: what is removed may have to make room for what
            // is added (two listeners on one port).
            adds
        } else {
            !self.reopening
                && !self.removals_held(index)
                && self.all(state.kind.referenced_by, |other| self.settled(other) >= state.removed_at)
        };
        Gates { adds, removes }
    }

    /// A client that refused the configuration of a referring type still runs the old one, which needs what it
    /// refers to: removals wait until it has accepted a newer one, however long that takes.
    pub(super) fn removals_held(&self, index: usize) -> bool {
        !self.all(self.types[index].kind.referenced_by, |other| {
            let state = &self.types[other];
            state.rejected.is_empty() && (state.removes.is_empty() || !self.removals_held(other))
        })
    }

    /// Up to which revision the client has answered everything of a type but its removals.
    pub(super) fn made(&self, index: usize) -> u64 {
        let state = &self.types[index];
        if state.in_flight.is_some() || state.unsent(false) { state.made } else { self.revision }
    }

    /// Up to which revision the client has answered everything of a type.
    pub(super) fn settled(&self, index: usize) -> u64 {
        let state = &self.types[index];
        if state.in_flight.is_none() && !state.unsent(true) {
            // Nearly always: what is held need not be found out.
            return self.revision;
        }
        if state.in_flight.is_some() || state.unsent(!self.removals_held(index)) {
            state.settled
        } else {
            self.revision
        }
    }

    /// Types that the client does not subscribe to stand in nobody's way.
    fn all(&self, type_urls: &[&str], holds: impl Fn(usize) -> bool) -> bool {
        type_urls.iter().filter_map(|type_url| self.find(type_url)).all(holds)
    }
}
