//! Counters that the data path touches: plain atomics, found once per cluster or listener and not per request.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;

use crate::{balance::Reason, outbound::Breakers};

/// First status that is counted by itself.
const FIRST: u16 = 100;
/// Number of statuses.
const COUNT: usize = 500;

/// Answers by HTTP status, 100 to 599.
#[derive(Debug)]
pub struct Codes(Box<[AtomicU64]>);

impl Default for Codes {
    fn default() -> Self {
        Self((0..COUNT).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Codes {
    /// Counts an answer. Statuses out of range count as the nearest.
    pub fn count(&self, status: u16) {
        let at = usize::from(status.saturating_sub(FIRST)).min(COUNT - 1);
        if let Some(counter) = self.0.get(at) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every status that has occurred.
    pub fn seen(&self) -> impl Iterator<Item = (u16, u64)> {
        (FIRST..).zip(self.0.iter().map(|c| c.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }
}

/// What is counted of a cluster. Survives changes of its configuration.
#[derive(Debug, Default)]
pub struct ClusterStats {
    /// Answers of endpoints, retried ones included, and 503 and 504 in place of missing ones.
    pub codes: Codes,
    /// Attempts after the first.
    pub retries: AtomicU64,
    /// Retries that a circuit breaker forbade.
    pub retry_overflow: AtomicU64,
    /// Requests that a circuit breaker forbade.
    pub overflow: AtomicU64,
    /// Requests without an endpoint to go to.
    pub no_endpoint: AtomicU64,
    /// Connections opened.
    pub connections: AtomicU64,
    /// Connections that could not be opened.
    pub connect_failures: AtomicU64,
    /// Connections open.
    pub active_connections: AtomicU64,
    /// Requests being served.
    pub active_requests: AtomicU64,
    /// Endpoints that were ejected.
    pub ejections: AtomicU64,
    /// The same by reason.
    pub outliers: Outliers,
    /// Requests that had to wait because there may be no more connections.
    pub connection_overflow: AtomicU64,
    /// Requests that could not even wait for a connection.
    pub pending_overflow: AtomicU64,
    /// Requests that the control plane wanted turned away.
    pub dropped: AtomicU64,
    /// Active health checks that ended.
    pub health_checks: AtomicU64,
    /// Those of them that did not pass.
    pub health_check_failures: AtomicU64,
    /// Told when an endpoint has been asked for its health.
    pub first_checks: tokio::sync::Notify,
    /// What is in use of the limits of this moment.
    breakers: ArcSwapOption<Breakers>,
}

impl ClusterStats {
    /// These are the limits from now on.
    pub fn set_breakers(&self, breakers: &Arc<Breakers>) {
        self.breakers.store(Some(breakers.clone()));
    }

    /// The limits of this moment.
    pub fn breakers(&self) -> Option<Arc<Breakers>> {
        self.breakers.load_full()
    }
}

/// Endpoints that stood out, by reason.
#[derive(Debug, Default)]
pub struct Outliers(Mutex<BTreeMap<Reason, [u64; 2]>>);

impl Outliers {
    /// One more: ejected, or only found.
    pub fn count(&self, reason: Reason, ejected: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [found, out] = all.entry(reason).or_default();
        *found += 1;
        *out += u64::from(ejected);
    }

    /// How many were found, and how many of them ejected.
    pub fn seen(&self) -> BTreeMap<Reason, [u64; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Most policies that denials are counted by; those of further ones are counted together.
const POLICIES: usize = 1_000;

/// Denials by policy.
#[derive(Debug, Default)]
pub struct Denials(Mutex<BTreeMap<Arc<str>, u64>>);

impl Denials {
    /// Counts one.
    pub fn count(&self, policy: &Arc<str>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = all.len() >= POLICIES && !all.contains_key(policy);
        let key = if full { "others".into() } else { policy.clone() };
        *all.entry(key).or_default() += 1;
    }

    /// All of them.
    pub fn seen(&self) -> Vec<(Arc<str>, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(policy, count)| (policy.clone(), *count)).collect()
    }
}

/// What is counted of a listener.
#[derive(Debug, Default)]
pub struct ListenerStats {
    /// Answers, local ones included.
    pub codes: Codes,
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections open.
    pub active_connections: AtomicU64,
    /// Connections closed at once because there were too many.
    pub refused: AtomicU64,
    /// TLS handshakes that failed.
    pub handshake_failures: AtomicU64,
    /// Connections that no filter chain matches.
    pub no_chain: AtomicU64,
    /// Connections and requests that a rule denied.
    pub denied: Denials,
    /// Those that a rule would have denied that is only tried out.
    pub shadow_denied: Denials,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Stats {
    clusters: Mutex<BTreeMap<Arc<str>, Arc<ClusterStats>>>,
    listeners: Mutex<BTreeMap<String, Arc<ListenerStats>>>,
    /// Updates that were applied.
    pub updates: AtomicU64,
    /// Updates that were refused.
    pub refusals: AtomicU64,
    /// Requests that were turned away because of overload.
    pub shed_requests: AtomicU64,
    /// Connections that were turned away because of overload.
    pub shed_connections: AtomicU64,
}

impl Stats {
    /// Counters of a cluster; the same ones whenever it is asked for.
    pub fn cluster(&self, name: &Arc<str>) -> Arc<ClusterStats> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.entry(name.clone()).or_default().clone()
    }

    /// Counters of a listener; the same ones whenever it is asked for.
    pub fn listener(&self, name: &str) -> Arc<ListenerStats> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.entry(name.to_owned()).or_default().clone()
    }

    /// Forgets a cluster that is gone: names come and go for ever, memory must not.
    pub fn forget_cluster(&self, name: &str) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Forgets a listener that is gone.
    pub fn forget_listener(&self, name: &str) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    pub(super) fn all_clusters(&self) -> Vec<(Arc<str>, Arc<ClusterStats>)> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.iter().map(|(name, stats)| (name.clone(), stats.clone())).collect()
    }

    pub(super) fn all_listeners(&self) -> Vec<(String, Arc<ListenerStats>)> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().map(|(name, stats)| (name.clone(), stats.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_status_can_be_counted() {
        let codes = Codes::default();
        for status in [0, 200, 200, 599, 600, 999] {
            codes.count(status);
        }
        assert_eq!(codes.seen().collect::<Vec<_>>(), [(100, 1), (200, 2), (599, 3)]);
    }

    #[test]
    fn denials_are_counted_by_policy_up_to_a_limit() {
        let denials = Denials::default();
        for number in 0..POLICIES + 5 {
            denials.count(&number.to_string().into());
        }
        denials.count(&"0".into());
        let seen: BTreeMap<_, _> = denials.seen().into_iter().collect();
        assert_eq!((seen.len(), seen["0"], seen["others"]), (POLICIES + 1, 2, 5));
    }
}
