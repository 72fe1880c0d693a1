//! What a replica knows of being in touch: when it heard a leader, whether a majority can be reached, and whether
//! it has been removed. Written by the raft door and by `election`, read by writes, reads and status.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::watch, time::Instant};

/// A majority of the voters can't be reached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no quorum: {reachable} of {voters} replicas reachable, since {}; writes are refused", rfc3339(*since))]
pub struct NoQuorum {
    /// Voters that answer, this replica among them if it is one.
    pub reachable: usize,
    #[allow(missing_docs)]
    pub voters: usize,
    /// When the last sign of a leader, or of a majority, came.
    pub since: SystemTime,
}

fn rfc3339(at: SystemTime) -> String {
    let seconds = OffsetDateTime::from(at).replace_nanosecond(0);
    seconds.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// See the module's comment.
#[derive(Debug)]
pub(crate) struct Contact {
    started: Instant,
    heard: Mutex<Option<Instant>>,
    roster: Mutex<Roster>,
    quorum: watch::Sender<Option<NoQuorum>>,
    removed: watch::Sender<Option<String>>,
}

/// Who belongs to the group, by the records and by raft's own membership.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    /// Named by either.
    pub(crate) members: BTreeSet<u64>,
    /// The greatest id that was ever given out.
    pub(crate) last: u64,
}

impl Roster {
    /// Ids are never used again, so an old one that is not there was removed. One that is not known yet is of the
    /// future: this replica lags.
    pub(crate) fn has_removed(&self, id: u64) -> bool {
        id != 0 && id <= self.last && !self.members.contains(&id)
    }
}

impl Contact {
    /// Nothing was heard yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            heard: Mutex::new(None),
            roster: Mutex::default(),
            quorum: watch::Sender::new(None),
            removed: watch::Sender::new(None),
        }
    }

    /// A leader has spoken, or, on a leader, a majority has answered: there is a quorum, as far as that tells.
    pub(crate) fn heard(&self, at: Instant) {
        let mut heard = lock(&self.heard);
        *heard = (*heard).max(Some(at));
        drop(heard);
        self.set_quorum(None);
    }

    /// How long it is since a leader has spoken; since the start if none has.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(lock(&self.heard).unwrap_or(self.started))
    }

    /// Whether a leader has spoken within `lease`.
    pub(crate) fn hears_leader(&self, now: Instant, lease: Duration) -> bool {
        lock(&self.heard).is_some_and(|heard| now.saturating_duration_since(heard) < lease)
    }

    /// None while a majority can be reached, as far as is known.
    pub(crate) fn no_quorum(&self) -> Option<NoQuorum> {
        self.quorum.borrow().clone()
    }

    /// The same, as it changes.
    pub(crate) fn quorum(&self) -> watch::Receiver<Option<NoQuorum>> {
        self.quorum.subscribe()
    }

    /// Remembers whether a majority can be reached. It was lost when it was found lost first.
    pub(crate) fn set_quorum(&self, lost: Option<NoQuorum>) {
        self.quorum.send_if_modified(|current| {
            let lost = match (&*current, lost) {
                (Some(before), Some(now)) => Some(NoQuorum { since: before.since.min(now.since), ..now }),
                (_, lost) => lost,
            };
            let changed = *current != lost;
            if changed {
                match &lost {
                    Some(lost) => tracing::warn!("{lost}"),
                    None => tracing::info!("a quorum is reachable"),
                }
                *current = lost;
            }
            changed
        });
    }

    /// Resolves once no majority can be reached.
    pub(crate) async fn quorum_lost(&self) -> NoQuorum {
        let mut quorum = self.quorum.subscribe();
        // The sender is this, so it is there.
        let lost = quorum.wait_for(Option::is_some).await.ok().and_then(|lost| lost.clone());
        match lost {
            Some(lost) => lost,
            None => std::future::pending().await,
        }
    }

    /// Whether a replica was removed from the group.
    pub(crate) fn has_removed(&self, id: u64) -> bool {
        lock(&self.roster).has_removed(id)
    }

    pub(crate) fn set_roster(&self, roster: Roster) {
        *lock(&self.roster) = roster;
    }

    /// This replica does not belong to the group any more.
    pub(crate) fn set_removed(&self, reason: &str) {
        self.removed.send_if_modified(|removed| {
            let first = removed.is_none();
            removed.get_or_insert_with(|| reason.to_owned());
            first
        });
    }

    /// Resolves once this replica is known to have been removed, with the sentence that says so.
    pub(crate) async fn removed(&self) -> String {
        let mut removed = self.removed.subscribe();
        let reason = removed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// The same, now.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.borrow().is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values: there is no half-done change that a panic could leave.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_id_that_is_gone_was_removed_and_one_of_the_future_was_not() {
        let roster = Roster { members: [1, 3].into(), last: 3 };
        assert!(roster.has_removed(2));
        assert!(!roster.has_removed(3) && !roster.has_removed(4) && !roster.has_removed(0));
        assert!(!Roster::default().has_removed(1), "who has no state yet knows nobody");
    }

    #[tokio::test]
    async fn a_loss_keeps_its_beginning_and_says_what_is_refused() {
        let contact = Contact::new(Instant::now());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        contact.set_quorum(Some(NoQuorum { reachable: 1, voters: 3, since: at(1_790_000_000) }));
        contact.set_quorum(Some(NoQuorum { reachable: 1, voters: 3, since: at(1_790_000_009) }));
        let lost = contact.quorum_lost().await;
        assert_eq!(
            lost.to_string(),
            "no quorum: 1 of 3 replicas reachable, since 2026-09-21T14:13:20Z; writes are refused"
        );
        contact.set_quorum(None);
        assert_eq!(contact.no_quorum(), None);
    }

    #[test]
    fn silence_counts_from_the_start_until_a_leader_speaks() {
        let start = Instant::now();
        let contact = Contact::new(start);
        let at = |millis| start + Duration::from_millis(millis);
        assert!(!contact.hears_leader(start, Duration::from_secs(9)));
        assert_eq!(contact.silence(at(300)), Duration::from_millis(300));
        contact.heard(at(400));
        contact.heard(at(350));
        assert_eq!(contact.silence(at(500)), Duration::from_millis(100));
        assert!(contact.hears_leader(at(500), Duration::from_millis(101)));
    }
}
