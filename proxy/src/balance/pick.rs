//! Drawing one endpoint.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use serde::Serialize;

use super::{
    levels::{Hashing, Level, Levels, Pool},
    table::TableKind,
};

/// `Cluster.lb_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// In turn.
    RoundRobin,
    /// The least busy of so many drawn at random.
    LeastRequest {
        /// Draws; at least 2.
        choices: u32,
        /// How much load counts against weight where weights differ: `weight / (active + 1) ^ bias`.
        bias: f64,
        /// Whether all are looked at instead.
        full_scan: bool,
    },
    /// At random.
    Random,
    /// By the hash of the request; at random where it has none.
    Hash(TableKind),
}

/// What a draw goes by.
#[derive(Debug, Clone, Copy)]
pub struct Draw<'a, A> {
    /// Counted up with every draw; only round robin looks at it.
    pub cursor: u64,
    /// Of the request.
    pub hash: Option<u64>,
    /// How many requests an endpoint is serving.
    pub active: A,
    /// How many all of them are serving; only looked at where load is bounded.
    pub active_total: u64,
    /// Endpoints that failed this request: none of them is drawn while any other available endpoint of any
    /// priority is left.
    pub tried: &'a [u32],
}

/// Draws from a weighted pool among which least request then chooses by load.
const WEIGHTED_DRAWS: usize = 16;

/// Chooses an endpoint, by its position in the list that `levels` was built from.
pub fn pick<R: Rng, A: Fn(u32) -> u64>(
    levels: &Levels,
    policy: Policy,
    rng: &mut R,
    draw: &Draw<'_, A>,
) -> Option<u32> {
    let hash = match policy {
        Policy::Hash(_) => Some(draw.hash.unwrap_or_else(|| rng.random())),
        Policy::RoundRobin | Policy::LeastRequest { .. } | Policy::Random => None,
    };
    // A hash decides on the priority too: it must not depend on chance.
    let (at, pool) = choose_pool(levels, |levels_of: u32| match hash {
        Some(hash) => (hash % u64::from(levels_of)) as u32,
        None => rng.random_range(0..levels_of),
    })?;
    if let (Some(hash), Some(hashing)) = (hash, &levels.hashing) {
        return by_hash(levels, hashing, at, pool, hash, draw);
    }
    if draw.tried.is_empty() {
        return draw_from(pool, policy, rng, draw);
    }
    let fresh = |pool: &Pool| without(pool, draw.tried);
    let same = fresh(pool);
    if !same.is_empty() {
        return draw_from(&same, policy, rng, draw);
    }
    for pool in others(levels, at) {
        let fresh = fresh(pool);
        if !fresh.is_empty() {
            return draw_from(&fresh, policy, rng, draw);
        }
    }
    draw_from(pool, policy, rng, draw)
}

/// When a priority is used up: the less wanted ones first, then those before.
fn others(levels: &Levels, at: usize) -> impl Iterator<Item = &Pool> {
    let (before, from) = levels.levels.split_at(at);
    from.iter().chain(before).flat_map(available)
}

fn by_hash<A: Fn(u32) -> u64>(
    levels: &Levels,
    hashing: &Hashing,
    at: usize,
    pool: &Pool,
    hash: u64,
    draw: &Draw<'_, A>,
) -> Option<u32> {
    let tried = |host| draw.tried.contains(&host);
    if draw.tried.is_empty() {
        let first = pool.table(hashing).find(hash, |_| false)?;
        return match hashing.balance_percent {
            None => Some(first),
            Some(percent) => Some(bounded(pool, percent, first, hash, draw)),
        };
    }
    let fresh = pool.table(hashing).find(hash, tried);
    fresh
        .or_else(|| others(levels, at).find_map(|pool| pool.table(hashing).find(hash, tried)))
        .or_else(|| pool.table(hashing).find(hash, |_| false))
}

/// Consistent hashing with bounded loads: an endpoint that has more than its part is passed over for others, in an order
/// that depends on the hash only (Envoy's `BoundedLoadHashingLoadBalancer`).
fn bounded<A: Fn(u32) -> u64>(pool: &Pool, percent: u32, first: u32, hash: u64, draw: &Draw<'_, A>) -> u32 {
    let slots = (draw.active_total + 1).saturating_mul(percent.into()).div_ceil(100);
    let overload = |at: usize, host: u32| {
        let part = pool.weight(at) as f64 / pool.total().max(1) as f64;
        let own = (slots as f64 * part).ceil().max(1.0);
        ((draw.active)(host) as f64 / own).floor()
    };
    let place = pool.hosts.binary_search(&first).unwrap_or(0);
    let mut best = (overload(place, first), first);
    if best.0 < 1.0 {
        return first;
    }
    let mut order: Vec<usize> = (0..pool.hosts.len()).collect();
    order.shuffle(&mut rand::rngs::StdRng::seed_from_u64(hash));
    for at in order {
        let Some(host) = pool.hosts.get(at) else { continue };
        let load = overload(at, *host);
        if load < 1.0 {
            return *host;
        }
        if load < best.0 {
            best = (load, *host);
        }
    }
    best.1
}

fn choose_pool(levels: &Levels, ticket: impl FnOnce(u32) -> u32) -> Option<(usize, &Pool)> {
    fn of(levels: &Levels, at: usize, healthy: bool) -> Option<(usize, &Pool)> {
        let level = levels.levels.get(at)?;
        let pool = match (level.panic, healthy) {
            (true, _) if levels.fail_on_panic => return None,
            (true, _) => &level.all,
            (false, true) => &level.healthy,
            (false, false) => &level.degraded,
        };
        (!pool.is_empty()).then_some((at, pool))
    }
    // By far the most common: the first priority takes it all.
    if levels.levels.first()?.healthy_load == 100 {
        return of(levels, 0, true);
    }
    let mut ticket = ticket(100);
    for healthy in [true, false] {
        for (at, level) in levels.levels.iter().enumerate() {
            let load = if healthy { level.healthy_load } else { level.degraded_load };
            match ticket.checked_sub(load) {
                Some(left) => ticket = left,
                None => return of(levels, at, healthy),
            }
        }
    }
    None
}

fn available(level: &Level) -> impl Iterator<Item = &Pool> {
    let panic = level.panic.then_some(&level.all);
    [&level.healthy, &level.degraded].into_iter().chain(panic)
}

fn without(pool: &Pool, tried: &[u32]) -> Pool {
    let (mut hosts, mut sums) = (vec![], vec![]);
    let mut sum = 0;
    for (at, host) in pool.hosts.iter().enumerate() {
        let weight = pool.weight(at);
        if !tried.contains(host) {
            sum += weight;
            hosts.push(*host);
            if !pool.sums.is_empty() {
                sums.push(sum);
            }
        }
    }
    Pool::of(hosts, sums)
}

impl Pool {
    /// The position that a ticket below the total weight falls on.
    fn at_ticket(&self, ticket: u64) -> usize {
        self.sums.partition_point(|sum| *sum <= ticket)
    }

    fn random<R: Rng>(&self, rng: &mut R) -> usize {
        match self.sums.last() {
            None => rng.random_range(0..self.hosts.len().max(1)),
            Some(total) => self.at_ticket(rng.random_range(0..(*total).max(1))),
        }
    }

    fn in_turn(&self, cursor: u64) -> usize {
        match self.sums.last() {
            None => (cursor % (self.hosts.len().max(1) as u64)) as usize,
            // The golden ratio's multiples fill the circle evenly in any order of arrival: after n draws each
            // endpoint has had its share to within a few, without bursts on heavy ones and without shared state.
            Some(total) => {
                const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
                let turn = u128::from(cursor.wrapping_mul(GOLDEN));
                self.at_ticket(((turn * u128::from(*total)) >> 64) as u64)
            }
        }
    }

    /// The least busy of some, the first drawn among equals.
    fn idlest(&self, drawn: impl Iterator<Item = usize>, load: impl Fn(usize) -> u64) -> usize {
        drawn.min_by_key(|at| load(*at)).unwrap_or(0)
    }

    /// In proportion to `weight / (load + 1) ^ bias`: drawn by weight, and taken from among those by load.
    fn weighed<R: Rng>(&self, rng: &mut R, bias: f64, load: impl Fn(usize) -> u64) -> usize {
        let mut drawn = [(0_usize, 0.0_f64); WEIGHTED_DRAWS];
        let mut sum = 0.0;
        for slot in &mut drawn {
            let at = self.random(rng);
            sum += (load(at) as f64 + 1.0).powf(-bias);
            *slot = (at, sum);
        }
        let ticket = rng.random_range(0.0..1.0) * sum;
        drawn.iter().find(|(_, sum)| ticket < *sum).or(drawn.last()).map_or(0, |(at, _)| *at)
    }
}

fn draw_from<R: Rng, A: Fn(u32) -> u64>(
    pool: &Pool,
    policy: Policy,
    rng: &mut R,
    draw: &Draw<'_, A>,
) -> Option<u32> {
    let load = |at: usize| pool.hosts.get(at).map_or(u64::MAX, |h| (draw.active)(*h));
    let at = match policy {
        _ if pool.hosts.len() == 1 => 0,
        Policy::RoundRobin => pool.in_turn(draw.cursor),
        // Hashed pools never come here: their table chooses.
        Policy::Random | Policy::Hash(_) => pool.random(rng),
        Policy::LeastRequest { full_scan: true, .. } => {
            // From a random place on, so that equally idle ones are taken alike.
            let (from, len) = (rng.random_range(0..pool.hosts.len().max(1)), pool.hosts.len());
            pool.idlest((from..len).chain(0..from), load)
        }
        Policy::LeastRequest { bias, .. } if !pool.sums.is_empty() => pool.weighed(rng, bias, load),
        Policy::LeastRequest { choices, .. } => {
            let draws = choices.clamp(2, 100);
            pool.idlest((0..draws).map(|_| pool.random(rng)), load)
        }
    };
    pool.hosts.get(at).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use std::sync::Arc;

    use super::{
        super::{
            Candidate, Health, LevelConfig,
            hash::{HashFunction, xx},
            levels::tests::{CONFIG, candidates},
        },
        *,
    };

    const LEAST: Policy = Policy::LeastRequest { choices: 2, bias: 1.0, full_scan: false };
    const RING: TableKind = TableKind::Ring { function: HashFunction::XxHash, min: 4096, max: 1 << 23 };
    const MAGLEV: TableKind = TableKind::Maglev { size: 5003 };
    const POLICIES: [Policy; 5] =
        [Policy::RoundRobin, LEAST, Policy::Random, Policy::Hash(RING), Policy::Hash(MAGLEV)];

    fn draw<A: Fn(u32) -> u64>(cursor: u64, active: A, tried: &[u32]) -> Draw<'_, A> {
        Draw { cursor, hash: None, active, active_total: 0, tried }
    }

    /// Levels with tables for the policies that need them.
    fn levels(all: &[Candidate], policy: Policy, config: LevelConfig<'_>) -> Levels {
        let hashing = match policy {
            Policy::Hash(kind) => {
                let keys = (0..all.len()).map(|n| format!("10.0.0.{n}:80").into()).collect();
                Some(Arc::new(Hashing { kind, keys, balance_percent: None }))
            }
            _ => None,
        };
        Levels::build(all, LevelConfig { hashing: hashing.as_ref(), ..config })
    }

    fn shares(levels: &Levels, policy: Policy, hosts: usize) -> Vec<usize> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = vec![0; hosts];
        for cursor in 0..10_000 {
            counts[pick(levels, policy, &mut rng, &draw(cursor, |_| 0, &[])).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn every_policy_honours_weights() {
        let mut all = candidates(&[(0, 3, 0)]);
        all[0].weight = 8;
        all[2].weight = 0;
        for policy in POLICIES {
            let counts = shares(&levels(&all, policy, CONFIG), policy, 3);
            assert!((8500..9300).contains(&counts[0]), "{policy:?} {counts:?}");
            assert_eq!(counts[2], 0);
        }
    }

    #[test]
    fn round_robin_takes_turns() {
        let levels = Levels::build(&candidates(&[(0, 4, 0)]), CONFIG);
        assert_eq!(shares(&levels, Policy::RoundRobin, 4), [2500; 4]);
    }

    #[test]
    fn least_request_avoids_the_busy_one() {
        let levels = Levels::build(&candidates(&[(0, 2, 0)]), CONFIG);
        let mut rng = StdRng::seed_from_u64(1);
        let mut busy = |policy| {
            let busy = draw(0, |h| u64::from(h == 0) * 9, &[]);
            (0..1000).filter(|_| pick(&levels, policy, &mut rng, &busy) == Some(0)).count()
        };
        assert!((200..300).contains(&busy(LEAST)));
        // With more choices it is drawn alone ever more rarely.
        assert!(busy(Policy::LeastRequest { choices: 5, bias: 1.0, full_scan: false }) < 80);
        assert_eq!(busy(Policy::LeastRequest { choices: 2, bias: 1.0, full_scan: true }), 0);
    }

    #[test]
    fn where_weights_differ_load_counts_against_them_as_much_as_it_is_told_to() {
        let mut all = candidates(&[(0, 2, 0)]);
        all[0].weight = 4;
        let levels = Levels::build(&all, CONFIG);
        // The heavy one serves three requests already: 4 / 4^bias against 1.
        for (bias, expected) in [(0.0, 8_000), (0.5, 6_667), (1.0, 5_000)] {
            let policy = Policy::LeastRequest { choices: 2, bias, full_scan: false };
            let mut rng = StdRng::seed_from_u64(1);
            let loaded = draw(0, |h| u64::from(h == 0) * 3, &[]);
            let taken = (0..10_000).filter(|_| pick(&levels, policy, &mut rng, &loaded) == Some(0)).count();
            // Sixteen draws stand for all of them: a few percent off.
            assert!(taken.abs_diff(expected) < 400, "{bias} {taken}");
        }
    }

    #[test]
    fn the_same_hash_is_the_same_endpoint_also_among_priorities() {
        let all = candidates(&[(0, 2, 2), (1, 4, 0)]);
        for kind in [RING, MAGLEV] {
            let policy = Policy::Hash(kind);
            let levels = levels(&all, policy, CONFIG);
            let mut first = 0;
            for n in 0..1000_u64 {
                let ask = |seed| {
                    let hashed = Draw { hash: Some(xx(&n.to_le_bytes(), 0)), ..draw(seed, |_| 0, &[]) };
                    pick(&levels, policy, &mut StdRng::seed_from_u64(seed), &hashed).unwrap()
                };
                let host = ask(1);
                assert_eq!(host, ask(2));
                first += u32::from(host < 2);
            }
            // Half of the first priority is healthy: it takes 70 percent.
            assert!((650..750).contains(&first), "{first}");
        }
    }

    #[test]
    fn a_bound_on_load_sends_what_is_too_much_elsewhere() {
        let all = candidates(&[(0, 4, 0)]);
        let hash = 99;
        let keys = (0..4).map(|n| format!("10.0.0.{n}:80").into()).collect();
        let hashing = Arc::new(Hashing { kind: RING, keys, balance_percent: Some(150) });
        let levels = Levels::build(&all, LevelConfig { hashing: Some(&hashing), ..CONFIG });
        let mut rng = StdRng::seed_from_u64(1);
        let mut active = [0_u64; 4];
        for n in 0..400_u64 {
            let bounded =
                Draw { hash: Some(hash), active_total: n, ..draw(0, |host| active[host as usize], &[]) };
            let host = pick(&levels, Policy::Hash(RING), &mut rng, &bounded).unwrap();
            active[host as usize] += 1;
        }
        // One key has all the traffic, and nobody more than half again as much as the average.
        assert!(active.iter().all(|count| *count <= 151), "{active:?}");
        assert!(active.iter().any(|count| *count > 140), "{active:?}");
    }

    #[test]
    fn traffic_moves_to_the_next_priority_with_the_health_of_the_first() {
        let levels = Levels::build(&candidates(&[(0, 1, 1), (1, 2, 0)]), CONFIG);
        let counts = shares(&levels, Policy::Random, 4);
        assert!((6800..7200).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[1], 0);
    }

    #[test]
    fn a_retry_goes_to_the_next_priority_only_when_this_one_is_used_up() {
        let levels = Levels::build(&candidates(&[(0, 2, 0), (1, 1, 0)]), CONFIG);
        let mut rng = StdRng::seed_from_u64(1);
        for cursor in 0..100 {
            let mut next =
                |tried: &[u32]| pick(&levels, Policy::RoundRobin, &mut rng, &draw(cursor, |_| 0, tried));
            assert_eq!(next(&[0]), Some(1));
            assert_eq!(next(&[0, 1]), Some(2));
            assert!(next(&[0, 1, 2]).is_some_and(|host| host < 2), "all failed: back to the first priority");
        }
    }

    #[test]
    fn without_panic_nobody_unhealthy_is_drawn() {
        let config = LevelConfig { panic_threshold: 0, ..CONFIG };
        let levels = Levels::build(&candidates(&[(0, 0, 3)]), config);
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(pick(&levels, Policy::Random, &mut rng, &draw(0, |_| 0, &[])), None);
    }

    proptest! {
        #[test]
        fn a_retry_never_repeats_a_host_while_another_available_one_is_left(
            hosts in prop::collection::vec((0_u32..3, 0_u64..4, 0_u8..3, any::<bool>()), 1..12),
            policy in 0_usize..5, seed in any::<u64>(), cursor in any::<u64>(),
        ) {
            let all: Vec<Candidate> = hosts.iter().map(|(priority, weight, health, ejected)| Candidate {
                priority: *priority,
                weight: *weight,
                health: [Health::Healthy, Health::Degraded, Health::Unhealthy][usize::from(*health)],
                ejected: *ejected,
                locality: 0,
                locality_weight: 1,
            }).collect();
            let levels = levels(&all, POLICIES[policy], LevelConfig { panic_threshold: 0, ..CONFIG });
            let usable = |c: &Candidate| c.weight > 0 && !c.ejected && c.health != Health::Unhealthy;
            let mut rng = StdRng::seed_from_u64(seed);
            let mut tried = vec![];
            for n in 0..all.iter().filter(|c| usable(c)).count() as u64 {
                let drawn = draw(cursor.wrapping_add(n), |_| 0, &tried);
                let host = pick(&levels, POLICIES[policy], &mut rng, &drawn).unwrap();
                prop_assert!(usable(&all[host as usize]));
                prop_assert!(!tried.contains(&host));
                tried.push(host);
            }
        }
    }
}
