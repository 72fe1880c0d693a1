//! An endpoint, with what this proxy knows of it. It outlives updates that keep its address.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{behalf::Source, pool::Pool};
use crate::balance::{
    Check, CheckTiming, Checked, Circumstances, Ejection, EjectionConfig, Failure, Reason, Sample, Verdict,
};
use crate::config::Cluster;

/// Requests of an interval.
#[derive(Debug, Default)]
struct Tally {
    good: AtomicU64,
    all: AtomicU64,
}

impl Tally {
    fn count(&self, good: bool) {
        self.good.fetch_add(good.into(), Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> Sample {
        // A request between the two is counted in the next interval at worst as one too few.
        let all = self.all.swap(0, Ordering::Relaxed);
        Sample { good: self.good.swap(0, Ordering::Relaxed).min(all), all }
    }
}

/// What changes seldom.
#[derive(Debug)]
struct State {
    ejection: Ejection,
    check: Check,
    /// Since when it is used: shares of new endpoints grow from here.
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Host {
    /// Where it listens.
    pub address: SocketAddr,
    /// Which of the cluster's ways to connect is for it.
    pub(super) socket: usize,
    pub(super) pool: Pool,
    /// In whose name it is asked.
    pub(super) source: Option<Source>,
    /// The same endpoint as it is asked in others' names: what it is sent for one goes over no connection of another.
    in_names: Mutex<HashMap<Source, Arc<Host>>>,
    active: AtomicU64,
    /// Whether failures are counted that a success would reset: successes then need no lock.
    marred: AtomicBool,
    answers: Tally,
    reached: Tally,
    state: Mutex<State>,
    /// Cancelled when all of its connections are to be closed at once, and then replaced.
    closing: Mutex<CancellationToken>,
}

/// Counts a request to a host while it lasts.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Host>);

impl Host {
    pub(super) fn new(address: SocketAddr, socket: usize, now: Instant) -> Self {
        Self {
            address,
            socket,
            pool: Pool::default(),
            source: None,
            in_names: Mutex::default(),
            active: AtomicU64::new(0),
            marred: AtomicBool::new(false),
            answers: Tally::default(),
            reached: Tally::default(),
            state: Mutex::new(State { ejection: Ejection::default(), check: Check::default(), since: now }),
            closing: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.state().ejection.until(now)
    }

    /// What active checks say.
    pub fn check(&self) -> Check {
        self.state().check
    }

    /// How long it has been in use.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.state().since)
    }

    /// Whether an active check changed anything, and when the next one is due.
    pub(super) fn on_check(
        &self,
        outcome: Checked,
        timing: &CheckTiming,
        used: bool,
        now: Instant,
    ) -> (bool, Duration) {
        let mut state = self.state();
        let was = state.check.healthy();
        let done = state.check.done(outcome, timing, used, || rand::random_range(0.0..1.0));
        if !was && state.check.healthy() {
            state.since = now;
        }
        done
    }

    /// It comes back at once. Whether it was out.
    pub(super) fn uneject(&self, now: Instant) -> bool {
        self.state().ejection.uneject(now)
    }

    pub(super) fn on_success(&self, config: Option<&EjectionConfig>) {
        if let Some(config) = config {
            self.answers.count(true);
            if config.split_local_origin {
                self.reached.count(true);
            }
        }
        if self.marred.load(Ordering::Acquire) {
            self.state().ejection.on_success();
            self.marred.store(false, Ordering::Release);
        }
    }

    pub(super) fn on_failure(
        &self,
        failure: Failure,
        config: &EjectionConfig,
        circumstances: Circumstances,
    ) -> Verdict {
        match failure {
            Failure::Local if config.split_local_origin => self.reached.count(false),
            Failure::Local => self.answers.count(false),
            Failure::Answer(_) => {
                self.answers.count(false);
                if config.split_local_origin {
                    self.reached.count(true);
                }
            }
        }
        let mut state = self.state();
        let verdict = state.ejection.on_failure(failure, config, circumstances);
        self.marred.store(!state.ejection.is_clean(), Ordering::Release);
        verdict
    }

    /// Requests since the last call: those that were answered, and those that reached it.
    pub(super) fn take_samples(&self) -> (Sample, Sample) {
        (self.answers.take(), self.reached.take())
    }

    pub(super) fn eject(
        &self,
        reason: Reason,
        enforcing: u32,
        config: &EjectionConfig,
        circumstances: Circumstances,
    ) -> Verdict {
        self.state().ejection.eject(reason, enforcing, config, circumstances)
    }

    /// The endpoint as it is asked in the name of `source`. What is known of its health stays with this one.
    pub(super) fn in_name_of(self: &Arc<Self>, source: Option<Source>) -> Arc<Self> {
        let Some(source) = source else { return self.clone() };
        let now = Instant::now();
        let mut known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        let other = || Arc::new(Self { source: Some(source), ..Self::new(self.address, self.socket, now) });
        known.entry(source).or_insert_with(other).clone()
    }

    /// Closes connections that nobody has used for a while.
    pub(super) fn sweep(&self, now: Instant, config: &Cluster, generation: u64) {
        self.pool.sweep(now, config, generation);
        let mut known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, host| {
            host.pool.sweep(now, config, generation);
            // One that a request has just got hold of has more than one owner.
            host.pool.connections() > 0 || Arc::strong_count(host) > 1
        });
    }

    /// Connections that are open to it.
    pub fn connections(&self) -> usize {
        let known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool.connections() + known.values().map(|host| host.pool.connections()).sum::<usize>()
    }

    /// Ends when the connections that are open now are to be closed.
    pub fn closing(&self) -> CancellationToken {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes every connection, in use or not.
    pub(super) fn close(&self) {
        let former = std::mem::take(&mut *self.closing.lock().unwrap_or_else(PoisonError::into_inner));
        former.cancel();
        let known = self.in_names.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().for_each(|host| host.close());
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}
