//! Agents that die between two writes, once or again and again: what they leave is gone on with, and no verdict is ever
//! anything but one that was or is to be, for what begins and for what is there already.

use xds_proto::isthmus::agent::v1 as wire;

use super::{names::Told, *};

/// What an agent is told, all of it.
#[derive(Debug, Clone)]
struct World {
    resources: Resources,
    names: Names,
}

/// What of it changes.
#[derive(Debug, Clone)]
enum Change {
    Policy(Box<[Class; 2]>),
    Pods([Option<u32>; 2]),
    Callers([Option<u32>; 3]),
    Names(Told),
    Node(u8),
}

fn changes() -> impl Strategy<Value = Change> {
    let identity = || proptest::option::of(300u32..304);
    prop_oneof![
        4 => of_rules_and_names(),
        1 => [identity(), identity(), identity()].prop_map(Change::Callers),
        1 => (1u8..3).prop_map(Change::Node),
    ]
}

fn of_rules_and_names() -> impl Strategy<Value = Change> {
    let class = || proptest::option::of(1u32..=2);
    prop_oneof![
        3 => [classes(), classes()].prop_map(|classes| Change::Policy(classes.into())),
        1 => [class(), class()].prop_map(Change::Pods),
        2 => names::told().prop_map(Change::Names),
    ]
}

impl World {
    fn new(setup: &Setup, told: &Told) -> Self {
        Self { resources: heard(setup), names: names::names(told) }
    }

    /// The same but for a change, which `setup` takes in.
    fn changed(&self, setup: &mut Setup, change: &Change) -> Self {
        let mut names = self.names.clone();
        let mut gone = None;
        match change.clone() {
            Change::Policy(classes) => setup.0 = *classes,
            Change::Pods(pods) => setup.1 = pods,
            Change::Callers(callers) => setup.2 = callers,
            Change::Names(told) => names = names::names(&told),
            Change::Node(n) => gone = Some(n),
        }
        let mut resources = heard(setup);
        if let Some(n) = gone {
            resources.nodes.remove(&format!("n{n}"));
        }
        Self { resources, names }
    }
}

/// With nothing that is still to be told.
fn heard(setup: &Setup) -> Resources {
    let mut resources = resources(setup);
    resources.hear::<wire::WorkloadAddress>();
    resources.hear::<wire::LocalEndpoint>();
    resources.hear::<wire::HostEndpoint>();
    resources
}

/// One agent after the other, each with what the one before has left.
struct Node {
    maps: Desired,
    dictionary: Dictionary,
}

impl Node {
    fn restart(&mut self) {
        self.dictionary = Dictionary::recover(&self.maps);
    }

    /// Makes the first writes of those that lead to a world. Where it ends, if it gets there.
    fn go(&mut self, world: &World, writes: usize) -> Result<Desired, TestCaseError> {
        let World { resources, names } = world;
        let desired = computed_with(resources, names, &self.maps, &mut self.dictionary);
        let (before, after) = (verdicts(&self.maps), verdicts(&desired));
        for op in steps(&self.maps.clone(), &desired, &mut self.dictionary).iter().take(writes) {
            op.apply(&mut self.maps);
            for (key, verdict) in verdicts(&self.maps) {
                let fine = verdict == before[&key] || verdict == after[&key];
                prop_assert!(
                    fine,
                    "after {op:?}: {key:?} was {:?}, is to be {:?}, is {verdict:?}",
                    before[&key],
                    after[&key]
                );
            }
        }
        Ok(desired)
    }
}

/// What an agent that knows nothing of any before makes of it.
fn from_nothing(world: &World) -> Verdicts {
    let World { resources, names } = world;
    verdicts(&computed_with(resources, names, &Desired::default(), &mut Dictionary::default()))
}

proptest! {
    #[test]
    fn an_agent_that_died_between_two_writes_is_followed_by_one_that_ends_where_it_would_have(
        setup in setups(),
        told in names::told(),
        change in changes(),
        hears in any::<bool>(),
        died in proptest::collection::vec(0usize..40, 1..4),
    ) {
        let mut old = World::new(&setup, &told);
        let mut new = old.changed(&mut setup.clone(), &change);
        // What an agent before has left of workloads stays then; of names and CIDRs nothing does.
        if let (false, Change::Policy(classes)) = (hears, change) {
            old.resources = resources(&setup);
            new.resources = resources(&(*classes, setup.1, setup.2));
        }
        let (before, after) = (from_nothing(&old), from_nothing(&new));
        let mut node = Node { maps: Desired::default(), dictionary: Dictionary::default() };
        node.go(&old, usize::MAX)?;
        prop_assert_eq!(&verdicts(&node.maps), &before);
        for writes in died.into_iter().chain([usize::MAX]) {
            let desired = node.go(&new, writes)?;
            for (key, verdict) in verdicts(&node.maps) {
                prop_assert!(verdict == before[&key] || verdict == after[&key], "{key:?}");
            }
            if writes == usize::MAX {
                prop_assert_eq!(swept(node.maps.clone()), desired);
            }
            node.restart();
        }
        prop_assert_eq!(verdicts(&node.maps), after);
    }

    #[test]
    fn what_was_told_while_no_agent_was_there_is_gone_to_from_wherever_the_last_one_died(
        setup in setups(),
        told in names::told(),
        changes in proptest::collection::vec((of_rules_and_names(), 0usize..40), 1..4),
    ) {
        let mut setup = setup;
        let mut world = World::new(&setup, &told);
        let mut node = Node { maps: Desired::default(), dictionary: Dictionary::default() };
        node.go(&world, usize::MAX)?;
        for (change, writes) in changes {
            world = world.changed(&mut setup, &change);
            node.go(&world, writes)?;
            node.restart();
        }
        let desired = node.go(&world, usize::MAX)?;
        prop_assert_eq!(verdicts(&node.maps), from_nothing(&world));
        prop_assert_eq!(swept(node.maps), desired);
    }
}

#[test]
fn an_agent_that_has_heard_nothing_leaves_what_the_kernel_says_of_names() {
    let told =
        Told::from([((4, 0), true), ((5, 0), true), ((9, 0), false), ((10, 0), true), ((10, 1), false)]);
    let mut setup = ([only_named("a.test"), only_named("*.test")], [Some(1), Some(2)], [None; 3]);
    let world = World::new(&setup, &told);
    let mut node = Node { maps: Desired::default(), dictionary: Dictionary::default() };
    node.go(&world, usize::MAX).unwrap();
    let (held, before) = (node.maps.clone(), verdicts(&node.maps));
    assert!(!held.lingering.is_empty());
    node.restart();
    let silent = World { resources: Resources::default(), ..world.clone() };
    node.go(&silent, usize::MAX).unwrap();
    assert_eq!((&node.maps.lingering, &verdicts(&node.maps)), (&held.lingering, &before));
    // And goes on from there when it hears.
    let changed =
        world.changed(&mut setup, &Change::Policy([only_named("*.test"), only_named("b.test")].into()));
    node.go(&changed, usize::MAX).unwrap();
    assert_eq!(verdicts(&node.maps), from_nothing(&changed));
}

fn only_named(pattern: &str) -> Class {
    only(Peer::Name(mesh_model::policy::NamePattern::parse(pattern).unwrap()), true)
}
