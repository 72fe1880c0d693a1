//! How much of a service port's calls goes to peers: what callers report in, at most one step for each port out.
//! Pure; the time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{limits::MAX_OVERFLOW_PERCENT, resource::NamespacedName};

/// Callers that must have reported, so that none of them decides alone.
pub const QUORUM: usize = 3;
/// Percentage points in one step.
pub const STEP: u8 = 10;
/// Between two steps of the same port: two reports of every caller, which have seen what the last step did.
pub const EACH_MS: u64 = 20_000;

/// A port of a service.
pub type Port = (NamespacedName, u16);

/// What the callers of a service port say of the endpoints in one place. Each caller has one voice, however much it calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Votes {
    /// Those of whose calls half or more have failed.
    pub failing: usize,
    /// All that have called enough to say something.
    pub voters: usize,
}

impl Votes {
    /// Enough of them to be believed, and more than half see failures.
    fn is_bad(self) -> bool {
        self.voters >= QUORUM && self.failing * 2 > self.voters
    }

    /// Hardly anybody sees failures, or there are too few to say so. Less than what [`Votes::is_bad`] leaves: in between,
    /// things stay as they are.
    fn is_good(self) -> bool {
        self.voters < QUORUM || self.failing * 4 <= self.voters
    }
}

/// Of one port: here and at the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Seen {
    pub here: Votes,
    pub peers: Votes,
}

/// What is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Of which port.
    pub port: Port,
    /// The share of calls that is to go to peers from now on.
    pub percent: u8,
    /// Why.
    pub seen: Seen,
}

/// Remembers when each port was changed last. A new leader starts without: then every port counts as just changed.
#[derive(Debug, Default)]
pub struct Decider {
    changed_ms: BTreeMap<Port, u64>,
}

impl Decider {
    /// The steps that are due. `shares`: what is in effect. `wanted`: ports that may overflow at all; one that may not is
    /// taken back at once.
    pub fn decide(
        &mut self,
        shares: &BTreeMap<Port, u8>,
        wanted: &BTreeSet<Port>,
        seen: &BTreeMap<Port, Seen>,
        now_ms: u64,
    ) -> Vec<Step> {
        let elapsed = |at: u64| now_ms.saturating_sub(at);
        self.changed_ms.retain(|port, at| shares.contains_key(port) || elapsed(*at) < EACH_MS);
        let ports: BTreeSet<&Port> = shares.keys().chain(seen.keys()).collect();
        let mut steps = Vec::new();
        for port in ports {
            let share = shares.get(port).copied().unwrap_or(0);
            let seen = seen.get(port).copied().unwrap_or_default();
            if !wanted.contains(port) {
                if share > 0 {
                    steps.push(Step { port: port.clone(), percent: 0, seen });
                }
                continue;
            }
            let next = next(share, seen);
            let due = match self.changed_ms.get(port) {
                Some(at) => elapsed(*at) >= EACH_MS,
                None if share == 0 => true,
                None => {
                    self.changed_ms.insert(port.clone(), now_ms);
                    false
                }
            };
            if due && next != share {
                self.changed_ms.insert(port.clone(), now_ms);
                steps.push(Step { port: port.clone(), percent: next, seen });
            }
        }
        steps
    }
}

fn next(share: u8, Seen { here, peers }: Seen) -> u8 {
    match () {
        // It would be worse there.
        () if peers.is_bad() => share.saturating_sub(STEP),
        () if here.is_bad() => share.saturating_add(STEP).min(MAX_OVERFLOW_PERCENT),
        () if here.is_good() => share.saturating_sub(STEP),
        () => share,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn port() -> Port {
        (NamespacedName::new("shop", "pay"), 80)
    }

    fn votes(failing: usize, voters: usize) -> Votes {
        Votes { failing, voters }
    }

    /// What becomes of one port.
    struct Story {
        decider: Decider,
        share: u8,
        wanted: bool,
    }

    impl Story {
        fn new(share: u8) -> Self {
            Self { decider: Decider::default(), share, wanted: true }
        }

        /// The share after one look, and whether it was changed.
        fn look(&mut self, here: Votes, peers: Votes, now_ms: u64) -> (u8, bool) {
            let shares = BTreeMap::from([(port(), self.share)]);
            let shares = if self.share == 0 { BTreeMap::new() } else { shares };
            let wanted = if self.wanted { BTreeSet::from([port()]) } else { BTreeSet::new() };
            let seen = BTreeMap::from([(port(), Seen { here, peers })]);
            let steps = self.decider.decide(&shares, &wanted, &seen, now_ms);
            assert!(steps.len() <= 1);
            if let Some(step) = steps.first() {
                self.share = step.percent;
            }
            (self.share, !steps.is_empty())
        }
    }

    #[test]
    fn most_callers_seeing_failures_moves_a_step_at_a_time_up_to_the_limit_and_back_when_they_end() {
        let (mut story, none) = (Story::new(0), Votes::default());
        assert_eq!(story.look(votes(3, 5), none, 0), (10, true), "the first step is due at once");
        assert_eq!(story.look(votes(5, 5), none, EACH_MS - 1), (10, false));
        assert_eq!(story.look(votes(5, 5), none, EACH_MS), (20, true));
        for step in 2..20 {
            story.look(votes(5, 5), none, step * EACH_MS);
        }
        assert_eq!(story.share, MAX_OVERFLOW_PERCENT, "never more");
        assert_eq!(story.look(votes(2, 5), none, 20 * EACH_MS), (50, false), "not bad, and not good either");
        assert_eq!(story.look(votes(1, 5), none, 21 * EACH_MS), (40, true));
        for step in 22..30 {
            story.look(none, none, step * EACH_MS);
        }
        assert_eq!(story.share, 0, "nobody says so any more");
    }

    #[test]
    fn one_caller_alone_and_half_of_them_move_nothing() {
        let (mut story, none) = (Story::new(0), Votes::default());
        for (at, here) in
            [votes(1, 1), votes(2, 2), votes(1, 3), votes(2, 4), votes(1, 100)].into_iter().enumerate()
        {
            assert_eq!(story.look(here, none, at as u64 * EACH_MS), (0, false), "{here:?}");
        }
    }

    #[test]
    fn nothing_is_sent_to_where_it_is_no_better() {
        let mut story = Story::new(30);
        assert_eq!(story.look(votes(5, 5), votes(4, 5), 0), (30, false), "a new leader waits");
        assert_eq!(story.look(votes(5, 5), votes(4, 5), EACH_MS), (20, true));
        assert_eq!(
            story.look(votes(5, 5), votes(1, 1), 2 * EACH_MS),
            (30, true),
            "one voice is too few there too"
        );
    }

    #[test]
    fn what_is_not_wanted_any_more_is_taken_back_at_once() {
        let mut story = Story { wanted: false, ..Story::new(30) };
        assert_eq!(story.look(votes(5, 5), Votes::default(), 0), (0, true));
        assert_eq!(story.look(votes(5, 5), Votes::default(), EACH_MS), (0, false));
    }

    proptest! {
        #[test]
        fn whatever_is_reported_the_share_is_bounded_moves_slowly_and_comes_back(
            start in 0u8..=5,
            reports in prop::collection::vec((0usize..8, 0usize..8, 0usize..8, 0usize..8, 0u64..30_000), 0..60),
        ) {
            let mut story = Story::new(start * STEP);
            let (mut now, mut changed) = (0, None::<u64>);
            for (failing, others, peers_failing, peers_others, pause) in reports {
                now += pause;
                let before = story.share;
                let here = votes(failing, failing + others);
                let (share, moved) = story.look(here, votes(peers_failing, peers_failing + peers_others), now);
                prop_assert!(share <= MAX_OVERFLOW_PERCENT);
                prop_assert_eq!(moved, share != before);
                if moved {
                    prop_assert_eq!(share.abs_diff(before), STEP);
                    prop_assert!(changed.is_none_or(|at| now - at >= EACH_MS), "it flaps");
                    prop_assert!(share < before || here.voters >= QUORUM && failing > others);
                    changed = Some(now);
                }
            }
            for _ in 0..=6 {
                now += EACH_MS;
                story.look(votes(0, 5), Votes::default(), now);
            }
            prop_assert_eq!(story.share, 0);
        }
    }
}
