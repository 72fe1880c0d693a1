//! What people apply: YAML and JSON to objects, objects into a state, the state to a compiled mesh.

use clustermesh::manifest;
use mesh_model::{compile::compile, identity::TrustDomain, records::ClusterInfo, resource::Object};
use mesh_store::{Bytes16, Command, Envelope, State, apply};

pub(crate) fn objects(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(documents) = manifest::parse("fuzz.yaml", &text) else { return };
    let mut accepted = Vec::new();
    for document in documents {
        let Ok(object) = Object::parse(&document.object) else { continue };
        let again = Object::parse(&object.to_json()).expect("what it writes is an object");
        assert_eq!(again, object, "an object changes by being written and read");
        accepted.push(object);
    }
    if accepted.is_empty() {
        return;
    }
    let mut state = cluster();
    let applied = apply(&mut state, &envelope(2, Command::Apply { objects: accepted, dry_run: false }));
    if applied.outcome.is_ok()
        && let Some(input) = state.input()
    {
        let _ = compile(&input);
    }
}

/// An initialised cluster without anything in it.
fn cluster() -> State {
    let mut state = State::default();
    let info = ClusterInfo {
        name: "west".to_owned(),
        trust_domain: TrustDomain::parse("west.example").expect("a name"),
        mesh_domain: "mesh.local".to_owned(),
        pod_cidr: "10.1.0.0/16".parse().expect("a network"),
        pod_cidr6: None,
        service_cidr6: None,
        service_cidr: "10.101.0.0/16".parse().expect("a network"),
        roots: vec![vec![1]],
        trust: Default::default(),
    };
    let made = apply(&mut state, &envelope(1, Command::Init(info)));
    assert!(made.outcome.is_ok(), "{:?}", made.outcome);
    state
}

fn envelope(number: u128, command: Command) -> Envelope {
    let key = Bytes16(number.to_be_bytes());
    Envelope { key, now_unix_ms: 1_000_000, first_unix_ms: None, random: key, command }
}
