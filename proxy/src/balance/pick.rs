//! Drawing one endpoint.

use rand::Rng;
use serde::Serialize;

use super::levels::{Level, Levels, Pool};

/// `Cluster.lb_policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// In turn.
    RoundRobin,
    /// The least busy of so many drawn at random.
    LeastRequest {
        /// Draws; at least 2.
        choices: u32,
    },
    /// At random.
    Random,
}

/// Chooses an endpoint, by its position in the list that `levels` was built from.
///
/// * `cursor` is counted up by the caller with every draw; only round robin looks at it.
/// * `active` says how many requests an endpoint is serving; only least request looks at it.
/// * `tried` are endpoints that failed this request: none of them is drawn while any other available endpoint
///   of any priority is left.
pub fn pick<R: Rng>(
    levels: &Levels,
    policy: Policy,
    cursor: u64,
    rng: &mut R,
    active: impl Fn(u32) -> u64,
    tried: &[u32],
) -> Option<u32> {
    let (at, pool) = choose_pool(levels, rng)?;
    let mut draw = |pool: &Pool| draw(pool, policy, cursor, rng, &active);
    if tried.is_empty() {
        return draw(pool);
    }
    let fresh = |pool: &Pool| without(pool, tried);
    let same = fresh(pool);
    if !same.is_empty() {
        return draw(&same);
    }
    // This priority is used up: the less wanted ones first, then those before.
    let (before, from) = levels.levels.split_at(at);
    for level in from.iter().chain(before) {
        for pool in available(level) {
            let fresh = fresh(pool);
            if !fresh.is_empty() {
                return draw(&fresh);
            }
        }
    }
    draw(pool)
}

fn choose_pool<'a, R: Rng>(levels: &'a Levels, rng: &mut R) -> Option<(usize, &'a Pool)> {
    let of = |at: usize, level: &'a Level, healthy: bool| {
        let pool = match (level.panic, healthy) {
            (true, _) => &level.all,
            (false, true) => &level.healthy,
            (false, false) => &level.degraded,
        };
        (!pool.is_empty()).then_some((at, pool))
    };
    // By far the most common: the first priority takes it all.
    if let Some(first) = levels.levels.first()
        && first.healthy_load == 100
    {
        return of(0, first, true);
    }
    let mut ticket = rng.random_range(0..100_u32);
    for healthy in [true, false] {
        for (at, level) in levels.levels.iter().enumerate() {
            let load = if healthy { level.healthy_load } else { level.degraded_load };
            match ticket.checked_sub(load) {
                Some(left) => ticket = left,
                None => return of(at, level, healthy),
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
    let mut kept = Pool::default();
    let mut sum = 0;
    for (at, host) in pool.hosts.iter().enumerate() {
        let weight = pool.weight(at);
        if !tried.contains(host) {
            sum += weight;
            kept.hosts.push(*host);
            if !pool.sums.is_empty() {
                kept.sums.push(sum);
            }
        }
    }
    kept
}

impl Pool {
    fn weight(&self, at: usize) -> u64 {
        let sum = |at: usize| self.sums.get(at).copied().unwrap_or(0);
        if self.sums.is_empty() { 1 } else { sum(at) - at.checked_sub(1).map_or(0, sum) }
    }

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
}

fn draw<R: Rng>(
    pool: &Pool,
    policy: Policy,
    cursor: u64,
    rng: &mut R,
    active: &impl Fn(u32) -> u64,
) -> Option<u32> {
    let at = match policy {
        _ if pool.hosts.len() == 1 => 0,
        Policy::RoundRobin => pool.in_turn(cursor),
        Policy::Random => pool.random(rng),
        Policy::LeastRequest { choices } => {
            // Weight decides how often an endpoint is looked at, its load whether it is taken: in proportion to the
            // weights while idle, and levelled out when busy.
            let load = |at: usize| pool.hosts.get(at).map_or(u64::MAX, |h| active(*h));
            let mut best = pool.random(rng);
            for _ in 1..choices.clamp(2, 16) {
                let other = pool.random(rng);
                if load(other) < load(best) {
                    best = other;
                }
            }
            best
        }
    };
    pool.hosts.get(at).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::{
        super::{Candidate, Health, LevelConfig, levels::tests::candidates},
        *,
    };

    const CONFIG: LevelConfig = LevelConfig { overprovisioning: 140, panic_threshold: 50 };
    const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::LeastRequest { choices: 2 }, Policy::Random];

    fn shares(levels: &Levels, policy: Policy, hosts: usize) -> Vec<usize> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = vec![0; hosts];
        for cursor in 0..10_000 {
            counts[pick(levels, policy, cursor, &mut rng, |_| 0, &[]).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn every_policy_honours_weights() {
        let mut all = candidates(&[(0, 3, 0)]);
        all[0].weight = 8;
        all[2].weight = 0;
        let levels = Levels::build(&all, CONFIG);
        for policy in POLICIES {
            let counts = shares(&levels, policy, 3);
            assert!((8600..9200).contains(&counts[0]), "{policy:?} {counts:?}");
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
        let policy = Policy::LeastRequest { choices: 2 };
        let busy = (0..1000)
            .filter(|_| pick(&levels, policy, 0, &mut rng, |h| u64::from(h == 0) * 9, &[]) == Some(0))
            .count();
        assert!((200..300).contains(&busy), "{busy}");
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
            let mut next = |tried: &[u32]| pick(&levels, Policy::RoundRobin, cursor, &mut rng, |_| 0, tried);
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
        assert_eq!(pick(&levels, Policy::Random, 0, &mut rng, |_| 0, &[]), None);
    }

    proptest! {
        #[test]
        fn a_retry_never_repeats_a_host_while_another_available_one_is_left(
            hosts in prop::collection::vec((0_u32..3, 0_u64..4, 0_u8..3, any::<bool>()), 1..12),
            policy in 0_usize..3, seed in any::<u64>(), cursor in any::<u64>(),
        ) {
            let all: Vec<Candidate> = hosts.iter().map(|(priority, weight, health, ejected)| Candidate {
                priority: *priority,
                weight: *weight,
                health: [Health::Healthy, Health::Degraded, Health::Unhealthy][usize::from(*health)],
                ejected: *ejected,
            }).collect();
            let levels = Levels::build(&all, LevelConfig { panic_threshold: 0, ..CONFIG });
            let usable = |c: &Candidate| c.weight > 0 && !c.ejected && c.health != Health::Unhealthy;
            let mut rng = StdRng::seed_from_u64(seed);
            let mut tried = vec![];
            for n in 0..all.iter().filter(|c| usable(c)).count() as u64 {
                let host = pick(&levels, POLICIES[policy], cursor.wrapping_add(n), &mut rng, |_| 0, &tried).unwrap();
                prop_assert!(usable(&all[host as usize]));
                prop_assert!(!tried.contains(&host));
                tried.push(host);
            }
        }
    }
}
