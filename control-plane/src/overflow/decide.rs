//! How much of a service port's calls goes to peers: what callers report in, at most one step for each port out.
//! Pure; the time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use mesh_model::{limits::MAX_OVERFLOW_PERCENT, resource::NamespacedName};

/// Callers that must have reported, so that none of them decides alone.
pub const QUORUM: usize = 3;
/// Callers that must be left when those of any one node are left out.
pub const ELSEWHERE: usize = 2;
/// Percentage points in one step.
pub const STEP: u8 = 10;
/// Between two steps of the same port: two reports of every caller, which have seen what the last step did.
pub const EACH_MS: u64 = 20_000;
/// No step up for so long after callers of the peers' endpoints saw most of their calls fail there.
pub const REST_MS: u64 = 300_000;

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
    /// The voices of callers, each with the node that it runs on.
    pub fn count<'a>(voices: impl IntoIterator<Item = (&'a str, bool)>) -> PerNode {
        let mut nodes: BTreeMap<&str, Self> = BTreeMap::new();
        let mut all = Self::default();
        for (node, failing) in voices {
            for votes in [nodes.entry(node).or_default(), &mut all] {
                votes.voters += 1;
                votes.failing += usize::from(failing);
            }
        }
        let without =
            |own: &Self| Self { failing: all.failing - own.failing, voters: all.voters - own.voters };
        let mut least = all;
        for own in nodes.values() {
            let rest = without(own);
            if rest.voters < ELSEWHERE {
                return PerNode { all, least: Self::default() };
            }
            // As fractions: a/b < c/d.
            if rest.failing * least.voters < least.failing * rest.voters {
                least = rest;
            }
        }
        PerNode { all, least }
    }

    fn most_fail(self) -> bool {
        self.failing * 2 > self.voters
    }

    fn hardly_any_fail(self) -> bool {
        self.failing * 4 <= self.voters
    }
}

/// Votes, and what is left of them when one node's are not believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerNode {
    /// All of them.
    pub all: Votes,
    /// Without the node that makes most of the complaint. A node can say what it likes of the workloads that run on it:
    /// here it has said nothing. Empty: then too few would be left.
    pub least: Votes,
}

impl PerNode {
    /// Enough callers to be believed, and more than half see failures, whichever node is left out.
    fn is_bad(self) -> bool {
        self.all.voters >= QUORUM && self.least.most_fail()
    }

    /// Hardly anybody sees failures, or there are too few to say so, if some node is left out. Less than what
    /// [`PerNode::is_bad`] leaves: in between, things stay as they are.
    fn is_good(self) -> bool {
        self.all.voters < QUORUM || self.least.hardly_any_fail()
    }
}

/// Of one port: here and at the peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Seen {
    pub here: PerNode,
    pub peers: Votes,
}

impl Seen {
    /// Of the peers' endpoints it takes less to be believed: what follows is what would be without any of this.
    fn is_worse_there(&self) -> bool {
        self.peers.voters >= QUORUM && self.peers.most_fail()
    }
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

/// Remembers when each port was changed last, and when it was worse at the peers. A new leader starts without: then every
/// port with a share counts as just changed.
#[derive(Debug, Default)]
pub struct Decider {
    changed_ms: BTreeMap<Port, u64>,
    worse_ms: BTreeMap<Port, u64>,
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
        self.worse_ms.retain(|port, at| wanted.contains(port) && elapsed(*at) < REST_MS);
        let ports: BTreeSet<&Port> = shares.keys().chain(seen.keys()).collect();
        let mut steps = Vec::new();
        for port in ports {
            let share = shares.get(port).copied().unwrap_or(0);
            let seen = seen.get(port).copied().unwrap_or_default();
            if !wanted.contains(port) {
                if share > 0 {
                    self.changed_ms.insert(port.clone(), now_ms);
                    steps.push(Step { port: port.clone(), percent: 0, seen });
                }
                continue;
            }
            if seen.is_worse_there() {
                self.worse_ms.insert(port.clone(), now_ms);
            }
            let next = next(share, seen, self.worse_ms.contains_key(port));
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

fn next(share: u8, seen: Seen, resting: bool) -> u8 {
    let down = share.saturating_sub(STEP);
    if seen.is_worse_there() || seen.here.is_good() {
        down
    } else if seen.here.is_bad() && !resting {
        share.saturating_add(STEP).min(MAX_OVERFLOW_PERCENT)
    } else {
        share
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

    /// Callers by node: how many fail, of how many.
    fn nodes(each: &[(usize, usize)]) -> PerNode {
        let names: Vec<String> = (0..each.len()).map(|n| format!("n{n}")).collect();
        let voices = names.iter().zip(each).flat_map(|(name, (failing, voters))| {
            (0..*voters).map(move |caller| (name.as_str(), caller < *failing))
        });
        Votes::count(voices)
    }

    /// Each caller on a node of its own.
    fn spread(failing: usize, voters: usize) -> PerNode {
        nodes(&(0..voters).map(|caller| (usize::from(caller < failing), 1)).collect::<Vec<_>>())
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
        fn look(&mut self, here: PerNode, peers: Votes, now_ms: u64) -> (u8, bool) {
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
        assert_eq!(story.look(spread(4, 5), none, 0), (10, true), "the first step is due at once");
        assert_eq!(story.look(spread(5, 5), none, EACH_MS - 1), (10, false));
        assert_eq!(story.look(spread(5, 5), none, EACH_MS), (20, true));
        for step in 2..20 {
            story.look(spread(5, 5), none, step * EACH_MS);
        }
        assert_eq!(story.share, MAX_OVERFLOW_PERCENT, "never more");
        assert_eq!(story.look(spread(3, 5), none, 20 * EACH_MS), (50, false), "not bad, and not good either");
        assert_eq!(story.look(spread(1, 5), none, 21 * EACH_MS), (40, true));
        for step in 22..30 {
            story.look(PerNode::default(), none, step * EACH_MS);
        }
        assert_eq!(story.share, 0, "nobody says so any more");
    }

    #[test]
    fn a_few_callers_and_half_of_many_move_nothing() {
        let (mut story, none) = (Story::new(0), Votes::default());
        let few = [(1, 1), (2, 2), (1, 3), (2, 3), (2, 4), (3, 6), (1, 100)];
        for (at, (failing, voters)) in few.into_iter().enumerate() {
            let moved = story.look(spread(failing, voters), none, at as u64 * EACH_MS);
            assert_eq!(moved, (0, false), "{failing} of {voters}");
        }
    }

    #[test]
    fn one_node_moves_nothing_however_many_callers_it_has_and_holds_nothing_where_it_is() {
        let (mut story, none) = (Story::new(0), Votes::default());
        for (at, here) in [
            nodes(&[(50, 50)]),
            nodes(&[(50, 50), (1, 1)]),
            nodes(&[(50, 50), (0, 2)]),
            nodes(&[(50, 50), (1, 2)]),
            nodes(&[(50, 50), (0, 2), (1, 2)]),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(story.look(here, none, at as u64 * EACH_MS), (0, false), "{here:?}");
        }
        assert_eq!(
            story.look(nodes(&[(50, 50), (2, 3)]), none, 9 * EACH_MS),
            (10, true),
            "others say so too"
        );
        assert_eq!(story.look(nodes(&[(50, 50), (0, 3)]), none, 10 * EACH_MS), (0, true), "and no more");
    }

    #[test]
    fn nothing_is_sent_to_where_it_is_no_better_nor_tried_again_soon() {
        let mut story = Story::new(30);
        assert_eq!(story.look(spread(5, 5), votes(4, 5), 0), (30, false), "a new leader waits");
        assert_eq!(story.look(spread(5, 5), votes(4, 5), EACH_MS), (20, true));
        assert_eq!(story.look(spread(5, 5), votes(1, 1), 2 * EACH_MS), (20, false), "it stays");
        let rested = EACH_MS + REST_MS;
        assert_eq!(story.look(spread(5, 5), votes(1, 1), rested - 1), (20, false));
        assert_eq!(
            story.look(spread(5, 5), votes(1, 1), rested),
            (30, true),
            "one voice is too few there too"
        );
    }

    #[test]
    fn what_is_not_wanted_any_more_is_taken_back_at_once() {
        let mut story = Story { wanted: false, ..Story::new(30) };
        assert_eq!(story.look(spread(5, 5), Votes::default(), 0), (0, true));
        assert_eq!(story.look(spread(5, 5), Votes::default(), EACH_MS - 1), (0, false));
        story.wanted = true;
        assert_eq!(story.look(spread(5, 5), Votes::default(), EACH_MS - 1), (0, false));
        assert_eq!(story.look(spread(5, 5), Votes::default(), EACH_MS), (10, true));
    }

    proptest! {
        #[test]
        fn whatever_is_reported_the_share_is_bounded_moves_slowly_and_comes_back(
            start in 0u8..=5,
            reports in prop::collection::vec(
                (prop::collection::vec((0usize..4, 0usize..4), 0..4), 0usize..8, 0usize..8, 0u64..30_000), 0..60,
            ),
        ) {
            let mut story = Story::new(start * STEP);
            let (mut now, mut changed) = (0, None::<u64>);
            for (each, peers_failing, peers_others, pause) in reports {
                now += pause;
                let before = story.share;
                let each: Vec<_> = each.into_iter().map(|(failing, others)| (failing, failing + others)).collect();
                let peers = votes(peers_failing, peers_failing + peers_others);
                let (share, moved) = story.look(nodes(&each), peers, now);
                prop_assert!(share <= MAX_OVERFLOW_PERCENT);
                prop_assert_eq!(moved, share != before);
                if moved {
                    prop_assert_eq!(share.abs_diff(before), STEP);
                    prop_assert!(changed.is_none_or(|at| now - at >= EACH_MS), "it flaps");
                    changed = Some(now);
                }
                if share > before {
                    for liar in 0..each.len() {
                        let rest = || each.iter().enumerate().filter(|(at, _)| *at != liar).map(|(_, node)| node);
                        let (failing, voters) = (rest().map(|n| n.0).sum::<usize>(), rest().map(|n| n.1).sum());
                        prop_assert!(voters >= ELSEWHERE && failing * 2 > voters, "one node moved it");
                    }
                }
            }
            for _ in 0..=6 {
                now += EACH_MS;
                story.look(spread(0, 5), Votes::default(), now);
            }
            prop_assert_eq!(story.share, 0);
        }
    }
}
