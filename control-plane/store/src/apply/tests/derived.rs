//! What follows from objects: addresses, ports, identities, nodes, replicas, peers and tokens.

use mesh_model::{
    records::{ClusterInfo, ReplicaRecord, WorkloadBinding},
    resource::{Kind, Object},
};

use super::{key, svc, svc_at, virtual_ip, wl};
use crate::{
    Command, Granted, Refusal, TokenPurpose, TokenRecord,
    fixtures::{Store, cluster, imported, ip, name, peer, populated, put, service, token, workload},
    limits::{MAX_PROXY_PORT, MIN_PROXY_PORT},
};

fn bind(text: &str, node: &str, address: &str) -> Command {
    Command::BindWorkload {
        workload: name(text),
        binding: WorkloadBinding { node: node.to_owned(), addresses: vec![ip(address)], ready: true },
    }
}

fn import(revision: u64, services: &[(&str, u16)], removals: &[&str]) -> Command {
    Command::ImportServices {
        cluster: "east".to_owned(),
        origin_revision: revision,
        upserts: services.iter().map(|(service, port)| (name(service), imported(*port))).collect(),
        removals: removals.iter().map(|service| name(service)).collect(),
    }
}

#[test]
fn a_service_gets_an_address_and_ports_and_keeps_them() {
    let mut store = Store::initialised();
    store.run(put([Object::Service(service("a/b", &[80, 443]))])).expect("created");
    let first = store.state.allocations[&name("a/b")].clone();
    assert_eq!(first.virtual_ip, Some(ip("10.101.0.1")));
    assert_eq!(first.proxy_ports.values().copied().collect::<Vec<_>>(), [MIN_PROXY_PORT, MIN_PROXY_PORT + 1]);
    store.run(put([Object::Service(service("a/b", &[443, 8080]))])).expect("configured");
    let second = &store.state.allocations[&name("a/b")];
    assert_eq!(second.virtual_ip, first.virtual_ip);
    assert_eq!(second.proxy_ports[&443], first.proxy_ports[&443]);
    assert_eq!(second.proxy_ports[&8080], MIN_PROXY_PORT + 2);
    assert!(!second.proxy_ports.contains_key(&80));
}

#[test]
fn a_released_address_is_given_out_again_as_late_as_possible() {
    let mut store = Store::initialised();
    store.run(put([svc("a/one")])).expect("created");
    store.run(Command::Delete { keys: vec![key(Kind::Service, "a/one")] }).expect("deleted");
    for n in 2..=254 {
        store.run(put([svc(&format!("a/s{n}"))])).expect("there is room");
        assert_eq!(virtual_ip(&store, &format!("a/s{n}")), Some(format!("10.101.0.{n}")));
    }
    store.run(put([svc("a/again")])).expect("the released one is left");
    assert_eq!(virtual_ip(&store, "a/again"), Some("10.101.0.1".to_owned()));
    let refusal = store.refused(put([svc("a/more")]));
    assert!(refusal.to_string().contains("virtual IPs are used up"), "{refusal}");
}

#[test]
fn a_requested_address_is_honoured_or_refused_with_the_reason() {
    let mut store = Store::initialised();
    store.run(put([svc("a/auto"), svc_at("a/fixed", "10.101.0.1")])).expect("the request comes first");
    assert_eq!(virtual_ip(&store, "a/fixed"), Some("10.101.0.1".to_owned()));
    assert_eq!(virtual_ip(&store, "a/auto"), Some("10.101.0.2".to_owned()));
    assert!(matches!(store.refused(put([svc_at("a/x", "10.101.0.1")])), Refusal::AddressTaken { .. }));
    for outside in ["10.101.0.0", "10.101.0.255", "10.102.0.1", "fd00::1"] {
        assert!(matches!(store.refused(put([svc_at("a/x", outside)])), Refusal::AddressOutside { .. }));
    }
    let refusal = store.refused(put([svc_at("a/fixed", "10.101.0.9")]));
    assert!(matches!(refusal, Refusal::AddressFixed { .. }), "{refusal}");
    store.run(put([svc_at("a/auto", "10.101.0.2")])).expect("what it has may be written down");
}

#[test]
fn a_headless_service_has_no_address() {
    let mut store = Store::initialised();
    let mut headless = service("a/b", &[80]);
    headless.headless = true;
    store.run(put([Object::Service(headless)])).expect("created");
    assert_eq!(virtual_ip(&store, "a/b"), None);
    assert!(store.state.allocations.contains_key(&name("a/b")));
}

#[test]
fn proxy_ports_run_out_with_a_refusal() {
    let mut store = Store::initialised();
    for part in 0..16 {
        let ports: Vec<u16> = (1..=(MAX_PROXY_PORT - MIN_PROXY_PORT + 1) / 16).collect();
        store.run(put([Object::Service(service(&format!("a/p{part}"), &ports))])).expect("there is room");
    }
    let refusal = store.refused(put([svc("a/one-more")]));
    assert!(refusal.to_string().contains("proxy ports"), "{refusal}");
}

#[test]
fn equal_workloads_share_an_identity_and_others_do_not() {
    let mut store = Store::initialised();
    let mut other = workload("a/three");
    other.meta.labels.insert("app".to_owned(), "other".to_owned());
    store.run(put([wl("a/one"), wl("a/two"), Object::Workload(other)])).expect("created");
    assert_eq!(store.state.identities.len(), 2);
}

#[test]
fn a_node_gets_a_slice_and_finds_it_again() {
    let mut store = Store::initialised();
    let register = |name: &str, address: &str| Command::RegisterNode {
        name: name.to_owned(),
        address: ip(address),
        address6: None,
    };
    let Granted::Node(first) = store.run(register("n1", "10.0.0.11")).expect("registered").granted else {
        panic!("a node record");
    };
    assert_eq!(first.pod_cidr.to_string(), "10.1.0.0/24");
    let Granted::Node(moved) = store.run(register("n1", "10.0.0.99")).expect("moved").granted else {
        panic!("a node record");
    };
    assert_eq!((moved.pod_cidr, moved.address), (first.pod_cidr, ip("10.0.0.99")));
    let Granted::Node(second) = store.run(register("n2", "10.0.0.12")).expect("registered").granted else {
        panic!("a node record");
    };
    assert_eq!(second.pod_cidr.to_string(), "10.1.1.0/24");
    assert!(matches!(store.refused(register("n3", "10.0.0.12")), Refusal::AddressHeld { .. }));
    assert!(matches!(store.refused(register("N3", "10.0.0.13")), Refusal::Invalid { .. }));
    assert!(matches!(store.refused(register("n3", "0.0.0.0")), Refusal::Invalid { .. }));
}

#[test]
fn a_node_speaks_for_declared_workloads_at_its_own_addresses_only() {
    let mut store = Store::initialised();
    for (node, address) in [("n1", "10.0.0.11"), ("n2", "10.0.0.12")] {
        store
            .run(Command::RegisterNode { name: node.to_owned(), address: ip(address), address6: None })
            .expect("registered");
    }
    assert!(matches!(store.refused(bind("a/one", "n1", "10.1.0.2")), Refusal::Unknown { .. }));
    store.run(put([wl("a/one"), wl("a/two"), wl("a/host")])).expect("declared");
    assert!(matches!(store.refused(bind("a/one", "n9", "10.1.0.2")), Refusal::Unknown { .. }));
    assert!(matches!(store.refused(bind("a/one", "n1", "10.1.1.2")), Refusal::ForeignAddress { .. }));
    let granted = store.run(bind("a/one", "n1", "10.1.0.2")).expect("bound").granted;
    assert!(matches!(granted, Granted::Identity(256)), "{granted:?}");
    assert!(matches!(store.refused(bind("a/two", "n1", "10.1.0.2")), Refusal::AddressHeld { .. }));
    assert!(matches!(store.refused(bind("a/one", "n2", "10.1.1.2")), Refusal::BoundElsewhere { .. }));
    store.run(bind("a/host", "n1", "10.0.0.11")).expect("a process on the node's own address");

    let unbind = |node: &str| Command::UnbindWorkload { workload: name("a/one"), node: node.to_owned() };
    store.run(unbind("n2")).expect("not its own: nothing happens");
    assert!(store.state.bindings.contains_key(&name("a/one")));
    store.run(unbind("n1")).expect("unbound");
    store.run(bind("a/one", "n2", "10.1.1.2")).expect("free to move now");
    store.run(Command::RemoveNode { name: "n2".to_owned() }).expect("removed");
    assert!(!store.state.bindings.contains_key(&name("a/one")));
}

#[test]
fn a_node_with_ipv6_speaks_for_the_same_place_in_both_ranges() {
    let mut store = Store::empty();
    let info = ClusterInfo { pod_cidr6: Some("fd00:1::/112".parse().expect("a range")), ..cluster() };
    store.run(Command::Init(info)).expect("initialised");
    let register = |node: &str, last: u16| Command::RegisterNode {
        name: node.to_owned(),
        address: ip(&format!("10.0.0.{last}")),
        address6: Some(format!("2001:db8::{last}").parse().expect("an address")),
    };
    store.run(register("n1", 11)).expect("registered");
    store.run(register("n2", 12)).expect("registered");
    let held = Command::RegisterNode {
        name: "n3".to_owned(),
        address: ip("10.0.0.13"),
        address6: Some("2001:db8::12".parse().expect("an address")),
    };
    assert!(matches!(store.refused(held), Refusal::AddressHeld { .. }));
    store.run(put([wl("a/one")])).expect("declared");
    let both = |second: &str| {
        let addresses = vec![ip("10.1.1.2"), ip(second)];
        let binding = WorkloadBinding { node: "n2".to_owned(), addresses, ready: true };
        Command::BindWorkload { workload: name("a/one"), binding }
    };
    for foreign in ["fd00:1::2", "fd00:1::202", "fd00:2::102"] {
        assert!(matches!(store.refused(both(foreign)), Refusal::ForeignAddress { .. }), "{foreign}");
    }
    store.run(both("fd00:1::102")).expect("its own");
}

#[test]
fn a_range_of_ipv6_that_has_no_place_for_every_pod_is_refused() {
    for range in ["fd00:1::/113", "fd00:1::1/112", "fd00::/16"] {
        let info = ClusterInfo { pod_cidr6: Some(range.parse().expect("a range")), ..cluster() };
        let refusal = Store::empty().refused(Command::Init(info));
        assert!(refusal.to_string().starts_with("podCIDR6"), "{refusal}");
    }
    let pods = "fd00:1::/112".parse().expect("a range");
    let six = "fd00:2::/112".parse().expect("a range");
    let info = ClusterInfo { pod_cidr: pods, pod_cidr6: Some(six), ..cluster() };
    assert!(Store::empty().refused(Command::Init(info)).to_string().starts_with("podCIDR6"));
}

#[test]
fn a_token_admits_once_for_its_purpose_until_it_expires() {
    let mut store = Store::initialised();
    let node = TokenPurpose::Node(Some("n1".to_owned()));
    store.run(Command::CreateToken { id: "t1".to_owned(), token: token(node.clone()) }).expect("created");
    let redeem = |purpose: TokenPurpose, secret: &str| Command::UseToken {
        id: "t1".to_owned(),
        secret_sha256: secret.repeat(32),
        purpose,
        bearer: "someone".to_owned(),
    };
    assert!(matches!(store.refused(redeem(node.clone(), "cd")), Refusal::TokenUnknown { .. }));
    let other = TokenPurpose::Node(Some("n2".to_owned()));
    assert!(matches!(store.refused(redeem(other, "ab")), Refusal::TokenPurpose { .. }));
    assert!(matches!(store.refused(redeem(TokenPurpose::Replica, "ab")), Refusal::TokenPurpose { .. }));
    store.now_unix_ms += 600_000;
    assert!(matches!(store.refused(redeem(node.clone(), "ab")), Refusal::TokenExpired { .. }));
    store.now_unix_ms -= 1_000;
    store.run(redeem(node.clone(), "ab")).expect("in time");
    assert!(matches!(store.refused(redeem(node, "ab")), Refusal::TokenUsed { .. }));
}

#[test]
fn old_tokens_are_forgotten_when_new_ones_are_made() {
    let mut store = Store::initialised();
    store
        .run(Command::CreateToken { id: "t1".to_owned(), token: token(TokenPurpose::Peer) })
        .expect("created");
    store.now_unix_ms += 2 * 86_400_000;
    let mut later = token(TokenPurpose::Peer);
    assert!(matches!(
        store.refused(Command::CreateToken { id: "t2".to_owned(), token: later.clone() }),
        Refusal::Invalid { .. }
    ));
    later.expires_unix += 3 * 86_400;
    store.run(Command::CreateToken { id: "t2".to_owned(), token: later }).expect("created");
    assert_eq!(store.state.tokens.keys().collect::<Vec<_>>(), ["t2"]);
}

#[test]
fn replica_ids_are_given_in_order_and_never_again() {
    let mut store = Store::initialised();
    let add = |id: u64, address: &str| put_replica(id, address, false);
    assert_eq!(store.run(add(1, "a:1")).expect("added").granted, Granted::Replica(1));
    assert_eq!(store.run(add(0, "b:1")).expect("added").granted, Granted::Replica(2));
    assert!(matches!(store.refused(add(0, "b:1")), Refusal::Invalid { .. }));
    store.run(Command::RemoveReplica { id: 2 }).expect("removed");
    assert!(matches!(store.refused(add(2, "b:1")), Refusal::Invalid { .. }));
    assert_eq!(store.run(add(0, "b:1")).expect("added").granted, Granted::Replica(3));
    store.run(Command::RemoveReplica { id: 1 }).expect("removed");
    assert!(matches!(store.refused(Command::RemoveReplica { id: 3 }), Refusal::Invalid { .. }));
}

fn put_replica(id: u64, address: &str, learner: bool) -> Command {
    Command::PutReplica(ReplicaRecord { id, address: address.to_owned(), learner })
}

#[test]
fn a_learner_stays_one_until_it_is_promoted_and_one_voter_is_always_left() {
    let mut store = Store::initialised();
    store.run(put_replica(1, "a:1", false)).expect("added");
    store.run(put_replica(0, "b:1", true)).expect("added");
    // A replica that reports its address does not know what it is to be.
    store.run(put_replica(2, "b:2", false)).expect("moved");
    assert!(store.state.replicas[&2].learner, "moving is no promotion");
    let demote = |id| Command::SetReplicaRole { id, learner: true };
    assert!(matches!(store.refused(demote(1)), Refusal::Invalid { .. }));
    assert!(matches!(store.refused(Command::RemoveReplica { id: 1 }), Refusal::Invalid { .. }));
    store.run(Command::SetReplicaRole { id: 2, learner: false }).expect("promoted");
    store.run(demote(1)).expect("another votes");
    assert!(matches!(store.refused(demote(7)), Refusal::Unknown { .. }));
}

#[test]
fn a_replica_is_admitted_with_its_token_or_not_at_all() {
    let mut store = Store::initialised();
    store.run(put_replica(1, "a:1", false)).expect("added");
    let record = TokenRecord { learner: true, ..token(TokenPurpose::Replica) };
    store.run(Command::CreateToken { id: "t1".to_owned(), token: record.clone() }).expect("created");
    let admit = |address: &str| Command::AdmitReplica {
        token: "t1".to_owned(),
        secret_sha256: record.secret_sha256.clone(),
        address: address.to_owned(),
    };
    assert!(matches!(store.refused(admit("a:1")), Refusal::Invalid { .. }));
    assert_eq!(store.state.tokens["t1"].used_by, None, "a slip costs no token");
    assert_eq!(store.run(admit("b:1")).expect("admitted").granted, Granted::Replica(2));
    assert!(store.state.replicas[&2].learner, "as the token says");
    assert!(matches!(store.refused(admit("c:1")), Refusal::TokenUsed { .. }));
}

#[test]
fn a_group_made_of_one_survivor_has_no_others_and_no_revision_that_a_lost_one_had() {
    let mut store = Store::initialised();
    for (id, address) in [(1, "a:1"), (2, "b:1"), (3, "c:1")] {
        store.run(put_replica(id, address, id == 2)).expect("added");
    }
    let revision = store.state.revision;
    store.run(Command::KeepOnlyReplica { id: 2 }).expect("kept");
    assert_eq!(store.state.replicas.keys().collect::<Vec<_>>(), [&2]);
    assert!(!store.state.replicas[&2].learner, "it is the only voter");
    assert_eq!(store.state.revision, revision + 1 + crate::limits::RECOVERY_REVISIONS);
    assert!(matches!(store.refused(put_replica(3, "c:1", false)), Refusal::Invalid { .. }));
}

#[test]
fn imports_are_the_peers_own_and_never_go_back() {
    let mut store = Store::initialised();
    assert!(matches!(store.refused(import(1, &[], &[])), Refusal::Unknown { .. }));
    store.run(Command::PutPeer(peer("east"))).expect("joined");
    store.run(Command::PutPeer(peer("north"))).expect("joined");
    store.run(import(5, &[("shop/pay", 8080)], &[])).expect("imported");
    assert!(store.state.peers["north"].imports.is_empty());
    assert_eq!(virtual_ip(&store, "shop/pay"), Some("10.101.0.1".to_owned()));
    assert!(matches!(store.refused(import(4, &[], &["shop/pay"])), Refusal::PeerWentBack { .. }));

    let revision = store.state.revision;
    store.run(import(9, &[("shop/pay", 8080)], &[])).expect("a heartbeat");
    assert_eq!((store.state.revision, store.state.peers["east"].origin_revision), (revision, 9));

    store.run(Command::PutPeer(peer("east"))).expect("the same again");
    assert_eq!(store.state.peers["east"].imports.len(), 1);
    store.run(import(10, &[], &["shop/pay"])).expect("removed");
    assert_eq!(virtual_ip(&store, "shop/pay"), None);
}

#[test]
fn a_service_that_is_here_and_at_a_peer_has_one_address_until_both_are_gone() {
    let mut store = Store::initialised();
    store.run(put([svc("shop/pay")])).expect("created");
    store.run(Command::PutPeer(peer("east"))).expect("joined");
    store.run(import(1, &[("shop/pay", 8080)], &[])).expect("imported");
    let allocation = store.state.allocations[&name("shop/pay")].clone();
    assert_eq!(allocation.proxy_ports.keys().copied().collect::<Vec<_>>(), [80, 8080]);
    store.run(Command::Delete { keys: vec![key(Kind::Service, "shop/pay")] }).expect("deleted");
    assert_eq!(store.state.allocations[&name("shop/pay")].virtual_ip, allocation.virtual_ip);
    store.run(Command::RemovePeer { cluster: "east".to_owned() }).expect("left");
    assert!(store.state.allocations.is_empty());
}

#[test]
fn a_peer_can_be_neither_us_nor_another_peer() {
    let mut store = Store::initialised();
    store.run(Command::PutPeer(peer("east"))).expect("joined");
    assert!(matches!(store.refused(Command::PutPeer(peer("west"))), Refusal::PeerClash { .. }));
    let mut thief = peer("north");
    thief.trust_domain = peer("east").trust_domain;
    assert!(matches!(store.refused(Command::PutPeer(thief)), Refusal::PeerClash { .. }));
    let mut turned = peer("east");
    turned.trust_domain = peer("south").trust_domain;
    assert!(matches!(store.refused(Command::PutPeer(turned)), Refusal::PeerClash { .. }));
    let mut stranger = peer("north");
    stranger.mesh_domain = "other.local".to_owned();
    assert!(matches!(store.refused(Command::PutPeer(stranger)), Refusal::Invalid { .. }));
}

#[test]
fn a_peer_vouches_for_its_own_trust_domain_only() {
    let mut store = Store::initialised();
    store.run(Command::PutPeer(peer("north"))).expect("joined");
    let refusal = store.refused(Command::ImportServices {
        cluster: "north".to_owned(),
        origin_revision: 1,
        upserts: vec![(name("shop/pay"), imported(80))],
        removals: Vec::new(),
    });
    assert!(refusal.to_string().contains("north.example"), "{refusal}");
}

#[test]
fn the_state_can_be_compiled_once_it_is_initialised() {
    assert!(crate::State::default().input().is_none());
    assert_eq!(populated().input().map(|input| input.revision), Some(populated().revision));
}
