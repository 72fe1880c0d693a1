//! Scripts of responses and the requests that answer them.

use xds_proto::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource},
    google::protobuf::{Any, Duration},
};

use super::*;

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";

fn client(subscriptions: Vec<Subscription>) -> DeltaState {
    DeltaState::new(crate::node("agent~n1", "west"), subscriptions)
}

fn resource(type_url: &str, name: &str, version: &str) -> WireResource {
    WireResource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any { type_url: type_url.into(), value: version.as_bytes().to_vec() }),
        ..Default::default()
    }
}

fn response(type_url: &str, nonce: &str, added: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: type_url.into(),
        nonce: nonce.into(),
        resources: added.iter().map(|(name, version)| resource(type_url, name, version)).collect(),
        removed_resources: removed.iter().map(|&n| n.into()).collect(),
        ..Default::default()
    }
}

fn accept(state: &mut DeltaState, response: DeltaDiscoveryResponse) -> (Update, DeltaDiscoveryRequest) {
    let update = state.on_response(response).unwrap();
    let ack = state.ack(update.receipt());
    (update, ack)
}

fn names(update: &Update) -> Vec<&str> {
    update.added.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn a_stream_begins_with_one_request_for_each_type_and_the_node_only_in_the_first() {
    let mut state = client(vec![Subscription::wildcard(CDS), Subscription::only(EDS, ["a", "b"])]);
    let requests = state.connect();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0].type_url, CDS);
    assert_eq!(requests[0].node.as_ref().unwrap().id, "agent~n1");
    assert_eq!(requests[0].resource_names_subscribe, ["*"]);
    assert_eq!(requests[1].type_url, EDS);
    assert_eq!(requests[1].node, None);
    assert_eq!(requests[1].resource_names_subscribe, ["a", "b"]);
    assert!(requests.iter().all(|r| r.response_nonce.is_empty() && r.error_detail.is_none()));
}

#[test]
fn a_type_without_names_is_not_opened_because_that_would_be_a_wildcard() {
    let mut state = client(vec![Subscription::only(EDS, Vec::<String>::new())]);
    assert_eq!(state.connect(), []);
    let request = state.subscribe(EDS, Names::only(["a"])).unwrap();
    assert_eq!(request.resource_names_subscribe, ["a"]);
    assert!(request.node.is_some(), "first message of the stream");
}

#[test]
fn an_ack_carries_the_nonce_and_no_error_and_its_versions_are_sent_after_a_reconnect() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    state.connect();
    let (update, ack) = accept(&mut state, response(CDS, "n1", &[("a", "1"), ("b", "1")], &[]));
    assert_eq!(names(&update), ["a", "b"]);
    assert_eq!((ack.response_nonce.as_str(), &ack.error_detail), ("n1", &None));
    accept(&mut state, response(CDS, "n2", &[("b", "2"), ("c", "1")], &["a"]));

    let requests = state.connect();
    assert!(requests[0].node.is_some());
    let expected = [("b", "2"), ("c", "1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(requests[0].initial_resource_versions, expected.into());
}

#[test]
fn the_revision_of_what_was_accepted_is_remembered_and_of_what_was_refused_is_not() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    state.connect();
    let of = |nonce: &str, revision: &str| DeltaDiscoveryResponse {
        system_version_info: revision.into(),
        ..response(CDS, nonce, &[], &[])
    };
    accept(&mut state, of("n1", "7"));
    let refused = state.on_response(of("n2", "8")).unwrap();
    state.nack(&refused.receipt(), "no");
    accept(&mut state, of("n3", "no-number"));
    assert_eq!(state.revision(), Some(7));
}

#[test]
fn a_nack_carries_the_reason_and_leaves_the_accepted_version_in_place() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    state.connect();
    accept(&mut state, response(CDS, "n1", &[("a", "1")], &[]));
    let update = state.on_response(response(CDS, "n2", &[("a", "2"), ("new", "1")], &[])).unwrap();
    let nack = state.nack(&update.receipt(), "a: bad port");
    assert_eq!(nack.response_nonce, "n2");
    assert_eq!(nack.error_detail.unwrap().message, "a: bad port");
    let held = state.connect().remove(0).initial_resource_versions;
    assert_eq!(held, [("a".to_owned(), "1".to_owned())].into());
}

#[test]
fn initial_versions_are_in_the_first_message_of_a_type_only() {
    let mut state = client(vec![Subscription::only(EDS, ["a"])]);
    state.connect();
    let (_, ack) = accept(&mut state, response(EDS, "n1", &[("a", "1")], &[]));
    assert!(ack.initial_resource_versions.is_empty());
    let more = state.subscribe(EDS, Names::only(["b"])).unwrap();
    assert!(more.initial_resource_versions.is_empty() && more.response_nonce.is_empty());
}

#[test]
fn only_new_names_are_subscribed_and_only_known_names_unsubscribed() {
    let mut state = client(vec![Subscription::only(EDS, ["a"])]);
    state.connect();
    assert_eq!(state.subscribe(EDS, Names::only(["a"])), None);
    assert_eq!(state.subscribe(EDS, Names::only(["a", "b"])).unwrap().resource_names_subscribe, ["b"]);
    assert_eq!(state.unsubscribe(EDS, &Names::only(["x"])), None);
    assert_eq!(state.unsubscribe(EDS, &Names::only(["a", "x"])).unwrap().resource_names_unsubscribe, ["a"]);
}

#[test]
fn what_is_unsubscribed_is_forgotten_and_late_responses_for_it_are_dropped_but_acked() {
    let mut state = client(vec![Subscription::only(EDS, ["a", "b"])]);
    state.connect();
    accept(&mut state, response(EDS, "n1", &[("a", "1"), ("b", "1")], &[]));
    state.unsubscribe(EDS, &Names::only(["a"]));
    let (update, ack) = accept(&mut state, response(EDS, "n2", &[("a", "2"), ("b", "2")], &[]));
    assert_eq!(names(&update), ["b"]);
    assert_eq!(ack.response_nonce, "n2");
    assert_eq!(state.versions(EDS).unwrap().keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn an_unsubscription_between_response_and_ack_wins() {
    let mut state = client(vec![Subscription::only(EDS, ["a"])]);
    state.connect();
    let update = state.on_response(response(EDS, "n1", &[("a", "1")], &[])).unwrap();
    state.unsubscribe(EDS, &Names::only(["a"]));
    state.ack(update.receipt());
    assert!(state.versions(EDS).unwrap().is_empty());
}

#[test]
fn subscriptions_made_while_disconnected_are_in_the_next_first_message() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    assert_eq!(state.subscribe(EDS, Names::only(["a"])), None);
    assert_eq!(state.connect().len(), 2);
    state.disconnect();
    assert_eq!(state.unsubscribe(CDS, &Names::Wildcard), None);
    let requests = state.connect();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].type_url, EDS);
}

#[test]
fn wildcard_and_names_may_be_combined_and_left_separately() {
    let mut state = client(vec![Subscription::only(CDS, ["a"])]);
    state.connect();
    assert_eq!(state.subscribe(CDS, Names::Wildcard).unwrap().resource_names_subscribe, ["*"]);
    accept(&mut state, response(CDS, "n1", &[("a", "1"), ("b", "1")], &[]));
    assert_eq!(state.unsubscribe(CDS, &Names::Wildcard).unwrap().resource_names_unsubscribe, ["*"]);
    assert_eq!(state.versions(CDS).unwrap().keys().collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_name_that_does_not_exist_is_reported_as_removed_and_acked() {
    let mut state = client(vec![Subscription::only(EDS, ["ghost"])]);
    state.connect();
    let (update, ack) = accept(&mut state, response(EDS, "n1", &[], &["ghost"]));
    assert_eq!(update.removed, ["ghost"]);
    assert_eq!(ack.error_detail, None);
    let (update, _) = accept(&mut state, response(EDS, "n2", &[("ghost", "1")], &[]));
    assert_eq!(names(&update), ["ghost"]);
}

#[test]
fn malformed_responses_are_refused_with_words_that_name_the_fault() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    state.connect();
    let refused = |state: &DeltaState, r| state.on_response(r).unwrap_err();

    assert_eq!(refused(&state, response(EDS, "n", &[], &[])), ResponseError::UnknownType(EDS.into()));
    assert_eq!(
        refused(&state, response(CDS, "n", &[("", "1")], &[])),
        ResponseError::NoName { type_url: CDS.into(), index: 0 }
    );
    assert_eq!(
        refused(&state, response(CDS, "n", &[("a", "1"), ("a", "2")], &[])),
        ResponseError::Duplicate("a".into())
    );
    assert_eq!(
        refused(&state, response(CDS, "n", &[("a", "1")], &["a"])),
        ResponseError::Duplicate("a".into())
    );
    let mut wrong = response(CDS, "n", &[("a", "1")], &[]);
    wrong.resources[0].resource.as_mut().unwrap().type_url = EDS.into();
    assert!(matches!(refused(&state, wrong), ResponseError::WrongType { .. }));
    let mut empty = response(CDS, "n", &[("a", "1")], &[]);
    empty.resources[0].resource = None;
    assert_eq!(refused(&state, empty), ResponseError::Empty("a".into()));

    let nack = state.reject(CDS, "n", &"é".repeat(MAX_NACK_MESSAGE_BYTES));
    assert!(nack.error_detail.unwrap().message.len() <= MAX_NACK_MESSAGE_BYTES);
}

#[test]
fn a_heartbeat_changes_nothing_and_is_acked() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    state.connect();
    accept(&mut state, response(CDS, "n1", &[("a", "1")], &[]));
    let mut heartbeat = response(CDS, "n2", &[("a", "1")], &[]);
    heartbeat.resources[0].resource = None;
    heartbeat.resources[0].ttl = Some(Duration { seconds: 30, nanos: 0 });
    let (update, ack) = accept(&mut state, heartbeat);
    assert_eq!((names(&update), ack.response_nonce.as_str()), (vec![], "n2"));
    assert_eq!(state.versions(CDS).unwrap()["a"], "1");
}

#[test]
fn what_an_earlier_process_kept_is_named_as_held_and_what_is_not_wanted_is_not() {
    let mut state = client(vec![Subscription::wildcard(CDS)]);
    state.hold(CDS, "a".into(), "7".into());
    state.hold(EDS, "b".into(), "1".into());
    let requests = state.connect();
    assert_eq!(requests.len(), 1);
    let held: Vec<_> = requests[0].initial_resource_versions.iter().collect();
    assert_eq!(held, [(&"a".to_owned(), &"7".to_owned())]);
}
