//! What a stream tells the registry of itself, and is told by it.

use std::{
    sync::{Arc, PoisonError, Weak, atomic::Ordering},
    time::{Instant, SystemTime},
};

use super::{Due, Entry, MAX_ERROR_BYTES, Subscribers, wait};
use crate::xds::session::TypeStatus;

/// A stream that is listed.
#[derive(Debug)]
pub(crate) struct Connected<'a> {
    pub(super) registry: &'a Subscribers,
    pub(super) entry: Arc<Entry>,
}

impl Connected<'_> {
    /// The client was served first from this revision, which may be newer than what it opened with.
    pub(crate) fn opened(&self, revision: u64) {
        self.entry.position().open_at(revision);
    }

    /// What the stream has to look at, if it was told of anything since it looked.
    pub(crate) fn due(&self) -> Option<Due> {
        self.entry.position().due
    }

    /// Returns when there may be something to look at.
    pub(crate) async fn woken(&self) {
        self.entry.wake.notified().await;
    }

    /// Takes over where the session stands; `revision` is the newest that it has seen.
    pub(crate) fn update<'a>(&self, statuses: impl Iterator<Item = TypeStatus<'a>> + Clone, revision: u64) {
        let moved = {
            let mut position = self.entry.position();
            let before = (position.seen, position.settled, position.nacked);
            let after = position.update(statuses, revision, Instant::now);
            for before in position.converged() {
                self.registry.metrics.converged(before, Instant::now());
            }
            before != after
        };
        if moved {
            self.tell(|wait| wait.look(&self.entry, false));
        }
    }

    /// The client's view was one thing at the revision `before` and is another at `now`.
    pub(in crate::xds) fn view_changed(&self, before: u64, now: u64) {
        self.entry.position().changes.record(before, now);
    }

    /// The client said something.
    pub(in crate::xds) fn heard(&self, now: Instant) {
        self.entry.position().heard = now;
    }

    /// Since when a heartbeat is unanswered.
    pub(in crate::xds) fn heartbeat(&self, unanswered_since: Option<Instant>) {
        self.entry.position().heartbeat_since = unanswered_since;
    }

    /// The newest revision that the client has everything of, or is about to be sent.
    pub(crate) fn seen_revision(&self) -> u64 {
        self.entry.position().seen
    }

    /// Revision of the newest response.
    pub(in crate::xds) fn sent_revision(&self) -> u64 {
        self.entry.position().sent
    }

    /// Counts a refusal.
    pub(in crate::xds) fn nacked(&self, mut error: String) {
        error.truncate(error.floor_char_boundary(MAX_ERROR_BYTES));
        let mut position = self.entry.position();
        position.nacks += 1;
        position.last_error = Some(error);
    }

    pub(super) fn tell(&self, what: impl Fn(&wait::Shared)) {
        if self.registry.open_waits.load(Ordering::SeqCst) == 0 {
            return;
        }
        let open: Vec<_> = {
            let mut waits = self.registry.waits.lock().unwrap_or_else(PoisonError::into_inner);
            let open = waits.iter().filter_map(Weak::upgrade).collect();
            waits.retain(|wait| wait.strong_count() > 0);
            self.registry.open_waits.store(waits.len(), Ordering::SeqCst);
            open
        };
        open.iter().for_each(|wait: &Arc<wait::Shared>| what(wait));
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.registry.departures.left(&self.entry.opening, SystemTime::now());
        {
            let mut listed = self.registry.listed();
            listed.entries.remove(&self.entry.stream);
            let client = &self.entry.opening.client;
            if let Some(open) = listed.of_client.get_mut(client) {
                open.retain(|entry| entry.stream != self.entry.stream);
                if open.is_empty() {
                    listed.of_client.remove(client);
                }
            }
        }
        self.tell(|wait| wait.closed(&self.entry));
    }
}
