//! Windows: every state between two configurations is looked at, with the verdict that the kernel itself runs.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ebpf_shared::{Direction, Reason, judge, packet::protocol::TCP, policy::Question};
use ipnet::Ipv4Net;
use mesh_model::{identity::SpiffeId, resource::NamespacedName};
use proptest::prelude::*;

use super::*;
use crate::{
    kernel::verdict::Policy,
    maps::compiled,
    subscribe::{Address, Class, Local, NodeRoute, Peer, Resources, Rule},
};

const NODE: &str = "n1";
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Two pods here, and some callers: pods elsewhere, a node, and addresses outside the mesh.
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 1, 2), Ipv4Addr::new(10, 1, 1, 3)];
const CALLERS: [Ipv4Addr; 6] = [
    Ipv4Addr::new(10, 1, 2, 2),
    Ipv4Addr::new(10, 1, 2, 3),
    Ipv4Addr::new(10, 1, 2, 99),
    Ipv4Addr::new(192, 0, 2, 2),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(198, 51, 100, 200),
];
const PORTS: [u16; 4] = [79, 80, 443, 8080];

fn pods() -> BTreeMap<NamespacedName, Pod> {
    let named = PODS.iter().zip(1u32..).map(|(address, n)| {
        let pod = Pod { address: *address, ifindex: n, netns_cookie: u64::from(n) };
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
    };
    (NamespacedName::new("shop", format!("pod{n}")), local)
}

fn nodes(resources: &mut Resources) {
    for (name, last) in [(NODE, 1u8), ("n2", 2)] {
        let pods = Ipv4Net::new([10, 1, last, 0].into(), 24).unwrap();
        let node = NodeRoute { address: [192, 0, 2, last].into(), pod_cidrs: vec![pods] };
        resources.nodes.insert(name.into(), node);
    }
}

/// Verdict of every pod on every caller and port; `None`: dropped, else passed.
type Verdicts = BTreeMap<(u32, Ipv4Addr, u16), Option<()>>;

fn verdicts(maps: &Desired) -> Verdicts {
    let mut policy = Policy::default();
    for (number, rules) in &maps.classes {
        policy.put_class(*number, &compiled(rules));
    }
    policy.ipcache = maps.identities.clone();
    let mut all = Verdicts::new();
    for n in 1..=PODS.len() as u32 {
        for caller in CALLERS {
            for port in PORTS {
                let verdict = maps.endpoints.get(&n).and_then(|endpoint| {
                    let identity = ebpf_shared::decide::peer_identity(&policy, caller.into());
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
    for (identity, caller) in callers.iter().zip(CALLERS) {
        if let Some(identity) = identity {
            let name = NamespacedName::new("shop", format!("caller{}", caller.octets()[3]));
            resources.addresses.insert(name, Address { addresses: vec![caller], identity: *identity });
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
        ],
    };
    resources.classes.insert(1, class);
    resources.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let maps = compute(&resources, OWN, &pods(), &Desired::default(), &mut dictionary);
    let verdicts = verdicts(&maps);
    let open = |caller: [u8; 4], port: u16| verdicts[&(1, caller.into(), port)].is_some();
    assert!(open([198, 51, 100, 200], 80) && open([198, 51, 100, 200], 443));
    assert!(open([198, 51, 100, 1], 80) && !open([198, 51, 100, 1], 443));
    // An address of a pod that nobody has told of is no address outside the mesh.
    assert!(!open([10, 1, 2, 99], 79) && open([192, 0, 2, 2], 79));
}
