//! What is to be had by name only, and virtual hosts by the names that they serve.

use super::script::*;
use crate::xds::session::Protocol;

fn by_name(protocol: Protocol) -> Script {
    Script::with_named(protocol, &[(CDS, "a")], &[(CDS, "far"), (RDS, "r"), (EDS, "far")])
}

#[test]
fn a_cluster_outside_of_the_wildcard_is_served_when_it_is_named() {
    for protocol in BOTH {
        let mut script = by_name(protocol);
        assert_eq!(script.open(CDS, "*"), ["CDS +a=1"], "a wildcard does not cover it");
        script.settle();
        match protocol {
            Protocol::Sotw => {
                assert_eq!(script.want(CDS, "* far", &script.nonce(CDS)), ["CDS +a=1 +far=1"]);
            }
            Protocol::Delta => assert_eq!(script.subscribe(CDS, "far"), ["CDS +far=1"]),
        }
        assert_eq!(script.settle(), [""; 0]);
        assert_eq!(script.open(EDS, "far"), ["EDS +far=1"], "and so are its endpoints");
        script.settle();
        script.replace(&[(CDS, "a")], &[(CDS, "far=2 other"), (RDS, "r"), (EDS, "far")]);
        let changed = script.sent();
        assert!(changed[0].contains("+far=2") && !changed[0].contains("other"), "{changed:?}");
        assert_eq!(changed[1..], ["EDS +far=1"], "a changed cluster warms");
    }
}

#[test]
fn a_named_cluster_that_goes_is_removed_and_comes_back_when_it_does() {
    for protocol in BOTH {
        let mut script = by_name(protocol);
        script.open(CDS, "* far");
        script.settle();
        script.replace(&[(CDS, "a")], &[]);
        let expected = if protocol == Protocol::Sotw { "CDS +a=1 -far" } else { "CDS -far" };
        assert_eq!(script.sent(), [expected]);
        script.settle();
        script.replace(&[(CDS, "a")], &[(CDS, "far=3")]);
        assert!(script.sent()[0].contains("+far=3"));
    }
}

#[test]
fn unsubscribing_from_a_named_cluster_removes_it_because_the_wildcard_does_not_cover_it() {
    for protocol in BOTH {
        let mut script = by_name(protocol);
        script.open(CDS, "* far");
        script.settle();
        match protocol {
            Protocol::Sotw => assert_eq!(script.want(CDS, "*", &script.nonce(CDS)), ["CDS +a=1 -far"]),
            Protocol::Delta => assert_eq!(script.subscribe(CDS, "-far"), ["CDS -far"]),
        }
        assert_eq!(script.settle(), [""; 0]);
        script.replace(&[(CDS, "a")], &[(CDS, "far=2")]);
        assert_eq!(script.sent(), [""; 0]);
    }
}

#[test]
fn a_cluster_that_moves_into_the_view_of_the_client_is_not_sent_again() {
    for protocol in BOTH {
        let mut script = by_name(protocol);
        script.open(CDS, "* far");
        script.settle();
        script.replace(&[(CDS, "a far")], &[]);
        assert_eq!(script.sent(), [""; 0]);
        script.replace(&[(CDS, "a")], &[(CDS, "far")]);
        assert_eq!(script.sent(), [""; 0]);
    }
}

#[test]
fn what_a_client_may_have_by_name_concerns_it_once_it_has_asked_for_it() {
    for protocol in BOTH {
        let mut script = by_name(protocol);
        script.open(CDS, "*");
        script.settle();
        let named = [(CDS, "far=2"), (RDS, "r"), (EDS, "far")];
        assert!(!script.concerned_by(&[(CDS, "a")], &named));
        assert!(script.concerned_by(&[(CDS, "a=2")], &[(CDS, "far"), (RDS, "r"), (EDS, "far")]));
        match protocol {
            Protocol::Sotw => drop(script.want(CDS, "* far", &script.nonce(CDS))),
            Protocol::Delta => drop(script.subscribe(CDS, "far")),
        }
        assert!(script.concerned_by(&[(CDS, "a")], &named));
        assert!(!script.concerned_by(&[(CDS, "a")], &[(CDS, "far other"), (RDS, "r"), (EDS, "far")]));
        assert!(script.concerned_by(&[(CDS, "a")], &[]), "it is gone");
    }
}

#[test]
fn a_route_configuration_is_served_by_name_though_no_listener_of_the_view_refers_to_it() {
    for protocol in BOTH {
        let mut script = by_name(protocol);
        assert_eq!(script.open(RDS, "r"), ["RDS +r=1"]);
        assert_eq!(script.settle(), [""; 0]);
    }
}

#[test]
fn a_reconnecting_client_keeps_what_it_had_by_name() {
    let mut script = by_name(Protocol::Delta);
    assert_eq!(script.say(reconnect(CDS, "* far", "a far")), [""; 0]);
    script.session.reopened();
    assert_eq!(script.sent(), [""; 0]);
    let mut other = by_name(Protocol::Delta);
    other.say(reconnect(CDS, "*", "a far"));
    other.session.reopened();
    assert_eq!(other.sent(), ["CDS -far"], "it no longer asks for it");
}

fn hosts() -> Script {
    Script::with_named(Protocol::Delta, &[], &[(VHDS, "r/web=web,web.shop r/any=*.example.com")])
}

#[test]
fn the_first_request_for_virtual_hosts_is_answered_at_once_though_it_names_none() {
    let mut script = hosts();
    assert_eq!(script.subscribe(VHDS, ""), ["VHDS"], "Envoy serves nothing before");
    assert_eq!(script.settle(), [""; 0]);
}

#[test]
fn a_virtual_host_is_served_under_its_own_name_with_the_name_that_was_asked_for() {
    let mut script = hosts();
    script.subscribe(VHDS, "");
    script.settle();
    assert_eq!(script.subscribe(VHDS, "r/web.shop"), ["VHDS +r/web(r/web.shop)"]);
    script.settle();
    assert_eq!(
        script.subscribe(VHDS, "r/web"),
        ["VHDS +r/web(r/web.shop)"],
        "somebody waits for this name: it is sent, though the client has it"
    );
    script.settle();
    assert_eq!(script.subscribe(VHDS, "r/a.example.com"), ["VHDS +r/any(r/a.example.com)"]);
    assert_eq!(script.settle(), [""; 0]);
}

#[test]
fn an_authority_that_nothing_serves_is_answered_as_not_to_be_resolved_and_only_once() {
    let mut script = hosts();
    script.subscribe(VHDS, "");
    script.settle();
    assert_eq!(script.subscribe(VHDS, "r/ghost"), ["VHDS ?r/ghost"]);
    assert_eq!(script.ack(VHDS), [""; 0]);
    assert_eq!(script.subscribe(VHDS, "r/ghost"), ["VHDS ?r/ghost"], "it asked again");
    assert_eq!(script.settle(), [""; 0]);
}

#[test]
fn an_authority_that_comes_to_be_served_is_sent_to_whoever_asked_for_it() {
    let mut script = hosts();
    script.subscribe(VHDS, "r/ghost");
    script.settle();
    script.replace(&[], &[(VHDS, "r/web=web r/new=ghost")]);
    assert_eq!(script.sent(), ["VHDS +r/new(r/ghost)"]);
    assert_eq!(script.settle(), [""; 0]);
}

#[test]
fn a_virtual_host_that_goes_is_removed_by_its_own_name_and_its_authority_can_be_asked_for_again() {
    let mut script = hosts();
    script.subscribe(VHDS, "r/web.shop");
    script.settle();
    script.replace(&[], &[(VHDS, "r/any=*.example.com")]);
    assert_eq!(script.sent(), ["VHDS -r/web"]);
    script.settle();
    assert_eq!(script.subscribe(VHDS, "r/web.shop"), ["VHDS ?r/web.shop"]);
    script.settle();
    script.replace(&[], &[(VHDS, "r/web=web,web.shop")]);
    assert_eq!(script.sent(), ["VHDS +r/web(r/web.shop)"]);
    assert_eq!(script.settle(), [""; 0]);
}

#[test]
fn an_authority_that_another_virtual_host_serves_now_is_sent_from_there() {
    let mut script = hosts();
    script.subscribe(VHDS, "r/web.shop");
    script.settle();
    script.replace(&[], &[(VHDS, "r/web=web r/shop=web.shop")]);
    let sent: Vec<_> = script.sent().into_iter().chain(script.settle()).collect();
    assert_eq!(sent, ["VHDS +r/shop(r/web.shop) +r/web()"]);
}

#[test]
fn unsubscribing_from_an_authority_ends_its_virtual_host_unless_another_one_needs_it() {
    let mut script = hosts();
    script.subscribe(VHDS, "r/web.shop r/web.shop");
    script.subscribe(VHDS, "r/a.example.com r/b.example.com");
    script.settle();
    script.subscribe(VHDS, "-r/web.shop -r/a.example.com");
    script.replace(&[], &[(VHDS, "r/web=web,web.shop,x r/any=*.example.com,x.y")]);
    assert_eq!(script.sent(), ["VHDS +r/any(r/b.example.com)"]);
}

#[test]
fn a_reconnecting_client_is_not_sent_the_virtual_hosts_that_it_has() {
    let mut script = hosts();
    let held = "r/web=web,web.shop";
    assert_eq!(script.say(reconnect(VHDS, "r/web.shop r/web", held)), ["VHDS"]);
    assert_eq!(script.settle(), [""; 0]);
}
