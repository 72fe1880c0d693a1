//! An agent that dies between any two writes of an update.

use xds_client::Update;
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    support::in_sandbox,
    world::{World, address, class, local, rule, service, update},
};

/// More writes than any update here takes.
const MOST: usize = 200;

/// Updates, and what the programs are to say after each.
fn story() -> Vec<(Update, &'static str)> {
    let allow_web = || rule(true, 300, "", 80);
    let allow_net = || rule(true, 0, "198.51.100.0/24", 80);
    let deny_net = || rule(false, 0, "198.51.100.192/26", 80);
    let seven = |rules| update(&[("7", class(7, rules))], &[]);
    let nobody = rule(false, 0, "203.0.113.0/24", 9);
    let sidecar = wire::LocalEndpoint {
        sidecar: true,
        captured_ports: vec![wire::CapturedPort { port: 8080, protocol: wire::Protocol::Tcp as i32 }],
        ..local("pay", 8)
    };
    vec![
        (seven(vec![allow_web()]), "100010"),
        (seven(vec![allow_web(), allow_net()]), "101110"),
        // CIDRs that nest.
        (seven(vec![allow_web(), allow_net(), deny_net()]), "101010"),
        // An address becomes somebody else's.
        (update(&[("shop/evil", address(&["10.1.2.3"], 300))], &[]), "111010"),
        (update::<wire::WorkloadAddress>(&[], &["shop/web"]), "011000"),
        (update(&[("shop/web", address(&["10.1.2.2", "fd00:1::202"], 300))], &[]), "111010"),
        (update(&[("shop/a", service(1, 3, 2)), ("shop/b", service(2, 1, 0))], &[]), "111010"),
        (update(&[("shop/a", service(1, 5, 0))], &["shop/b"]), "111010"),
        (update(&[("8", class(8, vec![nobody]))], &[]), "111010"),
        (update(&[("shop/pay", sidecar)], &[]), "000000"),
        (update(&[("shop/pay", local("pay", 7))], &[]), "111010"),
        (seven(vec![]), "111111"),
        (update::<wire::Service>(&[], &["shop/a"]), "111111"),
    ]
}

fn is_old_or_new(found: &str, old: &str, new: &str) -> bool {
    let each = found.chars().zip(old.chars().zip(new.chars()));
    found.len() == old.len() && each.into_iter().all(|(found, (old, new))| found == old || found == new)
}

#[test]
fn an_agent_that_dies_between_any_two_writes_leaves_old_or_new_verdicts_and_the_next_one_goes_on() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &[]);
        drop(world.agent());
        let mut old = world.verdicts();
        assert_eq!(old, "111111");
        let mut deaths = 0;
        for (number, (update, new)) in story().into_iter().enumerate() {
            let mut told = world.history.clone();
            told.push(update.clone());
            for writes in 0..=MOST {
                assert!(writes < MOST, "update {number} never ends");
                let agent = world.agent();
                assert_eq!(world.verdicts(), old, "update {number}, before it");
                world.live(writes);
                let is_whole = agent.apply(&update).is_ok();
                drop(agent);
                let found = world.verdicts();
                if is_whole {
                    assert_eq!(found, new, "update {number}");
                    break;
                }
                deaths += 1;
                assert!(
                    is_old_or_new(&found, &old, new),
                    "update {number}, dead after {writes} writes: {found}, was {old}, is to be {new}"
                );
                // Now and then the programs are loaded anew as well, as they are by a new process.
                if writes == 1 && number % 5 == 0 {
                    world.reload();
                    assert_eq!(world.verdicts(), found);
                }
                // The next one is told the same again, or died before it could remember that.
                let next = if writes % 2 == 0 { world.agent_told(&told) } else { world.agent() };
                assert_eq!(
                    world.verdicts(),
                    if writes % 2 == 0 { new } else { old.as_str() },
                    "update {number}"
                );
                assert_eq!(world.wrong(&next), Vec::<String>::new(), "update {number} after {writes}");
            }
            world.history = told;
            old = new.to_owned();
        }
        println!("{deaths} deaths");
        // What was begun and never used goes.
        let agent = world.agent();
        for _ in 0..3 {
            agent.collect().unwrap();
        }
        assert_eq!(world.wrong(&agent), Vec::<String>::new());
        let left = agent.kernel(|kernel, _| (kernel.classes.len(), kernel.services.len()));
        assert_eq!(left, (1, 0));
    });
}

#[test]
fn the_first_agent_of_a_machine_that_has_started_anew_closes_pods_until_their_policy_is_there() {
    in_sandbox(|sandbox| {
        let world = World::new(sandbox, &[]);
        // Nothing is pinned, and what was remembered is read in the order of its types.
        assert_eq!(world.verdicts(), "000000");
        let agent = world.newborn();
        agent.load_pod(crate::world::name("pay"), crate::world::pod(2, crate::world::LO));
        for update in &world.history {
            assert_eq!(world.verdicts(), "000000");
            agent.apply(update).unwrap();
        }
        assert_eq!(world.verdicts(), "111111");
    });
}
