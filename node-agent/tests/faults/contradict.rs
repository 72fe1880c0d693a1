//! Resources that contradict each other: refused, or taken in a way that is the same whatever order they come in, and that
//! opens nothing.

use node_agent::engine::Engine;
use xds_client::Update;
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    support::in_sandbox,
    world::{World, address, class, local, name, pod, rule, service, update},
};

/// Whom the kernel takes an address for.
fn who(agent: &Engine, address: &str) -> Option<u32> {
    let net = address.parse().unwrap();
    agent.kernel(|kernel, _| kernel.identities.get(&net).copied())
}

#[test]
fn what_two_workloads_claim_is_the_last_ones_by_name_in_any_order() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &[]);
        world.history.push(update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]));
        let claims = [("shop/a", 300), ("shop/z", 301), ("shop/m", 302)];
        for turn in 0..3 {
            let agent = world.agent();
            for step in 0..3 {
                let (workload, identity) = claims[(turn + step) % 3];
                agent.apply(&update(&[(workload, address(&["10.1.2.9"], identity))], &[])).unwrap();
            }
            assert_eq!(who(&agent, "10.1.2.9/32"), Some(301), "turn {turn}");
            agent.apply(&update::<wire::WorkloadAddress>(&[], &["shop/z"])).unwrap();
            assert_eq!(who(&agent, "10.1.2.9/32"), Some(302));
            assert_eq!(world.wrong(&agent), Vec::<String>::new());
            // The next one takes them in another order.
            let gone = ["shop/a", "shop/m"];
            agent.apply(&update::<wire::WorkloadAddress>(&[], &gone)).unwrap();
        }
    });
}

#[test]
fn nobody_becomes_a_pod_of_this_node_by_claiming_its_address_and_a_nodes_address_is_the_nodes_again_afterwards()
 {
    in_sandbox(|sandbox| {
        let world = World::new(sandbox, &[]);
        let agent = world.agent();
        let nets = ["192.0.2.1/32", "10.1.1.2/32", "192.0.2.2/32"];
        let before = nets.map(|net| who(&agent, net));
        assert_eq!(before[1], Some(299));
        // A gateway is at the address of its node: that is for the control plane to say.
        let greedy = address(&["192.0.2.1", "10.1.1.2"], 302);
        agent.apply(&update(&[("shop/greedy", greedy)], &[])).unwrap();
        assert_eq!(nets.map(|net| who(&agent, net)), [Some(302), before[1], before[2]]);
        assert_eq!(world.verdicts(), "111111");
        agent.apply(&update::<wire::WorkloadAddress>(&[], &["shop/greedy"])).unwrap();
        assert_eq!(nets.map(|net| who(&agent, net)), before);
        assert_eq!(world.wrong(&agent), Vec::<String>::new());
    });
}

#[test]
fn a_pod_whose_class_is_missing_stays_closed_and_one_that_has_a_class_keeps_it() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &[]);
        world.history.push(update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]));
        let agent = world.agent();
        agent.add_pod(name("new"), pod(9, 100)).unwrap();
        agent.apply(&update(&[("shop/new", local("new", 99)), ("shop/pay", local("pay", 99))], &[])).unwrap();
        assert_eq!(agent.enforced(&name("new")), None);
        assert_eq!(world.verdicts(), "100010", "what held goes on to hold");
        // A class that is taken away under its pods does not open them.
        agent.apply(&update(&[("shop/pay", local("pay", 7))], &[])).unwrap();
        agent.apply(&update::<wire::PolicyClass>(&[], &["7"])).unwrap();
        assert_eq!(world.verdicts(), "100010");
        assert_eq!(world.wrong(&agent), Vec::<String>::new());
    });
}

#[test]
fn what_can_only_be_wrong_is_refused_whole_and_changes_nothing() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &[]);
        world.history.push(update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]));
        let agent = world.agent();
        let rule_of = |change: fn(&mut wire::PolicyRule)| {
            let mut wrong = rule(true, 300, "", 80);
            change(&mut wrong);
            update(&[("7", class(7, vec![wrong]))], &[])
        };
        let node = |cidr: &str| wire::Node {
            name: "n3".into(),
            address: "192.0.2.3".into(),
            pod_cidrs: vec![cidr.into()],
            ..Default::default()
        };
        let mut bad_service = service(1, 1, 0);
        bad_service.ports[0].backends[0].address = "nowhere".into();
        let wrong: Vec<(&str, Update)> = vec![
            ("another number than its name", update(&[("8", class(7, vec![]))], &[])),
            ("an identity of 25 bits", update(&[("shop/x", address(&["10.1.2.7"], 1 << 24))], &[])),
            ("an identity that is reserved", update(&[("shop/x", address(&["10.1.2.7"], 1))], &[])),
            ("no address", update(&[("shop/x", address(&["10.1.2.700"], 302))], &[])),
            ("identity and range at once", rule_of(|rule| rule.cidr = "10.0.0.0/8".into())),
            ("ports backwards", rule_of(|rule| rule.end_port = 79)),
            ("a port of 17 bits", rule_of(|rule| rule.port = 70_000)),
            ("no such direction", rule_of(|rule| rule.direction = 9)),
            ("a range of everything", update(&[("n3", node("0.0.0.0/0"))], &[])),
            ("no range", update(&[("n3", node("10.1.1.0/33"))], &[])),
            ("a backend that is nowhere", update(&[("shop/a", bad_service)], &[])),
            ("nobody's pod", update(&[("shop/pay", wire::LocalEndpoint::default())], &[])),
        ];
        for (what, wrong) in wrong {
            // A good one beside it is not taken either.
            let nack = agent.apply(&wrong);
            assert!(nack.is_err(), "{what} was taken");
            assert_eq!((world.verdicts().as_str(), agent.is_behind()), ("100010", false), "{what}");
            assert_eq!(world.wrong(&agent), Vec::<String>::new(), "{what}");
        }
    });
}

#[test]
fn services_that_claim_one_address_are_the_first_ones_by_name_and_backends_in_a_circle_lead_once() {
    in_sandbox(|sandbox| {
        let world = World::new(sandbox, &[]);
        let backends = |agent: &Engine| {
            agent.kernel(|kernel, _| {
                let of = |service: &node_agent::desired::ServiceEntry| {
                    service.backends.keys().map(ToString::to_string).collect::<Vec<_>>()
                };
                kernel.services.values().map(of).collect::<Vec<_>>()
            })
        };
        let mut own = service(1, 1, 0);
        // Its backend is the address of a service: of itself.
        own.ports[0].backends[0].address = "10.101.0.1".into();
        own.ports[0].backends[0].port = 80;
        for names in [["shop/a", "shop/z"], ["shop/z", "shop/a"]] {
            let agent = world.agent();
            for name in names {
                let told = if name == "shop/a" { own.clone() } else { service(1, 2, 0) };
                agent.apply(&update(&[(name, told)], &[])).unwrap();
            }
            assert_eq!(backends(&agent), [vec!["10.101.0.1:80".to_owned()]]);
            assert_eq!(world.wrong(&agent), Vec::<String>::new());
            agent.apply(&update::<wire::Service>(&[], &names)).unwrap();
            assert_eq!(backends(&agent), Vec::<Vec<String>>::new());
        }
    });
}
