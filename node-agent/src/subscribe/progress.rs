//! How the agent's stream fares: for its status and its metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::watch;
use xds_client::Status;
use xds_proto::isthmus::agent::v1::Heartbeat;

use super::TYPES;
use crate::bootstrap::unix_now;

/// Counters and the last words of either side. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    status: watch::Sender<Status>,
    revision: watch::Sender<u64>,
    heartbeat: watch::Sender<Heartbeat>,
    /// Since when the control plane is not heard, in seconds since 1970; 0: it is.
    away_since: AtomicU64,
    /// As [`TYPES`].
    updates: [Updates; TYPES_COUNT],
}

const TYPES_COUNT: usize = 7;

impl Default for Inner {
    fn default() -> Self {
        Self {
            status: watch::Sender::new(Status::default()),
            revision: watch::Sender::new(0),
            heartbeat: watch::Sender::new(Heartbeat::default()),
            away_since: AtomicU64::new(unix_now()),
            updates: Default::default(),
        }
    }
}

/// What became of the updates of one type.
#[derive(Debug, Default)]
struct Updates {
    accepted: AtomicU64,
    refused: AtomicU64,
}

impl Progress {
    /// Told of every change of the connection.
    pub fn status(&self) -> &watch::Sender<Status> {
        &self.0.status
    }

    /// Since when the control plane is not heard, in seconds since 1970, and why; `None`: it is.
    pub fn away(&self) -> Option<(u64, String)> {
        let reason = match &*self.0.status.borrow() {
            Status::Connected => return None,
            Status::Connecting => String::new(),
            Status::Disconnected { reason } => reason.clone(),
        };
        let since = self.0.away_since.load(Relaxed);
        Some((if since == 0 { unix_now() } else { since }, reason))
    }

    fn heard(&self, is_heard: bool) {
        let since = &self.0.away_since;
        if is_heard {
            since.store(0, Relaxed);
        } else {
            // Attempts that fail don't begin it anew.
            let _ = since.compare_exchange(0, unix_now(), Relaxed, Relaxed);
        }
    }

    /// The revision that was last enforced.
    pub fn revision(&self) -> &watch::Sender<u64> {
        &self.0.revision
    }

    /// The last heartbeat.
    pub fn heartbeat(&self) -> &watch::Sender<Heartbeat> {
        &self.0.heartbeat
    }

    /// An update was answered.
    pub fn answered(&self, type_url: &str, accepted: bool) {
        let Some(at) = TYPES.iter().position(|known| known == type_url) else { return };
        let updates = &self.0.updates[at];
        if accepted { &updates.accepted } else { &updates.refused }.fetch_add(1, Relaxed);
    }

    /// Type without its package, updates accepted, updates refused.
    pub fn updates(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        TYPES.iter().zip(&self.0.updates).map(|(type_url, updates)| {
            let short = type_url.rsplit('.').next().unwrap_or(type_url);
            (short, updates.accepted.load(Relaxed), updates.refused.load(Relaxed))
        })
    }

    /// Revisions that were sent on this stream and are not enforced.
    pub fn lag(&self) -> u64 {
        self.0.heartbeat.borrow().sent_revision.saturating_sub(*self.0.revision.borrow())
    }
}

/// Writes into the log when the control plane is heard, and why it is not any more, for ever: once each, however often
/// it is tried again.
pub async fn log_connection_for_ever(progress: Progress) {
    let mut status = progress.status().subscribe();
    let mut heard = None;
    loop {
        let now = status.borrow_and_update().clone();
        progress.heard(now == Status::Connected);
        match &now {
            Status::Connected if heard != Some(true) => {
                heard = Some(true);
                tracing::info!("the control plane is heard");
            }
            Status::Disconnected { reason } if heard != Some(false) => {
                heard = Some(false);
                tracing::warn!(reason, "the control plane is not heard; the node enforces what it has");
            }
            Status::Connecting | Status::Connected | Status::Disconnected { .. } => {}
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_type() {
        assert_eq!(TYPES.len(), TYPES_COUNT);
        let progress = Progress::default();
        progress.answered(&TYPES[3], true);
        progress.answered(&TYPES[3], false);
        progress.answered("type.googleapis.com/strange", true);
        let counted: Vec<_> = progress.updates().filter(|row| (row.1, row.2) != (0, 0)).collect();
        assert_eq!(counted, [("PolicyClass", 1, 1)]);
    }

    #[test]
    fn the_control_plane_is_away_since_it_was_last_heard_not_since_the_last_attempt() {
        let progress = Progress::default();
        assert!(progress.away().is_some_and(|(since, _)| since > 0), "never heard");
        progress.heard(true);
        progress.status().send_replace(Status::Connected);
        assert_eq!(progress.away(), None);
        progress.status().send_replace(Status::Disconnected { reason: "refused".into() });
        progress.heard(false);
        let first = progress.away().unwrap();
        assert_eq!(first.1, "refused");
        progress.0.away_since.store(7, Relaxed);
        progress.heard(false);
        assert_eq!(progress.away().unwrap().0, 7);
    }

    #[test]
    fn lag_is_what_was_sent_and_is_not_enforced() {
        let progress = Progress::default();
        progress.revision().send_replace(7);
        assert_eq!(progress.lag(), 0, "nothing was heard");
        progress.heartbeat().send_replace(Heartbeat { revision: 12, sent_revision: 9, ..Default::default() });
        assert_eq!(progress.lag(), 2);
    }
}
