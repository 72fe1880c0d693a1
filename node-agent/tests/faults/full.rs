//! Every map that the agent writes, filled to its limit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use ebpf_shared::{limits, overlay::Hop, redirect::NO_SLOT};
use ipnet::IpNet;
use node_agent::{desired::Listens, maps::MapError};
use xds_client::Update;
use xds_proto::isthmus::agent::v1 as wire;

use crate::{
    support::in_sandbox,
    world::{POD, World, address, class, local, name, pod, rule, service, update},
};

const SIZES: [(&str, u32); 13] = [
    ("HOSTS", 12),
    ("CIDRS", 10),
    ("ENDPOINTS", 5),
    ("CLASSES", 4),
    ("PEERS", 6),
    ("RULES", 40),
    ("SERVICES", 4),
    ("BACKENDS", 6),
    // Two slots to an entry: for two tables of two backends.
    ("MAGLEV", 61),
    ("SOURCES", 4),
    ("ANSWERERS", 1),
    ("NETNS", 2),
    ("CAPTURED", 4),
];

/// What makes a map overflow.
struct Case {
    map: &'static str,
    /// Entries that fit.
    fits: u32,
    /// Pods `p0`, `p1`, … that come before.
    pods: u8,
    /// Taken before.
    before: Vec<Update>,
    /// Refused.
    refused: Update,
    /// Takes it back.
    undo: Vec<Update>,
}

fn locals(count: u8, make: impl Fn(u8) -> wire::LocalEndpoint) -> Update {
    let all: Vec<_> = (0..count).map(|number| (format!("shop/p{number}"), make(number))).collect();
    let all: Vec<_> = all.iter().map(|(name, local)| (name.as_str(), local.clone())).collect();
    update(&all, &[])
}

fn no_locals(count: u8) -> Update {
    let names: Vec<_> = (0..count).map(|number| format!("shop/p{number}")).collect();
    update::<wire::LocalEndpoint>(&[], &names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn cases() -> Vec<Case> {
    let seven = |rules| update(&[("7", class(7, rules))], &[]);
    let web = || rule(true, 300, "", 80);
    let back = || vec![seven(vec![web()])];
    let case = |map, fits, refused, undo| Case { map, fits, pods: 0, before: Vec::new(), refused, undo };
    let many: Vec<String> = (10..30).map(|last| format!("10.1.2.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let classes: Vec<_> =
        (20..24).map(|id| (id.to_string(), class(id, vec![rule(true, 0, "", id)]))).collect();
    let classes: Vec<_> = classes.iter().map(|(id, class)| (id.as_str(), class.clone())).collect();
    vec![
        case(
            "HOSTS",
            12,
            update(&[("shop/many", address(&many, 302))], &[]),
            vec![update::<wire::WorkloadAddress>(&[], &["shop/many"])],
        ),
        case(
            "CIDRS",
            9,
            seven((0..9).map(|net| rule(true, 0, &format!("198.51.{net}.0/24"), 80)).collect()),
            back(),
        ),
        case("PEERS", 6, seven((0..9).map(|id| rule(true, 400 + id, "", 80)).collect()), back()),
        case("RULES", 40, seven((0..50).map(|port| rule(true, 300, "", 1001 + 2 * port)).collect()), back()),
        Case {
            pods: 5,
            ..case("ENDPOINTS", 5, locals(5, |number| local(&format!("p{number}"), 7)), vec![no_locals(5)])
        },
        Case {
            pods: 4,
            before: vec![update(&classes, &[])],
            ..case(
                "CLASSES",
                3,
                locals(4, |number| local(&format!("p{number}"), 20 + u32::from(number))),
                vec![no_locals(4)],
            )
        },
    ]
}

#[test]
fn a_map_that_is_full_is_named_nothing_changes_and_a_new_pod_is_closed_until_there_is_room() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &SIZES);
        world.history.push(update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]));
        let agent = world.agent();
        assert_eq!(world.verdicts(), "100010");
        let mut shown = String::new();
        for Case { map, fits, pods, before, refused, undo } in cases() {
            for number in 0..pods {
                let (index, last) = (100 + u32::from(number), 50 + number);
                agent.add_pod(name(&format!("p{number}")), pod(last, index)).unwrap();
            }
            for update in &before {
                agent.apply(update).unwrap();
            }
            let nack = agent.apply(&refused).expect_err(map);
            writeln!(shown, "{map}: {nack}").unwrap();
            assert!(nack.contains(map) && nack.contains(&format!("room for {fits} ")), "{nack}");
            // The alert.
            assert_eq!((agent.full_map(), agent.is_behind()), (Some(map), true));
            assert_eq!(world.verdicts(), "100010", "{map}: what holds goes on");
            assert_eq!(world.wrong(&agent), Vec::<String>::new(), "{map}");
            for number in 0..pods {
                assert_eq!(agent.enforced(&name(&format!("p{number}"))), None, "{map}: new pods are closed");
            }
            // The next agent finds the same.
            if pods == 0 {
                let refusal = agent.add_pod(name("late"), pod(99, 200));
                assert!(refusal.is_err() && agent.enforced(&name("late")).is_none(), "{map}");
                let _ = agent.remove_pod(&name("late"));
            }
            for update in &undo {
                agent.apply(update).unwrap_or_else(|error| panic!("{map}: {error}"));
            }
            for number in 0..pods {
                agent.remove_pod(&name(&format!("p{number}"))).unwrap();
            }
            assert_eq!((agent.full_map(), agent.is_behind()), (None, false), "{map}");
            assert_eq!(world.verdicts(), "100010", "{map}");
            for _ in 0..3 {
                agent.collect().unwrap();
            }
        }
        println!("{shown}");
    });
}

#[test]
fn a_full_map_of_sidecars_stops_no_denial_and_no_other_pod_and_opens_none_without_its_sidecar() {
    let sidecar = |ports: u32, pod: String| wire::LocalEndpoint {
        sidecar: true,
        captured_ports: (1..=ports)
            .map(|port| wire::CapturedPort { port, protocol: wire::Protocol::Tcp as i32 })
            .collect(),
        ..local(&pod, 7)
    };
    in_sandbox(move |sandbox| {
        let mut world = World::new(sandbox, &SIZES);
        let open = || update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]);
        world.history.push(open());
        let agent = world.agent();
        // One too many; and one with too many ports.
        for (map, fits, pods, ports) in [("NETNS", 2, 3, 1), ("CAPTURED", 4, 1, 5)] {
            assert_eq!(world.verdicts(), "100010", "{map}");
            for number in 0..pods {
                let (index, last) = (100 + u32::from(number), 50 + number);
                agent.add_pod(name(&format!("p{number}")), pod(last, index)).unwrap();
            }
            let nack = agent.apply(&locals(pods, |n| sidecar(ports, format!("p{n}")))).expect_err(map);
            assert!(nack.contains(map) && nack.contains(&format!("room for {fits} ")), "{nack}");
            // The alert.
            assert_eq!((agent.full_map(), agent.is_behind()), (Some(map), true));
            assert!(agent.is_policy_behind(), "a pod has none");
            let is_open = |number: u8| agent.enforced(&name(&format!("p{number}"))).is_some();
            let opened = (0..pods).filter(|number| is_open(*number)).count();
            let held = agent.kernel(|kernel, _| kernel.netns.len());
            assert_eq!(
                (opened, held),
                (usize::from(pods) - 1, usize::from(pods) - 1),
                "{map}: those that fit"
            );
            let deny = vec![rule(true, 300, "", 80), rule(false, 300, "", 80)];
            agent.apply(&update(&[("7", class(7, deny))], &[])).unwrap();
            assert_eq!(world.verdicts(), "000000", "{map}: the denial is in force");
            agent.apply(&update(&[("shop/late", local("late", 7))], &[])).expect_err(map);
            agent.add_pod(name("late"), pod(99, 200)).unwrap();
            assert!(agent.enforced(&name("late")).is_some(), "{map}: a pod without a sidecar has traffic");
            assert!(
                agent.retry().is_ok() && agent.full_map() == Some(map),
                "there is no more room than before"
            );
            assert_eq!(world.wrong(&agent), Vec::<String>::new(), "{map}");
            // Room is made: the one that was left out is opened with its sidecar.
            let gone = (0..pods).find(|number| is_open(*number));
            match gone {
                Some(number) => agent.remove_pod(&name(&format!("p{number}"))).unwrap(),
                None => agent.apply(&locals(pods, |n| sidecar(4, format!("p{n}")))).unwrap(),
            }
            for _ in 0..2 {
                agent.retry().unwrap();
            }
            assert_eq!((agent.full_map(), agent.is_behind()), (None, false), "{map}");
            for number in (0..pods).filter(|number| Some(*number) != gone) {
                assert!(is_open(number), "{map}: p{number}");
            }
            for number in 0..pods {
                agent.remove_pod(&name(&format!("p{number}"))).unwrap();
            }
            agent.remove_pod(&name("late")).unwrap();
            agent.apply(&no_locals(pods)).unwrap();
            agent.apply(&update::<wire::LocalEndpoint>(&[], &["shop/late"])).unwrap();
            agent.apply(&open()).unwrap();
            for _ in 0..3 {
                agent.collect().unwrap();
            }
            assert_eq!(world.wrong(&agent), Vec::<String>::new(), "{map}");
        }
    });
}

/// Services by their names.
type Told = Vec<(&'static str, wire::Service)>;

/// At a load balancer's address, whose clients the pod of this node answers by itself.
fn answered_directly(number: u8) -> wire::Service {
    let mut service = service(number, 1, 1);
    service.addresses.clear();
    service.source_ranges.clear();
    service.ports[0].backends[0].address = POD[0].to_owned();
    wire::Service { forwarding: wire::Forwarding::Dsr as i32, ..service }
}

/// What doesn't fit in which map of services, and the addresses of those that do.
fn services() -> [(&'static str, Told, Vec<&'static str>); 5] {
    let all = ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"];
    let of = |backends: [u8; 5]| -> Told {
        let each = all.into_iter().zip((1..).zip(backends)).filter(|(_, (_, backends))| *backends > 0);
        each.map(|(name, (number, backends))| (name, service(number, backends, 0))).collect()
    };
    let [one, two, three, four] = ["10.101.0.1", "10.101.0.2", "10.101.0.3", "10.101.0.4"];
    let [lb, other] = ["203.0.113.1", "203.0.113.2"];
    [
        ("SERVICES", of([1; 5]), vec![one, two, three, four]),
        ("BACKENDS", of([7, 2, 0, 0, 0]), vec![two]),
        ("MAGLEV", of([2, 2, 2, 0, 0]), vec![one, two]),
        // At its virtual address nobody asks for sources.
        ("SOURCES", vec![(all[0], service(1, 1, 5))], vec![one, lb]),
        // From within nobody is answered directly.
        (
            "ANSWERERS",
            vec![(all[0], answered_directly(1)), (all[1], answered_directly(2))],
            vec![lb, lb, other],
        ),
    ]
}

#[test]
fn a_full_map_of_services_stops_no_denial_no_pod_and_no_other_service() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &SIZES);
        let open = || update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]);
        world.history.push(open());
        let agent = world.agent();
        for (map, told, others) in services() {
            assert_eq!(world.verdicts(), "100010", "{map}");
            let nack = agent.apply(&update(&told, &[])).expect_err(map);
            assert!(nack.contains(map) && nack.contains("writing service "), "{nack}");
            // The alert.
            assert_eq!((agent.full_map(), agent.is_behind()), (Some(map), true));
            assert_eq!(world.wrong(&agent), Vec::<String>::new(), "{map}");
            let served = agent.kernel(|kernel, _| {
                kernel.services.keys().map(|key| key.address.to_string()).collect::<Vec<_>>()
            });
            assert_eq!(served, others, "{map}");
            let deny = vec![rule(true, 300, "", 80), rule(false, 300, "", 80)];
            agent.apply(&update(&[("7", class(7, deny))], &[])).unwrap();
            assert_eq!(world.verdicts(), "000000", "{map}: the denial is in force");
            agent.apply(&update(&[("shop/late", local("late", 7))], &[])).unwrap();
            agent.add_pod(name("late"), pod(99, 200)).unwrap();
            assert!(agent.enforced(&name("late")).is_some(), "{map}: the new pod has traffic");
            assert!(
                agent.retry().is_ok() && agent.full_map() == Some(map),
                "there is no more room than before"
            );
            // The next agent finds the same.
            let next = world.newborn();
            assert!(next.kernel(|kernel, _| kernel.services.len()) == others.len());
            let names: Vec<_> = told.iter().map(|(name, _)| *name).collect();
            agent.apply(&update::<wire::Service>(&[], &names)).unwrap();
            assert_eq!((agent.full_map(), agent.is_behind()), (None, false), "{map}");
            agent.remove_pod(&name("late")).unwrap();
            agent.apply(&update::<wire::LocalEndpoint>(&[], &["shop/late"])).unwrap();
            agent.apply(&open()).unwrap();
            for _ in 0..3 {
                agent.collect().unwrap();
            }
            assert_eq!(world.wrong(&agent), Vec::<String>::new(), "{map}");
        }
    });
}

#[test]
fn the_kernels_own_refusal_names_the_map_as_well() {
    in_sandbox(|sandbox| {
        use node_agent::kernel::Kernel;
        let mut kernel = Kernel::load_sized(&sandbox.bpffs(), &sandbox.cgroup, &[("HOSTS", 4), ("CIDRS", 4)])
            .expect("the programs load");
        for (bits, map) in [(32, "HOSTS"), (24, "CIDRS")] {
            let error = (0..200u8).find_map(|number| {
                let net = format!("10.1.{number}.0/{bits}").parse().unwrap();
                kernel.identities.upsert(&net, 300).err()
            });
            assert_eq!(error.expect("it is full").full(), Some(map));
        }
    });
}

/// Answers like a proxy of the node.
const LISTENS: Listens = Listens { v4: 4_000, v6: 4_000, tcp: true, udp: true };

#[test]
fn beyond_the_last_slot_of_a_proxy_its_traffic_is_refused_and_no_other() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &[]);
        world.history.push(update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]));
        let agent = world.agent();
        // One is for DNS, and one stands for none.
        for number in 2..limits::PROXIES {
            assert_ne!(agent.set_proxy(&format!("p{number}"), Some(LISTENS)).unwrap(), NO_SLOT);
        }
        assert_eq!(agent.set_proxy("late", Some(LISTENS)).unwrap(), NO_SLOT);
        assert_eq!(world.verdicts(), "100010");
        let l7 = Some(wire::L7 { proxy: "late".into(), ..Default::default() });
        let by_proxy = wire::PolicyRule { l7, ..rule(true, 300, "", 80) };
        agent.apply(&update(&[("7", class(7, vec![by_proxy, rule(true, 300, "", 81)]))], &[])).unwrap();
        assert_eq!(world.verdicts(), "000001", "what may go by that proxy only goes by none");
        assert_eq!(world.wrong(&agent), Vec::<String>::new());
        // A name that has a slot keeps it.
        assert_ne!(agent.set_proxy("p2", None).unwrap(), NO_SLOT);
    });
}

#[test]
fn how_the_node_is_set_up_is_written_as_far_as_there_is_room_told_of_and_keeps_out_no_denial() {
    in_sandbox(|sandbox| {
        let sizes = [("NODES", 4), ("LOCALS", 3), ("CONTROL", 2)];
        let mut world = World::new(sandbox, &sizes);
        world.history.push(update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[]));
        let agent = world.agent();
        let hops = |numbers: std::ops::Range<u8>| -> BTreeMap<IpNet, Hop> {
            numbers.map(|n| (format!("10.7.{n}.0/24").parse().unwrap(), Hop::default())).collect()
        };
        let locals = |numbers: std::ops::Range<u8>| {
            numbers.map(|n| [192, 0, 2, n].into()).collect::<BTreeSet<IpAddr>>()
        };
        let control = |numbers: std::ops::Range<u8>| {
            numbers.map(|n| ([192, 0, 2, n], 9443).into()).collect::<BTreeSet<SocketAddr>>()
        };
        type Write<'a> = Box<dyn Fn(std::ops::Range<u8>) -> Result<(), MapError> + 'a>;
        let writes: [(&str, u8, Write<'_>); 3] = [
            ("NODES", 4, Box::new(|numbers| agent.set_hops(&hops(numbers)))),
            ("LOCALS", 3, Box::new(|numbers| agent.set_host(&locals(numbers), &control(0..1)))),
            ("CONTROL", 2, Box::new(|numbers| agent.set_host(&locals(0..1), &control(numbers)))),
        ];
        for (map, fits, write) in writes {
            write(0..fits).unwrap();
            let held = || {
                node_agent::kernel::dump::all()
                    .iter()
                    .find(|known| known.name() == map)
                    .map(|how| node_agent::kernel::dump::dump(&sandbox.bpffs(), how.as_ref()).unwrap().len())
            };
            let error = write(1..fits + 2).unwrap_err().to_string();
            assert!(error.contains(&format!("kernel map {map} is full")), "{error}");
            // What is gone has made room for one of the two.
            assert_eq!(held(), Some(usize::from(fits)), "{map}");
            // The alert.
            assert_eq!((agent.full_map(), agent.is_behind()), (Some(map), true));
            assert!(!agent.is_policy_behind(), "{map}");
            let deny = vec![rule(true, 300, "", 80), rule(false, 300, "", 80)];
            agent.apply(&update(&[("7", class(7, deny))], &[])).unwrap();
            assert_eq!(world.verdicts(), "000000", "{map}: the denial is in force");
            agent.apply(&update(&[("7", class(7, vec![rule(true, 300, "", 80)]))], &[])).unwrap();
            assert_eq!(world.verdicts(), "100010", "{map}: and so is what allows");
            assert_eq!(agent.full_map(), Some(map), "it is told of until it is written");
            // All new ones, of which there is room when the others are gone.
            write(100..100 + fits).unwrap();
            assert_eq!((agent.full_map(), agent.is_behind()), (None, false), "{map}");
            assert_eq!(held(), Some(usize::from(fits)), "{map}");
            write(0..1).unwrap();
        }
    });
}

#[test]
fn names_that_end_and_find_no_room_are_told_of_until_nobody_is_connected_by_them() {
    in_sandbox(|sandbox| {
        let mut world = World::new(sandbox, &[("LINGERING", 2)]);
        let named = wire::PolicyRule {
            direction: wire::Direction::Egress as i32,
            action: wire::Action::QualifiedAllow as i32,
            name: Some(wire::NamePattern { pattern: "*".into(), ..Default::default() }),
            ..Default::default()
        };
        let policy = |rules: Vec<wire::PolicyRule>| {
            let rules = [rules, vec![named.clone()]].concat();
            let class = wire::PolicyClass { default_deny_egress: true, ..class(7, rules) };
            update(&[("7", class)], &[])
        };
        world.history.push(policy(vec![rule(true, 300, "", 80)]));
        let agent = world.agent();
        let (asks, holds) = (POD[0].parse().unwrap(), std::time::Duration::from_secs(60));
        let at: BTreeSet<IpAddr> = (1..4).map(|n| [203, 0, 113, n].into()).collect();
        let answer: Vec<_> = at.iter().map(|address| (*address, holds)).collect();
        agent.admit(asks, "a.test", &answer, 1_000).unwrap();
        assert_eq!(world.verdicts(), "100010");
        let error = agent.lapse_names(2_000).unwrap_err().to_string();
        assert!(error.contains("LINGERING") && error.contains("room for 2 "), "{error}");
        assert_eq!((agent.full_map(), agent.is_behind()), (Some("LINGERING"), true));
        assert_eq!(world.wrong(&agent), Vec::<String>::new(), "what holds goes on");
        // It is asked next who is connected; with fewer of them there is room.
        let lapsed = agent.lapse_names(2_001).unwrap();
        assert_eq!(lapsed, at);
        agent.forget_names(&lapsed.into_iter().take(1).collect()).unwrap();
        assert_eq!((agent.full_map(), agent.is_behind()), (None, false));
        assert_eq!(world.wrong(&agent), Vec::<String>::new());
        let deny = vec![rule(true, 300, "", 80), rule(false, 300, "", 80)];
        agent.apply(&policy(deny)).unwrap();
        assert_eq!(world.verdicts(), "000000");
    });
}
