//! What the streams do, by type of resource. Made once for every type that is served, so that counting is an
//! addition and nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{Commits, Histogram, Moment};
use crate::xds::{heartbeat, kinds, session::Response};

/// Every type that has a row of its own. The others share one.
pub const TYPES: [&str; 18] = [
    kinds::RUNTIME,
    kinds::SECRET,
    kinds::CLUSTER,
    kinds::ENDPOINT,
    kinds::EXTENSION,
    kinds::LISTENER,
    kinds::SCOPED_ROUTE,
    kinds::ROUTE,
    kinds::VIRTUAL_HOST,
    kinds::TRUST_BUNDLE,
    kinds::NODE,
    kinds::POLICY_CLASS,
    kinds::WORKLOAD_ADDRESS,
    kinds::LOCAL_ENDPOINT,
    kinds::SERVICE,
    kinds::PEER_CLUSTER,
    kinds::EXPORTED_SERVICE,
    heartbeat::TYPE_URL,
];

/// Of one type.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct TypeCounters {
    pub pushes: AtomicU64,
    pub resources: AtomicU64,
    pub removals: AtomicU64,
    pub bytes: AtomicU64,
    pub acks: AtomicU64,
    pub nacks: AtomicU64,
}

/// Of all streams of a replica.
#[derive(Debug, Default)]
pub struct XdsMetrics {
    types: [TypeCounters; TYPES.len()],
    others: TypeCounters,
    /// From the commit of a change, on the replica that led then, to a stream that it concerns having ACKed it.
    pub convergence_from_commit: Histogram,
    /// The same on the others: from when they heard of the commit.
    pub convergence_from_hearing: Histogram,
    /// When revisions were committed.
    pub commits: Arc<Commits>,
    /// Streams that were authorized.
    pub opened: AtomicU64,
    /// Answers to a response that was not the last one.
    pub stale_nonces: AtomicU64,
}

impl XdsMetrics {
    /// The row of a type.
    pub fn of(&self, type_url: &str) -> &TypeCounters {
        let index = TYPES.iter().position(|known| *known == type_url);
        index.map_or(&self.others, |index| &self.types[index])
    }

    /// All rows, by the short name of the type.
    pub fn types(&self) -> impl Iterator<Item = (&'static str, &TypeCounters)> {
        let known = TYPES.iter().map(|url| url.rsplit('.').next().unwrap_or(url)).zip(&self.types);
        known.chain([("other", &self.others)])
    }

    /// A response goes out.
    pub fn sent(&self, response: &Response) {
        let row = self.of(&response.type_url);
        let resources: usize = response.resources.iter().map(|resource| resource.wire_size()).sum();
        let removed: usize = response.removed.iter().map(|name| name.len()).sum();
        row.pushes.fetch_add(1, Relaxed);
        row.resources.fetch_add(response.resources.len() as u64, Relaxed);
        row.removals.fetch_add(response.removed.len() as u64, Relaxed);
        row.bytes.fetch_add((resources + removed) as u64, Relaxed);
    }

    /// A response was accepted.
    pub fn acked(&self, type_url: &str) {
        self.of(type_url).acks.fetch_add(1, Relaxed);
    }

    /// A stream has ACKed, of every type, what came after the revision `before` and concerns its client. Measured from
    /// the first revision that may have brought it: never too short.
    pub fn converged(&self, before: u64, now: Instant) {
        let Some(Moment { at, led }) = self.commits.at(before + 1) else { return };
        let histogram = if led { &self.convergence_from_commit } else { &self.convergence_from_hearing };
        histogram.observe(now.saturating_duration_since(at));
    }

    /// A response was refused.
    pub fn nacked(&self, type_url: &str) {
        self.of(type_url).nacks.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_row_and_unknown_ones_share_one() {
        let metrics = XdsMetrics::default();
        for type_url in TYPES {
            metrics.nacked(type_url);
        }
        metrics.nacked("type.googleapis.com/no.such.Type");
        metrics.nacked("");
        let nacks: Vec<_> = metrics.types().map(|(name, row)| (name, row.nacks.load(Relaxed))).collect();
        assert_eq!(nacks.len(), TYPES.len() + 1);
        assert!(
            nacks.iter().all(|(name, count)| *count == if *name == "other" { 2 } else { 1 }),
            "{nacks:?}"
        );
        let known = TYPES.iter().filter(|type_url| kinds::is_known(type_url)).count();
        assert_eq!(known, TYPES.len() - 1, "all but the heartbeat are kinds of the session");
    }

    #[test]
    fn convergence_is_counted_from_the_commit_where_that_is_known_and_else_from_hearing_of_it() {
        let (metrics, start) = (XdsMetrics::default(), Instant::now());
        let counts = || (metrics.convergence_from_commit.count(), metrics.convergence_from_hearing.count());
        metrics.converged(4, start);
        assert_eq!(counts(), (0, 0), "a revision that was not reached has no moment");
        metrics.commits.reached(5, Moment { at: start, led: false });
        metrics.commits.reached(6, Moment { at: start, led: true });
        metrics.converged(4, start);
        assert_eq!(counts(), (0, 1));
        metrics.converged(5, start);
        assert_eq!(counts(), (1, 1));
    }
}
