//! LRS: what data planes report of the load that they send, by cluster and locality.
//!
//! * [`window`]: the reports of the last while, added up. Pure; the time is an argument, and memory is bounded.
//! * [`votes`]: what each caller has seen of each place, one voice for each. Pure and bounded too.
//! * [`service`]: `envoy.service.load_stats.v3`, for Envoy and for gRPC with `lrs_server: self`.
//!
//! Load is reported to one replica, the one that the client is connected to: the whole of a cluster is the sum over
//! replicas. Nothing is decided here: the metrics ask [`Loads::report`], and [`crate::overflow`] asks all replicas for
//! [`Loads::votes`].

pub mod service;
pub mod votes;
pub mod window;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

pub use votes::{Vote, Votes};
pub use window::{Load, LoadWindow, Locality, Totals};

/// The loads that are reported to this replica.
#[derive(Debug, Default)]
pub struct Loads {
    window: Mutex<LoadWindow>,
    votes: Mutex<Votes>,
}

impl Loads {
    /// The load of each cluster and locality over the window, for status and for who places traffic.
    pub fn report(&self, now: Instant) -> Vec<Load> {
        self.lock().report(now)
    }

    /// What was reported since the start of the process, of what is still reported: counters for metrics.
    pub fn totals(&self) -> Vec<(String, Locality, Totals)> {
        self.lock().totals()
    }

    /// Reports that found no room: see [`window::MAX_SERIES`].
    pub fn lost(&self) -> u64 {
        self.lock().lost()
    }

    /// What each caller has seen of the clusters that are wanted. `own`: the region of this cluster's endpoints.
    pub fn votes(&self, own: &str, wanted: impl Fn(&str) -> bool, now: Instant) -> Vec<Vote> {
        self.voices().of(own, wanted, now)
    }

    fn voices(&self) -> MutexGuard<'_, Votes> {
        // Nothing under the lock can leave it half done.
        self.votes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, LoadWindow> {
        // Nothing under the lock can leave it half done.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
