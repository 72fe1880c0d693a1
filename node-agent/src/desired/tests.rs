//! Windows: every state between two configurations is looked at, with the verdict that the kernel itself runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ebpf_shared::{
    Direction, Question, Reason,
    identity::{LOCAL, REMOTE_NODE, UNMANAGED},
    judge,
    packet::{
        icmp::ECHO,
        protocol::{ICMP, TCP},
    },
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_model::{identity::SpiffeId, resource::NamespacedName};
use proptest::prelude::*;

use super::*;
use crate::{
    kernel::verdict::Policy,
    names::Names,
    subscribe::{Address, Class, Entity, Local, NodeRoute, Peer, Resources, Rule},
};

mod crash;
mod incremental;
mod names;

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
/// What is asked for: ports, and an echo.
const ASKED: [(u8, u16); 5] = [(TCP, 79), (TCP, 80), (TCP, 443), (TCP, 8080), (ICMP, ECHO)];

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
        audit: false,
        host_ports: Vec::new(),
        readiness: None,
    };
    (NamespacedName::new("shop", format!("pod{n}")), local)
}

fn nodes(resources: &mut Resources) {
    for (name, last) in [(NODE, 1u8), ("n2", 2)] {
        let pods = Ipv4Net::new([10, 1, last, 0].into(), 24).unwrap();
        let six = Ipv6Net::new(Ipv6Addr::new(0xfd00, 1, 0, last.into(), 0, 0, 0, 0), 64).unwrap();
        let node = NodeRoute {
            tunnel: None,
            address: [192, 0, 2, last].into(),
            address6: None,
            addresses: Vec::new(),
            pod_cidrs: vec![pods.into(), six.into()],
            zone: String::new(),
        };
        resources.nodes.insert(name.into(), node);
    }
}

fn computed(resources: &Resources, current: &Desired, dictionary: &mut Dictionary) -> Desired {
    computed_with(resources, &names::some(), current, dictionary)
}

fn computed_with(
    resources: &Resources,
    names: &Names,
    current: &Desired,
    dictionary: &mut Dictionary,
) -> Desired {
    let inputs = Inputs { resources, node: OWN, pods: &pods(), gateways: &BTreeSet::new(), names };
    compute(inputs, current, dictionary)
}

/// Verdict of every pod on every caller and port, for what is there already or begins: whether it passes, to the pod and
/// from it.
type Verdicts = BTreeMap<(u32, IpAddr, u8, u16, bool), [bool; 2]>;

fn verdicts(maps: &Desired) -> Verdicts {
    let policy = Policy {
        classes: maps.classes.clone(),
        rulesets: maps.rulesets.clone(),
        identities: (*maps.identities).clone(),
        lingering: maps.lingering.clone(),
        epoch: 0,
    };
    let mut all = Verdicts::new();
    for n in 1..=PODS.len() as u32 {
        for caller in CALLERS {
            for ((protocol, port), exists) in ASKED.iter().flat_map(|asked| [(*asked, false), (*asked, true)])
            {
                let identity = ebpf_shared::decide::peer_identity(&policy, &caller.into());
                let lasting = maps.lingering.get(&caller).copied().filter(|_| exists);
                let identity = lasting.unwrap_or(identity);
                let verdict = [Direction::Ingress, Direction::Egress].map(|direction| {
                    let Some(endpoint) = maps.endpoints.get(&n) else { return false };
                    let class = endpoint.class;
                    let ruling = judge(&policy, &Question { class, direction, identity, protocol, port });
                    assert_ne!(ruling.reason, Reason::PolicyMissing, "an endpoint without its class");
                    ruling.passes()
                });
                all.insert((n, caller, protocol, port, exists), verdict);
            }
        }
    }
    all
}

/// Walks from one configuration to the other; at each step every verdict must be the old or the new one.
fn walk(old: &Resources, new: &Resources) -> Result<(), TestCaseError> {
    walk_with((old, &names::some()), (new, &names::some()))
}

fn walk_with(old: (&Resources, &Names), new: (&Resources, &Names)) -> Result<(), TestCaseError> {
    let mut dictionary = Dictionary::default();
    let empty = Desired::default();
    let current = computed_with(old.0, old.1, &empty, &mut dictionary);
    let desired = computed_with(new.0, new.1, &current, &mut dictionary);
    let (before, after) = (verdicts(&current), verdicts(&desired));
    let mut maps = current.clone();
    for op in steps(&current, &desired, &mut dictionary) {
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
    prop_assert_eq!(swept(maps), desired);
    Ok(())
}

/// What is left when nothing that is not needed is left.
fn swept(mut maps: Desired) -> Desired {
    let mut garbage = Garbage::default();
    for _ in 0..4 {
        let (ops, found) = collect(&maps, &garbage);
        ops.iter().for_each(|op| op.apply(&mut maps));
        garbage = found;
    }
    maps
}

fn peers() -> impl Strategy<Value = Peer> {
    prop_oneof![
        Just(Peer::Any),
        Just(Peer::Nobody),
        (300u32..304).prop_map(Peer::Identity),
        proptest::collection::vec(300u32..304, 1..4).prop_map(|all| Peer::Identities(all.into())),
        Just(Peer::Cidrs(
            ["198.51.100.0/25", "192.0.2.0/24", "2001:db8:5::/48"].map(|net| net.parse().unwrap()).into()
        )),
        names::patterns(),
        proptest::sample::select(vec![
            Entity::World,
            Entity::Host,
            Entity::RemoteNode,
            Entity::Health,
            Entity::Unmanaged,
            Entity::Workloads
        ])
        .prop_map(Peer::Entity),
        prop_oneof![
            Just("0.0.0.0/0"),
            Just("198.51.100.0/24"),
            Just("198.51.100.128/25"),
            Just("198.51.100.200/32"),
            Just("::/0"),
            Just("2001:db8:5::/48"),
            Just("2001:db8:5:8000::/49"),
            Just("fd00:1::/32"),
            Just("192.0.2.0/24"),
            Just("192.0.2.2/32")
        ]
        .prop_map(|cidr| Peer::Cidr(cidr.parse().unwrap())),
    ]
}

fn classes() -> impl Strategy<Value = Class> {
    let rule = (
        peers(),
        any::<bool>(),
        prop_oneof![Just(0u8), Just(TCP), Just(ICMP)],
        prop_oneof![
            Just(None),
            Just(Some((80, 80))),
            Just(Some((80, 443))),
            Just(Some((1, 1023))),
            Just(Some((ECHO, ECHO | 0xff)))
        ],
    );
    (any::<bool>(), proptest::collection::vec(rule, 0..6)).prop_map(|(deny, rules)| Class {
        deny_ingress: deny.then(|| "default".to_owned()),
        rules: rules
            .into_iter()
            .map(|(peer, allow, protocol, ports)| Rule {
                direction: Direction::Ingress,
                allow,
                audit: false,
                peer,
                protocol,
                ports,
                l7: None,
                provenance: "rule".into(),
            })
            .collect(),
        ..Class::default()
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
    fn while_nodes_come_and_go_every_verdict_is_the_old_or_the_new_one(old in setups(), gone in 1u8..3) {
        let (with, mut without) = (resources(&old), resources(&old));
        without.nodes.remove(&format!("n{gone}"));
        walk(&with, &without)?;
        walk(&without, &with)?;
    }

    #[test]
    fn the_writes_always_end_at_what_is_desired(old in setups(), new in setups()) {
        let mut dictionary = Dictionary::default();
        let current = computed(&resources(&old), &Desired::default(), &mut dictionary);
        let desired = computed(&resources(&new), &current, &mut dictionary);
        let mut maps = current.clone();
        for op in steps(&current, &desired, &mut dictionary) {
            op.apply(&mut maps);
        }
        prop_assert_eq!(swept(maps), desired);
    }
}

#[test]
fn a_new_endpoint_gets_its_entry_after_its_class_and_its_identity() {
    let mut with = Resources::default();
    nodes(&mut with);
    with.classes.insert(1, Class::default());
    with.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let desired = computed(&with, &Desired::default(), &mut dictionary);
    let ops = plan(&Desired::default(), &Delta::between(&Desired::default(), &desired));
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
    let none = computed(&resources, &Desired::default(), &mut dictionary);
    assert!(none.endpoints.is_empty());
    resources.classes.insert(7, Class::default());
    let first = computed(&resources, &none, &mut dictionary);
    resources.locals.extend([local(1, 300, 8)]);
    let kept = computed(&resources, &first, &mut dictionary);
    assert_eq!(kept.endpoints, first.endpoints);
    assert_eq!(kept.classes, first.classes);
}

#[test]
fn unchanged_policy_is_not_written_again_and_another_default_gets_a_new_number() {
    let mut resources = Resources::default();
    resources.classes.insert(1, Class::default());
    resources.locals.extend([local(1, 300, 1), local(2, 301, 1)]);
    let mut dictionary = Dictionary::default();
    let first = computed(&resources, &Desired::default(), &mut dictionary);
    let same = computed(&resources, &first, &mut dictionary);
    assert!(plan(&first, &Delta::between(&first, &same)).is_empty());
    assert_eq!(first.classes.len(), 1, "pods with equal policy share a class");
    resources.classes.insert(1, Class { deny_ingress: Some("x".into()), ..Class::default() });
    let changed = computed(&resources, &first, &mut dictionary);
    assert_ne!(first.classes.keys().next(), changed.classes.keys().next());
}

#[test]
fn what_an_agent_before_left_stays_until_the_control_plane_or_the_cache_has_spoken() {
    let mut resources = Resources::default();
    resources.classes.insert(1, Class::default());
    resources.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let kernel = computed(&resources, &Desired::default(), &mut dictionary);
    let mut dictionary = Dictionary::recover(&kernel);
    let silent = computed(&Resources::default(), &kernel, &mut dictionary);
    assert_eq!(silent.endpoints, kernel.endpoints);
    assert!(kernel.identities.iter().all(|(net, identity)| silent.identities.get(net) == Some(identity)));
}

#[test]
fn a_rule_about_a_wide_cidr_holds_for_the_narrow_ones_inside_it() {
    let cidr = |text: &str| Peer::Cidr(text.parse().unwrap());
    let rule = |peer, port: u16| Rule {
        direction: Direction::Ingress,
        allow: true,
        audit: false,
        peer,
        protocol: TCP,
        ports: Some((port, port)),
        l7: None,
        provenance: "r".into(),
    };
    let mut resources = Resources::default();
    nodes(&mut resources);
    let class = Class {
        deny_ingress: Some("d".into()),
        rules: vec![
            rule(cidr("198.51.100.0/24"), 80),
            rule(cidr("198.51.100.128/25"), 443),
            rule(cidr("0.0.0.0/0"), 79),
            rule(cidr("2001:db8:5::/48"), 80),
            rule(cidr("2001:db8:5:8000::/49"), 443),
            rule(cidr("::/0"), 79),
        ],
        ..Class::default()
    };
    resources.classes.insert(1, class);
    resources.locals.extend([local(1, 300, 1)]);
    let mut dictionary = Dictionary::default();
    let maps = computed(&resources, &Desired::default(), &mut dictionary);
    let verdicts = verdicts(&maps);
    let open = |caller: &str, port: u16| verdicts[&(1, caller.parse().unwrap(), TCP, port, false)][0];
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

/// A class that denies but for one rule.
fn only(peer: Peer, allow: bool) -> Class {
    let rule = Rule {
        direction: Direction::Ingress,
        allow,
        audit: false,
        peer,
        protocol: 0,
        ports: None,
        l7: None,
        provenance: "r".into(),
    };
    Class { deny_ingress: allow.then(|| "d".into()), rules: vec![rule], ..Class::default() }
}

#[test]
fn an_entity_is_whom_it_names_and_nobody_else() {
    // A workload, a pod's address that nobody has, a node, and two addresses outside the mesh, one within a CIDR that a policy
    // names.
    let callers = ["10.1.2.2", "10.1.2.99", "192.0.2.2", "198.51.100.1", "2001:db8:5::1"];
    for (entity, expected) in [
        (Entity::World, [false, false, false, true, true]),
        (Entity::RemoteNode, [false, false, true, false, false]),
        (Entity::Unmanaged, [false, true, false, false, false]),
        (Entity::Workloads, [true, false, false, false, false]),
        (Entity::Host, [false; 5]),
        (Entity::Health, [false; 5]),
    ] {
        // A CIDR around the node and one outside make them identities of their own, for other policies' sake.
        for others in [vec![], vec!["192.0.2.0/24", "198.51.100.0/24"]] {
            for allow in [true, false] {
                let mut resources = Resources::default();
                nodes(&mut resources);
                resources.classes.insert(1, only(Peer::Entity(entity), allow));
                let mut other = only(Peer::Any, true);
                other.rules = others
                    .iter()
                    .map(|cidr| Rule { peer: Peer::Cidr(cidr.parse().unwrap()), ..other.rules[0].clone() })
                    .collect();
                resources.classes.insert(2, other);
                resources.locals.extend([local(1, 400, 1), local(2, 401, 2)]);
                let address = Address { addresses: vec![CALLERS[0]], identity: 300 };
                resources.addresses.insert(NamespacedName::new("shop", "caller"), address);
                let maps = computed(&resources, &Desired::default(), &mut Dictionary::default());
                let verdicts = verdicts(&maps);
                let open = callers.map(|at| verdicts[&(1, at.parse().unwrap(), TCP, 80, false)][0]);
                assert_eq!(open, expected.map(|named| named == allow), "{entity:?} {others:?} {allow}");
            }
        }
    }
}

#[test]
fn other_nodes_are_nodes_and_still_within_the_cidrs_that_policies_name() {
    let mut resources = Resources::default();
    nodes(&mut resources);
    let far = NodeRoute {
        tunnel: None,
        address: [203, 0, 113, 1].into(),
        address6: Some("2001:db8:5::1".parse().unwrap()),
        addresses: vec!["192.0.2.77".parse().unwrap()],
        pod_cidrs: Vec::new(),
        zone: String::new(),
    };
    resources.nodes.insert("n3".into(), far);
    resources.classes.insert(1, only(Peer::Cidr("192.0.2.0/24".parse().unwrap()), true));
    resources.locals.extend([local(1, 400, 1)]);
    let maps = computed(&resources, &Desired::default(), &mut Dictionary::default());
    let who = |text: &str| maps.identities[&IpNet::from(text.parse::<IpAddr>().unwrap())];
    assert_eq!(who("203.0.113.1"), REMOTE_NODE);
    assert_eq!(who("2001:db8:5::1"), REMOTE_NODE);
    assert!(who("192.0.2.2") & LOCAL != 0);
    assert_eq!(who("192.0.2.2"), who("192.0.2.77"));
    assert_ne!(who("192.0.2.2"), maps.identities[&"192.0.2.0/24".parse().unwrap()]);
    assert!(verdicts(&maps)[&(1, "192.0.2.2".parse().unwrap(), TCP, 80, false)][0]);
}
