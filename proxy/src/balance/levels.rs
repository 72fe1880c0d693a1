//! Priorities: how much of the traffic each gets, and which endpoints of it may take it.
//!
//! Source: Envoy's "Priority levels" and "Panic threshold". A priority is healthy to
//! `min(100, overprovisioning * healthy / all)` percent. Load goes to priorities in order, each up to its health;
//! first to healthy endpoints of all priorities, then to degraded ones. When all priorities together are less than 100%
//! healthy, a priority with fewer available endpoints than the panic threshold uses all it has.

use std::sync::{Arc, OnceLock};

use super::{
    Health,
    table::{Member, Table, TableKind},
    zone::{self, Place, ZoneAware},
};

/// An endpoint as the balancer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Priority of the control plane; need not be gapless.
    pub priority: u32,
    /// Share within its priority, or within its locality where localities share first. 0: never.
    pub weight: u64,
    /// What the control plane and active health checks say.
    pub health: Health,
    /// What this proxy has seen.
    pub ejected: bool,
    /// Position of its locality.
    pub locality: usize,
    /// Share of its locality; only looked at where localities share first.
    pub locality_weight: u32,
}

/// Which locality gets how much.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Spread<'a> {
    /// Localities are not looked at.
    #[default]
    Flat,
    /// By their weights, less where they are not healthy (Envoy's locality-weighted balancing).
    Weighted,
    /// See [`zone`].
    Zones {
        /// The knobs.
        config: &'a ZoneAware,
        /// This proxy's own.
        place: &'a Place,
        /// Of the localities, by position.
        names: &'a [&'a str],
    },
}

/// How tables of consistent hashing are made, when one is first asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashing {
    /// Ring or Maglev.
    pub kind: TableKind,
    /// What a candidate is called, by position.
    pub keys: Vec<Arc<str>>,
    /// Most requests of an endpoint, in percent of the average. `None`: no bound.
    pub balance_percent: Option<u32>,
}

/// The knobs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelConfig<'a> {
    /// In percent.
    pub overprovisioning: u32,
    /// In percent. 0: never panic.
    pub panic_threshold: u32,
    /// See [`Spread`].
    pub spread: Spread<'a>,
    /// For policies that hash.
    pub hashing: Option<&'a Arc<Hashing>>,
}

/// Endpoints that one draw chooses among, by position in the list of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pool {
    pub(super) hosts: Vec<u32>,
    /// Running sums of the weights; empty when all are equal.
    pub(super) sums: Vec<u64>,
    table: OnceLock<Table>,
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
    pub(super) hashing: Option<Arc<Hashing>>,
    /// Whether nobody is drawn in panic.
    pub(super) fail_on_panic: bool,
}

/// Weights of fractions: fine enough for one among a hundred thousand.
const SCALE: f64 = (1_u64 << 48) as f64;

impl Pool {
    fn new(mut members: Vec<(u32, u64)>) -> Self {
        members.retain(|(_, weight)| *weight > 0);
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
        Self { hosts, sums, table: OnceLock::new() }
    }

    /// Whether there is nobody to choose.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// The weight of the member at this position.
    pub(super) fn weight(&self, at: usize) -> u64 {
        let sum = |at: usize| self.sums.get(at).copied().unwrap_or(0);
        if self.sums.is_empty() { 1 } else { sum(at) - at.checked_sub(1).map_or(0, sum) }
    }

    /// The sum of all weights.
    pub(super) fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(self.hosts.len() as u64)
    }

    pub(super) fn table(&self, hashing: &Hashing) -> &Table {
        self.table.get_or_init(|| {
            let member = |(at, host): (usize, &u32)| {
                let key = hashing.keys.get(*host as usize)?;
                Some(Member { host: *host, weight: self.weight(at), key })
            };
            let members: Vec<_> = self.hosts.iter().enumerate().filter_map(member).collect();
            Table::build(hashing.kind, &members)
        })
    }

    /// These members and their weights.
    pub(super) fn of(hosts: Vec<u32>, sums: Vec<u64>) -> Self {
        Self { hosts, sums, table: OnceLock::new() }
    }
}

/// The members of one priority, and how their localities share.
struct Members<'a> {
    all: Vec<(u32, &'a Candidate)>,
    config: LevelConfig<'a>,
    first: bool,
}

impl Members<'_> {
    fn pool(&self, keep: impl Fn(&Candidate) -> bool) -> Pool {
        let kept: Vec<_> = self.all.iter().filter(|(_, c)| keep(c)).copied().collect();
        let shares = match self.config.spread {
            Spread::Flat => None,
            Spread::Weighted => Some(self.weighted(&kept)),
            // Other priorities are for when this one is not enough: zones no longer matter then.
            Spread::Zones { config, place, names } if self.first => {
                let count = |locality| kept.iter().filter(|(_, c)| c.locality == locality).count() as u64;
                let localities: Vec<_> =
                    names.iter().enumerate().map(|(at, name)| (*name, count(at))).collect();
                zone::shares(config, place, &localities)
            }
            Spread::Zones { .. } => None,
        };
        let Some(shares) = shares else {
            return Pool::new(kept.iter().map(|(at, c)| (*at, c.weight)).collect());
        };
        let mut sums = vec![0_u64; shares.len()];
        for (_, candidate) in &kept {
            if let Some(sum) = sums.get_mut(candidate.locality) {
                *sum += candidate.weight;
            }
        }
        let weight = |c: &Candidate| {
            let share = shares.get(c.locality).copied().unwrap_or(0.0);
            let sum = sums.get(c.locality).copied().unwrap_or(0);
            if share <= 0.0 || sum == 0 || c.weight == 0 {
                return 0;
            }
            ((share * (c.weight as f64 / sum as f64) * SCALE) as u64).max(1)
        };
        Pool::new(kept.iter().map(|(at, c)| (*at, weight(c))).collect())
    }

    /// `effective = weight * min(1, overprovisioning * kept / all)`, as parts of one.
    fn weighted(&self, kept: &[(u32, &Candidate)]) -> Vec<f64> {
        let localities = self.all.iter().map(|(_, c)| c.locality + 1).max().unwrap_or(0);
        let count = |of: &[(u32, &Candidate)]| {
            let mut counts = vec![0_u32; localities];
            for (_, c) in of {
                if let Some(count) = counts.get_mut(c.locality) {
                    *count += 1;
                }
            }
            counts
        };
        let mut shares = vec![0.0; localities];
        let (all, left) = (count(&self.all), count(kept));
        for (_, c) in kept {
            let of = |counts: &[u32]| f64::from(counts.get(c.locality).copied().unwrap_or(0));
            let ratio = of(&left) / of(&all).max(1.0) * f64::from(self.config.overprovisioning) / 100.0;
            if let Some(share) = shares.get_mut(c.locality) {
                *share = f64::from(c.locality_weight) * ratio.min(1.0);
            }
        }
        let total: f64 = shares.iter().sum();
        shares.into_iter().map(|share| if total > 0.0 { share / total } else { 0.0 }).collect()
    }
}

impl Levels {
    /// Sorts the candidates and computes the loads.
    pub fn build(candidates: &[Candidate], config: LevelConfig<'_>) -> Self {
        Self::of((0_u32..).zip(candidates).collect(), config)
    }

    /// The same for some of the candidates, with their positions.
    pub fn of(mut members: Vec<(u32, &Candidate)>, config: LevelConfig<'_>) -> Self {
        members.retain(|(_, c)| c.weight > 0);
        let mut priorities: Vec<u32> = members.iter().map(|(_, c)| c.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let first = priorities.first().copied();
        let mut levels: Vec<Level> = priorities
            .into_iter()
            .map(|priority| {
                let of_priority = members.iter().filter(|(_, c)| c.priority == priority).copied();
                let members = Members { all: of_priority.collect(), config, first: first == Some(priority) };
                Level {
                    healthy: members.pool(|c| !c.ejected && c.health == Health::Healthy),
                    degraded: members.pool(|c| !c.ejected && c.health == Health::Degraded),
                    // In panic nothing but the weights of endpoints counts.
                    all: Pool::new(members.all.iter().map(|(at, c)| (*at, c.weight)).collect()),
                    ..Level::default()
                }
            })
            .collect();
        share(&mut levels, config);
        let fail_on_panic = matches!(config.spread, Spread::Zones { config, .. } if config.fail_on_panic);
        Self { levels, hashing: config.hashing.cloned(), fail_on_panic }
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

fn share(levels: &mut [Level], config: LevelConfig<'_>) {
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

    pub(in crate::balance) const CONFIG: LevelConfig<'static> =
        LevelConfig { overprovisioning: 140, panic_threshold: 50, spread: Spread::Flat, hashing: None };

    pub(in crate::balance) fn candidates(spec: &[(u32, usize, usize)]) -> Vec<Candidate> {
        spec.iter()
            .flat_map(|(priority, healthy, unhealthy)| {
                let make = |health| Candidate {
                    priority: *priority,
                    weight: 1,
                    health,
                    ejected: false,
                    locality: 0,
                    locality_weight: 1,
                };
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
            let loads = Levels::build(
                &candidates(spec),
                LevelConfig { overprovisioning, panic_threshold: 0, ..CONFIG },
            )
            .loads();
            loads.into_iter().map(|(healthy, _)| healthy).collect::<Vec<_>>()
        };
        assert_eq!(loads(&[(0, 3, 0), (1, 2, 0)], 90), [90, 10]);
        assert_eq!(loads(&[(0, 3, 0), (1, 2, 0)], 50), [50, 50]);
        assert_eq!(loads(&[(0, 3, 0), (1, 0, 2)], 50), [100, 0], "nobody is there");
        assert_eq!(loads(&[(0, 3, 0)], 50), [100]);
    }

    #[test]
    fn localities_share_by_weight_before_endpoints_do_and_less_where_they_are_not_healthy() {
        let config = LevelConfig { spread: Spread::Weighted, ..CONFIG };
        let mut all = candidates(&[(0, 4, 0)]);
        for (candidate, (locality, weight)) in all.iter_mut().zip([(0, 1), (1, 1), (1, 1), (2, 0)]) {
            (candidate.locality, candidate.locality_weight) = (locality, weight);
        }
        let parts = |all: &[Candidate]| {
            let levels = Levels::build(all, config);
            let pool = &levels.levels[0].healthy;
            let percent = |at| (pool.weight(at) as f64 / pool.total() as f64 * 100.0).round() as u32;
            pool.hosts.iter().enumerate().map(|(at, host)| (*host, percent(at))).collect::<Vec<_>>()
        };
        assert_eq!(parts(&all), [(0, 50), (1, 25), (2, 25)], "a locality without weight gets nothing");
        // Half of locality 1 is left: 140% of a half, 70 parts against 100.
        all[2].health = Health::Unhealthy;
        assert_eq!(parts(&all), [(0, 59), (1, 41)]);
    }

    #[test]
    fn the_own_zone_comes_first_in_the_first_priority_only() {
        let zone = ZoneAware { enabled_percent: 100.0, min_size: 1, fail_on_panic: true };
        let proxies = [("a".to_owned(), 1), ("b".to_owned(), 1)];
        let place = Place { mine: "a".to_owned(), proxies: proxies.into_iter().collect() };
        let spread = Spread::Zones { config: &zone, place: &place, names: &["a", "b"] };
        let mut all = candidates(&[(0, 2, 0), (1, 2, 0)]);
        all[1].locality = 1;
        all[3].locality = 1;
        let levels = Levels::build(&all, LevelConfig { spread, ..CONFIG });
        assert_eq!(levels.levels[0].healthy.hosts, [0]);
        assert_eq!(levels.levels[1].healthy.hosts, [2, 3]);
        assert!(levels.fail_on_panic);
    }

    proptest! {
        #[test]
        fn loads_always_add_up_to_everything(
            spec in prop::collection::vec((0_u32..5, 0_usize..6, 0_usize..6), 0..6), factor in 0_u32..1000,
        ) {
            let config = LevelConfig { overprovisioning: factor, ..CONFIG };
            let levels = Levels::build(&candidates(&spec), config);
            let sum: u32 = levels.loads().iter().map(|(h, d)| h + d).sum();
            prop_assert_eq!(sum, if levels.is_empty() { 0 } else { 100 });
        }
    }
}
