//! An endpoint, with what this proxy knows of it. It outlives updates that keep its address.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use super::pool::Pool;
use crate::balance::{Ejection, EjectionConfig, Failure, Verdict};

/// See the module.
#[derive(Debug)]
pub struct Host {
    /// Where it listens.
    pub address: SocketAddr,
    pub(super) pool: Pool,
    active: AtomicU64,
    /// Whether `ejection` holds anything that a success would reset: successes then need no lock.
    marred: AtomicBool,
    ejection: Mutex<Ejection>,
}

/// Counts a request to a host while it lasts.
#[derive(Debug)]
pub struct ActiveRequest(std::sync::Arc<Host>);

impl Host {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            pool: Pool::default(),
            active: AtomicU64::new(0),
            marred: AtomicBool::new(false),
            ejection: Mutex::default(),
        }
    }

    /// Requests that it is serving for this proxy.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn begin(self: &std::sync::Arc<Self>) -> ActiveRequest {
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(self.clone())
    }

    /// When it comes back, if it is ejected.
    pub fn ejected_until(&self, now: Instant) -> Option<Instant> {
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner).until(now)
    }

    pub(super) fn on_success(&self) {
        if self.marred.load(Ordering::Acquire) {
            let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
            ejection.on_success();
            self.marred.store(false, Ordering::Release);
        }
    }

    pub(super) fn on_failure(
        &self,
        failure: Failure,
        config: &EjectionConfig,
        out: usize,
        all: usize,
        now: Instant,
    ) -> Verdict {
        let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = ejection.on_failure(failure, config, out, all, now);
        self.marred.store(!ejection.is_clean(), Ordering::Release);
        verdict
    }

    /// Connections that are open to it.
    pub fn connections(&self) -> usize {
        self.pool.connections()
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
