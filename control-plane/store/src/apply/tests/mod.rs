//! Each rule of the state machine by name.

mod derived;
mod exposed;

use mesh_model::resource::{Kind, Object, ObjectKey};

use crate::{
    Change, Command, ObjectChange, Refusal, apply,
    fixtures::{NOON, Store, cluster, ip, name, put, service, workload},
    limits::{KEY_MEMORY_MS, MAX_OBJECT_BYTES, MAX_OBJECTS_PER_COMMAND},
};

fn svc(text: &str) -> Object {
    Object::Service(service(text, &[80]))
}

fn svc_at(text: &str, address: &str) -> Object {
    let mut service = service(text, &[80]);
    service.cluster_ip = Some(ip(address));
    Object::Service(service)
}

fn wl(text: &str) -> Object {
    Object::Workload(workload(text))
}

fn key(kind: Kind, text: &str) -> ObjectKey {
    ObjectKey { kind, name: name(text) }
}

fn virtual_ip(store: &Store, service: &str) -> Option<String> {
    store.state.allocations.get(&name(service))?.virtual_ip.map(|address| address.to_string())
}

#[test]
fn nothing_is_accepted_before_the_cluster_is_initialised() {
    assert_eq!(Store::empty().refused(put([wl("a/b")])), Refusal::NotInitialised);
}

#[test]
fn a_cluster_is_initialised_once_and_the_same_again_is_no_change() {
    let mut store = Store::initialised();
    assert_eq!(store.run(Command::Init(cluster())).expect("the same").revision, 1);
    let other = mesh_model::records::ClusterInfo { name: "east".to_owned(), ..cluster() };
    assert_eq!(store.refused(Command::Init(other)), Refusal::AlreadyInitialised { name: "west".to_owned() });
}

#[test]
fn address_ranges_that_can_not_work_are_refused_by_name() {
    for (pods, services, field) in [
        ("10.1.0.0/25", "10.2.0.0/16", "podCIDR"),
        ("10.1.0.1/16", "10.2.0.0/16", "podCIDR"),
        ("10.0.0.0/8", "10.2.0.0/16", "podCIDR"),
        ("10.1.0.0/16", "10.2.0.0/31", "serviceCIDR"),
    ] {
        let mut info = cluster();
        info.pod_cidr = pods.parse().expect("a range");
        info.service_cidr = services.parse().expect("a range");
        let refusal = Store::empty().refused(Command::Init(info));
        assert!(refusal.to_string().starts_with(field), "{refusal}");
    }
}

#[test]
fn an_unchanged_apply_makes_no_revision() {
    let mut store = Store::initialised();
    let first = store.run(put([wl("a/b")])).expect("created");
    assert_eq!((first.revision, first.outcomes[0].change), (2, ObjectChange::Created));
    let again = store.apply(put([wl("a/b")]));
    assert!(again.events.is_empty());
    let again = again.outcome.expect("unchanged");
    assert_eq!((again.revision, again.outcomes[0].change), (2, ObjectChange::Unchanged));
}

#[test]
fn a_change_keeps_uid_and_age_and_moves_the_resource_version() {
    let mut store = Store::initialised();
    store.run(put([wl("a/b")])).expect("created");
    let created = store.state.object_meta[&key(Kind::Workload, "a/b")].clone();
    let mut changed = workload("a/b");
    changed.service_account = "other".to_owned();
    store.now_unix_ms += 5_000;
    let applied = store.run(put([Object::Workload(changed)])).expect("configured");
    assert_eq!(applied.outcomes[0].change, ObjectChange::Configured);
    let meta = &store.state.object_meta[&key(Kind::Workload, "a/b")];
    assert_eq!((meta.revision, meta.created_revision), (3, 2));
    assert_eq!((&meta.uid, meta.created_unix), (&created.uid, NOON));
    assert_eq!(created.uid.len(), 36);
}

#[test]
fn a_stale_resource_version_is_a_conflict() {
    let mut store = Store::initialised();
    let mut object = workload("a/b");
    object.meta.resource_version = Some(1);
    let refusal = store.refused(put([Object::Workload(object.clone())]));
    assert!(refusal.is_conflict() && refusal.to_string().contains("does not exist"), "{refusal}");

    object.meta.resource_version = None;
    store.run(put([Object::Workload(object.clone())])).expect("created at 2");
    object.service_account = "new".to_owned();
    object.meta.resource_version = Some(2);
    store.run(put([Object::Workload(object.clone())])).expect("the precondition holds");
    object.service_account = "newer".to_owned();
    assert_eq!(
        store.refused(put([Object::Workload(object)])),
        Refusal::Conflict { key: key(Kind::Workload, "a/b"), expected: 2, found: Some(3) }
    );
}

#[test]
fn many_objects_are_applied_all_or_none() {
    let mut store = Store::initialised();
    let refusal = store.refused(put([wl("a/one"), svc("a/two"), svc_at("a/three", "192.0.2.1")]));
    assert!(matches!(refusal, Refusal::AddressOutside { .. }), "{refusal}");
    assert!(matches!(store.refused(put([wl("a/one"), wl("a/one")])), Refusal::Twice { .. }));
    assert_eq!(virtual_ip(&store, "a/two"), None);
}

#[test]
fn a_dry_run_answers_and_changes_nothing() {
    let mut store = Store::initialised();
    let before = store.state.clone();
    let applied = store
        .run(Command::Apply { objects: vec![svc("a/b"), wl("a/w")], dry_run: true })
        .expect("it would work");
    assert_eq!(applied.outcomes[0].change, ObjectChange::Created);
    assert_eq!(store.state, before);
}

#[test]
fn what_is_too_large_or_too_much_is_refused() {
    let mut store = Store::initialised();
    let mut large = workload("a/b");
    large.meta.annotations.insert("k".to_owned(), "v".repeat(MAX_OBJECT_BYTES));
    let refusal = store.refused(put([Object::Workload(large)]));
    assert!(refusal.to_string().contains("bytes of workload/a/b"), "{refusal}");
    let many = (0..=MAX_OBJECTS_PER_COMMAND).map(|n| wl(&format!("a/w{n}")));
    assert!(matches!(store.refused(put(many)), Refusal::Limit { .. }));
}

#[test]
fn a_retried_envelope_is_applied_once_and_answered_alike() {
    let mut store = Store::initialised();
    let envelope = store.envelope(put([wl("a/b")]));
    let first = apply(&mut store.state, &envelope).outcome.expect("created");
    store.run(Command::Delete { keys: vec![key(Kind::Workload, "a/b")] }).expect("deleted");
    let after = store.state.clone();
    let retried = apply(&mut store.state, &envelope);
    assert!(retried.events.is_empty());
    let retried = retried.outcome.expect("the first answer");
    assert!(retried.replayed);
    assert_eq!((retried.revision, retried.outcomes), (first.revision, first.outcomes));
    assert_eq!(store.state, after);
}

#[test]
fn a_retry_whose_first_attempt_may_be_forgotten_is_refused_and_a_first_attempt_never() {
    let mut store = Store::initialised();
    let mut envelope = store.envelope(put([wl("a/b")]));
    let first_ms = envelope.now_unix_ms;
    apply(&mut store.state, &envelope).outcome.expect("created");
    store.run(Command::Delete { keys: vec![key(Kind::Workload, "a/b")] }).expect("deleted");
    // A minute later it is remembered still: nothing came that made it be forgotten.
    envelope.first_unix_ms = Some(first_ms);
    envelope.now_unix_ms = first_ms + KEY_MEMORY_MS + 5_000;
    assert!(apply(&mut store.state, &envelope).outcome.expect("the first answer").replayed);
    store.now_unix_ms = first_ms + KEY_MEMORY_MS + 5_000;
    store.run(put([wl("a/other")])).expect("created");
    let before = store.state.clone();
    let refusal = apply(&mut store.state, &envelope).outcome.expect_err("nobody knows any more");
    assert!(matches!(refusal, Refusal::RetryTooLate { seconds_ago: 65, limit_seconds: 60, .. }), "{refusal}");
    assert_eq!(store.state, before, "the deleted object was not made again");
    // A replica whose clock is far behind can still write, and retry what it has just begun.
    store.now_unix_ms = first_ms - 600_000;
    store.run(put([wl("a/late-clock")])).expect("a first attempt");
}

#[test]
fn deleting_what_is_not_there_is_said_and_no_error() {
    let mut store = Store::initialised();
    let applied = store.run(Command::Delete { keys: vec![key(Kind::Service, "a/b")] }).expect("no error");
    assert_eq!((applied.revision, applied.outcomes[0].change), (1, ObjectChange::NotFound));
}

#[test]
fn events_tell_what_changed_with_the_revision_of_the_command() {
    let mut store = Store::initialised();
    let events = store.apply(put([svc("a/b")])).events;
    assert!(events.iter().all(|event| event.revision == 2));
    assert!(matches!(&events[0].change, Change::Put { created: true, meta, .. } if meta.revision == 2));
    assert!(matches!(&events[1].change, Change::Allocation(service) if *service == name("a/b")));
    let events = store.apply(Command::Delete { keys: vec![key(Kind::Service, "a/b")] }).events;
    assert!(matches!(&events[0].change, Change::Deleted { .. }));
}
