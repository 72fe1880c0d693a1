//! What holds for every sequence of commands.

use std::collections::BTreeSet;

use mesh_model::{
    records::{ReplicaRecord, WorkloadBinding},
    resource::{Kind, Object, ObjectKey},
};
use proptest::prelude::*;

use crate::{
    Command, State, TokenPurpose, apply, decode, encode,
    fixtures::{Store, cluster, imported, ip, name, peer, service, token, workload},
    index::Index,
};

fn object() -> impl Strategy<Value = Object> {
    let names = prop::sample::select(vec!["a/x", "a/y", "b/x", "shop/pay"]);
    (names, 0u8..4, prop::option::of(0u64..12), 0u8..3).prop_map(
        |(text, shape, version, variant)| match shape {
            0 => {
                let mut workload = workload(text);
                workload.meta.resource_version = version.filter(|v| *v < 4);
                workload.service_account = format!("sa{variant}");
                Object::Workload(workload)
            }
            _ => {
                let mut service = service(text, &[80, 81, 82][..=usize::from(variant)]);
                service.cluster_ip = (shape == 3).then(|| ip(&format!("10.101.0.{}", variant + 1)));
                service.headless = shape == 2 && variant == 0;
                Object::Service(service)
            }
        },
    )
}

fn command() -> impl Strategy<Value = Command> {
    let names = || prop::sample::select(vec!["a/x", "a/y", "b/x", "shop/pay"]).prop_map(name);
    let nodes = || prop::sample::select(vec!["n1", "n2", "N!"]).prop_map(str::to_owned);
    prop_oneof![
        6 => (prop::collection::vec(object(), 0..4), any::<bool>())
            .prop_map(|(objects, dry_run)| Command::Apply { objects, dry_run }),
        2 => (names(), any::<bool>()).prop_map(|(name, service)| {
            let kind = if service { Kind::Service } else { Kind::Workload };
            Command::Delete { keys: vec![ObjectKey { kind, name }] }
        }),
        1 => (nodes(), 1u8..4).prop_map(|(name, n)| Command::RegisterNode { name, address: ip(&format!("10.0.0.{n}")), address6: None }),
        1 => nodes().prop_map(|name| Command::RemoveNode { name }),
        2 => (names(), nodes(), 0u8..3, any::<bool>()).prop_map(|(workload, node, n, ready)| Command::BindWorkload {
            workload,
            binding: WorkloadBinding { node, addresses: vec![ip(&format!("10.1.{n}.2"))], ready },
        }),
        1 => (names(), nodes()).prop_map(|(workload, node)| Command::UnbindWorkload { workload, node }),
        1 => Just(Command::CreateToken { id: "t".to_owned(), token: token(TokenPurpose::Peer) }),
        1 => prop::sample::select(vec!["t", "u"]).prop_map(|id| Command::RevokeToken { id: id.to_owned() }),
        1 => Just(Command::UseToken {
            id: "t".to_owned(),
            secret_sha256: "ab".repeat(32),
            purpose: TokenPurpose::Peer,
            bearer: "east".to_owned(),
        }),
        1 => (0u64..4, any::<bool>()).prop_map(|(id, learner)| {
            Command::PutReplica(ReplicaRecord { id, address: format!("h{id}:1"), learner })
        }),
        1 => (1u64..4).prop_map(|id| Command::RemoveReplica { id }),
        1 => (1u64..4, any::<bool>()).prop_map(|(id, learner)| Command::SetReplicaRole { id, learner }),
        1 => (1u64..4).prop_map(|id| Command::KeepOnlyReplica { id }),
        1 => (names(), prop::sample::select(vec![80u16, 8080]), 0u8..=60).prop_map(|(name, port, percent)| {
            let share = mesh_model::records::Overflow { percent, failing: 3, callers: 4, since_unix_ms: 1 };
            Command::SetOverflow { shares: vec![(name, port, share)] }
        }),
        1 => prop::sample::select(vec!["east", "north", "west"]).prop_map(|c| Command::PutPeer(peer(c))),
        1 => prop::sample::select(vec!["east", "north"])
            .prop_map(|c| Command::RemovePeer { cluster: c.to_owned() }),
        2 => (names(), 0u64..6, 80u16..84, any::<bool>()).prop_map(|(service, origin_revision, port, remove)| {
            let removals = if remove { vec![service.clone()] } else { Vec::new() };
            let upserts = if remove { Vec::new() } else { vec![(service, imported(port))] };
            Command::ImportServices { cluster: "east".to_owned(), origin_revision, upserts, removals }
        }),
    ]
}

/// What no command may break.
fn check(state: &State) {
    assert_eq!(state.index, Index::of(state), "the index is what can be derived");
    assert_eq!(state.objects.keys().collect::<Vec<_>>(), state.object_meta.keys().collect::<Vec<_>>());
    let addresses: Vec<_> = state.allocations.values().filter_map(|a| a.virtual_ip).collect();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), addresses.len(), "no address twice");
    assert!(addresses.iter().all(|address| cluster().service_cidr.contains(address)));
    let ports: Vec<_> = state.allocations.values().flat_map(|a| a.proxy_ports.values()).collect();
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len(), "no proxy port twice");
    for allocation in state.allocations.values() {
        for (port, share) in &allocation.overflow {
            assert!(allocation.proxy_ports.contains_key(port), "a share of a port that is not there");
            assert!((1..=mesh_model::limits::MAX_OVERFLOW_PERCENT).contains(&share.percent));
        }
    }
    for (key, object) in &state.objects {
        assert!(object.meta().resource_version.is_none() && object.key() == *key);
        match object.as_ref() {
            Object::Service(service) => {
                let allocation = &state.allocations[&key.name];
                assert_eq!(allocation.virtual_ip.is_none(), service.headless);
                assert!(service.ports.iter().all(|port| allocation.proxy_ports.contains_key(&port.port)));
            }
            Object::Workload(workload) => {
                assert!(
                    state.identities.iter().any(|(_, id)| id.service_account == workload.service_account)
                );
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_same_commands_make_the_same_state_through_json_and_snapshots(
        commands in prop::collection::vec(command(), 1..60),
        cut in 0usize..60,
    ) {
        let mut store = Store::initialised();
        let mut envelopes = Vec::new();
        let mut other = store.state.clone();
        for command in commands {
            envelopes.push(store.envelope(command));
        }
        for (n, envelope) in envelopes.iter().enumerate() {
            let before = store.state.revision;
            let ours = apply(&mut store.state, envelope);
            // The other replica reads the envelope from a log and restarts from a snapshot on the way.
            let json = serde_json::to_vec(envelope).expect("plain data");
            let read = serde_json::from_slice(&json).expect("its own output");
            if n == cut {
                other = decode(&encode(&other).expect("plain data")).expect("its own output");
            }
            let theirs = apply(&mut other, &read);
            prop_assert_eq!(&ours, &theirs);
            prop_assert_eq!(&store.state, &other);
            let outcome = serde_json::to_string(&ours.outcome).expect("plain data");
            prop_assert_eq!(&serde_json::from_str::<crate::Outcome>(&outcome).expect("its own output"), &ours.outcome);
            let skipped = match envelope.command {
                Command::KeepOnlyReplica { .. } => crate::limits::RECOVERY_REVISIONS,
                _ => 0,
            };
            let expected = if ours.events.is_empty() { before } else { before + 1 + skipped };
            prop_assert_eq!(store.state.revision, expected);
            prop_assert!(ours.events.iter().all(|event| event.revision == store.state.revision));
            check(&store.state);
        }
    }

    #[test]
    fn retries_in_any_order_change_nothing(
        commands in prop::collection::vec(command(), 1..30),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 1..30),
    ) {
        let mut store = Store::initialised();
        let mut done = Vec::new();
        for command in commands {
            let dry_run = matches!(command, Command::Apply { dry_run: true, .. });
            let envelope = store.envelope(command);
            if apply(&mut store.state, &envelope).outcome.is_ok() && !dry_run {
                done.push(envelope);
            }
        }
        let after = store.state.clone();
        for pick in picks {
            if done.is_empty() {
                break;
            }
            let applying = apply(&mut store.state, pick.get(&done));
            prop_assert!(applying.events.is_empty());
            prop_assert!(applying.outcome.is_ok_and(|applied| applied.replayed));
        }
        prop_assert_eq!(store.state, after);
    }

    #[test]
    fn a_refused_command_leaves_no_trace(commands in prop::collection::vec(command(), 1..60)) {
        let mut store = Store::initialised();
        for command in commands {
            let before = store.state.clone();
            if store.apply(command).outcome.is_err() {
                prop_assert_eq!(&store.state, &before);
            }
        }
    }
}
