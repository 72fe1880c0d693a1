use std::collections::BTreeMap;

use crate::{
    AuthorityCommand, Command, Confirmation, IssuerRecord, Member, Phase, SealedKey, TokenPurpose, decode,
    encode, fingerprint_of,
    fixtures::{NOON, Store, ip, name, peer, put, token, workload},
};
use mesh_model::records::{ReplicaRecord, WorkloadBinding};

const NEW_ROOT: &[u8] = &[9, 9, 9];

fn run(store: &mut Store, command: AuthorityCommand) {
    store.run(Command::Authority(command)).unwrap();
}

fn copy() -> SealedKey {
    SealedKey { encapsulated: vec![1; 32], ciphertext: vec![2; 100] }
}

fn sealed(ids: &[u64]) -> BTreeMap<u64, SealedKey> {
    ids.iter().map(|id| (*id, copy())).collect()
}

/// Replicas 1 and 2, each with a key and a copy of the root's.
fn with_keys() -> Store {
    let mut store = Store::initialised();
    let root = fingerprint_of(&[1, 2, 3]);
    for id in [1, 2] {
        let record = ReplicaRecord { id, address: format!("10.0.0.{id}:9443"), learner: false };
        store.run(Command::PutReplica(record)).unwrap();
        let public = vec![id as u8; 32];
        run(&mut store, AuthorityCommand::SealingKey { replica: id, public: public.clone() });
        run(&mut store, AuthorityCommand::Seal { root: root.clone(), replica: id, public, sealed: copy() });
    }
    store
}

fn begin(ids: &[u64]) -> Command {
    Command::Authority(AuthorityCommand::BeginRotation {
        certificate: NEW_ROOT.to_vec(),
        sealed: sealed(ids),
    })
}

fn end(number: u64, phase: Phase) -> AuthorityCommand {
    AuthorityCommand::EndPhase { number, phase }
}

#[test]
fn the_first_root_is_active_from_the_first_command_on() {
    let store = Store::initialised();
    let root = fingerprint_of(&[1, 2, 3]);
    assert_eq!(store.state.authority.active, root);
    let trust = &store.state.cluster.as_ref().unwrap().trust;
    assert_eq!((trust.generation, &trust.active_root), (1, &root));
}

#[test]
fn sealing_makes_no_revision_and_a_second_copy_changes_nothing() {
    let mut store = with_keys();
    let before = store.state.clone();
    let other = SealedKey { encapsulated: vec![7; 32], ciphertext: vec![7; 9] };
    let root = before.authority.active.clone();
    run(&mut store, AuthorityCommand::Seal { root, replica: 1, public: vec![1; 32], sealed: other });
    assert_eq!(store.state.authority, before.authority);
    assert_eq!(store.state.revision, before.revision);
}

#[test]
fn a_copy_for_a_key_that_the_replica_has_no_more_is_not_taken() {
    let mut store = with_keys();
    run(&mut store, AuthorityCommand::SealingKey { replica: 2, public: vec![22; 32] });
    let root = store.state.authority.active.clone();
    assert!(!store.state.authority.roots[&root].sealed.contains_key(&2), "it can't be opened any more");
    let seal = |public| AuthorityCommand::Seal { root: root.clone(), replica: 2, public, sealed: copy() };
    run(&mut store, seal(vec![2; 32]));
    assert!(!store.state.authority.roots[&root].sealed.contains_key(&2));
    run(&mut store, seal(vec![22; 32]));
    assert!(store.state.authority.roots[&root].sealed.contains_key(&2));
}

#[test]
fn what_names_a_stranger_or_is_too_large_is_refused() {
    let mut store = with_keys();
    let root = store.state.authority.active.clone();
    let huge = SealedKey { encapsulated: vec![], ciphertext: vec![0; 5000] };
    let confirmation = Confirmation::default();
    for (command, words) in [
        (AuthorityCommand::SealingKey { replica: 9, public: vec![1; 32] }, "replica \"9\""),
        (AuthorityCommand::SealingKey { replica: 1, public: vec![1; 31] }, "32"),
        (
            AuthorityCommand::Seal { root: "x".into(), replica: 1, public: vec![], sealed: copy() },
            "root \"x\"",
        ),
        (AuthorityCommand::Seal { root, replica: 1, public: vec![1; 32], sealed: huge }, "5000"),
        (end(1, Phase::Preparing), "rotation \"1\""),
        (AuthorityCommand::Hurry { number: 3, skip_unconfirmed: true, retire_now: true }, "rotation \"3\""),
        (
            AuthorityCommand::Confirm {
                member: Member::Node("n9".into()),
                confirmation: confirmation.clone(),
            },
            "node \"n9\"",
        ),
        (AuthorityCommand::RevokeNode { name: "n9".into() }, "node \"n9\""),
    ] {
        let refusal = store.refused(Command::Authority(command)).to_string();
        assert!(refusal.contains(words), "{refusal}");
    }
}

#[test]
fn a_removed_replica_takes_its_copy_along_and_that_is_remembered() {
    let mut store = with_keys();
    let issuer = IssuerRecord {
        serial: "1".into(),
        root: store.state.authority.active.clone(),
        not_before_unix: 0,
        not_after_unix: 1,
        leaf_seconds: 1,
    };
    run(&mut store, AuthorityCommand::Issuer { replica: 2, issuer });
    store.run(Command::RemoveReplica { id: 2 }).unwrap();
    let authority = &store.state.authority;
    let root = &authority.roots[&authority.active];
    assert!(root.sealed.contains_key(&1) && !root.sealed.contains_key(&2));
    assert!(root.left_with.contains(&2) && authority.issuers.is_empty());
    assert!(!authority.sealing_keys.contains_key(&2));
}

#[test]
fn a_rotation_adds_the_root_first_makes_it_active_next_and_drops_the_old_last() {
    let mut store = with_keys();
    let (old, new) = (fingerprint_of(&[1, 2, 3]), fingerprint_of(NEW_ROOT));
    let refusal = store.refused(begin(&[1])).to_string();
    assert!(refusal.contains("not sealed to replica 2"), "{refusal}");
    store.run(begin(&[1, 2, 7])).unwrap();
    assert!(store.refused(begin(&[1, 2])).to_string().contains("under way"));
    let seen = |store: &Store| {
        let (cluster, authority) = (store.state.cluster.clone().unwrap(), &store.state.authority);
        let phase = authority.rotation.as_ref().map(|r| r.phase);
        (cluster.roots.len(), cluster.trust.active_root.clone(), authority.active.clone(), phase)
    };
    assert!(!store.state.authority.roots[&new].sealed.contains_key(&7), "no member");
    assert_eq!(seen(&store), (2, old.clone(), old.clone(), Some(Phase::Preparing)));
    let generation = store.state.cluster.as_ref().unwrap().trust.generation;
    assert_eq!(generation, 2);
    run(&mut store, end(1, Phase::Preparing));
    run(&mut store, end(1, Phase::Preparing));
    assert_eq!(seen(&store), (2, old.clone(), new.clone(), Some(Phase::Activating)));
    run(&mut store, end(1, Phase::Activating));
    assert_eq!(seen(&store), (2, new.clone(), new.clone(), Some(Phase::Reissuing)));
    run(&mut store, end(1, Phase::Reissuing));
    assert_eq!(seen(&store), (1, new.clone(), new.clone(), None));
    assert_eq!(store.state.authority.roots.len(), 1);
    assert!(store.refused(begin(&[1, 2])).to_string().contains("already"), "the same root again");
    assert_eq!(decode(&encode(&store.state).unwrap()).unwrap(), store.state);
}

#[test]
fn a_peers_new_roots_are_a_new_generation_and_a_new_gateway_is_none() {
    let mut store = Store::initialised();
    store.run(Command::PutPeer(peer("east"))).unwrap();
    let generation = |store: &Store| store.state.peers["east"].trust.generation;
    assert_eq!(generation(&store), 2);
    let mut moved = peer("east");
    moved.gateways = vec!["10.9.9.9:15443".into()];
    store.run(Command::PutPeer(moved.clone())).unwrap();
    assert_eq!(generation(&store), 2);
    moved.roots.push(vec![8]);
    store.run(Command::PutPeer(moved)).unwrap();
    assert_eq!(generation(&store), 3);
}

#[test]
fn a_revoked_node_is_unbound_its_number_refused_its_tokens_gone_and_it_may_come_anew() {
    let mut store = Store::initialised();
    let register = || Command::RegisterNode { name: "n1".into(), address: ip("10.0.0.11"), address6: None };
    store.run(put([mesh_model::resource::Object::Workload(workload("shop/web"))])).unwrap();
    store.run(register()).unwrap();
    let binding = |store: &Store| {
        let mut hosts = store.state.nodes["n1"].pod_cidr.hosts();
        let address = hosts.nth(4).unwrap();
        WorkloadBinding { node: "n1".into(), addresses: vec![address], ready: true }
    };
    let bind = |store: &Store| Command::BindWorkload { workload: name("shop/web"), binding: binding(store) };
    let command = bind(&store);
    store.run(command).unwrap();
    let number = store.state.nodes["n1"].registration;
    assert!(number > 0);
    let bound = token(TokenPurpose::Node(Some("n1".into())));
    store.run(Command::CreateToken { id: "bound".into(), token: bound }).unwrap();
    store.run(Command::CreateToken { id: "free".into(), token: token(TokenPurpose::Node(None)) }).unwrap();
    let confirmation = Confirmation { generation: 1, under: String::new() };
    let member = Member::Node("n1".into());
    run(&mut store, AuthorityCommand::Confirm { member: member.clone(), confirmation });
    run(&mut store, AuthorityCommand::RevokeNode { name: "n1".into() });
    let state = &store.state;
    assert!(!state.nodes.contains_key("n1") && state.bindings.is_empty());
    assert!(state.authority.confirmation(&member).is_none());
    assert!(state.authority.revoked.contains_key(&number));
    assert!(state.cluster.as_ref().unwrap().trust.revoked.contains(&number));
    assert!(!state.tokens.contains_key("bound") && state.tokens.contains_key("free"));

    store.run(register()).unwrap();
    let again = store.state.nodes["n1"].registration;
    assert!(again > number && !store.state.authority.revoked.contains_key(&again));
    let command = bind(&store);
    store.run(command).unwrap();
}

#[test]
fn a_revocation_is_forgotten_when_no_certificate_can_be_valid_any_more() {
    let mut store = Store::initialised();
    store.run(Command::RegisterNode { name: "n1".into(), address: ip("10.0.0.11"), address6: None }).unwrap();
    store.run(Command::RemoveNode { name: "n1".into() }).unwrap();
    assert_eq!(store.state.authority.revoked.len(), 1);
    store.now_unix_ms = (NOON + 30 * 24 * 3600) * 1000;
    run(&mut store, AuthorityCommand::ForgetRevoked);
    assert_eq!(store.state.authority.revoked.len(), 1, "a leaf of thirty days may just be alive");
    store.now_unix_ms += 301_000;
    run(&mut store, AuthorityCommand::ForgetRevoked);
    assert!(store.state.authority.revoked.is_empty());
    assert!(store.state.cluster.as_ref().unwrap().trust.revoked.is_empty());
}

#[test]
fn registering_anew_ends_what_the_node_had_confirmed_and_gives_it_another_number() {
    let mut store = Store::initialised();
    let register = || Command::RegisterNode { name: "n1".into(), address: ip("10.0.0.11"), address6: None };
    store.run(register()).unwrap();
    let member = Member::Node("n1".into());
    let confirmation = Confirmation { generation: 1, under: "r".into() };
    run(&mut store, AuthorityCommand::Confirm { member: member.clone(), confirmation });
    let slice = store.state.nodes["n1"].pod_cidr;
    store.run(register()).unwrap();
    let node = &store.state.nodes["n1"];
    assert_eq!((node.registration, node.pod_cidr), (2, slice));
    assert!(store.state.authority.confirmation(&member).is_none());
    assert!(store.state.authority.revoked.is_empty(), "its workloads' certificates are its own still");
}

fn jwt_key(number: u8) -> Vec<u8> {
    [&[4][..], &[number; 64]].concat()
}

#[test]
fn keys_that_sign_tokens_are_told_until_none_of_their_tokens_can_be_valid() {
    let mut store = with_keys();
    let told = |store: &Store| store.state.cluster.as_ref().unwrap().trust.jwt_keys.clone();
    let generation = store.state.authority.generation;
    let tell = |store: &mut Store, replica, point: Vec<u8>| {
        store.run(Command::Authority(AuthorityCommand::JwtKey { replica, point }))
    };
    tell(&mut store, 1, jwt_key(1)).unwrap();
    tell(&mut store, 1, jwt_key(1)).unwrap();
    tell(&mut store, 2, jwt_key(2)).unwrap();
    assert_eq!(told(&store), [jwt_key(1), jwt_key(2)]);
    assert_eq!(store.state.authority.generation, generation, "nobody confirms them");
    // Of each replica the newest four.
    for number in 3..=6 {
        tell(&mut store, 1, jwt_key(number)).unwrap();
    }
    assert_eq!(told(&store), [2, 3, 4, 5, 6].map(jwt_key));
    for bad in [vec![], vec![4; 64], vec![3; 65]] {
        assert!(tell(&mut store, 1, bad).is_err());
    }
    assert!(tell(&mut store, 9, jwt_key(9)).is_err(), "there is no such replica");
    assert_eq!(decode(&encode(&store.state).unwrap()).unwrap().authority, store.state.authority);

    store.run(Command::RemoveReplica { id: 1 }).unwrap();
    assert_eq!(told(&store), [jwt_key(2)], "its memory is out of our hands");
    let until = store.state.authority.jwt_keys[0].until_unix;
    store.now_unix_ms = until * 1_000 - 1;
    run(&mut store, AuthorityCommand::ForgetRevoked);
    assert_eq!(told(&store).len(), 1);
    store.now_unix_ms = until * 1_000;
    run(&mut store, AuthorityCommand::ForgetRevoked);
    assert!(told(&store).is_empty() && store.state.authority.jwt_keys.is_empty());
}
