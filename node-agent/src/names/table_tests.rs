//! Who forgets what, and when.

use super::*;

use proptest::prelude::*;

const FLOOR: Duration = Duration::from_secs(60);

fn at(last: u16) -> IpAddr {
    let [high, low] = last.to_be_bytes();
    IpAddr::from([198, 51, high, low])
}

/// A pod of the node.
fn pod(last: u8) -> Holder {
    Some([10, 1, 1, last].into())
}

fn learn_of(names: &mut Names, holder: Holder, name: &str, last: u16, holds: u64, now: u64) -> bool {
    let learnt = names.learn(holder, name, &[(at(last), Duration::from_secs(holds))], now, FLOOR);
    assert!(!learnt.is_refused);
    !learnt.changed.is_empty()
}

fn learn(names: &mut Names, name: &str, last: u16, holds: u64, now: u64) -> bool {
    learn_of(names, pod(2), name, last, holds, now)
}

fn patterns(texts: &[&str]) -> Vec<NamePattern> {
    texts.iter().map(|text| NamePattern::parse(text).unwrap()).collect()
}

#[test]
fn an_address_has_all_names_that_were_told_of_it() {
    let mut names = Names::default();
    assert!(learn(&mut names, "a.example.com", 1, 30, 1000));
    assert!(learn(&mut names, "b.example.com", 1, 30, 1000));
    assert!(!learn(&mut names, "b.example.com", 1, 30, 1000), "nothing new");
    let known = patterns(&["a.example.com", "c.example.com", "*.example.com", "*.example.net"]);
    let found = [&known[0], &known[2]].into();
    assert_eq!(names.patterns_of(at(1), &known), (found, [&known[0], &known[2]].into()));
    assert!(names.patterns_of(at(2), &known).1.is_empty());
}

#[test]
fn a_name_holds_for_the_floor_at_least_and_for_the_longest_time_that_was_told() {
    let mut names = Names::default();
    learn(&mut names, "short.test", 1, 0, 1000);
    assert!(!names.is_due(1059) && names.lapse(1059).is_empty());
    assert!(names.is_due(1060));
    learn(&mut names, "short.test", 1, 300, 1000);
    learn(&mut names, "short.test", 1, 100, 1000);
    assert!(names.lapse(1299).is_empty());
    assert_eq!(names.lapse(1300), [at(1)].into());
    assert!(learn(&mut names, "short.test", 1, 60, 1300), "it is there once more");
}

#[test]
fn a_name_outlives_its_end_for_what_is_there_and_allows_nothing_new() {
    let mut names = Names::default();
    learn(&mut names, "a.test", 1, 60, 1000);
    learn(&mut names, "b.test", 1, 90, 1000);
    learn(&mut names, "a.test", 2, 60, 1000);
    assert_eq!(names.lapse(1060), [at(1), at(2)].into());
    let known = patterns(&["a.test", "b.test"]);
    let (live, lasting) = names.patterns_of(at(1), &known);
    assert_eq!((live, lasting), ([&known[1]].into(), [&known[0], &known[1]].into()));
    assert_eq!(names.lapsed(), [at(1), at(2)].into());
    assert!(names.lapse(1061).is_empty(), "that was said already");
    assert_eq!(names.forget(&[at(2), at(3)].into()), [at(2)].into());
    assert_eq!(names.addresses().collect::<Vec<_>>(), [at(1)]);
    assert_eq!(names.forget(&[at(1)].into()), [at(1)].into());
    assert_eq!(names.names_of(at(1)).collect::<Vec<_>>(), ["b.test"]);
    names.lapse(2000);
    names.forget(&[at(1)].into());
    assert!(names.is_empty() && names.by_name.is_empty() && names.by_address.is_empty());
}

#[test]
fn what_ended_while_no_agent_was_there_is_kept_only_where_the_kernel_knows_it() {
    let mut names = Names::default();
    for last in 1..=3 {
        learn(&mut names, "a.test", last, 60 * u64::from(last), 1000);
    }
    names.resume(1130, |address| address == at(1));
    assert_eq!(names.addresses().collect::<Vec<_>>(), [at(1), at(3)]);
    assert_eq!((names.lapsed(), names.forgotten()), ([at(1)].into(), 0));
}

#[test]
fn of_too_many_addresses_of_a_name_those_go_that_end_first() {
    let mut names = Names::default();
    let many = u16::try_from(MAX_ADDRESSES_OF_A_NAME).unwrap();
    for last in 0..many {
        learn(&mut names, "a.test", last, 60 + u64::from(last), 1000);
    }
    let learnt = names.learn(pod(3), "a.test", &[(at(5000), Duration::from_secs(3600))], 1000, FLOOR);
    assert_eq!(learnt.changed, [at(0), at(5000)].into());
    assert_eq!((names.len(), names.forgotten()), (MAX_ADDRESSES_OF_A_NAME, 1));
}

#[test]
fn what_is_being_told_stays_though_it_ends_first() {
    let mut names = Names::default();
    let many = u16::try_from(MAX_ADDRESSES_OF_A_NAME).unwrap();
    for last in 0..many {
        learn(&mut names, "a.test", last, 3600, 1000);
    }
    assert!(learn(&mut names, "a.test", 5000, 0, 1000));
    assert!(names.place("a.test", at(5000)).is_some() && names.len() == MAX_ADDRESSES_OF_A_NAME);
    // What fits in no way is refused as a whole.
    let all: Vec<_> = (6000..=6000 + many).map(|last| (at(last), FLOOR)).collect();
    assert!(names.learn(pod(2), "b.test", &all, 1000, FLOOR).is_refused);
    assert!(names.addresses().all(|address| names.place("b.test", address).is_none()));
}

#[test]
fn a_name_holds_for_a_day_at_most_after_an_answer() {
    let mut names = Names::default();
    learn(&mut names, "a.test", 1, u64::from(u32::MAX), 1000);
    assert!(names.is_due(1000 + MAX_TTL.as_secs()));
}

/// Names of a pod, one address each, some of it shared.
fn flood(names: &mut Names, holder: Holder, count: usize, holds: u64) {
    for i in 0..count {
        let name = format!("{i}.{holder:?}.test");
        learn_of(names, holder, &name, 1, holds, 1000);
    }
}

#[test]
fn a_pod_with_its_share_forgets_its_own_names_and_nobody_elses() {
    let mut names = Names::default();
    learn_of(&mut names, pod(3), "honest.test", 7, 0, 1000);
    // Asked by the flooder first: it counts for whoever has fewer.
    learn_of(&mut names, pod(2), "first.test", 8, 0, 1000);
    learn_of(&mut names, pod(2), "also.test", 9, 0, 1000);
    learn_of(&mut names, pod(3), "first.test", 8, 0, 1000);
    flood(&mut names, pod(2), 2 * MAX_OF_A_POD, 3600);
    assert_eq!(names.len(), MAX_OF_A_POD + 2);
    let is_known = |name, last| names.place(name, at(last)).is_some();
    assert!(is_known("honest.test", 7) && is_known("first.test", 8) && !is_known("also.test", 9));
    assert_eq!(names.forgotten() as usize, MAX_OF_A_POD + 1);
}

#[test]
fn where_all_is_full_whoever_has_the_most_forgets() {
    let mut names = Names::default();
    let pods = u8::try_from(MAX_ENTRIES / MAX_OF_A_POD).unwrap();
    flood(&mut names, pod(99), MAX_OF_A_POD / 2, 0);
    for last in 1..=pods {
        flood(&mut names, pod(last), MAX_OF_A_POD, 3600);
    }
    assert_eq!((names.len(), names.held(pod(99))), (MAX_ENTRIES, MAX_OF_A_POD / 2));
    flood(&mut names, pod(100), 10, 0);
    assert_eq!((names.len(), names.held(pod(100))), (MAX_ENTRIES, 10));
    // So with names that have lapsed.
    for _ in 0..2 {
        names.lapse(1060);
    }
    assert_eq!((names.held(pod(99)), names.held(pod(100))), (MAX_OF_A_POD / 2, 10));
    names.lapse(4600);
    assert_eq!((names.len(), names.held(pod(100))), (MAX_LAPSED, 10));
}

#[test]
fn what_is_recalled_is_as_it_was() {
    let mut before = Names::default();
    learn(&mut before, "a.test", 1, 60, 1000);
    learn(&mut before, "b.test", 1, 90, 1000);
    let mut after = Names::default();
    before.places().for_each(|place| after.recall(place, before.holder(place)));
    assert!(before.places().eq(after.places()) && after.held(pod(2)) == 2);
}

proptest! {
    #[test]
    fn its_orders_agree_whatever_happens(
        steps in prop::collection::vec((0..4u8, 0..5u16, 0..5u16, 0..200u64), 0..80),
    ) {
        let mut names = Names::default();
        let mut now = 1000;
        for (what, name, last, amount) in steps {
            if what < 3 {
                learn_of(&mut names, pod(what), &format!("{name}.test"), last, amount, now);
            } else {
                now += amount;
                names.lapse(now);
                names.forget(&[at(last)].into());
                prop_assert!(!names.lapsed().contains(&at(last)));
            }
            let of_addresses: usize = names.by_address.values().map(BTreeMap::len).sum();
            let of_names: usize = names.by_name.values().map(BTreeSet::len).sum();
            let of_pods: usize = names.by_holder.values().map(BTreeSet::len).sum();
            prop_assert_eq!((of_addresses, of_names, of_pods), (names.len(), names.len(), names.len()));
            for place in names.places() {
                let known = names.by_address[&place.address][&place.name];
                prop_assert_eq!(known.until, place.until);
                prop_assert!(names.by_holder[&known.holder].contains(place));
                prop_assert!(names.by_name[&place.name].contains(&(place.until, place.address)));
            }
        }
    }
}
