//! LRS: what data planes report of the load that they send, by cluster and locality.
//!
//! * [`window`]: the reports of the last while, added up. Pure; the time is an argument, and memory is bounded.
//! * [`service`]: `envoy.service.load_stats.v3`, for Envoy and for gRPC with `lrs_server: self`.
//!
//! Load is reported to one replica, the one that the client is connected to: the whole of a cluster is the sum over
//! replicas. Nothing is decided here; whoever places traffic asks [`Loads::report`].

pub mod service;
pub mod window;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

pub use window::{Load, LoadWindow, Locality, Totals};

/// The loads that are reported to this replica.
#[derive(Debug, Default)]
pub struct Loads(Mutex<LoadWindow>);

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

    fn lock(&self) -> MutexGuard<'_, LoadWindow> {
        // Nothing under the lock can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
