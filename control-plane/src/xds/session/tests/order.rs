//! Make before break.

use super::script::*;
use crate::xds::{kinds, session::Protocol};

const MESH: &[(&str, &str)] = &[(CDS, "a"), (EDS, "a"), (LDS, "l"), (RDS, "l")];

fn started(protocol: Protocol) -> Script {
    let mut script = Script::new(protocol, MESH);
    for (type_url, names) in [(CDS, ""), (EDS, "a"), (LDS, ""), (RDS, "l")] {
        script.open(type_url, names);
        script.settle();
    }
    script
}

#[test]
fn endpoints_are_sent_again_after_their_cluster_changed_without_waiting_for_its_ack() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(CDS, "a=2")]);
        assert_eq!(script.sent(), ["CDS +a=2", "EDS +a=1"]);
    }
}

#[test]
fn endpoints_in_flight_are_sent_again_all_the_same_because_they_went_before_the_cluster() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(EDS, "a=2")]);
        assert_eq!(script.sent(), ["EDS +a=2"]);
        script.model(&[(CDS, "a=2")]);
        assert_eq!(script.sent(), ["CDS +a=2"]);
        assert_eq!(script.ack(EDS), ["EDS +a=2"]);
    }
}

#[test]
fn only_endpoints_of_clusters_that_changed_are_sent_again() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, &[(CDS, "a b"), (EDS, "a b")]);
        script.open(CDS, "");
        script.open(EDS, "a b");
        script.settle();
        script.model(&[(CDS, "a b=2")]);
        assert_eq!(script.sent()[1..], ["EDS +b=1"]);
    }
}

#[test]
fn routes_are_sent_again_after_the_listener_that_refers_to_them_changed() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(LDS, "l=2")]);
        assert_eq!(script.sent(), ["LDS +l=2", "RDS +l=1"]);
    }
}

#[test]
fn listeners_and_routes_wait_until_clusters_and_endpoints_of_the_same_change_are_acknowledged() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(CDS, "a b"), (EDS, "a b"), (LDS, "l=2"), (RDS, "l=2")]);
        assert!(
            matches!(&script.sent()[..], [cds] if cds.ends_with("+b=1")),
            "the new cluster goes first, alone"
        );
        let names = if protocol == Protocol::Sotw { "a b" } else { "b" };
        assert_eq!(script.open(EDS, names), ["EDS +b=1"]);
        assert_eq!(script.ack(CDS), [""; 0]);
        assert_eq!(script.ack(EDS), ["LDS +l=2"]);
        assert_eq!(script.ack(LDS), ["RDS +l=2"]);
    }
}

#[test]
fn a_route_does_not_starve_while_endpoints_change_all_the_time() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(EDS, "a=2"), (RDS, "l=2")]);
        assert_eq!(script.sent(), ["EDS +a=2"]);
        script.model(&[(EDS, "a=3")]);
        assert_eq!(script.ack(EDS), ["EDS +a=3", "RDS +l=2"]);
    }
}

#[test]
fn an_answer_to_a_new_subscription_waits_for_nothing() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(CDS, "a=2"), (RDS, "l m")]);
        script.sent();
        let names = if protocol == Protocol::Sotw { "l m" } else { "m" };
        assert_eq!(script.open(RDS, names), ["RDS +m=1"]);
    }
}

#[test]
fn removals_come_last_and_in_the_opposite_order() {
    let mut script = started(Protocol::Delta);
    script.model(&[(CDS, "b"), (EDS, "b"), (LDS, "m"), (RDS, "m")]);
    assert_eq!(script.sent(), ["CDS +b=1"]);
    assert_eq!(script.subscribe(EDS, "b"), ["EDS +b=1"]);
    assert_eq!(script.ack(CDS), [""; 0]);
    assert_eq!(script.ack(EDS), ["LDS +m=1 -l"]);
    assert_eq!(script.subscribe(RDS, "m"), ["RDS +m=1"]);
    assert_eq!(script.ack(LDS), [""; 0]);
    assert_eq!(script.ack(RDS), ["RDS -l"]);
    assert_eq!(script.ack(RDS), ["CDS -a"]);
    assert_eq!(script.ack(CDS), ["EDS -a"]);
    assert_eq!(script.ack(EDS), [""; 0]);
}

#[test]
fn a_cluster_is_not_removed_while_the_client_runs_an_old_route_because_it_refused_the_new_one() {
    for protocol in BOTH {
        let mut script = started(protocol);
        script.model(&[(CDS, "a b"), (RDS, "l=bad")]);
        script.sent();
        script.settle_but(RDS);
        script.nack(RDS);
        script.model(&[(CDS, "b")]);
        assert_eq!(script.sent(), [""; 0]);
        assert_eq!(script.session.status()[0].settled_revision, 3, "nothing is expected of the client");
        script.model(&[(RDS, "l=3")]);
        assert_eq!(script.sent(), ["RDS +l=3"]);
        assert_eq!(
            script.ack(RDS),
            ["CDS +b=1 -a"].map(|full| match protocol {
                Protocol::Sotw => full,
                Protocol::Delta => "CDS -a",
            })
        );
    }
}

#[test]
fn agents_get_a_policy_before_the_endpoint_that_it_protects_and_lose_it_after() {
    const CLASS: &str = kinds::POLICY_CLASS;
    const LOCAL: &str = kinds::LOCAL_ENDPOINT;
    let mut script = Script::new(Protocol::Delta, &[(CLASS, "1"), (LOCAL, "shop/web")]);
    script.open(LOCAL, "*");
    script.open(CLASS, "*");
    script.settle();
    script.model(&[(CLASS, "2"), (LOCAL, "shop/web=2")]);
    assert_eq!(script.sent(), ["PolicyClass +2=1"]);
    assert_eq!(script.ack(CLASS), ["LocalEndpoint +shop/web=2"]);
    assert_eq!(script.ack(LOCAL), ["PolicyClass -1"]);
}

#[test]
fn types_that_are_not_subscribed_to_hold_nothing_up() {
    for protocol in BOTH {
        let mut script = Script::new(protocol, MESH);
        script.open(LDS, "");
        script.settle();
        script.model(&[(CDS, "b"), (LDS, "l=2")]);
        assert_eq!(script.sent(), ["LDS +l=2"]);
    }
}
