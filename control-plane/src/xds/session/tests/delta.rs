//! Reconnecting in delta.

use super::script::*;
use crate::xds::session::Protocol;

#[test]
fn nothing_unchanged_is_sent_again_after_a_reconnect_and_what_vanished_is_removed() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a=1 b=2 d=1")]);
    script.session.on_request(reconnect(EDS, "a b c d", "a=1 b=1 c=1")).unwrap();
    assert_eq!(script.sent(), ["EDS +d=1 +b=2"]);
    script.session.reopened();
    assert_eq!(script.ack(EDS), ["EDS -c"]);
    assert_eq!(script.ack(EDS), [""; 0]);
}

#[test]
fn a_wildcard_reconnect_is_answered_by_silence_if_nothing_changed() {
    for wildcard in ["", "*"] {
        let mut script = Script::new(Protocol::Delta, &[(CDS, "a b")]);
        assert_eq!(script.say(reconnect(CDS, wildcard, "a b")), [""; 0]);
        assert_eq!(script.session.status()[0].acked_revision, 1);
        script.model(&[(CDS, "a=2 b")]);
        assert_eq!(script.sent(), ["CDS +a=2"]);
    }
}

#[test]
fn a_wildcard_reconnect_gets_what_is_new_and_changed_and_the_removal_of_what_is_gone() {
    let mut script = Script::new(Protocol::Delta, &[(LDS, "a=1 b=2 c=1")]);
    assert_eq!(script.say(reconnect(LDS, "*", "a=1 b=1 gone=1")), ["LDS +b=2 +c=1 -gone"]);
}

#[test]
fn versions_in_a_later_message_of_a_type_mean_nothing() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a b")]);
    script.subscribe(EDS, "a");
    script.settle();
    assert_eq!(script.say(reconnect(EDS, "b", "a=9 b=1")), ["EDS +b=1"]);
}

#[test]
fn versions_of_names_that_are_not_subscribed_to_are_forgotten() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a b")]);
    assert_eq!(script.say(reconnect(EDS, "a", "a=1 b=1 x=1")), [""; 0]);
    let state = &script.session.types[0];
    assert_eq!((state.held.exceptions().count(), state.names.len()), (0, 1));
}

#[test]
fn a_client_that_is_up_to_date_costs_nothing_by_the_resource() {
    let names: String = (0..500).map(|n| format!("r{n:03} ")).collect();
    for held in [None, Some(names.as_str())] {
        let mut script = Script::new(Protocol::Delta, &[(CDS, &names), (EDS, "r000")]);
        match held {
            None => drop(script.open(CDS, "*")),
            Some(held) => assert_eq!(script.say(reconnect(CDS, "*", held)), [""; 0]),
        }
        script.settle();
        assert_eq!(script.session.types[0].held.exceptions().count(), 0);
        script.model(&[(CDS, &names.replace("r007", "r007=2").replace("r008", ""))]);
        assert_eq!(script.sent(), ["CDS +r007=2 -r008"]);
        // Before the answer: what is in flight is remembered with the response, not here.
        assert_eq!(script.session.types[0].held.exceptions().count(), 0);
        assert_eq!(script.nack(CDS).1, ["CDS -r008"]);
        assert_eq!(script.session.types[0].held.exceptions().count(), 1, "what was refused, and only that");
    }
}

#[test]
fn after_a_reconnect_nothing_is_removed_before_the_client_has_named_its_other_types() {
    let mut script = Script::new(Protocol::Delta, &[(CDS, "new"), (RDS, "r=2")]);
    // The route that the client holds sends traffic to the cluster that is gone.
    assert_eq!(script.say(reconnect(CDS, "*", "old=1")), ["CDS +new=1"]);
    assert_eq!(script.ack(CDS), [""; 0]);
    assert_eq!(script.say(reconnect(RDS, "r", "r=1")), ["RDS +r=2"]);
    script.session.reopened();
    assert_eq!(script.sent(), [""; 0], "the route is not acknowledged yet");
    assert_eq!(script.ack(RDS), ["CDS -old"]);
}

#[test]
fn a_large_delta_is_divided_and_the_next_part_follows_the_ack() {
    let limits = crate::xds::session::Limits { response_bytes: 200, ..Default::default() };
    let mut script = Script::limited(Protocol::Delta, &[(EDS, "a b c d e")], limits);
    let mut parts = script.open(EDS, "a b c d e");
    parts.extend(script.settle());
    assert!(parts.len() > 1, "{parts:?}");
    let all: Vec<_> = parts.iter().flat_map(|part| part.split(' ').skip(1)).collect();
    assert_eq!(all, ["+a=1", "+b=1", "+c=1", "+d=1", "+e=1"]);
}
