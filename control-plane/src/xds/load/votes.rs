//! What each caller has seen of each place lately: one voice for each workload, however many streams it opens and
//! however much it reports. Pure; the time is an argument, and memory is bounded.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use xds_proto::envoy::config::endpoint::v3::ClusterStats;

/// A caller that has reported nothing for so long has no voice any more.
pub const LASTS: Duration = Duration::from_secs(60);
/// Calls that it takes to have one. Those of earlier reports count half with each later one.
pub const MIN_CALLS: u64 = 10;
/// Pairs of cluster and region that are kept, for one caller and for all: some 8 MB.
const MAX_PER_CALLER: usize = 1_000;
const MAX_ALL: usize = 50_000;
/// Longest name that is kept.
const MAX_NAME_BYTES: usize = 512;

/// By name of the cluster, and region of the endpoints.
type Place = (String, String);

/// What one caller has seen of one place.
#[derive(Debug, Clone, Copy)]
struct Calls {
    issued: u64,
    failed: u64,
    at: Instant,
}

/// One caller's voice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    /// `<namespace>/<name>` of the workload that calls.
    pub caller: String,
    /// As callers name it.
    pub cluster: String,
    /// Where the endpoints are.
    pub region: String,
    /// At least half of its calls have failed.
    pub failing: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Votes {
    callers: BTreeMap<String, BTreeMap<Place, Calls>>,
    places: usize,
}

impl Votes {
    /// Takes what a caller has seen since its last report.
    pub fn take(&mut self, caller: &str, stats: &[ClusterStats], now: Instant) {
        self.forget_old(now);
        for cluster in stats {
            for at in &cluster.upstream_locality_stats {
                let region =
                    at.locality.as_ref().map(|locality| locality.region.as_str()).unwrap_or_default();
                if cluster.cluster_name.len() > MAX_NAME_BYTES || region.len() > MAX_NAME_BYTES {
                    continue;
                }
                let answered = at.total_successful_requests.saturating_add(at.total_error_requests);
                // Older clients don't say how many they sent.
                let issued = at.total_issued_requests.max(answered);
                if issued == 0 {
                    continue;
                }
                let place = (cluster.cluster_name.clone(), region.to_owned());
                let places = self.callers.entry(caller.to_owned()).or_default();
                if !places.contains_key(&place) {
                    if places.len() >= MAX_PER_CALLER || self.places >= MAX_ALL {
                        continue;
                    }
                    self.places += 1;
                }
                let calls = places.entry(place).or_insert(Calls { issued: 0, failed: 0, at: now });
                calls.issued = (calls.issued / 2).saturating_add(issued);
                calls.failed = (calls.failed / 2).saturating_add(at.total_error_requests.min(issued));
                calls.at = now;
            }
        }
    }

    /// Every voice about the places of which somebody says that calls fail there: the others need nothing done.
    pub fn of_failing(&mut self, now: Instant) -> Vec<Vote> {
        self.forget_old(now);
        let mut votes: Vec<Vote> = Vec::new();
        for (caller, places) in &self.callers {
            let heard = places.iter().filter(|(_, calls)| calls.issued >= MIN_CALLS);
            votes.extend(heard.map(|((cluster, region), calls)| Vote {
                caller: caller.clone(),
                cluster: cluster.clone(),
                region: region.clone(),
                failing: calls.failed.saturating_mul(2) >= calls.issued,
            }));
        }
        let failing: std::collections::BTreeSet<String> =
            votes.iter().filter(|vote| vote.failing).map(|vote| vote.cluster.clone()).collect();
        votes.retain(|vote| failing.contains(&vote.cluster));
        votes
    }

    fn forget_old(&mut self, now: Instant) {
        self.callers.retain(|_, places| {
            places.retain(|_, calls| now.saturating_duration_since(calls.at) < LASTS);
            !places.is_empty()
        });
        self.places = self.callers.values().map(BTreeMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use xds_proto::envoy::config::{core::v3::Locality, endpoint::v3::UpstreamLocalityStats};

    use super::*;

    fn stats(cluster: &str, issued: u64, failed: u64) -> ClusterStats {
        ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: vec![UpstreamLocalityStats {
                locality: Some(Locality { region: "west".into(), ..Default::default() }),
                total_issued_requests: issued,
                total_error_requests: failed,
                total_successful_requests: issued.saturating_sub(failed),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn said(votes: &mut Votes, now: Instant) -> Vec<(String, bool)> {
        votes.of_failing(now).into_iter().map(|vote| (vote.caller, vote.failing)).collect()
    }

    fn is(caller: &str, failing: bool) -> (String, bool) {
        (caller.to_owned(), failing)
    }

    #[test]
    fn a_caller_has_one_voice_however_much_it_reports() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        for _ in 0..100 {
            votes.take("shop/liar", &[stats("pay", u64::MAX, u64::MAX)], now);
        }
        votes.take("shop/a", &[stats("pay", 20, 0)], now);
        votes.take("shop/b", &[stats("pay", 20, 9), stats("web", 20, 0)], now);
        assert_eq!(said(&mut votes, now), [is("shop/a", false), is("shop/b", false), is("shop/liar", true)]);
    }

    #[test]
    fn of_clusters_that_nobody_complains_of_nothing_is_said() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        votes.take("shop/a", &[stats("pay", 20, 9), stats("idle", 0, 0)], now);
        assert_eq!(votes.of_failing(now), []);
    }

    #[test]
    fn few_calls_are_added_up_and_old_ones_weigh_less_and_less() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        votes.take("shop/a", &[stats("pay", 6, 6)], now);
        assert_eq!(said(&mut votes, now), [], "too few to say something");
        votes.take("shop/a", &[stats("pay", 7, 7)], now);
        assert_eq!(said(&mut votes, now), [is("shop/a", true)]);
        votes.take("shop/a", &[stats("pay", 7, 0)], now);
        votes.take("shop/a", &[stats("pay", 7, 0)], now);
        assert_eq!(said(&mut votes, now), [], "it is well again");
    }

    #[test]
    fn a_caller_that_reports_no_more_loses_its_voice() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        votes.take("shop/a", &[stats("pay", 20, 20)], now);
        assert_eq!(said(&mut votes, now + LASTS - Duration::from_secs(1)).len(), 1);
        assert_eq!(said(&mut votes, now + LASTS), []);
        assert_eq!(votes.places, 0);
    }

    #[test]
    fn one_caller_can_not_fill_the_room_of_the_others() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        let many: Vec<_> = (0..MAX_PER_CALLER + 9).map(|n| stats(&format!("c{n}"), 10, 10)).collect();
        votes.take("shop/liar", &many, now);
        votes.take("shop/liar", &[stats(&"x".repeat(MAX_NAME_BYTES + 1), 10, 10)], now);
        assert_eq!(votes.places, MAX_PER_CALLER);
        votes.take("shop/a", &[stats("pay", 10, 10)], now);
        assert_eq!(votes.places, MAX_PER_CALLER + 1);
    }
}
