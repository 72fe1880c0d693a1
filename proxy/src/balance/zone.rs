//! Zone-aware routing: endpoints of the proxy's own zone first, as far as that overloads none of them.
//!
//! Source: Envoy's "Zone aware routing". The proxies of all zones together send what the clients of each zone want; a zone
//! that has a larger part of the clients than of the endpoints has to send the rest elsewhere.

use std::collections::BTreeMap;

use serde::Serialize;

/// `ZoneAwareLbConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ZoneAware {
    /// Percent of requests that it is done for (default 100).
    pub enabled_percent: f64,
    /// Fewest endpoints for which it is done (default 6).
    pub min_size: u64,
    /// Whether nobody is asked in panic, rather than all.
    pub fail_on_panic: bool,
}

/// What is known of this proxy's own place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Locality of the node, `region/zone/sub_zone`.
    pub mine: String,
    /// Healthy members of the local cluster (the proxies themselves) by locality.
    pub proxies: BTreeMap<String, u64>,
}

/// The part of the traffic that each locality gets, in their order. `None`: zones are not looked at.
pub fn shares(config: &ZoneAware, place: &Place, localities: &[(&str, u64)]) -> Option<Vec<f64>> {
    let endpoints: u64 = localities.iter().map(|(_, healthy)| healthy).sum();
    let proxies: u64 = place.proxies.values().sum();
    let here = localities.iter().position(|(name, healthy)| *name == place.mine && *healthy > 0)?;
    let mine = *place.proxies.get(&place.mine)?;
    // As in Envoy: pointless with one locality, and unfair where there are fewer endpoints than proxy zones.
    let zones = localities.iter().filter(|(_, healthy)| *healthy > 0).count();
    if zones < 2 || mine == 0 || endpoints < config.min_size.max(place.proxies.len() as u64) {
        return None;
    }
    let part_of_proxies = |name: &str| place.proxies.get(name).copied().unwrap_or(0) as f64 / proxies as f64;
    let part_of_endpoints = |healthy: u64| healthy as f64 / endpoints as f64;
    let (_, healthy_here) = localities.get(here)?;
    let kept = (part_of_endpoints(*healthy_here) / part_of_proxies(&place.mine)).min(1.0);
    // What other zones have left over after serving their own.
    let spare: Vec<f64> =
        (0..)
            .zip(localities)
            .map(|(at, (name, healthy))| {
                if at == here { 0.0 } else { (part_of_endpoints(*healthy) - part_of_proxies(name)).max(0.0) }
            })
            .collect();
    let total: f64 = spare.iter().sum();
    let by_zone = |at: usize, spare: f64| {
        let rest = 1.0 - kept;
        let away = match (at == here, total > 0.0) {
            (true, true) => 0.0,
            // Nobody has anything to spare, which rounding alone can do.
            (true, false) => rest,
            (false, true) => rest * spare / total,
            (false, false) => 0.0,
        };
        if at == here { kept + away } else { away }
    };
    let enabled = (config.enabled_percent / 100.0).clamp(0.0, 1.0);
    let whole = |at: usize| localities.get(at).map_or(0.0, |(_, healthy)| part_of_endpoints(*healthy));
    let mixed = spare.iter().enumerate();
    Some(mixed.map(|(at, spare)| enabled * by_zone(at, *spare) + (1.0 - enabled) * whole(at)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: ZoneAware = ZoneAware { enabled_percent: 100.0, min_size: 2, fail_on_panic: false };

    fn place(proxies: &[(&str, u64)]) -> Place {
        let proxies = proxies.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Place { mine: "a".to_owned(), proxies }
    }

    fn percents(place: &Place, localities: &[(&str, u64)]) -> Option<Vec<u32>> {
        let shares = shares(&CONFIG, place, localities)?;
        Some(shares.into_iter().map(|share| (share * 100.0).round() as u32).collect())
    }

    #[test]
    fn everything_stays_where_there_is_room_and_the_rest_goes_where_there_is_some() {
        // As many endpoints here as there is to serve.
        assert_eq!(percents(&place(&[("a", 1), ("b", 1)]), &[("a", 5), ("b", 5)]), Some(vec![100, 0]));
        // Two thirds of the proxies, half of the endpoints: three quarters stay.
        assert_eq!(percents(&place(&[("a", 2), ("b", 1)]), &[("a", 5), ("b", 5)]), Some(vec![75, 25]));
        // c has no proxies at all, so it has more to spare than b.
        let three = percents(&place(&[("a", 3), ("b", 1)]), &[("a", 2), ("b", 3), ("c", 5)]);
        assert_eq!(three, Some(vec![27, 7, 67]));
    }

    #[test]
    fn it_is_not_done_where_it_could_do_no_good() {
        assert_eq!(percents(&place(&[("a", 1)]), &[("a", 5)]), None, "one locality");
        assert_eq!(percents(&place(&[("b", 1)]), &[("a", 5), ("b", 5)]), None, "no proxy is known here");
        assert_eq!(percents(&place(&[("a", 1)]), &[("a", 0), ("b", 5)]), None, "no endpoint is here");
        assert_eq!(percents(&place(&[("a", 1), ("b", 1)]), &[("a", 1), ("b", 0)]), None, "too few");
    }

    proptest! {
        #[test]
        fn shares_are_one_together_and_no_zone_is_sent_more_than_it_has(
            counts in prop::collection::vec((0_u64..9, 0_u64..9), 2..6),
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let proxies: Vec<_> = names.iter().zip(&counts).map(|(n, (p, _))| (*n, *p)).collect();
            let localities: Vec<_> = names.iter().zip(&counts).map(|(n, (_, e))| (*n, *e)).collect();
            let place = place(&proxies);
            if let Some(own) = shares(&CONFIG, &place, &localities) {
                prop_assert!((own.iter().sum::<f64>() - 1.0).abs() < 1e-6);
                // Summed over the proxies of all zones, each endpoint gets at most about its equal part.
                let all_proxies: u64 = proxies.iter().map(|(_, n)| n).sum();
                let endpoints: u64 = localities.iter().map(|(_, n)| n).sum();
                let sent = own[0] * proxies[0].1 as f64 / all_proxies as f64;
                prop_assert!(sent <= localities[0].1 as f64 / endpoints as f64 + 1e-6);
            }
        }
    }
}
