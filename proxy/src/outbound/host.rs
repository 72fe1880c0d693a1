//! An endpoint, with what this proxy knows of it. It outlives updates that keep its address.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{behalf::Source, pool::Pool};
use crate::balance::{Ejection, EjectionConfig, Failure, Verdict};

/// See the module.
#[derive(Debug)]
pub struct Host {
    /// Where it listens.
    pub address: SocketAddr,
    pub(super) pool: Pool,
    /// In whose name it is asked.
    pub(super) source: Option<Source>,
    /// The same endpoint as it is asked in others' names: what it is sent for one goes over no connection of another.
    in_names: Mutex<HashMap<Source, Arc<Host>>>,
    active: AtomicU64,
    /// Whether `ejection` holds anything that a success would reset: successes then need no lock.
    marred: AtomicBool,
    ejection: Mutex<Ejection>,
}

/// Counts a request to a host while it lasts.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Host>);

impl Host {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            pool: Pool::default(),
            source: None,
            in_names: Mutex::default(),
            active: AtomicU64::new(0),
            marred: AtomicBool::new(false),
            ejection: Mutex::default(),
        }
    }

    /// Requests that it is serving for this proxy.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn begin(self: &Arc<Self>) -> ActiveRequest {
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

    /// The endpoint as it is asked in the name of `source`. What is known of its health stays with this one.
    pub(super) fn in_name_of(self: &Arc<Self>, source: Option<Source>) -> Arc<Self> {
        let Some(source) = source else { return self.clone() };
        let mut known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        let other = || Arc::new(Self { source: Some(source), ..Self::new(self.address) });
        known.entry(source).or_insert_with(other).clone()
    }

    /// Closes connections that nobody has used for a while.
    pub(super) fn sweep(&self, now: Instant, idle_timeout: Option<Duration>, generation: u64) {
        self.pool.sweep(now, idle_timeout, generation);
        let mut known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, host| {
            host.pool.sweep(now, idle_timeout, generation);
            // One that a request has just got hold of has more than one owner.
            host.pool.connections() > 0 || Arc::strong_count(host) > 1
        });
    }

    /// Connections that are open to it.
    pub fn connections(&self) -> usize {
        let known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool.connections() + known.values().map(|host| host.pool.connections()).sum::<usize>()
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
