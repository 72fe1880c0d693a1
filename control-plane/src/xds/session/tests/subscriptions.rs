//! Wildcards, names, and both.

use super::script::*;
use crate::xds::{kinds, session::Protocol};

#[test]
fn an_empty_first_request_for_listeners_or_clusters_is_a_wildcard() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a b"), (LDS, "l")]);
        assert_eq!(script.open(CDS, ""), ["CDS +a=1 +b=1"]);
        script.settle();
        assert_eq!(script.open(LDS, ""), ["LDS +l=1"]);
        script.model(&[(CDS, "a b c")]);
        assert!(script.sent()[0].contains("+c=1"));
    }
}

#[test]
fn an_empty_first_request_for_another_type_wants_nothing() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a b")]);
        assert_eq!(script.open(EDS, ""), [""; 0]);
        script.model(&[(EDS, "a=2 b")]);
        assert_eq!(script.sent(), [""; 0]);
    }
}

#[test]
fn a_star_is_a_wildcard_for_any_type() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(kinds::SERVICE, "s/a s/b")]);
        assert_eq!(script.open(kinds::SERVICE, "*"), ["Service +s/a=1 +s/b=1"]);
    }
}

#[test]
fn a_wildcard_of_nothing_is_answered_with_nothing_once() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[]);
        assert_eq!(script.open(CDS, ""), ["CDS"]);
        assert_eq!(script.ack(CDS), [""; 0]);
        script.model(&[(EDS, "a")]);
        assert_eq!(script.sent(), [""; 0]);
    }
}

#[test]
fn sotw_names_after_a_legacy_wildcard_end_it_and_an_empty_list_then_wants_nothing() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "a b")]);
    script.want(CDS, "", "");
    script.settle();
    let nonce = script.nonce(CDS);
    assert_eq!(script.want(CDS, "a", &nonce), ["CDS +a=1"]);
    script.settle();
    let nonce = script.nonce(CDS);
    assert_eq!(script.want(CDS, "", &nonce), [""; 0]);
    script.model(&[(CDS, "a=2 b=2")]);
    assert_eq!(script.sent(), [""; 0]);
}

#[test]
fn delta_names_after_a_legacy_wildcard_are_added_to_it() {
    let mut script = Script::new(Protocol::Delta, &[(CDS, "a b")]);
    script.subscribe(CDS, "");
    script.settle();
    assert_eq!(script.subscribe(CDS, "b"), ["CDS +b=1"]);
    script.settle();
    script.model(&[(CDS, "a=2 b")]);
    assert_eq!(script.sent(), ["CDS +a=2"]);
}

#[test]
fn leaving_the_wildcard_keeps_the_names() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a b")]);
        script.open(CDS, "* a");
        script.settle();
        match protocol {
            Protocol::Sotw => script.want(CDS, "a", &script.nonce(CDS).clone()),
            Protocol::Delta => script.subscribe(CDS, "-*"),
        };
        script.settle();
        script.model(&[(CDS, "a=2 b=2")]);
        assert_eq!(script.sent(), ["CDS +a=2"]);
    }
}

#[test]
fn delta_leaving_a_name_that_the_wildcard_covers_is_answered_with_it_and_else_with_its_removal() {
    let mut script = Script::new(Protocol::Delta, &[(CDS, "a")]);
    assert_eq!(script.subscribe(CDS, "* a ghost"), ["CDS +a=1 -ghost"]);
    script.settle();
    assert_eq!(script.subscribe(CDS, "-a -ghost"), ["CDS +a=1 -ghost"]);
    script.settle();
    script.model(&[(CDS, "a=2 ghost")]);
    assert_eq!(script.sent(), ["CDS +a=2 +ghost=1"], "the wildcard is still there");
}

#[test]
fn delta_leaving_a_name_without_a_wildcard_is_answered_by_silence() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a b")]);
    script.subscribe(EDS, "a b");
    script.settle();
    assert_eq!(script.subscribe(EDS, "-a -never-subscribed"), [""; 0]);
    script.model(&[(EDS, "a=2 b=2")]);
    assert_eq!(script.sent(), ["EDS +b=2"]);
}

#[test]
fn delta_subscribing_again_brings_the_resource_again_though_its_version_is_the_same() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a b")]);
    script.subscribe(EDS, "a b");
    script.settle();
    assert_eq!(script.subscribe(EDS, "a"), ["EDS +a=1"], "the client may have dropped it");
    script.settle();
    script.subscribe(EDS, "-a");
    assert_eq!(script.subscribe(EDS, "a"), ["EDS +a=1"]);
    script.settle();
    assert_eq!(script.subscribe(EDS, "*"), ["EDS +b=1"].map(|_| "EDS"), "all is held already");
    script.settle();
    assert_eq!(script.subscribe(EDS, "*"), ["EDS +a=1 +b=1"]);
}

#[test]
fn sotw_subscribing_again_brings_the_resource_again_though_its_version_is_the_same() {
    let mut script = Script::new(Protocol::Sotw, &[(EDS, "a b")]);
    script.want(EDS, "a b", "");
    script.settle();
    let nonce = script.nonce(EDS);
    assert_eq!(script.want(EDS, "b", &nonce), [""; 0]);
    assert_eq!(script.want(EDS, "a b", &nonce), ["EDS +a=1"]);
}

#[test]
fn names_that_do_not_exist_are_remembered_and_sent_on_creation() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(EDS, "a")]);
        script.open(EDS, "a ghost");
        script.settle();
        script.model(&[(EDS, "a ghost")]);
        assert_eq!(script.sent(), ["EDS +ghost=1"]);
    }
}

#[test]
fn delta_says_at_once_that_a_name_does_not_exist_and_says_it_once() {
    let mut script = Script::new(Protocol::Delta, &[(EDS, "a")]);
    assert_eq!(script.subscribe(EDS, "a ghost"), ["EDS +a=1 -ghost"]);
    assert_eq!(script.ack(EDS), [""; 0]);
    script.model(&[(EDS, "a=2")]);
    assert_eq!(script.sent(), ["EDS +a=2"]);
    assert_eq!(script.ack(EDS), [""; 0]);
    assert_eq!(script.subscribe(EDS, "ghost"), ["EDS -ghost"], "it asked again");
    assert_eq!(script.ack(EDS), [""; 0]);
}

#[test]
fn sotw_says_nothing_of_a_name_that_does_not_exist_and_answers_what_does() {
    let mut script = Script::new(Protocol::Sotw, &[(RDS, "r")]);
    assert_eq!(script.want(RDS, "ghost", ""), [""; 0]);
    assert_eq!(script.want(RDS, "ghost r", ""), ["RDS +r=1"]);
    assert_eq!(script.ack(RDS), [""; 0]);
}

#[test]
fn sotw_listeners_and_clusters_by_name_are_the_full_state_of_these_names() {
    let mut script = Script::new(Protocol::Sotw, &[(CDS, "a b c")]);
    assert_eq!(script.want(CDS, "a b ghost", ""), ["CDS +a=1 +b=1 -ghost"]);
    assert_eq!(script.ack(CDS), [""; 0]);
    script.model(&[(CDS, "a=2 b c=2")]);
    assert_eq!(script.sent(), ["CDS +a=2 +b=1"]);
    script.settle();
    script.model(&[(CDS, "a=2 c")]);
    assert_eq!(script.sent(), ["CDS +a=2 -b"]);
}

#[test]
fn sotw_routes_and_endpoints_are_only_those_that_changed_or_were_asked_for() {
    let mut script = Script::new(Protocol::Sotw, &[(EDS, "a b c")]);
    assert_eq!(script.want(EDS, "a b", ""), ["EDS +a=1 +b=1"]);
    script.settle();
    script.model(&[(EDS, "a b=2 c=2")]);
    assert_eq!(script.sent(), ["EDS +b=2"]);
    script.settle();
    let nonce = script.nonce(EDS);
    assert_eq!(script.want(EDS, "a b c", &nonce), ["EDS +c=2"]);
}
