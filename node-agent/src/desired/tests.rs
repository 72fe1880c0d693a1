//! Windows: every state between two configurations is looked at, with the verdict that the kernel itself runs.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_shared::{Direction, Reason, identity::UNMANAGED, judge, packet::protocol::TCP, policy::Question};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_model::{identity::SpiffeId, resource::NamespacedName};
use proptest::prelude::*;

use super::*;
use crate::{
    kernel::verdict::Policy,
    maps::compiled,
    subscribe::{Address, Class, Local, NodeRoute, Peer, Resources, Rule},
};

const NODE: &str = "n1";
const OWN: PodAddresses = PodAddresses {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
};
/// Two pods here, and some callers of both families: pods elsewhere, a node, and addresses outside the mesh.
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 1, 2), Ipv4Addr::new(10, 1, 1, 3)];
const CALLERS: [IpAddr; 11] = [
    v4([10, 1, 2, 2]),
    v4([10, 1, 2, 3]),
    v4([10, 1, 2, 99]),
    v4([192, 0, 2, 2]),
    v4([198, 51, 100, 1]),
    v4([198, 51, 100, 200]),
    v6([0xfd00, 1, 0, 2, 0, 0, 0, 2]),
    v6([0xfd00, 1, 0, 2, 0, 0, 0, 3]),
    v6([0xfd00, 1, 0, 2, 0, 0, 0, 0x99]),
    v6([0x2001, 0xdb8, 5, 0, 0, 0, 0, 1]),
    v6([0x2001, 0xdb8, 5, 0x8000, 0, 0, 0, 1]),
];
/// Where the IPv6 addresses of the same workloads begin.
const SECOND: usize = 6;
const PORTS: [u16; 4] = [79, 80, 443, 8080];

const fn v4(octets: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_octets(octets))
}

const fn v6(segments: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_segments(segments))
}

fn pods() -> BTreeMap<NamespacedName, Pod> {
    let named = PODS.iter().zip(1u32..).map(|(address, n)| {
        let six = Ipv6Addr::new(0xfd00, 1, 0, 1, 0, 0, 0, address.octets()[3].into());
        let addresses = PodAddresses { v4: *address, v6: Some(six) };
        let pod = Pod { addresses, ifindex: n, netns_cookie: u64::from(n) };
        (NamespacedName::new("shop", format!("pod{n}")), pod)
    });
    named.collect()
}

fn local(n: u32, identity: u32, class: u32) -> (NamespacedName, Local) {
    let local = Local {
        identity,
        spiffe_id: SpiffeId::parse("spiffe://west.example/ns/shop/sa/x").unwrap(),
        class,
        captured: Default::default(),
        sidecar: false,
        host_ports: Vec::new(),
    };
    (NamespacedName::new("shop", format!("pod{n}")), local)
}

fn nodes(resources: &mut Resources) {
    for (name, last) in [(NODE, 1u8), ("n2", 2)] {
        let pods = Ipv4Net::new([10, 1, last, 0].into(), 24).unwrap();
        let six = Ipv6Net::new(Ipv6Addr::new(0xfd00, 1, 0, last.into(), 0, 0, 0, 0), 64).unwrap();
        let node = NodeRoute {
            address: [192, 0, 2, last].into(),
            address6: None,
            pod_cidrs: vec![pods.into(), six.into()],
            zone: String::new(),
        };
        resources.nodes.insert(name.into(), node);
    }
}

/// Verdict of every pod on every caller and port; `None`: dropped, else passed.
type Verdicts = BTreeMap<(u32, IpAddr, u16), Option<()>>;

fn verdicts(maps: &Desired) -> Verdicts {
    let mut policy = Policy::default();
    for (number, rules) in &maps.classes {
        policy.put_class(*number, &compiled(rules));
    }
    policy.identities = maps.identities.clone();
    let mut all = Verdicts::new();
    for n in 1..=PODS.len() as u32 {
        for caller in CALLERS {
            for port in PORTS {
                let verdict = maps.endpoints.get(&n).and_then(|endpoint| {
                    let identity = ebpf_shared::decide::peer_identity(&policy, &caller.into());
                    let question = Question {
                        class: endpoint.class,
                        direction: Direction::Ingress,
                        identity,
                        protocol: TCP,
                        port,
                    };
                    let ruling = judge(&policy, &question);
                    assert_ne!(ruling.reason, Reason::PolicyMissing, "an endpoint without its class");
                    ruling.passes().then_some(())
                });
                all.insert((n, caller, port), verdict);
            }
        }
    }
    all
}

/// Walks from one configuration to the other; at each step every verdict must be the old or the new one.
fn walk(old: &Resources, new: &Resources) -> Result<(), TestCaseError> {
    let mut dictionary = Dictionary::default();
    let empty = Desired::default();
    let current = compute(old, OWN, &pods(), &empty, &mut dictionary);
    let desired = compute(new, OWN, &pods(), &current, &mut dictionary);
    let (before, after) = (verdicts(&current), verdicts(&desired));
    let mut maps = current.clone();
    for op in plan(&current, &desired, &mut dictionary) {
        op.apply(&mut maps);
        for (key, verdict) in verdicts(&maps) {
            let fine = verdict == before[&key] || verdict == after[&key];
            prop_assert!(
                fine,
                "after {op:?}: {key:?} was {:?}, is to be {:?}, is {verdict:?}",
                before[&key],
                after[&key]
            );
        }
    }
    prop_assert_eq!(maps, desired);
    Ok(())
}

fn peers() -> impl Strategy<Value = Peer> {
    prop_oneof![
        Just(Peer::Any),
        Just(Peer::Nobody),
        (300u32..304).prop_map(Peer::Identity),
        prop_oneof![
            Just("0.0.0.0/0"),
            Just("198.51.100.0/24"),
            Just("198.51.100.128/25"),
            Just("198.51.100.200/32"),
            Just("::/0"),
            Just("2001:db8:5::/48"),
            Just("2001:db8:5:8000::/49"),
            Just("fd00:1::/32"),
            Just("192.0.2.0/24")
        ]
        .prop_map(|cidr| Peer::Cidr(cidr.parse().unwrap())),
    ]
}

fn classes() -> impl Strategy<Value = Class> {
    let rule = (
        peers(),
        any::<bool>(),
        prop_oneof![Just(0u8), Just(TCP)],
        prop_oneof![Just(None), Just(Some((80, 80))), Just(Some((80, 443))), Just(Some((1, 1023)))],
    );
    (any::<bool>(), proptest::collection::vec(rule, 0..6)).prop_map(|(deny, rules)| Class {
        deny_ingress: deny.then(|| "default".to_owned()),
        deny_egress: None,
        rules: rules
            .into_iter()
            .map(|(peer, allow, protocol, ports)| Rule {
                direction: Direction::Ingress,
                allow,
                peer,
                protocol,
                ports,
                provenance: "rule".into(),
            })
            .collect(),
    })
}

/// Two classes, an assignment of the pods to them, and identities of the callers.
type Setup = ([Class; 2], [Option<u32>; 2], [Option<u32>; 3]);

fn setups() -> impl Strategy<Value = Setup> {
    (
        [classes(), classes()],
        [proptest::option::of(1u32..=2), proptest::option::of(1u32..=2)],
        [
            proptest::option::of(300u32..304),
            proptest::option::of(300u32..304),
            proptest::option::of(300u32..304),
        ],
    )
}

fn resources((classes, pods, callers): &Setup) -> Resources {
    let mut resources = Resources::default();
    nodes(&mut resources);
    for (class, number) in classes.iter().zip(1u32..) {
        resources.classes.insert(number, class.clone());
    }
    for (class, n) in pods.iter().zip(1u32..) {
        if let Some(class) = class {
            resources.locals.extend([local(n, 400 + n, *class)]);
        }
    }
    for (n, identity) in callers.iter().enumerate() {
        if let Some(identity) = identity {
            let name = NamespacedName::new("shop", format!("caller{n}"));
            let addresses = vec![CALLERS[n], CALLERS[SECOND + n]];
            resources.addresses.insert(name, Address { addresses, identity: *identity });
        }
    }
    resources
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn while_policy_changes_every_verdict_is_the_old_or_the_new_one(old in setups(), classes in [classes(), classes()]) {
        let new = (classes, old.1, old.2);
        walk(&resources(&old), &resources(&new))?;
    }

    #[test]
    fn while_pods_change_their_class_every_verdict_is_the_old_or_the_new_one(
        old in setups(),
        pods in [proptest::option::of(1u32..=2), proptest::option::of(1u32..=2)],
    ) {
        let new = (old.0.clone(), pods, old.2);
        walk(&resources(&old), &resources(&new))?;
    }

    #[test]
    fn while_addresses_change_their_identity_every_verdict_is_the_old_or_the_new_one(
        old in setups(),
        callers in [proptest::option::of(300u32..304), proptest::option::of(300u32..304), proptest::option::of(300u32..304)],
    ) {
        let new = (old.0.clone(), old.1, callers);
        walk(&resources(&old), &resources(&new))?;
    }

    #[test]
    fn the_writes_always_end_at_what_is_desired(old in setups(), new in setups()) {
        let mut dictionary = Dictionary::default();
        let current = compute(&resources(&old), OWN, &pods(), &Desired::default(), &mut dictionary);
        let desired = compute(&resources(&new), OWN, &pods(), &current, &mut dictionary);
        let mut maps = current.clone();
        for op in plan(&current, &desired, &mut dictionary) {
            op.apply(&mut maps);
        }
        prop_assert_eq!(maps, desired);
    }
}

#[test]
fn a_new_endpoint_gets_its_entry_after_its_class_and_its_identity() {
    let mut with = Resources::default();
    nodes(&mut with);
    with.classes.insert(1, Class::default());
    with.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let desired = compute(&with, OWN, &pods(), &Desired::default(), &mut dictionary);
    let ops = diff(&Desired::default(), &desired);
    let at = |wanted: fn(&MapOp) -> bool| ops.iter().position(wanted).unwrap();
    let endpoint = at(|op| matches!(op, MapOp::PutEndpoint(1, _)));
    assert!(at(|op| matches!(op, MapOp::PutClass(..))) < endpoint);
    assert!(at(|op| matches!(op, MapOp::PutIdentity(net, 300) if net.addr() == PODS[0])) < endpoint);
    let is_six =
        |op: &MapOp| matches!(op, MapOp::PutIdentity(IpNet::V6(net), 300) if net.prefix_len() == 128);
    assert!(ops.iter().position(is_six).unwrap() < endpoint);
}

#[test]
fn an_endpoint_whose_class_is_not_there_yet_has_no_entry_or_keeps_the_one_it_has() {
    let mut resources = Resources::default();
    resources.locals.extend([local(1, 300, 7)]);
    let mut dictionary = Dictionary::default();
    let none = compute(&resources, OWN, &pods(), &Desired::default(), &mut dictionary);
    assert!(none.endpoints.is_empty());
    resources.classes.insert(7, Class::default());
    let first = compute(&resources, OWN, &pods(), &none, &mut dictionary);
    resources.locals.extend([local(1, 300, 8)]);
    let kept = compute(&resources, OWN, &pods(), &first, &mut dictionary);
    assert_eq!(kept.endpoints, first.endpoints);
    assert_eq!(kept.classes, first.classes);
}

#[test]
fn unchanged_policy_is_not_written_again_and_a_changed_one_gets_a_new_number() {
    let mut resources = Resources::default();
    resources.classes.insert(1, Class::default());
    resources.locals.extend([local(1, 300, 1), local(2, 301, 1)]);
    let mut dictionary = Dictionary::default();
    let first = compute(&resources, OWN, &pods(), &Desired::default(), &mut dictionary);
    let same = compute(&resources, OWN, &pods(), &first, &mut dictionary);
    assert!(diff(&first, &same).is_empty());
    assert_eq!(first.classes.len(), 1, "pods with equal policy share a class");
    resources.classes.insert(1, Class { deny_ingress: Some("x".into()), ..Class::default() });
    let changed = compute(&resources, OWN, &pods(), &first, &mut dictionary);
    assert_ne!(first.classes.keys().next(), changed.classes.keys().next());
}

#[test]
fn what_an_agent_before_left_stays_until_the_control_plane_or_the_cache_has_spoken() {
    let mut resources = Resources::default();
    resources.classes.insert(1, Class::default());
    resources.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let kernel = compute(&resources, OWN, &pods(), &Desired::default(), &mut dictionary);
    let mut dictionary = Dictionary::recover(&kernel);
    let silent = compute(&Resources::default(), OWN, &pods(), &kernel, &mut dictionary);
    assert_eq!(silent.endpoints, kernel.endpoints);
    assert!(kernel.identities.iter().all(|(net, identity)| silent.identities.get(net) == Some(identity)));
}

#[test]
fn a_rule_about_a_wide_cidr_holds_for_the_narrow_ones_inside_it() {
    let cidr = |text: &str| Peer::Cidr(text.parse().unwrap());
    let rule = |peer, port: u16| Rule {
        direction: Direction::Ingress,
        allow: true,
        peer,
        protocol: TCP,
        ports: Some((port, port)),
        provenance: "r".into(),
    };
    let mut resources = Resources::default();
    nodes(&mut resources);
    let class = Class {
        deny_ingress: Some("d".into()),
        deny_egress: None,
        rules: vec![
            rule(cidr("198.51.100.0/24"), 80),
            rule(cidr("198.51.100.128/25"), 443),
            rule(cidr("0.0.0.0/0"), 79),
            rule(cidr("2001:db8:5::/48"), 80),
            rule(cidr("2001:db8:5:8000::/49"), 443),
            rule(cidr("::/0"), 79),
        ],
    };
    resources.classes.insert(1, class);
    resources.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let maps = compute(&resources, OWN, &pods(), &Desired::default(), &mut dictionary);
    let verdicts = verdicts(&maps);
    let open = |caller: &str, port: u16| verdicts[&(1, caller.parse().unwrap(), port)].is_some();
    for (wide, narrow) in [("198.51.100.1", "198.51.100.200"), ("2001:db8:5::1", "2001:db8:5:8000::1")] {
        assert!(open(narrow, 80) && open(narrow, 443));
        assert!(open(wide, 80) && !open(wide, 443));
    }
    // An address of a pod that nobody has told of is no address outside the mesh.
    for (pod, node) in [("10.1.2.99", "192.0.2.2"), ("fd00:1:0:2::99", "2001:db8:5::1")] {
        assert!(!open(pod, 79) && open(node, 79));
        let range = maps.identities.iter().find(|(net, _)| net.contains(&pod.parse::<IpAddr>().unwrap()));
        assert!(range.is_some());
    }
    let ranges = maps.identities.values().filter(|identity| **identity == UNMANAGED);
    assert_eq!(ranges.count(), 4, "two nodes, two families");
}
