//! ACK, NACK and nonces.

use super::script::*;
use crate::xds::session::{Event, Protocol, Refusal};

#[test]
fn an_ack_is_reported_with_the_revision_of_its_response_and_answered_by_silence() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a b")]);
        assert_eq!(script.open(CDS, "*"), ["CDS +a=1 +b=1"]);
        let nonce = script.nonce(CDS);
        let request = match protocol {
            Protocol::Sotw => sotw(CDS, "*", &nonce),
            Protocol::Delta => delta(CDS, "", &nonce),
        };
        let events = script.session.on_request(request).unwrap();
        assert_eq!(events, [Event::Acked { type_url: CDS.into(), revision: 1 }]);
        assert_eq!(script.sent(), [""; 0]);
    }
}

#[test]
fn the_presence_of_an_error_makes_a_nack_whatever_its_code_and_text() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a")]);
        script.open(EDS, "a");
        let nonce = script.nonce(EDS);
        let mut request = match protocol {
            Protocol::Sotw => sotw(EDS, "a", &nonce),
            Protocol::Delta => delta(EDS, "", &nonce),
        };
        request.error = Some(Refusal { code: 0, message: String::new() });
        let events = script.session.on_request(request).unwrap();
        let expected = Event::Nacked {
            type_url: EDS.into(),
            revision: 1,
            error: String::new(),
            resources: vec!["a".into()],
        };
        assert_eq!(events, [expected]);
        assert_eq!(script.session.status()[0].acked_revision, 0);
    }
}

#[test]
fn what_was_refused_is_not_sent_again_unchanged_and_is_sent_once_it_changes() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a=1")]);
        script.open(EDS, "a");
        script.settle();
        script.model(&[(EDS, "a=2")]);
        assert_eq!(script.sent(), ["EDS +a=2"]);
        assert_eq!(script.nack(EDS).1, [""; 0]);
        script.model(&[(CDS, "x")]);
        assert_eq!(script.sent(), [""; 0]);
        script.model(&[(EDS, "a=3")]);
        assert_eq!(script.sent(), ["EDS +a=3"]);
        assert_eq!(script.settle(), [""; 0]);
        assert_eq!(script.session.status()[0].nacked, None);
    }
}

#[test]
fn going_back_to_what_was_accepted_is_sent_because_a_client_may_have_kept_parts_of_what_it_refused() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a=1")]);
        script.open(CDS, "*");
        script.settle();
        script.model(&[(CDS, "a=2")]);
        script.sent();
        script.nack(CDS);
        script.model(&[(CDS, "a=1")]);
        assert_eq!(script.sent(), ["CDS +a=1"]);
    }
}

#[test]
fn asking_again_for_what_was_refused_brings_it_again() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a")]);
    script.open(EDS, "a");
    script.nack(EDS);
    assert_eq!(script.subscribe(EDS, "a"), ["EDS +a=1"]);
}

#[test]
fn a_nack_of_one_type_stops_no_other() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a"), (EDS, "a"), (LDS, "l")]);
        script.open(CDS, "");
        script.open(EDS, "a");
        script.ack(EDS);
        script.nack(CDS);
        assert_eq!(script.open(LDS, ""), ["LDS +l=1"]);
        script.model(&[(EDS, "a=2")]);
        assert_eq!(script.sent(), ["EDS +a=2"]);
    }
}

#[test]
fn resources_refused_together_are_tried_apart_until_the_bad_one_is_alone() {
    for protocol in BOTH {
        tried_apart(protocol);
    }
}

fn tried_apart(protocol: Protocol) {
    let mut script = Script::new(protocol, &[(EDS, "a b c d")]);
    script.open(EDS, "a b c d");
    script.settle();
    script.model(&[(EDS, "a=2 b=2 c=bad d=2")]);
    assert_eq!(script.sent(), ["EDS +a=2 +b=2 +c=bad +d=2"]);
    assert_eq!(script.nack(EDS).1, ["EDS +a=2 +b=2"]);
    assert_eq!(script.ack(EDS), ["EDS +c=bad +d=2"]);
    assert_eq!(script.nack(EDS).1, ["EDS +c=bad"]);
    let (events, sent) = script.nack(EDS);
    assert!(matches!(&events[..], [Event::Nacked { resources, .. }] if **resources == ["c".into()]));
    assert_eq!(sent, ["EDS +d=2"]);
    assert_eq!(script.ack(EDS), [""; 0]);
    assert_eq!(script.session.status()[0].nacked.as_ref().unwrap().revision, 2);
    script.model(&[(EDS, "a=2 b=2 c=2 d=2")]);
    assert_eq!(script.sent(), ["EDS +c=2"]);
}

#[test]
fn a_client_that_refuses_everything_is_left_alone_in_the_end() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a b c d e")]);
        script.open(EDS, "a b c d e");
        let mut refused = 0;
        while script.session.types[0].in_flight.is_some() {
            script.nack(EDS);
            refused += 1;
            assert!(refused < 10, "reply loop");
        }
        assert_eq!(refused, 9);
    }
}

#[test]
fn resources_that_changed_meanwhile_are_not_tried_apart() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a=bad b=1")]);
    script.open(EDS, "a b");
    assert_eq!(script.nack(EDS).1, ["EDS +a=bad"]);
    script.model(&[(EDS, "a=2 b=2")]);
    assert_eq!(script.nack(EDS).1, ["EDS +a=2 +b=2"]);
}

#[test]
fn a_removal_in_a_refused_response_is_said_again_on_its_own_and_then_no_more() {
    let mut script = Script::new(Protocol::Delta, &[(LDS, "a b")]);
    script.open(LDS, "*");
    script.settle();
    script.model(&[(LDS, "a c=bad")]);
    assert_eq!(script.sent(), ["LDS +c=bad -b"]);
    assert_eq!(script.nack(LDS).1, ["LDS -b"]);
    assert_eq!(script.nack(LDS).1, [""; 0]);
}

#[test]
fn a_sotw_full_state_that_was_refused_is_sent_again_only_when_something_in_it_changes() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "a=1 b=1")]);
    script.open(CDS, "");
    script.settle();
    script.model(&[(CDS, "a=1 b=bad c=1")]);
    assert_eq!(script.sent(), ["CDS +a=1 +b=bad +c=1"]);
    let (events, sent) = script.nack(CDS);
    assert!(
        matches!(&events[..], [Event::Nacked { resources, .. }] if **resources == ["b".into(), "c".into()]),
        "what it had accepted before is above suspicion: {events:?}"
    );
    assert_eq!(sent, [""; 0]);
    script.model(&[(CDS, "a=1 b=2 c=1")]);
    assert_eq!(script.sent(), ["CDS +a=1 +b=2 +c=1"]);
}

#[test]
fn sotw_ignores_a_request_with_a_stale_nonce_altogether() {
    let mut script = Script::new(Protocol::Sotw, &[(EDS, "a b")]);
    script.want(EDS, "a", "");
    let stale = script.nonce(EDS);
    script.ack(EDS);
    script.model(&[(EDS, "a=2 b")]);
    assert_eq!(script.sent(), ["EDS +a=2"]);
    let events = script.session.on_request(sotw(EDS, "a b", &stale)).unwrap();
    assert_eq!(events, [Event::StaleNonce { type_url: EDS.into() }]);
    assert_eq!(script.sent(), [""; 0]);
    let nonce = script.nonce(EDS);
    assert_eq!(script.want(EDS, "a b", &nonce), ["EDS +b=1"]);
}

#[test]
fn delta_honours_the_subscription_changes_of_a_request_with_a_stale_nonce() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a b c")]);
    script.subscribe(EDS, "a");
    let stale = script.nonce(EDS);
    script.ack(EDS);
    script.model(&[(EDS, "a=2 b c")]);
    script.sent();
    let events = script.session.on_request(delta(EDS, "b", &stale)).unwrap();
    assert_eq!(events, [Event::StaleNonce { type_url: EDS.into() }]);
    assert_eq!(script.ack(EDS), ["EDS +b=1"]);
}

#[test]
fn delta_honours_an_unsubscription_with_a_stale_nonce() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a b"), (CDS, "x y")]);
    script.subscribe(EDS, "a b");
    script.subscribe(CDS, "*");
    let stale = [script.nonce(EDS), script.nonce(CDS)];
    script.settle();
    script.model(&[(EDS, "a=2 b"), (CDS, "x=2 y")]);
    script.sent();
    for (type_url, gone, stale) in [(EDS, "-b", &stale[0]), (CDS, "-*", &stale[1])] {
        let events = script.session.on_request(delta(type_url, gone, stale)).unwrap();
        assert_eq!(events, [Event::StaleNonce { type_url: type_url.into() }]);
    }
    script.settle();
    script.model(&[(EDS, "a=2 b=3"), (CDS, "x=3 y=3")]);
    assert_eq!(script.sent(), [""; 0], "neither is wanted any more");
    script.model(&[(EDS, "a=3 b=3"), (CDS, "x=3 y=3")]);
    assert_eq!(script.sent(), ["EDS +a=3"], "and the answer to the newest response still counts");
}

#[test]
fn a_stale_nack_refuses_nothing() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a")]);
    script.subscribe(EDS, "a");
    let mut request = delta(EDS, "", "another-stream-7");
    request.error = Some(Refusal { code: 3, message: "bad".into() });
    script.session.on_request(request).unwrap();
    assert_eq!(script.session.status()[0].nacked, None);
    assert_eq!(script.ack(EDS), [""; 0]);
    assert_eq!(script.session.status()[0].acked_revision, 1);
}

#[test]
fn a_subscription_that_grows_with_an_empty_nonce_is_served_and_acknowledges_nothing() {
    let mut script = Script::new(Protocol::Sotw, &[(EDS, "a b")]);
    script.want(EDS, "a", "");
    assert_eq!(script.want(EDS, "a b", ""), [""; 0], "one response is in flight");
    assert_eq!(script.ack(EDS), ["EDS +b=1"]);
}

#[test]
fn an_ack_with_an_old_version_and_the_same_nonce_is_no_reason_to_send_again() {
    let mut script = Script::new(Protocol::Sotw, &[(EDS, "a")]);
    script.want(EDS, "a", "");
    script.ack(EDS);
    let nonce = script.nonce(EDS);
    for _ in 0..3 {
        assert_eq!(script.want(EDS, "a", &nonce), [""; 0]);
    }
}

#[test]
fn one_response_of_a_type_is_in_flight_and_the_newest_state_follows_it() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a=1 b=1")]);
        script.open(EDS, "a b");
        for contents in 2..6 {
            script.model(&[(EDS, &format!("a={contents} b=1"))]);
            assert_eq!(script.sent(), [""; 0]);
        }
        assert_eq!(script.ack(EDS), ["EDS +a=5"]);
        script.model(&[(EDS, "a=6 b=1")]);
        script.model(&[(EDS, "a=5 b=1")]);
        assert_eq!(script.ack(EDS), [""; 0], "it is back to what was sent");
    }
}
