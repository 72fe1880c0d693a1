//! Names in DNS: old or new at each step, for what begins and for what is there already.

use std::time::Duration;

use mesh_model::policy::NamePattern;

use super::*;

/// When the tests look.
const NOW: u64 = 1_000;
const NAMES: [&str; 3] = ["a.test", "b.test", "c.other"];

/// What is told of an address: by name, whether that holds still.
pub(super) type Told = BTreeMap<(usize, usize), bool>;

pub(super) fn patterns() -> impl Strategy<Value = Peer> {
    let all = vec!["a.test", "b.test", "*.test", "*", "c.other"];
    proptest::sample::select(all).prop_map(|text| Peer::Name(NamePattern::parse(text).unwrap()))
}

pub(super) fn told() -> impl Strategy<Value = Told> {
    proptest::collection::btree_map((0..CALLERS.len(), 0..NAMES.len()), any::<bool>(), 0..12)
}

pub(super) fn names(told: &Told) -> Names {
    let mut names = Names::default();
    for ((caller, name), live) in told {
        let holds = Duration::from_secs(if *live { 2 * NOW } else { NOW / 2 });
        names.learn(None, NAMES[*name], &[(CALLERS[*caller], holds)], 0, Duration::ZERO);
    }
    names.lapse(NOW);
    names
}

/// Of workloads, a node and addresses outside the mesh, some within CIDRs that policies name.
pub(super) fn some() -> Names {
    names(&Told::from([
        ((0, 0), true),
        ((3, 0), true),
        ((4, 0), true),
        ((4, 1), true),
        ((5, 1), true),
        ((5, 0), false),
        ((9, 0), true),
        ((10, 0), true),
        ((10, 1), false),
        ((10, 2), false),
    ]))
}

proptest! {
    #[test]
    fn while_names_come_lapse_and_go_every_verdict_is_the_old_or_the_new_one(
        setup in setups(),
        old in told(),
        new in told(),
    ) {
        let resources = resources(&setup);
        walk_with((&resources, &names(&old)), (&resources, &names(&new)))?;
    }
}

fn naming(pattern: &str) -> Resources {
    let rule = Rule {
        direction: Direction::Ingress,
        allow: true,
        audit: false,
        peer: Peer::Name(NamePattern::parse(pattern).unwrap()),
        protocol: TCP,
        ports: None,
        l7: None,
        provenance: "n".into(),
    };
    let mut resources = Resources::default();
    nodes(&mut resources);
    let class = Class { deny_ingress: Some("d".into()), rules: vec![rule], ..Class::default() };
    resources.classes.insert(1, class);
    resources.locals.extend([local(1, 401, 1)]);
    resources
}

fn reached(maps: &Desired, exists: bool) -> BTreeSet<IpAddr> {
    let all = verdicts(maps).into_iter();
    let passed = all.filter(|((n, _, protocol, _, of), verdict)| {
        *n == 1 && *protocol == TCP && *of == exists && verdict[0]
    });
    passed.map(|((_, address, ..), _)| address).collect()
}

#[test]
fn names_are_of_addresses_outside_the_mesh_and_lapsed_ones_of_what_is_there() {
    let mut resources = naming("*.test");
    resources
        .addresses
        .insert(NamespacedName::new("shop", "x"), Address { addresses: vec![CALLERS[4]], identity: 300 });
    let all: Told = (0..CALLERS.len()).map(|caller| ((caller, 0), caller != 10)).collect();
    let maps = computed_with(&resources, &names(&all), &Desired::default(), &mut Dictionary::default());
    assert_eq!(reached(&maps, false), [CALLERS[5], CALLERS[9]].into());
    assert_eq!(reached(&maps, true), [CALLERS[5], CALLERS[9], CALLERS[10]].into());
}

#[test]
fn addresses_keep_their_numbers_over_a_restart() {
    let resources = naming("a.test");
    let told = Told::from([((4, 0), true), ((5, 0), true), ((9, 0), true), ((10, 0), false)]);
    let mut dictionary = Dictionary::default();
    // Numbers that are not those that a new agent would give first.
    for n in 0..9u8 {
        dictionary.place(super::super::dictionary::Place::Outside(
            IpNet::new([203, 0, 113, n].into(), 32).unwrap(),
        ));
    }
    let before = computed_with(&resources, &names(&told), &Desired::default(), &mut dictionary);
    let mut restarted = Dictionary::recover(&before);
    let after = computed_with(&resources, &names(&told), &before, &mut restarted);
    assert_eq!(before.identities, after.identities);
    assert_eq!(before.lingering, after.lingering);
    let delta = Delta::between(&before, &after);
    assert!(
        delta.identities.is_empty() && delta.lingering.is_empty() && delta.classes.is_empty(),
        "{delta:?}"
    );
}

#[test]
fn a_class_that_is_kept_says_of_lapsed_names_that_others_name_what_it_said() {
    let denying = |text: &str| only(Peer::Name(NamePattern::parse(text).unwrap()), false);
    let old = ([denying("c.other"), denying("a.test")], [Some(2), Some(2)], [None; 3]);
    // Of the first pod nothing is told any more, and nothing of all pods was heard: it keeps what it has.
    let new = (old.0.clone(), [None, Some(1)], old.2);
    walk(&resources(&old), &resources(&new)).unwrap();
    let mut dictionary = Dictionary::default();
    let before = computed(&resources(&old), &Desired::default(), &mut dictionary);
    let after = computed(&resources(&new), &before, &mut dictionary);
    assert_ne!(before.lingering, after.lingering);
    let of_first =
        |maps: &Desired| verdicts(maps).into_iter().filter(|(key, _)| key.0 == 1).collect::<Verdicts>();
    assert_eq!(of_first(&before), of_first(&after));
}
