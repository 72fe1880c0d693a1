//! Resources with a time to live. They live for 30 s, so a heartbeat goes every 10 s.

use std::time::Duration;

use xds_proto::{Message, envoy::service::discovery::v3::Resource, google::protobuf};

use super::script::*;
use crate::xds::session::Protocol;

fn timed(protocol: Protocol) -> Script {
    let mut script = Script::with_named(protocol, &[(EDS, "a=~1 b")], &[]);
    script.open(EDS, "a b");
    script.settle();
    script
}

#[test]
fn a_resource_with_a_time_to_live_is_prolonged_in_time_and_others_are_not() {
    for protocol in BOTH {
        let mut script = timed(protocol);
        assert_eq!(script.session.next_deadline(), Some(TTL / 3));
        assert_eq!(script.at(9), [""; 0]);
        assert_eq!(script.at(10), ["EDS ~a"]);
        assert_eq!(script.sent(), [""; 0], "once");
        assert_eq!(script.session.next_deadline(), Some(Duration::from_secs(20)));
        assert_eq!(script.at(25), ["EDS ~a"]);
        assert_eq!(
            script.session.next_deadline(),
            Some(Duration::from_secs(35)),
            "what is late shifts the rest"
        );
    }
}

#[test]
fn the_answer_to_a_heartbeat_says_nothing_about_configuration_and_brings_nothing() {
    for protocol in BOTH {
        let mut script = timed(protocol);
        script.at(10);
        assert_eq!(script.nack(EDS), (vec![], vec![]));
        assert_eq!(script.session.status()[0].nacked, None);
        assert_eq!(script.ack(EDS), [""; 0]);
        script.model(&[(EDS, "a=~2 b")]);
        assert_eq!(script.sent(), ["EDS +a=~2"]);
    }
}

#[test]
fn in_delta_a_heartbeat_goes_though_an_answer_is_late_and_the_answer_still_counts() {
    let mut script = timed(Protocol::Delta);
    script.model(&[(EDS, "a=~1 b=2")]);
    assert_eq!(script.sent(), ["EDS +b=2"]);
    let late = script.nonce(EDS);
    assert_eq!(script.at(10), ["EDS ~a"]);
    assert_eq!(script.at(20), ["EDS ~a"]);
    script.session.on_request(delta(EDS, "", &late)).unwrap();
    assert_eq!(script.session.status()[0].acked_revision, 2);
}

#[test]
fn in_sotw_a_heartbeat_waits_for_the_answer_because_it_has_the_accepted_version() {
    let mut script = timed(Protocol::Sotw);
    script.model(&[(EDS, "a=~1 b=2")]);
    assert_eq!(script.sent(), ["EDS +b=2"]);
    assert_eq!(script.at(10), [""; 0]);
    assert_eq!(script.session.next_deadline(), None, "nothing can be sent at any time");
    assert_eq!(script.ack(EDS), ["EDS ~a"]);
}

#[test]
fn a_sotw_full_state_is_sent_as_a_whole_in_the_place_of_a_heartbeat() {
    let mut script = Script::with_named(Protocol::Sotw, &[(CDS, "a=~1 b")], &[]);
    script.open(CDS, "");
    script.settle();
    assert_eq!(script.at(10), ["CDS +a=~1 +b=1"]);
    script.settle();
    assert_eq!(script.at(20), ["CDS +a=~1 +b=1"]);
}

#[test]
fn an_old_version_is_prolonged_until_its_successor_may_be_sent() {
    let mut script = Script::with_named(Protocol::Delta, &[(CDS, "c"), (RDS, "r=~1")], &[]);
    script.open(CDS, "*");
    script.open(RDS, "r");
    script.settle();
    script.model(&[(CDS, "c=2"), (RDS, "r=~2")]);
    assert_eq!(script.sent(), ["CDS +c=2"], "the route waits for it");
    assert_eq!(script.at(10), ["RDS ~r"]);
    assert_eq!(script.ack(CDS), ["RDS +r=~2"]);
}

#[test]
fn a_resource_that_is_removed_unsubscribed_or_loses_its_time_is_not_prolonged() {
    for protocol in BOTH {
        let mut script = Script::with_named(protocol, &[(EDS, "a=~1 b=~1 c=~1 d=~1")], &[]);
        script.open(EDS, "a b c d");
        script.settle();
        script.model(&[(EDS, "b=1 c=~1 d=~1")]);
        script.sent();
        script.settle();
        match protocol {
            Protocol::Sotw => drop(script.want(EDS, "a b d", &script.nonce(EDS))),
            Protocol::Delta => drop(script.subscribe(EDS, "-c")),
        }
        assert_eq!(script.at(10), ["EDS ~d"]);
    }
}

#[test]
fn a_reconnecting_client_is_told_at_once_to_keep_what_it_holds() {
    let mut script = Script::with_named(Protocol::Delta, &[(EDS, "a=~1 b")], &[]);
    assert_eq!(script.say(reconnect(EDS, "a b", "a=~1 b")), ["EDS ~a"]);
    assert_eq!(script.at(10), ["EDS ~a"]);
}

#[test]
fn a_sotw_client_that_can_not_be_told_of_times_gets_the_resource_and_no_heartbeats() {
    let mut script = Script::new(Protocol::Sotw, &[(EDS, "a=~1")]);
    assert_eq!(script.open(EDS, "a"), ["EDS +a=~1"]);
    script.settle();
    assert_eq!(script.session.next_deadline(), None);
    assert_eq!(script.at(1_000), [""; 0]);
}

#[test]
fn a_time_to_live_goes_over_the_wire_in_delta_and_in_a_wrapper_in_sotw() {
    let ttl = Some(protobuf::Duration { seconds: 30, nanos: 0 });
    let mut script = timed(Protocol::Delta);
    script.session.on_time(Duration::from_secs(10));
    let beat = script.responses().remove(0).into_delta("west-1");
    let resource = &beat.resources[0];
    assert_eq!((resource.name.as_str(), resource.ttl, resource.resource.is_none()), ("a", ttl, true));
    assert_eq!(resource.version, version(EDS, "a=~1"));

    let mut script = Script::with_named(Protocol::Sotw, &[(EDS, "a=~1 b")], &[]);
    script.session.on_request(sotw(EDS, "a b", "")).unwrap();
    let response = script.responses().remove(0).into_sotw("west-1");
    let wrapped: Resource = Resource::decode(response.resources[0].value.as_slice()).unwrap();
    assert!(response.resources[0].type_url.ends_with("envoy.service.discovery.v3.Resource"));
    assert_eq!((wrapped.ttl, wrapped.resource.is_some()), (ttl, true));
    assert_eq!(response.resources[1].type_url, EDS, "one without a time needs no wrapper");
    script.settle();
    script.session.on_time(Duration::from_secs(10));
    let beat = script.responses().remove(0).into_sotw("west-1");
    let wrapped: Resource = Resource::decode(beat.resources[0].value.as_slice()).unwrap();
    assert_eq!((wrapped.version.as_str(), wrapped.resource.is_none()), ("1", true));
    assert_eq!(beat.version_info, "1", "Envoy looks for the version that it has accepted");
}
