//! Priorities: how much of the traffic each gets, and which endpoints of it may take it.
//!
//! Source: Envoy's "Priority levels" and "Panic threshold". A priority is healthy to
//! `min(100, overprovisioning * healthy / all)` percent. Load goes to priorities in order, each up to its health;
//! first to healthy endpoints of all priorities, then to degraded ones. When all priorities together are less than 100%
//! healthy, a priority with fewer available endpoints than the panic threshold uses all it has.

use super::Health;

/// An endpoint as the balancer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Priority of the control plane; need not be gapless.
    pub priority: u32,
    /// Share within its priority. 0: never.
    pub weight: u64,
    /// What the control plane says.
    pub health: Health,
    /// What this proxy has seen.
    pub ejected: bool,
}

/// The knobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelConfig {
    /// In percent.
    pub overprovisioning: u32,
    /// In percent. 0: never panic.
    pub panic_threshold: u32,
}

/// Endpoints that one draw chooses among, by position in the list of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pool {
    pub(super) hosts: Vec<u32>,
    /// Running sums of the weights; empty when all are equal.
    pub(super) sums: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Level {
    pub(super) healthy: Pool,
    pub(super) degraded: Pool,
    pub(super) all: Pool,
    /// Percent of the traffic.
    pub(super) healthy_load: u32,
    pub(super) degraded_load: u32,
    pub(super) panic: bool,
}

/// Ready to be drawn from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Levels {
    pub(super) levels: Vec<Level>,
}

impl Pool {
    fn new(members: impl Iterator<Item = (u32, u64)>) -> Self {
        let members: Vec<_> = members.filter(|(_, weight)| *weight > 0).collect();
        let hosts = members.iter().map(|(host, _)| *host).collect();
        let equal = members.windows(2).all(|pair| matches!(pair, [a, b] if a.1 == b.1));
        let sums = if equal {
            vec![]
        } else {
            let running = members.iter().scan(0_u64, |sum, (_, weight)| {
                *sum = sum.saturating_add(*weight);
                Some(*sum)
            });
            running.collect()
        };
        Self { hosts, sums }
    }

    /// Whether there is nobody to choose.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

impl Levels {
    /// Sorts the candidates and computes the loads.
    pub fn build(candidates: &[Candidate], config: LevelConfig) -> Self {
        let mut priorities: Vec<u32> = candidates.iter().map(|c| c.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let mut levels: Vec<Level> = priorities
            .into_iter()
            .map(|priority| {
                let members = || {
                    let numbered = (0_u32..).zip(candidates);
                    numbered.filter(move |(_, c)| c.priority == priority)
                };
                let pool = |keep: fn(&Candidate) -> bool| {
                    Pool::new(members().filter(|(_, c)| keep(c)).map(|(at, c)| (at, c.weight)))
                };
                Level {
                    healthy: pool(|c| !c.ejected && c.health == Health::Healthy),
                    degraded: pool(|c| !c.ejected && c.health == Health::Degraded),
                    all: pool(|_| true),
                    ..Level::default()
                }
            })
            .filter(|level| !level.all.is_empty())
            .collect();
        share(&mut levels, config);
        Self { levels }
    }

    /// Whether there is no endpoint at all.
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// `(healthy, degraded)` percent of each priority, in order.
    pub fn loads(&self) -> Vec<(u32, u32)> {
        self.levels.iter().map(|l| (l.healthy_load, l.degraded_load)).collect()
    }
}

fn share(levels: &mut [Level], config: LevelConfig) {
    let percent = |part: usize, level: &Level, factor: u32| -> u32 {
        let scaled = (part as u64).saturating_mul(factor.into()) / (level.all.hosts.len().max(1) as u64);
        u32::try_from(scaled.min(100)).unwrap_or(100)
    };
    let health: Vec<(u32, u32)> = levels
        .iter()
        .map(|level| {
            let of = |pool: &Pool| percent(pool.hosts.len(), level, config.overprovisioning);
            (of(&level.healthy), of(&level.degraded))
        })
        .collect();
    let total = health.iter().map(|(h, d)| h + d).sum::<u32>().min(100);
    if total < 100 {
        for level in levels.iter_mut() {
            let available = percent(level.healthy.hosts.len() + level.degraded.hosts.len(), level, 100);
            level.panic = available < config.panic_threshold;
        }
    }
    if total == 0 {
        // Nobody is healthy anywhere. In panic the first priority serves; without, nobody does.
        if let Some(first) = levels.first_mut() {
            first.healthy_load = 100;
        }
        return;
    }
    let mut left = 100;
    let normalized = |health: u32, left: u32| (health * 100 / total).min(left);
    for (level, (healthy, _)) in levels.iter_mut().zip(&health) {
        level.healthy_load = normalized(*healthy, left);
        left -= level.healthy_load;
    }
    for (level, (_, degraded)) in levels.iter_mut().zip(&health) {
        level.degraded_load = normalized(*degraded, left);
        left -= level.degraded_load;
    }
    // What rounding left over goes to the first that takes anything.
    if let Some(level) = levels.iter_mut().find(|l| l.healthy_load > 0) {
        level.healthy_load += left;
    } else if let Some(level) = levels.iter_mut().find(|l| l.degraded_load > 0) {
        level.degraded_load += left;
    }
}

#[cfg(test)]
pub(in crate::balance) mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: LevelConfig = LevelConfig { overprovisioning: 140, panic_threshold: 50 };

    pub(in crate::balance) fn candidates(spec: &[(u32, usize, usize)]) -> Vec<Candidate> {
        spec.iter()
            .flat_map(|(priority, healthy, unhealthy)| {
                let make = |health| Candidate { priority: *priority, weight: 1, health, ejected: false };
                let healthy = std::iter::repeat_n(make(Health::Healthy), *healthy);
                healthy.chain(std::iter::repeat_n(make(Health::Unhealthy), *unhealthy))
            })
            .collect()
    }

    #[test]
    fn loads_are_those_of_envoys_documentation() {
        // The table of "Priority levels": healthy percent of P0 and P1, and the traffic that each gets.
        for (p0, p1, expected) in [
            (100, 100, (100, 0)),
            (72, 100, (100, 0)),
            (71, 100, (99, 1)),
            (50, 100, (70, 30)),
            (25, 100, (35, 65)),
            (0, 100, (0, 100)),
            (25, 25, (50, 50)),
        ] {
            let all = candidates(&[(0, p0, 100 - p0), (1, p1, 100 - p1)]);
            let loads = Levels::build(&all, CONFIG).loads();
            assert_eq!((loads[0].0, loads[1].0), expected, "{p0} {p1}");
        }
    }

    #[test]
    fn degraded_endpoints_come_after_healthy_ones_of_every_priority() {
        let mut all = candidates(&[(0, 1, 1), (1, 1, 3)]);
        all[1].health = Health::Degraded;
        let levels = Levels::build(&all, CONFIG);
        // P0: 70% healthy, 70% degraded; P1: 35% healthy.
        assert_eq!(levels.loads(), [(70, 0), (30, 0)]);
        all[0].ejected = true;
        assert_eq!(Levels::build(&all, CONFIG).loads(), [(0, 65), (35, 0)]);
    }

    #[test]
    fn panic_only_when_all_priorities_together_are_not_enough() {
        let levels = Levels::build(&candidates(&[(0, 1, 3), (1, 4, 0)]), CONFIG);
        assert!(!levels.levels[0].panic);
        let levels = Levels::build(&candidates(&[(0, 1, 3), (1, 1, 3)]), CONFIG);
        assert!(levels.levels[0].panic && levels.levels[1].panic);
    }

    #[test]
    fn a_factor_below_100_leaves_a_share_to_the_next_priority_if_there_is_one() {
        let loads = |spec: &[(u32, usize, usize)], overprovisioning| {
            let loads =
                Levels::build(&candidates(spec), LevelConfig { overprovisioning, panic_threshold: 0 })
                    .loads();
            loads.into_iter().map(|(healthy, _)| healthy).collect::<Vec<_>>()
        };
        assert_eq!(loads(&[(0, 3, 0), (1, 2, 0)], 90), [90, 10]);
        assert_eq!(loads(&[(0, 3, 0), (1, 2, 0)], 50), [50, 50]);
        assert_eq!(loads(&[(0, 3, 0), (1, 0, 2)], 50), [100, 0], "nobody is there");
        assert_eq!(loads(&[(0, 3, 0)], 50), [100]);
    }

    proptest! {
        #[test]
        fn loads_always_add_up_to_everything(
            spec in prop::collection::vec((0_u32..5, 0_usize..6, 0_usize..6), 0..6), factor in 0_u32..1000,
        ) {
            let config = LevelConfig { overprovisioning: factor, panic_threshold: 50 };
            let levels = Levels::build(&candidates(&spec), config);
            let sum: u32 = levels.loads().iter().map(|(h, d)| h + d).sum();
            prop_assert_eq!(sum, if levels.is_empty() { 0 } else { 100 });
        }
    }
}
