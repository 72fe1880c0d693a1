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
/// Pairs of cluster and region that are kept, for one caller and for all: some 10 MB here, and as much at most in the
/// answer to another replica.
const MAX_PER_CALLER: usize = 1_000;
const MAX_ALL: usize = 30_000;
/// From one look for what is to be forgotten to the next.
const SWEEP: Duration = Duration::from_secs(5);
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
    /// Of the endpoints of peers; else of those of this cluster.
    pub peers: bool,
    /// At least half of its calls have failed.
    pub failing: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Votes {
    callers: BTreeMap<String, BTreeMap<Place, Calls>>,
    places: usize,
    swept: Option<Instant>,
}

impl Votes {
    /// Takes what a caller has seen since its last report, of the clusters that it has.
    pub fn take(&mut self, caller: &str, stats: &[ClusterStats], has: impl Fn(&str) -> bool, now: Instant) {
        if self.swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP) {
            self.forget_old(now);
        }
        for cluster in stats.iter().filter(|cluster| has(&cluster.cluster_name)) {
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

    /// Every voice about the clusters that are wanted. `own`: the region of this cluster's endpoints.
    pub fn of(&mut self, own: &str, wanted: impl Fn(&str) -> bool, now: Instant) -> Vec<Vote> {
        self.forget_old(now);
        let mut votes = Vec::new();
        for (caller, places) in &self.callers {
            let mut sums: BTreeMap<(&str, bool), (u64, u64)> = BTreeMap::new();
            for ((cluster, region), calls) in places.iter().filter(|((cluster, _), _)| wanted(cluster)) {
                let (issued, failed) = sums.entry((cluster, region != own)).or_default();
                *issued = issued.saturating_add(calls.issued);
                *failed = failed.saturating_add(calls.failed);
            }
            let heard = sums.into_iter().filter(|(_, (issued, _))| *issued >= MIN_CALLS);
            votes.extend(heard.map(|((cluster, peers), (issued, failed))| Vote {
                caller: caller.clone(),
                cluster: cluster.to_owned(),
                peers,
                failing: failed >= issued.div_ceil(2),
            }));
        }
        votes
    }

    fn forget_old(&mut self, now: Instant) {
        self.swept = Some(now);
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

    fn take(votes: &mut Votes, caller: &str, stats: &[ClusterStats], now: Instant) {
        votes.take(caller, stats, |cluster| cluster != "hidden", now);
    }

    fn said(votes: &mut Votes, now: Instant) -> Vec<(String, bool)> {
        votes
            .of("west", |cluster| cluster == "pay", now)
            .into_iter()
            .map(|vote| (vote.caller, vote.failing))
            .collect()
    }

    fn is(caller: &str, failing: bool) -> (String, bool) {
        (caller.to_owned(), failing)
    }

    #[test]
    fn a_caller_has_one_voice_however_much_it_reports() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        for _ in 0..100 {
            take(&mut votes, "shop/liar", &[stats("pay", u64::MAX, u64::MAX)], now);
        }
        take(&mut votes, "shop/a", &[stats("pay", 20, 0)], now);
        take(&mut votes, "shop/b", &[stats("pay", 20, 9), stats("web", 20, 20)], now);
        assert_eq!(said(&mut votes, now), [is("shop/a", false), is("shop/b", false), is("shop/liar", true)]);
    }

    #[test]
    fn whatever_is_not_this_cluster_is_the_peers_and_one_voice_too() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        let at = |region: &str, issued, failed| {
            let mut stats = stats("pay", issued, failed);
            stats.upstream_locality_stats[0].locality =
                Some(Locality { region: region.into(), ..Default::default() });
            stats
        };
        take(&mut votes, "shop/a", &[at("west", 20, 20), at("east", 6, 6), at("north", 7, 0)], now);
        let vote = |peers, failing| Vote { caller: "shop/a".into(), cluster: "pay".into(), peers, failing };
        assert_eq!(votes.of("west", |_| true, now), [vote(false, true), vote(true, false)]);
    }

    #[test]
    fn of_clusters_that_it_does_not_have_a_caller_says_nothing() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        take(&mut votes, "shop/a", &[stats("hidden", 20, 20), stats("idle", 0, 0)], now);
        assert_eq!((votes.of("west", |_| true, now), votes.places), (vec![], 0));
    }

    #[test]
    fn few_calls_are_added_up_and_old_ones_weigh_less_and_less() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        take(&mut votes, "shop/a", &[stats("pay", 6, 6)], now);
        assert_eq!(said(&mut votes, now), [], "too few to say something");
        take(&mut votes, "shop/a", &[stats("pay", 7, 7)], now);
        assert_eq!(said(&mut votes, now), [is("shop/a", true)]);
        take(&mut votes, "shop/a", &[stats("pay", 7, 0)], now);
        take(&mut votes, "shop/a", &[stats("pay", 7, 0)], now);
        assert_eq!(said(&mut votes, now), [is("shop/a", false)], "it is well again");
    }

    #[test]
    fn a_caller_that_reports_no_more_loses_its_voice() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        take(&mut votes, "shop/a", &[stats("pay", 20, 20)], now);
        assert_eq!(said(&mut votes, now + LASTS - Duration::from_secs(1)).len(), 1);
        assert_eq!(said(&mut votes, now + LASTS), []);
        assert_eq!(votes.places, 0);
        take(&mut votes, "shop/a", &[stats("pay", 20, 20)], now + LASTS);
        take(&mut votes, "shop/b", &[stats("pay", 20, 20)], now + LASTS + LASTS);
        assert_eq!(votes.places, 1, "reports make room by themselves");
    }

    #[test]
    fn one_caller_can_not_fill_the_room_of_the_others() {
        let (mut votes, now) = (Votes::default(), Instant::now());
        let many: Vec<_> = (0..MAX_PER_CALLER + 9).map(|n| stats(&format!("c{n}"), 10, 10)).collect();
        take(&mut votes, "shop/liar", &many, now);
        take(&mut votes, "shop/liar", &[stats(&"x".repeat(MAX_NAME_BYTES + 1), 10, 10)], now);
        assert_eq!(votes.places, MAX_PER_CALLER);
        take(&mut votes, "shop/a", &[stats("pay", 10, 10)], now);
        assert_eq!(votes.places, MAX_PER_CALLER + 1);
    }
}
