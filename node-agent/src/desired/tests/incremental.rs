//! The planner, which looks at what changed, against the computation of everything.

use super::*;
use crate::subscribe::{Touched, update_fixture as update};
use xds_client::Update;
use xds_proto::isthmus::agent::v1 as wire;

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Address {
        caller: usize,
        identity: Option<u32>,
    },
    /// Of another workload, which lays claim to the same address.
    Rival {
        caller: usize,
        identity: Option<u32>,
    },
    Class(u32, Option<wire::PolicyClass>),
    Local {
        pod: u32,
        what: Option<(u32, u32)>,
        audit: bool,
    },
    Pod {
        pod: u32,
        there: bool,
    },
    Node {
        name: u8,
        there: bool,
    },
    /// A service; several claim the same addresses.
    Service {
        name: u8,
        told: Option<wire::Service>,
    },
    /// A name at the address of a caller; `None`: gone, false: lapsed.
    Name {
        at: (usize, usize),
        live: Option<bool>,
    },
}

fn wire_classes() -> impl Strategy<Value = wire::PolicyClass> {
    let peer = prop_oneof![
        Just((0, "", 0, "")),
        (300u32..304).prop_map(|identity| (identity, "", 0, "")),
        (0u32..2).prop_map(|n| (0, ["198.51.100.0/24", "192.0.2.0/24"][n as usize], 0, "")),
        prop_oneof![1i32..4, Just(5)].prop_map(|entity| (0, "", entity, "")),
        (0usize..3).prop_map(|n| (0, "", 0, ["a.test", "*.test", "*"][n])),
    ];
    let rule = (peer, any::<bool>(), prop_oneof![Just(0u32), Just(80), Just(443)], any::<bool>());
    (any::<bool>(), proptest::collection::vec(rule, 0..5)).prop_map(|(deny, rules)| wire::PolicyClass {
        default_deny_ingress: deny,
        ingress_provenance: "default".into(),
        default_deny_egress: deny,
        egress_provenance: "default".into(),
        rules: rules
            .into_iter()
            .map(|((identity, cidr, entity, name), allow, port, audit)| wire::PolicyRule {
                direction: i32::from(!name.is_empty() || port == 443),
                name: (!name.is_empty())
                    .then(|| wire::NamePattern { pattern: name.into(), ..Default::default() }),
                action: 2 + i32::from(allow),
                identity,
                cidr: cidr.into(),
                entity,
                protocol: if port == 0 { 0 } else { 6 },
                port,
                audit,
                provenance: "rule".into(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    })
}

fn wire_services() -> impl Strategy<Value = wire::Service> {
    let frontend = (0..3i32, 0u8..2, 0u32..2).prop_map(|(kind, at, port)| wire::Frontend {
        // At every address of the node, at one that is a virtual one of others, at one of their own.
        kind: [1, 2, 3][kind as usize],
        address: [String::new(), format!("10.101.0.{at}"), "203.0.113.9".into()][kind as usize].clone(),
        port: 80 + port,
        service_port: 80,
        protocol: 6,
    });
    let backend = prop_oneof![Just("10.1.2.2"), Just("10.1.1.2"), Just("192.0.2.1")].prop_map(|address| {
        wire::Backend { address: address.into(), port: 8080, weight: 1, ..Default::default() }
    });
    let all = (0u8..2, proptest::collection::vec(frontend, 0..3), proptest::collection::vec(backend, 0..3));
    (all, any::<bool>()).prop_map(|((at, frontends, backends), redirected)| wire::Service {
        addresses: vec![format!("10.101.0.{at}")],
        ports: vec![wire::ServicePort { port: 80, protocol: 6, backends, ..Default::default() }],
        frontends,
        redirect: if redirected { "envoy".into() } else { String::new() },
        ..Default::default()
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let caller = 0usize..3;
    let identity = proptest::option::of(300u32..304);
    let step = prop_oneof![
        3 => (caller.clone(), identity.clone()).prop_map(|(caller, identity)| Step::Address { caller, identity }),
        1 => (caller, identity).prop_map(|(caller, identity)| Step::Rival { caller, identity }),
        3 => (1u32..4, proptest::option::weighted(0.8, wire_classes())).prop_map(|(number, class)| Step::Class(number, class)),
        3 => (1u32..3, proptest::option::weighted(0.8, (400u32..403, 1u32..4)), any::<bool>())
            .prop_map(|(pod, what, audit)| Step::Local { pod, what, audit }),
        1 => (1u32..3, any::<bool>()).prop_map(|(pod, there)| Step::Pod { pod, there }),
        1 => (1u8..3, any::<bool>()).prop_map(|(name, there)| Step::Node { name, there }),
        4 => (0u8..4, proptest::option::weighted(0.8, wire_services()))
            .prop_map(|(name, told)| Step::Service { name, told }),
        5 => ((0..CALLERS.len(), 0usize..3), proptest::option::of(any::<bool>()))
            .prop_map(|(at, live)| Step::Name { at, live }),
    ];
    proptest::collection::vec(step, 1..24)
}

fn put_or_remove<M: xds_proto::Name>(name: &str, message: Option<M>) -> Update {
    match message {
        Some(message) => update(&[(name, message)], &[]),
        None => update::<M>(&[], &[name]),
    }
}

fn said(step: &Step) -> Option<Update> {
    let address = |name: &str, caller: usize, identity: Option<u32>| {
        put_or_remove(
            name,
            identity.map(|identity| wire::WorkloadAddress {
                addresses: vec![CALLERS[caller].to_string(), CALLERS[SECOND + caller].to_string()],
                identity,
                ..Default::default()
            }),
        )
    };
    Some(match step {
        Step::Address { caller, identity } => address(&format!("shop/caller{caller}"), *caller, *identity),
        Step::Rival { caller, identity } => address(&format!("shop/rival{caller}"), *caller, *identity),
        Step::Class(number, class) => put_or_remove(
            &number.to_string(),
            class.clone().map(|class| wire::PolicyClass { id: *number, ..class }),
        ),
        Step::Local { pod, what, audit } => put_or_remove(
            &format!("shop/pod{pod}"),
            what.map(|(identity, class)| wire::LocalEndpoint {
                identity,
                policy_class: class,
                audit: *audit,
                spiffe_id: "spiffe://west.example/ns/shop/sa/x".into(),
                ..Default::default()
            }),
        ),
        Step::Node { name, there } => put_or_remove(
            &format!("n{name}"),
            there.then(|| wire::Node {
                address: format!("192.0.2.{name}"),
                pod_cidrs: vec![format!("10.1.{name}.0/24")],
                ..Default::default()
            }),
        ),
        Step::Service { name, told } => put_or_remove(&format!("shop/s{name}"), told.clone()),
        Step::Pod { .. } | Step::Name { .. } => return None,
    })
}

/// A node whose planner sees little, or everything, of each change.
struct Side {
    planner: Planner,
    maps: Desired,
    sees_all: bool,
}

impl Side {
    fn new(sees_all: bool) -> Self {
        Self {
            planner: Planner::new(&Desired::default(), Limits::KERNEL),
            maps: Desired::default(),
            sees_all,
        }
    }

    fn step(&mut self, inputs: Inputs<'_>, touched: &Touched) {
        let ops = self.planner.plan(inputs, touched, &self.maps).unwrap();
        let services = self.planner.take_services();
        ops.iter().chain(&services).for_each(|op| op.apply(&mut self.maps));
        self.planner.done(&self.maps, !self.sees_all);
        let ops = self.planner.collect(&self.maps);
        ops.iter().for_each(|op| op.apply(&mut self.maps));
    }
}

fn heard() -> Resources {
    let mut resources = Resources::default();
    nodes(&mut resources);
    resources.hear::<wire::WorkloadAddress>();
    resources.hear::<wire::LocalEndpoint>();
    resources.hear::<wire::Service>();
    resources
}

proptest! {
    #[test]
    fn what_is_planned_from_little_is_what_is_planned_from_everything(steps in steps()) {
        let mut resources = heard();
        let mut there = pods();
        let mut told = BTreeMap::new();
        let (mut little, mut all) = (Side::new(false), Side::new(true));
        for step in steps {
            let mut touched = Touched::default();
            match said(&step) {
                Some(update) => touched.extend(resources.apply(&update).unwrap()),
                None => match step {
                    Step::Name { at, live } => {
                        told.remove(&at);
                        told.extend(live.map(|live| (at, live)));
                        touched.names.insert(CALLERS[at.0]);
                    }
                    Step::Pod { pod, there: is_there } => {
                        let name = NamespacedName::new("shop", format!("pod{pod}"));
                        let before = there.remove(&name);
                        if is_there {
                            there.insert(name.clone(), pods()[&name]);
                        }
                        touched.pods.insert(name, before);
                    }
                    _ => unreachable!("it says something"),
                },
            }
            let names = names::names(&told);
            let inputs =
                Inputs { resources: &resources, node: OWN, pods: &there, gateways: &BTreeSet::new(), names: &names };
            little.step(inputs, &touched);
            all.step(inputs, &touched);
            prop_assert_eq!(known(&little.maps), known(&all.maps), "after {:?}", step);
            prop_assert_eq!(&little.maps.services, &all.maps.services);
            prop_assert_eq!(verdicts(&little.maps), verdicts(&all.maps), "after {:?}", step);
            let endpoints = |side: &Side| -> Vec<_> {
                side.maps.endpoints.iter().map(|(ifindex, e)| (*ifindex, EndpointEntry { class: 0, ..*e })).collect()
            };
            prop_assert_eq!(endpoints(&little), endpoints(&all));
        }
    }
}

#[test]
fn of_ten_thousand_services_a_change_looks_at_those_that_claim_the_same_addresses() {
    use super::super::service::Claims;
    let service = |n: u32, backends: u8| wire::Service {
        addresses: vec![format!("10.101.{}.{}", n / 250, n % 250)],
        ports: vec![wire::ServicePort {
            port: 80,
            protocol: 6,
            backends: (0..backends)
                .map(|last| wire::Backend {
                    address: format!("10.1.2.{last}"),
                    port: 80,
                    weight: 1,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let mut resources = heard();
    let names: Vec<String> = (0..10_000).map(|n| format!("shop/s{n}")).collect();
    let all: Vec<_> = names.iter().zip(0..).map(|(name, n)| (name.as_str(), service(n, 2))).collect();
    resources.apply(&update(&all, &[])).unwrap();
    // Another one with the address of the last.
    resources.apply(&update(&[("shop/rival", service(9_999, 1))], &[])).unwrap();
    let mut claims = Claims::new(&resources, OWN);
    let touched = resources.apply(&update(&[("shop/s77", service(77, 3))], &[])).unwrap();
    let (addresses, looked) = claims.note(&touched.services, &resources, OWN);
    assert_eq!((addresses.len(), looked.len()), (1, 1));
    let touched = resources.apply(&update(&[("shop/s9999", service(9_998, 1))], &[])).unwrap();
    let (addresses, looked) = claims.note(&touched.services, &resources, OWN);
    let looked: Vec<_> = looked.iter().map(|name| name.name.as_str()).collect();
    assert_eq!(
        (addresses.len(), looked),
        (2, vec!["rival", "s9998", "s9999"]),
        "where it was, and where it is"
    );
}

/// Who addresses are. Numbers of this node's making may be others.
fn known(maps: &Desired) -> (BTreeMap<IpNet, u32>, BTreeSet<IpAddr>) {
    let shared = |identity: u32| if identity & LOCAL != 0 { LOCAL } else { identity };
    let identities = maps.identities.iter().map(|(net, identity)| (*net, shared(*identity)));
    (identities.collect(), maps.lingering.keys().copied().collect())
}

/// A class that lets so many identities in.
fn wide(count: u32) -> wire::PolicyClass {
    let rules = (0..count).map(|n| wire::PolicyRule {
        action: wire::Action::Allow as i32,
        identity: 1_000 + n,
        protocol: wire::Protocol::Tcp as i32,
        port: 80 + n % 3,
        provenance: "networkpolicy/shop/many#ingress[0]".into(),
        ..Default::default()
    });
    wire::PolicyClass { id: 1, default_deny_ingress: true, rules: rules.collect(), ..Default::default() }
}

#[test]
fn the_writes_of_a_change_are_as_many_as_it_changes_and_not_as_there_are() {
    let mut resources = heard();
    let mut side = Side::new(false);
    let there = pods();
    let mut writes = |resources: &mut Resources, update: Update| {
        let touched = resources.apply(&update).unwrap();
        let inputs = Inputs {
            resources,
            node: OWN,
            pods: &there,
            gateways: &BTreeSet::new(),
            names: &Names::default(),
        };
        let began = std::time::Instant::now();
        let ops = side.planner.plan(inputs, &touched, &side.maps).unwrap();
        println!(
            "{} of {}: {} writes, planned in {:?}",
            update.added.len(),
            update.type_url,
            ops.len(),
            began.elapsed()
        );
        ops.iter().for_each(|op| op.apply(&mut side.maps));
        side.planner.done(&side.maps, true);
        ops.len()
    };
    let mut locals = Vec::new();
    for pod in 1..3 {
        let local = wire::LocalEndpoint {
            identity: 400,
            policy_class: 1,
            spiffe_id: "spiffe://west.example/ns/shop/sa/x".into(),
            ..Default::default()
        };
        locals.push((format!("shop/pod{pod}"), local));
    }
    let locals: Vec<_> = locals.iter().map(|(name, local)| (name.as_str(), local.clone())).collect();
    writes(&mut resources, update(&locals, &[]));
    let all = writes(&mut resources, update(&[("1", wide(10_000))], &[]));
    assert!(all < 20, "a class is one write, whatever is in it: {all}");
    let address = |n: u32| wire::WorkloadAddress {
        addresses: vec![Ipv4Addr::from(0x0a02_0000 + n).to_string()],
        identity: 1_000 + n,
        ..Default::default()
    };
    let mut mesh = Vec::new();
    for n in 0..20_000 {
        mesh.push((format!("shop/w{n}"), address(n)));
    }
    let mesh: Vec<_> = mesh.iter().map(|(name, address)| (name.as_str(), address.clone())).collect();
    assert_eq!(writes(&mut resources, update(&mesh, &[])), 20_000);
    assert_eq!(writes(&mut resources, update(&[("shop/new", address(20_001))], &[])), 1);
    assert_eq!(writes(&mut resources, update(&[("1", wide(10_001))], &[])), 1, "one identity more");
    assert_eq!(writes(&mut resources, update(&[("1", wide(10_000))], &[])), 1, "and one less");
}

#[test]
fn what_has_no_room_changes_nothing_and_is_told_by_name() {
    let mut resources = heard();
    let limits = Limits { peers: 100, ..Limits::KERNEL };
    let mut planner = Planner::new(&Desired::default(), limits);
    let mut maps = Desired::default();
    let there = pods();
    let mut try_it = |resources: &Resources, touched: &Touched| {
        let inputs = Inputs {
            resources,
            node: OWN,
            pods: &there,
            gateways: &BTreeSet::new(),
            names: &Names::default(),
        };
        let planned = planner.plan(inputs, touched, &maps);
        if let Ok(ops) = &planned {
            ops.iter().for_each(|op| op.apply(&mut maps));
        }
        planner.done(&maps, planned.is_ok());
        planned.map(|_| maps.endpoints.len())
    };
    let local = wire::LocalEndpoint {
        identity: 400,
        policy_class: 1,
        spiffe_id: "spiffe://west.example/ns/shop/sa/x".into(),
        ..Default::default()
    };
    let mut touched = resources.apply(&update(&[("1", wide(50))], &[])).unwrap();
    touched.extend(resources.apply(&update(&[("shop/pod1", local.clone())], &[])).unwrap());
    assert_eq!(try_it(&resources, &touched), Ok(1));
    // A second pod needs another class that does not fit: it stays closed, and the first keeps what it has.
    let other = wire::PolicyClass { id: 2, default_deny_egress: true, ..wide(60) };
    let mut touched = resources.apply(&update(&[("2", other)], &[])).unwrap();
    let second = wire::LocalEndpoint { policy_class: 2, ..local };
    touched.extend(resources.apply(&update(&[("shop/pod2", second)], &[])).unwrap());
    let full = try_it(&resources, &touched).unwrap_err();
    assert_eq!((full.map, full.wanted, full.limit), ("PEERS", 110 + 2, 100));
    // Room is made.
    let touched = resources
        .apply(&update(&[("2", wire::PolicyClass { id: 2, default_deny_egress: true, ..wide(20) })], &[]));
    assert_eq!(try_it(&resources, &touched.unwrap()), Ok(2));
}
