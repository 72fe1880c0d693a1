//! Load reports of the last while, added up. Pure.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use xds_proto::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};

/// How long a report counts.
pub const WINDOW: Duration = Duration::from_secs(120);
/// Reports of the same slot share a number: so much finer than the window it moves.
const SLOT: Duration = Duration::from_secs(10);
/// Pairs of cluster and locality that are kept, some 10 MB. More are counted as lost.
pub const MAX_SERIES: usize = 20_000;
/// Streams of which the requests in progress are kept apart, for one cluster and locality.
const MAX_REPORTERS: usize = 10_000;
/// Longest name of a cluster or of a part of a locality.
const MAX_NAME_BYTES: usize = 512;

/// Where endpoints are, as the client was told by EDS.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
}

/// `region/zone/sub-zone`, without what is empty at the end; `-` if all is.
impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.region, &self.zone, &self.sub_zone];
        match parts.iter().rposition(|part| !part.is_empty()) {
            None => f.write_str("-"),
            Some(last) => {
                let said: Vec<&str> = parts[..=last].iter().map(|part| part.as_str()).collect();
                f.write_str(&said.join("/"))
            }
        }
    }
}

/// Numbers of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Sent to an endpoint.
    pub issued: u64,
    /// Answered well.
    pub succeeded: u64,
    /// Answered badly, or not at all.
    pub failed: u64,
    /// Not sent: circuit breakers and drop policies. Clients know it of a cluster only, so it is under the empty locality.
    pub dropped: u64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.issued = self.issued.saturating_add(other.issued);
        self.succeeded = self.succeeded.saturating_add(other.succeeded);
        self.failed = self.failed.saturating_add(other.failed);
        self.dropped = self.dropped.saturating_add(other.dropped);
    }
}

/// The load that one locality of one cluster bears.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Name of the cluster, as the clients know it.
    pub cluster: String,
    /// Of the endpoints.
    pub locality: Locality,
    /// Over the window.
    pub totals: Totals,
    /// Requests a second, over the part of the window for which there are reports.
    pub requests_per_second: f64,
    /// Requests that were unanswered at the last report of each client.
    pub in_progress: u64,
    /// Clients that have reported and are connected.
    pub reporters: usize,
}

#[derive(Debug, Default)]
struct Series {
    /// Since it was first reported.
    ever: Totals,
    slots: VecDeque<(u64, Totals)>,
    in_progress: BTreeMap<u64, u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct LoadWindow {
    start: Option<Instant>,
    series: BTreeMap<(String, Locality), Series>,
    lost: u64,
}

impl LoadWindow {
    /// Takes what a client has seen since its last report. `stream` tells the clients apart.
    pub fn report_of(&mut self, stream: u64, stats: &[ClusterStats], now: Instant) {
        let slot = self.slot(now);
        self.forget_old(slot);
        for cluster in stats {
            // A cluster that has another name towards EDS is still the one that routes name.
            let name = cut(&cluster.cluster_name);
            if name.is_empty() {
                continue;
            }
            for at in &cluster.upstream_locality_stats {
                let locality = at.locality.as_ref().map(locality).unwrap_or_default();
                if let Some(series) = self.series(&name, locality) {
                    series.take(slot, totals(at), Some((stream, at.total_requests_in_progress)));
                }
            }
            if cluster.total_dropped_requests > 0
                && let Some(series) = self.series(&name, Locality::default())
            {
                let dropped = Totals { dropped: cluster.total_dropped_requests, ..Totals::default() };
                series.take(slot, dropped, None);
            }
        }
    }

    /// A client has gone: nothing of it is in progress any more.
    pub fn gone(&mut self, stream: u64) {
        for series in self.series.values_mut() {
            series.in_progress.remove(&stream);
        }
    }

    /// The load of each cluster and locality over the window.
    pub fn report(&mut self, now: Instant) -> Vec<Load> {
        let slot = self.slot(now);
        self.forget_old(slot);
        let of = |((cluster, locality), series): (&(String, Locality), &Series)| {
            let mut totals = Totals::default();
            series.slots.iter().for_each(|(_, of_slot)| totals.add(*of_slot));
            let slots = series.slots.front().map_or(1, |(first, _)| slot.saturating_sub(*first) + 1);
            Load {
                cluster: cluster.clone(),
                locality: locality.clone(),
                totals,
                requests_per_second: totals.issued as f64 / (slots as f64 * SLOT.as_secs_f64()),
                in_progress: series.in_progress.values().fold(0, |sum, n| sum.saturating_add(*n)),
                reporters: series.in_progress.len(),
            }
        };
        self.series.iter().map(of).collect()
    }

    /// Everything since a series was first reported.
    pub fn totals(&self) -> Vec<(String, Locality, Totals)> {
        let series = self.series.iter();
        series.map(|((cluster, locality), series)| (cluster.clone(), locality.clone(), series.ever)).collect()
    }

    /// Reports that found no room.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn slot(&mut self, now: Instant) -> u64 {
        let start = *self.start.get_or_insert(now);
        now.saturating_duration_since(start).as_secs() / SLOT.as_secs()
    }

    fn series(&mut self, cluster: &str, locality: Locality) -> Option<&mut Series> {
        let key = (cluster.to_owned(), locality);
        if self.series.len() >= MAX_SERIES && !self.series.contains_key(&key) {
            self.lost += 1;
            return None;
        }
        Some(self.series.entry(key).or_default())
    }

    /// What nobody has reported for a window is not there any more.
    fn forget_old(&mut self, slot: u64) {
        let oldest = slot.saturating_sub(WINDOW.as_secs() / SLOT.as_secs() - 1);
        self.series.retain(|_, series| {
            while series.slots.front().is_some_and(|(of, _)| *of < oldest) {
                series.slots.pop_front();
            }
            !series.slots.is_empty()
        });
    }
}

impl Series {
    fn take(&mut self, slot: u64, totals: Totals, in_progress: Option<(u64, u64)>) {
        self.ever.add(totals);
        match self.slots.back_mut() {
            Some((of, sum)) if *of == slot => sum.add(totals),
            _ => self.slots.push_back((slot, totals)),
        }
        if let Some((stream, number)) = in_progress
            && (self.in_progress.len() < MAX_REPORTERS || self.in_progress.contains_key(&stream))
        {
            self.in_progress.insert(stream, number);
        }
    }
}

fn totals(stats: &UpstreamLocalityStats) -> Totals {
    let answered = stats.total_successful_requests.saturating_add(stats.total_error_requests);
    Totals {
        // Older clients don't say how many they sent.
        issued: stats.total_issued_requests.max(answered),
        succeeded: stats.total_successful_requests,
        failed: stats.total_error_requests,
        dropped: 0,
    }
}

fn locality(locality: &xds_proto::envoy::config::core::v3::Locality) -> Locality {
    Locality { region: cut(&locality.region), zone: cut(&locality.zone), sub_zone: cut(&locality.sub_zone) }
}

fn cut(name: &str) -> String {
    name[..name.floor_char_boundary(MAX_NAME_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use xds_proto::envoy::config::core::v3 as core;

    use super::*;

    fn stats(cluster: &str, zone: &str, issued: u64, in_progress: u64) -> ClusterStats {
        ClusterStats {
            cluster_name: cluster.into(),
            upstream_locality_stats: vec![UpstreamLocalityStats {
                locality: Some(core::Locality {
                    region: "eu".into(),
                    zone: zone.into(),
                    ..Default::default()
                }),
                total_successful_requests: issued / 2,
                total_error_requests: issued - issued / 2,
                total_issued_requests: issued,
                total_requests_in_progress: in_progress,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn after(seconds: u64, start: Instant) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn reports_of_all_clients_are_added_up_by_cluster_and_locality() {
        let (mut window, start) = (LoadWindow::default(), Instant::now());
        window.report_of(1, &[stats("pay", "a", 10, 3), stats("pay", "b", 4, 0)], start);
        window.report_of(2, &[stats("pay", "a", 20, 2), stats("web", "a", 1, 0)], after(9, start));
        let loads = window.report(after(9, start));
        let shown: Vec<_> = loads
            .iter()
            .map(|load| {
                (
                    load.cluster.as_str(),
                    load.locality.to_string(),
                    load.totals.issued,
                    load.in_progress,
                    load.reporters,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("pay", "eu/a".to_owned(), 30, 5, 2),
                ("pay", "eu/b".to_owned(), 4, 0, 1),
                ("web", "eu/a".to_owned(), 1, 0, 1)
            ]
        );
        assert!((loads[0].requests_per_second - 3.0).abs() < 1e-9, "{loads:?}");
        assert_eq!((loads[0].totals.succeeded, loads[0].totals.failed), (15, 15));
    }

    #[test]
    fn a_report_counts_for_the_window_and_what_nobody_reports_is_forgotten() {
        let (mut window, start) = (LoadWindow::default(), Instant::now());
        window.report_of(1, &[stats("pay", "a", 10, 0), stats("old", "a", 1, 0)], start);
        window.report_of(1, &[stats("pay", "a", 5, 0)], after(60, start));
        assert_eq!(
            window.report(after(119, start)).iter().map(|l| l.totals.issued).collect::<Vec<_>>(),
            [1, 15]
        );
        let later = window.report(after(121, start));
        assert_eq!(
            later.iter().map(|l| (l.cluster.as_str(), l.totals.issued)).collect::<Vec<_>>(),
            [("pay", 5)]
        );
        assert_eq!(window.totals()[0].2.issued, 15, "a counter never goes back");
        assert_eq!(window.report(after(500, start)), []);
    }

    #[test]
    fn what_a_client_had_in_progress_goes_with_it() {
        let (mut window, start) = (LoadWindow::default(), Instant::now());
        window.report_of(1, &[stats("pay", "a", 10, 3)], start);
        window.report_of(2, &[stats("pay", "a", 10, 4)], start);
        window.gone(1);
        let load = &window.report(start)[0];
        assert_eq!((load.in_progress, load.reporters, load.totals.issued), (4, 1, 20));
    }

    #[test]
    fn drops_are_known_of_the_cluster_only() {
        let (mut window, start) = (LoadWindow::default(), Instant::now());
        let dropped =
            ClusterStats { cluster_name: "pay".into(), total_dropped_requests: 7, ..Default::default() };
        window.report_of(1, &[dropped], start);
        let load = &window.report(start)[0];
        assert_eq!((load.locality.to_string(), load.totals.dropped, load.reporters), ("-".to_owned(), 7, 0));
    }

    #[test]
    fn names_and_their_number_are_bounded_and_what_finds_no_room_is_counted() {
        let (mut window, start) = (LoadWindow::default(), Instant::now());
        window.report_of(1, &[stats(&"x".repeat(2_000), "a", 1, 0), stats("", "a", 1, 0)], start);
        assert_eq!(window.report(start)[0].cluster.len(), MAX_NAME_BYTES);
        let many: Vec<_> =
            (0..MAX_SERIES + 5).map(|n| stats(&n.to_string(), "a", u64::MAX, u64::MAX)).collect();
        window.report_of(1, &many, start);
        window.report_of(1, &many, start);
        assert_eq!((window.report(start).len(), window.lost()), (MAX_SERIES, 12));
    }
}
